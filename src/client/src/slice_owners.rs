//! Which Service each EndpointSlice is of.

use std::collections::HashMap;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;

use crate::Key;

/// The label by which a slice names its Service (EndpointSlice API reference).
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The Service of each slice that was told of. A slice may change from one to another, and one that is gone no
/// longer says whose it was.
#[derive(Clone, Debug, Default)]
pub struct SliceOwners {
    by_slice: HashMap<Key, Key>,
}

/// What a change of a slice means for Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Move {
    /// The Service that it is of no more.
    pub left: Option<Key>,
    /// The Service that it is of.
    pub owner: Option<Key>,
}

impl SliceOwners {
    /// Takes up that a slice is this now; None is gone.
    pub fn set(&mut self, slice: &Key, now: Option<&EndpointSlice>) -> Move {
        let name = now.and_then(|slice| slice.labels().get(SERVICE_NAME));
        let owner = name.map(|name| (slice.0.clone(), name.clone()));
        let before = match &owner {
            Some(owner) => self.by_slice.insert(slice.clone(), owner.clone()),
            None => self.by_slice.remove(slice),
        };
        Move { left: before.filter(|before| owner.as_ref() != Some(before)), owner }
    }

    /// Forgets all slices.
    pub fn clear(&mut self) {
        self.by_slice.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_slice_moves_from_service_to_service() {
        let key = |name: &str| -> Key { ("d".into(), name.into()) };
        let slice = |service: Option<&str>| -> EndpointSlice {
            let labels = service.map(|name| json!({SERVICE_NAME: name}));
            let slice = json!({"metadata": {"name": "s", "namespace": "d", "labels": labels},
                "addressType": "IPv4", "endpoints": []});
            serde_json::from_value(slice).unwrap()
        };
        let mut owners = SliceOwners::default();
        // The slice's Service now, the one it left, the one it has.
        let steps = [
            (Some(slice(Some("a"))), None, Some("a")),
            (Some(slice(Some("a"))), None, Some("a")),
            (Some(slice(Some("b"))), Some("a"), Some("b")),
            (Some(slice(None)), Some("b"), None),
            (Some(slice(Some("b"))), None, Some("b")),
            (None, Some("b"), None),
            (None, None, None),
        ];
        for (number, (now, left, owner)) in steps.into_iter().enumerate() {
            let told = owners.set(&key("s"), now.as_ref());
            assert_eq!(told, Move { left: left.map(key), owner: owner.map(key) }, "{number}");
        }
    }
}
