//! An image from a registry: resolved, its layers fetched and unpacked side by side.
//!
//! Source: OCI distribution spec, "Pulling manifests" and "Pulling blobs".

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use reqwest::Method;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::channel;
use crate::digest::Digest;
use crate::error::Error;
use crate::image::Image;
use crate::install::diff_ids;
use crate::load::join;
use crate::manifest::{Descriptor, Document, Manifest, check_layer};
use crate::platform::Platform;
use crate::progress::{Fanout, LayerEvent, Progress, Pulling, Tally};
use crate::reference::Reference;
use crate::registry::Auth;
use crate::registry::blob::{Download, Verdict};
use crate::registry::client::{Ask, Client, read_limited};
use crate::registry::credentials::from_files;
use crate::registry::endpoint::{Endpoint, endpoints};
use crate::store::{Candidate, Store};

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";
const DIGEST_HEADER: &str = "docker-content-digest";

/// How an image is pulled.
#[derive(Clone, Default)]
pub struct PullOptions {
    /// Credentials for the registry, before those of files.
    pub auth: Option<Auth>,
    /// Another platform than this machine's.
    pub platform: Option<Platform>,
    pub progress: Option<Arc<dyn Progress>>,
}

type Outcome = Result<Image, Arc<Error>>;
type Key = (Reference, Platform, Option<Auth>);

/// A pull others may join.
struct Running {
    future: WeakShared<BoxFuture<'static, Outcome>>,
    listeners: Arc<Fanout>,
    tally: Arc<Tally>,
}

/// The pulls of a store.
#[derive(Default)]
pub(crate) struct Pulls {
    client: Client,
    running: Mutex<HashMap<Key, Running>>,
}

impl Pulls {
    fn running(&self) -> MutexGuard<'_, HashMap<Key, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Pulls `reference` and enters it under that name.
    ///
    /// The registry is always asked what the name stands for; what is in the store already is not fetched
    /// again. Callers that pull the same at the same time share one pull, which ends when all of them
    /// have dropped it.
    pub async fn pull(&self, reference: &str, options: PullOptions) -> Result<Image, Error> {
        let reference: Reference = reference.parse()?;
        let platform = options.platform.unwrap_or_else(Platform::host);
        let key = (reference, platform, options.auth);
        let future = self.join_or_start(&key, options.progress);
        let outcome = future.clone().await;
        // Whoever is last clears the entry; a new pull of the same name may have taken it by then.
        let mut running = self.inner.pulls.running();
        if running
            .get(&key)
            .and_then(|entry| entry.future.upgrade())
            .is_none_or(|other| other.ptr_eq(&future))
        {
            running.remove(&key);
        }
        drop(running);
        outcome.map_err(Error::Shared)
    }

    /// How far the pull of `reference` is, if one goes on.
    pub fn pulling(&self, reference: &str) -> Option<Pulling> {
        let reference: Reference = reference.parse().ok()?;
        let running = self.inner.pulls.running();
        let mut of_name = running.iter().filter(|(key, _)| key.0 == reference);
        of_name.find_map(|(_, entry)| {
            let future = entry.future.upgrade()?;
            future.peek().is_none().then(|| entry.tally.sum())
        })
    }

    fn join_or_start(
        &self,
        key: &Key,
        progress: Option<Arc<dyn Progress>>,
    ) -> Shared<BoxFuture<'static, Outcome>> {
        let mut running = self.inner.pulls.running();
        if let Some(entry) = running.get(key)
            && let Some(future) = entry.future.upgrade()
            && future.peek().is_none()
        {
            entry.listeners.add(progress);
            return future;
        }
        let listeners = Arc::new(Fanout::default());
        listeners.add(progress);
        let tally = Arc::new(Tally::default());
        listeners.add(Some(Arc::clone(&tally) as Arc<dyn Progress>));
        let pull = Pull {
            store: self.clone(),
            reference: key.0.clone(),
            platform: key.1.clone(),
            auth: key.2.clone(),
            progress: Arc::clone(&listeners),
        };
        let future = async move { pull.run().await.map_err(Arc::new) }.boxed().shared();
        if let Some(weak) = future.downgrade() {
            let entry = Running { future: weak, listeners, tally };
            running.insert(key.clone(), entry);
        }
        future
    }
}

/// One pull.
struct Pull {
    store: Store,
    reference: Reference,
    platform: Platform,
    auth: Option<Auth>,
    progress: Arc<Fanout>,
}

/// What a reference turned out to be.
struct Resolved {
    /// What the name stands for: an index or a manifest.
    target: Digest,
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    manifest_digest: Digest,
    /// The endpoints, from the one that answered on.
    endpoints: Vec<Endpoint>,
}

impl Pull {
    fn client(&self) -> &Client {
        &self.store.inner.pulls.client
    }

    async fn run(self) -> Result<Image, Error> {
        let endpoints = self.endpoints().await?;
        if let Some(image) = self.known(&endpoints).await {
            return Ok(image);
        }
        let resolved = self.resolve(endpoints).await?;
        self.progress.resolved(&resolved.target);
        if let Some(image) = self.present(&resolved.target) {
            return Ok(image);
        }
        let id = resolved.manifest.config.digest.clone();
        let config = self.config(&resolved).await?;
        let layers = &resolved.manifest.layers;
        let diff_ids = diff_ids(&id, &config, layers.len(), self.store.limits().layers)?;
        let leases =
            diff_ids.iter().map(|diff_id| self.store.inner.layers.lease(diff_id)).collect();
        let size_bytes = resolved.manifest_bytes.len() as u64
            + resolved.manifest.config.size
            + layers.iter().map(|layer| layer.size).sum::<u64>();
        self.layers(&resolved, &diff_ids).await?;
        let candidate = Candidate {
            id: id.clone(),
            manifest: resolved.manifest_digest.clone(),
            layers: diff_ids,
            size_bytes,
            tags: self.reference.given_tag().into_iter().collect(),
            digests: vec![self.reference.with_digest(&resolved.target)],
        };
        let store = self.store.clone();
        join(tokio::task::spawn_blocking(move || {
            let blobs = &store.inner.blobs;
            blobs.write(&id, &config)?;
            blobs.write(&resolved.manifest_digest, &resolved.manifest_bytes)?;
            let image = store.commit(candidate, leases);
            blobs.settle(&[id, resolved.manifest_digest]);
            image
        }))
        .await
    }

    async fn endpoints(&self) -> Result<Vec<Endpoint>, Error> {
        let config = self.store.inner.config.clone();
        let reference = self.reference.clone();
        let auth = self.auth.clone();
        join(tokio::task::spawn_blocking(move || {
            let found = match auth {
                Some(_) => None,
                None => from_files(&config.auth_files, &reference),
            };
            endpoints(config.registries.as_deref(), &reference, auth.as_ref(), found)
        }))
        .await
    }

    /// Gives the image that already is `target` of this repository, or of another, this name too.
    fn present(&self, target: &Digest) -> Option<Image> {
        let id = {
            let catalog = self.store.catalog();
            let suffix = format!("@{target}");
            let named = catalog.digests.iter().find(|(name, _)| name.ends_with(&suffix));
            named.map(|(_, id)| id.clone())?
        };
        // Another platform's image of the same index is another image.
        let image = self.store.get(&id.to_string())?;
        let offered = Platform {
            os: image.config.os().to_string(),
            architecture: image.config.architecture().to_string(),
            variant: image.config.variant().clone(),
        };
        self.platform.rank(&offered)?;
        self.store
            .name(&id, self.reference.given_tag(), Some(self.reference.with_digest(target)))
            .ok()
    }

    /// For a name that is in the store, asks only for its digest, which costs a registry next to nothing.
    async fn known(&self, endpoints: &[Endpoint]) -> Option<Image> {
        self.store.get(&self.reference.to_string())?;
        let what = self.what();
        let name = self.manifest_name();
        for endpoint in endpoints {
            let ask = Ask {
                endpoint,
                method: Method::HEAD,
                kind: "manifests",
                name: &name,
                headers: accept(),
                what: &what,
            };
            let Ok(response) = self.client().send(&ask).await else {
                continue;
            };
            let header = response.headers().get(DIGEST_HEADER)?.to_str().ok()?;
            let target = header.parse::<Digest>().ok()?;
            if self.reference.digest().is_some_and(|digest| *digest != target) {
                return None;
            }
            return self.present(&target);
        }
        None
    }

    fn what(&self) -> String {
        format!("failed to resolve reference \"{}\"", self.reference)
    }

    fn manifest_name(&self) -> String {
        match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        }
    }

    /// Asks the endpoints in turn. The registry itself is asked last, and its error is the one that
    /// counts, unless a mirror's says more than that it has no such image.
    async fn resolve(&self, endpoints: Vec<Endpoint>) -> Result<Resolved, Error> {
        let mut failures: Vec<Error> = Vec::new();
        for index in 0..endpoints.len() {
            match self.resolve_at(&endpoints[index]).await {
                Ok((target, manifest, manifest_bytes, manifest_digest)) => {
                    return Ok(Resolved {
                        target,
                        manifest,
                        manifest_bytes,
                        manifest_digest,
                        endpoints: endpoints[index..].to_vec(),
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, host = endpoints[index].host(), "endpoint failed");
                    failures.push(error);
                }
            }
        }
        let last = failures.pop();
        Err(last.unwrap_or_else(|| Error::NotFound { what: self.what() }))
    }

    async fn resolve_at(
        &self,
        endpoint: &Endpoint,
    ) -> Result<(Digest, Manifest, Vec<u8>, Digest), Error> {
        let mut name = self.manifest_name();
        let mut expected = self.reference.digest().cloned();
        let mut target = None;
        for _ in 0..=self.store.limits().index_depth {
            let (bytes, digest) = self.manifest(endpoint, &name, expected.as_ref()).await?;
            let target = target.get_or_insert_with(|| digest.clone());
            match Document::parse(&format!("manifest {digest} of {}", self.reference), &bytes)? {
                Document::Manifest(manifest) => {
                    return Ok((target.clone(), manifest, bytes, digest));
                }
                Document::Index(index) => {
                    let chosen = index.choose(&self.what(), &self.platform)?;
                    name = chosen.digest.to_string();
                    expected = Some(chosen.digest.clone());
                }
            }
        }
        Err(Error::corrupt(self.reference.to_string(), "its indexes are nested too deeply"))
    }

    async fn manifest(
        &self,
        endpoint: &Endpoint,
        name: &str,
        expected: Option<&Digest>,
    ) -> Result<(Vec<u8>, Digest), Error> {
        let what = self.what();
        let ask = Ask {
            endpoint,
            method: Method::GET,
            kind: "manifests",
            name,
            headers: accept(),
            what: &what,
        };
        let response = self.client().send(&ask).await?;
        let stated = response.headers().get(DIGEST_HEADER).and_then(|value| value.to_str().ok());
        let stated = stated.and_then(|text| text.parse::<Digest>().ok());
        let bytes = read_limited(response, self.store.limits().manifest_bytes, &what).await?;
        if let Some(digest) = expected.or(stated.as_ref()) {
            let what = format!("manifest {name} of {}", self.reference.repository());
            crate::blob::verify(&what, digest, &bytes)?;
            return Ok((bytes, digest.clone()));
        }
        let digest = Digest::of(&bytes);
        Ok((bytes, digest))
    }

    async fn config(&self, resolved: &Resolved) -> Result<Vec<u8>, Error> {
        let descriptor = &resolved.manifest.config;
        if let Ok(bytes) = self.store.inner.blobs.read(&descriptor.digest) {
            return Ok(bytes);
        }
        let limit = self.store.limits().config_bytes;
        if descriptor.size > limit {
            return Err(Error::TooLarge {
                what: format!("configuration of {}", self.reference),
                limit: format!("{} bytes, {limit} are allowed", descriptor.size),
            });
        }
        let (sender, mut receiver) = tokio::sync::mpsc::channel(4);
        let verdict = Verdict::default();
        let quiet = Fanout::default();
        let download = Download {
            client: self.client(),
            endpoints: &resolved.endpoints,
            descriptor,
            progress: &quiet,
        };
        let gather = async {
            let mut bytes = Vec::new();
            while let Some(Ok(chunk)) = receiver.recv().await {
                let chunk: bytes::Bytes = chunk;
                bytes.extend_from_slice(&chunk);
            }
            bytes
        };
        let (result, bytes) = tokio::join!(download.run(sender, &verdict), gather);
        result?;
        verdict.check(descriptor)?;
        Ok(bytes)
    }

    async fn layers(&self, resolved: &Resolved, diff_ids: &[Digest]) -> Result<(), Error> {
        let permits = Arc::new(Semaphore::new(self.store.limits().parallel_layers));
        let endpoints: Arc<[Endpoint]> = resolved.endpoints.clone().into();
        let mut tasks = JoinSet::new();
        for (descriptor, diff_id) in resolved.manifest.layers.iter().zip(diff_ids) {
            check_layer(descriptor)?;
            self.progress.layer(&descriptor.digest, LayerEvent::Queued { bytes: descriptor.size });
            let work = LayerWork {
                store: self.store.clone(),
                endpoints: Arc::clone(&endpoints),
                descriptor: descriptor.clone(),
                diff_id: diff_id.clone(),
                progress: Arc::clone(&self.progress),
            };
            let permits = Arc::clone(&permits);
            tasks.spawn(async move {
                // The same layer twice, in this image or in another pull: one makes it, one finds it.
                let _made = work.store.inner.layers.lock(&work.diff_id).await;
                let _permit = permits.acquire_owned().await;
                work.run().await
            });
        }
        while let Some(result) = tasks.join_next().await {
            result.map_err(|error| {
                Error::io("finish", "fetching a layer", std::io::Error::other(error))
            })??;
        }
        Ok(())
    }
}

/// One layer of a pull.
struct LayerWork {
    store: Store,
    endpoints: Arc<[Endpoint]>,
    descriptor: Descriptor,
    diff_id: Digest,
    progress: Arc<Fanout>,
}

impl LayerWork {
    async fn run(&self) -> Result<(), Error> {
        let digest = &self.descriptor.digest;
        let bytes = self.descriptor.size;
        if self.store.inner.layers.get(&self.diff_id).is_some() {
            self.progress.layer(digest, LayerEvent::Present { bytes });
            return Ok(());
        }
        let (sender, reader) = channel::pipe();
        let verdict = Verdict::default();
        let unpacking = {
            let store = self.store.clone();
            let descriptor = self.descriptor.clone();
            let diff_id = self.diff_id.clone();
            let verdict = verdict.clone();
            tokio::task::spawn_blocking(move || {
                let layers = &store.inner.layers;
                layers.make(
                    reader,
                    &diff_id,
                    Some(&descriptor.digest),
                    store.limits(),
                    store.inner.config.ownership,
                    || verdict.check(&descriptor),
                )
            })
        };
        let download = Download {
            client: &self.store.inner.pulls.client,
            endpoints: &self.endpoints,
            descriptor: &self.descriptor,
            progress: &*self.progress,
        };
        let fetched = download.run(sender, &verdict).await;
        let unpacked = join(unpacking).await;
        fetched?;
        // A blob that is not what it should be explains whatever unpacking made of it.
        if unpacked.is_err() && verdict.is_damaged() {
            return verdict.check(&self.descriptor);
        }
        unpacked.map_err(|error| error.context(format!("failed to extract layer {digest}")))?;
        self.progress.layer(digest, LayerEvent::Done { bytes });
        Ok(())
    }
}

fn accept() -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MANIFESTS))])
}
