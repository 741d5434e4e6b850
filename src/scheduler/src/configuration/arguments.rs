//! What plugins are told by `pluginConfig`, with upstream's defaults and rules.
//!
//! Source: `k8s.io/kube-scheduler/config/v1/types_pluginargs.go`,
//! `pkg/scheduler/apis/config/validation/validation_pluginargs.go`.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeAffinity as Terms, TopologySpreadConstraint};
use serde::Deserialize;
use serde_json::Value;

use super::{Error, read, wrong};

/// The worst and the best score of a point of a scoring function.
const SCORES: std::ops::RangeInclusive<i64> = 0..=10;

/// A resource and how much it counts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weighed {
    /// Its name.
    pub name: String,
    /// 1 to 100.
    #[serde(default)]
    pub weight: i64,
}

fn cpu_and_memory() -> Vec<Weighed> {
    ["cpu", "memory"].map(|name| Weighed { name: name.into(), weight: 1 }).to_vec()
}

/// Which nodes are the better ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Strategy {
    /// The emptiest.
    #[default]
    LeastAllocated,
    /// The fullest.
    MostAllocated,
    /// What a function of their use says.
    RequestedToCapacityRatio,
}

/// How good a use of a resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UtilizationPoint {
    /// The use, in percent.
    pub utilization: i64,
    /// 0 to 10.
    pub score: i64,
}

/// How NodeResourcesFit compares nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scoring {
    /// By what rule.
    pub strategy: Strategy,
    /// What counts.
    pub resources: Vec<Weighed>,
    /// The function, for [`Strategy::RequestedToCapacityRatio`].
    pub shape: Vec<UtilizationPoint>,
}

impl Default for Scoring {
    fn default() -> Self {
        Self { strategy: Strategy::default(), resources: cpu_and_memory(), shape: Vec::new() }
    }
}

/// Of NodeResourcesFit.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// Extended resources that nodes need not have.
    pub ignored: Vec<String>,
    /// Groups of them: what comes before the `/`.
    pub ignored_groups: Vec<String>,
    /// How nodes are compared.
    pub scoring: Scoring,
}

/// Of NodeResourcesBalancedAllocation.
#[derive(Clone, Debug)]
pub struct BalancedAllocation {
    /// What shall be used evenly.
    pub resources: Vec<Weighed>,
}

impl Default for BalancedAllocation {
    fn default() -> Self {
        Self { resources: cpu_and_memory() }
    }
}

/// Of InterPodAffinity.
#[derive(Clone, Debug)]
pub struct InterPodAffinity {
    /// What a required affinity of a pod already placed counts for, when others are placed.
    pub hard_weight: i64,
    /// Wishes of placed pods count only for pods that have wishes themselves.
    pub ignore_preferred_of_existing: bool,
}

impl Default for InterPodAffinity {
    fn default() -> Self {
        Self { hard_weight: 1, ignore_preferred_of_existing: false }
    }
}

/// Of NodeAffinity.
#[derive(Clone, Debug, Default)]
pub struct NodeAffinity {
    /// What every pod of the profile wants besides its own.
    pub added: Option<Terms>,
}

/// Where the constraints of pods without any come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Defaulting {
    /// Over zones and nodes, as upstream has it.
    #[default]
    System,
    /// From the configuration.
    List,
}

/// Of PodTopologySpread.
#[derive(Clone, Debug, Default)]
pub struct PodTopologySpread {
    /// The constraints of pods without any.
    pub constraints: Vec<TopologySpreadConstraint>,
    /// Where they come from.
    pub defaulting: Defaulting,
}

/// The arguments of all plugins of a profile.
#[derive(Clone, Debug, Default)]
pub(super) struct Arguments {
    pub resources: Resources,
    pub balanced: BalancedAllocation,
    pub inter_pod: InterPodAffinity,
    pub node_affinity: NodeAffinity,
    pub spread: PodTopologySpread,
    pub preemption: crate::preemption::Limits,
    pub volume_timeout_s: Option<i64>,
    pub device_timeout: Option<Duration>,
}

/// Takes the type's own two fields off.
fn bare(path: &str, plugin: &str, mut args: Value) -> Result<Value, Error> {
    let Some(fields) = args.as_object_mut() else {
        return if args.is_null() {
            Ok(Value::Object(serde_json::Map::new()))
        } else {
            Err(wrong(path, "Invalid value: an object is expected"))
        };
    };
    if let Some(version) = fields.remove("apiVersion").filter(|version| *version != super::VERSION)
    {
        let problem = format!("Unsupported value: {version}: supported: {:?}", super::VERSION);
        return Err(wrong(format!("{path}.apiVersion"), problem));
    }
    let kind = format!("{plugin}Args");
    if let Some(found) = fields.remove("kind").filter(|found| *found != kind.as_str()) {
        let problem = format!("Unsupported value: {found}: supported: {kind:?}");
        return Err(wrong(format!("{path}.kind"), problem));
    }
    Ok(args)
}

impl Arguments {
    /// Takes in the arguments of `plugin`, which stand at `path`.
    pub fn set(&mut self, path: &str, plugin: &str, args: Value) -> Result<(), Error> {
        let args = bare(path, plugin, args)?;
        match plugin {
            "NodeResourcesFit" => self.resources = resources(path, args)?,
            "NodeResourcesBalancedAllocation" => self.balanced = balanced(path, args)?,
            "InterPodAffinity" => self.inter_pod = inter_pod(path, args)?,
            "NodeAffinity" => self.node_affinity = node_affinity(path, args)?,
            "PodTopologySpread" => self.spread = spread(path, args)?,
            "DefaultPreemption" => self.preemption = preemption(path, args)?,
            "VolumeBinding" => self.volume_timeout_s = Some(volume_timeout(path, args)?),
            "DynamicResources" => self.device_timeout = dynamic_resources(path, args)?,
            other => {
                let known = args.as_object().is_none_or(serde_json::Map::is_empty);
                if !known {
                    return Err(wrong(path, format!("plugin {other:?} takes no arguments")));
                }
            }
        }
        Ok(())
    }
}

fn weights(path: &str, resources: &mut [Weighed]) -> Result<(), Error> {
    for (at, resource) in resources.iter_mut().enumerate() {
        if resource.weight == 0 {
            resource.weight = 1;
        }
        if !(1..=100).contains(&resource.weight) {
            let problem = format!(
                "Invalid value: {}: resource weight of {} not in valid range (0, 100]",
                resource.weight, resource.name
            );
            return Err(wrong(format!("{path}[{at}].weight"), problem));
        }
    }
    Ok(())
}

fn resources(path: &str, args: Value) -> Result<Resources, Error> {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct Args {
        ignored_resources: Vec<String>,
        ignored_resource_groups: Vec<String>,
        scoring_strategy: Option<ScoringFile>,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
    struct ScoringFile {
        #[serde(rename = "type")]
        strategy: Strategy,
        resources: Vec<Weighed>,
        requested_to_capacity_ratio: Option<Ratio>,
    }
    #[derive(Deserialize, Default)]
    #[serde(deny_unknown_fields)]
    struct Ratio {
        #[serde(default)]
        shape: Vec<UtilizationPoint>,
    }
    let Args {
        ignored_resources: ignored,
        ignored_resource_groups: ignored_groups,
        scoring_strategy,
    } = read(path, args)?;
    for (at, group) in ignored_groups.iter().enumerate() {
        if group.contains('/') {
            let problem =
                format!("Invalid value: {group:?}: resource group name can't contain '/'");
            return Err(wrong(format!("{path}.ignoredResourceGroups[{at}]"), problem));
        }
    }
    let mut scoring = Scoring::default();
    if let Some(file) = scoring_strategy {
        let path = format!("{path}.scoringStrategy");
        scoring.strategy = file.strategy;
        if !file.resources.is_empty() {
            scoring.resources = file.resources;
            weights(&format!("{path}.resources"), &mut scoring.resources)?;
        }
        let field = format!("{path}.requestedToCapacityRatio");
        match (file.strategy, file.requested_to_capacity_ratio) {
            (Strategy::RequestedToCapacityRatio, Some(ratio)) => {
                scoring.shape = shape(&format!("{field}.shape"), ratio.shape)?;
            }
            (Strategy::RequestedToCapacityRatio, None) => {
                let problem =
                    "Required value: must be specified when type is RequestedToCapacityRatio";
                return Err(wrong(field, problem));
            }
            (_, Some(_)) => {
                let problem = "Forbidden: must be nil when type is not RequestedToCapacityRatio";
                return Err(wrong(field, problem));
            }
            (_, None) => {}
        }
    }
    Ok(Resources { ignored, ignored_groups, scoring })
}

fn shape(path: &str, points: Vec<UtilizationPoint>) -> Result<Vec<UtilizationPoint>, Error> {
    if points.is_empty() {
        return Err(wrong(path, "Required value: at least one point must be specified"));
    }
    let invalid = |at: usize, field: &str, value: i64, why: &str| {
        wrong(format!("{path}[{at}].{field}"), format!("Invalid value: {value}: {why}"))
    };
    if let Some(at) = points.windows(2).position(|two| two[0].utilization >= two[1].utilization) {
        let why = "values must be sorted in increasing order";
        return Err(invalid(at + 1, "utilization", points[at + 1].utilization, why));
    }
    for (at, point) in points.iter().enumerate() {
        if !(0..=100).contains(&point.utilization) {
            let why = "not in valid range [0, 100]";
            return Err(invalid(at, "utilization", point.utilization, why));
        }
        if !SCORES.contains(&point.score) {
            return Err(invalid(at, "score", point.score, "not in valid range [0, 10]"));
        }
    }
    Ok(points)
}

fn balanced(path: &str, args: Value) -> Result<BalancedAllocation, Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Args {
        #[serde(default)]
        resources: Vec<Weighed>,
    }
    let mut args: Args = read(path, args)?;
    if args.resources.is_empty() {
        return Ok(BalancedAllocation::default());
    }
    let field = format!("{path}.resources");
    let mut seen = BTreeSet::new();
    for (at, resource) in args.resources.iter_mut().enumerate() {
        if !seen.insert(resource.name.clone()) {
            let problem = format!("Duplicate value: {:?}", resource.name);
            return Err(wrong(format!("{field}[{at}].name"), problem));
        }
        if resource.weight == 0 {
            resource.weight = 1;
        }
        if resource.weight != 1 {
            let problem = format!("Invalid value: {}: must be 1", resource.weight);
            return Err(wrong(format!("{field}[{at}].weight"), problem));
        }
    }
    Ok(BalancedAllocation { resources: args.resources })
}

fn inter_pod(path: &str, args: Value) -> Result<InterPodAffinity, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Args {
        hard_pod_affinity_weight: Option<i64>,
        #[serde(default)]
        ignore_preferred_terms_of_existing_pods: bool,
    }
    let args: Args = read(path, args)?;
    let hard_weight = args.hard_pod_affinity_weight.unwrap_or(1);
    if !(0..=100).contains(&hard_weight) {
        let problem = format!("Invalid value: {hard_weight}: not in valid range [0, 100]");
        return Err(wrong(format!("{path}.hardPodAffinityWeight"), problem));
    }
    let ignore_preferred_of_existing = args.ignore_preferred_terms_of_existing_pods;
    Ok(InterPodAffinity { hard_weight, ignore_preferred_of_existing })
}

fn node_affinity(path: &str, args: Value) -> Result<NodeAffinity, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Args {
        added_affinity: Option<Terms>,
    }
    let args: Args = read(path, args)?;
    Ok(NodeAffinity { added: args.added_affinity })
}

fn spread(path: &str, args: Value) -> Result<PodTopologySpread, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Args {
        #[serde(default)]
        default_constraints: Vec<TopologySpreadConstraint>,
        #[serde(default)]
        defaulting_type: Defaulting,
    }
    let Args { default_constraints: constraints, defaulting_type: defaulting } = read(path, args)?;
    let field = format!("{path}.defaultConstraints");
    if defaulting == Defaulting::System && !constraints.is_empty() {
        let problem = "Invalid value: \"System\": when .defaultConstraints are not empty";
        return Err(wrong(format!("{path}.defaultingType"), problem));
    }
    for (at, constraint) in constraints.iter().enumerate() {
        let field = format!("{field}[{at}]");
        if constraint.max_skew <= 0 {
            let problem =
                format!("Invalid value: {}: not in valid range (0, inf)", constraint.max_skew);
            return Err(wrong(format!("{field}.maxSkew"), problem));
        }
        if constraint.topology_key.is_empty() {
            return Err(wrong(format!("{field}.topologyKey"), "Required value: can not be empty"));
        }
        if constraint.when_unsatisfiable.is_empty() {
            let problem = "Required value: can not be empty";
            return Err(wrong(format!("{field}.whenUnsatisfiable"), problem));
        }
        if !matches!(constraint.when_unsatisfiable.as_str(), "DoNotSchedule" | "ScheduleAnyway") {
            let problem = format!(
                "Unsupported value: {:?}: supported values: \"DoNotSchedule\", \"ScheduleAnyway\"",
                constraint.when_unsatisfiable
            );
            return Err(wrong(format!("{field}.whenUnsatisfiable"), problem));
        }
        if constraint.label_selector.is_some() {
            let problem =
                "Forbidden: constraint must not define a selector, as they deduced for each pod";
            return Err(wrong(format!("{field}.labelSelector"), problem));
        }
        let (key, action) = (&constraint.topology_key, &constraint.when_unsatisfiable);
        let same = |other: &&TopologySpreadConstraint| {
            other.topology_key == *key && other.when_unsatisfiable == *action
        };
        if constraints[..at].iter().any(|other| same(&other)) {
            return Err(wrong(field, format!("Duplicate value: \"{{{key}, {action}}}\"")));
        }
    }
    Ok(PodTopologySpread { constraints, defaulting })
}

fn preemption(path: &str, args: Value) -> Result<crate::preemption::Limits, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Args {
        min_candidate_nodes_percentage: Option<i64>,
        min_candidate_nodes_absolute: Option<i64>,
    }
    let args: Args = read(path, args)?;
    let percent = args.min_candidate_nodes_percentage.unwrap_or(10);
    let least = args.min_candidate_nodes_absolute.unwrap_or(100);
    if !(0..=100).contains(&percent) {
        let problem = format!("Invalid value: {percent}: not in valid range [0, 100]");
        return Err(wrong(format!("{path}.minCandidateNodesPercentage"), problem));
    }
    if least < 0 {
        let problem = format!("Invalid value: {least}: not in valid range [0, inf)");
        return Err(wrong(format!("{path}.minCandidateNodesAbsolute"), problem));
    }
    if percent == 0 && least == 0 {
        let problem =
            "Invalid value: 0: cannot be zero at the same time as minCandidateNodesAbsolute";
        return Err(wrong(format!("{path}.minCandidateNodesPercentage"), problem));
    }
    Ok(crate::preemption::Limits { percent: percent as usize, least: least as usize })
}

fn volume_timeout(path: &str, args: Value) -> Result<i64, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Args {
        bind_timeout_seconds: Option<i64>,
        shape: Option<Vec<UtilizationPoint>>,
    }
    let args: Args = read(path, args)?;
    if let Some(points) = args.shape.filter(|points| !points.is_empty()) {
        shape(&format!("{path}.shape"), points)?;
    }
    let timeout = args.bind_timeout_seconds.unwrap_or(600);
    if timeout < 0 {
        let problem = format!(
            "Invalid value: {timeout}: invalid BindTimeoutSeconds, should not be a negative value"
        );
        return Err(wrong(format!("{path}.bindTimeoutSeconds"), problem));
    }
    Ok(timeout)
}

/// How long the binding of devices may take. A search for devices ends after so many steps, whatever its time.
fn dynamic_resources(path: &str, args: Value) -> Result<Option<Duration>, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Args {
        filter_timeout: Option<String>,
        binding_timeout: Option<String>,
    }
    let args: Args = read(path, args)?;
    let limit = |field: &str, value: Option<String>, least: Duration, why: &str| {
        let Some(text) = value else { return Ok(None) };
        let read = apimachinery::time::duration(&text).filter(|duration| *duration >= least);
        let problem =
            || wrong(format!("{path}.{field}"), format!("Invalid value: {text:?}: {why}"));
        read.map(Some).ok_or_else(problem)
    };
    limit("filterTimeout", args.filter_timeout, Duration::ZERO, "must be zero or positive")?;
    let least = Duration::from_secs(1);
    limit("bindingTimeout", args.binding_timeout, least, "must be at least 1 second")
}
