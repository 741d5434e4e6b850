//! What the server itself writes into `metadata`, and what it lets nobody change.
//!
//! Source: `rest.FillObjectMetaSystemFields`, `rest.BeforeUpdate` and `ValidateObjectMetaUpdate` of
//! apimachinery.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::meta;
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

/// `utilrand`'s letters: no vowels, so that no words come out, and no characters that look alike.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX: usize = 5;
const MAX_GENERATED_BASE: usize = 63 - SUFFIX;

/// An id that nothing else has, without asking the kernel for chance each time.
pub fn fresh_uuid() -> Uuid {
    static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(Default::default);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let [high, low] = KEYS.each_ref().map(|keys| keys.hash_one(count).to_be_bytes());
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&high);
    bytes[8..].copy_from_slice(&low);
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

/// A name that begins with `base` (`names.SimpleNameGenerator`).
pub fn generate_name(base: &str) -> String {
    let mut end = base.len().min(MAX_GENERATED_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let random = fresh_uuid().as_u128();
    let mut name = base[..end].to_owned();
    let mut pool = random;
    for _ in 0..SUFFIX {
        name.push(char::from(LETTERS[(pool % LETTERS.len() as u128) as usize]));
        pool /= LETTERS.len() as u128;
    }
    name
}

/// Now, in whole seconds, as `metav1.Time` prints it.
pub fn now() -> String {
    seconds(Timestamp::now())
}

/// A point in time in whole seconds, as `metav1.Time` prints it.
pub fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Fills in what a new object gets from the server.
pub fn fill_system_fields(object: &mut Value) {
    let metadata = meta::metadata_mut(object);
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        metadata.remove(key);
    }
    metadata.insert("creationTimestamp".into(), now().into());
    metadata.insert("uid".into(), fresh_uuid().to_string().into());
}

/// Carries over what an update cannot change.
pub fn keep_system_fields(object: &mut Value, old: &Value) {
    let before = meta::metadata(old);
    let metadata = meta::metadata_mut(object);
    metadata.remove("selfLink");
    let mut keep = |key: &str, only_if_absent: bool| match before.get(key) {
        Some(_) if only_if_absent && metadata.get(key).is_some_and(|v| v.as_str() != Some("")) => {}
        Some(value) => {
            metadata.insert(key.into(), value.clone());
        }
        None => {}
    };
    keep("uid", true);
    keep("creationTimestamp", false);
    keep("deletionTimestamp", false);
    keep("deletionGracePeriodSeconds", true);
    keep("namespace", true);
    keep("generateName", true);
}

/// The rules every update obeys, whatever the kind.
pub fn validate_update(object: &Value, old: &Value) -> ErrorList {
    let path = Path::new("metadata");
    let (new, before) = (meta::metadata(object), meta::metadata(old));
    let mut errors = ErrorList::new();
    let absent = Value::String(String::new());
    for key in ["name", "namespace", "uid", "creationTimestamp"] {
        let (a, b) = (new.get(key).unwrap_or(&absent), before.get(key).unwrap_or(&absent));
        if a != b {
            errors.push(Error::invalid(&path.child(key), a.clone(), "field is immutable"));
        }
    }
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        if new.get(key) != before.get(key) {
            let value = new.get(key).cloned().unwrap_or(Value::Null);
            let detail = "field is immutable; may only be changed via deletion";
            errors.push(Error::invalid(&path.child(key), value, detail));
        }
    }
    if before.contains_key("deletionTimestamp") {
        let known = meta::finalizers(old);
        let added: Vec<&str> =
            meta::finalizers(object).into_iter().filter(|f| !known.contains(f)).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            );
            errors.push(Error::forbidden(&path.child("finalizers"), detail));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_generated_as_upstream_does() {
        let name = generate_name("web-");
        assert_eq!(name.len(), 9);
        assert!(name[4..].bytes().all(|b| LETTERS.contains(&b)));
        assert_eq!(generate_name(&"x".repeat(80)).len(), 63);
    }

    #[test]
    fn what_cannot_change_is_told() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "creationTimestamp": "t"}});
        let mut new = json!({"metadata": {"name": "b", "uid": "2"}});
        keep_system_fields(&mut new, &old);
        let texts: Vec<String> =
            validate_update(&new, &old).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "metadata.name: Invalid value: \"b\": field is immutable",
                "metadata.uid: Invalid value: \"2\": field is immutable",
            ]
        );
    }
}
