//! The log: every change in order, each naming the one that it superseded. It is all that is
//! durable; the current values are rebuilt from it.

mod embedded;
#[cfg(test)]
mod failing_disk;
mod journal;
mod memory;
mod record;

pub(crate) use embedded::Embedded;
pub(crate) use memory::Memory;
pub(crate) use record::{Position, Record};

use crate::{Error, LeaseId, Revision};

/// What becomes durable together.
#[derive(Debug, Default)]
pub(crate) struct Commit {
    pub records: Vec<Record>,
    /// New leases with their length in seconds.
    pub granted: Vec<(LeaseId, i64)>,
    pub revoked: Vec<LeaseId>,
}

impl Commit {
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.granted.is_empty() && self.revoked.is_empty()
    }
}

/// The writer's side of a log.
pub(crate) trait Log: Send {
    /// Makes `commit` durable, all of it or nothing. Its records may be taken out of it.
    fn commit(&mut self, commit: &mut Commit) -> Result<(), Error>;

    /// Does what a commit has left over, for which nobody had to wait.
    fn settle(&mut self) -> Result<(), Error>;

    /// From now on, revisions up to `at` cannot be read but in their last state.
    fn compact(&mut self, at: Revision) -> Result<(), Error>;

    /// Removes some of what compaction has made unreadable; true when there is more to remove.
    fn sweep(&mut self) -> Result<bool, Error>;

    /// Releases everything.
    fn close(self: Box<Self>) -> Result<(), Error>;
}

/// The readers' side of a log.
pub(crate) trait History: Send + Sync {
    /// A consistent view, which later commits do not change.
    fn view(&self) -> Result<Box<dyn View>, Error>;
}

/// See [`History::view`].
pub(crate) trait View {
    /// The revision of the last compaction; 0 when there was none.
    fn compacted(&self) -> Revision;

    /// Visits the records of the revisions `from..=until` in order, until told to stop.
    fn scan(
        &self,
        from: Revision,
        until: Revision,
        visit: &mut dyn FnMut(Record) -> bool,
    ) -> Result<(), Error>;

    /// One record.
    fn get(&self, position: Position) -> Result<Option<Record>, Error>;
}
