//! The log in a redb file and a [journal](super::journal). redb has a table of records by position,
//! one of leases, and one of numbers; a commit to it writes a path of pages anew, which is dear for a
//! few records and cheap for a thousand. So commits become durable in the journal, and move to redb
//! together, when there are many of them; until then they are also held in memory, for readers.
//!
//! redb refuses all work after an I/O error until the file is opened again. So a failed change opens
//! it again, at once or, when that fails too, at the next attempt. Nothing that was acknowledged is
//! lost meanwhile: it is in the journal, which takes no more once it is long.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadOnlyTable, ReadTransaction, ReadableDatabase,
    ReadableTable, TableDefinition, WriteTransaction,
};

use super::journal::{Journal, Medium};
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

/// The journal's time round whose commits are not here yet; those of the ones before are.
const ROUND: &str = "round";

/// A few hundred objects; to move them takes a moment in which nobody can write.
const JOURNAL_BYTES: u64 = 2 << 20;

/// How many records one sweep looks at, so that writers never wait long for it.
const SWEEP_RECORDS: usize = 500;

pub(crate) type Opener = dyn Fn() -> Result<Database, DatabaseError> + Send + Sync;

/// The records of each commit that is in the journal, in order.
type Journaled = Vec<Arc<Vec<Record>>>;

struct Shared {
    path: PathBuf,
    database: RwLock<Option<Database>>,
    journaled: RwLock<Journaled>,
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

    fn lock_journaled(&self) -> RwLockWriteGuard<'_, Journaled> {
        self.journaled.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn journaled(&self) -> Journaled {
        self.journaled.read().unwrap_or_else(PoisonError::into_inner).clone()
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
        redb::Error::Io(source) => io_error(&path, operation, source),
        redb::Error::PreviousIo | redb::Error::Backend(_) => {
            Error::Io { operation, path, source: io::Error::other(error.to_string()) }
        }
        redb::Error::DatabaseClosed => Error::Closed,
        other => Error::Corrupt { path, detail: other.to_string() },
    }
}

/// Says which file an error is about, and what kind of error it is.
pub(super) fn io_error(path: &Path, operation: &'static str, source: io::Error) -> Error {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Error::Full { path, source }
        }
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            Error::Corrupt { path, detail: source.to_string() }
        }
        _ => Error::Io { operation, path, source },
    }
}

/// What a store is kept on.
pub(crate) struct Files {
    pub open: Box<Opener>,
    pub journal: Box<dyn Medium>,
    /// The length at which the journal's commits move to redb.
    pub journal_bytes: u64,
    /// Held until the log is closed.
    pub lock: Option<File>,
}

/// The writer's side; see the module.
pub(crate) struct Embedded {
    shared: Arc<Shared>,
    open: Box<Opener>,
    journal_bytes: u64,
    journal: Journal,
    /// The leases that the journal's commits gave and took: their seconds, or none when ended.
    leases: BTreeMap<LeaseId, Option<i64>>,
    /// The last revision that was acknowledged.
    tail: Revision,
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
        let journal = journal_of(path);
        let made = !journal.exists();
        // Secrets are in it.
        let medium = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&journal)
            .map_err(|source| io_error(&journal, "open", source))?;
        if made {
            // What it holds is durable only if its name is.
            sync_folder(&journal).map_err(|source| io_error(&journal, "create", source))?;
        }
        let files = Files {
            open: opener(path, cache_bytes),
            journal: Box::new(medium),
            journal_bytes: JOURNAL_BYTES,
            lock,
        };
        Self::open_with(path, files)
    }

    pub(crate) fn open_with(
        path: &Path,
        files: Files,
    ) -> Result<((Self, EmbeddedHistory), Snapshot, Leases), Error> {
        let database = (files.open)().map_err(|error| error_of(path, "open", error.into()))?;
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            database: RwLock::new(Some(database)),
            journaled: RwLock::default(),
        });
        let history = EmbeddedHistory(Arc::clone(&shared));
        if history.open_view().is_err() {
            let txn = shared.write()?;
            create_tables(txn).map_err(|error| shared.error("create the tables of", error))?;
        }
        let (mut current, mut leases, round) = rebuild(&shared)?;
        let opened = Journal::open(&journal_of(path), files.journal, round);
        let (journal, commits) = opened.map_err(|error| match error {
            Error::Corrupt { detail, .. } => shared.damaged(&format!("its journal: {detail}")),
            other => other,
        })?;
        let first = commits.iter().flat_map(|commit| &commit.records).next();
        if first.is_some_and(|record| record.position.revision <= current.revision) {
            // A build that knows of no journal has written meanwhile.
            return Err(shared.damaged("its journal goes on from an earlier revision"));
        }
        let mut log = Self {
            shared,
            open: files.open,
            journal_bytes: files.journal_bytes,
            journal,
            leases: BTreeMap::new(),
            tail: 0,
            _lock: files.lock,
        };
        for mut commit in commits {
            for record in &commit.records {
                current.replay(record.clone());
            }
            for (id, ttl_s) in &commit.granted {
                leases.insert(*id, *ttl_s);
            }
            for id in &commit.revoked {
                leases.remove(*id);
            }
            log.remember(&mut commit);
        }
        log.tail = current.revision;
        Ok(((log, history), current, leases))
    }

    /// Runs `change` in a transaction of redb. After a failure the file is opened again.
    fn change(
        &self,
        operation: &'static str,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), Error> {
        self.reopen_if_needed()?;
        let txn = self.shared.write()?;
        let changed = change(&txn).and_then(|()| txn.commit().map_err(redb::Error::from));
        changed.map_err(|error| {
            self.shared.replace(None);
            // When this fails the next change tries again, and reports it.
            if let Err(error) = self.reopen_if_needed() {
                tracing::warn!(%error, "the store could not be opened again yet");
            }
            self.shared.error(operation, error)
        })
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

    /// Keeps what is in the journal until it is in redb.
    fn remember(&mut self, commit: &mut Commit) {
        self.leases.extend(commit.granted.iter().map(|(id, ttl_s)| (*id, Some(*ttl_s))));
        self.leases.extend(commit.revoked.iter().map(|id| (*id, None)));
        if let Some(last) = commit.records.last() {
            self.tail = last.position.revision;
            let records = Arc::new(std::mem::take(&mut commit.records));
            self.shared.lock_journaled().push(records);
        }
    }

    /// Moves what is in the journal to redb.
    fn merge(&mut self) -> Result<(), Error> {
        if self.journal.len() == 0 && !self.journal.torn() {
            return Ok(());
        }
        let journaled = self.shared.journaled();
        let round = self.journal.round() + 1;
        // A transaction that fails may have happened all the same.
        self.journal.tear();
        self.change("write", |txn| {
            let mut bytes = Vec::new();
            let mut records = txn.open_table(RECORDS)?;
            for record in journaled.iter().flat_map(|records| records.iter()) {
                bytes.clear();
                record.encode_into(&mut bytes);
                let Position { revision, sub } = record.position;
                records.insert((revision, sub), bytes.as_slice())?;
            }
            let mut leases = txn.open_table(LEASES)?;
            for (id, ttl_s) in &self.leases {
                match ttl_s {
                    Some(ttl_s) => drop(leases.insert(id, ttl_s)?),
                    None => drop(leases.remove(id)?),
                }
            }
            txn.open_table(NUMBERS)?.insert(ROUND, round)?;
            Ok(())
        })?;
        self.journal.turn();
        self.leases.clear();
        self.shared.lock_journaled().clear();
        Ok(())
    }
}

fn journal_of(path: &Path) -> PathBuf {
    path.with_extension("journal")
}

fn create_tables(txn: WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(RECORDS)?;
    txn.open_table(LEASES)?;
    txn.open_table(NUMBERS)?;
    Ok(txn.commit()?)
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
    // The journal of a store that was moved away is not this one's.
    for leftover in [&unfinished, &journal_of(path)] {
        match std::fs::remove_file(leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    let making = |error: redb::Error| error_of(&unfinished, "create", error);
    let database = opener(&unfinished, cache_bytes)().map_err(|error| making(error.into()))?;
    let txn = database.begin_write().map_err(|error| making(error.into()))?;
    create_tables(txn).map_err(making)?;
    database.close().map_err(|error| making(error.into()))?;
    std::fs::rename(&unfinished, path).map_err(failed)?;
    sync_folder(path).map_err(failed)
}

/// Makes the file's name durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// The current values and leases that redb's records make up, and the journal's round.
fn rebuild(shared: &Arc<Shared>) -> Result<(Snapshot, Leases, u64), Error> {
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
    Ok((current, leases, view.round))
}

impl Log for Embedded {
    fn commit(&mut self, commit: &mut Commit) -> Result<(), Error> {
        self.settle()?;
        self.journal.append(commit)?;
        self.remember(commit);
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Error> {
        if self.journal.len() < self.journal_bytes && !self.journal.torn() {
            return Ok(());
        }
        self.merge()
    }

    fn compact(&mut self, at: Revision) -> Result<(), Error> {
        self.merge()?;
        let tail = self.tail;
        self.change("compact", |txn| {
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
        self.change("compact", |txn| {
            let mut records = txn.open_table(RECORDS)?;
            for Position { revision, sub } in &superseded {
                records.remove((*revision, *sub))?;
            }
            txn.open_table(NUMBERS)?.insert(SWEPT, swept)?;
            Ok(())
        })?;
        Ok(more)
    }

    fn close(mut self: Box<Self>) -> Result<(), Error> {
        self.merge()?;
        self.journal.clear()?;
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
    /// What comes after redb's records.
    journaled: Journaled,
    compacted: Revision,
    swept: Revision,
    revision: Revision,
    round: u64,
}

impl EmbeddedHistory {
    fn open_view(&self) -> Result<EmbeddedView, Error> {
        let shared = Arc::clone(&self.0);
        let fail = |error: redb::Error| shared.error("read", error);
        // In this order, so that what moves to redb meanwhile is seen twice rather than not at all.
        let journaled = shared.journaled();
        let txn = shared.read()?;
        let records = txn.open_table(RECORDS).map_err(|e| fail(e.into()))?;
        let numbers = txn.open_table(NUMBERS).map_err(|e| fail(e.into()))?;
        let number = |name| match numbers.get(name) {
            Ok(found) => Ok(found.map_or(0, |value| value.value())),
            Err(error) => Err(fail(error.into())),
        };
        Ok(EmbeddedView {
            compacted: number(COMPACTED)?,
            swept: number(SWEPT)?,
            revision: number(REVISION)?,
            round: number(ROUND)?,
            records,
            journaled,
            shared: Arc::clone(&self.0),
        })
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

    /// The first revision that is not looked up in redb.
    fn journaled_from(&self) -> Revision {
        let first = self.journaled.first().and_then(|records| records.first());
        first.map_or(Revision::MAX, |record| record.position.revision)
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
        let journaled_from = self.journaled_from();
        if from < journaled_from {
            let fail = |error: redb::StorageError| self.shared.error("read", error);
            let merged = (from, 0)..=(until.min(journaled_from - 1), u32::MAX);
            for entry in self.records.range(merged).map_err(fail)? {
                let (key, bytes) = entry.map_err(fail)?;
                let (revision, sub) = key.value();
                if !visit(self.decode(Position { revision, sub }, bytes.value())?) {
                    return Ok(());
                }
            }
        }
        let wanted = from..=until;
        let journaled = self.journaled.iter().flat_map(|records| records.iter());
        for record in journaled.filter(|record| wanted.contains(&record.position.revision)) {
            if !visit(record.clone()) {
                break;
            }
        }
        Ok(())
    }

    fn get(&self, position: Position) -> Result<Option<Record>, Error> {
        if position.revision >= self.journaled_from() {
            let after = self.journaled.partition_point(|records| {
                records.last().is_some_and(|last| last.position < position)
            });
            let Some(records) = self.journaled.get(after) else { return Ok(None) };
            let found = records.binary_search_by_key(&position, |record| record.position);
            return Ok(found.ok().and_then(|index| records.get(index)).cloned());
        }
        let found = self.records.get((position.revision, position.sub));
        match found.map_err(|error| self.shared.error("read", error))? {
            Some(bytes) => self.decode(position, bytes.value()).map(Some),
            None => Ok(None),
        }
    }
}
