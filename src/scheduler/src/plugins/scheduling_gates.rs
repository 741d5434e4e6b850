//! SchedulingGates: a pod waits until all its gates are removed.

use crate::framework::{Event, Plugin, Point, Rejection};
use crate::pod::PodInfo;

pub struct SchedulingGates;

impl Plugin for SchedulingGates {
    fn name(&self) -> &'static str {
        "SchedulingGates"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreEnqueue]
    }

    fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), Rejection> {
        let gates: Vec<&str> =
            pod.spec().scheduling_gates.iter().flatten().map(|gate| gate.name.as_str()).collect();
        if gates.is_empty() {
            return Ok(());
        }
        let reason = format!("waiting for scheduling gates: [{}]", gates.join(" "));
        Err(Rejection::unresolvable(reason))
    }

    fn may_help(&self, event: &Event, _: &PodInfo) -> bool {
        let Event::Itself { old, new } = event else { return false };
        old.spec().scheduling_gates != new.spec().scheduling_gates
    }
}
