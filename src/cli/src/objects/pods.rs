//! Which pod and which container a command means.
//!
//! Source: `k8s.io/kubectl/pkg/polymorphichelpers`, `pkg/cmd/util/podcmd`.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::error::Error;
use super::selection::{Query, select};
use super::session::Session;

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// Between looks for a pod that is to come.
const PAUSE: Duration = Duration::from_millis(200);

/// The lists of a pod's spec that hold containers, and what is told of those in them.
pub const LISTS: [(&str, &str); 3] =
    [("containers", ""), ("ephemeralContainers", " (ephem)"), ("initContainers", " (init)")];

/// Text in an object's metadata.
pub fn meta<'v>(object: &'v Value, field: &str) -> &'v str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// The path of a pod or of something below it.
pub fn path(pod: &Value, below: &str) -> String {
    let (namespace, name) = (meta(pod, "namespace"), meta(pod, "name"));
    format!("/api/v1/namespaces/{namespace}/pods/{name}{below}")
}

/// The pod called `word`: its name, `pod/NAME`, or something that has pods, of which one is chosen. Waits
/// `patience` for one to come; with `tell` says which one it is.
pub async fn find(
    session: &Session,
    word: &str,
    patience: Duration,
    tell: bool,
) -> Result<Value, Error> {
    let object = object(session, word).await?;
    if object["kind"] == "Pod" {
        return Ok(object);
    }
    let deadline = Instant::now() + patience;
    loop {
        let mut pods = of(session, &object).await?;
        if !pods.is_empty() {
            pods.sort_by_cached_key(rank);
            if tell && pods.len() > 1 {
                eprintln!("Found {} pods, using pod/{}", pods.len(), meta(&pods[0], "name"));
            }
            return Ok(pods.swap_remove(0));
        }
        if Instant::now() > deadline {
            return Err(Error::wrong("timed out waiting for the condition"));
        }
        sleep(PAUSE).await;
    }
}

/// The object called `word`; a bare name is a pod's.
pub async fn object(session: &Session, word: &str) -> Result<Value, Error> {
    if !word.contains('/') {
        let path =
            format!("/api/v1/namespaces/{}/pods/{}", session.namespace, super::kinds::escape(word));
        return session.api.get(&path).await;
    }
    let selected = select(session.kinds().await?, &[word.to_owned()])?;
    let Some(one) = selected.first() else {
        return Err(Error::wrong("resource name may not be empty"));
    };
    let name = one.name.as_deref().unwrap_or_default();
    session.api.get(&one.resource.path(Some(&session.namespace), name)).await
}

/// The pods that an object has.
pub async fn of(session: &Session, object: &Value) -> Result<Vec<Value>, Error> {
    let selector = selector(object)?;
    let namespace = meta(object, "namespace");
    listed(session, Some(namespace), &selector).await
}

/// The pods with these labels.
pub async fn listed(
    session: &Session,
    namespace: Option<&str>,
    selector: &str,
) -> Result<Vec<Value>, Error> {
    let place = namespace.map(|n| format!("/namespaces/{n}")).unwrap_or_default();
    let query = Query::default().with("labelSelector", selector);
    let mut list = session.api.get(&format!("/api/v1{place}/pods{}", query.text())).await?;
    let Value::Array(mut pods) = list["items"].take() else { return Ok(Vec::new()) };
    for pod in &mut pods {
        pod["kind"] = "Pod".into();
        pod["apiVersion"] = "v1".into();
    }
    Ok(pods)
}

/// How an object selects its pods.
fn selector(object: &Value) -> Result<String, Error> {
    let selector = &object["spec"]["selector"];
    let none = || {
        let (kind, name) = (object["kind"].as_str().unwrap_or_default(), meta(object, "name"));
        Error::Wrong(format!(
            "cannot find pods of {} {name:?}: it has no selector",
            kind.to_lowercase()
        ))
    };
    let map = selector.as_object().ok_or_else(none)?;
    let plain = !map.contains_key("matchLabels") && !map.contains_key("matchExpressions");
    let labels = if plain { Some(map) } else { map.get("matchLabels").and_then(Value::as_object) };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut parts: Vec<String> =
        labels.into_iter().flatten().map(|(key, value)| format!("{key}={}", text(value))).collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let values = expression["values"].as_array().into_iter().flatten();
        let values = values.map(text).collect::<Vec<_>>().join(",");
        let key = text(&expression["key"]);
        parts.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key,
        });
    }
    if parts.is_empty() { Err(none()) } else { Ok(parts.join(",")) }
}

/// The order in which pods are preferred: on a node, running, ready, longest so, least restarted, oldest.
fn rank(pod: &Value) -> (bool, u8, bool, String, u64, String) {
    let phase = match pod["status"]["phase"].as_str() {
        Some("Running") => 0,
        Some("Unknown") => 1,
        _ => 2,
    };
    let conditions = pod["status"]["conditions"].as_array();
    let ready = conditions
        .and_then(|all| all.iter().find(|c| c["type"] == "Ready" && c["status"] == "True"));
    let since = ready.and_then(|c| c["lastTransitionTime"].as_str()).unwrap_or("~");
    let statuses = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    let restarts = statuses.filter_map(|s| s["restartCount"].as_u64()).max().unwrap_or(0);
    let created = meta(pod, "creationTimestamp").to_owned();
    (
        pod["spec"]["nodeName"].as_str().is_none(),
        phase,
        ready.is_none(),
        since.to_owned(),
        restarts,
        created,
    )
}

/// The names of a pod's containers in one of [`LISTS`].
pub fn names<'v>(pod: &'v Value, list: &str) -> impl Iterator<Item = &'v str> {
    let containers = pod["spec"][list].as_array().into_iter().flatten();
    containers.filter_map(|container| container["name"].as_str())
}

/// The container meant: `given`, or the pod's default one, which is told unless `quiet`.
pub fn container(pod: &Value, given: &str, quiet: bool) -> Result<String, Error> {
    let all = || LISTS.iter().flat_map(|(list, note)| names(pod, list).map(move |n| (n, *note)));
    let told = || all().map(|(name, note)| format!("{name}{note}")).collect::<Vec<_>>().join(", ");
    if !given.is_empty() {
        if all().any(|(name, _)| name == given) {
            return Ok(given.to_owned());
        }
        let meant = super::kinds::nearest(given, all().map(|(name, _)| name));
        let hint = meant.map(|m| format!("\nhint: did you mean {m:?}?")).unwrap_or_default();
        return Err(Error::Wrong(format!(
            "container {given} is not valid for pod {}{hint}",
            meta(pod, "name")
        )));
    }
    let annotated = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str().unwrap_or_default();
    if !annotated.is_empty() && all().any(|(name, _)| name == annotated) {
        return Ok(annotated.to_owned());
    }
    let Some(first) = names(pod, "containers").next() else {
        return Err(Error::Wrong(format!(
            "pod {} does not have any containers",
            meta(pod, "name")
        )));
    };
    if !quiet && all().count() > 1 {
        eprintln!("Defaulted container {first:?} out of: {}", told());
    }
    Ok(first.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_are_chosen() {
        let mut pod = json!({"metadata": {"name": "p", "annotations": {}}, "spec": {
            "containers": [{"name": "main"}, {"name": "side"}], "initContainers": [{"name": "init"}]}});
        assert_eq!(container(&pod, "", true).unwrap(), "main");
        assert_eq!(container(&pod, "init", true).unwrap(), "init");
        let error = container(&pod, "sdie", true).unwrap_err().text();
        assert_eq!(
            error,
            "error: container sdie is not valid for pod p\nhint: did you mean \"side\"?\n"
        );
        pod["metadata"]["annotations"][DEFAULT_CONTAINER] = "side".into();
        assert_eq!(container(&pod, "", true).unwrap(), "side");
    }

    #[test]
    fn selectors_of_all_kinds_are_read() {
        let cases = [
            (json!({"app": "x", "b": "y"}), Some("app=x,b=y")),
            (
                json!({"matchLabels": {"app": "x"}, "matchExpressions": [{"key": "t", "operator": "In", "values": ["a", "b"]},
                {"key": "u", "operator": "DoesNotExist"}, {"key": "v", "operator": "Exists"}]}),
                Some("app=x,t in (a,b),!u,v"),
            ),
            (Value::Null, None),
        ];
        for (spec, want) in cases {
            let object = json!({"kind": "X", "metadata": {}, "spec": {"selector": spec}});
            assert_eq!(selector(&object).ok().as_deref(), want);
        }
    }

    #[test]
    fn running_pods_come_first() {
        let pod = |name: &str, phase: &str, ready: &str, restarts: u64| {
            json!({"metadata": {"name": name}, "spec": {"nodeName": "n"}, "status": {"phase": phase,
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "t"}],
                "containerStatuses": [{"restartCount": restarts}]}})
        };
        let mut pods = [
            pod("d", "Pending", "False", 0),
            pod("c", "Running", "False", 0),
            pod("b", "Running", "True", 3),
            pod("a", "Running", "True", 1),
        ];
        pods.sort_by_cached_key(rank);
        let names: Vec<&str> = pods.iter().map(|p| meta(p, "name")).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
    }
}
