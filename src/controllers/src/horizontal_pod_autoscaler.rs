//! HorizontalPodAutoscalers: sizes that follow what pods use.
//!
//! Metrics come from `metrics.k8s.io`, `custom.metrics.k8s.io` and `external.metrics.k8s.io`; where nobody
//! serves these the conditions say so.
//!
//! Source: `pkg/controller/podautoscaler/horizontal.go`.

mod custom;
mod limits;
mod metrics;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apimachinery::labels::Selector;
use apimachinery::quantity::Quantity;
use client::{Informer, Informers, Recorder, object_reference};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition,
    HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
    ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::discovery::pinned_kind;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::limits::{Past, limited};
use self::metrics::{Outcome, Sample, Target, Tolerances};
use crate::ownership::{self, Key};
use crate::queue::{self, Failure, Next};
use crate::{pods, touched, unless_code};

/// How often each is looked at (`--horizontal-pod-autoscaler-sync-period`).
const PERIOD: Duration = Duration::from_secs(15);
/// How often a size is written that others change meanwhile.
const WRITE_ATTEMPTS: usize = 5;
/// How long recommendations and changes are remembered.
const MEMORY_S: i64 = 3600;

/// What is scaled, as metrics see it.
#[derive(Clone, Copy)]
struct Sight<'a> {
    namespace: &'a str,
    /// The selector of its pods: written, and to be asked.
    labels: &'a str,
    picks: &'a Selector,
    /// The size that is asked for, and the pods there are.
    current: i32,
    present: i32,
    tolerances: Tolerances,
}

/// Why a metric gives no size: the reason of the condition and event, and what went wrong.
struct Problem {
    reason: &'static str,
    message: String,
    /// The message of the condition.
    condition: String,
    /// The message of the event about all metrics together.
    summary: String,
}

impl Problem {
    /// What is wrong with one metric; `summary` tells it among others.
    fn part(reason: &'static str, message: String, summary: impl FnOnce(&str) -> String) -> Self {
        let condition = format!("the HPA was unable to compute the replica count: {message}");
        Self { reason, summary: summary(&message), condition, message }
    }

    fn plain(reason: &'static str, message: String) -> Self {
        Self::part(reason, message, str::to_owned)
    }
}

/// Sets a condition; its time stays while its status does.
fn set_condition(
    status: &mut HorizontalPodAutoscalerStatus,
    kind: &str,
    holds: bool,
    reason: &str,
    message: impl Into<String>,
) {
    let all = status.conditions.get_or_insert_default();
    let state = if holds { "True" } else { "False" };
    let same = all.iter().find(|c| c.type_ == kind && c.status == state);
    let since = same.and_then(|c| c.last_transition_time.clone());
    let made = HorizontalPodAutoscalerCondition {
        type_: kind.into(),
        status: state.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: since.or_else(|| Some(Time(Timestamp::now()))),
    };
    match all.iter_mut().find(|c| c.type_ == kind) {
        Some(known) => *known = made,
        None => all.push(made),
    }
}

fn milli(text: &Text) -> i64 {
    text.0.parse::<Quantity>().map_or(0, |quantity| quantity.milli_value())
}

fn target(target: &MetricTarget) -> Option<Target> {
    let percent = target.average_utilization.map(|percent| Target::Utilization(percent.into()));
    percent.or_else(|| Some(Target::Average(milli(target.average_value.as_ref()?))))
}

/// What was measured by pod, of the whole pod or one container, from a `PodMetricsList`.
fn used(
    list: &Value,
    resource: &str,
    container: Option<&str>,
) -> Result<BTreeMap<String, Sample>, String> {
    let mut samples = BTreeMap::new();
    for pod in list["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let containers = pod["containers"].as_array().map_or(&[][..], Vec::as_slice);
        let meant: Vec<&Value> =
            containers.iter().filter(|c| container.is_none_or(|name| c["name"] == name)).collect();
        if let Some(container) = container
            && meant.is_empty()
        {
            let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
            return Err(format!(
                "failed to get container metrics: container {container} not present in metrics for pod {namespace}/{name}"
            ));
        }
        let amount = |found: &&Value| {
            let text = found["usage"][resource].as_str()?;
            Some(text.parse::<Quantity>().ok()?.milli_value())
        };
        // A pod of which something is not known is left out.
        let Some(all) = meant.iter().map(amount).collect::<Option<Vec<i64>>>() else { continue };
        let window = pod["window"].as_str().and_then(apimachinery::time::duration);
        let sample = Sample {
            used: all.iter().sum(),
            at: pod["timestamp"].as_str().and_then(|text| text.parse().ok()),
            window_s: window.map_or(0, |window| window.as_secs() as i64),
        };
        samples.insert(name.to_owned(), sample);
    }
    Ok(samples)
}

/// What the metric is called, and its present value.
fn told(outcome: &Outcome, resource: &str, container: Option<&str>) -> (String, MetricStatus) {
    let current = MetricValueStatus {
        average_utilization: outcome.utilization.map(|percent| percent as i32),
        average_value: Some(Text(Quantity::milli(outcome.average).canonical())),
        value: None,
    };
    let of_request =
        if outcome.utilization.is_some() { " utilization (percentage of request)" } else { "" };
    let Some(container) = container else {
        let told = MetricStatus {
            type_: "Resource".into(),
            resource: Some(ResourceMetricStatus { current, name: resource.into() }),
            ..MetricStatus::default()
        };
        return (format!("{resource} resource{of_request}"), told);
    };
    let told = MetricStatus {
        type_: "ContainerResource".into(),
        container_resource: Some(ContainerResourceMetricStatus {
            container: container.into(),
            current,
            name: resource.into(),
        }),
        ..MetricStatus::default()
    };
    // A share of the request is named by the container, the amount by the resource alone.
    let of_container = if of_request.is_empty() { "" } else { " container" };
    (format!("{resource}{of_container} resource{of_request}"), told)
}

struct Controller {
    client: Client,
    pods: Informer<Pod>,
    events: Recorder,
    past: Mutex<HashMap<Key, Past>>,
    /// Which pods are whose, so that none has two masters.
    selectors: Mutex<BTreeMap<Key, Selector>>,
}

/// What is scaled: its API, and its size as read.
struct Scaled {
    api: Api<DynamicObject>,
    name: String,
    scale: Scale,
}

impl Scaled {
    /// Writes the size, again if others write meanwhile.
    async fn resize(&self, to: i32) -> Result<(), kube::Error> {
        let mut scale = self.scale.clone();
        for _ in 1..WRITE_ATTEMPTS {
            scale.spec.get_or_insert_default().replicas = Some(to);
            let written = self.api.replace_scale(&self.name, &PostParams::default(), &scale).await;
            match written {
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    scale = self.api.get_scale(&self.name).await?;
                }
                outcome => return outcome.map(drop),
            }
        }
        scale.spec.get_or_insert_default().replicas = Some(to);
        self.api.replace_scale(&self.name, &PostParams::default(), &scale).await.map(drop)
    }
}

impl Controller {
    async fn scaled(&self, of: &HorizontalPodAutoscaler) -> Result<Scaled, kube::Error> {
        let target = &of.spec.scale_target_ref;
        let version = target.api_version.as_deref().unwrap_or("v1");
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let kind = GroupVersionKind::gvk(group, version, &target.kind);
        let resource: ApiResource = match pinned_kind(&self.client, &kind).await {
            Ok((resource, _)) => resource,
            Err(_) => ApiResource::from_gvk(&kind),
        };
        let namespace = of.namespace().unwrap_or_default();
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &namespace, &resource);
        let name = target.name.clone();
        let scale = api.get_scale(&name).await?;
        Ok(Scaled { api, name, scale })
    }

    /// What one metric asks for: replicas, what it is called, and its present value.
    async fn evaluate(
        &self,
        sight: Sight<'_>,
        metric: &MetricSpec,
    ) -> Result<(i32, String, MetricStatus), Problem> {
        let Sight { namespace, picks, current, tolerances, .. } = sight;
        let (resource, container, wanted, reason) =
            match (&metric.resource, &metric.container_resource) {
                (Some(source), _) => {
                    (&source.name, None, &source.target, "FailedGetResourceMetric")
                }
                (_, Some(source)) => (
                    &source.name,
                    Some(source.container.as_str()),
                    &source.target,
                    "FailedGetContainerResourceMetric",
                ),
                _ => return self.evaluate_custom(sight, metric).await,
            };
        let problem = |message: String| {
            let whole = wanted.average_utilization.is_none();
            let aspect = if whole { "usage" } else { "utilization" };
            let message = format!("failed to get {resource} {aspect}: {message}");
            Problem::part(reason, message, |message| match container {
                None => format!("failed to get {resource} resource metric value: {message}"),
                Some(name) => format!("failed to get {name} container metric value: {message}"),
            })
        };
        let target = target(wanted).ok_or_else(|| {
            let message = "invalid resource metric source: neither an average utilization target nor an average value (usage) target was set";
            Problem::plain(reason, message.into())
        })?;
        let used = self.measured(sight, resource, container).await.map_err(problem)?;
        let near = self.pods.store().state_filter(|pod| {
            pod.metadata.namespace.as_deref() == Some(namespace) && picks.matches(pod.labels())
        });
        let what = (resource.as_str(), container);
        let outcome =
            metrics::replicas(&near, &used, what, target, (current, tolerances), Timestamp::now())
                .map_err(problem)?;
        let (called, told) = told(&outcome, resource, container);
        Ok((outcome.replicas, called, told))
    }

    /// What the pods use of the resource.
    async fn measured(
        &self,
        Sight { namespace, labels, .. }: Sight<'_>,
        resource: &str,
        container: Option<&str>,
    ) -> Result<BTreeMap<String, Sample>, String> {
        let failed =
            |error: String| format!("unable to get metrics for resource {resource}: {error}");
        let query: String = labels.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!(
            "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={query}"
        );
        let list = async {
            let request = http::Request::get(&path).body(Vec::new());
            let request = request.map_err(|error| error.to_string())?;
            self.client.request::<Value>(request).await.map_err(|error| pods::text(&error))
        };
        let list = list.await.map_err(|error| {
            failed(format!("unable to fetch metrics from resource metrics API: {error}"))
        })?;
        if list["items"].as_array().is_none_or(Vec::is_empty) {
            return Err(failed("no metrics returned from resource metrics API".into()));
        }
        used(&list, resource, container).map_err(failed)
    }

    /// The largest size that a metric asks for. A metric that fails keeps the others from shrinking.
    async fn recommended(
        &self,
        of: &HorizontalPodAutoscaler,
        scale: &Scale,
        current: i32,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Result<(i32, String), Problem> {
        let (labels, picks) = self.selector(of, scale)?;
        let namespace = of.namespace().unwrap_or_default();
        let sight = Sight {
            namespace: &namespace,
            labels: &labels,
            picks: &picks,
            current,
            present: scale.status.as_ref().map_or(0, |status| status.replicas),
            tolerances: Tolerances::new(of.spec.behavior.as_ref()),
        };
        let (mut best, mut told) = (None::<(i32, String)>, Vec::new());
        let (mut problem, mut invalid) = (None, 0);
        let metrics = of.spec.metrics.as_deref().unwrap_or_default();
        for metric in metrics {
            match self.evaluate(sight, metric).await {
                Ok((replicas, called, value)) => {
                    told.push(value);
                    if best.as_ref().is_none_or(|(known, _)| replicas > *known) {
                        best = Some((replicas, called));
                    }
                }
                Err(found) => {
                    self.events.warning(object_reference(of), found.reason, found.message.clone());
                    problem.get_or_insert(found);
                    invalid += 1;
                    // Each metric keeps its place in the list.
                    told.push(MetricStatus::default());
                }
            }
        }
        let problem = problem.map(|first| Problem {
            summary: format!(
                "invalid metrics ({invalid} invalid out of {}), first error is: {}",
                metrics.len(),
                first.summary
            ),
            ..first
        });
        status.current_metrics = Some(told).filter(|told| !told.is_empty());
        match (best, problem) {
            (Some((replicas, called)), problem) if problem.is_none() || replicas >= current => {
                let message = format!(
                    "the HPA was able to successfully calculate a replica count from {called}"
                );
                set_condition(status, "ScalingActive", true, "ValidMetricFound", message);
                Ok((replicas, called))
            }
            (_, Some(problem)) => Err(problem),
            (best, None) => best.ok_or_else(|| {
                Problem::plain("InvalidMetricSourceType", "no metrics are given".into())
            }),
        }
    }

    /// The selector of the pods of what is scaled, which must be no other autoscaler's too.
    fn selector(
        &self,
        of: &HorizontalPodAutoscaler,
        scale: &Scale,
    ) -> Result<(String, Selector), Problem> {
        let refuse = |event: &'static str, reason: &'static str, message: String| {
            self.events.warning(object_reference(of), event, message.clone());
            Err(Problem { condition: message.clone(), ..Problem::plain(reason, message) })
        };
        let labels = scale.status.as_ref().and_then(|status| status.selector.clone());
        let labels = labels.unwrap_or_default();
        if labels.is_empty() {
            let message = "selector is required".to_owned();
            return refuse("SelectorRequired", "InvalidSelector", message).map_err(|problem| {
                let condition = "the HPA target's scale is missing a selector".into();
                Problem { condition, ..problem }
            });
        }
        let picks = match Selector::parse(&labels) {
            Ok(picks) => picks,
            Err(error) => {
                let message = format!(
                    "couldn't convert selector into a corresponding internal selector object: {error}"
                );
                return refuse("InvalidSelector", "InvalidSelector", message);
            }
        };
        let key = ownership::key(of);
        let rivals = self.rivals(&key, &picks);
        if !rivals.is_empty() {
            let all =
                rivals.iter().chain([&key]).map(|(namespace, name)| format!("{namespace}/{name}"));
            let all: Vec<String> = all.collect();
            let message = format!(
                "pods by selector {labels} are controlled by multiple HPAs: [{}]",
                all.join(" ")
            );
            return refuse("AmbiguousSelector", "AmbiguousSelector", message);
        }
        Ok((labels, picks))
    }

    /// The other autoscalers that have one of the pods which `picks` picks for the autoscaler `key`.
    fn rivals(&self, key: &Key, picks: &Selector) -> Vec<Key> {
        let mut all = self.selectors.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(key.clone(), picks.clone());
        let others: Vec<_> =
            all.iter().filter(|(other, _)| other.0 == key.0 && *other != key).collect();
        if others.is_empty() {
            return Vec::new();
        }
        let near = self.pods.store().state_filter(|pod| {
            pod.metadata.namespace.as_deref() == Some(&key.0) && picks.matches(pod.labels())
        });
        let rival = |(other, theirs): (&Key, &Selector)| {
            near.iter().any(|pod| theirs.matches(pod.labels())).then(|| other.clone())
        };
        others.into_iter().filter_map(rival).collect()
    }

    async fn sync(&self, of: &HorizontalPodAutoscaler) -> Result<Next, Failure> {
        let mut status = of.status.clone().unwrap_or_default();
        status.observed_generation = of.metadata.generation;
        let scaled = match self.scaled(of).await {
            Ok(scaled) => scaled,
            Err(error) => {
                let text = pods::text(&error);
                self.events.warning(object_reference(of), "FailedGetScale", text.clone());
                let message = format!(
                    "the HPA controller was unable to get the target's current scale: {text}"
                );
                set_condition(&mut status, "AbleToScale", false, "FailedGetScale", message);
                return self.tell(of, status).await;
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        set_condition(&mut status, "AbleToScale", true, "SucceededGetScale", message);
        let current = scaled.scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
        let (min, max) = (of.spec.min_replicas.unwrap_or(1), of.spec.max_replicas);
        status.current_replicas = Some(current);
        status.current_metrics = None;
        let started = Timestamp::now().as_second();
        let past = self.remember(of, |past| {
            // What was there before counts as recommended, so that nothing shrinks at once.
            if past.recommended.is_empty() {
                past.recommended.push((started, current));
            }
        });
        let (wanted, reason) = if current == 0 && min != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            set_condition(&mut status, "ScalingActive", false, "ScalingDisabled", message);
            (0, String::new())
        } else if current > max {
            (max, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < min {
            (min, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            match self.recommended(of, &scaled.scale, current, &mut status).await {
                Ok((replicas, called)) => {
                    let behavior = of.spec.behavior.as_ref();
                    let now = Timestamp::now().as_second();
                    let (to, told) = limited(behavior, &past, (replicas, current), (min, max), now);
                    self.remember(of, |past| past.recommended.push((now, replicas)));
                    for (kind, holds, reason, message) in told {
                        set_condition(&mut status, kind, holds, reason, message);
                    }
                    let reason = match replicas.cmp(&current) {
                        std::cmp::Ordering::Greater => format!("{called} above target"),
                        std::cmp::Ordering::Less => "All metrics below target".to_owned(),
                        std::cmp::Ordering::Equal => String::new(),
                    };
                    (to, reason)
                }
                Err(problem) => {
                    let (reason, message) = (problem.reason, problem.condition);
                    set_condition(&mut status, "ScalingActive", false, reason, message);
                    let reason = "FailedComputeMetricsReplicas";
                    self.events.warning(object_reference(of), reason, problem.summary);
                    return self.tell(of, status).await;
                }
            }
        };
        status.desired_replicas = wanted;
        if wanted != current {
            self.rescale(of, &scaled, (current, wanted), &reason, &mut status).await?;
        }
        self.tell(of, status).await
    }

    async fn rescale(
        &self,
        of: &HorizontalPodAutoscaler,
        scaled: &Scaled,
        (from, to): (i32, i32),
        reason: &str,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Result<(), Failure> {
        if let Err(error) = scaled.resize(to).await {
            let text = pods::text(&error);
            let message = format!("New size: {to}; reason: {reason}; error: {text}");
            self.events.warning(object_reference(of), "FailedRescale", message);
            let message =
                format!("the HPA controller was unable to update the target scale: {text}");
            set_condition(status, "AbleToScale", false, "FailedUpdateScale", message);
            return Ok(());
        }
        let message = format!("the HPA controller was able to update the target scale to {to}");
        set_condition(status, "AbleToScale", true, "SucceededRescale", message);
        let message = format!("New size: {to}; reason: {reason}");
        self.events.normal(object_reference(of), "SuccessfulRescale", message);
        let now = Timestamp::now();
        status.last_scale_time = Some(Time(now));
        self.remember(of, |past| {
            let list = if to > from { &mut past.grown } else { &mut past.shrunk };
            list.push((now.as_second(), (to - from).abs()));
        });
        Ok(())
    }

    /// Notes something and returns all that is remembered, what is too old left out.
    fn remember(&self, of: &HorizontalPodAutoscaler, note: impl FnOnce(&mut Past)) -> Past {
        let mut all = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let past = all.entry(ownership::key(of)).or_default();
        note(past);
        let since = Timestamp::now().as_second() - MEMORY_S;
        for list in [&mut past.recommended, &mut past.grown, &mut past.shrunk] {
            list.retain(|(at, _)| *at >= since);
        }
        past.clone()
    }

    async fn tell(
        &self,
        of: &HorizontalPodAutoscaler,
        status: HorizontalPodAutoscalerStatus,
    ) -> Result<Next, Failure> {
        if of.status.as_ref() != Some(&status) {
            let (namespace, name) = ownership::key(of);
            let api: Api<HorizontalPodAutoscaler> =
                Api::namespaced(self.client.clone(), &namespace);
            let told = HorizontalPodAutoscaler { status: Some(status), ..of.clone() };
            unless_code(api.replace_status(&name, &PostParams::default(), &told).await, 404)?;
        }
        Ok(Next::After(PERIOD))
    }
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let all = informers.get::<HorizontalPodAutoscaler>();
    let pods = informers.get::<Pod>();
    let events = Recorder::new(client.clone(), "horizontal-pod-autoscaler", "");
    pods.ready().await;
    // Its own status does not make it look again: that is what the period is for.
    let seen: Mutex<HashMap<String, Value>> = Mutex::default();
    let changes = touched(&all, move |of: &HorizontalPodAutoscaler| {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (uid, spec) = (of.uid().unwrap_or_default(), json!(of.spec));
        if of.metadata.deletion_timestamp.is_some() {
            seen.remove(&uid);
        } else if seen.get(&uid) == Some(&spec) {
            return Vec::new();
        } else {
            seen.insert(uid, spec);
        }
        vec![ownership::key(of)]
    });
    let (past, selectors) = (Mutex::default(), Mutex::default());
    let controller = Arc::new(Controller { client, pods, events, past, selectors });
    queue::run("horizontal-pod-autoscaler", changes, shutdown, |key: Key| {
        let (controller, found) = (controller.clone(), all.get(&key.0, &key.1));
        Box::pin(async move {
            if let Some(of) = found {
                controller.sync(&of).await
            } else {
                controller.past.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                let mut selectors =
                    controller.selectors.lock().unwrap_or_else(PoisonError::into_inner);
                selectors.remove(&key);
                Ok(Next::Done)
            }
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_summed_by_pod() {
        let list = json!({"items": [
            {"metadata": {"name": "a"}, "window": "15s", "timestamp": "2026-01-01T00:00:00Z", "containers": [
                {"name": "x", "usage": {"cpu": "100m", "memory": "1Mi"}}, {"name": "y", "usage": {"cpu": "1"}}]},
            {"metadata": {"name": "b"}, "containers": [{"name": "x", "usage": {}}]}]});
        let sample = |used: i64| {
            let at = Some("2026-01-01T00:00:00Z".parse().expect("a time"));
            Ok(BTreeMap::from([("a".to_owned(), Sample { used, at, window_s: 15 })]))
        };
        assert_eq!(used(&list, "cpu", None), sample(1100));
        assert_eq!(used(&list, "cpu", Some("x")), sample(100));
        let absent =
            "failed to get container metrics: container y not present in metrics for pod /b";
        assert_eq!(used(&list, "cpu", Some("y")), Err(absent.to_owned()));
    }

    #[test]
    fn a_condition_keeps_its_time() {
        let mut status = HorizontalPodAutoscalerStatus::default();
        set_condition(&mut status, "AbleToScale", true, "A", "");
        let first = status.conditions.clone().expect("one")[0].last_transition_time.clone();
        set_condition(&mut status, "AbleToScale", true, "B", "");
        let now = status.conditions.expect("one");
        assert_eq!(
            (now.len(), now[0].reason.as_deref(), &now[0].last_transition_time),
            (1, Some("B"), &first)
        );
    }
}
