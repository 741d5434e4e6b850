//! Go's names for types, and `encoding/json`'s words for broken JSON.

use serde_json::Number;

use crate::schema::{Schema, Shape};

/// String types that have a name of their own in Go, by struct and field: the table only knows strings.
const NAMED: &[(&str, &str, &str)] = &[
    ("PodSpec", "restartPolicy", "RestartPolicy"),
    ("PodSpec", "dnsPolicy", "DNSPolicy"),
    ("PodSpec", "preemptionPolicy", "PreemptionPolicy"),
    ("Container", "imagePullPolicy", "PullPolicy"),
    ("Container", "restartPolicy", "ContainerRestartPolicy"),
    ("Container", "terminationMessagePolicy", "TerminationMessagePolicy"),
    ("ContainerPort", "protocol", "Protocol"),
    ("ServicePort", "protocol", "Protocol"),
    ("ServiceSpec", "type", "ServiceType"),
    ("ServiceSpec", "sessionAffinity", "ServiceAffinity"),
    ("ServiceSpec", "externalTrafficPolicy", "ServiceExternalTrafficPolicy"),
    ("HTTPGetAction", "scheme", "URIScheme"),
    ("VolumeMount", "mountPropagation", "MountPropagationMode"),
    ("EmptyDirVolumeSource", "medium", "StorageMedium"),
    ("HostPathVolumeSource", "type", "HostPathType"),
    ("Toleration", "operator", "TolerationOperator"),
    ("Toleration", "effect", "TaintEffect"),
    ("Taint", "effect", "TaintEffect"),
    ("Secret", "type", "SecretType"),
    ("ObjectMeta", "uid", "types.UID"),
    ("OwnerReference", "uid", "types.UID"),
    ("DeploymentStrategy", "type", "DeploymentStrategyType"),
    ("JobSpec", "completionMode", "CompletionMode"),
    ("CronJobSpec", "concurrencyPolicy", "ConcurrencyPolicy"),
];

/// A number as Go tells a float64: whole ones without a fraction, those that are too long for one rounded.
pub(super) fn float(number: &Number) -> Number {
    /// Whole numbers up to here are floats of their own.
    const EXACT: u64 = 1 << 53;
    /// From here on Go tells the exponent.
    const WRITTEN_OUT: f64 = 1e21;
    if number.as_i64().is_some_and(|whole| whole.unsigned_abs() <= EXACT) {
        return number.clone();
    }
    let Some(float) = number.as_f64() else { return number.clone() };
    if float.fract() != 0.0 || float.abs() >= WRITTEN_OUT {
        return Number::from_f64(float).unwrap_or_else(|| number.clone());
    }
    // The shortest digits that mean this float, and zeros after them.
    let text = float.to_string();
    let whole = text.parse::<i64>().map(Number::from);
    let whole = whole.or_else(|_| text.parse::<u64>().map(Number::from));
    whole.ok().or_else(|| Number::from_f64(float)).unwrap_or_else(|| number.clone())
}

/// The Go type of `shape` where it is field `field` of struct `of`.
pub(super) fn type_name(schema: &Schema, of: &str, field: &str, shape: &Shape) -> String {
    match shape {
        Shape::String => NAMED.iter().find(|(s, f, _)| *s == of && *f == field).map_or_else(
            || "string".into(),
            |(_, _, name)| if name.contains('.') { (*name).into() } else { format!("v1.{name}") },
        ),
        Shape::Bytes => "[]uint8".into(),
        Shape::Int32 => "int32".into(),
        Shape::Int64 => "int64".into(),
        Shape::Double => "float64".into(),
        Shape::Bool => "bool".into(),
        Shape::Quantity => "resource.Quantity".into(),
        Shape::IntOrString => "intstr.IntOrString".into(),
        Shape::Time => "v1.Time".into(),
        Shape::MicroTime => "v1.MicroTime".into(),
        Shape::Any => "runtime.RawExtension".into(),
        Shape::List(item) => format!("[]{}", type_name(schema, "", "", item)),
        Shape::Map(item) if **item == Shape::Quantity => "v1.ResourceList".into(),
        Shape::Map(item) => format!("map[string]{}", type_name(schema, "", "", item)),
        Shape::Object(id) => {
            let of = schema.get(*id);
            format!("{}.{}", of.package(), of.short_name())
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Value,
    ValueOrEnd,
    KeyOrEnd,
    Key,
    Colon,
    AfterMember,
    AfterElement,
    Done,
}

/// What Go's scanner says about `body`, which serde_json refused with `error`.
pub(super) fn syntax(body: &[u8], error: &serde_json::Error) -> String {
    if error.is_data() {
        return error.to_string();
    }
    scan(body).unwrap_or_else(|| error.to_string())
}

fn complain(rest: &[u8], what: &str) -> String {
    let text = String::from_utf8_lossy(rest);
    let c = text.chars().next().unwrap_or('\0');
    let quoted = match c {
        '\'' => r"'\''".to_owned(),
        '"' => "'\"'".to_owned(),
        _ => format!("'{}'", c.escape_debug()),
    };
    format!("invalid character {quoted} {what}")
}

/// Finds the first place where the text stops being JSON; `None` if there is none.
fn scan(body: &[u8]) -> Option<String> {
    let eof = || Some("unexpected end of JSON input".to_owned());
    let (mut at, mut state, mut stack) = (0, State::Value, Vec::new());
    loop {
        while body.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        let Some(&byte) = body.get(at) else {
            return if state == State::Done { None } else { eof() };
        };
        let fail = |what: &str| Some(complain(&body[at..], what));
        let ended = |stack: &[u8]| match stack.last() {
            None => State::Done,
            Some(b'{') => State::AfterMember,
            Some(_) => State::AfterElement,
        };
        match (state, byte) {
            (State::KeyOrEnd | State::AfterMember, b'}')
            | (State::ValueOrEnd | State::AfterElement, b']') => {
                stack.pop();
                state = ended(&stack);
                at += 1;
            }
            (State::KeyOrEnd | State::Key, b'"') => match string(body, at) {
                Ok(end) => (at, state) = (end, State::Colon),
                Err(message) => return Some(message),
            },
            (State::KeyOrEnd | State::Key, _) => {
                return fail("looking for beginning of object key string");
            }
            (State::Colon, b':') => (at, state) = (at + 1, State::Value),
            (State::Colon, _) => return fail("after object key"),
            (State::AfterMember, b',') => (at, state) = (at + 1, State::Key),
            (State::AfterMember, _) => return fail("after object key:value pair"),
            (State::AfterElement, b',') => (at, state) = (at + 1, State::Value),
            (State::AfterElement, _) => return fail("after array element"),
            (State::Done, _) => return fail("after top-level value"),
            (State::Value | State::ValueOrEnd, b'{') => {
                stack.push(byte);
                (at, state) = (at + 1, State::KeyOrEnd);
            }
            (State::Value | State::ValueOrEnd, b'[') => {
                stack.push(byte);
                (at, state) = (at + 1, State::ValueOrEnd);
            }
            (State::Value | State::ValueOrEnd, b'"') => match string(body, at) {
                Ok(end) => (at, state) = (end, ended(&stack)),
                Err(message) => return Some(message),
            },
            (State::Value | State::ValueOrEnd, b'-' | b'0'..=b'9') => {
                while body.get(at).is_some_and(|b| b.is_ascii_digit() || b"+-.eE".contains(b)) {
                    at += 1;
                }
                state = ended(&stack);
            }
            (State::Value | State::ValueOrEnd, b't' | b'f' | b'n') => {
                let word: &[u8] = match byte {
                    b't' => b"true",
                    b'f' => b"false",
                    _ => b"null",
                };
                for (i, expected) in word.iter().enumerate() {
                    match body.get(at + i) {
                        None => return eof(),
                        Some(got) if got != expected => {
                            let what = format!(
                                "in literal {} (expecting '{}')",
                                String::from_utf8_lossy(word),
                                char::from(*expected)
                            );
                            return Some(complain(&body[at + i..], &what));
                        }
                        Some(_) => {}
                    }
                }
                (at, state) = (at + word.len(), ended(&stack));
            }
            (State::Value | State::ValueOrEnd, _) => return fail("looking for beginning of value"),
        }
    }
}

/// The end of the string literal that begins at `at`.
fn string(body: &[u8], at: usize) -> Result<usize, String> {
    let mut i = at + 1;
    loop {
        match body.get(i) {
            None => return Err("unexpected end of JSON input".to_owned()),
            Some(b'"') => return Ok(i + 1),
            Some(b'\\') => match body.get(i + 1) {
                Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' | b'u') => i += 2,
                Some(_) => return Err(complain(&body[i + 1..], "in string escape code")),
                None => return Err("unexpected end of JSON input".to_owned()),
            },
            Some(b) if *b < 0x20 => return Err(complain(&body[i..], "in string literal")),
            Some(_) => i += 1,
        }
    }
}
