//! Thresholds that are put up with for a while.
//!
//! Source of behaviour: `ParseThresholdConfig` in `pkg/kubelet/eviction/helpers.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Error, Written, wrong};
use crate::eviction::Soft;
use crate::eviction::threshold::{Least, Signal, least, signal};

/// What the configuration says of them.
pub fn read(written: &Written) -> Result<Soft, Error> {
    let thresholds = by_signal("evictionSoft", &written.eviction_soft)?;
    let reclaim = by_signal("evictionMinimumReclaim", &written.eviction_minimum_reclaim)?;
    let mut periods = BTreeMap::new();
    for (name, text) in &written.eviction_soft_grace_period {
        periods.insert(known("evictionSoftGracePeriod", name)?, period(name, text)?);
    }
    let with_period = |(signal, least): (Signal, Least)| match periods.get(&signal) {
        Some(period) => Ok((signal, (least, *period))),
        None => Err(wrong(format!(
            "evictionSoft: grace period must be specified for the soft eviction threshold {}",
            signal.name()
        ))),
    };
    Ok(Soft {
        thresholds: thresholds.into_iter().map(with_period).collect::<Result<_, _>>()?,
        most_grace_seconds: written.eviction_max_pod_grace_period.max(0),
        reclaim,
    })
}

fn known(field: &str, name: &str) -> Result<Signal, Error> {
    signal(name).map_err(|error| wrong(format!("{field}: {error}")))
}

fn by_signal(
    field: &str,
    map: &BTreeMap<String, String>,
) -> Result<BTreeMap<Signal, Least>, Error> {
    let read = |(name, text): (&String, &String)| {
        let least = least(text).map_err(|error| wrong(format!("{field}: {name}: {error}")))?;
        Ok((known(field, name)?, least))
    };
    map.iter().map(read).collect()
}

fn period(name: &str, text: &str) -> Result<Duration, Error> {
    apimachinery::time::duration(text).ok_or_else(|| {
        wrong(format!("evictionSoftGracePeriod: invalid duration {text:?} for {name}"))
    })
}
