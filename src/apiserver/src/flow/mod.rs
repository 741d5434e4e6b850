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
mod objects;
mod queue;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, StatusCode};

use crate::attributes::RequestContext;
use crate::body::Response;
use crate::registry::Registry;
use crate::respond;

use classify::Schemas;
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
}

/// A request's turn: while it is held, the request counts as running.
#[derive(Default)]
pub struct Turn {
    schema_uid: Option<HeaderValue>,
    level_uid: Option<HeaderValue>,
    seat: Option<Seat>,
}

impl Turn {
    /// Lets the next one have its turn.
    pub fn end(self) {
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
        Self { registry, schemas: RwLock::default(), levels: Arc::default() }
    }

    /// Waits for the request's turn; `Err` is the refusal when there are too many.
    pub async fn enter(&self, ctx: &RequestContext) -> Result<Turn, Box<Response>> {
        if is_long_running(ctx) {
            return Ok(Turn::default());
        }
        let schemas = self.schemas.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(schema) = schemas.find(ctx) else { return Ok(Turn::default()) };
        let mut turn = Turn {
            schema_uid: Some(schema.uid.clone()),
            level_uid: Some(schema.level_uid.clone()),
            seat: None,
        };
        if schema.exempt {
            return Ok(turn);
        }
        if let Ok(seat) = self.levels.enter(&schema.level, || schema.flow_of(ctx), WAIT_MAX).await {
            turn.seat = seat;
            return Ok(turn);
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
        *flow.schemas.write().expect("no panic") = Arc::new(Schemas::new(&schemas, &levels));
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
}
