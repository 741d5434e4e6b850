//! The drivers that have registered on this node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::proto::NodeInfo;

/// A registered driver.
#[derive(Clone, Debug, PartialEq)]
pub struct Driver {
    /// Where it answers.
    pub endpoint: PathBuf,
    /// What it says of the node.
    pub info: NodeInfo,
}

/// The registered drivers, by name.
#[derive(Default)]
pub struct Drivers {
    all: Mutex<BTreeMap<String, Driver>>,
    changes: watch::Sender<()>,
}

impl Drivers {
    /// Where the driver answers, if it has registered.
    pub fn endpoint(&self, name: &str) -> Option<PathBuf> {
        self.lock().get(name).map(|driver| driver.endpoint.clone())
    }

    /// All of them.
    pub fn all(&self) -> BTreeMap<String, Driver> {
        self.lock().clone()
    }

    /// Takes in a driver.
    pub fn insert(&self, name: String, driver: Driver) {
        self.lock().insert(name, driver);
        self.changes.send_replace(());
    }

    /// Forgets a driver.
    pub fn remove(&self, name: &str) {
        self.lock().remove(name);
        self.changes.send_replace(());
    }

    /// Tells of drivers that come and go.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Driver>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
