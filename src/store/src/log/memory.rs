//! A log in memory, for clusters that vanish with their process.

use std::sync::{Arc, PoisonError, RwLock};

use rpds::RedBlackTreeMapSync;

use super::{Commit, History, Log, Position, Record, View};
use crate::{Error, EventKind, Revision};

#[derive(Clone)]
struct Records {
    records: RedBlackTreeMapSync<Position, Record>,
    compacted: Revision,
}

/// See the module. Clones share the records.
#[derive(Clone)]
pub(crate) struct Memory(Arc<RwLock<Records>>);

impl Memory {
    pub fn new() -> Self {
        let records = Records { records: RedBlackTreeMapSync::new_sync(), compacted: 0 };
        Self(Arc::new(RwLock::new(records)))
    }

    fn read(&self) -> Records {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Records)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Log for Memory {
    fn commit(&mut self, commit: &mut Commit) -> Result<(), Error> {
        self.change(|log| {
            for record in commit.records.drain(..) {
                log.records.insert_mut(record.position, record);
            }
        });
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn compact(&mut self, at: Revision) -> Result<(), Error> {
        self.change(|log| {
            let window = Position::first(log.compacted + 1)..=Position::last(at);
            let mut superseded = Vec::new();
            for (position, record) in log.records.range(window) {
                superseded.extend(record.previous);
                if record.kind == EventKind::Delete {
                    superseded.push(*position);
                }
            }
            for position in superseded {
                log.records.remove_mut(&position);
            }
            log.compacted = at;
        });
        Ok(())
    }

    fn sweep(&mut self) -> Result<bool, Error> {
        Ok(false)
    }

    fn close(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

impl History for Memory {
    fn view(&self) -> Result<Box<dyn View>, Error> {
        Ok(Box::new(self.read()))
    }
}

impl View for Records {
    fn compacted(&self) -> Revision {
        self.compacted
    }

    fn scan(
        &self,
        from: Revision,
        until: Revision,
        visit: &mut dyn FnMut(Record) -> bool,
    ) -> Result<(), Error> {
        if from > until {
            return Ok(());
        }
        for (_, record) in self.records.range(Position::first(from)..=Position::last(until)) {
            if !visit(record.clone()) {
                break;
            }
        }
        Ok(())
    }

    fn get(&self, position: Position) -> Result<Option<Record>, Error> {
        Ok(self.records.get(&position).cloned())
    }
}
