//! The resources that are served, found by path, by group and by kind.

use std::collections::HashMap;
use std::sync::OnceLock;

use apimachinery::schema::{self, Group};

use crate::discovery::Documents;
use crate::openapi::OpenApi;
use crate::resource::{Resource, ResourceRef};
use crate::subresources::metrics;

/// The table of served resources; immutable, replaced as a whole.
#[derive(Debug, Default)]
pub struct Served {
    resources: Vec<ResourceRef>,
    by_path: HashMap<String, ResourceRef>,
    /// By plural, one of each group that has it.
    preferred: HashMap<String, Vec<ResourceRef>>,
    groups: Vec<Group>,
    /// Versions that are off as they come.
    extra: Vec<String>,
    documents: OnceLock<Documents>,
    openapi: OpenApi,
}

fn path_key(group: &str, version: &str, plural: &str) -> String {
    let mut key = String::with_capacity(group.len() + version.len() + plural.len() + 2);
    key.push_str(group);
    key.push('/');
    key.push_str(version);
    key.push('/');
    key.push_str(plural);
    key
}

impl Served {
    /// The built-in resources that a stock API server has on.
    pub fn builtin() -> Self {
        Self::with(Vec::new())
    }

    /// These, and versions of theirs that are off as they come: `--runtime-config`'s `group/version=true`. Nothing
    /// converts between versions, so that one whose resources are served already is none of them.
    ///
    /// # Errors
    /// A version that cannot be turned on.
    pub fn enabling(wanted: &[String]) -> Result<Self, String> {
        let mut extra: Vec<String> = Vec::new();
        let builtin = schema::builtin().resources();
        let is = |r: &schema::Resource, version: &str| {
            version.split_once('/') == Some((&*r.group, &*r.version))
        };
        for version in wanted {
            let version = version.strip_suffix("=true").unwrap_or(version);
            let on = |r: &schema::Resource| r.enabled || extra.iter().any(|v| is(r, v));
            let same = |a: &schema::Resource, b: &schema::Resource| {
                (&a.group, &a.plural) == (&b.group, &b.plural)
            };
            let mut of_it = builtin.iter().filter(|r| is(r, version)).peekable();
            if of_it.peek().is_none() {
                return Err(format!("{version:?} is no version of the API that can be turned on"));
            }
            if let Some(r) = of_it.find(|r| builtin.iter().any(|o| on(o) && same(o, r))) {
                return Err(format!("{version:?} has {}, which another version has too", r.plural));
            }
            extra.push(version.to_owned());
        }
        Ok(Self::with(extra))
    }

    /// What is served without custom resources.
    pub fn without_custom(&self) -> Self {
        Self::with(self.extra.clone())
    }

    fn with(extra: Vec<String>) -> Self {
        let facts = schema::builtin();
        let on = |r: &schema::Resource| {
            r.enabled
                || extra.iter().any(|version| *version == format!("{}/{}", r.group, r.version))
        };
        let resources: Vec<ResourceRef> = facts
            .resources()
            .iter()
            .filter(|r| on(r))
            .map(|r| ResourceRef::new(Resource::from_facts(r)))
            .chain(metrics::resources().map(ResourceRef::new))
            .collect();
        let mut order = facts.groups(on);
        order.push(Group { name: metrics::GROUP.into(), versions: vec![metrics::VERSION.into()] });
        let mut served = Self::default();
        for resource in &resources {
            let key = path_key(&resource.group, &resource.version, &resource.plural);
            served.by_path.insert(key, resource.clone());
        }
        for group in &order {
            for version in &group.versions {
                for resource in
                    resources.iter().filter(|r| r.group == group.name && r.version == *version)
                {
                    let known = served.preferred.entry(resource.plural.clone()).or_default();
                    if !known.iter().any(|other| other.group == resource.group) {
                        known.push(resource.clone());
                    }
                }
            }
        }
        served.resources = resources;
        served.groups = order;
        served.extra = extra;
        served
    }

    /// These, and custom resources: of each the served versions, and the one at rest.
    pub fn with_custom(mut self, served: Vec<ResourceRef>, at_rest: Vec<ResourceRef>) -> Self {
        for resource in served {
            let key = path_key(&resource.group, &resource.version, &resource.plural);
            let known = self.groups.iter_mut().find(|g| g.name == resource.group);
            match known {
                Some(group) => {
                    if !group.versions.iter().any(|v| *v == resource.version) {
                        group.versions.push(resource.version.clone().into());
                        group.versions.sort_by_key(|v| std::cmp::Reverse(schema::stability(v)));
                    }
                }
                None => self.groups.push(Group {
                    name: resource.group.clone().into(),
                    versions: vec![resource.version.clone().into()],
                }),
            }
            self.by_path.insert(key, resource.clone());
            self.resources.push(resource);
        }
        let builtin = self.groups.iter().position(|g| !schema::is_builtin_group(&g.name));
        if let Some(first) = builtin {
            self.groups[first..].sort_by(|a, b| a.name.cmp(&b.name));
        }
        self.resources.sort_by(|a, b| {
            let key = |r: &ResourceRef| (r.group.clone(), r.version.clone(), r.plural.clone());
            key(a).cmp(&key(b))
        });
        for resource in at_rest {
            let known = self.preferred.entry(resource.plural.clone()).or_default();
            known.retain(|other| other.group != resource.group);
            known.push(resource);
        }
        self
    }

    /// All of them, by group, version and plural.
    pub fn all(&self) -> &[ResourceRef] {
        &self.resources
    }

    /// The resource at a path.
    pub fn at(&self, group: &str, version: &str, plural: &str) -> Option<&ResourceRef> {
        self.by_path.get(path_key(group, version, plural).as_str())
    }

    /// The resource at its group's preferred version that has it, which is also the version at rest.
    pub fn preferred(&self, group: &str, plural: &str) -> Option<&ResourceRef> {
        self.preferred.get(plural)?.iter().find(|resource| resource.group == group)
    }

    /// The custom resources at the versions their objects are stored at.
    pub fn at_rest(&self) -> impl Iterator<Item = &ResourceRef> {
        self.preferred.values().flatten().filter(|resource| resource.custom.is_some())
    }

    /// The resource of a kind.
    pub fn of_kind(&self, group: &str, version: &str, kind: &str) -> Option<&ResourceRef> {
        self.resources.iter().find(|r| r.group == group && r.version == version && r.kind == kind)
    }

    /// The groups, in the order discovery lists them, preferred version first.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The resources of one version.
    pub fn in_version<'a>(
        &'a self,
        group: &'a str,
        version: &'a str,
    ) -> impl Iterator<Item = &'a ResourceRef> {
        self.resources.iter().filter(move |r| r.group == group && r.version == version)
    }

    /// The discovery documents.
    pub fn openapi(&self) -> &OpenApi {
        &self.openapi
    }

    /// Discovery's aggregated documents.
    pub fn documents(&self) -> &Documents {
        self.documents.get_or_init(|| Documents::new(self))
    }

    /// Whether anything is served in this group and version.
    pub fn has_version(&self, group: &str, version: &str) -> bool {
        self.resources.iter().any(|r| r.group == group && r.version == version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_are_off_can_be_turned_on() {
        let enabling = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|version| (*version).to_owned()).collect();
            Served::enabling(&wanted)
        };
        let (group, version) = ("certificates.k8s.io", "v1beta1");
        assert!(!Served::builtin().has_version(group, version));
        for text in ["certificates.k8s.io/v1beta1", "certificates.k8s.io/v1beta1=true"] {
            let served = enabling(&[text]).expect("it can be turned on").without_custom();
            assert!(served.at(group, version, "podcertificaterequests").is_some());
            let of_group = served.groups().iter().find(|g| g.name == group).expect("the group");
            assert_eq!(of_group.versions, ["v1", "v1beta1"]);
        }
        let cases: [(&[&str], &str); 4] = [
            (&["v9"], "\"v9\" is no version of the API"),
            (&["certificates.k8s.io/v1beta1=false"], "is no version of the API"),
            (&["apps/v1"], "\"apps/v1\" has controllerrevisions, which another version has too"),
            (
                &["certificates.k8s.io/v1alpha1", "certificates.k8s.io/v1beta1"],
                "\"certificates.k8s.io/v1beta1\" has clustertrustbundles, which",
            ),
        ];
        for (wanted, told) in cases {
            let error = enabling(wanted).expect_err("it cannot be turned on");
            assert!(error.contains(told), "{error}");
        }
    }
}
