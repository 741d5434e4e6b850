//! What the runtime says a pod is: its sandboxes and containers, newest first.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_cri::v1 as cri;

use crate::cri::{Cri, Error};
use crate::labels;

/// A container's state in the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, not started.
    Created,
    /// Its process runs.
    Running,
    /// Its process has ended.
    Exited,
    /// The runtime lost it.
    Unknown,
}

/// A pod sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// Which attempt of the pod it is, from 0.
    pub attempt: u32,
    /// Whether it can hold containers.
    pub ready: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its addresses; empty on the host network.
    pub ips: Vec<String>,
}

/// One container, running or ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The runtime's id.
    pub id: String,
    /// The name in the pod's spec.
    pub name: String,
    /// The sandbox it is in.
    pub sandbox_id: String,
    /// State.
    pub state: State,
    /// How often it was restarted.
    pub restart_count: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was started, if it was.
    pub started_at: Option<Timestamp>,
    /// When it ended, if it did.
    pub finished_at: Option<Timestamp>,
    /// The exit code once ended.
    pub exit_code: i32,
    /// The image as the spec named it.
    pub image: String,
    /// The image as the runtime knows it.
    pub image_ref: String,
    /// Reason of the end, the runtime's word.
    pub reason: String,
    /// Message of the end: the runtime's, or the container's own last words.
    pub message: String,
    /// Annotations the kubelet gave it.
    pub annotations: HashMap<String, String>,
    /// Absolute path of its log.
    pub log_path: String,
    /// Host path of the file mounted as its termination log.
    pub termination_log: Option<String>,
    /// The identity of its first process: uid, gid, supplementary groups.
    pub user: Option<(i64, i64, Vec<i64>)>,
    /// The limits in force.
    pub resources: Option<cri::LinuxContainerResources>,
    /// Where images are mounted, and the images as the runtime knows them.
    pub image_volumes: Vec<(String, String)>,
}

impl Observed {
    /// The hash of the spec it was made from.
    pub fn hash(&self) -> Option<&str> {
        self.annotations.get(labels::HASH).map(String::as_str)
    }
}

/// A pod as the runtime knows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodView {
    /// Sandboxes, newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Containers, newest first.
    pub containers: Vec<Observed>,
}

impl PodView {
    /// The newest container called `name`.
    pub fn latest(&self, name: &str) -> Option<&Observed> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The container with this id.
    pub fn by_id(&self, id: &str) -> Option<&Observed> {
        self.containers.iter().find(|c| c.id == id)
    }

    /// Containers with a process.
    pub fn running(&self) -> impl Iterator<Item = &Observed> {
        self.containers.iter().filter(|c| c.state == State::Running)
    }

    /// The sandbox in use.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|s| s.ready)
    }
}

/// Reads a pod from the runtime. Ended containers do not change any more: `known` keeps them
/// between calls, so that they are asked for once.
pub async fn observe(
    cri: &Cri,
    uid: &str,
    known: &mut HashMap<String, Observed>,
) -> Result<PodView, Error> {
    let selector: HashMap<String, String> = HashMap::from([(labels::POD_UID.into(), uid.into())]);
    let sandboxes = cri
        .list_pod_sandbox(cri::ListPodSandboxRequest {
            filter: Some(cri::PodSandboxFilter {
                label_selector: selector.clone(),
                ..Default::default()
            }),
        })
        .await?
        .items;
    let mut view = PodView::default();
    for item in sandboxes {
        match cri
            .pod_sandbox_status(cri::PodSandboxStatusRequest {
                pod_sandbox_id: item.id,
                verbose: false,
            })
            .await
        {
            Ok(response) => view.sandboxes.extend(response.status.map(sandbox)),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    let containers = cri
        .list_containers(cri::ListContainersRequest {
            filter: Some(cri::ContainerFilter { label_selector: selector, ..Default::default() }),
        })
        .await?
        .containers;
    known.retain(|id, _| containers.iter().any(|c| &c.id == id));
    for item in containers {
        if let Some(ended) = known.get(&item.id) {
            view.containers.push(ended.clone());
            continue;
        }
        let request = cri::ContainerStatusRequest { container_id: item.id.clone(), verbose: false };
        match cri.container_status(request).await {
            Ok(response) => {
                let Some(status) = response.status else { continue };
                let observed = container(status, item.pod_sandbox_id);
                if observed.state == State::Exited {
                    known.insert(item.id, observed.clone());
                }
                view.containers.push(observed);
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    // By their numbers first: the clock may have been set back in between.
    view.sandboxes.sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created_at)));
    view.containers.sort_by_key(|c| std::cmp::Reverse((c.restart_count, c.created_at)));
    Ok(view)
}

fn sandbox(status: cri::PodSandboxStatus) -> Sandbox {
    let ready = status.state() == cri::PodSandboxState::SandboxReady;
    let mut ips = Vec::new();
    if let Some(network) = status.network {
        if !network.ip.is_empty() {
            ips.push(network.ip);
        }
        ips.extend(network.additional_ips.into_iter().map(|ip| ip.ip));
    }
    Sandbox {
        id: status.id,
        attempt: status.metadata.map_or(0, |m| m.attempt),
        ready,
        created_at: time(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        ips,
    }
}

fn container(status: cri::ContainerStatus, sandbox_id: String) -> Observed {
    let state = match status.state() {
        cri::ContainerState::ContainerCreated => State::Created,
        cri::ContainerState::ContainerRunning => State::Running,
        cri::ContainerState::ContainerExited => State::Exited,
        cri::ContainerState::ContainerUnknown => State::Unknown,
    };
    let metadata = status.metadata.unwrap_or_default();
    let path = status.annotations.get(labels::TERMINATION_MESSAGE_PATH);
    let termination_log =
        status.mounts.iter().find(|m| Some(&m.container_path) == path).map(|m| m.host_path.clone());
    let restart_count = status
        .annotations
        .get(labels::RESTART_COUNT)
        .and_then(|count| count.parse().ok())
        .unwrap_or(metadata.attempt);
    let image_volumes = status.mounts.into_iter().filter_map(|mount| {
        let image = mount.image.filter(|image| !image.image_ref.is_empty())?;
        Some((mount.container_path, image.image_ref))
    });
    let image_volumes = image_volumes.collect();
    let image_ref = if status.image_ref.is_empty() { status.image_id } else { status.image_ref };
    Observed {
        id: status.id,
        name: status.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or(metadata.name),
        sandbox_id,
        state,
        restart_count,
        created_at: time(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        started_at: time(status.started_at),
        finished_at: time(status.finished_at),
        exit_code: status.exit_code,
        image: status
            .image
            .map(
                |i| {
                    if i.user_specified_image.is_empty() { i.image } else { i.user_specified_image }
                },
            )
            .unwrap_or_default(),
        image_ref,
        reason: status.reason,
        message: status.message,
        annotations: status.annotations,
        log_path: status.log_path,
        termination_log,
        user: status.user.and_then(|u| u.linux).map(|u| (u.uid, u.gid, u.supplemental_groups)),
        resources: status.resources.and_then(|r| r.linux),
        image_volumes,
    }
}

fn time(nanoseconds: i64) -> Option<Timestamp> {
    if nanoseconds <= 0 {
        return None;
    }
    Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()
}

#[cfg(test)]
pub mod testing {
    use super::{HashMap, Observed, State, Timestamp};

    /// A container of which nothing else matters.
    pub fn container(name: &str, state: State) -> Observed {
        Observed {
            id: format!("{name}-id"),
            name: name.into(),
            sandbox_id: "s".into(),
            state,
            restart_count: 0,
            created_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
            exit_code: 0,
            image: String::new(),
            image_ref: String::new(),
            reason: String::new(),
            message: String::new(),
            annotations: HashMap::new(),
            log_path: String::new(),
            termination_log: None,
            user: None,
            resources: None,
            image_volumes: Vec::new(),
        }
    }
}
