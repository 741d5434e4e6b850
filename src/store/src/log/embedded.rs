//! The log in a redb file: one table of records by position, one of leases, one of two numbers.
//!
//! redb refuses all work after an I/O error until the file is opened again. So a failed commit opens
//! it again, at once or, when that fails too, at the next attempt; what is written meanwhile fails,
//! and nothing that was acknowledged is lost.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadOnlyTable, ReadTransaction, ReadableDatabase,
    ReadableTable, TableDefinition, WriteTransaction,
};

use super::{Commit, History, Log, Position, Record, View};
use crate::lease::Leases;
use crate::state::Snapshot;
use crate::{Error, EventKind, LeaseId, Revision};

const RECORDS: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("records");
const LEASES: TableDefinition<LeaseId, i64> = TableDefinition::new("leases");
const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");

/// The revision of the last compaction.
const COMPACTED: &str = "compacted";
/// The revision up to which superseded records have been removed; at most `compacted`.
const SWEPT: &str = "swept";
/// The store's revision when it was last compacted: its record may be gone.
const REVISION: &str = "revision";

/// How many records one sweep looks at, so that writers never wait long for it.
const SWEEP_RECORDS: usize = 500;

type Opener = dyn Fn() -> Result<Database, DatabaseError> + Send + Sync;

struct Shared {
    path: PathBuf,
    database: RwLock<Option<Database>>,
}

impl Shared {
    /// Says which file an error of redb is about, and what kind of error it is.
    fn error(&self, operation: &'static str, error: impl Into<redb::Error>) -> Error {
        error_of(&self.path, operation, error.into())
    }

    fn damaged(&self, detail: &str) -> Error {
        Error::Corrupt { path: self.path.clone(), detail: detail.to_owned() }
    }

    fn replace(&self, database: Option<Database>) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = database;
    }

    fn read(&self) -> Result<ReadTransaction, Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(Error::Closed)?;
        database.begin_read().map_err(|error| self.error("read", error))
    }

    fn write(&self) -> Result<WriteTransaction, Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(Error::Closed)?;
        database.begin_write().map_err(|error| self.error("write", error))
    }
}

fn error_of(path: &Path, operation: &'static str, error: redb::Error) -> Error {
    let path = path.to_owned();
    match error {
        redb::Error::DatabaseAlreadyOpen => Error::Locked { path },
        redb::Error::Io(source) => match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Error::Full { path, source },
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Error::Corrupt { path, detail: source.to_string() }
            }
            _ => Error::Io { operation, path, source },
        },
        redb::Error::PreviousIo | redb::Error::Backend(_) => {
            Error::Io { operation, path, source: io::Error::other(error.to_string()) }
        }
        redb::Error::DatabaseClosed => Error::Closed,
        other => Error::Corrupt { path, detail: other.to_string() },
    }
}

/// The writer's side; see the module.
pub(crate) struct Embedded {
    shared: Arc<Shared>,
    open: Box<Opener>,
    /// The last revision that was acknowledged.
    tail: Revision,
    /// A commit failed, so that the file may hold records after `tail` that never happened.
    uncertain: bool,
    record_bytes: Vec<u8>,
    /// Held until the log is closed.
    _lock: Option<File>,
}

/// The readers' side.
pub(crate) struct EmbeddedHistory(Arc<Shared>);

impl Embedded {
    /// Opens or makes the file at `path`, and rebuilds the current values and leases from it.
    pub fn open(
        path: &Path,
        cache_bytes: usize,
        lock: Option<File>,
    ) -> Result<((Self, EmbeddedHistory), Snapshot, Leases), Error> {
        if !path.exists() {
            create(path, cache_bytes)?;
        }
        Self::open_with(path, opener(path, cache_bytes), lock)
    }

    pub(crate) fn open_with(
        path: &Path,
        open: Box<Opener>,
        lock: Option<File>,
    ) -> Result<((Self, EmbeddedHistory), Snapshot, Leases), Error> {
        let database = open().map_err(|error| error_of(path, "open", error.into()))?;
        let shared =
            Arc::new(Shared { path: path.to_owned(), database: RwLock::new(Some(database)) });
        let mut log = Self {
            shared: Arc::clone(&shared),
            open,
            tail: 0,
            uncertain: false,
            record_bytes: Vec::new(),
            _lock: lock,
        };
        log.create_tables()?;
        let (current, leases) = rebuild(&shared)?;
        log.tail = current.revision;
        Ok(((log, EmbeddedHistory(shared)), current, leases))
    }

    fn create_tables(&self) -> Result<(), Error> {
        let fail = |error: redb::Error| self.shared.error("create the tables of", error);
        if let Ok(view) = EmbeddedHistory(Arc::clone(&self.shared)).open_view() {
            drop(view);
            return Ok(());
        }
        let txn = self.shared.write()?;
        txn.open_table(RECORDS).map_err(|e| fail(e.into()))?;
        txn.open_table(LEASES).map_err(|e| fail(e.into()))?;
        txn.open_table(NUMBERS).map_err(|e| fail(e.into()))?;
        txn.commit().map_err(|e| fail(e.into()))
    }

    /// Runs `change` in a transaction of its own. After a failure the file is opened again.
    fn change<T>(
        &mut self,
        operation: &'static str,
        change: impl FnOnce(&WriteTransaction, &mut Vec<u8>) -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        self.reopen_if_needed()?;
        let result = self.try_change(operation, change);
        self.uncertain = result.is_err();
        if self.uncertain {
            self.shared.replace(None);
            // When this fails the next change tries again, and reports it.
            if let Err(error) = self.reopen_if_needed() {
                tracing::warn!(%error, "the store could not be opened again yet");
            }
        }
        result
    }

    fn try_change<T>(
        &mut self,
        operation: &'static str,
        change: impl FnOnce(&WriteTransaction, &mut Vec<u8>) -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        let txn = self.shared.write()?;
        let apply = || -> Result<T, redb::Error> {
            if self.uncertain {
                let surplus = (self.tail + 1, 0)..;
                txn.open_table(RECORDS)?.retain_in(surplus, |_, _| false)?;
            }
            change(&txn, &mut self.record_bytes)
        };
        let applied = apply().map_err(|error| self.shared.error(operation, error))?;
        txn.commit().map_err(|error| self.shared.error(operation, error))?;
        Ok(applied)
    }

    fn reopen_if_needed(&self) -> Result<(), Error> {
        let open = self.shared.database.read().unwrap_or_else(PoisonError::into_inner).is_some();
        if open {
            return Ok(());
        }
        let database = (self.open)().map_err(|error| self.shared.error("open again", error))?;
        self.shared.replace(Some(database));
        Ok(())
    }
}

fn opener(path: &Path, cache_bytes: usize) -> Box<Opener> {
    let file = path.to_owned();
    Box::new(move || {
        // redb trusts a file that was closed in good order; checking it all the same costs one
        // read of what is about to be read anyhow, and turns damage into an error.
        let mut builder = Builder::new();
        builder.set_cache_size(cache_bytes).set_check_integrity_on_open(true);
        // Secrets are in it, so it is made here with a mode of its own.
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&file)?;
        builder.create_with_backend(FileBackend::new(file)?)
    })
}

/// Makes an empty store beside `path` and puts it there when it is whole: one that is cut off while it is
/// made could not be opened again.
fn create(path: &Path, cache_bytes: usize) -> Result<(), Error> {
    let failed = |source| Error::Io { operation: "create", path: path.to_owned(), source };
    let unfinished = path.with_extension("new");
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let ((log, _), _, _) =
        Embedded::open_with(&unfinished, opener(&unfinished, cache_bytes), None)?;
    Box::new(log).close()?;
    std::fs::rename(&unfinished, path).map_err(failed)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// The current values and leases that the file's records make up.
fn rebuild(shared: &Arc<Shared>) -> Result<(Snapshot, Leases), Error> {
    let view = EmbeddedHistory(Arc::clone(shared)).open_view()?;
    let mut current = Snapshot::empty();
    current.compacted = view.compacted;
    current.revision = view.revision.max(1);
    view.scan(0, Revision::MAX, &mut |record| {
        current.replay(record);
        true
    })?;
    let mut leases = Leases::default();
    let fail = |error: redb::Error| shared.error("read", error);
    let table = shared.read()?.open_table(LEASES).map_err(|e| fail(e.into()))?;
    for entry in table.iter().map_err(|e| fail(e.into()))? {
        let (id, ttl_s) = entry.map_err(|e| fail(e.into()))?;
        leases.insert(id.value(), ttl_s.value());
    }
    Ok((current, leases))
}

impl Log for Embedded {
    fn commit(&mut self, commit: &Commit) -> Result<(), Error> {
        self.change("write", |txn, bytes| {
            if !commit.records.is_empty() {
                let mut table = txn.open_table(RECORDS)?;
                for record in &commit.records {
                    record.encode_into(bytes);
                    let Position { revision, sub } = record.position;
                    table.insert((revision, sub), bytes.as_slice())?;
                }
            }
            if !commit.granted.is_empty() || !commit.revoked.is_empty() {
                let mut table = txn.open_table(LEASES)?;
                for (id, ttl_s) in &commit.granted {
                    table.insert(id, ttl_s)?;
                }
                for id in &commit.revoked {
                    table.remove(id)?;
                }
            }
            Ok(())
        })?;
        if let Some(last) = commit.records.last() {
            self.tail = last.position.revision;
        }
        Ok(())
    }

    fn compact(&mut self, at: Revision) -> Result<(), Error> {
        let tail = self.tail;
        self.change("compact", |txn, _| {
            let mut numbers = txn.open_table(NUMBERS)?;
            numbers.insert(COMPACTED, at)?;
            numbers.insert(REVISION, tail)?;
            Ok(())
        })
    }

    fn sweep(&mut self) -> Result<bool, Error> {
        let view = EmbeddedHistory(Arc::clone(&self.shared)).open_view()?;
        if view.swept >= view.compacted {
            return Ok(false);
        }
        let mut superseded: Vec<Position> = Vec::new();
        let mut seen = 0;
        let mut last = view.swept;
        // A revision is swept whole, so that one number says how far the sweep has come.
        let mut swept = view.compacted;
        view.scan(view.swept + 1, view.compacted, &mut |record| {
            let revision = record.position.revision;
            if seen >= SWEEP_RECORDS && revision != last {
                swept = last;
                return false;
            }
            seen += 1;
            last = revision;
            superseded.extend(record.previous);
            if record.kind == EventKind::Delete {
                superseded.push(record.position);
            }
            true
        })?;
        let more = swept < view.compacted;
        drop(view);
        self.change("compact", |txn, _| {
            let mut records = txn.open_table(RECORDS)?;
            for Position { revision, sub } in &superseded {
                records.remove((*revision, *sub))?;
            }
            txn.open_table(NUMBERS)?.insert(SWEPT, swept)?;
            Ok(())
        })?;
        Ok(more)
    }

    fn close(self: Box<Self>) -> Result<(), Error> {
        let database = self.shared.database.write().unwrap_or_else(PoisonError::into_inner).take();
        match database {
            Some(database) => database.close().map_err(|error| self.shared.error("close", error)),
            None => Ok(()),
        }
    }
}

struct EmbeddedView {
    shared: Arc<Shared>,
    records: ReadOnlyTable<(u64, u32), &'static [u8]>,
    compacted: Revision,
    swept: Revision,
    revision: Revision,
}

impl EmbeddedHistory {
    fn open_view(&self) -> Result<EmbeddedView, Error> {
        let shared = Arc::clone(&self.0);
        let fail = |error: redb::Error| shared.error("read", error);
        let txn = shared.read()?;
        let records = txn.open_table(RECORDS).map_err(|e| fail(e.into()))?;
        let numbers = txn.open_table(NUMBERS).map_err(|e| fail(e.into()))?;
        let number = |name| match numbers.get(name) {
            Ok(found) => Ok(found.map_or(0, |value| value.value())),
            Err(error) => Err(fail(error.into())),
        };
        let (compacted, swept, revision) = (number(COMPACTED)?, number(SWEPT)?, number(REVISION)?);
        Ok(EmbeddedView { records, compacted, swept, revision, shared: Arc::clone(&self.0) })
    }
}

impl History for EmbeddedHistory {
    fn view(&self) -> Result<Box<dyn View>, Error> {
        Ok(Box::new(self.open_view()?))
    }
}

impl EmbeddedView {
    fn decode(&self, position: Position, bytes: &[u8]) -> Result<Record, Error> {
        Record::decode(position, bytes).map_err(|detail| {
            self.shared.damaged(&format!("revision {}: {detail}", position.revision))
        })
    }
}

impl View for EmbeddedView {
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
        let fail = |error: redb::StorageError| self.shared.error("read", error);
        for entry in self.records.range((from, 0)..=(until, u32::MAX)).map_err(fail)? {
            let (key, bytes) = entry.map_err(fail)?;
            let (revision, sub) = key.value();
            if !visit(self.decode(Position { revision, sub }, bytes.value())?) {
                break;
            }
        }
        Ok(())
    }

    fn get(&self, position: Position) -> Result<Option<Record>, Error> {
        let found = self.records.get((position.revision, position.sub));
        match found.map_err(|error| self.shared.error("read", error))? {
            Some(bytes) => self.decode(position, bytes.value()).map(Some),
            None => Ok(None),
        }
    }
}
