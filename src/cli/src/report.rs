//! What a person would ask when something in a cluster went wrong: which pods are not well and why, their last
//! log lines, the last warnings.

use http::Request;
use kube::Client;
use serde_json::Value;

use crate::why;

/// Log lines told per container, and events told at most.
const LINES: usize = 20;
const EVENTS: usize = 20;

/// A GET of `path`.
pub async fn get(client: &Client, path: &str) -> kube::Result<Value> {
    client.request(request(path)?).await
}

fn request(path: &str) -> kube::Result<Request<Vec<u8>>> {
    Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)
}

/// The events about an object, oldest first.
async fn events(
    client: &Client,
    namespace: &str,
    name: &str,
    kind: &str,
) -> kube::Result<Vec<Value>> {
    let path = format!(
        "/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name%3D{name}%2CinvolvedObject.kind%3D{kind}"
    );
    Ok(in_order(get(client, &path).await?))
}

/// What holds an object, and what it is called.
pub struct Held {
    /// `Pod default/web-0`.
    pub object: String,
    /// What holds it.
    pub verdict: why::Verdict,
}

/// What holds a pod.
pub async fn why(client: &Client, namespace: &str, name: &str) -> kube::Result<why::Verdict> {
    match get(client, &format!("/api/v1/namespaces/{namespace}/pods/{name}")).await {
        Ok(pod) => pod_verdict(client, &pod).await,
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let left = why::gone(&events(client, namespace, name, "Pod").await?);
            left.ok_or(kube::Error::Api(status))
        }
        Err(error) => Err(error),
    }
}

/// A service: what keeps it from its pods, or what holds those of them that are not well.
async fn service(
    client: &Client,
    namespace: &str,
    name: &str,
    object: String,
) -> kube::Result<Held> {
    let root = format!("/api/v1/namespaces/{namespace}");
    let service = get(client, &format!("{root}/services/{name}")).await?;
    let pods = items(get(client, &format!("{root}/pods")).await?);
    let slices = get(client, &format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{name}")).await?;
    if let Some(verdict) = why::service::explain(&service, &pods, &items(slices)) {
        return Ok(Held { object, verdict });
    }
    let mine = why::service::selected(&service, &pods);
    for pod in &mine {
        let verdict = pod_verdict(client, pod).await?;
        if !verdict.step.is_empty() {
            let pod = pod["metadata"]["name"].as_str().unwrap_or_default();
            return Ok(Held { object: format!("{object}, by its Pod {pod}"), verdict });
        }
    }
    Ok(Held { object, verdict: why::service::well(&service, &mine) })
}

/// A claim for a volume.
async fn claim(client: &Client, namespace: &str, name: &str, object: String) -> kube::Result<Held> {
    let root = format!("/api/v1/namespaces/{namespace}");
    let claim = get(client, &format!("{root}/persistentvolumeclaims/{name}")).await?;
    let class = match claim["spec"]["storageClassName"].as_str().filter(|class| !class.is_empty()) {
        Some(class) => {
            let path = format!("/apis/storage.k8s.io/v1/storageclasses/{class}");
            get(client, &path).await.map(Some).or_else(|error| match error {
                kube::Error::Api(status) if status.code == 404 => Ok(None),
                error => Err(error),
            })?
        }
        None => None,
    };
    let pods = items(get(client, &format!("{root}/pods")).await?);
    let uses = |pod: &&Value| {
        let mut volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
        volumes.any(|volume| volume["persistentVolumeClaim"]["claimName"] == name)
    };
    let users: Vec<&str> =
        pods.iter().filter(uses).filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
    let events = events(client, namespace, name, "PersistentVolumeClaim").await?;
    let verdict = why::claim::explain(&claim, class.as_ref(), &users, &events);
    Ok(Held { object, verdict })
}

async fn pod_verdict(client: &Client, pod: &Value) -> kube::Result<why::Verdict> {
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    let (namespace, name) = (text("namespace"), text("name"));
    let mut verdict = why::explain(pod, &events(client, namespace, name, "Pod").await?);
    if let Some((container, previous)) = &verdict.log {
        let path = format!(
            "/api/v1/namespaces/{namespace}/pods/{name}/log?container={container}&tailLines={LINES}&previous={previous}"
        );
        // A log that is gone is no reason to say nothing.
        let log = client.request_text(request(&path)?).await.unwrap_or_default();
        verdict.hear(&log);
    }
    if verdict.wants_taints() {
        // Not everybody may look at nodes.
        verdict.see_taints(&get(client, "/api/v1/nodes").await.unwrap_or_default());
    }
    Ok(verdict)
}

/// Where kinds that make pods are served.
const OWNERS: [(&str, &str, &str); 6] = [
    ("Deployment", "apps/v1", "deployments"),
    ("ReplicaSet", "apps/v1", "replicasets"),
    ("StatefulSet", "apps/v1", "statefulsets"),
    ("DaemonSet", "apps/v1", "daemonsets"),
    ("Job", "batch/v1", "jobs"),
    ("CronJob", "batch/v1", "cronjobs"),
];

/// Kinds that can be asked about, as they are written on a command line.
pub fn kind_of(word: &str) -> Option<&'static str> {
    Some(match word.to_lowercase().as_str() {
        "pod" | "pods" | "po" => "Pod",
        "deployment" | "deployments" | "deploy" => "Deployment",
        "replicaset" | "replicasets" | "rs" => "ReplicaSet",
        "statefulset" | "statefulsets" | "sts" => "StatefulSet",
        "daemonset" | "daemonsets" | "ds" => "DaemonSet",
        "job" | "jobs" => "Job",
        "cronjob" | "cronjobs" | "cj" => "CronJob",
        "service" | "services" | "svc" => "Service",
        "persistentvolumeclaim" | "persistentvolumeclaims" | "pvc" => "PersistentVolumeClaim",
        _ => return None,
    })
}

/// What holds an object that makes pods: that it cannot make them, or what holds the first of them that is not
/// well.
pub async fn why_not(
    client: &Client,
    kind: &str,
    namespace: &str,
    name: &str,
) -> kube::Result<Held> {
    let object = format!("{kind} {namespace}/{name}");
    match kind {
        "Service" => return service(client, namespace, name, object).await,
        "PersistentVolumeClaim" => return claim(client, namespace, name, object).await,
        _ => {}
    }
    let Some((_, version, plural)) = OWNERS.iter().find(|(owner, _, _)| *owner == kind) else {
        let verdict = why(client, namespace, name).await?;
        return Ok(Held { object, verdict });
    };
    let of =
        get(client, &format!("/apis/{version}/namespaces/{namespace}/{plural}/{name}")).await?;
    let mut owners = vec![of];
    let mut pods = Vec::new();
    // What owns pods, itself or through what it owns.
    for (owned, version, plural) in
        [("ReplicaSet", "apps/v1", "replicasets"), ("Job", "batch/v1", "jobs")]
    {
        if kind == "Deployment" && owned == "ReplicaSet" || kind == "CronJob" && owned == "Job" {
            let all =
                get(client, &format!("/apis/{version}/namespaces/{namespace}/{plural}")).await?;
            let mine = owned_by(&owners, all);
            owners.extend(mine);
        }
    }
    pods.extend(owned_by(
        &owners,
        get(client, &format!("/api/v1/namespaces/{namespace}/pods")).await?,
    ));
    for pod in &pods {
        let verdict = pod_verdict(client, pod).await?;
        if !verdict.step.is_empty() {
            let pod = pod["metadata"]["name"].as_str().unwrap_or_default();
            return Ok(Held { object: format!("{object}, by its Pod {pod}"), verdict });
        }
    }
    let events = in_order(
        get(
            client,
            &format!("/api/v1/namespaces/{namespace}/events?fieldSelector=reason%3DFailedCreate"),
        )
        .await?,
    );
    let about = |event: &&Value| {
        owners.iter().any(|owner| owner["metadata"]["uid"] == event["involvedObject"]["uid"])
    };
    // Events stay for an hour: those of one that has its pods by now are past.
    let satisfied = !pods.is_empty()
        && pods.len() as u64 >= owners[0]["spec"]["replicas"].as_u64().unwrap_or(1);
    if let Some(event) = events.iter().rev().find(about).filter(|_| !satisfied) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let creator = format!(
            "{} {namespace}/{}",
            text(&event["involvedObject"]["kind"]),
            text(&event["involvedObject"]["name"])
        );
        return Ok(Held { object, verdict: why::not_created(&creator, &text(&event["message"])) });
    }
    Ok(Held { object, verdict: why::unheld(&owners[0], pods.len()) })
}

/// Of a list's objects those that any of `owners` has.
fn owned_by(owners: &[Value], list: Value) -> Vec<Value> {
    let is_mine = |item: &Value| {
        let references = item["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        references
            .into_iter()
            .any(|r| owners.iter().any(|owner| owner["metadata"]["uid"] == r["uid"]))
    };
    items(list).into_iter().filter(is_mine).collect()
}

fn items(mut list: Value) -> Vec<Value> {
    match list["items"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

fn in_order(mut list: Value) -> Vec<Value> {
    let Some(items) = list["items"].as_array_mut() else { return Vec::new() };
    let mut events = std::mem::take(items);
    events.sort_by_key(|event| last_seen(event).to_owned());
    events
}

/// When the event came last.
fn last_seen(event: &Value) -> &str {
    let series = event["series"]["lastObservedTime"].as_str();
    let fields = ["lastTimestamp", "eventTime", "firstTimestamp"];
    series.or_else(|| fields.iter().find_map(|field| event[field].as_str())).unwrap_or_default()
}

/// The report on everything in the cluster; empty when all is well.
pub async fn report(client: &Client) -> kube::Result<String> {
    let mut out = String::new();
    let pods = get(client, "/api/v1/pods").await?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        let verdict = why::explain(pod, &events(client, namespace, name, "Pod").await?);
        if verdict.step.is_empty() {
            continue;
        }
        out.push_str(&why::text(namespace, name, &verdict));
        for (container, previous) in containers(pod) {
            let path = format!(
                "/api/v1/namespaces/{namespace}/pods/{name}/log?container={container}&tailLines={LINES}&previous={previous}"
            );
            // A container that never ran has no log.
            let Ok(log) = client.request_text(request(&path)?).await else { continue };
            if !log.trim().is_empty() {
                out.push_str(&format!(
                    "--- last lines of {namespace}/{name}, container {container}\n"
                ));
                out.push_str(log.trim_end());
                out.push('\n');
            }
        }
    }
    let warnings = in_order(get(client, "/api/v1/events?fieldSelector=type%3DWarning").await?);
    if !warnings.is_empty() {
        out.push_str("--- warnings\n");
    }
    for event in warnings.iter().rev().take(EVENTS).rev() {
        let about = &event["involvedObject"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        out.push_str(&format!(
            "{} {}/{}: {}: {}\n",
            last_seen(event),
            text(&about["kind"]).to_lowercase(),
            text(&about["name"]),
            text(&event["reason"]),
            text(&event["message"]).trim_end(),
        ));
    }
    Ok(out)
}

/// The containers whose logs may tell something, and whether it is that of the run before.
fn containers(pod: &Value) -> Vec<(&str, bool)> {
    let mut found = Vec::new();
    for list in ["initContainerStatuses", "containerStatuses"] {
        for status in pod["status"][list].as_array().into_iter().flatten() {
            let ended_well = status["state"]["terminated"]["exitCode"] == 0;
            let again = status["restartCount"].as_u64().is_some_and(|count| count > 0);
            let between = status["state"]["waiting"].is_object();
            if let (Some(name), false) =
                (status["name"].as_str(), ended_well || status["ready"] == true)
            {
                found.push((name, again && between));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn logs_are_those_of_containers_that_are_not_well() {
        let status = |name: &str, ready: bool, restarts: u32, state: Value| json!({"name": name, "ready": ready, "restartCount": restarts, "state": state});
        let pod = json!({"status": {
            "initContainerStatuses": [status("prepare", true, 0, json!({"terminated": {"exitCode": 0}}))],
            "containerStatuses": [
                status("fine", true, 1, json!({"running": {}})),
                status("slow", false, 1, json!({"running": {}})),
                status("crash", false, 2, json!({"waiting": {"reason": "CrashLoopBackOff"}})),
            ],
        }});
        assert_eq!(containers(&pod), [("slow", false), ("crash", true)]);
    }

    #[test]
    fn events_are_sorted_by_when_they_were_last_seen() {
        let list = json!({"items": [
            {"lastTimestamp": "2026-01-02T00:00:00Z", "reason": "B"},
            {"lastTimestamp": null, "eventTime": "2026-01-01T00:00:00Z", "reason": "A"},
        ]});
        let reasons: Vec<Value> = in_order(list).iter().map(|e| e["reason"].clone()).collect();
        assert_eq!(reasons, ["A", "B"]);
    }
}
