//! The node's own object, watched: what people write on it decides which pods it takes.

use std::collections::BTreeMap;

use client::{Informer, Selection};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use tokio_util::task::AbortOnDropHandle;

use crate::admission::Marks;

/// The node as the API has it.
pub struct OwnNode {
    name: String,
    api: Api<Node>,
    informer: Informer<Node>,
    _watch: AbortOnDropHandle<()>,
}

impl OwnNode {
    /// Watches the node of this name. Needs tokio.
    pub fn watch(client: &Client, name: &str) -> Self {
        let api: Api<Node> = Api::all(client.clone());
        let selected = Selection::fields(format!("metadata.name={name}"));
        let (informer, watch) = Informer::spawn(api.clone(), selected);
        Self { name: name.to_owned(), api, informer, _watch: AbortOnDropHandle::new(watch) }
    }

    /// Its labels and taints as last seen; `None` while it has not been seen.
    pub fn seen(&self) -> Option<Marks> {
        self.informer.get("", &self.name).map(|node| marks(&node))
    }

    /// Its labels and taints as they are now; labels alone, those with which it registers, where they cannot be read.
    pub async fn now(&self, registered: &BTreeMap<String, String>) -> Marks {
        match self.api.get(&self.name).await {
            Ok(node) => marks(&node),
            Err(error) => {
                tracing::warn!(%error, "the node's labels and taints cannot be read");
                Marks { labels: registered.clone(), taints: Vec::new() }
            }
        }
    }
}

fn marks(node: &Node) -> Marks {
    Marks {
        labels: node.metadata.labels.clone().unwrap_or_default(),
        taints: node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default(),
    }
}
