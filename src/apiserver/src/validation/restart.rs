//! Rules for what containers say of devices, of changes to their resources, of their end and of starting
//! again.
//!
//! Source: `validateContainerCommon` of `k8s.io/kubernetes/pkg/apis/core/validation`.

use std::collections::HashSet;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::Value;

use super::{mistakes, one_of, required_one_of};
use crate::zero::Zero;

const POLICIES: [&str; 3] = ["Always", "Never", "OnFailure"];
const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const WINDOWS_SIGNALS: [&str; 2] = ["SIGKILL", "SIGTERM"];

/// The claims of the pod that a container uses (`validateResourceClaimNames`).
pub fn claims(container: &Value, path: &Path, known: &[&str], errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (index, claim) in container["resources"]["claims"].items().iter().enumerate() {
        let (name, request) = (claim["name"].text(), claim["request"].text());
        let at = path.index(index);
        if name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
            continue;
        }
        let shown = if request.is_empty() { name.to_owned() } else { format!("{name}/{request}") };
        if !seen.insert(shown.clone()) || !request.is_empty() && seen.contains(name) {
            errors.push(Error::duplicate(&at, shown));
        }
        if !request.is_empty() {
            mistakes(errors, &at.child("request"), request, names::dns_label(request));
        }
        if !known.contains(&name) {
            let mut error = Error::not_found(&at.child("name"), name);
            error.detail = "must be one of the names in pod.spec.resourceClaims".into();
            if known.is_empty() {
                error.detail.push_str(" which is empty");
            } else {
                let mut sorted = known.to_vec();
                sorted.sort_unstable();
                error.detail.push_str(": ");
                error.detail.push_str(&sorted.join(", "));
            }
            errors.push(error);
        }
    }
}

/// `spec.resourceClaims` of a pod (`validatePodResourceClaims`).
pub fn pod_claims(claims: &[Value], path: &Path, errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (index, claim) in claims.iter().enumerate() {
        let (at, name) = (path.index(index), claim["name"].text());
        if name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
        } else if !seen.insert(name) {
            errors.push(Error::duplicate(&at.child("name"), name));
        } else {
            mistakes(errors, &at.child("name"), name, names::dns_label(name));
        }
        let keys = ["resourceClaimName", "resourceClaimTemplateName"];
        match keys.iter().filter(|key| claim[**key].is_set()).count() {
            0 => {
                let detail =
                    "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                errors.push(Error::invalid(&at, claim.clone(), detail));
            }
            1 => {}
            _ => {
                let detail = "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.push(Error::invalid(&at, claim.clone(), detail));
            }
        }
        for key in keys.iter().filter(|key| claim[**key].is_set()) {
            let text = claim[*key].text();
            mistakes(errors, &at.child(key), text, names::dns_subdomain(text));
        }
    }
}

/// What a change of resources does to the container.
pub fn resize_policy(container: &Value, path: &Path, pods: &str, errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (index, policy) in container["resizePolicy"].items().iter().enumerate() {
        let (name, restart) = (policy["resourceName"].text(), policy["restartPolicy"].text());
        if !seen.insert(name) {
            errors.push(Error::duplicate(&path.index(index), name));
        }
        // Upstream names the list from here on.
        required_one_of(errors, path, name, &["cpu", "memory"]);
        required_one_of(errors, path, restart, &["NotRequired", "RestartContainer"]);
        if pods == "Never" && restart != "NotRequired" {
            let detail = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.push(Error::invalid(path, restart, detail));
        }
    }
}

/// A container's own restart policy and its exceptions.
pub fn rules(container: &Value, path: &Path, errors: &mut ErrorList) {
    let (policy, rules) = (&container["restartPolicy"], container["restartPolicyRules"].items());
    let at = path.child("restartPolicy");
    if let Some(policy) = policy.as_str() {
        one_of(errors, &at, policy, &POLICIES);
    } else if !rules.is_empty() {
        let detail = "must specify restartPolicy when restart rules are used";
        errors.push(Error::required(&at, detail));
    }
    let path = path.child("restartPolicyRules");
    if rules.len() > RULES_MAX {
        errors.push(Error::too_many(&path, rules.len(), RULES_MAX));
    }
    for (index, rule) in rules.iter().enumerate() {
        let at = path.index(index);
        let known = ["Restart", "RestartAllContainers"];
        required_one_of(errors, &at.child("action"), rule["action"].text(), &known);
        let (codes, at) = (&rule["exitCodes"], at.child("exitCodes"));
        if codes.is_null() {
            errors.push(Error::required(&at, "must be specified"));
            continue;
        }
        required_one_of(errors, &at.child("operator"), codes["operator"].text(), &["In", "NotIn"]);
        let values = codes["values"].items();
        if values.is_empty() {
            errors.push(Error::required(&at.child("values"), "must specify at least one value"));
        } else if values.len() > EXIT_CODES_MAX {
            errors.push(Error::too_many(&at.child("values"), values.len(), EXIT_CODES_MAX));
        }
    }
}

/// The signal that ends a container; which there are depends on the system, so that must be said.
pub fn stop_signal(signal: &str, path: &Path, os: &str, errors: &mut ErrorList) {
    match os {
        "" => {
            let detail = "may not be set for containers with empty `spec.os.name`";
            errors.push(Error::forbidden(path, detail));
        }
        "windows" => one_of(errors, path, signal, &WINDOWS_SIGNALS),
        _ => {
            let known = linux_signals();
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            one_of(errors, path, signal, &known);
        }
    }
}

fn linux_signals() -> Vec<String> {
    const NAMED: [&str; 33] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT",
        "KILL", "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM",
        "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU",
    ];
    let mut signals: Vec<String> = NAMED.iter().map(|name| format!("SIG{name}")).collect();
    signals.extend(["SIGXFSZ", "SIGRTMIN", "SIGRTMAX"].map(String::from));
    signals.extend((1..=15).map(|number| format!("SIGRTMIN+{number}")));
    signals.extend((1..=14).map(|number| format!("SIGRTMAX-{number}")));
    signals
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validation::told;

    #[test]
    fn rules_need_a_policy_and_exit_codes() {
        let rule = json!({"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}});
        for (container, want) in [
            (json!({"restartPolicy": "Never", "restartPolicyRules": [rule]}), None),
            (
                json!({"restartPolicyRules": [rule]}),
                Some(
                    "c.restartPolicy: Required value: must specify restartPolicy when restart rules are used",
                ),
            ),
            (
                json!({"restartPolicy": "Sometimes"}),
                Some(
                    "c.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
                ),
            ),
            (
                json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart"}]}),
                Some("c.restartPolicyRules[0].exitCodes: Required value"),
            ),
            (
                json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In"}}]}),
                Some("c.restartPolicyRules[0].exitCodes.values: Required value"),
            ),
        ] {
            let got = told(|errors| rules(&container, &Path::new("c"), errors));
            match want {
                None => assert!(got.is_empty(), "{got:?}"),
                Some(want) => assert!(got[0].starts_with(want), "{want}: {got:?}"),
            }
        }
    }

    #[test]
    fn containers_use_the_pods_claims() {
        let of = |claims_of: Value, known: &[&str]| {
            let container = json!({"resources": {"claims": claims_of}});
            told(|errors| claims(&container, &Path::new("claims"), known, errors))
        };
        assert_eq!(
            of(json!([{"name": "a"}, {"name": "b", "request": "r"}]), &["a", "b"]),
            Vec::<String>::new()
        );
        assert_eq!(
            of(json!([{"name": "a"}, {"name": "a"}]), &["a"]),
            ["claims[1]: Duplicate value: \"a\""]
        );
        assert_eq!(
            of(json!([{"name": "c"}]), &["b", "a"]),
            [
                "claims[0].name: Not found: \"c\": must be one of the names in pod.spec.resourceClaims: a, b"
            ]
        );
    }

    #[test]
    fn signals_depend_on_the_system() {
        for (signal, os, want) in [
            ("SIGUSR1", "linux", ""),
            (
                "SIGUSR1",
                "",
                "s: Forbidden: may not be set for containers with empty `spec.os.name`",
            ),
            (
                "SIGUSR1",
                "windows",
                "s: Unsupported value: \"SIGUSR1\": supported values: \"SIGKILL\", \"SIGTERM\"",
            ),
        ] {
            let got = told(|errors| stop_signal(signal, &Path::new("s"), os, errors));
            assert_eq!(got.first().map_or("", String::as_str), want);
        }
    }
}
