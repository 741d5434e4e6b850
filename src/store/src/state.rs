//! The current values, and how a transaction changes them.

use bytes::Bytes;
use rpds::RedBlackTreeMapSync;

use crate::key_value::bounds;
use crate::log::{Position, Record};
use crate::{
    Compare, Event, EventKind, KeyValue, LeaseId, Op, Range, RangeResponse, Revision, WatchBatch,
};

/// A key's value with the place of its last change in the log.
#[derive(Clone, Debug)]
struct Current {
    kv: KeyValue,
    position: Position,
}

/// All current values at one revision. Cloning is cheap: clones share what they have in common.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    keys: RedBlackTreeMapSync<Bytes, Current>,
    /// The last revision.
    pub revision: Revision,
    /// What was superseded at or before this revision is forgotten; 0 when nothing is.
    pub compacted: Revision,
}

impl Snapshot {
    pub fn empty() -> Self {
        Self { keys: RedBlackTreeMapSync::new_sync(), revision: 1, compacted: 0 }
    }

    /// Takes over one record of the log; records must come in order.
    pub fn replay(&mut self, record: Record) {
        let Record { position, kind, kv, .. } = record;
        self.revision = self.revision.max(position.revision);
        match kind {
            EventKind::Put => self.keys.insert_mut(kv.key.clone(), Current { kv, position }),
            EventKind::Delete => {
                self.keys.remove_mut(&kv.key);
            }
        }
    }

    pub fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key).map(|current| &current.kv)
    }

    /// The keys of `[start, end)` in order.
    pub fn iter<'a>(
        &'a self,
        start: &'a [u8],
        end: &'a [u8],
    ) -> impl Iterator<Item = &'a KeyValue> {
        bounds(start, end)
            .into_iter()
            .flat_map(|between| self.keys.range::<[u8], _>(between))
            .map(|(_, current)| &current.kv)
    }

    /// All current values.
    pub fn all(&self) -> impl Iterator<Item = &KeyValue> {
        self.keys.values().map(|current| &current.kv)
    }

    pub fn range(&self, range: &Range) -> RangeResponse {
        collect(range, self.iter(&range.start, &range.end), self.revision)
    }

    /// What each compare finds, if one of them does not hold.
    pub fn conflict(&self, compares: &[Compare]) -> Option<Vec<Option<KeyValue>>> {
        let holds = |compare: &Compare| {
            self.get(&compare.key).map_or(0, |kv| kv.mod_revision) == compare.mod_revision
        };
        if compares.iter().all(holds) {
            return None;
        }
        Some(compares.iter().map(|compare| self.get(&compare.key).cloned()).collect())
    }

    /// Applies `ops` in one new revision, appending to `records`. Returns what watchers are to be
    /// told, or nothing when nothing changed.
    pub fn apply(&mut self, ops: Vec<Op>, records: &mut Vec<Record>) -> Option<WatchBatch> {
        let revision = self.revision + 1;
        let mut events = Vec::with_capacity(ops.len());
        for op in ops {
            let position = Position { revision, sub: events.len() as u32 };
            let event = match op {
                Op::Put { key, value, lease } => Some(self.put(position, key, value, lease)),
                Op::Delete { key } => self.delete(position, key),
            };
            let Some((event, before)) = event else { continue };
            let record =
                Record { position, previous: before, kind: event.kind, kv: event.kv.clone() };
            records.push(record);
            events.push(event);
        }
        if events.is_empty() {
            return None;
        }
        self.revision = revision;
        Some(WatchBatch { revision, events })
    }

    fn put(
        &mut self,
        position: Position,
        key: Bytes,
        value: Bytes,
        lease: Option<LeaseId>,
    ) -> (Event, Option<Position>) {
        let before = self.keys.get(&key).cloned();
        let (create_revision, version) = before
            .as_ref()
            .map_or((position.revision, 1), |b| (b.kv.create_revision, b.kv.version + 1));
        let mod_revision = position.revision;
        let kv = KeyValue { key, value, create_revision, mod_revision, version, lease };
        self.keys.insert_mut(kv.key.clone(), Current { kv: kv.clone(), position });
        let previous_position = before.as_ref().map(|b| b.position);
        let previous = before.map(|b| b.kv);
        (Event { kind: EventKind::Put, kv, previous }, previous_position)
    }

    fn delete(&mut self, position: Position, key: Bytes) -> Option<(Event, Option<Position>)> {
        let before = self.keys.get(&key).cloned()?;
        self.keys.remove_mut(&key);
        let kv = KeyValue { key, mod_revision: position.revision, ..KeyValue::default() };
        let event = Event { kind: EventKind::Delete, kv, previous: Some(before.kv) };
        Some((event, Some(before.position)))
    }
}

/// Cuts ordered `keys` to what `range` asks for.
pub(crate) fn collect<'a>(
    range: &Range,
    keys: impl Iterator<Item = &'a KeyValue>,
    revision: Revision,
) -> RangeResponse {
    let limit = match (range.count_only, range.limit) {
        (true, _) => 0,
        (false, 0) => usize::MAX,
        (false, limit) => limit,
    };
    let mut kvs = Vec::new();
    let mut count = 0;
    for kv in keys {
        count += 1;
        if kvs.len() < limit {
            kvs.push(kv.clone());
        }
    }
    let more = !range.count_only && (kvs.len() as u64) < count;
    RangeResponse { kvs, more, count, revision }
}
