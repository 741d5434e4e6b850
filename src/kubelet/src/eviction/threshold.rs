//! Signals of what the node lacks, and the thresholds below which it is under pressure.
//!
//! Source of behaviour: the node-pressure eviction page of the Kubernetes documentation,
//! `pkg/kubelet/eviction/helpers.go`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// `memory.available`
    Memory,
    /// `nodefs.available`
    NodeDisk,
    /// `nodefs.inodesFree`
    NodeInodes,
    /// `imagefs.available`
    ImageDisk,
    /// `imagefs.inodesFree`
    ImageInodes,
    /// `pid.available`
    Pids,
}

impl Signal {
    const ALL: [(&'static str, Self); 6] = [
        ("memory.available", Self::Memory),
        ("nodefs.available", Self::NodeDisk),
        ("nodefs.inodesFree", Self::NodeInodes),
        ("imagefs.available", Self::ImageDisk),
        ("imagefs.inodesFree", Self::ImageInodes),
        ("pid.available", Self::Pids),
    ];

    /// Upstream's word.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, s)| *s == self).map_or("", |(name, _)| name)
    }

    /// The resource that the signal is about.
    pub fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::NodeDisk | Self::ImageDisk => "ephemeral-storage",
            Self::NodeInodes | Self::ImageInodes => "inodes",
            Self::Pids => "pids",
        }
    }

    /// The node's condition while it is under the threshold.
    pub fn condition(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Pids => "PIDPressure",
            _ => "DiskPressure",
        }
    }
}

/// How little is too little.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Least {
    /// An amount.
    Amount(u64),
    /// A share of all there is, in thousandths.
    Share(u64),
    /// A share in thousandths, but no more than the amount.
    ShareUpTo(u64, u64),
}

impl Least {
    /// The amount, of `capacity`.
    pub fn of(self, capacity: u64) -> u64 {
        let share = |permille: u64| {
            u64::try_from(u128::from(capacity) * u128::from(permille) / 1000).unwrap_or(u64::MAX)
        };
        match self {
            Self::Amount(amount) => amount,
            Self::Share(permille) => share(permille),
            Self::ShareUpTo(permille, amount) => share(permille).min(amount),
        }
    }
}

/// A threshold of each signal that has one.
pub type Thresholds = BTreeMap<Signal, Least>;

/// Upstream's defaults; of a disk upstream keeps a tenth free and a twentieth of its inodes, which is tens of
/// gigabytes on a laptop whose disk is not ours alone: the share counts up to a fixed amount.
pub fn defaults() -> Thresholds {
    let (disk, inodes) = (Least::ShareUpTo(100, 512 << 20), Least::ShareUpTo(50, 20_000));
    BTreeMap::from([
        (Signal::Memory, Least::Amount(100 << 20)),
        (Signal::NodeDisk, disk),
        (Signal::NodeInodes, inodes),
        (Signal::ImageDisk, disk),
        (Signal::ImageInodes, inodes),
    ])
}

/// Reads `signal<quantity` or `signal<percent%`, several separated by commas; as upstream's, they replace the
/// defaults altogether.
pub fn parse(text: &str) -> Result<Thresholds, String> {
    let mut out = Thresholds::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part
            .split_once('<')
            .ok_or_else(|| format!("{part:?} is no eviction threshold: signal<quantity"))?;
        if out.insert(signal(name)?, least(value)?).is_some() {
            return Err(format!("duplicate eviction threshold for {name}"));
        }
    }
    Ok(out)
}

/// The signal of upstream's name.
pub fn signal(name: &str) -> Result<Signal, String> {
    let found = Signal::ALL.iter().find(|(known, _)| *known == name.trim());
    found.map(|(_, signal)| *signal).ok_or_else(|| format!("unsupported eviction signal {name:?}"))
}

/// A quantity, or a percentage.
pub fn least(value: &str) -> Result<Least, String> {
    let wrong = || format!("{value:?} is no quantity and no percentage from 0% to 100%");
    if let Some(percent) = value.trim().strip_suffix('%') {
        let permille = quantity::milli(&Quantity(percent.into())).ok_or_else(wrong)? / 100;
        let permille = u64::try_from(permille).ok().filter(|p| *p <= 1000);
        return permille.map(Least::Share).ok_or_else(wrong);
    }
    let amount = quantity::value(&Quantity(value.trim().into())).ok_or_else(wrong)?;
    u64::try_from(amount).map(Least::Amount).map_err(|_| wrong())
}

/// A threshold in the words of upstream's configuration.
pub fn text(least: Least) -> String {
    match least {
        Least::Amount(amount) => quantity::binary(amount),
        Least::Share(permille) | Least::ShareUpTo(permille, _) => {
            format!("{}.{}%", permille / 10, permille % 10).replace(".0%", "%")
        }
    }
}

/// Thresholds in the words of upstream's configuration.
pub fn written(thresholds: &Thresholds) -> BTreeMap<&'static str, String> {
    thresholds.iter().map(|(signal, least)| (signal.name(), text(*least))).collect()
}

/// What a signal shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What is left.
    pub available: u64,
    /// All there is; zero where it is not known, which is no pressure.
    pub capacity: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::Rules;

    #[test]
    fn thresholds_are_read_and_written() {
        let read =
            parse("memory.available<100Mi, nodefs.available<10%,pid.available<7.5%").unwrap();
        assert_eq!(read[&Signal::Memory], Least::Amount(100 << 20));
        let text: Vec<String> = written(&read).iter().map(|(k, v)| format!("{k}<{v}")).collect();
        assert_eq!(text, ["memory.available<100Mi", "nodefs.available<10%", "pid.available<7.5%"]);
        for wrong in ["memory<1", "memory.available", "nodefs.available<101%", "pid.available<x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_disk_is_low_by_share_when_small_and_by_amount_when_large() {
        let disk = |size: u64, free: u64, inodes: u64, inodes_free: u64| {
            let (size, free) = (size << 20, free << 20);
            let readings = BTreeMap::from([
                (Signal::NodeDisk, Reading { available: free, capacity: size }),
                (Signal::NodeInodes, Reading { available: inodes_free, capacity: inodes }),
            ]);
            let rules = Rules { hard: defaults(), ..Rules::default() };
            rules.wants_more(&readings)
        };
        assert!(disk(1000, 99, 0, 0));
        assert!(!disk(1000, 101, 0, 0));
        assert!(!disk(250_000, 600, 0, 0), "a large disk may be nearly full");
        assert!(disk(250_000, 500, 0, 0));
        assert!(disk(250_000, 100_000, 16_000_000, 19_000));
        assert!(!disk(250_000, 100_000, 16_000_000, 21_000));
        assert!(!disk(250_000, 100_000, 0, 0), "a file system that counts no inodes");
    }
}
