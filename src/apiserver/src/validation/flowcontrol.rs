//! Rules for flow schemas and priority levels.
//!
//! Source: `pkg/apis/flowcontrol/validation/validation.go`.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{meta, names};
use serde_json::Value;

use super::{mistakes, one_of};
use crate::zero::Zero;

const PRECEDENCE_MAX: i64 = 10_000;
const QUEUES_MAX: i64 = 10_000_000;
const HASH_BITS_MAX: u32 = 60;
const VERBS: [&str; 9] =
    ["*", "create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// Kinds of subjects, and where each has its name.
const SUBJECTS: [(&str, &str); 3] =
    [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];

/// A flow schema.
pub fn schema(object: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    let (precedence, at) = (spec["matchingPrecedence"].int(), path.child("matchingPrecedence"));
    if precedence <= 0 {
        errors.push(Error::invalid(&at, precedence, "must be a positive value"));
    }
    if precedence > PRECEDENCE_MAX {
        let detail = format!("must not be greater than {PRECEDENCE_MAX}");
        errors.push(Error::invalid(&at, precedence, detail));
    }
    if precedence == 1 && meta::name(object) != "exempt" {
        let detail = "only the schema named 'exempt' may have matchingPrecedence 1";
        errors.push(Error::invalid(&at, precedence, detail));
    }
    if spec["distinguisherMethod"].is_set() {
        let at = path.child("distinguisherMethod").child("type");
        let kind = spec["distinguisherMethod"]["type"].text();
        one_of(errors, &at, kind, &["ByNamespace", "ByUser"]);
    }
    let level = spec["priorityLevelConfiguration"]["name"].text();
    let at = path.child("priorityLevelConfiguration").child("name");
    if level.is_empty() {
        errors.push(Error::required(&at, "must reference a priority level"));
    } else {
        mistakes(errors, &at, level, names::dns_subdomain(level));
    }
    for (index, rule) in spec["rules"].items().iter().enumerate() {
        schema_rule(rule, &path.child("rules").index(index), errors);
    }
}

fn schema_rule(rule: &Value, path: &Path, errors: &mut ErrorList) {
    let subjects = rule["subjects"].items();
    if subjects.is_empty() {
        let detail = "subjects must contain at least one value";
        errors.push(Error::required(&path.child("subjects"), detail));
    }
    for (index, one) in subjects.iter().enumerate() {
        subject(one, &path.child("subjects").index(index), errors);
    }
    let (resources, urls) = (rule["resourceRules"].items(), rule["nonResourceRules"].items());
    if resources.is_empty() && urls.is_empty() {
        let detail = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(Error::required(path, detail));
    }
    for (index, rule) in resources.iter().enumerate() {
        resource_rule(rule, &path.child("resourceRules").index(index), errors);
    }
    for (index, rule) in urls.iter().enumerate() {
        url_rule(rule, &path.child("nonResourceRules").index(index), errors);
    }
}

fn subject(subject: &Value, path: &Path, errors: &mut ErrorList) {
    let kind = subject["kind"].text();
    let Some((_, own)) = SUBJECTS.iter().find(|(name, _)| *name == kind) else {
        one_of(errors, &path.child("kind"), kind, &SUBJECTS.map(|(name, _)| name));
        return;
    };
    let (named, at) = (&subject[*own], path.child(own));
    if named.is_null() {
        let detail = format!("{own} is required when subject kind is '{kind}'");
        errors.push(Error::required(&at, &detail));
    } else {
        let name = named["name"].text();
        if name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
        } else if kind == "ServiceAccount" && name != "*" {
            mistakes(errors, &at.child("name"), name, names::dns_subdomain(name));
        }
        if kind == "ServiceAccount" {
            match named["namespace"].text() {
                "" => {
                    let detail = "must specify namespace for service account";
                    errors.push(Error::required(&at.child("namespace"), detail));
                }
                name => mistakes(errors, &at.child("namespace"), name, names::dns_label(name)),
            }
        }
    }
    for (other, key) in SUBJECTS.iter().filter(|(_, key)| key != own) {
        if subject[*key].is_set() {
            let detail = format!("{key} is forbidden when subject kind is not '{other}'");
            errors.push(Error::forbidden(&path.child(key), detail));
        }
    }
}

/// A list that is `*` alone or names things; tells whether it names things.
fn named_or_all(rule: &Value, key: &str, what: &str, path: &Path, errors: &mut ErrorList) -> bool {
    let list = rule[key].items();
    let all = list.iter().any(|item| item == "*");
    if all && list.len() > 1 {
        let detail = format!("if '*' is present, must not specify other {what}");
        errors.push(Error::invalid(&path.child(key), rule[key].clone(), detail));
    }
    !all && !list.is_empty()
}

fn verbs(rule: &Value, path: &Path, errors: &mut ErrorList) {
    let at = path.child("verbs");
    if rule["verbs"].items().is_empty() {
        errors.push(Error::required(&at, "verbs must contain at least one value"));
    }
    if named_or_all(rule, "verbs", "verbs", path, errors)
        && rule["verbs"].texts().any(|verb| !VERBS.contains(&verb))
    {
        errors.push(Error::not_supported(&at, rule["verbs"].clone(), &VERBS));
    }
}

fn resource_rule(rule: &Value, path: &Path, errors: &mut ErrorList) {
    verbs(rule, path, errors);
    for (key, missing, what) in [
        ("apiGroups", "resource rules must supply at least one api group", "api groups"),
        ("resources", "resource rules must supply at least one resource", "resources"),
    ] {
        if rule[key].items().is_empty() {
            errors.push(Error::required(&path.child(key), missing));
        }
        named_or_all(rule, key, what, path, errors);
    }
    let at = path.child("namespaces");
    if rule["namespaces"].items().is_empty() && !rule["clusterScope"].flag() {
        let detail =
            "resource rules that are not cluster scoped must supply at least one namespace";
        errors.push(Error::required(&at, detail));
    }
    if named_or_all(rule, "namespaces", "namespaces", path, errors) {
        for (index, name) in rule["namespaces"].texts().enumerate() {
            let told = names::dns_label(name).into_iter().map(|sentence| {
                format!("each member of this list must be '*' or a DNS-1123 label; {sentence}")
            });
            mistakes(errors, &at.index(index), name, told.collect());
        }
    }
}

fn url_rule(rule: &Value, path: &Path, errors: &mut ErrorList) {
    verbs(rule, path, errors);
    let at = path.child("nonResourceURLs");
    if rule["nonResourceURLs"].items().is_empty() {
        errors.push(Error::required(&at, "nonResourceURLs must contain at least one value"));
    }
    if named_or_all(rule, "nonResourceURLs", "non-resource URLs", path, errors) {
        for (index, url) in rule["nonResourceURLs"].texts().enumerate() {
            let detail = if !url.starts_with('/') {
                "must start with slash"
            } else if url.contains(' ') {
                "must not contain white-space"
            } else if url.len() > 1 && url[1..].contains("//") {
                "must not contain double slash"
            } else if url.trim_end_matches('*').contains('*')
                || (url.ends_with('*') && !url.ends_with("/*"))
            {
                "wildcard can only do suffix matching"
            } else {
                continue;
            };
            errors.push(Error::invalid(&at.index(index), url, detail));
        }
    }
}

/// A priority level.
pub fn level(object: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    let kind = spec["type"].text();
    if (meta::name(object) == "exempt") != (kind == "Exempt") {
        let detail = "type must be 'Exempt' if and only if name is 'exempt'";
        errors.push(Error::invalid(&path.child("type"), kind, detail));
    }
    let (exempt, limited) = (path.child("exempt"), path.child("limited"));
    match kind {
        "Exempt" => {
            if spec["limited"].is_set() {
                let detail = "must be nil if the type is not Limited";
                errors.push(Error::forbidden(&limited, detail));
            }
            shares(&spec["exempt"], &exempt, errors);
        }
        "Limited" => {
            if spec["exempt"].is_set() {
                errors.push(Error::forbidden(&exempt, "must be nil if the type is Limited"));
            }
            if spec["limited"].is_null() {
                let detail = "must not be empty when type is Limited";
                errors.push(Error::required(&limited, detail));
            } else {
                shares(&spec["limited"], &limited, errors);
                let borrowing = &spec["limited"]["borrowingLimitPercent"];
                if borrowing.int() < 0 {
                    let at = limited.child("borrowingLimitPercent");
                    let detail = "if specified, must be a non-negative integer";
                    errors.push(Error::invalid(&at, borrowing.int(), detail));
                }
                let response = &spec["limited"]["limitResponse"];
                limit_response(response, &limited.child("limitResponse"), errors);
            }
        }
        _ => one_of(errors, &path.child("type"), kind, &["Exempt", "Limited"]),
    }
}

fn shares(level: &Value, path: &Path, errors: &mut ErrorList) {
    let shares = &level["nominalConcurrencyShares"];
    if shares.int() < 0 {
        let at = path.child("nominalConcurrencyShares");
        errors.push(Error::invalid(&at, shares.int(), "must be a non-negative integer"));
    }
    let lendable = &level["lendablePercent"];
    if lendable.is_set() && !(0..=100).contains(&lendable.int()) {
        let detail = "must be between 0 and 100, inclusive";
        errors.push(Error::invalid(&path.child("lendablePercent"), lendable.int(), detail));
    }
}

fn limit_response(response: &Value, path: &Path, errors: &mut ErrorList) {
    let at = path.child("queuing");
    match response["type"].text() {
        "Reject" => {
            if response["queuing"].is_set() {
                let detail = "must be nil if limited.limitResponse.type is not Limited";
                errors.push(Error::forbidden(&at, detail));
            }
        }
        "Queue" => {
            if response["queuing"].is_null() {
                let detail = "must not be empty if limited.limitResponse.type is Limited";
                errors.push(Error::required(&at, detail));
            } else {
                queuing(&response["queuing"], &at, errors);
            }
        }
        kind => one_of(errors, &path.child("type"), kind, &["Queue", "Reject"]),
    }
}

fn queuing(queuing: &Value, path: &Path, errors: &mut ErrorList) {
    let number = |key: &str| queuing[key].int();
    let (queues, hand) = (number("queues"), number("handSize"));
    for key in ["queueLengthLimit", "queues", "handSize"] {
        if number(key) <= 0 {
            errors.push(Error::invalid(&path.child(key), number(key), "must be positive"));
        }
    }
    if queues > QUEUES_MAX {
        let detail = format!("must not be greater than {QUEUES_MAX}");
        errors.push(Error::invalid(&path.child("queues"), queues, detail));
    }
    let at = path.child("handSize");
    if hand > queues {
        let detail = format!("should not be greater than queues ({queues})");
        errors.push(Error::invalid(&at, hand, detail));
    } else if hand > 0 && entropy_bits(queues, hand) > HASH_BITS_MAX {
        let detail = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS_MAX}"
        );
        errors.push(Error::invalid(&at, hand, detail));
    }
}

/// Bits needed to deal `hand` cards from a deck of `deck`.
fn entropy_bits(deck: i64, hand: i64) -> u32 {
    let bits: f64 = (0..hand).map(|dealt| ((deck - dealt) as f64).log2()).sum();
    bits.ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::told;
    use serde_json::json;

    #[test]
    fn schemas_are_checked() {
        let made = |extra: Value| {
            let mut spec =
                json!({"matchingPrecedence": 10, "priorityLevelConfiguration": {"name": "l"}});
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            json!({"metadata": {"name": "a"}, "spec": spec})
        };
        let rule = |rule: Value| made(json!({"rules": [rule]}));
        let user = json!([{"kind": "User", "user": {"name": "u"}}]);
        for (object, want) in [
            (made(json!({})), ""),
            (
                made(json!({"matchingPrecedence": 1})),
                "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1",
            ),
            (
                made(json!({"matchingPrecedence": 10_001})),
                "spec.matchingPrecedence: Invalid value: 10001: must not be greater than 10000",
            ),
            (
                made(json!({"priorityLevelConfiguration": {}})),
                "spec.priorityLevelConfiguration.name: Required value: must reference a priority level",
            ),
            (
                rule(json!({"subjects": user})),
                "spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty",
            ),
            (
                rule(
                    json!({"subjects": [{"kind": "User"}], "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["/a"]}]}),
                ),
                "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
            ),
            (
                rule(
                    json!({"subjects": user, "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["a"]}]}),
                ),
                "spec.rules[0].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"a\": must start with slash",
            ),
            (
                rule(
                    json!({"subjects": user, "resourceRules": [{"verbs": ["get", "*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true}]}),
                ),
                "spec.rules[0].resourceRules[0].verbs: Invalid value: [\"get\",\"*\"]: if '*' is present, must not specify other verbs",
            ),
        ] {
            assert_eq!(told(|e| schema(&object, e)).join("; "), want);
        }
    }

    #[test]
    fn levels_are_checked() {
        let limited = |limited: Value| json!({"metadata": {"name": "l"}, "spec": {"type": "Limited", "limited": limited}});
        let queues = |queues: i64, hand: i64| {
            limited(json!({"limitResponse": {"type": "Queue", "queuing": {
                "queueLengthLimit": 1, "queues": queues, "handSize": hand}}}))
        };
        for (object, want) in [
            (queues(64, 8), ""),
            (limited(json!({"limitResponse": {"type": "Reject"}})), ""),
            (
                queues(4, 8),
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 8: should not be greater than queues (4)",
            ),
            (
                queues(10_000, 10),
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 10: required entropy bits of deckSize 10000 and handSize 10 should not be greater than 60",
            ),
            (
                limited(json!({"limitResponse": {"type": "Queue"}})),
                "spec.limited.limitResponse.queuing: Required value: must not be empty if limited.limitResponse.type is Limited",
            ),
            (
                json!({"metadata": {"name": "l"}, "spec": {"type": "Exempt"}}),
                "spec.type: Invalid value: \"Exempt\": type must be 'Exempt' if and only if name is 'exempt'",
            ),
        ] {
            assert_eq!(told(|e| level(&object, e)).join("; "), want);
        }
    }
}
