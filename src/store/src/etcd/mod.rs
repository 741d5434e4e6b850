//! The engine on an etcd that already runs, for several API servers over one store.
//!
//! Keys get a prefix of ours, so that an etcd can be shared with others. Since then not every revision
//! is one of our changes, a watcher may wait for a revision that never comes: then the key that is the
//! bare prefix is written, whose event tells that all before it has been told ([`watch`]). That needs
//! nothing of etcd's progress notifications, which before 3.4.25 and 3.5.8 overtake events.

mod connect;
mod messages;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::BoxStream;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, IntoRequest};
use tonic_prost::ProstCodec;

pub use connect::{Dial, EtcdOptions, TlsFiles};
use messages as wire;

use crate::engine::Engine;
use crate::{
    Error, KeyValue, LeaseId, Op, Range, RangeResponse, Revision, Txn, TxnOutcome, WatchBatch,
};

/// `--max-txn-ops` as it is unless somebody changes it.
const OPS_MAX: usize = 128;
/// How often a read is tried again while no member answers, and after which time.
const READ_ATTEMPTS: usize = 20;
const READ_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// See the module.
pub struct Etcd(Arc<Shared>);

/// What the engine and its watches have in common.
struct Shared {
    channel: Channel,
    prefix: Bytes,
    /// The key after all of ours.
    end: Bytes,
    /// The members, for messages.
    address: String,
    /// The last compaction that is known.
    compacted: AtomicU64,
    /// The greatest revision that somebody has been told of: watchers should get there.
    wanted: tokio::sync::watch::Sender<Revision>,
    closed: tokio::sync::watch::Sender<bool>,
}

impl Etcd {
    /// Connects to the members; fails when none answers.
    ///
    /// # Errors
    /// [`Error::Io`] for TLS files that cannot be used, [`Error::Remote`] when etcd does not answer.
    pub async fn connect(options: &EtcdOptions) -> Result<Self, Error> {
        let prefix = Bytes::copy_from_slice(options.prefix.as_bytes());
        let shared = Shared {
            channel: connect::channel(options)?,
            end: Range::prefix(&prefix).end,
            prefix,
            address: options.address(),
            compacted: AtomicU64::new(0),
            wanted: tokio::sync::watch::Sender::new(0),
            closed: tokio::sync::watch::Sender::new(false),
        };
        shared.head().await?;
        Ok(Self(Arc::new(shared)))
    }
}

impl Shared {
    /// A key as etcd has it.
    fn own(&self, key: &[u8]) -> Bytes {
        let mut own = BytesMut::with_capacity(self.prefix.len() + key.len());
        own.put_slice(&self.prefix);
        own.put_slice(key);
        own.freeze()
    }

    /// The bounds of a range as etcd has it. The bare prefix is no key of ours.
    fn bounds(&self, start: &[u8], end: &[u8]) -> (Bytes, Bytes) {
        let start = self.own(if start.is_empty() { b"\0" } else { start });
        (start, if end.is_empty() { self.end.clone() } else { self.own(end) })
    }

    fn pair(&self, pair: wire::Pair) -> KeyValue {
        KeyValue {
            key: pair.key.slice(self.prefix.len().min(pair.key.len())..),
            value: pair.value,
            create_revision: pair.create_revision as Revision,
            mod_revision: pair.mod_revision as Revision,
            version: pair.version as u64,
            lease: (pair.lease != 0).then_some(pair.lease),
        }
    }

    fn grpc(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    fn remote(&self, operation: &'static str, status: &tonic::Status) -> Error {
        let mut detail = status.message().to_owned();
        let mut source = std::error::Error::source(status);
        while let Some(cause) = source {
            detail = format!("{detail}: {cause}");
            source = cause.source();
        }
        Error::Remote { operation, address: self.address.clone(), detail }
    }

    fn check_open(&self) -> Result<(), Error> {
        if *self.closed.borrow() { Err(Error::Closed) } else { Ok(()) }
    }

    async fn call<A, B>(&self, path: &'static str, request: A) -> Result<B, tonic::Status>
    where
        A: Message + Clone + 'static,
        B: Message + Default + 'static,
    {
        let mut grpc = self.grpc();
        grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static(path);
        let codec = ProstCodec::<A, B>::default();
        grpc.unary(request.into_request(), path, codec).await.map(tonic::Response::into_inner)
    }

    /// Asks again while no member answers, which a write must not.
    async fn read(&self, request: wire::RangeRequest) -> Result<wire::RangeResponse, Error> {
        let mut attempt = 1;
        loop {
            self.check_open()?;
            let revision = request.revision as Revision;
            match self.call("/etcdserverpb.KV/Range", request.clone()).await {
                Ok(response) => return Ok(response),
                Err(status) if status.code() == Code::OutOfRange => {
                    return Err(self.out_of_range(revision, &status).await);
                }
                Err(status) if status.code() == Code::Unavailable && attempt < READ_ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(READ_AGAIN_AFTER).await;
                }
                Err(status) => return Err(self.remote("read from", &status)),
            }
        }
    }

    /// Which of the two ends of history was passed.
    async fn out_of_range(&self, requested: Revision, status: &tonic::Status) -> Error {
        if status.message().contains("compacted") {
            // etcd does not say up to where.
            let compacted = self.compacted.fetch_max(requested + 1, Ordering::Relaxed);
            return Error::Compacted { requested, compacted: compacted.max(requested + 1) };
        }
        match Box::pin(self.head()).await {
            Ok(current) => Error::FutureRevision { requested, current },
            Err(error) => error,
        }
    }

    /// The current revision, agreed on by the members.
    async fn head(&self) -> Result<Revision, Error> {
        let request = wire::RangeRequest {
            key: self.prefix.clone(),
            count_only: true,
            ..wire::RangeRequest::default()
        };
        let response = self.read(request).await?;
        Ok(revision_of(response.header.as_ref()))
    }

    /// Writes the bare prefix, so that every watcher sees a change.
    async fn mark(&self) -> Result<Revision, tonic::Status> {
        let put = wire::PutRequest { key: self.prefix.clone(), ..wire::PutRequest::default() };
        let request = wire::RequestOp { request: Some(wire::Request::Put(put)) };
        let txn = wire::TxnRequest { success: vec![request], ..wire::TxnRequest::default() };
        let response: wire::TxnResponse = self.call("/etcdserverpb.KV/Txn", txn).await?;
        Ok(revision_of(response.header.as_ref()))
    }

    fn wire_txn(&self, txn: &Txn) -> wire::TxnRequest {
        let op = |request| wire::RequestOp { request: Some(request) };
        wire::TxnRequest {
            compare: txn
                .compares
                .iter()
                .map(|compare| wire::Compare {
                    target: 2,
                    key: self.own(&compare.key),
                    mod_revision: Some(compare.mod_revision as i64),
                })
                .collect(),
            success: txn
                .ops
                .iter()
                .map(|change| match change {
                    Op::Put { key, value, lease } => op(wire::Request::Put(wire::PutRequest {
                        key: self.own(key),
                        value: value.clone(),
                        lease: lease.unwrap_or_default(),
                    })),
                    Op::Delete { key } => {
                        op(wire::Request::Delete(wire::DeleteRequest { key: self.own(key) }))
                    }
                })
                .collect(),
            failure: txn
                .compares
                .iter()
                .map(|compare| {
                    op(wire::Request::Range(wire::RangeRequest {
                        key: self.own(&compare.key),
                        ..wire::RangeRequest::default()
                    }))
                })
                .collect(),
        }
    }
}

fn revision_of(header: Option<&wire::Header>) -> Revision {
    header.map_or(0, |header| header.revision as Revision)
}

/// `etcdserver: requested lease not found`
fn no_lease(status: &tonic::Status) -> bool {
    status.code() == Code::NotFound && status.message().contains("lease")
}

#[async_trait]
impl Engine for Etcd {
    async fn revision(&self) -> Result<Revision, Error> {
        let revision = self.0.head().await?;
        self.0.wanted.send_if_modified(|wanted| {
            let newer = revision > *wanted;
            *wanted = (*wanted).max(revision);
            newer
        });
        Ok(revision)
    }

    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, Error> {
        let request = wire::RangeRequest {
            key: self.0.own(key),
            revision: at.unwrap_or_default() as i64,
            ..wire::RangeRequest::default()
        };
        let response = self.0.read(request).await?;
        Ok(response.kvs.into_iter().next().map(|pair| self.0.pair(pair)))
    }

    async fn range(&self, range: Range) -> Result<RangeResponse, Error> {
        let (key, range_end) = self.0.bounds(&range.start, &range.end);
        let request = wire::RangeRequest {
            key,
            range_end,
            limit: range.limit as i64,
            revision: range.at.unwrap_or_default() as i64,
            count_only: range.count_only,
        };
        let response = self.0.read(request).await?;
        Ok(RangeResponse {
            kvs: response.kvs.into_iter().map(|pair| self.0.pair(pair)).collect(),
            more: response.more,
            count: response.count as u64,
            revision: revision_of(response.header.as_ref()),
        })
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error> {
        self.0.check_open()?;
        let request = self.0.wire_txn(&txn);
        let response: Result<wire::TxnResponse, _> =
            self.0.call("/etcdserverpb.KV/Txn", request).await;
        let response = response.map_err(|status| {
            let lease = txn.ops.iter().find_map(|op| match op {
                Op::Put { lease, .. } => *lease,
                Op::Delete { .. } => None,
            });
            match lease {
                Some(id) if no_lease(&status) => Error::LeaseNotFound { id },
                _ => self.0.remote("write to", &status),
            }
        })?;
        let revision = revision_of(response.header.as_ref());
        if response.succeeded {
            return Ok(TxnOutcome::Committed { revision });
        }
        let current = response.responses.into_iter().map(|response| {
            let found = response.range.and_then(|range| range.kvs.into_iter().next());
            found.map(|pair| self.0.pair(pair))
        });
        Ok(TxnOutcome::Conflict { current: current.collect(), revision })
    }

    fn largest_txn(&self) -> usize {
        OPS_MAX
    }

    fn watch(
        &self,
        start: Bytes,
        end: Bytes,
        from: Revision,
    ) -> BoxStream<'static, Result<WatchBatch, Error>> {
        watch::watch(Arc::clone(&self.0), start, end, from)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.0.check_open()?;
        let request = wire::CompactionRequest { revision: revision as i64 };
        let done: Result<wire::Done, _> = self.0.call("/etcdserverpb.KV/Compact", request).await;
        match done {
            Ok(_) => {
                self.0.compacted.fetch_max(revision, Ordering::Relaxed);
                Ok(())
            }
            Err(status) if status.code() == Code::OutOfRange => {
                Err(self.0.out_of_range(revision, &status).await)
            }
            Err(status) => Err(self.0.remote("compact", &status)),
        }
    }

    async fn lease_grant(&self, ttl_s: i64) -> Result<LeaseId, Error> {
        self.0.check_open()?;
        let request = wire::LeaseGrantRequest { ttl_s };
        let granted: Result<wire::LeaseResponse, _> =
            self.0.call("/etcdserverpb.Lease/LeaseGrant", request).await;
        granted.map(|lease| lease.id).map_err(|status| self.0.remote("get a lease of", &status))
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<i64, Error> {
        self.0.check_open()?;
        let failed = |status: tonic::Status| self.0.remote("keep a lease of", &status);
        let mut grpc = self.0.grpc();
        let unready =
            |error: tonic::transport::Error| tonic::Status::unavailable(error.to_string());
        grpc.ready().await.map_err(unready).map_err(failed)?;
        let once = futures::stream::once(async move { wire::LeaseRequest { id } });
        let path = PathAndQuery::from_static("/etcdserverpb.Lease/LeaseKeepAlive");
        let codec = ProstCodec::<wire::LeaseRequest, wire::LeaseResponse>::default();
        let answers = grpc.streaming(tonic::Request::new(once), path, codec).await;
        let answer = answers.map_err(failed)?.into_inner().message().await.map_err(failed)?;
        match answer {
            Some(answer) if answer.ttl_s > 0 => Ok(answer.ttl_s),
            _ => Err(Error::LeaseNotFound { id }),
        }
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.0.check_open()?;
        let request = wire::LeaseRequest { id };
        let done: Result<wire::Done, _> =
            self.0.call("/etcdserverpb.Lease/LeaseRevoke", request).await;
        match done {
            Ok(_) => Ok(()),
            Err(status) if no_lease(&status) => Err(Error::LeaseNotFound { id }),
            Err(status) => Err(self.0.remote("end a lease of", &status)),
        }
    }

    async fn close(&self) -> Result<(), Error> {
        self.0.closed.send_replace(true);
        Ok(())
    }
}
