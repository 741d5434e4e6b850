//! The pods' network by CNI plugins: the folder of configurations and the folders of plugins are named
//! with `--cni-conf-dir` and `--cni-bin-dir`.
//!
//! Source: the CNI specification 1.1.0 and what libcni does for runtimes. The plugins run in the node's
//! network, as root of the cluster's user namespace: a bridge that they make is there, and what leaves
//! it beyond the cluster is carried by the node process as for its own pods. The node network is told
//! of every address that they give, so that services and policies hold for it.

mod call;
mod capabilities;
mod list;

use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::Context;
use async_trait::async_trait;
use netns::Control;
use runtime::{Error, Network, NetworkPod};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use call::Plugins;
use list::NetworkList;
pub use list::is_name;

const INTERFACE: &str = "eth0";
/// GC and STATUS came with it.
const GC_AND_STATUS: &str = "1.1.0";
/// CHECK came with it.
const CHECK: &str = "0.4.0";

/// What is remembered of a pod, to undo it.
#[derive(Debug, Serialize, Deserialize)]
struct Attached {
    list: NetworkList,
    member: String,
    capabilities: Value,
    /// Null until every plugin has done its part.
    result: Value,
}

/// The network of a node whose pods get theirs from plugins.
#[derive(Clone)]
pub struct PluginNetwork {
    control: Control,
    conf_dir: PathBuf,
    bin_dirs: Vec<PathBuf>,
    /// One file for each pod.
    cache_dir: PathBuf,
}

/// Where and for whom plugins run.
struct Run {
    id: String,
    /// Path of the pod's network namespace; empty when it is gone.
    namespace: String,
    /// The node's network namespace.
    node: OwnedFd,
}

impl PluginNetwork {
    /// One with these folders; results are kept in `cache_dir`.
    pub fn new(
        control: Control,
        conf_dir: PathBuf,
        bin_dirs: Vec<PathBuf>,
        cache_dir: PathBuf,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(&cache_dir)
            .with_context(|| format!("cannot make {}", cache_dir.display()))?;
        let own = Self { control, conf_dir, bin_dirs, cache_dir };
        // A mistake is told at the start, not with the first pod.
        let list = NetworkList::load(&own.conf_dir)?;
        for plugin in &list.plugins {
            own.plugins(None).require(plugin, &list.version)?;
        }
        Ok(own)
    }

    fn plugins<'a>(&'a self, namespace: Option<&'a OwnedFd>) -> Plugins<'a> {
        Plugins { bin_dirs: &self.bin_dirs, namespace, state_dir: &self.cache_dir }
    }

    fn cache(&self, id: &str) -> PathBuf {
        self.cache_dir.join(format!("{id}.json"))
    }

    fn remembered(&self, id: &str) -> anyhow::Result<Option<Attached>> {
        match fs::read(self.cache(id)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).context("the cache is damaged")?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("cannot read the cache"),
        }
    }

    fn remember(&self, id: &str, attached: &Attached) -> anyhow::Result<()> {
        let text = serde_json::to_vec(attached).context("a result is plain data")?;
        let (file, fresh) = (self.cache(id), self.cache_dir.join(format!("{id}.new")));
        let written = File::create(&fresh).and_then(|mut file| file.write_all(&text));
        written.and_then(|()| fs::rename(&fresh, &file)).context("cannot write the cache")
    }

    fn forget(&self, id: &str) -> anyhow::Result<()> {
        fs::remove_file(self.cache(id)).context("cannot forget a result")
    }

    /// The pods that are remembered.
    fn known(&self) -> anyhow::Result<Vec<String>> {
        let entries = fs::read_dir(&self.cache_dir).context("cannot read the cache")?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.strip_suffix(".json").map(str::to_owned)).collect())
    }

    /// Runs every plugin for ADD; what was done is undone if one fails, and later if this process ends
    /// meanwhile.
    fn add(&self, run: &Run, pod: &NetworkPod) -> anyhow::Result<Attached> {
        let list = NetworkList::load(&self.conf_dir)?;
        let capabilities = capabilities::of(pod)?;
        let mut attached =
            Attached { list, member: pod.name.clone(), capabilities, result: Value::Null };
        self.remember(&run.id, &attached)?;
        for plugin in attached.list.plugins.clone() {
            match self.call("ADD", run, &plugin, &attached) {
                Ok(Some(result)) => attached.result = result,
                Ok(None) => {}
                Err(error) => {
                    match self.delete(run, &attached) {
                        Ok(()) => self.forget(&run.id)?,
                        Err(undo) => tracing::debug!("after a failed ADD: {undo:#}"),
                    }
                    return Err(error);
                }
            }
        }
        self.remember(&run.id, &attached)?;
        Ok(attached)
    }

    /// Runs every plugin for DEL, the last one first; the first error is returned in the end.
    fn delete(&self, run: &Run, attached: &Attached) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        for plugin in attached.list.plugins.iter().rev() {
            let done = self.call("DEL", run, plugin, attached).map(drop);
            outcome = outcome.and(done);
        }
        outcome
    }

    fn check(&self, run: &Run, attached: &Attached) -> anyhow::Result<()> {
        if attached.list.disable_check || !attached.list.speaks(CHECK) {
            return Ok(());
        }
        for plugin in &attached.list.plugins {
            self.call("CHECK", run, plugin, attached)?;
        }
        Ok(())
    }

    /// Deletes what is remembered of pods that are none of `valid`, then lets the plugins do so with
    /// what they remember. Goes on after a failure; the first is returned.
    fn collect(&self, node: OwnedFd, valid: &[String]) -> anyhow::Result<()> {
        let mut run = Run { id: String::new(), namespace: String::new(), node };
        let mut outcome = Ok(());
        for id in self.known()?.into_iter().filter(|id| !valid.contains(id)) {
            run.id.clone_from(&id);
            let deleted = self.remembered(&id).and_then(|attached| match attached {
                Some(attached) => self.delete(&run, &attached),
                None => Ok(()),
            });
            outcome = outcome.and(deleted.and_then(|()| self.forget(&id)));
        }
        let list = NetworkList::load(&self.conf_dir)?;
        if list.disable_gc || !list.speaks(GC_AND_STATUS) {
            return outcome;
        }
        let valid: Vec<_> = valid.iter().map(|id| (id.clone(), INTERFACE.to_owned())).collect();
        let plugins = self.plugins(Some(&run.node));
        for plugin in &list.plugins {
            let collected = plugins.call("GC", &list.collection(plugin, &valid), &[]);
            outcome = outcome.and(collected.map(drop));
        }
        outcome
    }

    /// Whether the plugins would attach a pod.
    fn status(&self, node: &OwnedFd) -> anyhow::Result<()> {
        let list = NetworkList::load(&self.conf_dir)?;
        let plugins = self.plugins(Some(node));
        for plugin in &list.plugins {
            if list.speaks(GC_AND_STATUS) {
                let conf = list.configuration(plugin, &Value::Null, &Value::Null);
                plugins.call("STATUS", &conf, &[])?;
            } else {
                plugins.find(plugin)?;
            }
        }
        Ok(())
    }

    fn call(
        &self,
        command: &str,
        run: &Run,
        plugin: &Value,
        attached: &Attached,
    ) -> anyhow::Result<Option<Value>> {
        let (namespace, name) = attached.member.split_once('/').unwrap_or_default();
        let variables = [
            ("CNI_CONTAINERID", run.id.clone()),
            ("CNI_NETNS", run.namespace.clone()),
            ("CNI_IFNAME", INTERFACE.to_owned()),
            (
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                     K8S_POD_INFRA_CONTAINER_ID={}",
                    run.id
                ),
            ),
        ];
        let conf = attached.list.configuration(plugin, &attached.capabilities, &attached.result);
        self.plugins(Some(&run.node)).call(command, &conf, &variables)
    }
}

/// The addresses in a result that belong to the pod: those of interfaces in a sandbox, or of none.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let interfaces = result["interfaces"].as_array();
    let of_pod = |ip: &Value| {
        let index = ip["interface"].as_u64().and_then(|index| usize::try_from(index).ok());
        let interface = index.and_then(|index| interfaces?.get(index));
        interface.is_none_or(|i| i["sandbox"].as_str().is_some_and(|path| !path.is_empty()))
    };
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter(|ip| of_pod(ip))
        .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
        .collect()
}

/// The gateways in a result: addresses of the node, at which host ports may be.
fn gateways(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter_map(|ip| ip["gateway"].as_str()?.parse().ok()).collect()
}

/// Leads a pod to load balancers, which are at loopback addresses, by the gateway that it was given.
fn lead_to_services(namespace: &OwnedFd, result: &Value) -> anyhow::Result<()> {
    let ips = result["ips"].as_array().into_iter().flatten();
    let mut pairs = ips.filter_map(|ip| {
        let address = ip["address"].as_str()?.split('/').next()?.parse().ok()?;
        Some((ip["gateway"].as_str()?.parse().ok()?, address))
    });
    let first = pairs.find(|(_, address): &(IpAddr, IpAddr)| address.is_ipv4());
    first.map_or(Ok(()), |(gateway, address)| {
        Ok(netns::lead_to_loopback_services(namespace, INTERFACE, gateway, address)?)
    })
}

fn failed(error: anyhow::Error) -> Error {
    Error::Failed(format!("{error:#}"))
}

impl PluginNetwork {
    /// Runs something that blocks.
    async fn blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Self) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let own = self.clone();
        let done = tokio::task::spawn_blocking(move || job(&own)).await;
        done.map_err(|error| Error::Failed(error.to_string()))?.map_err(failed)
    }
}

#[async_trait]
impl Network for PluginNetwork {
    async fn attach(
        &self,
        id: &str,
        pod: &NetworkPod,
        netns: BorrowedFd<'_>,
    ) -> Result<Vec<IpAddr>, Error> {
        let node = self.control.node_netns().await?;
        let namespace = netns
            .try_clone_to_owned()
            .map_err(|error| Error::Failed(format!("the pod's network namespace: {error}")))?;
        let (id, pod) = (id.to_owned(), pod.clone());
        let adopted = id.clone();
        let inside = namespace.try_clone().map_err(|error| Error::Failed(error.to_string()))?;
        let attached = self
            .blocking(move |own| {
                let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
                let run = Run { id, namespace: path, node };
                match own.remembered(&run.id)? {
                    Some(known) if !known.result.is_null() => {
                        own.check(&run, &known)?;
                        return Ok(known);
                    }
                    // What was begun before this process was started.
                    Some(begun) => own.delete(&run, &begun)?,
                    None => {}
                }
                netns::raise_loopback(&namespace).context("cannot raise the pod's loopback")?;
                own.add(&run, &pod)
            })
            .await?;
        let addresses = addresses(&attached.result);
        let pod = netns::Adopted {
            member: attached.member,
            addresses: addresses.clone(),
            gateways: gateways(&attached.result),
        };
        self.control.adopt(&adopted, pod).await?;
        let led = self.blocking(move |_| lead_to_services(&inside, &attached.result)).await;
        if let Err(error) = led {
            // A pod that has no use for load balancers is none the worse for it.
            tracing::warn!(id = adopted, %error, "no way to load balancers from this pod");
        }
        Ok(addresses)
    }

    async fn detach(&self, id: &str) -> Result<(), Error> {
        let node = self.control.node_netns().await?;
        let run = Run { id: id.to_owned(), namespace: String::new(), node };
        self.blocking(move |own| {
            let Some(attached) = own.remembered(&run.id)? else { return Ok(()) };
            own.delete(&run, &attached)?;
            own.forget(&run.id)
        })
        .await?;
        Ok(self.control.detach(id).await?)
    }

    async fn node_netns(&self) -> Result<Option<OwnedFd>, Error> {
        Ok(Some(self.control.node_netns().await?))
    }

    async fn set_pod_cidr(&self, _: &str) -> Result<(), Error> {
        // The plugins have their own ranges.
        Ok(())
    }

    async fn status(&self) -> Result<(), Error> {
        let node = self.control.node_netns().await?;
        self.blocking(move |own| own.status(&node)).await
    }

    async fn collect(&self, valid: &[String]) -> Result<(), Error> {
        let (node, valid) = (self.control.node_netns().await?, valid.to_vec());
        self.blocking(move |own| own.collect(node, &valid)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn results_tell_the_pods_addresses() {
        let result = json!({"interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/x"}],
            "ips": [{"interface": 1, "address": "10.9.0.2/24"}, {"address": "fd00::2/64"},
                {"interface": 0, "address": "10.9.0.1/24"}]});
        let want: Vec<IpAddr> = vec!["10.9.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(addresses(&result), want);
        assert!(addresses(&Value::Null).is_empty());
        let told =
            json!({"ips": [{"address": "10.9.0.2/24", "gateway": "10.9.0.1"}, {"address": "x"}]});
        assert_eq!(gateways(&told), ["10.9.0.1".parse::<IpAddr>().unwrap()]);
    }
}
