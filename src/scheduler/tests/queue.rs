//! The queue, with a clock that moves only when told.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use scheduler::framework::{Event, Profiles};
use scheduler::pod::PodInfo;
use scheduler::queue::Queue;
use serde_json::{Value, json};
use support::{asking, node, pod, profile};
use tokio::time::{Instant, advance};

fn profiles() -> Profiles {
    Profiles(vec![profile()])
}

fn with_priority(name: &str, priority: i32) -> Arc<PodInfo> {
    pod(name, json!({"spec": {"priority": priority}}))
}

fn popped(queue: &mut Queue) -> Option<String> {
    queue.pop(&profiles()).map(|waiting| waiting.pod.name.clone())
}

#[tokio::test(start_paused = true)]
async fn the_most_important_goes_first_then_the_oldest() {
    let mut queue = Queue::default();
    for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
        queue.set(&profiles(), with_priority(name, priority));
    }
    // A change of a waiting pod does not cost it its turn.
    queue.set(&profiles(), with_priority("a", 0));
    let order: Vec<String> = std::iter::from_fn(|| popped(&mut queue)).collect();
    assert_eq!(order, ["b", "d", "a", "c"]);
}

#[tokio::test(start_paused = true)]
async fn what_found_no_node_waits_for_an_event_that_may_help() {
    let mut queue = Queue::default();
    queue.set(&profiles(), pod("p", json!({"spec": asking("6", "1Gi")})));
    let waiting = queue.pop(&profiles()).expect("a pod to try");
    queue.give_back(waiting, BTreeSet::from(["NodeResourcesFit"]));
    assert_eq!(popped(&mut queue), None);
    let small = node("small", json!({}));
    queue.wake(&profiles(), &Event::NodeAdded(small.clone()));
    assert_eq!(popped(&mut queue), None, "a node that is too small helps nobody");
    let large = node("small", json!({"status": {"allocatable": {"cpu": "8"}}}));
    queue.wake(&profiles(), &Event::NodeUpdated { old: small, new: large });
    assert_eq!(popped(&mut queue).as_deref(), Some("p"));
}

#[tokio::test(start_paused = true)]
async fn nothing_waits_for_ever() {
    let mut queue = Queue::default();
    queue.set(&profiles(), with_priority("p", 0));
    let waiting = queue.pop(&profiles()).expect("a pod to try");
    queue.give_back(waiting, BTreeSet::from(["NodeAffinity"]));
    let mut waited = Duration::ZERO;
    while popped(&mut queue).is_none() {
        let wake = queue.next_wake().expect("a time to look again") - Instant::now();
        advance(wake).await;
        waited += wake;
    }
    let five_minutes = Duration::from_mins(5);
    assert!(
        waited >= five_minutes && waited < five_minutes + Duration::from_secs(31),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn errors_back_off_from_one_second_to_ten() {
    let mut queue = Queue::default();
    queue.set(&profiles(), with_priority("p", 0));
    for want_s in [1, 2, 4, 8, 10, 10] {
        let waiting = queue.pop(&profiles()).expect("a pod to try");
        queue.give_back_errored(&profiles(), waiting);
        assert_eq!(popped(&mut queue), None);
        let wake = queue.next_wake().expect("the end of the back-off") - Instant::now();
        assert_eq!(wake, Duration::from_secs(want_s));
        advance(wake).await;
    }
    assert_eq!(popped(&mut queue).as_deref(), Some("p"));
}

#[tokio::test(start_paused = true)]
async fn gates_hold_a_pod_until_they_are_gone() {
    let gated = |gates: Value| pod("p", json!({"spec": {"schedulingGates": gates}}));
    let mut queue = Queue::default();
    queue.set(&profiles(), gated(json!([{"name": "a"}, {"name": "b"}])));
    assert!(queue.get("uid-p").is_some_and(|waiting| waiting.gated));
    queue.wake(&profiles(), &Event::NodeAdded(node("n", json!({}))));
    assert_eq!(popped(&mut queue), None);
    queue.set(&profiles(), gated(json!([{"name": "b"}])));
    assert_eq!(popped(&mut queue), None);
    queue.set(&profiles(), gated(json!([])));
    assert_eq!(popped(&mut queue).as_deref(), Some("p"));
}
