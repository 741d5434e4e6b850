//! What the maker of a new object owns, remembered for objects of the same form: what is made is made in numbers,
//! by templates, and to take such an object apart again costs more than to see that it is like the last.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use serde_json::Value;

/// So many forms are remembered.
const FORMS: usize = 256;
/// Of an object with more values than that nothing is remembered: it would take much memory, and few are alike.
const VALUES_MAX: usize = 2_000;

/// All that the fields that somebody comes to own by making an object depend on: the names of fields, what lists hold,
/// and whether values are there, but not which ones.
pub(super) type Form = [u64; 2];

/// A form that was met, and once it was met again, what is owned of it.
type Known = Option<(Form, Option<Arc<Value>>)>;

static KNOWN: LazyLock<Mutex<Vec<Known>>> = LazyLock::new(|| Mutex::new(vec![None; FORMS]));
/// Nobody outside can find two objects that are taken for the same.
static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);

fn place(form: Form) -> usize {
    form[0] as usize % FORMS
}

/// The form of an object that is made through an endpoint, which `names` tell; `None` of one that is too large.
pub(super) fn of(names: [&str; 4], object: &Value) -> Option<Form> {
    let mut left = VALUES_MAX;
    if !is_small(object, &mut left) {
        return None;
    }
    Some(KEYS.each_ref().map(|keys| {
        let mut hasher = keys.build_hasher();
        for name in names {
            text(&mut hasher, name);
        }
        walk(&mut hasher, object, false);
        hasher.finish()
    }))
}

fn is_small(value: &Value, left: &mut usize) -> bool {
    *left = left.saturating_sub(1);
    *left > 0
        && match value {
            Value::Object(map) => map.values().all(|value| is_small(value, left)),
            Value::Array(list) => list.iter().all(|item| is_small(item, left)),
            _ => true,
        }
}

fn text(hasher: &mut impl Hasher, text: &str) {
    hasher.write_usize(text.len());
    hasher.write(text.as_bytes());
}

/// `whole` says that values count too: items of lists may be known by them.
fn walk(hasher: &mut impl Hasher, value: &Value, whole: bool) {
    match value {
        Value::Object(map) => {
            hasher.write_u8(0);
            hasher.write_usize(map.len());
            for (name, value) in map {
                text(hasher, name);
                walk(hasher, value, whole);
            }
        }
        Value::Array(list) => {
            hasher.write_u8(1);
            hasher.write_usize(list.len());
            for item in list {
                walk(hasher, item, true);
            }
        }
        Value::Null => hasher.write_u8(2),
        Value::Bool(flag) => hasher.write_u8(3 + u8::from(*flag)),
        // Whether it is Go's zero value counts everywhere.
        Value::String(content) => {
            hasher.write_u8(5 + u8::from(content.is_empty()));
            // A quantity's zero value.
            hasher.write_u8(u8::from(content == "0"));
            if whole {
                text(hasher, content);
            }
        }
        Value::Number(number) => {
            hasher.write_u8(7 + u8::from(number.as_f64() == Some(0.0)));
            if whole {
                text(hasher, &number.to_string());
            }
        }
    }
}

/// What is owned of an object of this form, if that is known.
pub(super) fn known(form: Form) -> Option<Arc<Value>> {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let (of, owned) = known[place(form)].as_ref()?;
    owned.clone().filter(|_| *of == form)
}

/// Remembers what is owned of an object of this form, if it is met for the second time.
pub(super) fn remember(form: Form, owned: impl FnOnce() -> Value) {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = &mut known[place(form)];
    let again = known.as_ref().is_some_and(|(of, _)| *of == form);
    *known = Some((form, again.then(|| Arc::new(owned()))));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn forms_differ_where_owners_do() {
        let names = ["v1", "v1", "Pod", ""];
        let base = json!({"metadata": {"name": "a"}, "spec": {"n": 1, "list": [{"name": "c", "image": "x"}]}});
        let same = json!({"metadata": {"name": "b"}, "spec": {"n": 2, "list": [{"name": "c", "image": "x"}]}});
        assert_eq!(of(names, &base), of(names, &same));
        assert_ne!(of(names, &base), of(["v1", "v1", "Pod", "status"], &base));
        for other in [
            json!({"metadata": {"nam": "a"}, "spec": {"n": 1, "list": [{"name": "c", "image": "x"}]}}),
            json!({"metadata": {"name": ""}, "spec": {"n": 1, "list": [{"name": "c", "image": "x"}]}}),
            json!({"metadata": {"name": "a"}, "spec": {"n": 0, "list": [{"name": "c", "image": "x"}]}}),
            json!({"metadata": {"name": "0"}, "spec": {"n": 1, "list": [{"name": "c", "image": "x"}]}}),
            json!({"metadata": {"name": "a"}, "spec": {"n": null, "list": [{"name": "c", "image": "x"}]}}),
            json!({"metadata": {"name": "a"}, "spec": {"n": "1", "list": [{"name": "c", "image": "x"}]}}),
            json!({"metadata": {"name": "a"}, "spec": {"n": 1, "list": [{"name": "d", "image": "x"}]}}),
            json!({"metadata": {"name": "a"}, "spec": {"n": 1, "list": [{"name": "c", "image": "x"}, 7]}}),
            json!({"metadata": {"name": "a"}, "spec": {"n": 1, "list": []}}),
        ] {
            assert_ne!(of(names, &base), of(names, &other), "{other}");
        }
    }

    #[test]
    fn large_objects_have_none() {
        let data = |count: usize| {
            let entries = (0..count).map(|n| (n.to_string(), json!("x")));
            json!({"data": entries.collect::<serde_json::Map<_, _>>()})
        };
        assert!(of(["v1", "v1", "ConfigMap", ""], &data(1_000)).is_some());
        assert!(of(["v1", "v1", "ConfigMap", ""], &data(3_000)).is_none());
    }

    #[test]
    fn what_is_met_again_is_remembered() {
        let form = of(["v1", "v1", "Remembered", ""], &json!({})).expect("small");
        assert_eq!(known(form), None);
        remember(form, || unreachable!("met once"));
        assert_eq!(known(form), None);
        remember(form, || json!({"f:a": {}}));
        assert_eq!(known(form).as_deref(), Some(&json!({"f:a": {}})));
    }
}
