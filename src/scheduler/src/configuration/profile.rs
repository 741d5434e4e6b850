//! From a profile's file to the plugins that are asked, point by point.
//!
//! Source: `pkg/scheduler/apis/config/v1/default_plugins.go` (`mergePlugins`),
//! `pkg/scheduler/framework/runtime/framework.go` (`expandMultiPointPlugins`).

use std::collections::BTreeSet;
use std::time::Duration;

use super::arguments::Arguments;
use super::{Error, Named, PluginSet, Plugins, ProfileFile, wrong};
use crate::framework::{Plugin, Point, Profile};
use crate::plugins;

/// The plugins of a profile that says nothing, in the order in which they are asked.
const DEFAULTS: &[(&str, i64)] = &[
    ("SchedulingGates", 0),
    ("PrioritySort", 0),
    ("NodeUnschedulable", 0),
    ("NodeName", 0),
    ("TaintToleration", 3),
    ("NodeAffinity", 2),
    ("NodePorts", 0),
    ("NodeResourcesFit", 1),
    ("VolumeRestrictions", 0),
    ("NodeVolumeLimits", 0),
    ("VolumeBinding", 0),
    ("VolumeZone", 0),
    ("PodTopologySpread", 2),
    ("InterPodAffinity", 2),
    ("DynamicResources", 0),
    ("DefaultPreemption", 0),
    ("NodeResourcesBalancedAllocation", 1),
    ("ImageLocality", 1),
    ("DefaultBinder", 0),
    ("NodeDeclaredFeatures", 0),
];
const EVERYTHING: &str = "*";

/// The profile of `default-scheduler`.
pub fn default() -> Profile {
    build("profiles[0]", "default-scheduler", &ProfileFile::default(), &[])
        .expect("the defaults are right")
}

fn plugins(arguments: &Arguments) -> Vec<Box<dyn Plugin>> {
    vec![
        Box::new(plugins::SchedulingGates),
        Box::new(plugins::Marker("PrioritySort", &[Point::QueueSort])),
        Box::new(plugins::NodeUnschedulable),
        Box::new(plugins::NodeName),
        Box::new(plugins::TaintToleration),
        Box::new(plugins::NodeAffinity(arguments.node_affinity.clone())),
        Box::new(plugins::NodePorts),
        Box::new(plugins::NodeResourcesFit(arguments.resources.clone())),
        Box::new(plugins::VolumeRestrictions),
        Box::new(plugins::NodeVolumeLimits),
        Box::new(plugins::VolumeBinding),
        Box::new(plugins::VolumeZone),
        Box::new(plugins::PodTopologySpread(arguments.spread.clone())),
        Box::new(plugins::InterPodAffinity(arguments.inter_pod.clone())),
        Box::new(plugins::DynamicResources),
        Box::new(plugins::Marker("DefaultPreemption", &[Point::PostFilter])),
        Box::new(plugins::NodeResourcesBalancedAllocation(arguments.balanced.clone())),
        Box::new(plugins::ImageLocality),
        Box::new(plugins::Marker("DefaultBinder", &[Point::Bind])),
        Box::new(plugins::NodeDeclaredFeatures),
    ]
}

/// The set for all points: the defaults, as far as they are not disabled or configured otherwise.
fn merged(own: &PluginSet) -> Vec<Named> {
    let disabled: BTreeSet<&str> = own.disabled.iter().map(|plugin| plugin.name.as_str()).collect();
    let mut all: Vec<Named> = Vec::new();
    let mut replaced = BTreeSet::new();
    if !disabled.contains(EVERYTHING) {
        for (name, weight) in DEFAULTS.iter().filter(|(name, _)| !disabled.contains(name)) {
            match own.enabled.iter().find(|plugin| plugin.name == *name) {
                Some(configured) => {
                    replaced.insert(*name);
                    all.push(configured.clone());
                }
                None => all.push(Named { name: (*name).into(), weight: *weight }),
            }
        }
    }
    all.extend(own.enabled.iter().filter(|p| !replaced.contains(p.name.as_str())).cloned());
    all
}

/// Who is asked at a point: what its own set configures anew, what comes from the set for all points, and
/// what only its own set names.
fn expanded<'a>(
    own: &'a PluginSet,
    multi: &'a [Named],
    implements: impl Fn(&str) -> bool,
) -> Vec<&'a Named> {
    let names = |set: &'a [Named]| set.iter().map(|plugin| plugin.name.as_str());
    let enabled: BTreeSet<&str> = names(&own.enabled).collect();
    let disabled: BTreeSet<&str> = names(&own.disabled).collect();
    let mut overriding = BTreeSet::new();
    let mut from_multi = Vec::new();
    if !disabled.contains(EVERYTHING) {
        for plugin in multi.iter().filter(|plugin| implements(&plugin.name)) {
            if disabled.contains(plugin.name.as_str()) {
                continue;
            }
            if enabled.contains(plugin.name.as_str()) {
                overriding.insert(plugin.name.as_str());
            } else {
                from_multi.push(plugin);
            }
        }
    }
    let overrides = |plugin: &&Named| overriding.contains(plugin.name.as_str());
    let mut all: Vec<&Named> = own.enabled.iter().filter(overrides).collect();
    all.extend(from_multi);
    all.extend(own.enabled.iter().filter(|plugin| !overrides(plugin)));
    all
}

/// Whether the sets name plugins that there are, once each, and at points that they have something to say at.
fn check(path: &str, sets: &Plugins, known: &[Box<dyn Plugin>]) -> Result<(), Error> {
    let find = |name: &str| known.iter().find(|plugin| plugin.name() == name);
    let points = sets.points();
    let all = points.iter().map(|(point, field, set)| (Some(*point), *field, *set));
    for (point, field, set) in all.chain([(None, "multiPoint", &sets.multi_point)]) {
        let mut seen = BTreeSet::new();
        for (at, named) in set.enabled.iter().enumerate() {
            let place = format!("{path}.plugins.{field}.enabled[{at}]");
            let Some(plugin) = find(&named.name) else {
                let problem = format!("Invalid value: {:?}: plugin does not exist", named.name);
                return Err(wrong(format!("{place}.name"), problem));
            };
            if point.is_some_and(|point| !plugin.points().contains(&point)) {
                let problem =
                    format!("Invalid value: {:?}: plugin does not extend {field}", named.name);
                return Err(wrong(format!("{place}.name"), problem));
            }
            if !seen.insert(named.name.as_str()) {
                let problem = format!("Duplicate value: {:?}", named.name);
                return Err(wrong(format!("{place}.name"), problem));
            }
            if named.weight < 0 {
                let problem = format!("Invalid value: {}: must not be negative", named.weight);
                return Err(wrong(format!("{place}.weight"), problem));
            }
        }
    }
    Ok(())
}

/// Makes the profile that stands at `path`; nodes are not looked at for the resources `ignored`.
pub fn build(
    path: &str,
    name: &str,
    file: &ProfileFile,
    ignored: &[String],
) -> Result<Profile, Error> {
    let mut arguments = Arguments::default();
    let mut configured = BTreeSet::new();
    for (at, config) in file.plugin_config.iter().enumerate() {
        let place = format!("{path}.pluginConfig[{at}]");
        if !DEFAULTS.iter().any(|(known, _)| *known == config.name) {
            let problem = format!("Invalid value: {:?}: plugin does not exist", config.name);
            return Err(wrong(format!("{place}.name"), problem));
        }
        if !configured.insert(config.name.as_str()) {
            return Err(wrong(place, format!("Duplicate value: {:?}", config.name)));
        }
        arguments.set(&format!("{place}.args"), &config.name, config.args.clone())?;
    }
    arguments.resources.ignored.extend(ignored.iter().cloned());
    let known = plugins(&arguments);
    check(path, &file.plugins, &known)?;
    let multi = merged(&file.plugins.multi_point);
    let implementing = |point: Point| -> BTreeSet<&'static str> {
        let known = known.iter().filter(|plugin| plugin.points().contains(&point));
        known.map(|plugin| plugin.name()).collect()
    };
    let orders: Vec<(Point, Vec<(String, i64)>)> = file
        .plugins
        .points()
        .into_iter()
        .map(|(point, _, set)| {
            let names = implementing(point);
            let order = expanded(set, &multi, |name| names.contains(name));
            // A score that counts for nothing is one that nobody asks for.
            let order = order.into_iter().map(|p| (p.name.clone(), p.weight.max(1)));
            (point, order.collect())
        })
        .collect();
    for (point, field) in [(Point::QueueSort, "queueSort"), (Point::Bind, "bind")] {
        if orders.iter().any(|(at, order)| *at == point && order.is_empty()) {
            let problem = "Required value: at least one plugin is needed";
            return Err(wrong(format!("{path}.plugins.{field}"), problem));
        }
    }
    let mut profile = Profile::new(name, known);
    for (point, order) in &orders {
        profile.ask(*point, order.iter().map(|(name, weight)| (name.as_str(), *weight)));
    }
    if profile.asks(Point::PostFilter, "DefaultPreemption") {
        profile.preemption = Some(arguments.preemption);
    }
    if let Some(seconds) = arguments.volume_timeout_s {
        profile.volume_timeout = Duration::from_secs(seconds as u64);
    }
    if let Some(timeout) = arguments.device_timeout {
        profile.device_timeout = timeout;
    }
    Ok(profile)
}
