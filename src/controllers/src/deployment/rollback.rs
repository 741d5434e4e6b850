//! Back to an earlier template, where an annotation asks for it; `kubectl rollout undo` writes the template itself.
//!
//! Source: `pkg/controller/deployment/rollback.go`.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::ResourceExt;

use super::revision::{OWN, ROLLBACK, bare, revision};

/// What becomes of the wish.
#[derive(Debug, PartialEq)]
pub(super) enum Rollback<'a> {
    /// The template of this set, which was this revision.
    To(&'a ReplicaSet, i64),
    /// It is the template of now.
    Same,
    /// There was no revision before.
    NoLast,
    /// No set is of that revision.
    Unknown,
}

impl Rollback<'_> {
    /// Type, reason and message of the event that tells of it.
    pub fn event(&self, name: &str) -> (&'static str, &'static str, String) {
        match self {
            Self::To(_, number) => {
                let message = format!("Rolled back deployment \"{name}\" to revision {number}");
                ("Normal", "DeploymentRollback", message)
            }
            Self::Same => {
                let message = format!(
                    "The rollback revision contains the same template as current deployment \"{name}\""
                );
                ("Warning", "DeploymentRollbackTemplateUnchanged", message)
            }
            Self::NoLast => {
                let message = "Unable to find last revision.".into();
                ("Warning", "DeploymentRollbackRevisionNotFound", message)
            }
            Self::Unknown => {
                let message = "Unable to find the revision to rollback to.".into();
                ("Warning", "DeploymentRollbackRevisionNotFound", message)
            }
        }
    }
}

/// The revision that is asked for; 0 is the last one.
pub(super) fn asked(deployment: &Deployment) -> Option<i64> {
    deployment.annotations().get(ROLLBACK)?.parse().ok()
}

/// The second highest revision (`LastRevision`).
fn last(all: &[&ReplicaSet]) -> i64 {
    let mut numbers: Vec<i64> = all.iter().map(|set| revision(set)).collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    numbers.get(1).copied().unwrap_or(0)
}

pub(super) fn decide<'a>(
    deployment: &Deployment,
    asked: i64,
    all: &[&'a ReplicaSet],
) -> Rollback<'a> {
    let number = if asked == 0 { last(all) } else { asked };
    if number == 0 {
        return Rollback::NoLast;
    }
    let Some(set) = all.iter().find(|set| revision(set) == number) else {
        return Rollback::Unknown;
    };
    let template = |set: &ReplicaSet| set.spec.as_ref()?.template.as_ref().map(bare);
    let present = deployment.spec.as_ref().map(|spec| bare(&spec.template));
    if template(set) == present { Rollback::Same } else { Rollback::To(set, number) }
}

/// The Deployment without the wish, and with what it asked for.
pub(super) fn granted(deployment: &Deployment, rollback: &Rollback<'_>) -> Deployment {
    let mut changed = deployment.clone();
    if let Rollback::To(set, _) = rollback {
        if let (Some(spec), Some(template)) =
            (changed.spec.as_mut(), set.spec.as_ref().and_then(|spec| spec.template.as_ref()))
        {
            spec.template = bare(template);
        }
        let annotations = changed.annotations_mut();
        annotations.retain(|key, _| OWN.contains(&key.as_str()));
        let its = set.annotations().iter().filter(|(key, _)| !OWN.contains(&key.as_str()));
        annotations.extend(its.map(|(key, value)| (key.clone(), value.clone())));
    }
    changed.annotations_mut().remove(ROLLBACK);
    changed
}
