//! One change, and its bytes in the file.

use bytes::Bytes;

use crate::{EventKind, KeyValue, LeaseId, Revision};

/// Where a change stands: its revision, and its place among the changes of that revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub revision: Revision,
    pub sub: u32,
}

impl Position {
    /// The first place of a revision.
    pub fn first(revision: Revision) -> Self {
        Self { revision, sub: 0 }
    }

    /// The last place of a revision.
    pub fn last(revision: Revision) -> Self {
        Self { revision, sub: u32::MAX }
    }
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub position: Position,
    /// The change that this one superseded; none when the key was absent.
    pub previous: Option<Position>,
    pub kind: EventKind,
    pub kv: KeyValue,
}

const DELETED: u8 = 1;
const LEASED: u8 = 2;
const SUPERSEDES: u8 = 4;

/// Layout, integers little-endian: flags u8, create revision u64, version u64, previous revision
/// u64, previous place u32, lease i64, key length u32, key, value, CRC-32 of all before u32.
const HEADER: usize = 1 + 8 + 8 + 8 + 4 + 8 + 4;
const TRAILER: usize = 4;

impl Record {
    /// Appends the record's bytes.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        let flag = |on: bool, flag: u8| if on { flag } else { 0 };
        let kv = &self.kv;
        let previous = self.previous.unwrap_or(Position::first(0));
        let start = bytes.len();
        bytes.reserve(HEADER + kv.key.len() + kv.value.len() + TRAILER);
        bytes.push(
            flag(self.kind == EventKind::Delete, DELETED)
                | flag(kv.lease.is_some(), LEASED)
                | flag(self.previous.is_some(), SUPERSEDES),
        );
        bytes.extend_from_slice(&kv.create_revision.to_le_bytes());
        bytes.extend_from_slice(&kv.version.to_le_bytes());
        bytes.extend_from_slice(&previous.revision.to_le_bytes());
        bytes.extend_from_slice(&previous.sub.to_le_bytes());
        bytes.extend_from_slice(&kv.lease.unwrap_or_default().to_le_bytes());
        bytes.extend_from_slice(&(kv.key.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&kv.key);
        bytes.extend_from_slice(&kv.value);
        bytes.extend_from_slice(&checksum(&bytes[start..]).to_le_bytes());
    }

    /// Reads what [`Self::encode_into`] wrote; says what is wrong with anything else.
    pub fn decode(position: Position, bytes: &[u8]) -> Result<Self, &'static str> {
        let (body, trailer) = bytes
            .split_last_chunk::<TRAILER>()
            .ok_or("record cut short")
            .map(|(body, trailer)| (body, u32::from_le_bytes(*trailer)))?;
        if checksum(body) != trailer {
            return Err("record with a wrong checksum");
        }
        let mut rest = body;
        let [flags] = take::<1>(&mut rest)?;
        let create_revision = u64::from_le_bytes(take(&mut rest)?);
        let version = u64::from_le_bytes(take(&mut rest)?);
        let revision = u64::from_le_bytes(take(&mut rest)?);
        let sub = u32::from_le_bytes(take(&mut rest)?);
        let lease = LeaseId::from_le_bytes(take(&mut rest)?);
        let key_len = u32::from_le_bytes(take(&mut rest)?) as usize;
        let (key, value) =
            rest.split_at_checked(key_len).ok_or("record with a wrong key length")?;
        let kind = if flags & DELETED == 0 { EventKind::Put } else { EventKind::Delete };
        let kv = KeyValue {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
            create_revision,
            mod_revision: position.revision,
            version,
            lease: (flags & LEASED != 0).then_some(lease),
        };
        let previous = (flags & SUPERSEDES != 0).then_some(Position { revision, sub });
        Ok(Self { position, previous, kind, kv })
    }
}

/// The next bytes, which are no longer part of the rest.
pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], &'static str> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or("record cut short")?;
    *rest = tail;
    Ok(*head)
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_record_survives_its_bytes(
            key in proptest::collection::vec(any::<u8>(), 0..40),
            value in proptest::collection::vec(any::<u8>(), 0..400),
            numbers in any::<(u64, u64, u64)>(),
            previous in any::<Option<(u64, u32)>>(),
            lease in any::<Option<i64>>(),
            deleted: bool,
            flip in any::<proptest::sample::Index>(),
        ) {
            let position = Position { revision: numbers.0, sub: 3 };
            let record = Record {
                position,
                previous: previous.map(|(revision, sub)| Position { revision, sub }),
                kind: if deleted { EventKind::Delete } else { EventKind::Put },
                kv: KeyValue {
                    key: key.into(),
                    value: value.into(),
                    create_revision: numbers.1,
                    mod_revision: numbers.0,
                    version: numbers.2,
                    lease,
                },
            };
            let mut bytes = Vec::new();
            record.encode_into(&mut bytes);
            prop_assert_eq!(Record::decode(position, &bytes), Ok(record));
            let at = flip.index(bytes.len());
            bytes[at] ^= 0x10;
            prop_assert!(Record::decode(position, &bytes).is_err());
            prop_assert!(Record::decode(position, &bytes[..at]).is_err());
        }
    }
}
