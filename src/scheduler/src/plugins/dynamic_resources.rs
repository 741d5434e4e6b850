//! DynamicResources: a pod goes where the devices are that its claims ask for.
//!
//! Source: `pkg/scheduler/framework/plugins/dynamicresources/dynamicresources.go`.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PodResourceClaim};
use k8s_openapi::api::resource::v1::{
    AllocationResult, ResourceClaim, ResourceClaimConsumerReference,
};

use crate::allocation::{Wish, allocate};
use crate::cluster::Cluster;
use crate::devices::{Devices, Taken};
use crate::extended_resources::{self, Extended, claimed_on};
use crate::framework::{Event, Filter, Plugin, Point, Rejection};
use crate::node::NodeInfo;
use crate::plugins::selects;
use crate::pod::PodInfo;
use crate::schedule::Unfit;
use crate::volumes::Changed;

/// Why a pod cannot go where the devices of its claim are not.
const UNAVAILABLE: &str = "resourceclaim not available on the node";
/// How many pods can have one claim.
const RESERVED_MAX: usize = 256;

pub struct DynamicResources;

/// What the pod's entry stands for.
enum Named {
    /// A claim of this name.
    Claim(String),
    /// A claim that is still to be made.
    Awaited,
    /// None is needed.
    Nothing,
}

fn claim_name(pod: &PodInfo, entry: &PodResourceClaim) -> Named {
    if let Some(name) = &entry.resource_claim_name {
        return Named::Claim(name.clone());
    }
    let statuses = pod.pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
    match statuses.into_iter().find(|status| status.name == entry.name) {
        Some(status) => status.resource_claim_name.clone().map_or(Named::Nothing, Named::Claim),
        None => Named::Awaited,
    }
}

fn is_reserved(claim: &ResourceClaim, pod: &PodInfo) -> bool {
    let users = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    users.into_iter().any(|user| user.uid == pod.uid)
}

/// The claims of the pod.
fn claims(pod: &PodInfo, devices: &Devices) -> Result<Vec<Arc<ResourceClaim>>, Rejection> {
    let mut found = Vec::new();
    for entry in pod.spec().resource_claims.iter().flatten() {
        let name = match claim_name(pod, entry) {
            Named::Claim(name) => name,
            Named::Nothing => continue,
            Named::Awaited => {
                let reason = format!(
                    "pod {:?}: ResourceClaim not created yet for {}",
                    pod.key(),
                    entry.name
                );
                return Err(Rejection::unresolvable(reason));
            }
        };
        let Some(claim) = devices.claim(&pod.namespace, &name) else {
            let reason = format!("resourceclaim {name:?} not found");
            return Err(Rejection::unresolvable(reason));
        };
        if claim.metadata.deletion_timestamp.is_some() {
            let reason = format!("resourceclaim {name:?} is being deleted");
            return Err(Rejection::unresolvable(reason));
        }
        let owner = claim.metadata.owner_references.iter().flatten();
        let owner = owner.into_iter().find(|owner| owner.controller == Some(true));
        if entry.resource_claim_template_name.is_some()
            && owner.is_none_or(|owner| owner.uid != pod.uid)
        {
            let reason = format!(
                "ResourceClaim {}/{name} was not created for pod {} (pod is not owner)",
                pod.namespace,
                pod.key()
            );
            return Err(Rejection::unresolvable(reason));
        }
        let users = claim.status.as_ref().and_then(|status| status.reserved_for.as_ref());
        if users.is_some_and(|users| users.len() >= RESERVED_MAX) && !is_reserved(claim, pod) {
            return Err(Rejection::unschedulable("resourceclaim in use"));
        }
        found.push(Arc::clone(claim));
    }
    Ok(found)
}

fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

struct Claimed<'a> {
    /// Claims that have their devices.
    allocated: Vec<Arc<ResourceClaim>>,
    /// Claims that have none yet, and what they want.
    open: Vec<Arc<ResourceClaim>>,
    wishes: Vec<Wish>,
    /// Extended resources that classes of devices stand for.
    backed: BTreeSet<String>,
    pod: &'a PodInfo,
    devices: &'a Devices,
    taken: Taken,
}

fn claimed<'a>(pod: &'a PodInfo, cluster: &'a Cluster) -> Result<Option<Claimed<'a>>, Rejection> {
    let devices = cluster.devices.as_ref();
    let (allocated, open): (Vec<_>, Vec<_>) =
        claims(pod, devices)?.into_iter().partition(|claim| allocation(claim).is_some());
    let backed = extended_resources::backed(pod, devices);
    if allocated.is_empty() && open.is_empty() && backed.is_empty() {
        return Ok(None);
    }
    if !backed.is_empty() && extended_resources::stale(pod, devices).is_some() {
        // It is removed when the pod is given back, and the pod tried again then.
        return Err(Rejection::unschedulable("cannot schedule extended resource claim"));
    }
    let wishes: Result<Vec<Wish>, String> =
        open.iter().map(|claim| Wish::new(Arc::clone(claim), devices)).collect();
    let wishes = wishes.map_err(Rejection::unresolvable)?;
    let idle = open.is_empty() && backed.is_empty();
    let taken = if idle { Taken::default() } else { devices.taken() };
    Ok(Some(Claimed { allocated, open, wishes, backed, pod, devices, taken }))
}

/// What a pod's claims come to on a node.
#[derive(Clone, Debug, Default)]
pub struct Reservation {
    /// The claims, as they will be: with their devices, and reserved for the pod.
    pub claims: Vec<Arc<ResourceClaim>>,
    /// The claim that is to be made for extended resources.
    pub extended: Option<Extended>,
}

/// How the pod's claims are satisfied on `node` (Reserve).
pub fn plan(pod: &PodInfo, cluster: &Cluster, node: &NodeInfo) -> Reservation {
    if !asks_for_devices(pod) {
        return Reservation::default();
    }
    let Ok(Some(claimed)) = claimed(pod, cluster) else { return Reservation::default() };
    let (mut results, extended) = claimed.allocate(node).unwrap_or_default();
    let extended = extended.map(|mut extended| {
        let status = extended.claim.status.get_or_insert_default();
        status.allocation = results.pop();
        status.reserved_for = Some(vec![consumer(pod)]);
        extended
    });
    let open = claimed.open.iter().zip(results).map(|(claim, result)| (claim, Some(result)));
    let all = claimed.allocated.iter().map(|claim| (claim, None)).chain(open);
    let kept = all.map(|(claim, result)| {
        let mut claim = ResourceClaim::clone(claim);
        let status = claim.status.get_or_insert_default();
        if result.is_some() {
            status.allocation = result;
        }
        let users = status.reserved_for.get_or_insert_default();
        if !users.iter().any(|user| user.uid == pod.uid) {
            users.push(consumer(pod));
        }
        Arc::new(claim)
    });
    Reservation { claims: kept.collect(), extended }
}

/// What can be done for a pod that fits nowhere (PostFilter): a claim whose devices are where the pod cannot go, and
/// that nobody else has, may give them back. Says what is done.
pub fn give_back(
    pod: &PodInfo,
    cluster: &Cluster,
    unfit: &Unfit,
) -> (&'static str, Option<Arc<ResourceClaim>>) {
    let own = if asks_for_devices(pod) { claimed(pod, cluster).ok().flatten() } else { None };
    let Some(claimed) = own else { return ("no new claims to deallocate", None) };
    let elsewhere = |claim: &ResourceClaim| {
        let selector = allocation(claim).and_then(|found| found.node_selector.as_ref());
        selector.is_some_and(|selector| {
            unfit.rejections.iter().any(|(name, rejection)| {
                rejection.reasons.iter().any(|reason| reason == UNAVAILABLE)
                    && cluster
                        .node(name)
                        .is_some_and(|n| !selects(&selector.node_selector_terms, n))
            })
        })
    };
    let is_free = |claim: &ResourceClaim| {
        let users = claim.status.as_ref().and_then(|status| status.reserved_for.as_deref());
        match users.unwrap_or_default() {
            [] => true,
            [one] => one.uid == pod.uid,
            _ => false,
        }
    };
    match claimed.allocated.iter().find(|claim| elsewhere(claim) && is_free(claim)) {
        Some(claim) => ("deallocation of ResourceClaim completed", Some(Arc::clone(claim))),
        None => ("still not schedulable", None),
    }
}

fn consumer(pod: &PodInfo) -> ResourceClaimConsumerReference {
    ResourceClaimConsumerReference {
        api_group: None,
        name: pod.name.clone(),
        resource: "pods".into(),
        uid: pod.uid.clone(),
    }
}

/// Whether devices may have to be found for the pod.
fn asks_for_devices(pod: &PodInfo) -> bool {
    pod.spec().resource_claims.as_ref().is_some_and(|claims| !claims.is_empty())
        || pod.requests.scalars.keys().any(|name| extended_resources::may_be_backed(name))
}

impl Claimed<'_> {
    /// What the open claims get on the node, and then the claim for the extended resources that the
    /// node does not have of its own, if there are such.
    fn allocate(
        &self,
        node: &NodeInfo,
    ) -> Result<(Vec<AllocationResult>, Option<Extended>), Cow<'static, str>> {
        let resources = claimed_on(&self.backed, node);
        if resources.is_empty() {
            return Ok((allocate(&self.wishes, self.devices, &self.taken, node)?, None));
        }
        let extended = extended_resources::claim(self.pod, &resources, self.devices);
        let own = [Wish::new(Arc::new(extended.claim.clone()), self.devices)?];
        let all: Vec<&Wish> = self.wishes.iter().chain(&own).collect();
        Ok((allocate(&all, self.devices, &self.taken, node)?, Some(extended)))
    }
}

/// Whether the change of a claim gives devices back, or is one of the pod's own claim that it may have waited for.
fn claim_may_help(claim: &Changed<ResourceClaim>, pod: &PodInfo) -> bool {
    let Changed { old, new } = claim;
    let freed =
        old.as_ref().is_some_and(|old| allocation(old).is_some() && allocation(new).is_none());
    let own = || {
        let meta = &new.metadata;
        meta.namespace.as_deref() == Some(&pod.namespace)
            && pod.spec().resource_claims.iter().flatten().any(|entry| {
                matches!(claim_name(pod, entry), Named::Claim(name) if Some(&name) == meta.name.as_ref())
            })
    };
    freed || (own() && old.as_ref().is_none_or(|old| old.status != new.status))
}

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }

    fn points(&self) -> &'static [Point] {
        &[
            Point::PreEnqueue,
            Point::PreFilter,
            Point::Filter,
            Point::PostFilter,
            Point::Reserve,
            Point::PreBind,
        ]
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        if !asks_for_devices(pod) {
            return Ok(None);
        }
        Ok(claimed(pod, cluster)?.map(|claimed| Box::new(claimed) as Box<dyn Filter>))
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        match event {
            Event::DevicesChanged | Event::NodeAdded(_) => true,
            Event::DeviceClaimChanged(claim) => claim_may_help(claim, pod),
            Event::NodeUpdated { old, new } => {
                let allocatable = |node: &Node| {
                    node.status.as_ref().and_then(|status| status.allocatable.clone())
                };
                old.metadata.labels != new.metadata.labels || allocatable(old) != allocatable(new)
            }
            Event::Itself { old, new } => {
                let told = |pod: &PodInfo| {
                    pod.pod.status.as_ref().and_then(|s| s.resource_claim_statuses.clone())
                };
                told(old) != told(new)
            }
            _ => false,
        }
    }
}

impl Filter for Claimed<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        for claim in &self.allocated {
            let selector = allocation(claim).and_then(|a| a.node_selector.as_ref());
            if selector.is_some_and(|selector| !selects(&selector.node_selector_terms, node)) {
                return Err(Rejection::unresolvable(UNAVAILABLE));
            }
        }
        let idle = self.open.is_empty() && self.backed.is_empty();
        if !idle {
            self.allocate(node).map_err(Rejection::unresolvable)?;
        }
        Ok(())
    }
}
