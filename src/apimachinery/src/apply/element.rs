//! One step of a path to a field, in the form that `FieldsV1` writes it: `f:name` a field, `k:{…}` the list
//! item with these keys, `v:…` the list item that is this scalar, `i:3` a position.
//!
//! Source: `sigs.k8s.io/structured-merge-diff/fieldpath`, `serialize-pe.go` and `element.go`.

use serde_json::{Map, Value};

use crate::schema::Text;

/// The step to a field.
pub(super) fn field(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 2);
    text.push_str("f:");
    text.push_str(name);
    text
}

/// The name, if the step is to a field.
pub(super) fn name(element: &str) -> Option<&str> {
    element.strip_prefix("f:")
}

/// The step to an item of a set.
pub(super) fn item(value: &Value) -> Result<String, String> {
    match value {
        Value::Object(_) => {
            Err("associative list without keys has an element that's a map type".into())
        }
        Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
        Value::Null => {
            Err("associative list without keys has an element that's an explicit null".into())
        }
        scalar => Ok(format!("v:{scalar}")),
    }
}

/// The step to an item that is known by `keys`; `default` tells the value of a key that is absent.
pub(super) fn keyed(
    keys: &[Text],
    value: &Value,
    default: impl Fn(&str) -> Option<Value>,
) -> Result<String, String> {
    let map = match value {
        Value::Object(map) => map,
        Value::Null => {
            return Err("associative list with keys may not have a null element".into());
        }
        _ => return Err("associative list with keys may not have non-map elements".into()),
    };
    if let [key] = keys
        && let Some(value @ (Value::String(_) | Value::Number(_))) = map.get(key.as_ref())
    {
        return Ok(format!("k:{{{}:{value}}}", Value::from(key.as_ref())));
    }
    let mut found = Map::new();
    // Without some of its keys an item is another than with them.
    for key in keys {
        if let Some(value) = map.get(key.as_ref()).cloned().or_else(|| default(key)) {
            found.insert(key.to_string(), value);
        }
    }
    if found.is_empty() {
        let keys: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
        let keys = keys.join(" ");
        return Err(format!(
            "associative list with keys has an element that omits all key fields [{keys}] (and doesn't have default values for any key fields)"
        ));
    }
    Ok(format!("k:{}", Value::Object(found)))
}

/// The step as a client wrote it, in this server's spelling; `None` for a kind of step that is unknown,
/// which is ignored.
pub(super) fn parse(text: &str) -> Result<Option<String>, String> {
    let rest = match text.get(..2) {
        None => return Err("key must be 2 characters long or more".into()),
        Some("f:") => return Ok(Some(text.to_owned())),
        Some("k:") if is_plain(&text[2..]) => return Ok(Some(text.to_owned())),
        Some(prefix @ ("k:" | "v:")) => {
            let value: Value = serde_json::from_str(&text[2..])
                .map_err(|error| format!("parsing key as JSON: {error}"))?;
            return Ok(Some(format!("{prefix}{value}")));
        }
        Some("i:") => &text[2..],
        Some(other) if other.ends_with(':') => return Ok(None),
        Some(_) => return Err(format!("missing colon: {text:?}")),
    };
    rest.parse::<u64>().map_err(|error| error.to_string())?;
    Ok(Some(text.to_owned()))
}

/// Whether a key is `{"name":"value"}` with nothing in it that JSON could spell otherwise.
fn is_plain(text: &str) -> bool {
    let plain =
        |part: &str| part.bytes().all(|b| matches!(b, b' '..=b'~') && !matches!(b, b'"' | b'\\'));
    text.strip_prefix("{\"")
        .and_then(|rest| rest.strip_suffix("\"}"))
        .and_then(|inner| inner.split_once("\":\""))
        .is_some_and(|(name, value)| plain(name) && plain(value))
}

/// The step as messages show it: `.name`, `[name="a"]`, `[="a"]`, `[3]`.
pub(super) fn show(element: &str) -> String {
    let (kind, rest) = element.split_at(2.min(element.len()));
    match kind {
        "f:" => format!(".{rest}"),
        "k:" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let parts: Vec<String> =
                keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", parts.join(","))
        }
        "v:" => format!("[={rest}]"),
        _ => format!("[{rest}]"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn steps_are_written_as_upstream_writes_them() {
        let port = json!({"containerPort": 80, "name": "x"});
        let keys = [Text::Borrowed("containerPort"), Text::Borrowed("protocol")];
        let default = |key: &str| (key == "protocol").then(|| json!("TCP"));
        let step = keyed(&keys, &port, default).unwrap();
        assert_eq!(step, r#"k:{"containerPort":80,"protocol":"TCP"}"#);
        assert_eq!(show(&step), r#"[containerPort=80,protocol="TCP"]"#);
        assert_eq!(keyed(&keys, &port, |_| None).unwrap(), r#"k:{"containerPort":80}"#);
        assert_eq!(
            keyed(&keys, &json!({}), |_| None).unwrap_err(),
            r#"associative list with keys has an element that omits all key fields ["containerPort" "protocol"] (and doesn't have default values for any key fields)"#
        );
        assert_eq!(item(&json!("a")).unwrap(), r#"v:"a""#);
        assert_eq!(show(r#"v:"a""#), r#"[="a"]"#);
        assert_eq!(show("i:3"), "[3]");
        assert_eq!(parse(r#"k:{"b" : 1,"a":2}"#).unwrap().unwrap(), r#"k:{"a":2,"b":1}"#);
        for (text, want) in [
            (r#"k:{"name":"a"}"#, r#"k:{"name":"a"}"#),
            (r#"k:{"name": "a"}"#, r#"k:{"name":"a"}"#),
            (r#"k:{"name":"\u0061"}"#, r#"k:{"name":"a"}"#),
            (r#"k:{"b":"x","a":"y"}"#, r#"k:{"a":"y","b":"x"}"#),
            (r#"k:{"b":"x","b":"y"}"#, r#"k:{"b":"y"}"#),
        ] {
            assert_eq!(parse(text).unwrap().unwrap(), want);
        }
        assert!(parse(r#"k:{"a":"b"c"}"#).is_err());
        assert_eq!(parse("x:new").unwrap(), None);
        assert!(parse("f").is_err() && parse("name").is_err() && parse("i:x").is_err());
    }
}
