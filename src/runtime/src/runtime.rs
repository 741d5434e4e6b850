//! The runtime as a whole: what it is made of, how it starts, and finds again what lives.

use std::path::PathBuf;
use std::sync::Arc;

use k8s_cri::v1;
use tokio::sync::broadcast;
use tokio_util::task::TaskTracker;

use crate::backend::{Images, Network};
use crate::cgroup::Cgroups;
use crate::error::Error;
use crate::state::{
    Container, ContainerRecord, Sandbox, SandboxRecord, State, is_id, load, now_ns,
};
use crate::streaming::{self, Streams};

/// The name of the only runtime handler besides the empty one.
pub const HANDLER: &str = "rootlet";
/// Events a slow reader may lag behind before it loses some.
const EVENTS: usize = 1024;

/// What a runtime is made from.
#[derive(Clone)]
pub struct Config {
    /// Directory for records, which outlives a boot.
    pub root: PathBuf,
    /// Directory for sockets and bundles, which need not outlive a boot.
    pub run_dir: PathBuf,
    /// The image store.
    pub images: Arc<dyn Images>,
    /// The node's network.
    pub network: Arc<dyn Network>,
    /// This program, which answers to the roles `shim` and `container`.
    pub executable: PathBuf,
    /// The delegated cgroup, absolute below the mount of cgroup2; `None` when there is none.
    pub cgroup_root: Option<PathBuf>,
}

/// The container runtime. Clones are handles of the same.
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    config: Config,
    state: State,
    cgroups: Cgroups,
    events: broadcast::Sender<v1::ContainerEventResponse>,
    tasks: TaskTracker,
    tty_group: bool,
    streams: Streams,
}

impl Runtime {
    /// Opens the runtime: reads the records, and finds the shims that live. Needs tokio.
    pub async fn open(config: Config) -> Result<Self, Error> {
        for directory in ["sandboxes", "containers"] {
            std::fs::create_dir_all(config.root.join(directory))
                .map_err(Error::io("make runtime directory"))?;
        }
        for directory in ["pods", "containers"] {
            std::fs::create_dir_all(config.run_dir.join(directory))
                .map_err(Error::io("make runtime directory"))?;
        }
        let cgroups = Cgroups::new(config.cgroup_root.clone());
        let (listeners, streams) = streaming::bind(config.network.as_ref()).await?;
        let runtime = Self(Arc::new(Inner {
            config,
            state: State::default(),
            cgroups,
            events: broadcast::Sender::new(EVENTS),
            tasks: TaskTracker::new(),
            tty_group: group_is_mapped(5),
            streams,
        }));
        runtime.recover().await;
        runtime.sweep().await;
        tokio::spawn(streaming::serve(runtime.clone(), listeners));
        Ok(runtime)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.config
    }

    pub(crate) fn streams(&self) -> &Streams {
        &self.0.streams
    }

    pub(crate) fn state(&self) -> &State {
        &self.0.state
    }

    pub(crate) fn cgroups(&self) -> &Cgroups {
        &self.0.cgroups
    }

    pub(crate) fn images(&self) -> &dyn Images {
        self.0.config.images.as_ref()
    }

    pub(crate) fn network(&self) -> &dyn Network {
        self.0.config.network.as_ref()
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }

    /// Whether group 5, which owns terminals, exists here.
    pub(crate) fn tty_group(&self) -> bool {
        self.0.tty_group
    }

    async fn recover(&self) {
        let config = self.config();
        for record in load::<SandboxRecord>(&config.root.join("sandboxes"), "sandbox.json") {
            self.state().add_sandbox(record.id.clone(), Arc::new(Sandbox::new(record)));
        }
        for record in load::<ContainerRecord>(&config.root.join("containers"), "container.json") {
            self.state().add_container(record.id.clone(), Arc::new(Container::new(record)));
        }
        for sandbox in self.state().sandboxes() {
            let record = sandbox.record();
            if !record.ready {
                if self.pod_dir(&record.id).exists() {
                    // Its start, or its stop, was cut short; its shim may wait for orders.
                    self.tear_down(&sandbox).await;
                }
                continue;
            }
            if self.link(&record.id).connect().is_ok() {
                self.synchronize(&record).await;
                self.watch_shim(&record.id);
            } else {
                self.tear_down(&sandbox).await;
                sandbox.update(|record| record.ready = false);
                let _ = self.save_sandbox(&sandbox);
                for container in self.state().containers_of(&record.id) {
                    self.recover_exit(&container);
                }
            }
        }
        let sandboxes = self.state().sandboxes();
        let ready = sandboxes.iter().map(|sandbox| sandbox.record()).filter(|record| record.ready);
        let valid: Vec<String> = ready.map(|record| record.id).collect();
        if let Err(error) = self.network().collect(&valid).await {
            tracing::warn!(%error, "the network of pods that are gone is not cleaned up");
        }
    }

    /// Removes what has no record: a daemon was killed while it made it, or while it removed it.
    async fn sweep(&self) {
        let Config { root, run_dir, .. } = self.config();
        let (sandboxes, containers) = (root.join("sandboxes"), root.join("containers"));
        sweep_folder(&sandboxes, |name| sandboxes.join(name).join("sandbox.json").exists());
        sweep_folder(&containers, |name| containers.join(name).join("container.json").exists());
        sweep_folder(&run_dir.join("pods"), |name| sandboxes.join(name).exists());
        sweep_folder(&run_dir.join("containers"), |name| containers.join(name).exists());
        for key in self.images().snapshots() {
            let Some(id) = crate::volume::container_of(&key) else { continue };
            if !containers.join(id).exists()
                && let Err(error) = self.images().remove_snapshot(&key).await
            {
                tracing::warn!(key, %error, "cannot remove a writable layer");
            }
        }
    }

    /// Takes over what a shim knows, before anybody asks for it, and gives the pod its network
    /// again, should the node process have been restarted.
    async fn synchronize(&self, record: &SandboxRecord) {
        use crate::shim::protocol::{Reply, Request};
        let take = async {
            let session = self.link(&record.id).connect()?;
            session.send(&Request::Watch, &[]).await?;
            while let Some((Reply::Container { id, exit, .. }, _)) = session.recv::<Reply>().await?
            {
                if let Some(exit) = exit {
                    self.container_exited(&id, &exit);
                }
            }
            std::io::Result::Ok(())
        };
        if let Err(error) = take.await {
            tracing::warn!(sandbox = record.id, %error, "shim does not answer");
        }
        self.attach_record(record).await;
    }

    /// Tells the network again of all pods that it has, for a node process that was started anew.
    pub async fn attach_again(&self) {
        for sandbox in self.state().sandboxes() {
            let record = sandbox.record();
            if record.ready {
                self.attach_record(&record).await;
            }
        }
    }

    async fn attach_record(&self, record: &SandboxRecord) {
        if crate::sandbox::node_network(&record.config) {
            return;
        }
        let Some(shim) = record.shim else { return };
        let Ok(netns) = std::fs::File::open(format!("/proc/{}/ns/net", shim.pid)) else { return };
        // What was refused at the start was never attached.
        let Ok(pod) = crate::sandbox::network_pod(&record.config) else { return };
        let netns = std::os::fd::AsFd::as_fd(&netns);
        if let Err(error) = self.network().attach(&record.id, &pod, netns).await {
            tracing::warn!(sandbox = record.id, %error, "network not attached again");
        }
    }

    /// Tells those who listen of a change.
    pub(crate) fn publish(&self, sandbox_id: &str, id: &str, kind: v1::ContainerEventType) {
        if self.0.events.receiver_count() == 0 {
            return;
        }
        let sandbox = self.state().sandbox(sandbox_id).ok();
        let containers = self.state().containers_of(sandbox_id);
        let event = v1::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now_ns(),
            pod_sandbox_status: sandbox.map(|sandbox| self.sandbox_status(&sandbox)),
            containers_statuses: containers
                .iter()
                .map(|container| self.container_status(container))
                .collect(),
        };
        // Nobody listens any more: fine.
        let _ = self.0.events.send(event);
    }

    /// All later changes.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<v1::ContainerEventResponse> {
        self.0.events.subscribe()
    }

    /// How many pods run.
    pub fn pods_alive(&self) -> usize {
        self.state().sandboxes().iter().filter(|sandbox| sandbox.record().ready).count()
    }

    /// Stops all pods: SIGTERM (or the image's signal), SIGKILL after `grace`; then removes their
    /// shims, mounts and network. Records stay. Goes on after failures, and returns them.
    pub async fn down(&self, grace: std::time::Duration) -> Vec<Error> {
        let stop = self.state().sandboxes().into_iter().map(|sandbox| async move {
            let id = sandbox.record().id;
            let containers = self.state().containers_of(&id);
            let stops = containers.iter().map(|container| {
                let id = container.read(|record| record.id.clone());
                async move { self.stop_container(&id, grace).await }
            });
            let mut results = futures::future::join_all(stops).await;
            results.push(self.stop_sandbox(&id).await);
            results
        });
        let results = futures::future::join_all(stop).await;
        results.into_iter().flatten().filter_map(Result::err).collect()
    }
}

/// Removes the folders below `folder`, which have ids for names, but for those that `keep` wants.
fn sweep_folder(folder: &std::path::Path, keep: impl Fn(&str) -> bool) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    for name in names.filter(|name| is_id(name) && !keep(name)) {
        crate::shim::unmount_shm(&folder.join(&name).join(crate::shim::SHM));
        if let Err(error) = std::fs::remove_dir_all(folder.join(&name)) {
            tracing::warn!(folder = %folder.display(), name, %error, "cannot remove what is left");
        }
    }
}

/// Whether a group id exists in our user namespace (user_namespaces(7), gid_map).
fn group_is_mapped(gid: u32) -> bool {
    let map = std::fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().unwrap_or(0));
        let (Some(first), Some(_), Some(count)) = (fields.next(), fields.next(), fields.next())
        else {
            return false;
        };
        (first..first + count).contains(&u64::from(gid))
    })
}
