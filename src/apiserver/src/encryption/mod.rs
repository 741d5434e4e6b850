//! Encryption at rest: a store whose values are encrypted on their way to the engine. The caches, and all
//! that reads through the store, have them plain.
//!
//! Source: <https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/>.

mod configuration;
mod kms;
mod provider;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use store::{
    Engine, Error, KeyValue, LeaseId, Op, Range, RangeResponse, Revision, Store, Txn, TxnOutcome,
    WatchBatch,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::kms::Plugin;
use self::kms::envelope::Envelope;
use crate::access::Reloaded;
pub use configuration::Configuration;

/// How often plugins are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a server that starts waits for them.
const PRIMED_WITHIN: Duration = Duration::from_secs(10);

/// Whether the plugins of a configuration are well, all that are not told.
pub async fn check(configuration: &Configuration) -> Result<(), String> {
    let mut problems = Vec::new();
    for (index, plugin) in configuration.plugins().enumerate() {
        if let Err(problem) = plugin.check().await {
            problems.push(format!("kms-provider-{index}: {problem}"));
        }
    }
    match problems.len() {
        0 => Ok(()),
        1 => Err(problems.remove(0)),
        _ => Err(format!("[{}]", problems.join(", "))),
    }
}

/// Whether the value is encrypted by something that was not there to read it.
pub fn is_sealed(value: &[u8]) -> bool {
    value.starts_with(provider::ENCRYPTED)
}

/// What is said of a value that [`is_sealed`].
pub fn unreadable(key: &[u8]) -> Error {
    Error::Unreadable {
        key: String::from_utf8_lossy(key).into_owned(),
        detail: "no provider of --encryption-provider-config can decrypt it".into(),
    }
}

/// The configuration in force, and the store below.
pub struct Encryption {
    configuration: Reloaded<Configuration>,
    below: Store,
}

impl Encryption {
    /// Encrypts by `configuration` what goes to `below`.
    pub fn new(configuration: Reloaded<Configuration>, below: Store) -> Self {
        Self { configuration, below }
    }

    /// The store that has the values plain.
    pub fn store(self: &Arc<Self>) -> Store {
        Store::new(Encrypted(self.clone()))
    }

    /// The configuration, which a changed file changes.
    pub fn configuration(&self) -> &Reloaded<Configuration> {
        &self.configuration
    }

    /// Whether there are any plugins.
    pub fn has_plugins(&self) -> bool {
        self.configuration.get().plugins().next().is_some()
    }

    /// Whether the plugins of key management services are well; what is wrong with them otherwise.
    pub async fn check(&self) -> Result<(), String> {
        check(&self.configuration.get()).await
    }

    /// Waits for the plugins, for those that start beside this server; without them what is there can be
    /// neither read nor written, and it goes on nevertheless.
    pub async fn prime(&self) {
        let deadline = Instant::now() + PRIMED_WITHIN;
        while self.check().await.is_err() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Keeps the plugins' keys up to date, until `shutdown`.
    pub async fn keep(&self, shutdown: CancellationToken) {
        loop {
            for plugin in self.configuration.get().plugins() {
                plugin.keep().await;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// What plugins must decrypt before `values` can be read, each once.
    fn missing<'a>(&self, values: impl IntoIterator<Item = &'a KeyValue>) -> Vec<Missing> {
        let configuration = self.configuration.get();
        let mut asked = HashSet::new();
        let mut missing = Vec::new();
        for kv in values {
            if let Some((plugin, header)) = configuration.missing(&kv.value)
                && asked.insert(header.encode())
            {
                missing.push(Missing { plugin: plugin.clone(), header, key: kv.key.clone() });
            }
        }
        missing
    }

    /// Whether the value of `key` would be stored otherwise today: by another key, or encrypted at all.
    pub async fn is_stale(&self, key: &[u8]) -> Result<bool, Error> {
        let Some(kv) = self.below.get(key, None).await? else { return Ok(false) };
        learn(self.missing([&kv])).await;
        Ok(self.configuration.get().open(key, &kv.value).is_ok_and(|(_, stale)| stale))
    }

    fn seal(&self, op: Op) -> Result<Op, Error> {
        let Op::Put { key, value, lease } = op else { return Ok(op) };
        let sealed = self.configuration.get().seal(&key, value);
        let value = sealed.map_err(|error| Error::Unreadable {
            key: String::from_utf8_lossy(&key).into_owned(),
            detail: error.to_string(),
        })?;
        Ok(Op::Put { key, value, lease })
    }

    /// One value that cannot be read is none that anybody could use; the others go on.
    fn open(&self, mut kv: KeyValue) -> KeyValue {
        if kv.value.is_empty() {
            return kv;
        }
        match self.configuration.get().open(&kv.key, &kv.value) {
            Ok((plain, _)) => kv.value = plain,
            Err(error) => {
                let key = String::from_utf8_lossy(&kv.key);
                tracing::error!(%key, %error, "cannot decrypt a value");
                kv.value = Bytes::from_static(provider::ENCRYPTED);
            }
        }
        kv
    }
}

/// An encrypted source that its plugin has not decrypted yet, and a value that needs it.
struct Missing {
    plugin: Arc<Plugin>,
    header: Envelope,
    key: Bytes,
}

/// Has plugins decrypt what is missing; what they cannot is told, and its values stay unreadable.
async fn learn(missing: Vec<Missing>) {
    for Missing { plugin, header, key } in missing {
        if let Err(error) = plugin.learn(&header).await {
            let key = String::from_utf8_lossy(&key);
            tracing::error!(%key, error, "failed to decrypt DEK");
        }
    }
}

/// The engine of [`Encryption::store`].
struct Encrypted(Arc<Encryption>);

#[async_trait]
impl Engine for Encrypted {
    async fn revision(&self) -> Result<Revision, Error> {
        self.0.below.revision().await
    }

    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, Error> {
        let found = self.0.below.get(key, at).await?;
        learn(self.0.missing(&found)).await;
        Ok(found.map(|kv| self.0.open(kv)))
    }

    async fn range(&self, range: Range) -> Result<RangeResponse, Error> {
        let mut found = self.0.below.range(range).await?;
        learn(self.0.missing(&found.kvs)).await;
        found.kvs = found.kvs.into_iter().map(|kv| self.0.open(kv)).collect();
        Ok(found)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error> {
        let ops = txn.ops.into_iter().map(|op| self.0.seal(op)).collect::<Result<_, _>>()?;
        let outcome = self.0.below.txn(Txn { ops, ..txn }).await?;
        Ok(match outcome {
            TxnOutcome::Conflict { current, revision } => {
                learn(self.0.missing(current.iter().flatten())).await;
                let open = |kv: Option<KeyValue>| kv.map(|kv| self.0.open(kv));
                TxnOutcome::Conflict { current: current.into_iter().map(open).collect(), revision }
            }
            committed @ TxnOutcome::Committed { .. } => committed,
        })
    }

    fn largest_txn(&self) -> usize {
        self.0.below.largest_txn()
    }

    fn watch(
        &self,
        start: Bytes,
        end: Bytes,
        from: Revision,
    ) -> BoxStream<'static, Result<WatchBatch, Error>> {
        let encryption = self.0.clone();
        let opened = move |batch: Result<WatchBatch, Error>| {
            let encryption = encryption.clone();
            async move {
                let batch = batch?;
                let values = batch.events.iter().flat_map(|e| e.previous.iter().chain([&e.kv]));
                learn(encryption.missing(values)).await;
                let open = |mut event: store::Event| {
                    event.kv = encryption.open(event.kv);
                    event.previous = event.previous.map(|kv| encryption.open(kv));
                    event
                };
                Ok(WatchBatch { events: batch.events.into_iter().map(open).collect(), ..batch })
            }
        };
        self.0.below.watch(start, end, from).then(opened).boxed()
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.0.below.compact(revision).await
    }

    async fn lease_grant(&self, ttl_s: i64) -> Result<LeaseId, Error> {
        self.0.below.lease_grant(ttl_s).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<i64, Error> {
        self.0.below.lease_keep_alive(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.0.below.lease_revoke(id).await
    }

    async fn close(&self) -> Result<(), Error> {
        self.0.below.close().await
    }
}
