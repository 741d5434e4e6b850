//! The daemon's own socket: what the command line needs that is not Kubernetes' API. HTTP over a unix
//! socket that only the user can open.

mod client;
mod server;

use std::fs;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

pub use client::{Archive, Body, Client};
pub use server::{Cluster, State, is_ready, serve};

use crate::paths::Paths;

/// The answer to `GET /status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// rootlet's version.
    pub version: String,
    /// The API server's address.
    pub server: String,
    /// The node's name.
    pub node: String,
    /// Whether the node is Ready.
    pub node_ready: bool,
    /// Pods by phase.
    pub pods: std::collections::BTreeMap<String, usize>,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// Whether the cluster's state is in memory alone.
    #[serde(default)]
    pub ephemeral: bool,
    /// Addresses of this machine at which node ports are offered.
    #[serde(default)]
    pub publish: Vec<std::net::IpAddr>,
    /// The folder that is kept applied, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests: Option<crate::manifests::Kept>,
}

/// An image as `image ls` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageLine {
    /// Digest of its configuration.
    pub id: String,
    /// Its names.
    pub tags: Vec<String>,
    /// Its names by digest.
    pub digests: Vec<String>,
    /// What its layers take, compressed.
    pub size_bytes: u64,
    /// Stays when room is made.
    #[serde(default)]
    pub pinned: bool,
}

/// One line of the answer to a load or a pull: progress, the result, or why there is none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Progress {
    /// Bytes of a layer that are here.
    Layer {
        /// Its digest.
        digest: String,
        /// So many are here.
        done_bytes: u64,
        /// Of so many; 0 when unknown.
        total_bytes: u64,
    },
    /// Done.
    Images {
        /// What is now in the store.
        images: Vec<ImageLine>,
    },
    /// Failed.
    Error {
        /// Why.
        message: String,
    },
}

/// The answer to `POST /images/prune`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pruned {
    /// IDs of the images that went.
    pub images: Vec<String>,
    /// What they took, unpacked.
    pub bytes: u64,
}

/// The answer to `POST /images/fsck`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Checked {
    /// Images looked at.
    pub images: usize,
    /// Layers looked at.
    pub layers: usize,
    /// Layers that cannot be compared with their digest.
    pub uncheckable: Vec<String>,
    /// Images that are not what they were: name and what is wrong.
    pub damaged: Vec<(String, String)>,
}

/// The answer to `POST /snapshot`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Restored {
    /// Objects that were written.
    pub written: usize,
    /// Objects that were removed.
    pub removed: usize,
}

/// The process that has the runtime of this name, where that is not a cluster's daemon.
pub fn runtime_alone(paths: &Paths) -> Option<u32> {
    let pid = crate::lock::holder(&paths.lock("runtime"))?;
    (crate::lock::holder(&paths.lock("daemon")) != Some(pid)).then_some(pid)
}

/// A client of the cluster's API, as its administrator.
pub async fn api(paths: &Paths) -> anyhow::Result<kube::Client> {
    let file = paths.kubeconfig();
    if !file.exists() || crate::lock::holder(&paths.lock("daemon")).is_none() {
        anyhow::bail!(paths.not_running());
    }
    Ok(::client::from_kubeconfig(&file, None).await?)
}

/// What the administrator's kubeconfig says.
pub fn access(paths: &Paths) -> anyhow::Result<cli::kubeconfig::Access> {
    let file = paths.data.join("admin.json");
    let bytes = match fs::read(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            anyhow::bail!(paths.not_running());
        }
        read => read.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let admin: Admin = serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is damaged; run `rootlet down` and `up`", file.display()))?;
    Ok(cli::kubeconfig::Access {
        server: admin.server,
        ca_data: STANDARD.encode(admin.ca_pem),
        cert_data: STANDARD.encode(admin.cert_pem),
        key_data: STANDARD.encode(admin.key_pem),
    })
}

/// The administrator's credentials, as the daemon leaves them for the command line.
#[derive(Serialize, Deserialize)]
pub struct Admin {
    /// Such as `https://127.0.0.1:6443`.
    pub server: String,
    /// The cluster's CA.
    pub ca_pem: String,
    /// The client certificate.
    pub cert_pem: String,
    /// Its key.
    pub key_pem: String,
}

impl Admin {
    /// Those of an earlier start, unless they are older than `age_max` or unreadable.
    pub fn read(paths: &Paths, age_max: std::time::Duration) -> Option<Self> {
        let file = paths.data.join("admin.json");
        let written = fs::metadata(&file).ok()?.modified().ok()?;
        if written.elapsed().is_ok_and(|age| age > age_max) {
            return None;
        }
        serde_json::from_slice(&fs::read(&file).ok()?).ok()
    }

    /// Writes them, readable by the owner alone.
    pub fn write(&self, paths: &Paths) -> anyhow::Result<()> {
        let text = serde_json::to_string(self).context("credentials are plain text")?;
        cli::kubeconfig::write(&paths.data.join("admin.json"), &text)?;
        let access = access(paths)?;
        let config = cli::kubeconfig::standalone(&paths.context(), &access);
        cli::kubeconfig::write(&paths.kubeconfig(), &config)?;
        Ok(())
    }
}
