//! Metrics that others serve: of pods, of any object, and of things outside the cluster.
//!
//! Source: `pkg/controller/podautoscaler/replica_calculator.go`, `metrics/client.go`; the APIs are
//! `custom.metrics.k8s.io` and `external.metrics.k8s.io`.

use std::collections::BTreeMap;

use apimachinery::labels::Selector;
use apimachinery::quantity::Quantity;
use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, ExternalMetricSource, ExternalMetricStatus, MetricIdentifier,
    MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricSource,
    ObjectMetricStatus, PodsMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::core::{ApiResource, GroupVersionKind};
use kube::discovery::{Scope, pinned_kind};
use serde_json::Value;

use super::metrics::{self, Sample, Target, Tolerances};
use super::{Controller, Problem, Sight, milli};
use crate::pods;

const CUSTOM: &str = "/apis/custom.metrics.k8s.io";
const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1";
/// The versions of the custom metrics API, the preferred one first.
const VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];

/// What a metric asks for: replicas, what it is called, and its present value.
pub type Asked = (i32, String, MetricStatus);

fn quoted(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn written(selector: Option<&LabelSelector>) -> String {
    let mut parts: Vec<String> = Vec::new();
    let Some(selector) = selector else { return String::new() };
    for (key, value) in selector.match_labels.iter().flatten() {
        parts.push(format!("{key}={value}"));
    }
    for requirement in selector.match_expressions.iter().flatten() {
        let values = requirement.values.clone().unwrap_or_default().join(",");
        parts.push(match requirement.operator.as_str() {
            "In" => format!("{} in ({values})", requirement.key),
            "NotIn" => format!("{} notin ({values})", requirement.key),
            "Exists" => requirement.key.clone(),
            _ => format!("!{}", requirement.key),
        });
    }
    parts.join(",")
}

/// A selector as Go prints it, which is how messages name it.
fn in_go(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".into() };
    let labels = selector.match_labels.iter().flatten();
    let labels: String = labels.map(|(key, value)| format!("{key}: {value},")).collect();
    let requirements = selector.match_expressions.iter().flatten();
    let requirements: String = requirements
        .map(|r| {
            let values = r.values.clone().unwrap_or_default().join(" ");
            let (key, operator) = (&r.key, &r.operator);
            format!("LabelSelectorRequirement{{Key:{key},Operator:{operator},Values:[{values}],}},")
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{requirements}}},}}"
    )
}

/// The values of a list of metrics, in thousandths, by the name of what they are about.
fn values(list: &Value) -> Vec<(String, i64)> {
    let items = list["items"].as_array().into_iter().flatten();
    items
        .filter_map(|item| {
            let value = item["value"].as_str()?.parse::<Quantity>().ok()?.milli_value();
            let name = item["describedObject"]["name"].as_str().unwrap_or_default();
            Some((name.to_owned(), value))
        })
        .collect()
}

async fn get(client: &Client, path: &str) -> Result<Value, kube::Error> {
    let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    client.request::<Value>(request).await
}

/// Asks the custom metrics API, in the version that it has.
async fn custom(client: &Client, rest: &str) -> Result<Value, String> {
    let mut problem = String::new();
    for version in VERSIONS {
        match get(client, &format!("{CUSTOM}/{version}/{rest}")).await {
            Ok(list) => return Ok(list),
            Err(error) => {
                let absent = matches!(&error, kube::Error::Api(status) if status.code == 404);
                problem = pods::text(&error);
                if !absent {
                    break;
                }
            }
        }
    }
    Err(format!("unable to fetch metrics from custom metrics API: {problem}"))
}

/// What a value is held against.
#[derive(Clone, Copy)]
struct Now {
    /// The size that is asked for.
    current: i32,
    /// The pods there are.
    present: i32,
    tolerances: Tolerances,
}

/// The replicas at which `value` would be what `target` says.
///
/// `ready` pods do the work now.
fn for_value(
    value: i64,
    target: &MetricTarget,
    now: Now,
    ready: impl FnOnce() -> Result<i32, String>,
) -> Result<i32, String> {
    if let Some(wanted) = &target.value {
        let ratio = value as f64 / milli(wanted).max(1) as f64;
        if now.current == 0 {
            return Ok(ratio.ceil() as i32);
        }
        if now.tolerances.allow(ratio) {
            return Ok(now.current);
        }
        return Ok((ratio * f64::from(ready()?)).ceil() as i32);
    }
    if let Some(wanted) = &target.average_value {
        let each = milli(wanted).max(1) as f64;
        let ratio = value as f64 / (each * f64::from(now.present));
        let small = now.present > 0 && now.tolerances.allow(ratio);
        return Ok(if small { now.present } else { (value as f64 / each).ceil() as i32 });
    }
    Err("neither a value target nor an average value target was set".into())
}

/// The present value as the target has it: whole, or per pod.
fn present(value: i64, target: &MetricTarget, pods: i32) -> MetricValueStatus {
    let text = |milli: i64| Some(Text(Quantity::milli(milli).canonical()));
    if target.value.is_some() {
        return MetricValueStatus { value: text(value), ..MetricValueStatus::default() };
    }
    let average = (value as f64 / f64::from(pods.max(1))).ceil() as i64;
    MetricValueStatus { average_value: text(average), ..MetricValueStatus::default() }
}

impl Controller {
    /// What a metric of type Pods, Object or External asks for.
    pub(super) async fn evaluate_custom(
        &self,
        sight: Sight<'_>,
        metric: &MetricSpec,
    ) -> Result<Asked, Problem> {
        if let Some(source) = &metric.pods {
            let asked = self.of_pods(sight, &source.metric, &source.target).await;
            return asked.map_err(|message| {
                Problem::part("FailedGetPodsMetric", message, |message| {
                    format!("failed to get pods metric value: {message}")
                })
            });
        }
        if let Some(source) = &metric.object {
            let asked = self.of_object_metric(sight, source).await;
            return asked.map_err(|message| {
                Problem::part("FailedGetObjectMetric", message, |message| {
                    format!("failed to get object metric value: {message}")
                })
            });
        }
        if let Some(source) = &metric.external {
            let name = &source.metric.name;
            return self.of_external(sight, source).await.map_err(|message| {
                let inner = if source.target.average_value.is_some() {
                    format!("failed to get {name} external metric: {message}")
                } else if source.target.value.is_some() {
                    format!("failed to get external metric {name}: {message}")
                } else {
                    message.clone()
                };
                Problem::part("FailedGetExternalMetric", message, |_| {
                    format!("failed to get {name} external metric value: {inner}")
                })
            });
        }
        let message = format!("unknown metric source type {:?}", metric.type_);
        Err(Problem::plain("InvalidMetricSourceType", message))
    }

    async fn of_object_metric(
        &self,
        sight: Sight<'_>,
        source: &ObjectMetricSource,
    ) -> Result<Asked, String> {
        let Sight { namespace, picks, current, present: pods, tolerances, .. } = sight;
        let (name, object) = (&source.metric.name, &source.described_object);
        let value = self.of_object(namespace, &source.metric, object).await.map_err(|error| {
            // The order is upstream's, slip included.
            format!(
                "unable to get metric {name}: {} on {namespace} {}/{error}",
                object.kind, object.name
            )
        })?;
        let now = Now { current, present: pods, tolerances };
        let replicas = for_value(value, &source.target, now, || self.ready(namespace, picks))
            .map_err(|error| match source.target.value {
                None if source.target.average_value.is_none() => {
                    format!("invalid object metric source: {error}")
                }
                _ => error,
            })?;
        let called = if source.target.value.is_some() {
            format!("{} metric {name}", object.kind)
        } else {
            format!("external metric {name}({})", in_go(source.metric.selector.as_ref()))
        };
        let told = MetricStatus {
            type_: "Object".into(),
            object: Some(ObjectMetricStatus {
                current: present(value, &source.target, pods),
                described_object: object.clone(),
                metric: source.metric.clone(),
            }),
            ..MetricStatus::default()
        };
        Ok((replicas, called, told))
    }

    async fn of_external(
        &self,
        sight: Sight<'_>,
        source: &ExternalMetricSource,
    ) -> Result<Asked, String> {
        let Sight { namespace, picks, current, present: pods, tolerances, .. } = sight;
        let (name, target) = (&source.metric.name, &source.target);
        if target.value.is_none() && target.average_value.is_none() {
            return Err("invalid external metric source: neither a value target nor an average value target was set".into());
        }
        let selector = in_go(source.metric.selector.as_ref());
        let path = format!(
            "{EXTERNAL}/namespaces/{namespace}/{name}?labelSelector={}",
            quoted(&written(source.metric.selector.as_ref()))
        );
        let failed = |error: String| {
            format!("unable to get external metric {namespace}/{name}/{selector}: {error}")
        };
        let list = get(&self.client, &path).await.map_err(|error| {
            let text = pods::text(&error);
            failed(format!("unable to fetch metrics from external metrics API: {text}"))
        })?;
        let all = values(&list);
        if all.is_empty() {
            return Err(failed("no metrics returned from external metrics API".into()));
        }
        let value: i64 = all.iter().map(|(_, value)| value).sum();
        let now = Now { current, present: pods, tolerances };
        let replicas = for_value(value, target, now, || self.ready(namespace, picks))?;
        let told = MetricStatus {
            type_: "External".into(),
            external: Some(ExternalMetricStatus {
                current: present(value, target, pods),
                metric: source.metric.clone(),
            }),
            ..MetricStatus::default()
        };
        Ok((replicas, format!("external metric {name}({selector})"), told))
    }

    /// How many of the pods are ready.
    fn ready(&self, namespace: &str, picks: &Selector) -> Result<i32, String> {
        let near = self.pods.store().state_filter(|pod| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && picks.matches(kube::ResourceExt::labels(pod))
        });
        if near.is_empty() {
            return Err("unable to calculate ready pods: no pods returned by selector while calculating replica count".into());
        }
        let ready = |pod: &&std::sync::Arc<k8s_openapi::api::core::v1::Pod>| {
            pods::phase(pod) == "Running" && pods::ready_since(pod).is_some()
        };
        Ok(near.iter().filter(ready).count() as i32)
    }

    async fn of_pods(
        &self,
        Sight { namespace, labels, picks, current, tolerances, .. }: Sight<'_>,
        metric: &MetricIdentifier,
        target: &MetricTarget,
    ) -> Result<Asked, String> {
        let wanted = target.average_value.as_ref().ok_or("the target has no average value")?;
        let rest = format!(
            "namespaces/{namespace}/pods/*/{}?labelSelector={}&metricLabelSelector={}",
            metric.name,
            quoted(labels),
            quoted(&written(metric.selector.as_ref()))
        );
        let failed = |error: String| format!("unable to get metric {}: {error}", metric.name);
        let list = custom(&self.client, &rest).await.map_err(failed)?;
        let sample = |used: i64| Sample { used, ..Sample::default() };
        let used: BTreeMap<String, Sample> =
            values(&list).into_iter().map(|(name, used)| (name, sample(used))).collect();
        if used.is_empty() {
            return Err(failed("no metrics returned from custom metrics API".into()));
        }
        let near = self.pods.store().state_filter(|pod| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && picks.matches(kube::ResourceExt::labels(pod))
        });
        let target = Target::Average(milli(wanted));
        let now = Timestamp::now();
        let current = (current, tolerances);
        let outcome = metrics::replicas(&near, &used, ("", None), target, current, now)?;
        let told = MetricStatus {
            type_: "Pods".into(),
            pods: Some(PodsMetricStatus {
                current: MetricValueStatus {
                    average_value: Some(Text(Quantity::milli(outcome.average).canonical())),
                    ..MetricValueStatus::default()
                },
                metric: metric.clone(),
            }),
            ..MetricStatus::default()
        };
        Ok((outcome.replicas, format!("pods metric {}", metric.name), told))
    }

    async fn of_object(
        &self,
        namespace: &str,
        metric: &MetricIdentifier,
        object: &CrossVersionObjectReference,
    ) -> Result<i64, String> {
        let version = object.api_version.as_deref().unwrap_or("v1");
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let kind = GroupVersionKind::gvk(group, version, &object.kind);
        let (resource, namespaced) = match pinned_kind(&self.client, &kind).await {
            Ok((resource, capabilities)) => (resource, capabilities.scope == Scope::Namespaced),
            Err(_) => (ApiResource::from_gvk(&kind), true),
        };
        let plural = if group.is_empty() {
            resource.plural.clone()
        } else {
            format!("{}.{group}", resource.plural)
        };
        let selector = quoted(&written(metric.selector.as_ref()));
        let place = if object.kind == "Namespace" && group.is_empty() {
            format!("namespaces/{}/metrics/{}", object.name, metric.name)
        } else if namespaced {
            format!("namespaces/{namespace}/{plural}/{}/{}", object.name, metric.name)
        } else {
            format!("{plural}/{}/{}", object.name, metric.name)
        };
        let list = custom(&self.client, &format!("{place}?metricLabelSelector={selector}")).await?;
        let found = values(&list);
        found
            .first()
            .map(|(_, value)| *value)
            .ok_or_else(|| "no metrics returned from custom metrics API".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_decide_the_size() {
        let whole = |text: &str| MetricTarget {
            type_: "Value".into(),
            value: Some(Text(text.into())),
            ..MetricTarget::default()
        };
        let each = |text: &str| MetricTarget {
            type_: "AverageValue".into(),
            average_value: Some(Text(text.into())),
            ..MetricTarget::default()
        };
        for (value, target, current, ready, want) in [
            (20_000, whole("10"), 3, 3, 6),
            (10_500, whole("10"), 3, 3, 3),
            (20_000, whole("10"), 3, 2, 4),
            (20_000, whole("10"), 0, 0, 2),
            (90_000, each("10"), 3, 3, 9),
            (31_000, each("10"), 3, 3, 3),
            (31_000, each("10"), 0, 0, 4),
        ] {
            let now = Now { current, present: current, tolerances: Tolerances::new(None) };
            let got = for_value(value, &target, now, || Ok(ready));
            assert_eq!(got, Ok(want), "{value} {target:?}");
        }
        let now = Now { current: 1, present: 1, tolerances: Tolerances::new(None) };
        assert!(for_value(1, &MetricTarget::default(), now, || Ok(1)).is_err());
        // What there is per pod is rounded up.
        assert_eq!(present(10_000, &each("1"), 3).average_value, Some(Text("3334m".into())));
    }

    #[test]
    fn lists_and_selectors_are_read() {
        let list = json!({"items": [
            {"describedObject": {"name": "a"}, "value": "1500m"}, {"metricName": "q", "value": "3"}]});
        assert_eq!(values(&list), [("a".to_owned(), 1500), (String::new(), 3000)]);
        let selector: LabelSelector = serde_json::from_value(json!({"matchLabels": {"a": "b"},
            "matchExpressions": [{"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "Exists"}]}))
        .expect("a selector");
        assert_eq!(written(Some(&selector)), "a=b,c in (d,e),f");
        let labels: LabelSelector =
            serde_json::from_value(json!({"matchLabels": {"a": "b"}})).expect("a selector");
        assert_eq!(
            in_go(Some(&labels)),
            "&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement{},}"
        );
        assert_eq!(in_go(None), "nil");
    }
}
