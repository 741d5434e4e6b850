//! Objects by resource, over the store and the watch caches. Everything below admission: strategies,
//! validation, optimistic concurrency, graceful deletion. Reads come from the caches.
//!
//! Source: `k8s.io/apiserver/pkg/registry/generic/registry/store.go`.

mod rewrite;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use apimachinery::{Status, apply, field, meta, trace};
use bytes::Bytes;
use serde_json::Value;
use store::{Compare, KeyValue, Op, Store, Txn, TxnOutcome};

use crate::attributes::RequestContext;
use crate::cache::{Cache, Snapshot};
use crate::caches::{Caches, Writing};
use crate::deletion::{self, Step};
use crate::encryption::Encryption;
use crate::expiry::Leases;
use crate::gate::{Gate, Open, Operation};
use crate::object::{self, Object};
use crate::options::DeleteOptions;
use crate::resource::{Resource, ResourceRef};
use crate::served::Served;
use crate::strategy::service::addresses;
use crate::strategy::service::allocation::Allocator;
use crate::strategy::service::range::Network;
use crate::webhook::Webhooks;
use crate::{metadata, policy};

/// How often a generated name is tried again when it is taken.
const NAME_ATTEMPTS: usize = 8;
/// The key whose revision stands for all allocations of addresses and ports for Services, so that servers
/// on one store do not give out the same ones.
const ALLOCATIONS: &[u8] = b"/registry/ranges/services";
/// How often a write is tried again when others change the object meanwhile.
const WRITE_ATTEMPTS: usize = 100;

/// Handle to all objects; cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    caches: Arc<Caches>,
    served: RwLock<Arc<Served>>,
    leases: Leases,
    services: Allocator,
    webhooks: Webhooks,
    encryption: Option<Arc<Encryption>>,
    compacted: AtomicU64,
}

/// What deleting did.
#[derive(Debug)]
pub enum Deleted {
    /// The object is gone; this is how it was.
    Now(Arc<Object>),
    /// It is marked and goes later.
    Later(Arc<Object>),
}

/// What an update may do beyond replacing.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpdateRules {
    /// Absent objects are made (`AllowCreateOnUpdate`).
    pub create: bool,
    /// The object must carry a resource version (`!AllowUnconditionalUpdate`).
    pub versioned: bool,
}

/// A change of an object, called again after each conflict. The first argument is the object before,
/// absent when the update is to create it.
pub type Change<'a> = dyn FnMut(Option<&Value>) -> Result<Value, Status> + Send + 'a;

/// Said of a list as of a revision that is forgotten.
pub const TOO_OLD: &str = "The resourceVersion for the provided list is too old.";

/// Maps the store's errors to the API's.
pub fn store_failure(error: store::Error) -> Status {
    match error {
        store::Error::Closed => Status::unavailable("the server is shutting down"),
        store::Error::Compacted { .. } => Status::expired(TOO_OLD),
        error => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text.push_str(": ");
                text.push_str(&cause.to_string());
                source = cause.source();
            }
            tracing::error!(error = text, "the store failed");
            Status::internal(text)
        }
    }
}

impl Default for Registry {
    /// The built-in resources over an empty store in memory that nobody follows.
    fn default() -> Self {
        let served = Served::builtin();
        let store = store::memory();
        let caches = Caches::empty(store.clone(), &stored(&served));
        Self {
            inner: Arc::new(Inner {
                store,
                caches: Arc::new(caches),
                served: RwLock::new(Arc::new(served)),
                leases: Leases::default(),
                services: Allocator::new(Network::default()),
                webhooks: Webhooks::new(crate::webhook::direct()),
                encryption: None,
                compacted: AtomicU64::new(0),
            }),
        }
    }
}

/// The resources that have a cache of their own: one version of each.
fn stored(served: &Served) -> Vec<ResourceRef> {
    served
        .all()
        .iter()
        .filter(|r| r.is_stored() && !crate::conversion::is_view(r))
        .filter(|r| served.preferred(&r.group, &r.plural).is_some_and(|p| Arc::ptr_eq(p, r)))
        .cloned()
        .collect()
}

impl Registry {
    /// A registry of `served` resources, loaded from `store`, which may be that of `encryption`; Services
    /// get addresses in `network`.
    pub async fn load(
        store: Store,
        served: Served,
        network: Network,
        webhooks: Webhooks,
        encryption: Option<Arc<Encryption>>,
    ) -> Result<Self, store::Error> {
        let caches = Arc::new(Caches::load(store.clone(), &stored(&served)).await?);
        let services = Allocator::new(network);
        let served = RwLock::new(Arc::new(served));
        let leases = Leases::default();
        let compacted = AtomicU64::new(0);
        let inner =
            Inner { store, caches, served, leases, services, webhooks, encryption, compacted };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// How values are encrypted in the store.
    pub fn encryption(&self) -> Option<Arc<Encryption>> {
        self.inner.encryption.clone()
    }

    /// Calls to webhooks.
    pub fn webhooks(&self) -> &Webhooks {
        &self.inner.webhooks
    }

    /// The served resources.
    pub fn served(&self) -> Arc<Served> {
        self.inner.served.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves other resources from now on.
    pub fn publish(&self, served: Served) {
        *self.inner.served.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(served);
    }

    /// The caches.
    pub fn caches(&self) -> &Arc<Caches> {
        &self.inner.caches
    }

    /// Forgets the history before `revision`: lists as of then have expired, also those that a cache could
    /// go on with.
    pub async fn compact(&self, revision: u64) -> Result<(), store::Error> {
        self.inner.compacted.fetch_max(revision, Ordering::Relaxed);
        self.inner.store.compact(revision).await
    }

    /// Whether the history no longer has `revision`, as far as this server knows.
    pub fn has_expired(&self, revision: u64) -> bool {
        revision < self.inner.compacted.load(Ordering::Relaxed)
    }

    /// The store; for the few things that are not objects.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Addresses and ports for Services.
    pub fn services(&self) -> &Allocator {
        &self.inner.services
    }

    /// The served resource `plural` of `group`, at its preferred version.
    pub fn resource(&self, group: &str, plural: &str) -> Option<ResourceRef> {
        self.served().preferred(group, plural).cloned()
    }

    /// The watch cache of a resource.
    pub fn cache(&self, resource: &Resource) -> Option<Arc<Cache>> {
        self.inner.caches.get(&resource.key_prefix)
    }

    /// The watch cache of the preferred version of a resource.
    pub fn cache_of(&self, group: &str, plural: &str) -> Option<Arc<Cache>> {
        self.cache(self.served().preferred(group, plural)?)
    }

    /// The object in the cache; `namespace` is empty for cluster-scoped resources.
    pub fn get(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<Object>> {
        let cache = self.cache_of(group, plural)?;
        cache.get(&cache_key(&cache.resource, namespace, name))
    }

    /// All objects of a resource in the cache, in key order; of one namespace if given.
    pub fn list(&self, group: &str, plural: &str, namespace: Option<&str>) -> Vec<Arc<Object>> {
        let Some(cache) = self.cache_of(group, plural) else { return Vec::new() };
        let snapshot = cache.snapshot();
        snapshot
            .select(namespace.unwrap_or_default(), None)
            .into_iter()
            .map(|(_, o)| o.clone())
            .collect()
    }

    /// A consistent view of a resource, at the revision the caches have reached.
    pub fn snapshot(&self, cache: &Cache) -> Snapshot {
        let applied = self.inner.caches.applied();
        let mut snapshot = cache.snapshot();
        snapshot.revision = snapshot.revision.max(applied);
        snapshot
    }

    /// The revision of the latest change to any object of a resource, deletions included: what was
    /// computed from [`Self::list`] is still right while this stays the same.
    pub fn changed(&self, group: &str, plural: &str) -> u64 {
        self.cache_of(group, plural).map_or(0, |cache| cache.snapshot().revision)
    }

    /// Waits until the cache has every write acknowledged before this call.
    pub async fn sync(&self) -> Result<u64, Status> {
        let revision = self.inner.store.revision().await.map_err(store_failure)?;
        self.inner.caches.reached(revision).await;
        Ok(revision)
    }

    /// Creates `object` in `ctx.namespace`: strategy, validation, store. No defaults, no admission.
    pub async fn create(&self, ctx: &RequestContext, object: Value) -> Result<Arc<Object>, Status> {
        self.create_through(ctx, object, &Open).await
    }

    /// Creates `object` behind admission.
    pub async fn create_through(
        &self,
        ctx: &RequestContext,
        mut object: Value,
        gate: &dyn Gate,
    ) -> Result<Arc<Object>, Status> {
        let resource = resource_of(ctx)?;
        if resource.custom.as_ref().is_some_and(|custom| custom.terminating) {
            return Err(crate::custom::terminating());
        }
        let admitted = SystemTime::now();
        ensure_namespace(resource, ctx, &mut object)?;
        let generated = meta::name(&object).is_empty() && !meta::generate_name(&object).is_empty();
        metadata::fill_system_fields(&mut object);
        if generated {
            let name = metadata::generate_name(meta::generate_name(&object));
            meta::set(&mut object, "name", name);
        }
        gate.mutate(ctx, Operation::Create, Some(&mut object), None).await?;
        if !meta::resource_version(&object).is_empty() {
            return Err(Status::failure(
                500,
                "",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        policy::prepare_for_create(ctx, &mut object);
        let mut errors = validate_name(&object);
        errors.extend(policy::validate_create(ctx, &object));
        refuse(resource, &object, errors)?;
        policy::warn(ctx, &object, None);
        let uid = meta::uid(&object).to_owned();
        let allocation = self.allocation(ctx).await?;
        // Only what is allocated under a condition is ever allocated again.
        let unallocated = allocation.is_some().then(|| object.clone());
        policy::allocate(self, ctx, &mut object, None)?;
        let outcome = async {
            gate.validate(ctx, Operation::Create, Some(&object), None).await?;
            step(ctx, "admit", &object, admitted);
            self.put_named(ctx, resource, object, unallocated, allocation, generated).await
        }
        .await;
        policy::settle(self, ctx, &uid);
        outcome
    }

    /// Writes a new object: under another name if the server chose one that is taken, with other things
    /// allocated if another server was first.
    async fn put_named(
        &self,
        ctx: &RequestContext,
        resource: &Resource,
        mut object: Value,
        unallocated: Option<Value>,
        mut allocation: Option<Compare>,
        generated: bool,
    ) -> Result<Arc<Object>, Status> {
        let mut names = 1;
        loop {
            let stored = SystemTime::now();
            match self.put_new(ctx, resource, &object, allocation.take()).await? {
                Put::Done(created) => {
                    step(ctx, "store", &object, stored);
                    return Ok(created);
                }
                Put::Overtaken => {
                    if let Some(unallocated) = &unallocated {
                        let name = meta::name(&object).to_owned();
                        object.clone_from(unallocated);
                        meta::set(&mut object, "name", name);
                    }
                    allocation = self.allocation(ctx).await?;
                    policy::allocate(self, ctx, &mut object, None)?;
                    continue;
                }
                Put::Taken if !generated => {
                    let name = meta::name(&object);
                    return Err(Status::already_exists(&resource.group, &resource.plural, name));
                }
                Put::Taken if names == NAME_ATTEMPTS => break,
                Put::Taken => names += 1,
            }
            let name = metadata::generate_name(meta::generate_name(&object));
            meta::set(&mut object, "name", name);
            allocation = self.allocation(ctx).await?;
        }
        let mut status =
            Status::already_exists(&resource.group, &resource.plural, meta::name(&object));
        status
            .message
            .push_str(", the server was not able to generate a unique name for the object");
        Err(status)
    }

    /// The condition under which what is allocated from now on is nobody else's: that no server has
    /// allocated anything that the caches here do not show yet.
    async fn allocation(&self, ctx: &RequestContext) -> Result<Option<Compare>, Status> {
        if !ctx.is("", "services") || !ctx.subresource.is_empty() {
            return Ok(None);
        }
        let key = Bytes::from_static(ALLOCATIONS);
        let last = self.inner.store.get(&key, None).await.map_err(store_failure)?;
        let mod_revision = last.map_or(0, |kv| kv.mod_revision);
        self.inner.caches.reached(mod_revision).await;
        Ok(Some(Compare { key, mod_revision }))
    }

    /// Writes a new object.
    async fn put_new(
        &self,
        ctx: &RequestContext,
        resource: &Resource,
        object: &Value,
        allocation: Option<Compare>,
    ) -> Result<Put, Status> {
        let (namespace, name) = (ctx_namespace(resource, ctx, object), meta::name(object));
        let key = resource.key(&namespace, name);
        let (raw, _) = self.encode(resource, object).await?;
        if ctx.dry_run {
            let taken = self.inner.store.get(key.as_bytes(), None).await.map_err(store_failure)?;
            return if taken.is_some() {
                Ok(Put::Taken)
            } else {
                self.decoded(resource, raw, 0).await.map(Put::Done)
            };
        }
        let lease = if is_event(resource) {
            Some(self.inner.leases.event(&self.inner.store).await.map_err(store_failure)?)
        } else {
            None
        };
        let key = Bytes::from(key);
        let mut txn = Txn {
            compares: vec![Compare { key: key.clone(), mod_revision: 0 }],
            ops: vec![Op::Put { key, value: raw.clone(), lease }],
        };
        with_allocation(&mut txn, allocation);
        addresses::along(self, &mut txn, resource, None, Some(object));
        let _writing = self.writing(resource, &raw, object);
        match self.inner.store.txn(txn).await.map_err(store_failure)? {
            TxnOutcome::Committed { revision } => {
                self.committed(resource, &namespace, name, raw, revision).await.map(Put::Done)
            }
            TxnOutcome::Conflict { current, revision } => {
                if current.into_iter().next().flatten().is_some() {
                    return Ok(Put::Taken);
                }
                self.inner.caches.reached(revision).await;
                Ok(Put::Overtaken)
            }
        }
    }

    /// An object as it was stored.
    fn stored(resource: &Resource, raw: Bytes, revision: u64) -> Result<Arc<Object>, Status> {
        let object = if let Some(custom) = &resource.custom {
            Object::from_stored(raw, revision, &custom.selectable)
        } else {
            let selectable = crate::fields::of(&resource.group, &resource.plural);
            Object::from_stored(raw, revision, selectable)
        };
        object.map(Arc::new).map_err(Status::internal)
    }

    /// Tells the caches what they would read of an object that is about to be written.
    fn writing(&self, resource: &Resource, raw: &Bytes, object: &Value) -> Option<Writing<'_>> {
        if resource.custom.is_some() {
            return None;
        }
        let read = crate::fields::of_value(object, &self.cache(resource)?.selectable);
        Some(self.inner.caches.writing(raw, read))
    }

    /// What was committed at `revision`, when the caches have it too: theirs, if nobody changed it since.
    async fn committed(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        raw: Bytes,
        revision: u64,
    ) -> Result<Arc<Object>, Status> {
        self.inner.caches.reached(revision).await;
        let cached = self
            .cache(resource)
            .and_then(|cache| cache.get(&cache_key(resource, namespace, name)))
            .filter(|cached| cached.revision == revision);
        match cached {
            Some(cached) => self.at_version(resource, cached).await,
            None => self.decoded(resource, raw, revision).await,
        }
    }

    /// An object that was just stored, at the version of `resource`.
    async fn decoded(
        &self,
        resource: &Resource,
        raw: Bytes,
        revision: u64,
    ) -> Result<Arc<Object>, Status> {
        self.at_version(resource, Self::stored(resource, raw, revision)?).await
    }

    /// The bytes to store for an object at the version of `resource`.
    async fn encode(&self, resource: &Resource, object: &Value) -> Result<(Bytes, usize), Status> {
        match &resource.custom {
            Some(custom) if custom.storage_version != resource.version => {
                let stored = custom.to_storage(self, object.clone()).await?;
                Ok(object::encode(&stored))
            }
            _ => Ok(object::encode(object)),
        }
    }

    /// The object at the version of `resource`: the same, unless it is a custom one that is stored at
    /// another version.
    pub async fn at_version(
        &self,
        resource: &Resource,
        object: Arc<Object>,
    ) -> Result<Arc<Object>, Status> {
        match &resource.custom {
            Some(custom) => custom.serve(self, resource, object).await,
            None => Ok(object),
        }
    }

    /// Replaces the object named in `ctx`; `metadata.resourceVersion`, when set, must be current.
    pub async fn update(&self, ctx: &RequestContext, object: Value) -> Result<Arc<Object>, Status> {
        let mut change = |_: Option<&Value>| Ok(object.clone());
        let (object, _) =
            self.update_through(ctx, UpdateRules::default(), &Open, &mut change).await?;
        Ok(object)
    }

    /// Changes the object named in `ctx` with `change`, again on each conflict.
    pub async fn update_with(
        &self,
        ctx: &RequestContext,
        change: &(dyn Fn(&mut Value) -> Result<(), Status> + Send + Sync),
    ) -> Result<Arc<Object>, Status> {
        let mut replace = |old: Option<&Value>| {
            let mut object = old.cloned().unwrap_or_default();
            change(&mut object)?;
            Ok(object)
        };
        let (object, _) =
            self.update_through(ctx, UpdateRules::default(), &Open, &mut replace).await?;
        Ok(object)
    }

    fn restless(resource: &Resource, ctx: &RequestContext) -> Status {
        let why = format!("{} {:?} changes too often", resource.qualified(), ctx.name);
        Status::timeout(why, 1)
    }

    /// Changes the object named in `ctx` behind admission; also tells whether it was created.
    pub async fn update_through(
        &self,
        ctx: &RequestContext,
        rules: UpdateRules,
        gate: &dyn Gate,
        change: &mut Change<'_>,
    ) -> Result<(Arc<Object>, bool), Status> {
        let resource = resource_of(ctx)?;
        let key = Bytes::from(resource.key(&ctx.namespace, &ctx.name));
        self.sync().await?;
        let mut current = self.current(resource, ctx);
        for _ in 0..WRITE_ATTEMPTS {
            let Some(before) = current else {
                if !rules.create {
                    return Err(Status::not_found(&resource.group, &resource.plural, &ctx.name));
                }
                let object = change(None)?;
                let created = self.create_through(ctx, object, gate).await?;
                return Ok((created, true));
            };
            let mut old = self.at_version(resource, before.clone()).await?.to_value();
            // An earlier release may have stored it otherwise, which is no change of it.
            policy::complete(ctx, &mut old);
            let mut object = change(Some(&old))?;
            ensure_namespace(resource, ctx, &mut object)?;
            check_version(resource, rules, &mut object, &old)?;
            gate.mutate(ctx, Operation::Update, Some(&mut object), Some(&old)).await?;
            metadata::keep_system_fields(&mut object, &old);
            policy::prepare_for_update(ctx, &mut object, &old);
            let mut errors = metadata::validate_update(&object, &old);
            errors.extend(policy::validate_update(ctx, &object, &old));
            refuse(resource, &object, errors)?;
            policy::warn(ctx, &object, Some(&old));
            let allocation = self.allocation(ctx).await?;
            policy::allocate(self, ctx, &mut object, Some(&old))?;
            apply::ignore_times(&mut object, &old);
            gate.validate(ctx, Operation::Update, Some(&object), Some(&old)).await?;
            let allocation = allocation.filter(|_| object["spec"] != old["spec"]);
            match self.write(ctx, resource, &key, &before, &object, allocation).await? {
                Written::Done(object) => {
                    policy::settle(self, ctx, &object.uid);
                    return Ok((object, false));
                }
                Written::Conflict(now) => current = now,
            }
        }
        Err(Self::restless(resource, ctx))
    }

    fn current(&self, resource: &Resource, ctx: &RequestContext) -> Option<Arc<Object>> {
        self.cache(resource)?.get(&cache_key(resource, &ctx.namespace, &ctx.name))
    }

    /// Writes `object` over `before`, or removes it when its deletion is complete.
    async fn write(
        &self,
        ctx: &RequestContext,
        resource: &Resource,
        key: &Bytes,
        before: &Arc<Object>,
        object: &Value,
        allocation: Option<Compare>,
    ) -> Result<Written, Status> {
        let (raw, _) = self.encode(resource, object).await?;
        let finished = deletion::is_finished(resource, object);
        if raw == before.raw && !finished && !self.is_stale(key).await? {
            return self.at_version(resource, before.clone()).await.map(Written::Done);
        }
        if ctx.dry_run {
            return self.decoded(resource, raw, before.revision).await.map(Written::Done);
        }
        let op = if finished {
            Op::Delete { key: key.clone() }
        } else {
            let lease = if is_event(resource) {
                Some(self.inner.leases.event(&self.inner.store).await.map_err(store_failure)?)
            } else {
                None
            };
            Op::Put { key: key.clone(), value: raw.clone(), lease }
        };
        let compare = Compare { key: key.clone(), mod_revision: before.revision };
        let mut txn = Txn { compares: vec![compare], ops: vec![op] };
        with_allocation(&mut txn, allocation);
        let after = (!finished).then_some(object);
        let _writing = after.and_then(|object| self.writing(resource, &raw, object));
        addresses::along(self, &mut txn, resource, Some(before), after);
        match self.inner.store.txn(txn).await.map_err(store_failure)? {
            TxnOutcome::Committed { revision } => self
                .committed(resource, &ctx.namespace, &ctx.name, raw, revision)
                .await
                .map(Written::Done),
            TxnOutcome::Conflict { current, .. } => {
                Ok(Written::Conflict(self.found(resource, current)?))
            }
        }
    }

    /// Whether the same value is to be written again, because it would be encrypted otherwise today.
    async fn is_stale(&self, key: &[u8]) -> Result<bool, Status> {
        match &self.inner.encryption {
            Some(encryption) => encryption.is_stale(key).await.map_err(store_failure),
            None => Ok(false),
        }
    }

    fn found(
        &self,
        resource: &Resource,
        current: Vec<Option<KeyValue>>,
    ) -> Result<Option<Arc<Object>>, Status> {
        match current.into_iter().next().flatten() {
            Some(kv) => Self::stored(resource, kv.value, kv.mod_revision).map(Some),
            None => Ok(None),
        }
    }

    /// Deletes the object named in `ctx` in the background, honouring finalizers and grace.
    pub async fn delete(&self, ctx: &RequestContext) -> Result<(), Status> {
        self.delete_through(ctx, &DeleteOptions::default(), &Open).await.map(|_| ())
    }

    /// Deletes the object named in `ctx` behind admission.
    pub async fn delete_through(
        &self,
        ctx: &RequestContext,
        options: &DeleteOptions,
        gate: &dyn Gate,
    ) -> Result<Deleted, Status> {
        let resource = resource_of(ctx)?;
        let key = Bytes::from(resource.key(&ctx.namespace, &ctx.name));
        self.sync().await?;
        let mut current = self.current(resource, ctx);
        for _ in 0..WRITE_ATTEMPTS {
            let Some(before) = current else {
                return Err(Status::not_found(&resource.group, &resource.plural, &ctx.name));
            };
            let old = self.at_version(resource, before.clone()).await?.to_value();
            deletion::check_preconditions(resource, &old, options)?;
            gate.mutate(ctx, Operation::Delete, None, Some(&old)).await?;
            gate.validate(ctx, Operation::Delete, None, Some(&old)).await?;
            match deletion::step(resource, &old, options) {
                Step::Pending => return Ok(Deleted::Later(before)),
                Step::Mark(object) => {
                    match self.write(ctx, resource, &key, &before, &object, None).await? {
                        Written::Done(object) => return Ok(Deleted::Later(object)),
                        Written::Conflict(now) => current = now,
                    }
                }
                Step::Remove => {
                    if ctx.dry_run {
                        return Ok(Deleted::Now(before));
                    }
                    let mut txn = Txn::remove(key.clone(), before.revision);
                    addresses::along(self, &mut txn, resource, Some(&before), None);
                    match self.inner.store.txn(txn).await.map_err(store_failure)? {
                        TxnOutcome::Committed { revision } => {
                            self.inner.caches.reached(revision).await;
                            return Ok(Deleted::Now(Arc::new(before.at(revision))));
                        }
                        TxnOutcome::Conflict { current: found, .. } => {
                            current = self.found(resource, found)?;
                        }
                    }
                }
            }
        }
        Err(Self::restless(resource, ctx))
    }
}

/// Makes the transaction one that allocates, if it does.
fn with_allocation(txn: &mut Txn, allocation: Option<Compare>) {
    if let Some(compare) = allocation {
        let (key, value) = (compare.key.clone(), Bytes::new());
        txn.compares.push(compare);
        txn.ops.push(Op::Put { key, value, lease: None });
    }
}

enum Put {
    Done(Arc<Object>),
    /// The name is taken.
    Taken,
    /// Another server has allocated something meanwhile.
    Overtaken,
}

enum Written {
    Done(Arc<Object>),
    Conflict(Option<Arc<Object>>),
}

/// `namespace/name` or `name`.
pub fn cache_key(resource: &Resource, namespace: &str, name: &str) -> String {
    if resource.namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
}

fn resource_of(ctx: &RequestContext) -> Result<&ResourceRef, Status> {
    ctx.resource.as_ref().ok_or_else(|| {
        Status::failure(404, "NotFound", "the server could not find the requested resource")
    })
}

fn is_event(resource: &Resource) -> bool {
    resource.is("", "events")
}

fn ctx_namespace<'a>(
    resource: &Resource,
    ctx: &'a RequestContext,
    object: &'a Value,
) -> std::borrow::Cow<'a, str> {
    if !resource.namespaced {
        return "".into();
    }
    if ctx.namespace.is_empty() {
        meta::namespace(object).into()
    } else {
        ctx.namespace.as_str().into()
    }
}

/// The object's namespace must be the request's; an empty one is filled in.
fn ensure_namespace(
    resource: &Resource,
    ctx: &RequestContext,
    object: &mut Value,
) -> Result<(), Status> {
    let wanted = if resource.namespaced { ctx.namespace.as_str() } else { "" };
    let found = meta::namespace(object);
    if found == wanted {
        return Ok(());
    }
    if !found.is_empty() {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    meta::set(object, "namespace", wanted);
    Ok(())
}

fn check_version(
    resource: &Resource,
    rules: UpdateRules,
    object: &mut Value,
    old: &Value,
) -> Result<(), Status> {
    let (mine, now) = (meta::uid(object), meta::uid(old));
    if !mine.is_empty() && mine != now {
        let why =
            format!("Precondition failed: UID in precondition: {mine}, UID in object meta: {now}");
        return Err(Status::conflict(&resource.group, &resource.plural, meta::name(object), &why));
    }
    let (mine, now) = (meta::resource_version(object), meta::resource_version(old));
    if mine.is_empty() || mine == "0" {
        if rules.versioned {
            let path = field::Path::new("metadata").child("resourceVersion");
            let error = field::Error::invalid(&path, 0, "must be specified for an update");
            // Upstream names the resource here, not the kind.
            return Err(Status::invalid(
                &resource.group,
                &resource.plural,
                meta::name(object),
                &[error],
            ));
        }
        meta::set(object, "resourceVersion", now);
        return Ok(());
    }
    if mine != now {
        return Err(Status::conflict(
            &resource.group,
            &resource.plural,
            meta::name(object),
            "the object has been modified; please apply your changes to the latest version and try again",
        ));
    }
    Ok(())
}

/// A name must be one segment of a path and of a key, whatever the kind's own rules.
fn validate_name(object: &Value) -> field::ErrorList {
    let path = field::Path::new("metadata").child("name");
    let name = meta::name(object);
    if name.is_empty() {
        return vec![field::Error::required(&path, "name or generateName is required")];
    }
    let mistake = match name {
        "." => "may not be '.'",
        ".." => "may not be '..'",
        name if name.contains('/') => "may not contain '/'",
        name if name.contains('%') => "may not contain '%'",
        _ => return Vec::new(),
    };
    vec![field::Error::invalid(&path, name, mistake)]
}

fn refuse(resource: &Resource, object: &Value, errors: field::ErrorList) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(&resource.group, &resource.kind, meta::name(object), &errors))
}

fn step(ctx: &RequestContext, name: &'static str, object: &Value, started: SystemTime) {
    if ctx.is("", "pods") && ctx.subresource.is_empty() && !ctx.dry_run {
        trace::step(name, meta::uid(object), started, "");
    }
}
