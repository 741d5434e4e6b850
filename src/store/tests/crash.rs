//! SIGKILL under load: no acknowledged write is ever lost, and revisions have no holes.
//!
//! The test runs its own binary again as a writer process, which tells on a pipe what was
//! acknowledged, kills it at a random moment, opens what it left, and compares.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use store::{EventKind, Op, Options, Range, Revision, Store, Txn, TxnOutcome};

/// Where the writer process works; the variable also says that it is one.
const DIRECTORY: &str = "STORE_CRASH_DIRECTORY";
/// Which run of the writer it is, so that each writes something else.
const ROUND: &str = "STORE_CRASH_ROUND";

const ROUNDS: u64 = 200;
const CLIENTS: u64 = 16;
const KEYS: u64 = 5;

/// A cheap deterministic shuffle (splitmix64): both processes must derive the same operations.
fn mix(numbers: &[u64]) -> u64 {
    numbers.iter().fold(0x9e37_79b9_7f4a_7c15, |state, number| {
        let mut z = (state ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// The `index`th operation of `client`, on one of its own keys. It always changes something.
fn op(round: u64, client: u64, index: u64, state: &BTreeMap<Bytes, Bytes>) -> Op {
    let random = mix(&[round, client, index]);
    let key = Bytes::from(format!("/{client:03}/{}", random % KEYS));
    if random & 0x300 == 0 && state.contains_key(&key) {
        return Op::Delete { key };
    }
    let filler = "x".repeat((random >> 32) as usize % 3000);
    Op::Put { key, value: format!("{round} {index} {filler}").into(), lease: None }
}

fn apply(state: &mut BTreeMap<Bytes, Bytes>, op: Op) {
    match op {
        Op::Put { key, value, .. } => drop(state.insert(key, value)),
        Op::Delete { key } => drop(state.remove(&key)),
    }
}

async fn keys_of(store: &Store, client: u64) -> BTreeMap<Bytes, Bytes> {
    let range = Range::prefix(format!("/{client:03}/"));
    let kvs = store.range(range).await.expect("a readable store").kvs;
    kvs.into_iter().map(|kv| (kv.key, kv.value)).collect()
}

async fn write_until_killed(dir: &Path, round: u64) {
    let store = store::open(dir, Options::default()).expect("a store that opens");
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let store = store.clone();
        tasks.spawn(async move {
            let mut state = keys_of(&store, client).await;
            for index in 0.. {
                let op = op(round, client, index, &state);
                apply(&mut state, op.clone());
                let outcome = store.txn(Txn { compares: vec![], ops: vec![op] }).await;
                let Ok(TxnOutcome::Committed { revision }) = outcome else {
                    panic!("{outcome:?}");
                };
                let line = format!("ack {client} {index} {revision}\n");
                std::io::stdout().write_all(line.as_bytes()).expect("a pipe");
                if client == 0 && index % 97 == 96 {
                    store.compact(revision - 50).await.expect("a revision to compact");
                }
            }
        });
    }
    while let Some(joined) = tasks.join_next().await {
        joined.expect("a client that ends only by death");
    }
}

/// What was acknowledged: for each client the number of its operations, and the revision of each.
#[derive(Default)]
struct Acknowledged {
    count: BTreeMap<u64, u64>,
    revisions: BTreeMap<Revision, (u64, u64)>,
}

/// Runs the writer and kills it after `life`.
fn run_and_kill(dir: &Path, round: u64, life: Duration) -> Acknowledged {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "no_acknowledged_write_is_lost", "--nocapture"])
        .env(DIRECTORY, dir)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this binary runs");
    let stdout = child.stdout.take().expect("a pipe");
    let reader = std::thread::spawn(move || {
        let mut acknowledged = Acknowledged::default();
        // The line that the kill cut short has no end, and counts for nothing.
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let Some(line) = line.strip_prefix("ack ") else { continue };
            let numbers: Vec<u64> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
            let [client, index, revision] = numbers[..] else { continue };
            acknowledged.count.insert(client, index + 1);
            acknowledged.revisions.insert(revision, (client, index));
        }
        acknowledged
    });
    // Not a wait for a condition: the moment of death is what is random here.
    std::thread::park_timeout(life);
    child.kill().expect("a child to kill");
    child.wait().expect("a child to reap");
    reader.join().expect("a reader")
}

/// Compares what the killed writer left with what it had acknowledged.
async fn check(
    dir: &Path,
    round: u64,
    told: &Acknowledged,
    before: &mut BTreeMap<u64, BTreeMap<Bytes, Bytes>>,
    last_revision: &mut Revision,
) {
    let store = store::open(dir, Options::default()).expect("a store that opens after a crash");
    let revision = store.revision().await.expect("open");
    assert!(revision >= *last_revision, "revisions went back");
    for client in 0..CLIENTS {
        let state = before.entry(client).or_default();
        let count = told.count.get(&client).copied().unwrap_or(0);
        for index in 0..count {
            apply(state, op(round, client, index, state));
        }
        let found = keys_of(&store, client).await;
        if found != *state {
            // One operation may have been under way: durable, but not acknowledged yet.
            apply(state, op(round, client, count, state));
            assert_eq!(found, *state, "round {round}, client {client}, {count} acknowledged");
        }
    }
    let oldest = told.revisions.keys().next().copied().unwrap_or(revision + 1);
    let mut next = oldest.max(revision.saturating_sub(40)).min(revision);
    let mut watch = store.watch("", "", next);
    while next <= revision && revision > 1 {
        let batch = watch.next().await.expect("not over").expect("a readable log");
        assert_eq!((batch.revision, batch.events.len()), (next, 1), "revisions have a hole");
        if let Some((client, index)) = told.revisions.get(&next) {
            let event = &batch.events[0];
            assert!(event.kv.key.starts_with(format!("/{client:03}/").as_bytes()));
            let mark = format!("{round} {index} ");
            assert!(
                event.kind == EventKind::Delete || event.kv.value.starts_with(mark.as_bytes()),
                "another change took an acknowledged revision"
            );
        }
        next += 1;
    }
    *last_revision = revision;
    store.close().await.expect("a healthy store");
}

#[test]
fn no_acknowledged_write_is_lost() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    if let Some(dir) = std::env::var_os(DIRECTORY) {
        let round = std::env::var(ROUND).ok().and_then(|round| round.parse().ok()).unwrap_or(0);
        runtime.block_on(write_until_killed(&PathBuf::from(dir), round));
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let seed = Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id());
    let mut before = BTreeMap::new();
    let mut last_revision = 1;
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        let life = Duration::from_micros(5_000 + mix(&[seed, round]) % 105_000);
        let told = run_and_kill(dir.path(), round, life);
        acknowledged += told.revisions.len();
        runtime.block_on(check(dir.path(), round, &told, &mut before, &mut last_revision));
    }
    println!("{ROUNDS} kills, {acknowledged} acknowledged writes, revision {last_revision}");
    assert!(acknowledged > 1000, "the writers were killed before they did anything");
}
