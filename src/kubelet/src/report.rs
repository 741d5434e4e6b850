//! Tells the API server what a pod is, off the worker's path: the newest status wins.
//!
//! Source of behaviour: `pkg/kubelet/status/status_manager.go`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::context::Context;
use crate::pod;

/// What is to be told.
#[derive(Clone, Debug, Default)]
struct Wanted {
    status: Option<PodStatus>,
    /// The pod as the API had it when the status was made: others may have written into it.
    seen: Arc<Pod>,
    /// The pod is over on this node: remove it from the API.
    delete: bool,
}

/// Reports one pod.
pub struct Reporter {
    wanted: watch::Sender<Wanted>,
    _task: AbortOnDropHandle<()>,
}

impl Reporter {
    /// Starts reporting `of`, whose status in the API is `known`.
    pub fn new(context: Arc<Context>, of: &Pod, known: PodStatus) -> Self {
        let (wanted, receiver) = watch::channel(Wanted::default());
        let task = AbortOnDropHandle::new(tokio::spawn(run(context, of.clone(), known, receiver)));
        Self { wanted, _task: task }
    }

    /// Reports `status`, made when the API had the pod as `seen`, unless that was reported last.
    pub fn report(&self, status: PodStatus, seen: Arc<Pod>) {
        self.wanted.send_if_modified(|wanted| {
            let same = wanted.status.as_ref() == Some(&status);
            if same && version(&wanted.seen) == version(&seen) {
                return false;
            }
            wanted.status = Some(status);
            wanted.seen = seen;
            true
        });
    }

    /// Removes the pod from the API once its last status is told.
    pub fn delete(&self) {
        self.wanted.send_if_modified(|wanted| !std::mem::replace(&mut wanted.delete, true));
    }
}

async fn run(
    context: Arc<Context>,
    of: Pod,
    mut known: PodStatus,
    mut wanted: watch::Receiver<Wanted>,
) {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), pod::namespace(&of));
    let mut delay = Duration::from_millis(200);
    // The version that our last word made; what the API has later may be others' word.
    let mut told = version(&of);
    while wanted.changed().await.is_ok() {
        loop {
            let now = wanted.borrow_and_update().clone();
            if version(&now.seen) > told {
                told = version(&now.seen);
                known = now.seen.status.clone().unwrap_or_default();
            }
            match tell(&context, &api, &of, (&mut known, &mut told), now).await {
                Ok(Told::Done) => {
                    delay = Duration::from_millis(200);
                    break;
                }
                Ok(Told::Gone) => return,
                Err(error) => {
                    tracing::debug!(pod = pod::name(&of), %error, "pod status not reported, trying again");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(Duration::from_secs(10));
                }
            }
        }
    }
}

enum Told {
    Done,
    Gone,
}

async fn tell(
    context: &Context,
    api: &Api<Pod>,
    of: &Pod,
    (known, told): (&mut PodStatus, &mut Option<u64>),
    wanted: Wanted,
) -> Result<Told, kube::Error> {
    if let Some(status) = wanted.status
        && let Some(changes) = patch(known, &status)
    {
        let started = SystemTime::now();
        let body = json!({"metadata": {"uid": pod::uid(of)}, "status": changes});
        match api
            .patch_status(pod::name(of), &PatchParams::default(), &Patch::Strategic(body))
            .await
        {
            Ok(made) => *told = version(&made),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Told::Gone),
            Err(error) => return Err(error),
        }
        let phase = status.phase.clone().unwrap_or_default();
        apimachinery::trace::step("report", pod::uid(of), started, &phase);
        *known = status;
    }
    if wanted.delete {
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(pod::uid(of).to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        return match api.delete(pod::name(of), &parameters).await {
            Ok(_) => {
                tracing::debug!(pod = pod::name(of), node = context.node_name, "pod removed");
                Ok(Told::Gone)
            }
            // Another pod of the name: this one is gone.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(Told::Gone),
            Err(error) => Err(error),
        };
    }
    Ok(Told::Done)
}

/// The resource version of a pod: versions of one resource are numbers that grow.
fn version(of: &Pod) -> Option<u64> {
    of.metadata.resource_version.as_ref()?.parse().ok()
}

/// The strategic merge patch that turns `old` into `new`, or `None` when there is nothing to tell.
fn patch(old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let to_map = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (old, new) = (to_map(old), to_map(new));
    let mut out = Map::new();
    for (key, value) in &new {
        if old.get(key) == Some(value) {
            continue;
        }
        // Lists that merge by key would keep what is gone. Where there is no list, older servers would take
        // a directive for an item.
        let was = old.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        let value = match (key.as_str(), value) {
            ("podIPs" | "hostIPs", Value::Array(items)) if !was.is_empty() => {
                let mut items = items.clone();
                items.push(json!({"$patch": "replace"}));
                Value::Array(items)
            }
            ("conditions", Value::Array(items)) => {
                let changed = items.iter().filter(|item| !was.contains(item)).cloned();
                let gone = |was: &&Value| !items.iter().any(|item| item["type"] == was["type"]);
                let gone = was.iter().filter(gone);
                let gone = gone.map(|was| json!({"$patch": "delete", "type": was["type"]}));
                Value::Array(changed.map(with_removals).chain(gone).collect())
            }
            _ => value.clone(),
        };
        out.insert(key.clone(), value);
    }
    for key in old.keys().filter(|k| !new.contains_key(*k)) {
        out.insert(key.clone(), Value::Null);
    }
    (!out.is_empty()).then_some(Value::Object(out))
}

/// The condition with nulls for what it does not say, so that merging it leaves no old reason.
fn with_removals(mut condition: Value) -> Value {
    if let Value::Object(fields) = &mut condition {
        for key in ["message", "reason"] {
            fields.entry(key).or_insert(Value::Null);
        }
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(json: Value) -> PodStatus {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_what_changed_is_told() {
        let old = status(json!({"phase": "Pending", "reason": "X", "podIPs": [{"ip": "1"}],
            "conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "False"},
                {"type": "C", "status": "True"}]}));
        assert_eq!(patch(&old, &old), None);
        let new = status(json!({"phase": "Running", "podIPs": [{"ip": "2"}],
            "conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "True"}]}));
        assert_eq!(
            patch(&old, &new).unwrap(),
            json!({"phase": "Running", "reason": null,
                "podIPs": [{"ip": "2"}, {"$patch": "replace"}],
                "conditions": [{"type": "B", "status": "True", "reason": null, "message": null},
                    {"$patch": "delete", "type": "C"}]})
        );
        let first = patch(&status(json!({"phase": "Running"})), &new).unwrap();
        assert_eq!(first["podIPs"], json!([{"ip": "2"}]));
    }
}
