//! Priority and fairness: which requests are served first when there are too many, and that no client
//! takes another's turn.
//!
//! `FlowSchema` objects say to which level a request belongs and whose it is, `classify` reads them;
//! `PriorityLevelConfiguration` objects say how many of a level run at once, `queue` keeps to that.
//!
//! Source: `k8s.io/apiserver/pkg/util/flowcontrol` and
//! <https://kubernetes.io/docs/concepts/cluster-administration/flow-control/>.

mod classify;
mod controller;
mod counts;
mod dump;
mod objects;
mod queue;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, StatusCode};
use prometheus_client::registry::Registry as Metrics;

use crate::attributes::RequestContext;
use crate::body::Response;
use crate::registry::Registry;
use crate::respond;

use classify::Schemas;
use counts::{Counts, Held, Tally};
use queue::{Levels, Seat};

pub use controller::run;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: &str = "flowschemas";
const LEVELS: &str = "prioritylevelconfigurations";
const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
/// A request waits no longer for its turn: a quarter of the time that requests have.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// Gives requests their turns.
pub struct Flow {
    registry: Registry,
    schemas: RwLock<Arc<Schemas>>,
    levels: Arc<Levels>,
    counts: Counts,
}

/// A request's turn: while it is held, the request counts as running.
#[derive(Default)]
pub struct Turn {
    schema_uid: Option<HeaderValue>,
    level_uid: Option<HeaderValue>,
    seat: Option<Seat>,
    running: Option<Running>,
}

/// What is counted of a request that runs.
struct Running {
    tally: Arc<Tally>,
    since: Instant,
    _held: Held,
}

impl Turn {
    /// Lets the next one have its turn.
    pub fn end(self) {
        if let Some(Running { tally, since, .. }) = &self.running {
            tally.ran(since.elapsed());
        }
        drop(self.seat);
    }

    /// Says in the answer how the request was classified.
    pub fn mark(&self, response: &mut Response) {
        let headers = response.headers_mut();
        for (name, value) in [(SCHEMA_UID, &self.schema_uid), (LEVEL_UID, &self.level_uid)] {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
    }
}

/// Requests that last as long as their connection are not counted.
fn is_long_running(ctx: &RequestContext) -> bool {
    matches!(ctx.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward")
        || ctx.verb == "proxy"
}

impl Flow {
    /// Levels and schemas of `registry`; until [`run`] has read them everything runs at once.
    pub fn new(registry: Registry) -> Self {
        Self {
            registry,
            schemas: RwLock::default(),
            levels: Arc::default(),
            counts: Counts::default(),
        }
    }

    /// Tells the metrics of requests and levels.
    pub fn register(&self, metrics: &mut Metrics) {
        self.counts.register(&self.levels, metrics);
    }

    fn schemas(&self) -> Arc<Schemas> {
        self.schemas.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the request's turn; `Err` is the refusal when there are too many.
    pub async fn enter(&self, ctx: &RequestContext) -> Result<Turn, Box<Response>> {
        if is_long_running(ctx) {
            return Ok(Turn::default());
        }
        let schemas = self.schemas();
        let Some(schema) = schemas.find(ctx) else { return Ok(Turn::default()) };
        let mut turn = Turn {
            schema_uid: Some(schema.uid.clone()),
            level_uid: Some(schema.level_uid.clone()),
            seat: None,
            running: None,
        };
        let (tally, began) = (&schema.tally, Instant::now());
        let run = |waited: Duration| {
            Some(Running { tally: tally.clone(), since: began + waited, _held: tally.run(waited) })
        };
        if schema.exempt {
            turn.running = run(Duration::ZERO);
            return Ok(turn);
        }
        let pending = tally.wait();
        let entered = self.levels.enter(&schema.level, || schema.flow_of(ctx), WAIT_MAX).await;
        pending.over();
        let waited = began.elapsed();
        match entered {
            Ok(seat) => {
                turn.seat = seat;
                turn.running = run(waited);
                return Ok(turn);
            }
            Err(why) => tally.refuse(why, waited),
        }
        let text = "Too many requests, please try again later.\n";
        let mut response = respond::text(StatusCode::TOO_MANY_REQUESTS, text);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        turn.mark(&mut response);
        Err(Box::new(response))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use serde_json::Value;

    use super::*;
    use crate::attributes::UserInfo;

    fn flow() -> Flow {
        let flow = Flow::new(Registry::default());
        let of = |plural: &str| -> Vec<Value> {
            let objects = objects::all().into_iter().filter(|(kind, _)| *kind == plural);
            objects
                .map(|(_, mut object)| {
                    object["metadata"]["uid"] = object["metadata"]["name"].clone();
                    object
                })
                .collect()
        };
        let (schemas, levels) = (of(SCHEMAS), of(LEVELS));
        flow.levels.configure(&levels);
        *flow.schemas.write().expect("no panic") =
            Arc::new(Schemas::new(&schemas, &levels, &flow.counts));
        flow
    }

    fn ctx(user: &str, group: &str, verb: &'static str, plural: &str) -> RequestContext {
        RequestContext {
            user: Arc::new(UserInfo::new(user, &[group])),
            verb,
            plural: plural.into(),
            ..RequestContext::default()
        }
    }

    #[tokio::test]
    async fn a_flood_holds_up_neither_kubelets_nor_controllers() {
        let flow = flow();
        let flooding = ctx("eve", "system:authenticated", "list", "pods");
        // As many as run at once, and as many again that wait.
        let (mut running, mut waiting) = (Vec::new(), Vec::new());
        while waiting.len() < 200 {
            let mut turn = Box::pin(flow.enter(&flooding));
            match (&mut turn).now_or_never() {
                Some(Ok(turn)) => running.push(turn),
                Some(Err(_)) => break,
                None => waiting.push(turn),
            }
        }
        assert!(!running.is_empty() && !waiting.is_empty());
        let node = "system:node:a";
        let mut others = Vec::new();
        for (user, group, verb, plural) in [
            (node, "system:nodes", "list", "pods"),
            (node, "system:nodes", "update", "nodes"),
            ("system:kube-scheduler", "system:authenticated", "list", "pods"),
            ("system:kube-controller-manager", "system:authenticated", "list", "pods"),
            ("system:serviceaccount:a:b", "system:serviceaccounts", "get", "pods"),
            ("admin", "system:masters", "list", "pods"),
        ] {
            let ctx = ctx(user, group, verb, plural);
            let turn = flow.enter(&ctx).now_or_never();
            let Some(Ok(turn)) = turn else { panic!("{user} waits behind the flood") };
            others.push(turn);
        }
        // Somebody else of the flooded level is served before most of the flood.
        let quiet = ctx("jane", "system:authenticated", "list", "pods");
        let mut quiet = Box::pin(flow.enter(&quiet));
        let mut freed = 0;
        while (&mut quiet).now_or_never().is_none() {
            assert!(freed < 20, "it waits behind the flood");
            drop(running.pop());
            freed += 1;
            // Those of the flood whose turn it is begin to run.
            let mut still = Vec::new();
            for mut turn in waiting {
                match (&mut turn).now_or_never() {
                    Some(Ok(turn)) => running.push(turn),
                    Some(Err(_)) => {}
                    None => still.push(turn),
                }
            }
            waiting = still;
        }
    }

    #[tokio::test]
    async fn what_runs_and_waits_is_told() {
        let flow = flow();
        let mut metrics = Metrics::default();
        flow.register(&mut metrics);
        let told = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &metrics).expect("a text");
            text
        };
        let flooding = ctx("eve", "system:authenticated", "list", "pods");
        let (mut running, mut waiting) = (Vec::new(), Vec::new());
        while waiting.len() < 2 {
            let mut turn = Box::pin(flow.enter(&flooding));
            match (&mut turn).now_or_never() {
                Some(Ok(turn)) => running.push(turn),
                Some(Err(_)) => panic!("there is room to wait"),
                None => waiting.push(turn),
            }
        }
        let labels = r#"{priority_level="global-default",flow_schema="global-default"}"#;
        let runs = running.len();
        let text = told();
        for line in [
            format!("apiserver_flowcontrol_dispatched_requests_total{labels} {runs}\n"),
            format!("apiserver_flowcontrol_current_executing_requests{labels} {runs}\n"),
            format!("apiserver_flowcontrol_current_inqueue_requests{labels} 2\n"),
            "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"global-default\"} 49\n"
                .into(),
            "apiserver_flowcontrol_lower_limit_seats{priority_level=\"global-default\"} 25\n"
                .into(),
        ] {
            assert!(text.contains(&line), "{line}{text}");
        }
        let levels = flow.dump("dump_priority_levels").expect("a dump");
        let line = levels.lines().find(|line| line.starts_with("global-default")).expect("a line");
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let runs = runs.to_string();
        let runs = runs.as_str();
        assert_eq!(cells[2..], ["false", "false", "2", runs, runs, "0", "0", "0"], "{levels}");
        let requests = flow.dump("dump_requests").expect("a dump");
        assert_eq!(requests.matches("global-default,").count(), 4, "{requests}");
        assert!(requests.contains(" eve,"), "{requests}");
        assert!(flow.dump("dump_queues").is_some_and(|text| text.contains("leader-election,")));
        assert_eq!(flow.dump("dump_nothing"), None);
        // One goes away, and the other is served.
        drop(waiting.pop());
        running.into_iter().for_each(Turn::end);
        waiting.pop().expect("one waits").await.ok().expect("a turn").end();
        let text = told();
        assert!(text.contains(&format!("current_executing_requests{labels} 0\n")), "{text}");
        assert!(
            text.contains("flow_schema=\"global-default\",reason=\"cancelled\"} 1\n"),
            "{text}"
        );
    }
}
