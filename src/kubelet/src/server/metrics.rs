//! Metrics in Prometheus' text format, under Kubernetes' and cAdvisor's names.
//!
//! Source of names and labels: `pkg/kubelet/metrics/collectors/resource_metrics.go`,
//! `pkg/kubelet/metrics/metrics.go`, cAdvisor's `metrics/prometheus.go`.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;

use super::Shared;
use crate::counters::Counters;
use crate::labels;
use crate::node::machine;
use crate::pod;
use crate::usage::Usage;
use crate::worker::Standing;

/// Families of samples, each with its help and type.
#[derive(Default)]
pub struct Text(String);

impl Text {
    /// Begins a family.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Whether the family was written.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(&format!("# TYPE {name} "))
    }

    /// One sample; `at` is its time in milliseconds, if it is not now.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64, at: Option<i64>) {
        self.0.push_str(name);
        for (index, (key, value)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{key}=\"", if index == 0 { "{" } else { "," });
            for c in value.chars() {
                match c {
                    '\n' => self.0.push_str("\\n"),
                    '"' | '\\' => self.0.extend(['\\', c]),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        self.0.push_str(if labels.is_empty() { " " } else { "} " });
        let _ = write!(self.0, "{value}");
        if let Some(at) = at {
            let _ = write!(self.0, " {at}");
        }
        self.0.push('\n');
    }

    /// All that was written.
    pub fn response(self) -> Response {
        ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], self.0).into_response()
    }
}

/// A count as Prometheus has numbers.
pub fn float(value: u64) -> f64 {
    value as f64
}

/// Seconds of nanoseconds.
pub fn seconds(ns: u64) -> f64 {
    float(ns) / 1e9
}

/// A number, or zero.
pub fn number(value: Option<&cri::UInt64Value>) -> u64 {
    value.map_or(0, |v| v.value)
}

/// One container's measurements with its names.
pub struct Row<'a> {
    pub pod: &'a str,
    pub namespace: &'a str,
    pub container: &'a str,
    pub stats: &'a cri::ContainerStats,
}

/// A label, or nothing.
pub fn label<'a>(labels: &'a HashMap<String, String>, key: &str) -> &'a str {
    labels.get(key).map(String::as_str).unwrap_or_default()
}

/// The containers that were measured.
pub fn rows(usage: &Usage) -> Vec<Row<'_>> {
    let containers =
        usage.pods.iter().filter_map(|p| p.linux.as_ref()).flat_map(|linux| &linux.containers);
    containers
        .filter_map(|stats| {
            let of = &stats.attributes.as_ref()?.labels;
            Some(Row {
                pod: label(of, labels::POD_NAME),
                namespace: label(of, labels::POD_NAMESPACE),
                container: label(of, labels::CONTAINER_NAME),
                stats,
            })
        })
        .collect()
}

fn milliseconds(ns: i64) -> Option<i64> {
    (ns > 0).then_some(ns / 1_000_000)
}

/// When each running container was started, in seconds: by pod's uid and container.
pub fn starts(pods: &[Arc<Pod>]) -> Vec<(&str, &str, &str, i64)> {
    let mut out = Vec::new();
    for of in pods {
        let Some(status) = &of.status else { continue };
        let statuses = [&status.init_container_statuses, &status.container_statuses];
        for found in statuses.into_iter().flatten().flatten() {
            let running = found.state.as_ref().and_then(|s| s.running.as_ref());
            if let Some(at) = running.and_then(|r| r.started_at.as_ref()) {
                out.push((
                    pod::namespace(of),
                    pod::name(of),
                    found.name.as_str(),
                    at.0.as_second(),
                ));
            }
        }
    }
    out
}

/// `/metrics/resource`: what metrics servers scrape.
pub async fn resource(State(shared): State<Shared>) -> Response {
    let context = &shared.context;
    let mut text = Text::default();
    let measured = context.usage.usage(context).await;
    let failed = measured.is_err();
    let usage = measured.unwrap_or_default();
    let rows = rows(&usage);
    let cpu = "container_cpu_usage_seconds_total";
    text.family(
        cpu,
        "counter",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
    );
    for row in &rows {
        let Some(found) = &row.stats.cpu else { continue };
        let names = [("container", row.container), ("namespace", row.namespace), ("pod", row.pod)];
        let value = seconds(number(found.usage_core_nano_seconds.as_ref()));
        text.sample(cpu, &names, value, milliseconds(found.timestamp));
    }
    let memory = "container_memory_working_set_bytes";
    text.family(memory, "gauge", "[STABLE] Current working set of the container in bytes");
    for row in &rows {
        let Some(found) = &row.stats.memory else { continue };
        let names = [("container", row.container), ("namespace", row.namespace), ("pod", row.pod)];
        let value = float(number(found.working_set_bytes.as_ref()));
        text.sample(memory, &names, value, milliseconds(found.timestamp));
    }
    let start = "container_start_time_seconds";
    text.family(start, "gauge", "[STABLE] Start time of the container since unix epoch in seconds");
    let pods = shared.workers.current();
    for (namespace, of, container, at) in starts(&pods) {
        let names = [("container", container), ("namespace", namespace), ("pod", of)];
        text.sample(start, &names, float(at.unsigned_abs()), None);
    }
    swap(&mut text, &rows);
    node(&mut text, context.machine.memory_bytes, &usage);
    pods_usage(&mut text, &usage);
    let error = "resource_scrape_error";
    let help = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    text.family(error, "gauge", help);
    text.sample(error, &[], f64::from(u8::from(failed)), None);
    text.response()
}

/// What containers may swap out, and what they have; nothing where that is not known.
fn swap(text: &mut Text, rows: &[Row<'_>]) {
    let metrics: [(&str, &str, fn(&cri::SwapUsage) -> Option<u64>); 2] = [
        (
            "container_swap_usage_bytes",
            "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems",
            |swap| swap.swap_usage_bytes.as_ref().map(|v| v.value),
        ),
        (
            "container_swap_limit_bytes",
            "[ALPHA] Current amount of the container swap limit in bytes. Reported only on non-windows systems",
            |swap| {
                let free = swap.swap_available_bytes.as_ref()?.value;
                Some(free + swap.swap_usage_bytes.as_ref().map_or(0, |v| v.value))
            },
        ),
    ];
    for (name, help, read) in metrics {
        text.family(name, "gauge", help);
        for row in rows {
            let Some(swap) = &row.stats.swap else { continue };
            let Some(value) = read(swap) else { continue };
            let names =
                [("container", row.container), ("namespace", row.namespace), ("pod", row.pod)];
            text.sample(name, &names, float(value), milliseconds(swap.timestamp));
        }
    }
    let pods = "pod_swap_usage_bytes";
    let help = "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems";
    text.family(pods, "gauge", help);
    let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for row in rows {
        let used = row.stats.swap.as_ref().and_then(|swap| swap.swap_usage_bytes.as_ref());
        let Some(used) = used else { continue };
        *sums.entry((row.namespace, row.pod)).or_default() += used.value;
    }
    for ((namespace, of), bytes) in sums {
        text.sample(pods, &[("namespace", namespace), ("pod", of)], float(bytes), None);
    }
}

fn node(text: &mut Text, memory_bytes: u64, usage: &Usage) {
    let cpu = "node_cpu_usage_seconds_total";
    text.family(
        cpu,
        "counter",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
    );
    text.sample(cpu, &[], seconds(usage.node_cpu_ns), None);
    let memory = "node_memory_working_set_bytes";
    text.family(memory, "gauge", "[STABLE] Current working set of the node in bytes");
    let used = memory_bytes.saturating_sub(machine::meminfo("MemAvailable"));
    text.sample(memory, &[], float(used), None);
    let swap = "node_swap_usage_bytes";
    let help =
        "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems";
    text.family(swap, "gauge", help);
    let used = machine::meminfo("SwapTotal").saturating_sub(machine::meminfo("SwapFree"));
    text.sample(swap, &[], float(used), None);
}

fn pods_usage(text: &mut Text, usage: &Usage) {
    let each = |text: &mut Text,
                name: &str,
                of: &dyn Fn(&cri::LinuxPodSandboxStats) -> Option<(f64, i64)>| {
        for stats in &usage.pods {
            let (Some(attributes), Some(linux)) = (&stats.attributes, &stats.linux) else {
                continue;
            };
            let Some((value, at)) = of(linux) else { continue };
            let names = [
                ("namespace", label(&attributes.labels, labels::POD_NAMESPACE)),
                ("pod", label(&attributes.labels, labels::POD_NAME)),
            ];
            text.sample(name, &names, value, milliseconds(at));
        }
    };
    let cpu = "pod_cpu_usage_seconds_total";
    text.family(cpu, "counter", "[STABLE] Cumulative cpu time consumed by the pod in core-seconds");
    each(text, cpu, &|linux| {
        let cpu = linux.cpu.as_ref()?;
        Some((seconds(number(cpu.usage_core_nano_seconds.as_ref())), cpu.timestamp))
    });
    let memory = "pod_memory_working_set_bytes";
    text.family(memory, "gauge", "[STABLE] Current working set of the pod in bytes");
    each(text, memory, &|linux| {
        let memory = linux.memory.as_ref()?;
        Some((float(number(memory.working_set_bytes.as_ref())), memory.timestamp))
    });
}

/// `/metrics/probes`.
pub async fn probes(State(shared): State<Shared>) -> Response {
    let mut text = Text::default();
    let name = "prober_probe_total";
    text.family(name, "counter", "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.");
    for (key, count) in shared.context.counters.probes() {
        let names = [
            ("container", key.container.as_str()),
            ("namespace", key.namespace.as_str()),
            ("pod", key.pod.as_str()),
            ("pod_uid", key.uid.as_str()),
            ("probe_type", key.kind),
            ("result", key.result),
        ];
        text.sample(name, &names, float(count), None);
    }
    text.response()
}

/// The pods, counted by how they stand.
fn pods(text: &mut Text, all: &[Standing]) {
    let count = |of: &dyn Fn(&Standing) -> bool| all.iter().filter(|s| of(s)).count() as u64;
    let (desired, active) = ("kubelet_desired_pods", "kubelet_active_pods");
    text.family(
        desired,
        "gauge",
        "[ALPHA] The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.",
    );
    for fixed in ["", "true"] {
        let wanted = count(&|s| s.fixed == fixed && s.config == "desired");
        text.sample(desired, &[("static", fixed)], float(wanted), None);
    }
    text.family(
        active,
        "gauge",
        "[ALPHA] The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true if the pod is not from the apiserver.",
    );
    for fixed in ["", "true"] {
        let counts =
            count(&|s| s.fixed == fixed && s.config == "desired" && s.lifecycle != "terminated");
        text.sample(active, &[("static", fixed)], float(counts), None);
    }
    let mirrors = "kubelet_mirror_pods";
    text.family(
        mirrors,
        "gauge",
        "[ALPHA] The number of mirror pods the kubelet will try to create (one per admitted static pod)",
    );
    text.sample(mirrors, &[], float(count(&|s| s.mirrored)), None);
    let working = "kubelet_working_pods";
    text.family(
        working,
        "gauge",
        "[ALPHA] Number of pods the kubelet is actually running, broken down by lifecycle phase, whether the pod is desired, orphaned, or runtime only (also orphaned), and whether the pod is static.",
    );
    for lifecycle in ["sync", "terminating", "terminated"] {
        let kinds = [
            ("desired", ""),
            ("desired", "true"),
            ("orphan", ""),
            ("orphan", "true"),
            ("runtime_only", "unknown"),
        ];
        for (config, fixed) in kinds {
            let names = [("config", config), ("lifecycle", lifecycle), ("static", fixed)];
            let found = count(&|s| (s.config, s.lifecycle, s.fixed) == (config, lifecycle, fixed));
            text.sample(working, &names, float(found), None);
        }
    }
}

/// `/metrics`: the kubelet's own.
pub async fn own(State(shared): State<Shared>) -> Response {
    let context = &shared.context;
    let listed = context.cri.list_containers(cri::ListContainersRequest { filter: None }).await;
    let containers = listed.map(|l| l.containers).unwrap_or_default();
    let listed = context.cri.list_pod_sandbox(cri::ListPodSandboxRequest { filter: None }).await;
    let sandboxes = listed.map(|l| l.items).unwrap_or_default();
    let ready =
        sandboxes.iter().filter(|s| s.state() == cri::PodSandboxState::SandboxReady).count();
    let mut text = Text::default();
    text.family("kubelet_node_name", "gauge", "[ALPHA] The node's name. The count is always 1.");
    text.sample("kubelet_node_name", &[("node", &context.node_name)], 1.0, None);
    text.family(
        "kubelet_running_pods",
        "gauge",
        "[BETA] Number of pods that have a running pod sandbox",
    );
    text.sample("kubelet_running_pods", &[], float(ready as u64), None);
    text.family(
        "kubelet_running_containers",
        "gauge",
        "[BETA] Number of containers currently running",
    );
    for (name, state) in [
        ("created", cri::ContainerState::ContainerCreated),
        ("exited", cri::ContainerState::ContainerExited),
        ("running", cri::ContainerState::ContainerRunning),
        ("unknown", cri::ContainerState::ContainerUnknown),
    ] {
        let count = containers.iter().filter(|c| c.state() == state).count();
        if count > 0 {
            text.sample(
                "kubelet_running_containers",
                &[("container_state", name)],
                float(count as u64),
                None,
            );
        }
    }
    pods(&mut text, &shared.workers.standing());
    let placed = shared.workers.placed();
    let counters = &context.counters;
    let own: [(&str, &str, &AtomicU64); 5] = [
        (
            "kubelet_started_containers_total",
            "[ALPHA] Cumulative number of containers started",
            &counters.started,
        ),
        (
            "kubelet_started_containers_errors_total",
            "[ALPHA] Cumulative number of errors when starting containers",
            &counters.start_errors,
        ),
        (
            "kubelet_started_pods_total",
            "[ALPHA] Cumulative number of pods started",
            &counters.sandboxes,
        ),
        (
            "kubelet_started_pods_errors_total",
            "[ALPHA] Cumulative number of errors when starting pods",
            &counters.sandbox_errors,
        ),
        (
            "kubelet_orphaned_runtime_pods_total",
            "[ALPHA] Number of pods that have been detected in the container runtime without being already known to the pod worker. This typically indicates the kubelet was restarted while a pod was force deleted in the API or in the local configuration, which is unusual.",
            &counters.orphans,
        ),
    ];
    for (name, help, counter) in own {
        text.family(name, "counter", help);
        text.sample(name, &[], float(counter.load(Ordering::Relaxed)), None);
    }
    fates(&mut text, counters);
    calls(&mut text, &context.cri.calls());
    let disks = shared.disks.measure(&placed).await;
    super::claims::write(&mut text, &placed, &disks);
    text.response()
}

/// What befell pods.
fn fates(text: &mut Text, counters: &Counters) {
    let restarted = "kubelet_restarted_pods_total";
    text.family(
        restarted,
        "counter",
        "[ALPHA] Number of pods that have been restarted because they were deleted and recreated with the same UID while the kubelet was watching them (common for static pods, extremely uncommon for API pods)",
    );
    // Those of the API never have an earlier one's uid.
    text.sample(restarted, &[("static", "")], 0.0, None);
    let of_files = float(counters.restarted.load(Ordering::Relaxed));
    text.sample(restarted, &[("static", "true")], of_files, None);
    let evictions = "kubelet_evictions";
    text.family(
        evictions,
        "counter",
        "[ALPHA] Cumulative number of pod evictions by eviction signal",
    );
    for (signal, count) in counters.evictions() {
        text.sample(evictions, &[("eviction_signal", signal)], float(count), None);
    }
    let refusals = "kubelet_admission_rejections_total";
    text.family(
        refusals,
        "counter",
        "[ALPHA] Cumulative number pod admission rejections by the Kubelet.",
    );
    for (reason, count) in counters.refusals() {
        text.sample(refusals, &[("reason", reason.as_str())], float(count), None);
    }
}

/// The calls of the runtime, and those that failed.
fn calls(text: &mut Text, calls: &BTreeMap<&'static str, (u64, u64)>) {
    let operation = |method: &str| method.replace("pod_sandbox", "podsandbox");
    let total = "kubelet_runtime_operations_total";
    text.family(
        total,
        "counter",
        "[ALPHA] Cumulative number of runtime operations by operation type.",
    );
    for (method, (count, _)) in calls {
        text.sample(total, &[("operation_type", &operation(method))], float(*count), None);
    }
    let errors = "kubelet_runtime_operations_errors_total";
    text.family(
        errors,
        "counter",
        "[ALPHA] Cumulative number of runtime operation errors by operation type.",
    );
    for (method, (_, failed)) in calls.iter().filter(|(_, (_, failed))| *failed > 0) {
        text.sample(errors, &[("operation_type", &operation(method))], float(*failed), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_written_as_prometheus_reads_them() {
        let mut text = Text::default();
        text.family("m", "gauge", "Help");
        text.sample("m", &[], 1.0, None);
        text.sample("m", &[("a", "x\"y\\z"), ("b", "l\nm")], 0.5, Some(7));
        assert_eq!(
            text.0,
            "# HELP m Help\n# TYPE m gauge\nm 1\nm{a=\"x\\\"y\\\\z\",b=\"l\\nm\"} 0.5 7\n"
        );
    }
}
