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
    preferred: HashMap<String, ResourceRef>,
    groups: Vec<Group>,
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
        let facts = schema::builtin();
        let resources: Vec<ResourceRef> = facts
            .resources()
            .iter()
            .filter(|r| r.enabled)
            .map(|r| ResourceRef::new(Resource::from_facts(r)))
            .chain(metrics::resources().map(ResourceRef::new))
            .collect();
        let mut order = facts.groups(|r| r.enabled);
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
                    served
                        .preferred
                        .entry(format!("{}/{}", group.name, resource.plural))
                        .or_insert_with(|| resource.clone());
                }
            }
        }
        served.resources = resources;
        served.groups = order;
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
            self.preferred.insert(format!("{}/{}", resource.group, resource.plural), resource);
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
        self.preferred.get(format!("{group}/{plural}").as_str())
    }

    /// The custom resources at the versions their objects are stored at.
    pub fn at_rest(&self) -> impl Iterator<Item = &ResourceRef> {
        self.preferred.values().filter(|resource| resource.custom.is_some())
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
