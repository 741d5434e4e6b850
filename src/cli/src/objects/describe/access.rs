//! Roles and who has them.

use serde_json::Value;

use super::{Page, items, str};

fn head(page: &mut Page, object: &Value) {
    let meta = &object["metadata"];
    page.field(0, "Name", str(&meta["name"]));
    page.labels(0, "Labels", &meta["labels"]);
    page.annotations("Annotations", &meta["annotations"]);
}

/// What may be done with one resource, or one path.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rule {
    verbs: Vec<String>,
    group: Option<String>,
    resource: Option<String>,
    name: Option<String>,
    path: Option<String>,
}

impl Rule {
    /// As Go writes it, which is what rules are sorted by.
    fn key(&self) -> String {
        let list = |text: &Option<String>| text.clone().unwrap_or_default();
        format!(
            "Verbs:[{}],APIGroups:[{}],Resources:[{}],ResourceNames:[{}],NonResourceURLs:[{}],",
            self.verbs.join(" "),
            list(&self.group),
            list(&self.resource),
            list(&self.name),
            list(&self.path)
        )
    }

    /// `deployments.apps/scale`.
    fn called(&self) -> String {
        let Some(resource) = &self.resource else { return String::new() };
        let (plain, sub) =
            resource.split_once('/').map_or((resource.as_str(), None), |(r, s)| (r, Some(s)));
        let mut called = plain.to_owned();
        if let Some(group) = self.group.as_ref().filter(|group| !group.is_empty()) {
            called.push_str(&format!(".{group}"));
        }
        if let Some(sub) = sub {
            called.push_str(&format!("/{sub}"));
        }
        called
    }
}

/// Rules of one resource each, those about the same put together.
fn compact(rules: &Value) -> Vec<Rule> {
    let mut found: Vec<Rule> = Vec::new();
    let texts =
        |value: &Value| -> Vec<String> { items(value).map(|v| str(v).to_owned()).collect() };
    for rule in items(rules) {
        let names = texts(&rule["resourceNames"]);
        let names: Vec<Option<String>> =
            if names.is_empty() { vec![None] } else { names.into_iter().map(Some).collect() };
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    for name in &names {
                        let about = Rule {
                            verbs: Vec::new(),
                            group: Some(group.clone()),
                            resource: Some(resource.clone()),
                            name: name.clone(),
                            path: None,
                        };
                        let same = found
                            .iter_mut()
                            .find(|r| Rule { verbs: Vec::new(), ..(*r).clone() } == about);
                        match same {
                            Some(same) if !same.verbs.contains(&verb) => {
                                same.verbs.push(verb.clone());
                            }
                            Some(_) => {}
                            None => found.push(Rule { verbs: vec![verb.clone()], ..about }),
                        }
                    }
                }
            }
        }
        for path in texts(&rule["nonResourceURLs"]) {
            for verb in texts(&rule["verbs"]) {
                found.push(Rule { verbs: vec![verb], path: Some(path.clone()), ..Rule::default() });
            }
        }
    }
    found.sort_by_key(Rule::key);
    found
}

/// Writes a role.
pub fn role(page: &mut Page, object: &Value) {
    head(page, object);
    page.line(0, "PolicyRule:");
    page.line(1, "Resources\tNon-Resource URLs\tResource Names\tVerbs");
    page.line(1, "---------\t-----------------\t--------------\t-----");
    for rule in compact(&object["rules"]) {
        let list = |text: &Option<String>| format!("[{}]", text.as_deref().unwrap_or_default());
        let verbs = rule.verbs.join(" ");
        page.line(
            1,
            format!("{}\t{}\t{}\t[{verbs}]", rule.called(), list(&rule.path), list(&rule.name)),
        );
    }
}

/// Writes a binding.
pub fn binding(page: &mut Page, object: &Value) {
    head(page, object);
    page.line(0, "Role:");
    page.field(1, "Kind", str(&object["roleRef"]["kind"]));
    page.field(1, "Name", str(&object["roleRef"]["name"]));
    page.line(0, "Subjects:");
    page.line(1, "Kind\tName\tNamespace");
    page.line(1, "----\t----\t---------");
    for subject in items(&object["subjects"]) {
        let text = |field: &str| str(&subject[field]);
        page.line(1, format!("{}\t{}\t{}", text("kind"), text("name"), text("namespace")));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_are_put_together_by_resource() {
        let rules = json!([
            {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]},
            {"apiGroups": ["", "apps"], "resources": ["pods"], "verbs": ["watch"]},
            {"nonResourceURLs": ["/x"], "verbs": ["get"]},
        ]);
        let told: Vec<String> = compact(&rules)
            .iter()
            .map(|r| format!("{} {}", r.called(), r.verbs.join(",")))
            .collect();
        assert_eq!(told, ["pods get,list,watch", "pods/log get,list", " get", "pods.apps watch"]);
    }
}
