//! The pods' network by CNI plugins: the folder of configurations and the folders of plugins are named
//! with `--cni-conf-dir` and `--cni-bin-dir`.
//!
//! Source: the CNI specification 1.1.0 and what libcni does for runtimes. The plugins run in the node's
//! network, as root of the cluster's user namespace: a bridge that they make is there, and what leaves
//! it beyond the cluster is carried by the node process as for its own pods. The node network is told
//! of every address that they give, so that services and policies hold for it.

use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use async_trait::async_trait;
use netns::Control;
use nix::sched::{CloneFlags, setns};
use runtime::{Error, Network, NetworkPod};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const INTERFACE: &str = "eth0";
/// Newest version of the specification that configurations may have.
const NEWEST: &str = "1.1.0";

/// A network: its plugins in order, each with its configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct NetworkList {
    name: String,
    version: String,
    plugins: Vec<Value>,
    #[serde(default)]
    disable_check: bool,
}

/// What is remembered of a pod, to undo it.
#[derive(Debug, Serialize, Deserialize)]
struct Attached {
    list: NetworkList,
    member: String,
    capabilities: Value,
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
        let list = own.load()?;
        for plugin in &list.plugins {
            own.find(plugin)?;
        }
        Ok(own)
    }

    fn load(&self) -> anyhow::Result<NetworkList> {
        let place = self.conf_dir.display();
        let entries = fs::read_dir(&self.conf_dir)
            .with_context(|| format!("--cni-conf-dir: cannot read {place}"))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
        files.retain(|file| {
            let extension = file.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("conflist" | "conf" | "json"))
        });
        files.sort();
        let file = files.first().with_context(|| format!("{place} has no CNI configuration"))?;
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        parse(&text).with_context(|| format!("{} is no CNI configuration", file.display()))
    }

    fn find(&self, plugin: &Value) -> anyhow::Result<PathBuf> {
        let kind = plugin["type"].as_str().unwrap_or_default();
        if kind.is_empty() || kind.contains('/') {
            bail!("{kind:?} is not the name of a CNI plugin");
        }
        let found = self.bin_dirs.iter().map(|dir| dir.join(kind)).find(|file| file.is_file());
        found.with_context(|| format!("--cni-bin-dir: there is no CNI plugin {kind:?}"))
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

    /// Runs every plugin for ADD; what was done is undone if one fails.
    fn add(&self, run: &Run, pod: &NetworkPod) -> anyhow::Result<Attached> {
        let list = self.load()?;
        let capabilities = capabilities(pod);
        let mut attached =
            Attached { list, member: pod.name.clone(), capabilities, result: Value::Null };
        for plugin in attached.list.plugins.clone() {
            match self.call("ADD", run, &plugin, &attached) {
                Ok(result) => attached.result = result,
                Err(error) => {
                    if let Err(undo) = self.delete(run, &attached) {
                        tracing::debug!("after a failed ADD: {undo:#}");
                    }
                    return Err(error);
                }
            }
        }
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
        // CHECK came with version 0.4.0.
        if attached.list.disable_check || attached.list.version.starts_with("0.3") {
            return Ok(());
        }
        for plugin in &attached.list.plugins {
            self.call("CHECK", run, plugin, attached)?;
        }
        Ok(())
    }

    fn call(
        &self,
        command: &str,
        run: &Run,
        plugin: &Value,
        attached: &Attached,
    ) -> anyhow::Result<Value> {
        let file = self.find(plugin)?;
        let conf = configuration(plugin, attached);
        let (namespace, name) = attached.member.split_once('/').unwrap_or_default();
        let path = std::env::join_paths(&self.bin_dirs).context("--cni-bin-dir")?;
        let mut call = Command::new(&file);
        call.env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &run.id)
            .env("CNI_NETNS", &run.namespace)
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_PATH", path)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                     K8S_POD_INFRA_CONTAINER_ID={}",
                    run.id
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let kind = plugin["type"].as_str().unwrap_or_default();
        let (code, out, err) = execute(call, &run.node, conf.to_string())
            .with_context(|| format!("cannot run CNI plugin {kind:?}"))?;
        if code != Some(0) {
            bail!("CNI plugin {kind:?} failed ({command}): {}", problem(&out, &err));
        }
        if out.trim().is_empty() {
            return Ok(attached.result.clone());
        }
        serde_json::from_str(&out)
            .with_context(|| format!("CNI plugin {kind:?} answered something else than JSON"))
    }
}

/// Where and for whom plugins run.
struct Run {
    id: String,
    /// Path of the pod's network namespace; empty when it is gone.
    namespace: String,
    /// The node's network namespace.
    node: OwnedFd,
}

/// Runs a program inside a network namespace, with `input`.
fn execute(
    mut command: Command,
    namespace: &OwnedFd,
    input: String,
) -> anyhow::Result<(Option<i32>, String, String)> {
    // The thread ends with the program: it cannot come back out of the namespace.
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || -> anyhow::Result<_> {
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .context("cannot enter the node's network")?;
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // A plugin may fail before it has read everything.
                let _ = stdin.write_all(input.as_bytes());
            }
            let output = child.wait_with_output()?;
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            Ok((output.status.code(), text(output.stdout), text(output.stderr)))
        });
        thread.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
    })
}

/// What a plugin said about its failure ("Error" in the specification), or else what it printed.
fn problem(out: &str, err: &str) -> String {
    match serde_json::from_str::<Value>(out) {
        Ok(error) if error["msg"].is_string() => {
            let (message, details) = (&error["msg"], error["details"].as_str().unwrap_or_default());
            let message = message.as_str().unwrap_or_default();
            let separator = if details.is_empty() { "" } else { ": " };
            format!("{message}{separator}{details} (code {})", error["code"])
        }
        _ => format!("{}{}", out.trim(), err.trim()),
    }
}

/// A list of plugins, or a single one, which is a list of itself.
fn parse(text: &str) -> anyhow::Result<NetworkList> {
    let value: Value = serde_json::from_str(text)?;
    let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let version = if field("cniVersion").is_empty() { "0.3.0".into() } else { field("cniVersion") };
    let name = field("name");
    if name.is_empty() {
        bail!("it has no name");
    }
    let numbers =
        |text: &str| -> Vec<u32> { text.split('.').filter_map(|n| n.parse().ok()).collect() };
    if numbers(&version) > numbers(NEWEST) || numbers(&version) < vec![0, 3] {
        bail!("its cniVersion is {version}; 0.3.0 to {NEWEST} are spoken");
    }
    let plugins = match &value["plugins"] {
        Value::Array(plugins) => plugins.clone(),
        Value::Null => vec![value.clone()],
        _ => bail!("its plugins are no list"),
    };
    if plugins.is_empty() || plugins.iter().any(|plugin| !plugin["type"].is_string()) {
        bail!("every plugin needs a type, and there must be one at least");
    }
    let disable_check = value["disableCheck"] == true;
    Ok(NetworkList { name, version, plugins, disable_check })
}

/// What is told to plugins that say they want to know.
fn capabilities(pod: &NetworkPod) -> Value {
    if pod.ingress_bps.is_none() && pod.egress_bps.is_none() {
        return json!({});
    }
    // Bursts as the kubelet's documentation of the annotations has them: without a limit of their own.
    let burst = i32::MAX;
    let mut bandwidth = json!({});
    for (bps, rate, bursts) in [
        (pod.ingress_bps, "ingressRate", "ingressBurst"),
        (pod.egress_bps, "egressRate", "egressBurst"),
    ] {
        if let Some(bps) = bps {
            bandwidth[rate] = bps.into();
            bandwidth[bursts] = burst.into();
        }
    }
    json!({"bandwidth": bandwidth})
}

/// A plugin's configuration as it gets it ("Deriving execution configuration").
fn configuration(plugin: &Value, attached: &Attached) -> Value {
    let mut conf = plugin.clone();
    conf["cniVersion"] = attached.list.version.clone().into();
    conf["name"] = attached.list.name.clone().into();
    let wanted = plugin["capabilities"].as_object();
    let told: serde_json::Map<String, Value> = wanted
        .into_iter()
        .flatten()
        .filter(|(_, wanted)| **wanted == true)
        .filter_map(|(name, _)| {
            attached.capabilities.get(name).map(|value| (name.clone(), value.clone()))
        })
        .collect();
    if let Some(conf) = conf.as_object_mut() {
        conf.remove("capabilities");
    }
    if !told.is_empty() {
        conf["runtimeConfig"] = told.into();
    }
    if !attached.result.is_null() {
        conf["prevResult"] = attached.result.clone();
    }
    conf
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
        let attached = self
            .blocking(move |own| {
                let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
                let run = Run { id, namespace: path, node };
                if let Some(known) = own.remembered(&run.id)? {
                    own.check(&run, &known)?;
                    return Ok(known);
                }
                netns::raise_loopback(&namespace).context("cannot raise the pod's loopback")?;
                let attached = own.add(&run, &pod)?;
                let text = serde_json::to_vec(&attached).context("a result is plain data")?;
                let mut file =
                    File::create(own.cache(&run.id)).context("cannot write the cache")?;
                file.write_all(&text).context("cannot write the cache")?;
                Ok(attached)
            })
            .await?;
        let addresses = addresses(&attached.result);
        self.control.adopt(&adopted, &attached.member, addresses.clone()).await?;
        Ok(addresses)
    }

    async fn detach(&self, id: &str) -> Result<(), Error> {
        let node = self.control.node_netns().await?;
        let run = Run { id: id.to_owned(), namespace: String::new(), node };
        self.blocking(move |own| {
            let Some(attached) = own.remembered(&run.id)? else { return Ok(()) };
            own.delete(&run, &attached)?;
            fs::remove_file(own.cache(&run.id)).context("cannot forget a result")
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &Value) -> anyhow::Result<NetworkList> {
        parse(&text.to_string())
    }

    #[test]
    fn configurations_are_lists_of_plugins() {
        let one = json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge"});
        assert_eq!(list(&one).unwrap().plugins, [one]);
        let two = json!({"cniVersion": "0.4.0", "name": "n", "plugins": [
            {"type": "bridge"}, {"type": "tuning"}]});
        assert_eq!(list(&two).unwrap().plugins.len(), 2);
        let cases = [
            (json!({"cniVersion": "1.0.0", "type": "bridge"}), "no name"),
            (json!({"cniVersion": "2.0.0", "name": "n", "type": "b"}), "2.0.0"),
            (json!({"cniVersion": "0.2.0", "name": "n", "type": "b"}), "0.2.0"),
            (json!({"cniVersion": "1.0.0", "name": "n", "plugins": []}), "at least"),
            (json!({"cniVersion": "1.0.0", "name": "n"}), "type"),
        ];
        for (text, want) in cases {
            let error = list(&text).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn plugins_are_told_what_they_ask_for() {
        let pod = NetworkPod { ingress_bps: Some(8), ..NetworkPod::default() };
        let plugin = json!({"type": "bandwidth", "capabilities": {"bandwidth": true, "ips": true}});
        let attached = Attached {
            list: list(&json!({"cniVersion": "1.0.0", "name": "n", "plugins": [plugin]})).unwrap(),
            member: "d/p".into(),
            capabilities: capabilities(&pod),
            result: json!({"ips": []}),
        };
        let conf = configuration(&plugin, &attached);
        assert_eq!(conf["runtimeConfig"]["bandwidth"]["ingressRate"], 8);
        assert_eq!(conf["runtimeConfig"].as_object().unwrap().len(), 1);
        assert_eq!((&conf["name"], &conf["cniVersion"]), (&json!("n"), &json!("1.0.0")));
        assert_eq!(conf["prevResult"], json!({"ips": []}));
        assert!(conf.get("capabilities").is_none());
        let plain = configuration(&json!({"type": "bridge"}), &attached);
        assert!(plain.get("runtimeConfig").is_none());
    }

    #[test]
    fn results_tell_the_pods_addresses() {
        let result = json!({"interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/x"}],
            "ips": [{"interface": 1, "address": "10.9.0.2/24"}, {"address": "fd00::2/64"},
                {"interface": 0, "address": "10.9.0.1/24"}]});
        let want: Vec<IpAddr> = vec!["10.9.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(addresses(&result), want);
        assert!(addresses(&Value::Null).is_empty());
    }

    #[test]
    fn problems_are_told_in_the_plugins_words() {
        let error = r#"{"code": 7, "msg": "no bridge", "details": "x"}"#;
        assert_eq!(problem(error, ""), "no bridge: x (code 7)");
        assert_eq!(problem("", "exec format\n"), "exec format");
    }
}
