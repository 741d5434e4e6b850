//! What a pod failure policy says about a pod that failed.
//!
//! Source: `pkg/controller/job/pod_failure_policy.go`.

use k8s_openapi::api::batch::v1::{PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement};
use k8s_openapi::api::core::v1::Pod;

use crate::ownership;

/// What the first rule that fits asks for.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// The failure counts towards the limit.
    Count,
    /// It does not.
    Ignore,
    /// The pod's index has failed for good.
    FailIndex,
    /// The job has failed, for this reason.
    FailJob(String),
}

/// The container that ended with an exit code the rule names, and that code.
fn exited<'a>(
    pod: &'a Pod,
    rule: &PodFailurePolicyOnExitCodesRequirement,
) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let all = lists.into_iter().flatten().flatten();
    let named = all.filter(|s| rule.container_name.as_ref().is_none_or(|name| *name == s.name));
    named
        .filter_map(|s| Some((s.name.as_str(), s.state.as_ref()?.terminated.as_ref()?.exit_code)))
        .find(|(_, code)| {
            *code != 0
                && match rule.operator.as_str() {
                    "In" => rule.values.contains(code),
                    "NotIn" => !rule.values.contains(code),
                    _ => false,
                }
        })
}

/// Judges a pod that failed.
pub fn judge(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Verdict {
    let Some(policy) = policy else { return Verdict::Count };
    let (namespace, name) = ownership::key(pod);
    for (index, rule) in policy.rules.iter().enumerate() {
        let action = rule.action.as_str();
        let matched = if let Some(codes) = &rule.on_exit_codes {
            exited(pod, codes).map(|(container, code)| {
                format!(
                    "Container {container} for pod {namespace}/{name} failed with exit code {code} matching {action} rule at index {index}"
                )
            })
        } else {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            let mut patterns = rule.on_pod_conditions.iter().flatten();
            let hit = patterns.find(|pattern| {
                conditions.into_iter().flatten().any(|condition| {
                    condition.type_ == pattern.type_
                        && condition.status == pattern.status.as_deref().unwrap_or("True")
                })
            });
            hit.map(|pattern| {
                format!(
                    "Pod {namespace}/{name} has condition {} matching {action} rule at index {index}",
                    pattern.type_
                )
            })
        };
        let Some(message) = matched else { continue };
        return match action {
            "FailJob" => Verdict::FailJob(message),
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_rule_that_fits_decides() {
        let policy: PodFailurePolicy = serde_json::from_value(json!({"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1, 2]}},
        ]}))
        .expect("a policy");
        let pod = |code: i32, disrupted: bool| -> Pod {
            let condition = if disrupted { "DisruptionTarget" } else { "Ready" };
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "status": {
                "conditions": [{"type": condition, "status": "True"}],
                "containerStatuses": [{"name": "main", "image": "", "imageID": "", "ready": false,
                    "restartCount": 0, "state": {"terminated": {"exitCode": code}}}]}}))
            .expect("a pod")
        };
        let message =
            "Container main for pod n/p failed with exit code 42 matching FailJob rule at index 1";
        for (pod, want) in [
            (pod(42, true), Verdict::Ignore),
            (pod(42, false), Verdict::FailJob(message.into())),
            (pod(3, false), Verdict::FailIndex),
            (pod(1, false), Verdict::Count),
            (pod(0, false), Verdict::Count),
        ] {
            assert_eq!(judge(Some(&policy), &pod), want);
        }
        assert_eq!(judge(None, &pod(42, false)), Verdict::Count);
    }
}
