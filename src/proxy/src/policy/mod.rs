//! NetworkPolicies, made into the node network's table of who may speak with whom.
//!
//! Source: the API reference of NetworkPolicy v1. What it leaves open is decided like this: the node
//! itself and what comes through its published ports may always reach a pod, and a pod may always
//! reach its node (so the cluster's DNS and API) and itself; pods in the node's network are neither
//! isolated nor peers; connections that exist when a policy arrives go on.

mod peers;
mod ports;
mod selector;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use kube::ResourceExt;
use netns::{Member, PolicyRule, PolicyTable};

use peers::Peers;

/// What policies are about: pods with their labels, and the labels of namespaces.
pub(crate) struct World<'a> {
    pods: Vec<&'a Pod>,
    namespaces: HashMap<String, &'a BTreeMap<String, String>>,
}

impl<'a> World<'a> {
    fn new(pods: &'a [Arc<Pod>], namespaces: &'a [Arc<Namespace>]) -> Self {
        let pods = pods.iter().map(AsRef::as_ref).filter(|pod| is_networked(pod)).collect();
        let namespaces = namespaces.iter().map(|ns| (ns.name_any(), ns.labels())).collect();
        Self { pods, namespaces }
    }
}

/// Whether the pod has, or will have, an address of its own.
fn is_networked(pod: &Pod) -> bool {
    let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !on_host && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// What a pod is called in the table.
pub(crate) fn member_name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// The table for these objects.
pub fn policy_table(
    policies: &[Arc<NetworkPolicy>],
    pods: &[Arc<Pod>],
    namespaces: &[Arc<Namespace>],
) -> PolicyTable {
    if policies.is_empty() {
        return PolicyTable { others_are_free: true, ..PolicyTable::default() };
    }
    let world = World::new(pods, namespaces);
    let mut profiles = Profiles::default();
    let mut members = BTreeMap::new();
    for pod in &world.pods {
        let mut ingress: Option<Vec<PolicyRule>> = None;
        let mut egress: Option<Vec<PolicyRule>> = None;
        for policy in policies {
            let Some(spec) = &policy.spec else { continue };
            let selected = policy.metadata.namespace == pod.metadata.namespace
                && spec.pod_selector.as_ref().is_none_or(|s| selector::selects(s, pod.labels()));
            if !selected {
                continue;
            }
            let namespace = policy.namespace().unwrap_or_default();
            let (inward, outward) = directions(spec);
            if inward {
                let rules = ingress.get_or_insert_default();
                for rule in spec.ingress.iter().flatten() {
                    let peers = Peers::of(rule.from.as_deref(), &namespace, &world);
                    rules.extend(ports::ingress(&peers, rule.ports.as_deref(), pod));
                }
            }
            if outward {
                let rules = egress.get_or_insert_default();
                for rule in spec.egress.iter().flatten() {
                    let peers = Peers::of(rule.to.as_deref(), &namespace, &world);
                    rules.extend(ports::egress(&peers, rule.ports.as_deref(), &world));
                }
            }
        }
        let addresses = pod.status.iter().flat_map(|status| {
            let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
            all.chain(status.pod_ip.as_deref()).filter_map(|text| text.parse().ok())
        });
        let mut addresses: Vec<_> = addresses.collect();
        addresses.sort_unstable();
        addresses.dedup();
        let member = Member {
            addresses,
            ingress: ingress.map(|rules| profiles.number(rules)),
            egress: egress.map(|rules| profiles.number(rules)),
        };
        members.insert(member_name(pod), member);
    }
    PolicyTable { profiles: profiles.list, members, others_are_free: false }
}

/// Whether a policy isolates for ingress and for egress: as it says, or by default always for ingress
/// and for egress if it has rules for it.
fn directions(spec: &NetworkPolicySpec) -> (bool, bool) {
    match spec.policy_types.as_deref() {
        Some(types) if !types.is_empty() => {
            let has = |wanted| types.iter().any(|kind| kind == wanted);
            (has("Ingress"), has("Egress"))
        }
        _ => (true, spec.egress.as_ref().is_some_and(|rules| !rules.is_empty())),
    }
}

/// Pods under the same rules share a profile.
#[derive(Default)]
struct Profiles {
    list: Vec<Vec<PolicyRule>>,
    numbers: BTreeMap<Vec<PolicyRule>, usize>,
}

impl Profiles {
    fn number(&mut self, mut rules: Vec<PolicyRule>) -> usize {
        rules.sort_unstable();
        rules.dedup();
        if let Some(number) = self.numbers.get(&rules) {
            return *number;
        }
        let number = self.list.len();
        self.list.push(rules.clone());
        self.numbers.insert(rules, number);
        number
    }
}

#[cfg(test)]
mod tests;
