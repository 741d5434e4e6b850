//! Completion indexes: sets of numbers as `0-3,5`, and the index of a pod.
//!
//! Source: `pkg/controller/job/indexed_job_utils.go`.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

/// The annotation and label that hold a pod's index.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// How often the index had failed before this pod.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// How many failures of the index were not counted.
pub const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// Indexes, in order.
pub type Indexes = BTreeSet<i32>;

/// Reads `0-3,5`; what cannot be read or is not below `completions` is left out.
pub fn parse(text: &str, completions: i32) -> Indexes {
    let mut indexes = Indexes::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) else { continue };
        indexes.extend(first.max(0)..=last.min(completions - 1));
    }
    indexes
}

/// Writes `0-2,5,6`: runs of three and more are shortened.
pub fn format(indexes: &Indexes) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let texts = runs.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

fn number(pod: &Pod, annotation: &str) -> Option<i32> {
    pod.annotations().get(annotation)?.parse().ok().filter(|number| *number >= 0)
}

/// The pod's index.
pub fn of(pod: &Pod) -> Option<i32> {
    number(pod, INDEX)
}

/// How often the pod's index had failed before it.
pub fn failures(pod: &Pod) -> i32 {
    number(pod, FAILURES).unwrap_or(0)
}

/// How many failures of the pod's index before it were not counted.
pub fn ignored(pod: &Pod) -> i32 {
    number(pod, IGNORED).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_as_runs() {
        for (text, want) in
            [("", ""), ("0", "0"), ("0,1", "0,1"), ("0,1,2,4", "0-2,4"), ("7-9,3", "3,7-9")]
        {
            assert_eq!(format(&parse(text, 10)), want, "{text}");
        }
        assert_eq!(format(&parse("0-99,x,-2", 3)), "0-2");
    }
}
