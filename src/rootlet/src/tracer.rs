//! Collects the timed steps that components record about pods.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use cli::trace::Step;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Pods remembered; the longest unheard of is forgotten first.
const PODS: usize = 2000;
/// Steps remembered per pod: the first ones, which tell how it started, and no endless list of restarts.
const STEPS: usize = 100;

#[derive(Default)]
struct Inner {
    steps: HashMap<String, Vec<Step>>,
    order: VecDeque<String>,
}

/// A tracing layer that keeps the events of [`apimachinery::trace`].
#[derive(Clone, Default)]
pub struct Tracer(Arc<Mutex<Inner>>);

impl Tracer {
    /// The steps of the pod with `uid`, in the order they began.
    pub fn steps(&self, uid: &str) -> Vec<Step> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut steps = inner.steps.get(uid).cloned().unwrap_or_default();
        steps.sort_by_key(|step| step.start_us);
        steps
    }

    fn add(&self, uid: String, step: Step) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.steps.contains_key(&uid) {
            if inner.order.len() >= PODS
                && let Some(oldest) = inner.order.pop_front()
            {
                inner.steps.remove(&oldest);
            }
            inner.order.push_back(uid.clone());
        }
        let steps = inner.steps.entry(uid).or_default();
        if steps.len() < STEPS {
            steps.push(step);
        }
    }
}

#[derive(Default)]
struct Fields {
    uid: String,
    step: String,
    detail: String,
    start_us: u64,
    duration_us: u64,
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "start_us" => self.start_us = value,
            "duration_us" => self.duration_us = value,
            _ => {}
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "uid" => value.clone_into(&mut self.uid),
            "step" => value.clone_into(&mut self.step),
            "detail" => value.clone_into(&mut self.detail),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl<S: Subscriber> Layer<S> for Tracer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != apimachinery::trace::TARGET {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        if fields.uid.is_empty() {
            return;
        }
        let Fields { uid, step, detail, start_us, duration_us } = fields;
        self.add(uid, Step { step, start_us, duration_us, detail });
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn steps_are_kept_per_pod_and_bounded() {
        let tracer = Tracer::default();
        let subscriber = tracing_subscriber::registry().with(tracer.clone());
        tracing::subscriber::with_default(subscriber, || {
            apimachinery::trace::step("schedule", "u1", SystemTime::now(), "to node a");
            tracing::info!(uid = "u1", step = "not ours", "other target");
            for pod in 0..PODS {
                apimachinery::trace::step("bind", &format!("p{pod}"), SystemTime::now(), "");
            }
        });
        assert!(tracer.steps("u1").is_empty(), "the oldest pod is forgotten");
        assert_eq!(tracer.steps("p0").len(), 1);
        assert_eq!(tracer.steps("p0")[0].step, "bind");
    }
}
