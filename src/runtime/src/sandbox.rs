//! Pod sandboxes: a shim, its namespaces, and the pod's network.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1;

use crate::backend::{HostPort, NetworkPod};
use crate::error::Error;
use crate::link::{self, Link};
use crate::runtime::Runtime;
use crate::shim::protocol::{Boot, Reply, Request};
use crate::shim::{SHM, SOCKET};
use crate::state::{Process, Sandbox, SandboxRecord, new_id, now_ns, save};

/// Size of a pod's /dev/shm, as every runtime has it.
const SHM_BYTES: u64 = 64 * 1024 * 1024;
/// How long a shim may take to end by itself.
const SHIM_STOP: Duration = Duration::from_secs(2);

/// The namespace options of a sandbox config.
pub fn namespaces(config: &v1::PodSandboxConfig) -> v1::NamespaceOption {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
}

/// Whether the pod lives in the node's network.
pub fn node_network(config: &v1::PodSandboxConfig) -> bool {
    namespaces(config).network() == v1::NamespaceMode::Node
}

/// What the network has to know of the pod. Bandwidth is annotated as upstream has it
/// (`pkg/util/bandwidth/utils.go`).
pub fn network_pod(config: &v1::PodSandboxConfig) -> Result<NetworkPod, Error> {
    let metadata = config.metadata.clone().unwrap_or_default();
    let bandwidth = |direction: &str| {
        let key = format!("kubernetes.io/{direction}-bandwidth");
        let Some(text) = config.annotations.get(&key) else { return Ok(None) };
        let bps = bits_per_s(text).filter(|bps| (BANDWIDTH_MIN..=BANDWIDTH_MAX).contains(bps));
        bps.map(Some).ok_or_else(|| {
            Error::InvalidArgument(format!("{key}: {text:?} is no bandwidth from 1k to 1P"))
        })
    };
    Ok(NetworkPod {
        name: format!("{}/{}", metadata.namespace, metadata.name),
        ingress_bps: bandwidth("ingress")?,
        egress_bps: bandwidth("egress")?,
        ports: host_ports(config)?,
        dns: config.dns_config.clone(),
        annotations: config.annotations.clone().into_iter().collect(),
    })
}

/// The ports of the host that a sandbox config asks for; a host port of zero asks for none.
fn host_ports(config: &v1::PodSandboxConfig) -> Result<Vec<HostPort>, Error> {
    let wanted = config.port_mappings.iter().filter(|mapping| mapping.host_port != 0);
    wanted
        .map(|mapping| {
            let refuse =
                |what: &str| Error::InvalidArgument(format!("port mapping {mapping:?}: {what}"));
            let port = |number: i32| {
                u16::try_from(number)
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(|| refuse("no such port"))
            };
            let host_ip = match mapping.host_ip.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| refuse("host_ip is no address"))?),
            };
            Ok(HostPort {
                host_ip,
                host_port: port(mapping.host_port)?,
                container_port: port(mapping.container_port)?,
                protocol: mapping.protocol(),
            })
        })
        .collect()
}

const BANDWIDTH_MIN: u64 = 1_000;
const BANDWIDTH_MAX: u64 = 1_000_000_000_000_000;

/// A whole quantity such as `10M` or `512Ki`.
fn bits_per_s(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor: u64 = match &text[digits..] {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(factor)
}

impl Runtime {
    /// The pod's directory for what does not outlive a boot.
    pub(crate) fn pod_dir(&self, id: &str) -> PathBuf {
        self.config().run_dir.join("pods").join(id)
    }

    /// The pod's directory for records and files.
    pub(crate) fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.config().root.join("sandboxes").join(id)
    }

    /// The shim of a sandbox.
    pub(crate) fn link(&self, sandbox_id: &str) -> Link {
        Link::new(self.pod_dir(sandbox_id).join(SOCKET))
    }

    pub(crate) fn save_sandbox(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let record = sandbox.record();
        save(&self.sandbox_dir(&record.id).join("sandbox.json"), &record)
            .map_err(Error::io("save sandbox record"))
    }

    /// Makes and starts a sandbox; returns its id.
    pub(crate) async fn run_sandbox(
        &self,
        config: v1::PodSandboxConfig,
        handler: String,
    ) -> Result<String, Error> {
        if !handler.is_empty() && handler != crate::runtime::HANDLER {
            return Err(unknown_handler(&handler));
        }
        if config.metadata.is_none() {
            return Err(Error::InvalidArgument("sandbox config must include metadata".into()));
        }
        check_user_namespace(&config)?;
        let metadata = config.metadata.as_ref();
        let same = |other: &Arc<Sandbox>| other.record().config.metadata.as_ref() == metadata;
        if let Some(other) = self.state().sandboxes().iter().find(|other| same(other)) {
            return Err(reserved("sandbox", metadata.map_or("", |m| &m.name), &other.record().id));
        }
        let id = new_id();
        let record = SandboxRecord {
            id: id.clone(),
            config,
            runtime_handler: handler,
            created_at_ns: now_ns(),
            ready: false,
            ips: Vec::new(),
            shim: None,
            pod_pid: None,
        };
        let sandbox = Arc::new(Sandbox::new(record));
        let _operation = sandbox.operation.lock().await;
        self.state().add_sandbox(id.clone(), Arc::clone(&sandbox));
        match self.boot_sandbox(&sandbox).await {
            Ok(()) => {
                self.watch_shim(&id);
                self.publish(&id, &id, v1::ContainerEventType::ContainerStartedEvent);
                Ok(id)
            }
            Err(error) => {
                self.tear_down(&sandbox).await;
                self.forget_sandbox(&id);
                Err(error)
            }
        }
    }

    async fn boot_sandbox(&self, sandbox: &Arc<Sandbox>) -> Result<(), Error> {
        let record = sandbox.record();
        let (id, config) = (&record.id, &record.config);
        let (dir, run_dir) = (self.sandbox_dir(id), self.pod_dir(id));
        std::fs::create_dir_all(&dir).map_err(Error::io("make sandbox directory"))?;
        std::fs::create_dir_all(&run_dir).map_err(Error::io("make sandbox directory"))?;
        self.write_files(&record)?;
        let options = namespaces(config);
        let node_network = node_network(config);
        let node_ipc = options.ipc() == v1::NamespaceMode::Node;
        let node_netns = if node_network { self.network().node_netns().await? } else { None };
        let boot = Boot {
            id: id.clone(),
            dir: run_dir,
            hostname: (!node_network).then(|| hostname(config)),
            node_network,
            node_ipc,
            pod_pid: options.pid() == v1::NamespaceMode::Pod,
            own_users: own_users(config),
            shm_bytes: (!node_ipc).then_some(SHM_BYTES),
            sysctls: config
                .linux
                .as_ref()
                .map(|linux| linux.sysctls.clone().into_iter().collect())
                .unwrap_or_default(),
        };
        let others: Vec<SandboxRecord> =
            self.state().sandboxes().iter().map(|other| other.record()).collect();
        self.cgroups().make_pod(&record, &others).map_err(Error::io("make the pod's cgroup"))?;
        // Whoever finds a sandbox that is not ready and has a folder takes down what had begun.
        self.save_sandbox(sandbox)?;
        let node_netns = node_netns.as_ref().map(AsFd::as_fd);
        let (pid, pod_pid) = link::spawn(&self.config().executable, &boot, node_netns)
            .await
            .map_err(|source| Error::Shim { id: id.clone(), source })?;
        sandbox.update(|record| {
            record.shim = Process::now(pid);
            record.pod_pid = pod_pid;
        });
        if !node_network {
            let netns = std::fs::File::open(format!("/proc/{pid}/ns/net"))
                .map_err(Error::io("open the pod's network namespace"))?;
            let attached = match network_pod(config) {
                Ok(pod) => self.network().attach(id, &pod, netns.as_fd()).await,
                Err(error) => Err(error),
            };
            let ips = attached.map_err(|error| {
                Error::Failed(format!("failed to setup network for sandbox {id:?}: {error}"))
            })?;
            sandbox.update(|record| record.ips = ips);
        }
        sandbox.update(|record| record.ready = true);
        self.save_sandbox(sandbox)
    }

    /// Writes the files that containers see unless the kubelet mounts its own.
    fn write_files(&self, record: &SandboxRecord) -> Result<(), Error> {
        let (dir, config) = (self.sandbox_dir(&record.id), &record.config);
        let write = |name: &str, text: String| {
            std::fs::write(dir.join(name), text)
                .map_err(Error::io(format!("write the pod's {name}")))
        };
        let node = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        write("hostname", format!("{}\n", hostname(config)))?;
        let hosts = if node_network(config) {
            node("/etc/hosts")
        } else {
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned()
        };
        write("hosts", hosts)?;
        let resolv = match &config.dns_config {
            Some(dns)
                if !(dns.servers.is_empty()
                    && dns.searches.is_empty()
                    && dns.options.is_empty()) =>
            {
                resolv_conf(dns)
            }
            _ => node("/etc/resolv.conf"),
        };
        write("resolv.conf", resolv)
    }

    /// Stops a sandbox: its containers, its shim, its network. Again is no error.
    pub(crate) async fn stop_sandbox(&self, id: &str) -> Result<(), Error> {
        let sandbox = match self.state().sandbox(id) {
            Ok(sandbox) => sandbox,
            Err(Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let _operation = sandbox.operation.lock().await;
        let id = sandbox.record().id;
        for container in self.state().containers_of(&id) {
            self.kill_container(&container).await?;
        }
        self.tear_down(&sandbox).await;
        let was_ready = sandbox.update(|record| std::mem::replace(&mut record.ready, false));
        self.save_sandbox(&sandbox)?;
        if was_ready {
            self.publish(&id, &id, v1::ContainerEventType::ContainerStoppedEvent);
        }
        Ok(())
    }

    /// Ends the shim and leaves the network; goes on after failures.
    pub(crate) async fn tear_down(&self, sandbox: &Sandbox) {
        let record = sandbox.record();
        let stop = tokio::time::timeout(SHIM_STOP, async {
            let session = self.link(&record.id).connect()?;
            session.send(&Request::Stop, &[]).await?;
            // It answers, and ends: then the connection ends too.
            while session.recv::<Reply>().await?.is_some() {}
            std::io::Result::Ok(())
        });
        let gone = matches!(stop.await, Ok(Ok(())));
        if !gone {
            if let Some(shim) = record.shim {
                shim.kill();
            }
            if let Some(pid) = record.pod_pid {
                crate::oci::kill_init(pid);
            }
        }
        if !node_network(&record.config)
            && let Err(error) = self.network().detach(&record.id).await
        {
            tracing::warn!(sandbox = record.id, %error, "network not detached");
        }
        let run_dir = self.pod_dir(&record.id);
        crate::shim::unmount_shm(&run_dir.join(SHM));
        let _ = std::fs::remove_dir_all(&run_dir);
        sandbox.update(|record| {
            record.shim = None;
            record.pod_pid = None;
        });
    }

    /// Removes a sandbox and its containers. Again is no error.
    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<(), Error> {
        let sandbox = match self.state().sandbox(id) {
            Ok(sandbox) => sandbox,
            Err(Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let id = sandbox.record().id;
        self.stop_sandbox(&id).await?;
        for container in self.state().containers_of(&id) {
            let container_id = container.read(|record| record.id.clone());
            self.remove_container(&container_id).await?;
        }
        self.forget_sandbox(&id);
        self.publish(&id, &id, v1::ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    fn forget_sandbox(&self, id: &str) {
        if let Ok(sandbox) = self.state().sandbox(id) {
            self.cgroups().remove_pod(&sandbox.record());
        }
        self.state().remove_sandbox(id);
        let _ = std::fs::remove_dir_all(self.sandbox_dir(id));
    }

    /// The CRI status of a sandbox.
    pub(crate) fn sandbox_status(&self, sandbox: &Sandbox) -> v1::PodSandboxStatus {
        let record = sandbox.record();
        let mut ips = record.ips.iter().map(ToString::to_string);
        let network = (!record.ips.is_empty()).then(|| v1::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
        });
        let options = namespaces(&record.config);
        v1::PodSandboxStatus {
            id: record.id,
            metadata: record.config.metadata,
            state: state_of(record.ready).into(),
            created_at: record.created_at_ns,
            network: Some(network.unwrap_or_default()),
            linux: Some(v1::LinuxPodSandboxStatus {
                namespaces: Some(v1::Namespace { options: Some(options) }),
            }),
            labels: record.config.labels,
            annotations: record.config.annotations,
            runtime_handler: record.runtime_handler,
        }
    }

    /// The sandboxes a filter selects.
    pub(crate) fn list_sandboxes(&self, filter: &v1::PodSandboxFilter) -> Vec<v1::PodSandbox> {
        let records = self.state().sandboxes().into_iter().map(|sandbox| sandbox.record());
        records
            .filter(|record| record.id.starts_with(&filter.id))
            .filter(|record| {
                filter.state.as_ref().is_none_or(|wanted| wanted.state() == state_of(record.ready))
            })
            .filter(|record| selected(&filter.label_selector, &record.config.labels))
            .map(|record| v1::PodSandbox {
                id: record.id,
                metadata: record.config.metadata,
                state: state_of(record.ready).into(),
                created_at: record.created_at_ns,
                labels: record.config.labels,
                annotations: record.config.annotations,
                runtime_handler: record.runtime_handler,
            })
            .collect()
    }

    /// Follows a shim: takes over how its containers end, and notices its own end.
    pub(crate) fn watch_shim(&self, id: &str) {
        let (runtime, id) = (self.clone(), id.to_owned());
        let task = async move {
            if let Err(error) = runtime.follow(&id).await {
                tracing::debug!(sandbox = id, %error, "shim connection ended");
            }
            runtime.shim_gone(&id).await;
        };
        self.tasks().spawn(task);
    }

    async fn follow(&self, id: &str) -> std::io::Result<()> {
        let session = self.link(id).connect()?;
        session.send(&Request::Watch, &[]).await?;
        while let Some((reply, _)) = session.recv::<Reply>().await? {
            if let Reply::Container { id, exit: Some(exit), .. } = reply {
                self.container_exited(&id, &exit);
            }
        }
        Ok(())
    }

    /// After the end of a shim, asked for or not.
    async fn shim_gone(&self, id: &str) {
        let Ok(sandbox) = self.state().sandbox(id) else { return };
        for container in self.state().containers_of(id) {
            self.recover_exit(&container);
        }
        let Ok(_operation) = sandbox.operation.try_lock() else { return };
        if sandbox.record().ready {
            tracing::warn!(sandbox = id, "the shim died");
            self.tear_down(&sandbox).await;
            sandbox.update(|record| record.ready = false);
            let _ = self.save_sandbox(&sandbox);
            self.publish(id, id, v1::ContainerEventType::ContainerStoppedEvent);
        }
    }
}

/// The refusal of a name that another has, as containerd words it.
pub fn reserved(kind: &str, name: &str, id: &str) -> Error {
    Error::Failed(format!(
        "failed to reserve {kind} name {name:?}: name {name:?} is reserved for {id:?}"
    ))
}

/// The refusal of a runtime handler that is not one of ours.
pub fn unknown_handler(handler: &str) -> Error {
    Error::Failed(format!("no runtime for {handler:?} is configured"))
}

/// Whether the pod has a user namespace of its own.
fn own_users(config: &v1::PodSandboxConfig) -> bool {
    namespaces(config).userns_options.is_some_and(|o| o.mode() == v1::NamespaceMode::Pod)
}

/// Refuses what a sandbox asks for of user namespaces and cannot be given.
fn check_user_namespace(config: &v1::PodSandboxConfig) -> Result<(), Error> {
    let Some(wanted) = namespaces(config).userns_options else { return Ok(()) };
    match wanted.mode() {
        v1::NamespaceMode::Node => Ok(()),
        v1::NamespaceMode::Pod => {
            let single = |maps: &[v1::IdMapping]| {
                maps.is_empty() || matches!(maps, [map] if map.container_id == 0)
            };
            if !single(&wanted.uids) || !single(&wanted.gids) {
                return Err(Error::InvalidArgument(
                    "a pod's user namespace takes one mapping of users and one of groups, from id 0 on"
                        .into(),
                ));
            }
            let refuse = |what: &str| Err(Error::FailedPrecondition(what.into()));
            if in_first_user_namespace() {
                return refuse(
                    "pods get user namespaces of their own only where an ordinary user runs the node",
                );
            }
            if !(wanted.uids.is_empty() && wanted.gids.is_empty()) {
                return refuse(
                    "a pod's user namespace has the ids of this node's: other mappings are not supported, \
                     since an ordinary user's files cannot be shown under other ids",
                );
            }
            if node_network(config) {
                return refuse("a pod with users of its own cannot be in the node's network");
            }
            Ok(())
        }
        mode => Err(Error::InvalidArgument(format!(
            "a pod's user namespace may be POD or NODE, not {}",
            mode.as_str_name()
        ))),
    }
}

/// Whether this process is in the user namespace that the system was started with.
fn in_first_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether labels satisfy a CRI label selector: all pairs equal.
pub fn selected(
    selector: &std::collections::HashMap<String, String>,
    labels: &std::collections::HashMap<String, String>,
) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn state_of(ready: bool) -> v1::PodSandboxState {
    if ready { v1::PodSandboxState::SandboxReady } else { v1::PodSandboxState::SandboxNotready }
}

/// The host name of a pod; that of the node in its network.
pub fn hostname(config: &v1::PodSandboxConfig) -> String {
    if !config.hostname.is_empty() && !node_network(config) {
        return config.hostname.clone();
    }
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// resolv.conf(5) from a CRI DNS config.
fn resolv_conf(dns: &v1::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_annotated_as_a_quantity() {
        let cases = [
            ("10M", Some(10_000_000)),
            ("512Ki", Some(524_288)),
            ("1000", Some(1000)),
            ("999", None),
            ("2P", None),
            ("M", None),
            ("-1M", None),
            ("1.5M", None),
        ];
        for (text, want) in cases {
            let key = "kubernetes.io/egress-bandwidth".to_owned();
            let config = v1::PodSandboxConfig {
                annotations: [(key, text.to_owned())].into(),
                ..v1::PodSandboxConfig::default()
            };
            let read = network_pod(&config).map(|pod| (pod.egress_bps, pod.ingress_bps));
            assert_eq!(read.ok(), want.map(|bps| (Some(bps), None)), "{text}");
        }
    }
}
