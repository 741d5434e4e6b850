//! Which entry of a multi-platform index is ours.
//!
//! Source: OCI image spec, "Image Index"; the order among arm variants is containerd's.

use serde::{Deserialize, Serialize};

/// An operating system and processor, as an image index names them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform this program was built for.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" => ("arm", Some("v7")),
            "powerpc64" => ("ppc64le", None),
            other => (other, None),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// Parses `os/architecture[/variant]`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/').filter(|part| !part.is_empty());
        let platform = Self {
            os: parts.next()?.to_owned(),
            architecture: parts.next()?.to_owned(),
            variant: parts.next().map(str::to_owned),
        };
        parts.next().is_none().then_some(platform)
    }

    /// How well `candidate` runs here: `None` not at all, lower is better.
    pub fn rank(&self, candidate: &Platform) -> Option<u32> {
        if self.os != candidate.os {
            return None;
        }
        let wanted = self.level();
        let offered = candidate.level();
        if self.architecture == candidate.architecture {
            // A processor runs older variants of its own line, never newer ones.
            return wanted.checked_sub(offered);
        }
        // A 64-bit x86 runs 32-bit programs, as a last resort.
        (self.architecture == "amd64" && candidate.architecture == "386").then_some(1000)
    }

    fn level(&self) -> u32 {
        let default = match self.architecture.as_str() {
            "arm" => 7,
            "arm64" => 8,
            "amd64" => 1,
            _ => 0,
        };
        self.variant
            .as_deref()
            .and_then(|variant| variant.strip_prefix('v'))
            .and_then(|number| number.split('.').next())
            .and_then(|number| number.parse().ok())
            .unwrap_or(default)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_variants() {
        for (here, there, rank) in [
            ("linux/amd64", "linux/amd64", Some(0)),
            ("linux/amd64", "linux/amd64/v3", None),
            ("linux/amd64/v3", "linux/amd64/v2", Some(1)),
            ("linux/amd64", "linux/386", Some(1000)),
            ("linux/amd64", "windows/amd64", None),
            ("linux/amd64", "linux/arm64", None),
            ("linux/arm/v7", "linux/arm/v6", Some(1)),
            ("linux/arm/v6", "linux/arm/v7", None),
            ("linux/arm64/v8", "linux/arm64", Some(0)),
            ("linux/amd64", "unknown/unknown", None),
        ] {
            let here = Platform::parse(here).unwrap();
            let there = Platform::parse(there).unwrap();
            assert_eq!(here.rank(&there), rank, "{here} on {there}");
        }
    }
}
