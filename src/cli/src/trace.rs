//! A pod's timed steps, as the daemon tells them and as people read them.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// One step of a pod's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// One of DESIGN's words, `submit` to `report`.
    pub step: String,
    /// When it began, in microseconds since 1970.
    pub start_us: u64,
    /// How long it took.
    pub duration_us: u64,
    /// What it was about, for people; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Everything recorded about one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Namespace of the pod.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// In the order they began.
    pub steps: Vec<Step>,
}

/// The steps as a table: offset from the first, duration, name, detail.
pub fn text(trace: &Trace) -> String {
    let mut out = format!("pod {}/{} (uid {})\n", trace.namespace, trace.name, trace.uid);
    let first = trace.steps.iter().map(|step| step.start_us).min().unwrap_or_default();
    let _ = writeln!(out, "{:>12}  {:>12}  {:<13} DETAIL", "START", "TOOK", "STEP");
    for step in &trace.steps {
        let line = format!(
            "{:>12}  {:>12}  {:<13} {}",
            format!("+{}", milliseconds(step.start_us - first)),
            milliseconds(step.duration_us),
            step.step,
            step.detail
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

fn milliseconds(us: u64) -> String {
    format!("{}.{:03} ms", us / 1000, us % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_from_the_first() {
        let step = |name: &str, start_us, duration_us, detail: &str| Step {
            step: name.into(),
            start_us,
            duration_us,
            detail: detail.into(),
        };
        let trace = Trace {
            namespace: "default".into(),
            name: "hello".into(),
            uid: "u".into(),
            steps: vec![
                step("submit", 1_000_000, 1_500, ""),
                step("image", 1_002_000, 250, "busybox"),
            ],
        };
        insta::assert_snapshot!(text(&trace), @r"
        pod default/hello (uid u)
               START          TOOK  STEP          DETAIL
           +0.000 ms      1.500 ms  submit
           +2.000 ms      0.250 ms  image         busybox
        ");
    }
}
