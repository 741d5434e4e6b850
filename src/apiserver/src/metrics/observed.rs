//! How long the store takes, as kube-apiserver tells it of etcd.
//!
//! Source: `k8s.io/apiserver/pkg/storage/etcd3/metrics`.

use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use store::{
    Engine, Error, KeyValue, LeaseId, Op, Range, RangeResponse, Revision, Store, Txn, TxnOutcome,
    WatchBatch,
};

/// Buckets, in seconds.
const SECONDS: [f64; 17] =
    [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 15.0, 30.0, 60.0];

/// What was done with objects of which resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Operation {
    operation: &'static str,
    group: String,
    resource: String,
}

#[derive(Clone)]
pub struct Buckets;

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(SECONDS)
    }
}

/// The durations by operation.
pub type Durations = Family<Operation, Histogram, Buckets>;

/// The store `below`, each of whose operations is timed.
pub fn observed(below: Store, durations: Durations) -> Store {
    Store::new(Observed { below, durations })
}

struct Observed {
    below: Store,
    durations: Durations,
}

impl Observed {
    fn note(&self, operation: &'static str, key: &[u8], since: Instant) {
        let Some((group, resource)) = crate::resource::of_key(key) else { return };
        let (group, resource) = (group.to_owned(), resource.to_owned());
        let labels = Operation { operation, group, resource };
        self.durations.get_or_create(&labels).observe(since.elapsed().as_secs_f64());
    }
}

#[async_trait]
impl Engine for Observed {
    async fn revision(&self) -> Result<Revision, Error> {
        self.below.revision().await
    }

    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, Error> {
        let since = Instant::now();
        let found = self.below.get(key, at).await;
        self.note("get", key, since);
        found
    }

    async fn range(&self, range: Range) -> Result<RangeResponse, Error> {
        let (since, start) = (Instant::now(), range.start.clone());
        let found = self.below.range(range).await;
        self.note("list", &start, since);
        found
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error> {
        let what = txn.ops.first().map(|op| match op {
            Op::Put { key, .. } if txn.compares.first().is_some_and(|c| c.mod_revision == 0) => {
                ("create", key.clone())
            }
            Op::Put { key, .. } => ("update", key.clone()),
            Op::Delete { key } => ("delete", key.clone()),
        });
        let since = Instant::now();
        let outcome = self.below.txn(txn).await;
        if let Some((operation, key)) = what {
            self.note(operation, &key, since);
        }
        outcome
    }

    fn largest_txn(&self) -> usize {
        self.below.largest_txn()
    }

    fn watch(
        &self,
        start: Bytes,
        end: Bytes,
        from: Revision,
    ) -> BoxStream<'static, Result<WatchBatch, Error>> {
        self.below.watch(start, end, from)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.below.compact(revision).await
    }

    async fn lease_grant(&self, ttl_s: i64) -> Result<LeaseId, Error> {
        self.below.lease_grant(ttl_s).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<i64, Error> {
        self.below.lease_keep_alive(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.below.lease_revoke(id).await
    }

    async fn close(&self) -> Result<(), Error> {
        self.below.close().await
    }
}
