//! What the daemon tells the server, a line of JSON each time.

use serde::{Deserialize, Serialize};

use crate::forwarding::Forwarding;
use crate::zone::Named;

/// What is different from what was told before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Update {
    /// All that was told before is void: a new zone begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<Whole>,
    /// Records that are there no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<Named>,
    /// Records that are new.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<Named>,
    /// Where else names are looked up, if that is other than before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarding: Option<Forwarding>,
}

impl Update {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is the same for all records of a zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Whole {
    /// The cluster's domain.
    pub domain: String,
    /// Domains of the addresses that are the cluster's alone.
    pub reverse: Vec<String>,
}
