//! The resources a server has, and what people call them.
//!
//! Sources: `k8s.io/client-go/restmapper` (priorities, short names), `k8s.io/api/apidiscovery/v2`.

use serde_json::Value;

use super::api::{Api, JSON};
use super::error::Error;

const AGGREGATED: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// A resource of one group and version.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resource {
    /// Empty for the core group.
    pub group: String,
    /// `v1`, …
    pub version: String,
    /// `pods`.
    pub plural: String,
    /// `pod`.
    pub singular: String,
    /// `Pod`.
    pub kind: String,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// `get`, `list`, …
    pub verbs: Vec<String>,
    /// `po`.
    pub short_names: Vec<String>,
    /// `all`.
    pub categories: Vec<String>,
}

impl Resource {
    /// The path of one object, or of all when `name` is empty; `namespace` is left out where it has no sense.
    pub fn path(&self, namespace: Option<&str>, name: &str) -> String {
        let mut path = match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        if let Some(namespace) = namespace.filter(|_| self.namespaced) {
            path.push_str(&format!("/namespaces/{namespace}"));
        }
        path.push_str(&format!("/{}", self.plural));
        if !name.is_empty() {
            // Names of roles have colons, which need no code.
            path.push_str(&format!("/{}", escape(name).replace("%3A", ":")));
        }
        path
    }

    /// `pod` or `deployment.apps`, as printed before an object's name.
    pub fn word(&self) -> String {
        word(&self.kind, &self.group)
    }

    /// `pods` or `deployments.apps`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Whether `verb` is served.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// `pod` or `deployment.apps`.
pub fn word(kind: &str, group: &str) -> String {
    let kind = kind.to_lowercase();
    if group.is_empty() { kind } else { format!("{kind}.{group}") }
}

/// Text for a path or query.
pub fn escape(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

/// Everything a server has, preferred groups and versions first.
#[derive(Debug, Default)]
pub struct Kinds {
    resources: Vec<Resource>,
    /// Group and version that the group prefers.
    preferred: Vec<(String, String)>,
}

impl Kinds {
    /// Asks the server.
    pub async fn discover(api: &Api) -> Result<Self, Error> {
        let mut kinds = Self::default();
        for root in ["/api", "/apis"] {
            let answer = api.json(http::Method::GET, root, AGGREGATED, None).await?;
            if answer["kind"] == "APIGroupDiscoveryList" {
                kinds.aggregated(&answer);
            } else {
                kinds.one_by_one(api, root, &answer).await?;
            }
        }
        Ok(kinds)
    }

    fn aggregated(&mut self, list: &Value) {
        for group in items(&list["items"]) {
            let name = text(&group["metadata"]["name"]);
            for (index, version) in items(&group["versions"]).enumerate() {
                let number = text(&version["version"]);
                if index == 0 {
                    self.preferred.push((name.clone(), number.clone()));
                }
                let resources =
                    items(&version["resources"]).filter(|r| !r["responseKind"]["kind"].is_null());
                self.resources.extend(resources.map(|resource| {
                    let own = &resource["responseKind"];
                    Resource {
                        group: name.clone(),
                        version: number.clone(),
                        plural: text(&resource["resource"]),
                        singular: text(&resource["singularResource"]),
                        kind: text(&own["kind"]),
                        namespaced: resource["scope"] == "Namespaced",
                        verbs: texts(&resource["verbs"]),
                        short_names: texts(&resource["shortNames"]),
                        categories: texts(&resource["categories"]),
                    }
                }));
            }
        }
    }

    /// From a server that lists each group's versions only.
    async fn one_by_one(&mut self, api: &Api, root: &str, answer: &Value) -> Result<(), Error> {
        let mut found: Vec<(String, String)> = Vec::new();
        for version in texts(&answer["versions"]) {
            found.push((String::new(), version));
        }
        for group in items(&answer["groups"]) {
            let name = text(&group["name"]);
            let first = text(&group["preferredVersion"]["version"]);
            let others = items(&group["versions"]).map(|v| text(&v["version"]));
            let ordered = std::iter::once(first.clone()).chain(others.filter(|v| *v != first));
            found.extend(ordered.map(|version| (name.clone(), version)));
        }
        for (group, version) in found {
            if !self.preferred.iter().any(|(known, _)| *known == group) {
                self.preferred.push((group.clone(), version.clone()));
            }
            let path = if group.is_empty() {
                format!("{root}/{version}")
            } else {
                format!("{root}/{group}/{version}")
            };
            // One group whose server is away does not hide the others.
            let Ok(list) = api.json(http::Method::GET, &path, JSON, None).await else { continue };
            let whole = items(&list["resources"]).filter(|r| !text(&r["name"]).contains('/'));
            self.resources.extend(whole.map(|resource| Resource {
                group: group.clone(),
                version: version.clone(),
                plural: text(&resource["name"]),
                singular: text(&resource["singularName"]),
                kind: text(&resource["kind"]),
                namespaced: resource["namespaced"] == true,
                verbs: texts(&resource["verbs"]),
                short_names: texts(&resource["shortNames"]),
                categories: texts(&resource["categories"]),
            }));
        }
        Ok(())
    }

    /// What somebody calls `pods`, `po`, `Pod`, `deploy.apps` or `deployments.v1.apps`.
    pub fn find(&self, called: &str) -> Result<&Resource, Error> {
        self.lookup(called).ok_or_else(|| self.unknown(called))
    }

    fn lookup(&self, called: &str) -> Option<&Resource> {
        let lower = called.to_lowercase();
        let mut parts = lower.splitn(3, '.');
        let (name, second, third) = (parts.next()?, parts.next(), parts.next());
        if let (Some(version), Some(group)) = (second, third)
            && let Some(found) = self.named(name, |r| r.version == version && r.group == group)
        {
            return Some(found);
        }
        if let Some(version) = second.filter(|_| third.is_none())
            && let Some(found) = self.named(name, |r| r.version == version && r.group.is_empty())
        {
            return Some(found);
        }
        match lower.split_once('.') {
            Some((name, group)) => self
                .named(name, |r| r.group == group)
                .or_else(|| self.named(name, |r| r.group.starts_with(group))),
            None => self.named(&lower, |_| true),
        }
    }

    /// The first that is called `name`; its preferred version if it has one.
    fn named(&self, name: &str, fits: impl Fn(&Resource) -> bool) -> Option<&Resource> {
        let listed = |r: &&Resource| fits(r);
        let rules: [fn(&Resource, &str) -> bool; 3] = [
            |r, name| r.plural == name,
            |r, name| r.singular == name || r.kind.to_lowercase() == name,
            |r, name| r.short_names.iter().any(|s| s == name),
        ];
        rules.iter().find_map(|rule| {
            let all: Vec<&Resource> =
                self.resources.iter().filter(listed).filter(|r| rule(r, name)).collect();
            let best = all.iter().find(|r| self.prefers(r)).or(all.first());
            best.copied()
        })
    }

    fn prefers(&self, resource: &Resource) -> bool {
        self.preferred.iter().any(|(g, v)| *g == resource.group && *v == resource.version)
    }

    /// The resources of a category such as `all`, preferred versions alone.
    pub fn category(&self, name: &str) -> Vec<&Resource> {
        let has = |r: &&Resource| r.categories.iter().any(|c| c == name) && r.allows("list");
        let mut found: Vec<&Resource> = Vec::new();
        for resource in self.resources.iter().filter(has) {
            let known =
                found.iter().any(|r| r.group == resource.group && r.plural == resource.plural);
            if !known {
                found.push(resource);
            }
        }
        found
    }

    /// The resource of a kind in a version, as manifests name it.
    pub fn of(&self, api_version: &str, kind: &str) -> Option<&Resource> {
        self.resources.iter().find(|r| r.kind == kind && r.api_version() == api_version)
    }

    /// All of them.
    pub fn all(&self) -> &[Resource] {
        &self.resources
    }

    fn unknown(&self, called: &str) -> Error {
        // Of a name with a group the resource alone is told.
        let called = called.split('.').next().unwrap_or(called);
        let plain = called.to_lowercase();
        let mut out = format!("the server doesn't have a resource type {called:?}");
        let words = self.resources.iter().flat_map(|r| {
            [r.plural.as_str(), r.singular.as_str()]
                .into_iter()
                .chain(r.short_names.iter().map(String::as_str))
        });
        if let Some(word) = nearest(&plain, words) {
            out.push_str(&format!("\nhint: did you mean {word:?}?"));
        }
        Error::Wrong(out)
    }
}

/// The word that differs least from `called`, if it is near enough to be what was meant.
pub fn nearest<'a>(called: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = match called.len() {
        0..=2 => return None,
        3..=5 => 1,
        6..=9 => 2,
        _ => 3,
    };
    words
        .filter(|word| word.len() > 1)
        .map(|word| (distance(called, word), word))
        .filter(|(distance, _)| *distance <= allowed)
        // Letters that changed places are a likelier slip than others.
        .min_by_key(|(distance, word)| {
            let moved = letters(word) == letters(called);
            (*distance, !moved, called.len().abs_diff(word.len()), *word)
        })
        .map(|(_, word)| word)
}

fn letters(word: &str) -> Vec<char> {
    let mut letters: Vec<char> = word.chars().collect();
    letters.sort_unstable();
    letters
}

/// Edits that make one word of the other; two neighbours that changed places are one edit.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = usize::from(a[i - 1] != b[j - 1]);
                let mut best =
                    (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + change);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    items(value).map(text).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kinds() -> Kinds {
        let resource = |plural: &str,
                        singular: &str,
                        kind: &str,
                        short: &[&str],
                        categories: &[&str]| {
            json!({"resource": plural, "singularResource": singular, "scope": "Namespaced", "responseKind": {"kind": kind},
                "verbs": ["get", "list"], "shortNames": short, "categories": categories})
        };
        let mut kinds = Kinds::default();
        kinds.aggregated(&json!({"items": [
            {"metadata": {}, "versions": [{"version": "v1", "resources": [
                resource("pods", "pod", "Pod", &["po"], &["all"]), resource("events", "event", "Event", &["ev"], &[]), resource("pdbs", "pdb", "Pdb", &[], &[])]}]},
            {"metadata": {"name": "apps"}, "versions": [
                {"version": "v1", "resources": [resource("deployments", "deployment", "Deployment", &["deploy"], &["all"])]},
                {"version": "v1beta1", "resources": [resource("deployments", "deployment", "Deployment", &["deploy"], &["all"])]}]},
            {"metadata": {"name": "events.k8s.io"}, "versions": [{"version": "v1", "resources": [
                resource("events", "event", "Event", &["ev"], &[])]}]},
        ]}));
        kinds
    }

    #[test]
    fn resources_go_by_many_names() {
        let kinds = kinds();
        let cases = [
            ("pods", Some("v1 pods")),
            ("pod", Some("v1 pods")),
            ("Pod", Some("v1 pods")),
            ("po", Some("v1 pods")),
            ("pods.v1", Some("v1 pods")),
            ("deploy", Some("apps/v1 deployments")),
            ("deployments.apps", Some("apps/v1 deployments")),
            ("deploy.app", Some("apps/v1 deployments")),
            ("deployments.v1beta1.apps", Some("apps/v1beta1 deployments")),
            ("events", Some("v1 events")),
            ("ev.events.k8s.io", Some("events.k8s.io/v1 events")),
            ("deployments.batch", None),
            ("pdo", None),
        ];
        for (called, want) in cases {
            let found = kinds.lookup(called).map(|r| format!("{} {}", r.api_version(), r.plural));
            assert_eq!(found.as_deref(), want, "{called}");
        }
        let all: Vec<String> = kinds.category("all").iter().map(|r| r.word()).collect();
        assert_eq!(all, ["pod", "deployment.apps"]);
    }

    #[test]
    fn unknown_names_suggest_the_right_word() {
        let kinds = kinds();
        let cases = [
            (
                "pdo",
                "error: the server doesn't have a resource type \"pdo\"\nhint: did you mean \"pod\"?\n",
            ),
            (
                "deploymnets",
                "error: the server doesn't have a resource type \"deploymnets\"\nhint: did you mean \"deployments\"?\n",
            ),
            ("xyzzy", "error: the server doesn't have a resource type \"xyzzy\"\n"),
        ];
        for (called, want) in cases {
            assert_eq!(kinds.find(called).unwrap_err().text(), want);
        }
    }

    #[test]
    fn paths_name_group_namespace_and_object() {
        let kinds = kinds();
        let path = |called: &str, namespace, name| {
            kinds.find(called).map(|r| r.path(namespace, name)).unwrap_or_default()
        };
        assert_eq!(path("po", Some("n"), "a"), "/api/v1/namespaces/n/pods/a");
        assert_eq!(path("deploy", None, ""), "/apis/apps/v1/deployments");
    }
}
