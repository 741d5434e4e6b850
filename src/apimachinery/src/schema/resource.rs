//! Resources: what discovery tells about a kind, and the names people may use for it.
//!
//! Sources: the `ShortNames` and `Categories` of `k8s.io/kubernetes/pkg/registry/*/*/storage`, and the
//! group priorities of `k8s.io/kubernetes/pkg/controlplane/apiserver`.

use super::{Arc, Text};

/// A resource of one version, as `/apis/{group}/{version}` lists it.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Empty for the core group.
    pub group: Text,
    /// `v1`, …
    pub version: Text,
    /// `pods`; the path element.
    pub plural: Text,
    /// `pod`.
    pub singular: Text,
    /// `Pod`.
    pub kind: Text,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// API verbs (`create`, `watch`, …), sorted.
    pub verbs: Vec<Text>,
    /// `po`.
    pub short_names: Vec<Text>,
    /// `all`, `api-extensions`.
    pub categories: Vec<Text>,
    /// Sorted by name.
    pub subresources: Vec<Subresource>,
    /// Whether a stock kube-apiserver serves this version without being told to.
    pub enabled: bool,
}

/// A subresource, such as `pods/status`.
#[derive(Clone, Debug)]
pub struct Subresource {
    /// The path element, `status`.
    pub name: Text,
    /// Group of the kind it speaks; that of the resource except for `Scale`, `Eviction`, `TokenRequest`.
    pub group: Text,
    /// Version of the kind.
    pub version: Text,
    /// The kind it speaks.
    pub kind: Text,
    /// API verbs, sorted.
    pub verbs: Vec<Text>,
    /// Whether it is a tunnel (`exec`, `proxy`, …) rather than an object.
    pub connect: bool,
}

/// A group with its versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Empty for the core group.
    pub name: Text,
    /// Preferred first.
    pub versions: Vec<Text>,
}

impl Resource {
    /// What resources are sorted and looked up by.
    pub fn key(&self) -> (&str, &str, &str) {
        (&self.group, &self.version, &self.plural)
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods` or `deployments.apps`, as error messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// The kind of a collection of them.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// The subresource called `name`.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether `verb` is served.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// Plural, short names, categories. Resources without either are not listed.
const NAMES: &[(&str, &str, &[&str], &[&str])] = &[
    ("", "componentstatuses", &["cs"], &[]),
    ("", "configmaps", &["cm"], &[]),
    ("", "endpoints", &["ep"], &[]),
    ("", "events", &["ev"], &[]),
    ("", "limitranges", &["limits"], &[]),
    ("", "namespaces", &["ns"], &[]),
    ("", "nodes", &["no"], &[]),
    ("", "persistentvolumeclaims", &["pvc"], &[]),
    ("", "persistentvolumes", &["pv"], &[]),
    ("", "pods", &["po"], &["all"]),
    ("", "replicationcontrollers", &["rc"], &["all"]),
    ("", "resourcequotas", &["quota"], &[]),
    ("", "serviceaccounts", &["sa"], &[]),
    ("", "services", &["svc"], &["all"]),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicies", &[], &["api-extensions"]),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicybindings", &[], &["api-extensions"]),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", &[], &["api-extensions"]),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", &[], &["api-extensions"]),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings", &[], &["api-extensions"]),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", &[], &["api-extensions"]),
    ("apiextensions.k8s.io", "customresourcedefinitions", &["crd", "crds"], &["api-extensions"]),
    ("apiregistration.k8s.io", "apiservices", &[], &["api-extensions"]),
    ("apps", "daemonsets", &["ds"], &["all"]),
    ("apps", "deployments", &["deploy"], &["all"]),
    ("apps", "replicasets", &["rs"], &["all"]),
    ("apps", "statefulsets", &["sts"], &["all"]),
    ("autoscaling", "horizontalpodautoscalers", &["hpa"], &["all"]),
    ("batch", "cronjobs", &["cj"], &["all"]),
    ("batch", "jobs", &[], &["all"]),
    ("certificates.k8s.io", "certificatesigningrequests", &["csr"], &[]),
    ("events.k8s.io", "events", &["ev"], &[]),
    ("networking.k8s.io", "ingresses", &["ing"], &[]),
    ("networking.k8s.io", "ipaddresses", &["ip"], &[]),
    ("networking.k8s.io", "networkpolicies", &["netpol"], &[]),
    ("policy", "poddisruptionbudgets", &["pdb"], &[]),
    ("scheduling.k8s.io", "priorityclasses", &["pc"], &[]),
    ("storage.k8s.io", "storageclasses", &["sc"], &[]),
    ("storage.k8s.io", "volumeattributesclasses", &["vac"], &[]),
];

/// Short names and categories of a built-in resource.
pub(super) fn names(group: &str, plural: &str) -> (Vec<Text>, Vec<Text>) {
    let text = |list: &'static [&'static str]| list.iter().map(|s| Text::Borrowed(s)).collect();
    NAMES
        .iter()
        .find(|(g, p, ..)| *g == group && *p == plural)
        .map_or_else(Default::default, |(_, _, short, categories)| (text(short), text(categories)))
}

/// Groups in the order discovery lists them; those not named here follow by name.
const GROUP_ORDER: &[&str] = &[
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "resource.k8s.io",
    "storagemigration.k8s.io",
];

/// Whether Kubernetes itself serves this group.
pub fn is_builtin_group(name: &str) -> bool {
    GROUP_ORDER.contains(&name)
}

pub(super) fn groups<'a>(resources: impl Iterator<Item = &'a Arc<Resource>>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for resource in resources {
        let known = groups.iter_mut().find(|g| g.name == resource.group);
        match known {
            Some(group) if group.versions.contains(&resource.version) => {}
            Some(group) => group.versions.push(resource.version.clone()),
            None => groups.push(Group {
                name: resource.group.clone(),
                versions: vec![resource.version.clone()],
            }),
        }
    }
    let rank =
        |name: &str| GROUP_ORDER.iter().position(|g| *g == name).unwrap_or(GROUP_ORDER.len());
    groups.sort_by(|a, b| (rank(&a.name), &a.name).cmp(&(rank(&b.name), &b.name)));
    for group in &mut groups {
        group.versions.sort_by_key(|v| std::cmp::Reverse(stability(v)));
    }
    groups
}

/// The rank of a version: stable before beta before alpha, then higher numbers first
/// (`k8s.io/apimachinery/pkg/version.CompareKubeAwareVersionStrings`). Greater is more preferred;
/// a name that is no Kubernetes version ranks lowest.
pub fn stability(version: &str) -> (u8, u64, u64) {
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let Ok(major) = rest[..digits].parse() else { return (0, 0, 0) };
    let suffix = &rest[digits..];
    if suffix.is_empty() {
        return (3, major, 0);
    }
    let (rank, minor) = if let Some(minor) = suffix.strip_prefix("beta") {
        (2, minor)
    } else if let Some(minor) = suffix.strip_prefix("alpha") {
        (1, minor)
    } else {
        return (0, 0, 0);
    };
    minor.parse().map_or((0, 0, 0), |minor| (rank, major, minor))
}

/// The plural that Kubernetes guesses for a kind (`meta.UnsafeGuessKindToResource`).
pub fn plural_of(kind: &str) -> String {
    let singular = kind.to_lowercase();
    if singular == "endpoints" {
        return singular;
    }
    match singular.as_bytes().last() {
        Some(b's') => format!("{singular}es"),
        Some(b'y') => format!("{}ies", &singular[..singular.len() - 1]),
        _ => format!("{singular}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_rank_as_upstream() {
        let mut versions =
            ["v1alpha1", "v2", "v10beta3", "v1", "foo", "v11", "v3beta1", "v2beta10"];
        versions.sort_by_key(|v| std::cmp::Reverse(stability(v)));
        assert_eq!(
            versions,
            ["v11", "v2", "v1", "v10beta3", "v3beta1", "v2beta10", "v1alpha1", "foo"]
        );
    }

    #[test]
    fn plurals_are_guessed() {
        for (kind, plural) in [
            ("Pod", "pods"),
            ("Ingress", "ingresses"),
            ("NetworkPolicy", "networkpolicies"),
            ("Endpoints", "endpoints"),
        ] {
            assert_eq!(plural_of(kind), plural);
        }
    }
}
