//! `KubeletConfiguration`: a file, and a folder of further ones that are merged into it.
//!
//! Source of behaviour: `k8s.io/kubelet/config/v1beta1`, `pkg/kubelet/apis/config/validation`, the page on kubelet
//! configuration files of the Kubernetes documentation.

mod fields;
mod soft;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::image::access::Verification;
use crate::resources::Terms;
use crate::{eviction, file, quantity};
use fields::{FIXED, NESTED, WITHOUT_EFFECT};

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";

/// Why a configuration is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is none.
    #[error(transparent)]
    File(#[from] file::Error),
    /// What all of them say together cannot be.
    #[error("invalid configuration: {0}")]
    Wrong(String),
}

fn wrong(reason: impl Into<String>) -> Error {
    Error::Wrong(reason.into())
}

/// What this kubelet follows, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Written {
    allowed_unsafe_sysctls: Vec<String>,
    #[serde(rename = "clusterDNS")]
    cluster_dns: Vec<std::net::IpAddr>,
    cluster_domain: String,
    container_log_max_files: Option<i64>,
    container_log_max_size: Option<String>,
    container_log_monitor_interval: Option<String>,
    #[serde(rename = "cpuCFSQuota")]
    cpu_cfs_quota: Option<bool>,
    #[serde(rename = "cpuCFSQuotaPeriod")]
    cpu_cfs_quota_period: Option<String>,
    crash_loop_back_off: CrashLoop,
    eviction_hard: Option<BTreeMap<String, String>>,
    eviction_max_pod_grace_period: i64,
    eviction_minimum_reclaim: BTreeMap<String, String>,
    eviction_pressure_transition_period: Option<String>,
    eviction_soft: BTreeMap<String, String>,
    eviction_soft_grace_period: BTreeMap<String, String>,
    fail_swap_on: bool,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: Option<i64>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    image_gc_low_threshold_percent: Option<i64>,
    #[serde(rename = "imageMaximumGCAge")]
    image_maximum_gc_age: Option<String>,
    #[serde(rename = "imageMinimumGCAge")]
    image_minimum_gc_age: Option<String>,
    image_pull_credentials_verification_policy: String,
    kube_reserved: BTreeMap<String, String>,
    max_parallel_image_pulls: Option<i64>,
    max_pods: Option<i64>,
    memory_swap: MemorySwap,
    merge_default_eviction_settings: Option<bool>,
    node_status_max_images: Option<i64>,
    pod_pids_limit: Option<i64>,
    pods_per_core: Option<i64>,
    preloaded_images_verification_allowlist: Vec<String>,
    #[serde(rename = "providerID")]
    provider_id: String,
    register_with_taints: Vec<Taint>,
    registry_burst: Option<i64>,
    #[serde(rename = "registryPullQPS")]
    registry_pull_qps: Option<i64>,
    resolv_conf: Option<String>,
    serialize_image_pulls: Option<bool>,
    shutdown_grace_period: Option<String>,
    shutdown_grace_period_by_pod_priority: Vec<OfPriority>,
    shutdown_grace_period_critical_pods: Option<String>,
    #[serde(rename = "singleProcessOOMKill")]
    single_process_oom_kill: bool,
    static_pod_path: String,
    system_reserved: BTreeMap<String, String>,
}

const FOLLOWED: [&str; 42] = [
    "allowedUnsafeSysctls",
    "clusterDNS",
    "clusterDomain",
    "containerLogMaxFiles",
    "containerLogMaxSize",
    "containerLogMonitorInterval",
    "cpuCFSQuota",
    "cpuCFSQuotaPeriod",
    "crashLoopBackOff",
    "evictionHard",
    "evictionMaxPodGracePeriod",
    "evictionMinimumReclaim",
    "evictionPressureTransitionPeriod",
    "evictionSoft",
    "evictionSoftGracePeriod",
    "failSwapOn",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "imageMaximumGCAge",
    "imageMinimumGCAge",
    "imagePullCredentialsVerificationPolicy",
    "kubeReserved",
    "maxParallelImagePulls",
    "maxPods",
    "memorySwap",
    "mergeDefaultEvictionSettings",
    "nodeStatusMaxImages",
    "podPidsLimit",
    "podsPerCore",
    "preloadedImagesVerificationAllowlist",
    "providerID",
    "registerWithTaints",
    "registryBurst",
    "registryPullQPS",
    "resolvConf",
    "serializeImagePulls",
    "shutdownGracePeriod",
    "shutdownGracePeriodByPodPriority",
    "shutdownGracePeriodCriticalPods",
    "singleProcessOOMKill",
    "staticPodPath",
    "systemReserved",
];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct CrashLoop {
    max_container_restart_period: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct MemorySwap {
    swap_behavior: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OfPriority {
    priority: i32,
    shutdown_grace_period_seconds: u64,
}

/// When images that nobody uses go.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageLimits {
    /// Above this share of their disk they are collected; and down to the other.
    pub percent: (u64, u64),
    /// On a large disk it is enough that so much is free: then, and after collecting.
    pub free_bytes: Option<(u64, u64)>,
    /// One is kept at least this long.
    pub minimum_age: Duration,
    /// One that was not used for so long goes although there is room.
    pub maximum_age: Option<Duration>,
}

/// Bounds that have defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// A container's log that is larger is rotated.
    pub log_bytes: u64,
    /// Files of one container's log, the one in use included.
    pub log_files: usize,
    /// How often logs are looked at.
    pub log_period: Duration,
    /// When images go.
    pub images: ImageLimits,
    /// The longest pause before a container that failed starts again.
    pub restart_pause: Duration,
    /// Pulls that may begin in a second, and at once after a pause, where that is limited.
    pub pulls: Option<(u32, u32)>,
    /// Images that the node's status names; none for all.
    pub status_images: Option<usize>,
    /// How long pressure is told after it was last seen.
    pub pressure: Duration,
    /// Merge thresholds of hard evictions with their defaults.
    pub merge_thresholds: bool,
    /// Thresholds that are put up with for a while.
    pub soft: eviction::Soft,
    /// How containers are limited.
    pub terms: Terms,
    /// No start on a machine that swaps.
    pub fail_swap_on: bool,
    /// Which images have to be paid for with credentials though they are there.
    pub verification: Verification,
    /// The node's name at whoever provides it.
    pub provider_id: Option<String>,
    /// The name servers and domains of the node's own.
    pub resolv_conf: PathBuf,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            log_bytes: 10 << 20,
            log_files: 5,
            log_period: Duration::from_secs(10),
            images: ImageLimits {
                percent: (85, 80),
                // A laptop's disk is not ours alone.
                free_bytes: Some((1 << 30, 2 << 30)),
                minimum_age: Duration::from_mins(2),
                maximum_age: None,
            },
            restart_pause: crate::backoff::MAX,
            pulls: None,
            status_images: Some(50),
            pressure: Duration::from_mins(5),
            merge_thresholds: false,
            soft: eviction::Soft::default(),
            terms: Terms::default(),
            fail_swap_on: false,
            verification: Verification::default(),
            provider_id: None,
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

/// A configuration that can be followed. What it does not say is left to flags and defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configuration {
    /// Most pods.
    pub max_pods: Option<u32>,
    /// Most pods for each processor.
    pub pods_per_core: Option<u32>,
    /// Most processes of a pod.
    pub pod_pids_limit: Option<u32>,
    /// The folder of static pods' manifests.
    pub static_pods: Option<PathBuf>,
    /// What is kept from pods for the system, `resource=quantity` separated by commas.
    pub system_reserved: Option<String>,
    /// What is kept from pods for Kubernetes' own programs.
    pub kube_reserved: Option<String>,
    /// Sysctls that pods may set beside the safe ones.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Eviction thresholds, `signal<quantity` separated by commas.
    pub eviction_hard: Option<String>,
    /// Images pulled at the same time.
    pub max_parallel_image_pulls: Option<u32>,
    /// How long pods have when the node ends: all, critical ones, by priority.
    pub shutdown: (Option<String>, Option<String>, Option<String>),
    /// Taints the node registers with.
    pub taints: Vec<Taint>,
    /// The cluster's DNS servers.
    pub cluster_dns: Vec<std::net::IpAddr>,
    /// The cluster's domain.
    pub cluster_domain: Option<String>,
    /// The authority of those who may call the kubelet.
    pub client_ca_file: Option<PathBuf>,
    /// Everything else.
    pub limits: Limits,
    /// Fields that say something that has no effect here.
    pub without_effect: Vec<String>,
}

/// Reads a file and the `.conf` files of a folder, which are merged into it in the order of their names (RFC 7386).
///
/// # Errors
/// One cannot be read, or is no `KubeletConfiguration`.
pub fn read(file: Option<&Path>, folder: Option<&Path>) -> Result<Value, file::Error> {
    let mut merged = Value::Object(Map::new());
    let mut files: Vec<PathBuf> = Vec::new();
    if let Some(folder) = folder {
        let failed = |source| file::Error::Read { path: folder.to_owned(), source };
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "conf") && !path.is_dir() {
                files.push(path);
            }
        }
        files.sort();
    }
    for path in file.iter().copied().chain(files.iter().map(PathBuf::as_path)) {
        let text = std::fs::read_to_string(path)
            .map_err(|source| file::Error::Read { path: path.to_owned(), source })?;
        let mut document = document(&text)
            .map_err(|reason| file::Error::Invalid { path: path.to_owned(), reason })?;
        // As upstream: of the file itself, not of those that are merged into it.
        if file == Some(path) {
            let failed = |source| file::Error::Read { path: path.to_owned(), source };
            let whole = std::path::absolute(path).map_err(failed)?;
            resolve(&mut document, whole.parent().unwrap_or(Path::new("/")));
        }
        merge(&mut merged, document);
    }
    Ok(merged)
}

/// Fields that name files, which are relative to the folder of the configuration's file.
const PATHS: [&str; 3] = ["/staticPodPath", "/resolvConf", "/authentication/x509/clientCAFile"];

fn resolve(document: &mut Value, folder: &Path) {
    for pointer in PATHS {
        let Some(value) = document.pointer_mut(pointer) else { continue };
        let Some(text) = value.as_str().filter(|text| !text.is_empty()) else { continue };
        // An absolute path takes the folder's place.
        *value = folder.join(text).to_string_lossy().into_owned().into();
    }
}

fn document(text: &str) -> Result<Value, String> {
    let value = apimachinery::decode::yaml_to_value(text).map_err(|error| error.to_string())?;
    let said = |field: &str| value[field].as_str().unwrap_or_default();
    if (said("apiVersion"), said("kind")) != (API_VERSION, KIND) {
        return Err(format!(
            "no kind {:?} is registered for version {:?}: it has to be {KIND} of {API_VERSION}",
            said("kind"),
            said("apiVersion")
        ));
    }
    match value.as_object().and_then(|fields| fields.keys().find(|name| !is_known(name))) {
        Some(name) => Err(format!("strict decoding error: unknown field {name:?}")),
        None => Ok(value),
    }
}

fn is_known(name: &str) -> bool {
    ["apiVersion", "kind"].contains(&name)
        || FOLLOWED.contains(&name)
        || WITHOUT_EFFECT.contains(&name)
        || NESTED.iter().any(|(known, _)| *known == name)
        || FIXED.iter().any(|(known, _)| *known == name)
}

fn merge(into: &mut Value, from: Value) {
    let Value::Object(from) = from else {
        *into = from;
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    let Some(fields) = into.as_object_mut() else { return };
    for (name, value) in from {
        if value.is_null() {
            fields.remove(&name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

impl Configuration {
    /// Of what [`read`] found.
    ///
    /// # Errors
    /// It says what cannot be, or what this kubelet cannot do.
    pub fn of(merged: &Value) -> Result<Self, Error> {
        fixed(merged)?;
        let written: Written = serde_path_to_error::deserialize(merged)
            .map_err(|error| wrong(format!("{}: {}", error.path(), error.inner())))?;
        let client_ca_file = merged["authentication"]["x509"]["clientCAFile"].as_str();
        let configuration = Self {
            max_pods: positive("maxPods", written.max_pods)?,
            pods_per_core: positive("podsPerCore", written.pods_per_core)?,
            pod_pids_limit: positive(
                "podPidsLimit",
                written.pod_pids_limit.filter(|limit| *limit != -1),
            )?,
            static_pods: path(&written.static_pod_path),
            system_reserved: reserved("systemReserved", &written.system_reserved)?,
            kube_reserved: reserved("kubeReserved", &written.kube_reserved)?,
            eviction_hard: thresholds(written.eviction_hard.as_ref())?,
            max_parallel_image_pulls: parallel(&written)?,
            shutdown: shutdown(&written)?,
            client_ca_file: client_ca_file.and_then(path),
            limits: limits(&written)?,
            without_effect: without_effect(merged),
            allowed_unsafe_sysctls: written.allowed_unsafe_sysctls,
            taints: written.register_with_taints,
            cluster_dns: written.cluster_dns,
            cluster_domain: Some(written.cluster_domain).filter(|domain| !domain.is_empty()),
        };
        Ok(configuration)
    }
}

/// Refuses what this kubelet does not do.
fn fixed(merged: &Value) -> Result<(), Error> {
    for (name, known) in NESTED {
        let unknown = merged[name]
            .as_object()
            .and_then(|fields| fields.keys().find(|field| !known.contains(&field.as_str())));
        if let Some(unknown) = unknown {
            return Err(wrong(format!(
                "strict decoding error: unknown field \"{name}.{unknown}\""
            )));
        }
    }
    for (name, accepted) in FIXED {
        let value = name.split('.').fold(merged, |value, part| &value[part]);
        let text = value.to_string();
        if !value.is_null() && !accepted.contains(&text.as_str()) {
            return Err(wrong(format!(
                "{name}: {text} is not supported, only {}",
                accepted.join(" or ")
            )));
        }
    }
    Ok(())
}

/// The fields that would do something elsewhere; what stands for a default there is not among them.
fn without_effect(merged: &Value) -> Vec<String> {
    let said = WITHOUT_EFFECT.into_iter().filter(|name| !is_zero(&merged[*name]));
    said.map(str::to_owned).collect()
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => ["", "0", "0s"].contains(&text.as_str()),
        Value::Array(items) => items.iter().all(is_zero),
        Value::Object(fields) => fields.values().all(is_zero),
        Value::Bool(true) => false,
    }
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

/// A number above zero; zero stands for the default.
fn positive(name: &str, value: Option<i64>) -> Result<Option<u32>, Error> {
    match value {
        None | Some(0) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| wrong(format!("{name} {value} must not be a negative number"))),
    }
}

/// A time; zero stands for the default.
fn duration(name: &str, value: Option<&str>) -> Result<Option<Duration>, Error> {
    let Some(text) = value.filter(|text| !text.is_empty()) else { return Ok(None) };
    let duration = apimachinery::time::duration(text)
        .ok_or_else(|| wrong(format!("{name}: invalid duration {text:?}")))?;
    Ok((!duration.is_zero()).then_some(duration))
}

fn pairs(map: &BTreeMap<String, String>, between: &str) -> Option<String> {
    let pairs: Vec<String> =
        map.iter().map(|(name, value)| format!("{name}{between}{value}")).collect();
    (!pairs.is_empty()).then(|| pairs.join(","))
}

fn reserved(name: &str, map: &BTreeMap<String, String>) -> Result<Option<String>, Error> {
    let text = pairs(map, "=");
    crate::reserved(text.as_deref().unwrap_or_default())
        .map_err(|error| wrong(format!("{name}: {error}")))?;
    Ok(text)
}

/// An empty map stands for no thresholds, none for the defaults.
fn thresholds(map: Option<&BTreeMap<String, String>>) -> Result<Option<String>, Error> {
    let Some(map) = map else { return Ok(None) };
    let text = pairs(map, "<").unwrap_or_default();
    eviction::threshold::parse(&text).map_err(|error| wrong(format!("evictionHard: {error}")))?;
    Ok(Some(text))
}

fn parallel(written: &Written) -> Result<Option<u32>, Error> {
    let most = written.max_parallel_image_pulls;
    if let Some(most) = most.filter(|most| *most < 1) {
        return Err(wrong(format!("maxParallelImagePulls {most} must be a positive number")));
    }
    if written.serialize_image_pulls == Some(true) {
        if most.is_some_and(|most| most > 1) {
            let reason =
                "maxParallelImagePulls cannot be larger than 1 unless serializeImagePulls is false";
            return Err(wrong(reason));
        }
        return Ok(Some(1));
    }
    positive("maxParallelImagePulls", most)
}

type Shutdown = (Option<String>, Option<String>, Option<String>);

fn shutdown(written: &Written) -> Result<Shutdown, Error> {
    let given = |text: &Option<String>| {
        text.clone().filter(|text| !["", "0", "0s"].contains(&text.as_str()))
    };
    let by_priority: Vec<String> = written
        .shutdown_grace_period_by_pod_priority
        .iter()
        .map(|of| format!("{}={}", of.priority, of.shutdown_grace_period_seconds))
        .collect();
    let by_priority = (!by_priority.is_empty()).then(|| by_priority.join(","));
    let periods = (
        given(&written.shutdown_grace_period),
        given(&written.shutdown_grace_period_critical_pods),
        by_priority,
    );
    crate::Periods::parse(periods.0.as_deref(), periods.1.as_deref(), periods.2.as_deref())
        .map_err(|error| wrong(format!("shutdownGracePeriod: {error}")))?;
    Ok(periods)
}

fn limits(written: &Written) -> Result<Limits, Error> {
    let mut limits = Limits::default();
    if let Some(text) = written.container_log_max_size.as_ref().filter(|text| !text.is_empty()) {
        let bytes = quantity::value(&Quantity(text.clone())).and_then(|b| u64::try_from(b).ok());
        let bytes = bytes.filter(|bytes| *bytes > 0);
        limits.log_bytes =
            bytes.ok_or_else(|| wrong(format!("containerLogMaxSize: {text:?} is no size")))?;
    }
    if let Some(files) = written.container_log_max_files {
        let files = usize::try_from(files).ok().filter(|files| *files > 1);
        limits.log_files =
            files.ok_or_else(|| wrong("containerLogMaxFiles must be greater than 1"))?;
    }
    let period = written.container_log_monitor_interval.as_deref();
    if let Some(period) = duration("containerLogMonitorInterval", period)? {
        if period < Duration::from_secs(3) {
            let reason = "containerLogMonitorInterval must be a positive time duration greater than or equal to 3s";
            return Err(wrong(reason));
        }
        limits.log_period = period;
    }
    let pause = written.crash_loop_back_off.max_container_restart_period.as_deref();
    if let Some(pause) = duration("crashLoopBackOff.maxContainerRestartPeriod", pause)? {
        if !(Duration::from_secs(1)..=crate::backoff::MAX).contains(&pause) {
            let reason =
                "crashLoopBackOff.maxContainerRestartPeriod must be set between 1s and 5m0s";
            return Err(wrong(reason));
        }
        limits.restart_pause = pause;
    }
    let pressure = written.eviction_pressure_transition_period.as_deref();
    if let Some(pressure) = duration("evictionPressureTransitionPeriod", pressure)? {
        limits.pressure = pressure;
    }
    if let Some(path) = written.resolv_conf.as_deref().and_then(path) {
        limits.resolv_conf = path;
    }
    if let Some(images) = written.node_status_max_images {
        if images < -1 {
            return Err(wrong(format!("nodeStatusMaxImages {images} must be -1 or greater")));
        }
        limits.status_images = usize::try_from(images).ok();
    }
    limits.merge_thresholds = written.merge_default_eviction_settings == Some(true);
    limits.pulls = pulls(written)?;
    limits.soft = soft::read(written)?;
    limits.terms = terms(written)?;
    limits.fail_swap_on = written.fail_swap_on;
    limits.provider_id = Some(written.provider_id.clone()).filter(|id| !id.is_empty());
    limits.verification = Verification::parse(
        &written.image_pull_credentials_verification_policy,
        &written.preloaded_images_verification_allowlist,
    )
    .map_err(wrong)?;
    limits.images = images(written, limits.images)?;
    Ok(limits)
}

fn terms(written: &Written) -> Result<Terms, Error> {
    let period = duration("cpuCFSQuotaPeriod", written.cpu_cfs_quota_period.as_deref())?
        .unwrap_or(Duration::from_millis(100));
    if !(Duration::from_millis(1)..=Duration::from_secs(1)).contains(&period) {
        return Err(wrong(format!(
            "cpuCFSQuotaPeriod {period:?} must be between 1ms and 1sec, inclusive"
        )));
    }
    let swap = match written.memory_swap.swap_behavior.as_str() {
        "" | "NoSwap" => false,
        "LimitedSwap" => true,
        other => {
            return Err(wrong(format!(
                "memorySwap.swapBehavior {other:?} must be one of: \"\", \"LimitedSwap\" or \"NoSwap\""
            )));
        }
    };
    Ok(Terms {
        cpu_quotas: written.cpu_cfs_quota != Some(false),
        cpu_period_us: i64::try_from(period.as_micros()).unwrap_or(i64::MAX),
        swap,
        single_process_ends: written.single_process_oom_kill,
    })
}

/// Without a word of it pulls are not limited; upstream's defaults count once one of both is told.
fn pulls(written: &Written) -> Result<Option<(u32, u32)>, Error> {
    if written.registry_pull_qps.is_none() && written.registry_burst.is_none() {
        return Ok(None);
    }
    let a_second = match written.registry_pull_qps {
        Some(0) => return Ok(None),
        qps => positive("registryPullQPS", qps)?.unwrap_or(5),
    };
    let at_once = positive("registryBurst", written.registry_burst)?.unwrap_or(10);
    Ok(Some((a_second, at_once)))
}

fn images(written: &Written, defaults: ImageLimits) -> Result<ImageLimits, Error> {
    let mut images = defaults;
    let percent = |name: &str, value: Option<i64>, default: u64| match value {
        None => Ok(default),
        Some(value) => u64::try_from(value)
            .ok()
            .filter(|percent| *percent <= 100)
            .ok_or_else(|| wrong(format!("{name} {value} must be between 0 and 100, inclusive"))),
    };
    let (high, low) =
        (written.image_gc_high_threshold_percent, written.image_gc_low_threshold_percent);
    if high.is_some() || low.is_some() {
        images.percent = (
            percent("imageGCHighThresholdPercent", high, images.percent.0)?,
            percent("imageGCLowThresholdPercent", low, images.percent.1)?,
        );
        // Whoever says how full the disk may get means it.
        images.free_bytes = None;
    }
    if images.percent.1 >= images.percent.0 {
        return Err(wrong(format!(
            "imageGCLowThresholdPercent {} must be less than imageGCHighThresholdPercent {}",
            images.percent.1, images.percent.0
        )));
    }
    if let Some(age) = duration("imageMinimumGCAge", written.image_minimum_gc_age.as_deref())? {
        images.minimum_age = age;
    }
    images.maximum_age = duration("imageMaximumGCAge", written.image_maximum_gc_age.as_deref())?;
    if images.maximum_age.is_some_and(|most| most <= images.minimum_age) {
        return Err(wrong("imageMaximumGCAge must be greater than imageMinimumGCAge"));
    }
    Ok(images)
}

#[cfg(test)]
mod tests;
