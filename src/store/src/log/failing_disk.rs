//! The store over a disk that fails, fills up, and loses power.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::StreamExt;
use proptest::prelude::*;
use redb::{Builder, StorageBackend, TableDefinition};

use super::embedded::{Embedded, Files};
use super::journal::Medium;
use super::{Position, Record};
use crate::local::Local;
use crate::{Error, EventKind, KeyValue, Options, Range, Store, Txn, TxnOutcome};

/// The unit in which a power cut tears a write.
const SECTOR: usize = 512;

/// So short that the journal is emptied in the middle of each test.
const JOURNAL_BYTES: u64 = 40_000;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

#[derive(Debug, Default)]
struct Contents {
    /// What reads see.
    seen: Vec<u8>,
    /// What the last sync made safe.
    safe: Vec<u8>,
    /// What has been written since, in order.
    unsafe_writes: Vec<(usize, Vec<u8>)>,
}

impl Contents {
    fn write(&mut self, at: usize, data: &[u8]) {
        if self.seen.len() < at + data.len() {
            self.seen.resize(at + data.len(), 0);
        }
        self.seen[at..at + data.len()].copy_from_slice(data);
        self.unsafe_writes.push((at, data.to_vec()));
    }

    fn resize(&mut self, length: usize) {
        self.seen.resize(length, 0);
        // Growth and shrinkage are metadata, which file systems keep in order.
        self.safe.resize(length, 0);
    }

    fn sync(&mut self) {
        self.safe = self.seen.clone();
        self.unsafe_writes.clear();
    }

    /// What a power cut leaves of it: what was synced, and of the rest any sectors.
    fn after_power_cut(&self, keep: &mut impl FnMut() -> bool) -> Self {
        let mut safe = self.safe.clone();
        for (offset, data) in &self.unsafe_writes {
            for (index, sector) in data.chunks(SECTOR).enumerate() {
                if keep() {
                    let at = offset + index * SECTOR;
                    safe.resize(safe.len().max(at + sector.len()), 0);
                    safe[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Self { seen: safe.clone(), safe, ..Self::default() }
    }
}

#[derive(Debug, Default)]
struct Kept {
    database: Contents,
    journal: Contents,
    /// The operations that may still succeed, and the error that comes then.
    failure: Option<(usize, i32)>,
}

impl Kept {
    fn step(&mut self) -> io::Result<()> {
        match &mut self.failure {
            Some((0, code)) => Err(io::Error::from_raw_os_error(*code)),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// A disk in memory with the store's two files. Clones are the same disk, as files opened twice are.
#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<Kept>>);

impl Disk {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, after: usize, code: i32) {
        self.lock().failure = Some((after, code));
    }

    fn heal(&self) {
        self.lock().failure = None;
    }

    fn after_power_cut(&self, mut keep: impl FnMut() -> bool) -> Self {
        let files = self.lock();
        Self(Arc::new(Mutex::new(Kept {
            database: files.database.after_power_cut(&mut keep),
            journal: files.journal.after_power_cut(&mut keep),
            failure: None,
        })))
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().database.seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let files = self.lock();
        let from = offset as usize;
        let Some(bytes) = files.database.seen.get(from..from + out.len()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut files = self.lock();
        files.step()?;
        files.database.resize(len as usize);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut files = self.lock();
        files.step()?;
        files.database.sync();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut files = self.lock();
        files.step()?;
        files.database.write(offset as usize, data);
        Ok(())
    }
}

impl Medium for Disk {
    fn read(&self) -> io::Result<Vec<u8>> {
        Ok(self.lock().journal.seen.clone())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut files = self.lock();
        let written = files.step();
        // A write that fails may have come half the way.
        let length = if written.is_ok() { data.len() } else { data.len() / 2 };
        files.journal.write(offset as usize, &data[..length]);
        written
    }

    fn sync(&self) -> io::Result<()> {
        let mut files = self.lock();
        files.step()?;
        files.journal.sync();
        Ok(())
    }

    fn clear(&self) -> io::Result<()> {
        let mut files = self.lock();
        files.step()?;
        files.journal.resize(0);
        Ok(())
    }
}

fn open(disk: &Disk) -> Result<Store, Error> {
    let journal = Box::new(disk.clone());
    let disk = disk.clone();
    let opener = move || {
        Builder::new()
            .set_cache_size(1 << 20)
            .set_check_integrity_on_open(true)
            .create_with_backend(disk.clone())
    };
    let files = Files { open: Box::new(opener), journal, journal_bytes: JOURNAL_BYTES, lock: None };
    let (log, current, leases) = Embedded::open_with(Path::new("disk"), files)?;
    let local = Local::start(Box::new(log.0), Arc::new(log.1), current, leases);
    Ok(Store::new(local.expect("a thread")))
}

async fn contents(store: &Store) -> BTreeMap<Bytes, Bytes> {
    let all = store.range(Range::prefix("")).await.expect("readable");
    all.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect()
}

fn value(index: u64) -> Bytes {
    // Large enough that the file has to grow now and then.
    Bytes::from(format!("{index} {}", "x".repeat(5000)))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Writes until the disk fails after `after` operations; checks that nothing acknowledged is lost,
/// then and after the disk is well again, and that what failed did not happen.
async fn survives(after: usize, code: i32) {
    let disk = Disk::default();
    let store = open(&disk).expect("a new store");
    store.put("before", "1").await.expect("a healthy disk");
    let mut watch = store.watch("", "", 2);
    disk.fail(after, code);
    let mut model = BTreeMap::from([(Bytes::from("before"), Bytes::from("1"))]);
    let mut failures = 0;
    for round in 0_u64..100 {
        // Several at once, so that most commits hold more than one revision.
        let keys = (0..4).map(|index| Bytes::from(format!("key-{round}-{index}")));
        let puts = keys.map(|key| async {
            let result = store.put(key.clone(), value(round)).await;
            (key, result)
        });
        let mut failed = false;
        for (key, result) in futures::future::join_all(puts).await {
            match result {
                Ok(_) => drop(model.insert(key, value(round))),
                Err(Error::Full { .. }) if code == ENOSPC => failed = true,
                Err(Error::Io { .. }) if code == EIO => failed = true,
                Err(other) => panic!("{other:?}"),
            }
        }
        failures += u32::from(failed);
        if failures == 3 {
            break;
        }
    }
    assert_eq!(failures, 3, "the disk never failed");
    let revision = store.revision().await.expect("open");
    assert_eq!(contents(&store).await, model, "unreadable while the disk fails");
    disk.heal();
    assert_eq!(store.put("after", "2").await.expect("a disk that is well again"), revision + 1);
    model.insert("after".into(), "2".into());
    assert_eq!(contents(&store).await, model);
    let mut told = 1;
    while told < revision + 1 {
        let batch = watch.next().await.expect("not over").expect("no error");
        if !batch.events.is_empty() {
            assert_eq!(batch.revision, told + 1, "watchers were told of what failed");
            told = batch.revision;
        }
    }
    store.close().await.expect("a healthy disk");
    let store = open(&disk).expect("a healthy disk");
    assert_eq!(contents(&store).await, model, "lost at the next start");
    assert_eq!(store.revision().await.expect("open"), revision + 1);
    let past = store.range(Range { at: Some(2), ..Range::prefix("") }).await.expect("history");
    assert_eq!(past.count, 1);
}

#[test]
fn a_failing_disk_loses_nothing() {
    for after in 0..40 {
        for code in [ENOSPC, EIO] {
            runtime().block_on(survives(after * 3, code));
        }
    }
}

/// As [`survives`], but the process ends while the disk is failing.
#[test]
fn a_full_disk_can_be_started_from_once_there_is_room() {
    runtime().block_on(async {
        let disk = Disk::default();
        let store = open(&disk).expect("a new store");
        store.put("a", "1").await.expect("a healthy disk");
        disk.fail(0, ENOSPC);
        let error = store.put("b", "2").await.expect_err("a full disk");
        assert!(error.to_string().contains("free space"), "{error}");
        drop(store.close().await);
        match open(&disk) {
            Ok(store) => assert_eq!(contents(&store).await.len(), 1),
            Err(error) => assert!(matches!(error, Error::Full { .. }), "{error:?}"),
        }
        disk.heal();
        let store = open(&disk).expect("a disk with room");
        let all = BTreeMap::from([(Bytes::from("a"), Bytes::from("1"))]);
        assert_eq!(contents(&store).await, all);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// The power fails under load; any of the unsynced sectors may have been written.
    #[test]
    fn a_power_cut_loses_nothing(
        writes in 1..30_u64,
        fail_after in 0..60_usize,
        sectors in any::<u64>(),
        rounds in 1..4_u64,
    ) {
        runtime().block_on(async {
            let mut disk = Disk::default();
            let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
            let mut random = sectors | 1;
            let mut under_way: Option<(Bytes, Bytes)> = None;
            for round in 0..rounds {
                let store = open(&disk).expect("a store that opens after a power cut");
                let found = contents(&store).await;
                if found != model {
                    model.extend(under_way.take());
                    assert_eq!(found, model);
                }
                // The power goes while some operation of the disk is under way.
                disk.fail(fail_after, EIO);
                for index in 0..writes {
                    let key = Bytes::from(format!("key-{}", (index * 7 + round) % 11));
                    let value = value(index + 1000 * round);
                    if store.put(key.clone(), value.clone()).await.is_err() {
                        under_way = Some((key, value));
                        break;
                    }
                    model.insert(key, value);
                }
                let cut = disk.after_power_cut(|| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random & 3 != 0
                });
                drop(store.close().await);
                disk = cut;
            }
            let store = open(&disk).expect("a store that opens after a power cut");
            let found = contents(&store).await;
            if found != model {
                model.extend(under_way);
                assert_eq!(found, model);
            }
            let revision = store.revision().await.expect("open");
            let outcome = store.txn(Txn::create("new".into(), "1".into())).await.expect("healthy");
            assert_eq!(outcome, TxnOutcome::Committed { revision: revision + 1 });
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Now and then the disk fails for a moment, then the power does.
    #[test]
    fn failures_that_pass_lose_nothing(
        steps in proptest::collection::vec((0..4_u64, proptest::option::of(0..14_usize)), 1..40),
        sectors in any::<u64>(),
    ) {
        runtime().block_on(async {
            let disk = Disk::default();
            let store = open(&disk).expect("a new store");
            let mut model: BTreeMap<Bytes, Bytes> = BTreeMap::new();
            let mut failed = Vec::new();
            for (index, (kind, fails)) in (0..).zip(steps) {
                if let Some(after) = fails {
                    disk.fail(after, EIO);
                }
                if kind == 0 {
                    drop(store.compact(store.revision().await.expect("open")).await);
                } else {
                    let (key, value) = (Bytes::from(format!("key-{}", index % 7)), value(index));
                    match store.put(key.clone(), value.clone()).await {
                        Ok(_) => {
                            model.insert(key, value);
                            failed.clear();
                        }
                        Err(_) => failed.push((key, value)),
                    }
                }
                disk.heal();
            }
            assert_eq!(contents(&store).await, model);
            let mut random = sectors | 1;
            let cut = disk.after_power_cut(|| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random & 3 != 0
            });
            let store = open(&cut).expect("a store that opens after a power cut");
            let found = contents(&store).await;
            let with = |put: &(Bytes, Bytes)| {
                let mut model = model.clone();
                model.extend([put.clone()]);
                found == model
            };
            if !failed.iter().any(with) {
                assert_eq!(found, model);
            }
        });
    }
}

/// Somebody who knows of no journal has written to the database: what is in the journal must not come over that.
#[test]
fn a_journal_of_an_earlier_state_is_told() {
    runtime().block_on(async {
        let disk = Disk::default();
        let store = open(&disk).expect("a new store");
        store.put("a", "1").await.expect("healthy");
        let crashed = disk.after_power_cut(|| true);
        let database = Builder::new().create_with_backend(crashed.clone()).expect("a database");
        let records: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("records");
        let kv = KeyValue { key: "a".into(), value: "2".into(), ..KeyValue::default() };
        let position = Position::first(2);
        let mut bytes = Vec::new();
        Record { position, previous: None, kind: EventKind::Put, kv }.encode_into(&mut bytes);
        let txn = database.begin_write().expect("healthy");
        txn.open_table(records).expect("a table").insert((2, 0), &bytes[..]).expect("healthy");
        txn.commit().expect("healthy");
        database.close().expect("healthy");
        let error = open(&crashed).err().expect("another state");
        assert!(matches!(&error, Error::Corrupt { detail, .. } if detail.contains("journal")));
    });
}

/// Bytes flipped anywhere in a closed file: the store opens as it was, or says which file is
/// damaged; it never serves something else.
#[test]
fn damage_is_told_or_harmless() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.redb");
    let model = runtime().block_on(async {
        let store = crate::open(dir.path(), Options::default()).expect("a new store");
        for index in 0..40 {
            store.put(format!("key-{index}"), value(index)).await.expect("healthy");
        }
        let model = contents(&store).await;
        store.close().await.expect("healthy");
        model
    });
    let healthy = std::fs::read(&path).expect("the store's file");
    let mut told = 0;
    let used = healthy.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    for at in (0..used).step_by(used / 150) {
        let mut damaged = healthy.clone();
        damaged[at] ^= 0x55;
        std::fs::write(&path, &damaged).expect("a file");
        runtime().block_on(async {
            match crate::open(dir.path(), Options::default()) {
                Ok(store) => {
                    assert_eq!(contents(&store).await, model, "byte {at}");
                    store.close().await.expect("healthy");
                }
                Err(Error::Corrupt { path: named, .. }) => {
                    assert_eq!(named, path);
                    told += 1;
                }
                Err(other) => panic!("byte {at}: {other:?}"),
            }
        });
    }
    assert!(told > 50, "only {told} damages were noticed");
    for rubbish in [&b"not a store"[..], &healthy[..healthy.len() / 3]] {
        std::fs::write(&path, rubbish).expect("a file");
        let error = crate::open(dir.path(), Options::default()).err().expect("damage");
        assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains("store.redb"), "{error}");
    }
}
