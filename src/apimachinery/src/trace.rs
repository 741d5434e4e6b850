//! The timed steps of a pod's life, recorded as tracing events that `rootlet trace` collects.

use std::time::{SystemTime, UNIX_EPOCH};

/// Target of the events; a subscriber layer selects them by it.
pub const TARGET: &str = "rootlet::pod";

/// Records that `step` of the pod with `uid` began at `started` and ends now.
///
/// `step` is one of DESIGN's words: submit, authenticate, authorise, admit, store, watch, schedule,
/// bind, kubelet, volumes, sandbox, image, containers, observe, report. `detail` is for people.
pub fn step(step: &'static str, uid: &str, started: SystemTime, detail: &str) {
    span(step, uid, started, SystemTime::now(), detail);
}

/// Records a step as [`step`] does, for one that was over before the pod's uid was known.
pub fn span(step: &'static str, uid: &str, started: SystemTime, ended: SystemTime, detail: &str) {
    let start_us = started.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64);
    let duration_us = ended.duration_since(started).map_or(0, |d| d.as_micros() as u64);
    tracing::info!(target: TARGET, step, uid, start_us, duration_us, detail);
}
