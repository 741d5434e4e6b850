//! What the store holds, and how a stretch of it is asked for.

use std::ops::Bound;

use bytes::Bytes;

/// The number of a change; one count for the whole store. An empty store is at revision 1, the
/// first write makes revision 2.
pub type Revision = u64;

/// The name of a lease.
pub type LeaseId = i64;

/// A key with its value and history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value; opaque.
    pub value: Bytes,
    /// The revision at which the key came into being, after its last deletion.
    pub create_revision: Revision,
    /// The revision of the last change.
    pub mod_revision: Revision,
    /// How often the key was written since it came into being; 1 for a new key.
    pub version: u64,
    /// The lease whose end deletes the key.
    pub lease: Option<LeaseId>,
}

/// A request for the keys in `[start, end)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The first key.
    pub start: Bytes,
    /// The key after the last; empty for no bound.
    pub end: Bytes,
    /// The greatest number of keys to return; 0 for all.
    pub limit: usize,
    /// The revision to read at; the current one when absent.
    pub at: Option<Revision>,
    /// Only count, return no keys.
    pub count_only: bool,
}

impl Range {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl AsRef<[u8]>) -> Self {
        let prefix = prefix.as_ref();
        Self { start: Bytes::copy_from_slice(prefix), end: after_prefix(prefix), ..Self::default() }
    }

    /// The one key `key`.
    pub fn key(key: impl AsRef<[u8]>) -> Self {
        let key = key.as_ref();
        let mut end = key.to_vec();
        end.push(0);
        Self { start: Bytes::copy_from_slice(key), end: end.into(), ..Self::default() }
    }
}

/// What lies in a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResponse {
    /// The keys in order, at most `limit`.
    pub kvs: Vec<KeyValue>,
    /// More keys lie in the range than were returned.
    pub more: bool,
    /// How many keys lie in the range, whatever the limit.
    pub count: u64,
    /// The store's current revision, also when an older one was read.
    pub revision: Revision,
}

/// The first key after all keys that begin with `prefix`; empty when there is none.
fn after_prefix(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::new()
}

/// `key` lies in `[start, end)`, an empty `end` meaning no bound.
pub(crate) fn within(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    key >= start && (end.is_empty() || key < end)
}

/// The bounds of a stretch of an ordered map.
pub(crate) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The bounds of `[start, end)`, or nothing when no key can lie between them.
pub(crate) fn bounds<'a>(start: &'a [u8], end: &'a [u8]) -> Option<Bounds<'a>> {
    if end.is_empty() {
        return Some((Bound::Included(start), Bound::Unbounded));
    }
    (start < end).then_some((Bound::Included(start), Bound::Excluded(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix() {
        let cases: [(&[u8], &[u8]); 4] =
            [(b"/pods/", b"/pods0"), (b"a\xff", b"b"), (b"\xff\xff", b""), (b"", b"")];
        for (prefix, end) in cases {
            assert_eq!(Range::prefix(prefix).end, end, "{prefix:?}");
        }
    }
}
