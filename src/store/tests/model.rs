//! Every engine against a model that keeps every revision of everything in plain maps.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use proptest::prelude::*;
use store::{
    Compare, Error, Event, EventKind, KeyValue, Op, Options, Range, Revision, Store, Txn,
    TxnOutcome, WatchBatch,
};

/// How long a store may take to tell what it was told.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
enum Step {
    Txn(Txn),
    Get { key: Bytes, back: u64 },
    Range { start: Bytes, end: Bytes, limit: usize, back: u64, count_only: bool },
    Compact { back: u64 },
    Watch { start: Bytes, end: Bytes, back: u64 },
    Reopen,
}

type Values = BTreeMap<Bytes, KeyValue>;

/// All the past, revision by revision.
struct Model {
    states: BTreeMap<Revision, Values>,
    events: BTreeMap<Revision, Vec<Event>>,
    revision: Revision,
    compacted: Revision,
}

impl Model {
    fn new() -> Self {
        let states = BTreeMap::from([(1, Values::new())]);
        Self { states, events: BTreeMap::new(), revision: 1, compacted: 0 }
    }

    fn now(&self) -> &Values {
        &self.states[&self.revision]
    }

    fn txn(&mut self, txn: &Txn) -> TxnOutcome {
        let revision = self.revision;
        let current: Vec<Option<KeyValue>> =
            txn.compares.iter().map(|c| self.now().get(&c.key).cloned()).collect();
        let found = current.iter().map(|kv| kv.as_ref().map_or(0, |kv| kv.mod_revision));
        if !found.eq(txn.compares.iter().map(|c| c.mod_revision)) {
            return TxnOutcome::Conflict { current, revision };
        }
        let next = revision + 1;
        let mut values = self.now().clone();
        let mut events = Vec::new();
        for op in &txn.ops {
            match op.clone() {
                Op::Put { key, value, lease } => {
                    let previous = values.get(&key).cloned();
                    let kv = KeyValue {
                        key: key.clone(),
                        value,
                        create_revision: previous.as_ref().map_or(next, |p| p.create_revision),
                        mod_revision: next,
                        version: previous.as_ref().map_or(1, |p| p.version + 1),
                        lease,
                    };
                    values.insert(key, kv.clone());
                    events.push(Event { kind: EventKind::Put, kv, previous });
                }
                Op::Delete { key } => {
                    let Some(previous) = values.remove(&key) else { continue };
                    let kv = KeyValue { key, mod_revision: next, ..KeyValue::default() };
                    events.push(Event { kind: EventKind::Delete, kv, previous: Some(previous) });
                }
            }
        }
        if events.is_empty() {
            return TxnOutcome::Committed { revision };
        }
        self.states.insert(next, values);
        self.events.insert(next, events);
        self.revision = next;
        TxnOutcome::Committed { revision: next }
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    "[ab]{1,3}".prop_map(Bytes::from)
}

fn op() -> impl Strategy<Value = Op> {
    let value = proptest::collection::vec(any::<u8>(), 0..6).prop_map(Bytes::from);
    prop_oneof![
        2 => (key(), value).prop_map(|(key, value)| Op::Put { key, value, lease: None }),
        1 => key().prop_map(|key| Op::Delete { key }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let compare = (key(), 0..12_u64).prop_map(|(key, mod_revision)| Compare { key, mod_revision });
    let compares = prop_oneof![
        3 => Just(Vec::new()),
        1 => proptest::collection::vec(compare, 1..3),
    ];
    let txn = (compares, proptest::collection::vec(op(), 0..4))
        .prop_map(|(compares, ops)| Step::Txn(Txn { compares, ops }));
    let range = (key(), key(), 0..4_usize, 0..8_u64, any::<bool>()).prop_map(
        |(start, end, limit, back, count_only)| Step::Range { start, end, limit, back, count_only },
    );
    prop_oneof![
        12 => txn,
        3 => (key(), 0..8_u64).prop_map(|(key, back)| Step::Get { key, back }),
        4 => range,
        1 => (0..6_u64).prop_map(|back| Step::Compact { back }),
        3 => (key(), key(), 0..9_u64).prop_map(|(start, end, back)| Step::Watch { start, end, back }),
        1 => Just(Step::Reopen),
    ]
}

async fn check_range(store: &Store, model: &Model, range: Range) {
    let at = range.at.unwrap_or(model.revision);
    let got = store.range(range.clone()).await;
    if at < model.compacted {
        assert!(matches!(got, Err(Error::Compacted { .. })), "{got:?}");
        return;
    }
    let within = |key: &Bytes| *key >= range.start && (range.end.is_empty() || *key < range.end);
    let all: Vec<KeyValue> =
        model.states[&at].values().filter(|kv| within(&kv.key)).cloned().collect();
    let limit = if range.limit == 0 { usize::MAX } else { range.limit };
    let kvs: Vec<KeyValue> =
        if range.count_only { Vec::new() } else { all.iter().take(limit).cloned().collect() };
    let got = got.expect("a readable revision");
    assert_eq!(got.more, !range.count_only && kvs.len() < all.len());
    assert_eq!(got.kvs, kvs, "{range:?}");
    assert_eq!(got.count, all.len() as u64);
    assert_eq!(got.revision, model.revision);
}

async fn check_watch(store: &Store, model: &Model, start: Bytes, end: Bytes, from: Revision) {
    let mut watch = store.watch(start.clone(), end.clone(), from);
    if from <= model.compacted {
        assert!(matches!(watch.next().await, Some(Err(Error::Compacted { .. }))));
        return;
    }
    let within = |event: &&Event| event.kv.key >= start && (end.is_empty() || event.kv.key < end);
    for (revision, events) in model.events.range(from..) {
        let want: Vec<Event> = events.iter().filter(within).cloned().collect();
        if want.is_empty() {
            continue;
        }
        let batch = watch.next().await.expect("not over").expect("no error");
        assert_eq!((batch.revision, batch.events), (*revision, want));
    }
    let progress = watch.next().await.expect("not over").expect("no error");
    assert_eq!((progress.revision, progress.events), (model.revision, Vec::new()));
}

/// A watch of everything from the next revision on. It is begun: no compaction that follows can overtake it.
async fn begun(
    store: &Store,
    model: &Model,
) -> impl Stream<Item = Result<WatchBatch, Error>> + use<> {
    let mut watch = store.watch("", "", model.revision + 1);
    let progress = watch.next().await.expect("not over").expect("no error");
    assert_eq!((progress.revision, progress.events), (model.revision, Vec::new()));
    watch
}

async fn run(steps: Vec<Step>, mut store: Store, reopen: Option<&std::path::Path>) {
    let mut model = Model::new();
    let mut live_from = 2;
    let mut live = begun(&store, &model).await;
    for step in steps {
        let past = |back: u64| model.revision.saturating_sub(back).max(1);
        match step {
            Step::Txn(txn) => {
                let want = model.txn(&txn);
                assert_eq!(store.txn(txn).await.expect("a healthy store"), want);
            }
            Step::Get { key, back } => {
                let at = past(back);
                let got = store.get(&key, Some(at)).await;
                if at < model.compacted {
                    assert!(matches!(got, Err(Error::Compacted { .. })));
                } else {
                    assert_eq!(got.expect("readable").as_ref(), model.states[&at].get(&key));
                }
                assert_eq!(
                    store.get(&key, None).await.expect("readable").as_ref(),
                    model.now().get(&key)
                );
            }
            Step::Range { start, end, limit, back, count_only } => {
                let at = (back > 0).then(|| past(back - 1));
                check_range(&store, &model, Range { start, end, limit, at, count_only }).await;
            }
            Step::Compact { back } => {
                let at = past(back);
                let got = store.compact(at).await;
                if at <= model.compacted {
                    assert!(matches!(got, Err(Error::Compacted { .. })));
                } else {
                    got.expect("a healthy store");
                    model.compacted = at;
                }
            }
            Step::Watch { start, end, back } => {
                check_watch(&store, &model, start, end, past(back) + 1).await;
            }
            Step::Reopen => {
                if let Some(dir) = reopen {
                    store.close().await.expect("a healthy store");
                    assert!(matches!(store.revision().await, Err(Error::Closed)));
                    store = store::open(dir, Options::default()).expect("a healthy store");
                    assert_eq!(store.revision().await.expect("open"), model.revision);
                    live_from = model.revision + 1;
                    live = begun(&store, &model).await;
                }
            }
        }
    }
    let want = model.events.split_off(&live_from);
    let mut told = BTreeMap::new();
    while told.len() < want.len() {
        let batch = tokio::time::timeout(DEADLINE, live.next()).await.expect("in time");
        let batch = batch.expect("not over").expect("no error");
        if !batch.events.is_empty() {
            told.insert(batch.revision, batch.events);
        }
    }
    assert_eq!(told, want);
    store.close().await.expect("a healthy store");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn memory_is_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        runtime().block_on(run(steps, store::memory(), None));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn the_file_is_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = store::open(dir.path(), Options::default()).expect("a new store");
        runtime().block_on(run(steps, store, Some(dir.path())));
    }
}

/// etcd refuses transactions that change a key twice.
fn each_key_once(mut step: Step) -> Step {
    if let Step::Txn(txn) = &mut step {
        let mut seen = std::collections::BTreeSet::new();
        txn.ops.retain(|op| match op {
            Op::Put { key, .. } | Op::Delete { key } => seen.insert(key.clone()),
        });
    }
    step
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn etcd_is_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        let steps = steps.into_iter().map(each_key_once).collect();
        runtime().block_on(async {
            let Some(server) = support::Server::start().await else { return };
            run(steps, server.store("model").await, None).await;
        });
    }
}
