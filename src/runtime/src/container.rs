//! Containers: from a CRI config to a bundle, a process of the shim, and back to a status.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1;

use crate::apparmor;
use crate::cdi;
use crate::error::Error;
use crate::oci::launch::{LAUNCH, Launch, PID, ROOTFS, Root, UserRequest, Volume};
use crate::runtime::Runtime;
use crate::sandbox::{namespaces, selected};
use crate::shim::SHM;
use crate::shim::protocol::{Exit, Reply, Request, Start};
use crate::signal;
use crate::spec::{self, PidNamespace};
use crate::state::{
    Container, ContainerRecord, Phase, Process, SandboxRecord, new_id, now_ns, save,
};

/// The exit code of a container that could not be started, as containerd has it.
const EXIT_START_FAILED: i32 = 128;
/// The exit code of a container whose end nobody saw, as containerd has it.
const EXIT_UNKNOWN: i32 = 255;
/// How long a killed container may take to end.
const KILL_WAIT: Duration = Duration::from_secs(10);

impl Runtime {
    pub(crate) fn container_dir(&self, id: &str) -> PathBuf {
        self.config().root.join("containers").join(id)
    }

    pub(crate) fn bundle(&self, id: &str) -> PathBuf {
        self.config().run_dir.join("containers").join(id)
    }

    fn exit_file(&self, id: &str) -> PathBuf {
        self.container_dir(id).join("exit.json")
    }

    fn save_container(&self, container: &Container) -> Result<(), Error> {
        let record = container.record();
        save(&self.container_dir(&record.id).join("container.json"), &record)
            .map_err(Error::io("save container record"))
    }

    /// Makes a container in a sandbox; returns its id.
    pub(crate) async fn create_container(
        &self,
        sandbox_id: &str,
        mut config: v1::ContainerConfig,
        pod: Option<&v1::PodSandboxConfig>,
    ) -> Result<String, Error> {
        let sandbox = self.state().sandbox(sandbox_id)?;
        let record = sandbox.record();
        if !record.ready {
            return Err(Error::FailedPrecondition(format!(
                "sandbox container {sandbox_id:?} is not running"
            )));
        }
        if config.metadata.is_none() {
            return Err(Error::InvalidArgument("container config must include metadata".into()));
        }
        cdi::inject(&mut config, &cdi::folders())?;
        check(&config)?;
        let metadata = config.metadata.as_ref();
        let same = |other: &Arc<Container>| other.read(|r| r.config.metadata.as_ref() == metadata);
        if let Some(other) = self.state().containers_of(&record.id).iter().find(|other| same(other))
        {
            let name = metadata.map_or("", |metadata| &metadata.name);
            return Err(crate::sandbox::reserved("container", name, &other.record().id));
        }
        let may = pod.is_none_or(|pod| privileged(pod) || privileged(&record.config));
        if spec::security(&config).privileged && !may {
            return Err(Error::InvalidArgument(
                "no privileged container allowed in sandbox".into(),
            ));
        }
        let image_name = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        let image = self
            .images()
            .get(&image_name)
            .ok_or_else(|| Error::NotFound { kind: "image", id: image_name.clone() })?;
        let id = new_id();
        let dir = self.container_dir(&id);
        let bundle = self.bundle(&id);
        let volumes = config.mounts.iter().filter(|mount| mount.image.is_some()).count();
        let result = async {
            std::fs::create_dir_all(&dir).map_err(Error::io("make container directory"))?;
            std::fs::create_dir_all(bundle.join(ROOTFS))
                .map_err(Error::io("make container bundle"))?;
            let root = self.images().snapshot(&image.id, &id).await?;
            let volumes = self.image_volumes(&id, &config).await?;
            let (launch, cgroup) = self.launch(&id, &record, &config, &image, root, volumes)?;
            save(&bundle.join(LAUNCH), &launch).map_err(Error::io("write launch.json"))?;
            let log_path = match (record.config.log_directory.as_str(), config.log_path.as_str()) {
                ("", _) | (_, "") => String::new(),
                (directory, path) => format!("{directory}/{path}"),
            };
            let stop_signal = signal::name(config.stop_signal()).or_else(|| {
                let image_config = image.config.config().as_ref();
                image_config.and_then(|image_config| image_config.stop_signal().clone())
            });
            let container = Arc::new(Container::new(ContainerRecord {
                id: id.clone(),
                sandbox_id: record.id.clone(),
                image_id: image.id.clone(),
                image_ref: image.digests.first().cloned().unwrap_or_else(|| image.id.clone()),
                config,
                log_path,
                stop_signal: stop_signal.unwrap_or_default(),
                created_at_ns: now_ns(),
                started_at_ns: 0,
                finished_at_ns: 0,
                phase: Phase::Created,
                process: None,
                exit_code: 0,
                reason: String::new(),
                message: String::new(),
                identity: None,
                cgroup,
            }));
            self.save_container(&container)?;
            self.state().add_container(id.clone(), container);
            Ok(())
        };
        if let Err(error) = result.await {
            let _ = self.remove_snapshots(&id, volumes).await;
            let _ = std::fs::remove_dir_all(&dir);
            let _ = std::fs::remove_dir_all(&bundle);
            return Err(error);
        }
        self.publish(&record.id, &id, v1::ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    /// What the `container` process needs, and the cgroup where there is one.
    fn launch(
        &self,
        id: &str,
        sandbox: &SandboxRecord,
        config: &v1::ContainerConfig,
        image: &crate::backend::Image,
        root: Root,
        volumes: Vec<Volume>,
    ) -> Result<(Launch, Option<PathBuf>), Error> {
        let security = spec::security(config);
        let capabilities = crate::capability::resolve(&security)
            .map_err(|name| Error::InvalidArgument(format!("unknown capability {name:?}")))?;
        let seccomp = match crate::seccomp::requested(&security, &capabilities.allowed)? {
            Some(profile) => {
                crate::seccomp::programs(&profile, &self.config().root.join("seccomp"))?
            }
            None => Vec::new(),
        };
        let cgroup = self.cgroups().container(sandbox, id);
        let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        let files = self.sandbox_dir(&sandbox.id);
        let file = |name: &str| files.join(name).to_string_lossy().into_owned();
        let read_only = security.readonly_rootfs;
        let options = security.namespace_options.clone().unwrap_or_default();
        let node_ipc = namespaces(&sandbox.config).ipc() == v1::NamespaceMode::Node;
        let shm = if node_ipc {
            "/dev/shm".to_owned()
        } else {
            self.pod_dir(&sandbox.id).join(SHM).to_string_lossy().into_owned()
        };
        let pod_mounts = [
            (file("hosts"), "/etc/hosts", read_only),
            (file("hostname"), "/etc/hostname", read_only),
            (file("resolv.conf"), "/etc/resolv.conf", read_only),
            (shm, "/dev/shm", false),
        ];
        for mount in config.mounts.iter().filter(|mount| mount.image.is_none()) {
            if !std::path::Path::new(&mount.host_path).exists() {
                std::fs::create_dir_all(&mount.host_path)
                    .map_err(Error::io(format!("failed to mkdir {:?}", mount.host_path)))?;
            }
        }
        let spec = spec::build(&spec::Inputs {
            config,
            bundle: &self.bundle(id),
            image: &image.config,
            hostname: &crate::sandbox::hostname(&sandbox.config),
            pod_mounts: &pod_mounts,
            pid: self.pid_namespace(sandbox, &options)?,
            cgroup: &cgroup.path,
            resources: resources.filter(|_| cgroup.delegated).map(|r| self.cgroups().resources(r)),
            node_ipc,
            tty_group: self.tty_group(),
        })?;
        let image_user = image
            .config
            .config()
            .as_ref()
            .and_then(|config| config.user().clone())
            .unwrap_or_default();
        let user = UserRequest {
            uid: security.run_as_user.as_ref().map(|value| value.value),
            gid: security.run_as_group.as_ref().map(|value| value.value),
            name: security.run_as_username.clone(),
            image: image_user,
            groups: security.supplemental_groups.clone(),
            strict_groups: security.supplemental_groups_policy()
                == v1::SupplementalGroupsPolicy::Strict,
        };
        let declared = declared_volumes(image, config);
        let id = id.to_owned();
        let launch = Launch { id, spec, root, volumes, declared, user, capabilities, seccomp };
        Ok((launch, cgroup.delegated.then_some(cgroup.directory)))
    }

    fn pid_namespace(
        &self,
        sandbox: &SandboxRecord,
        options: &v1::NamespaceOption,
    ) -> Result<PidNamespace, Error> {
        match options.pid() {
            v1::NamespaceMode::Container => Ok(PidNamespace::Own),
            v1::NamespaceMode::Node => Ok(PidNamespace::Node),
            // Sandboxes made without a pod namespace give their containers one each.
            v1::NamespaceMode::Pod => {
                Ok(sandbox.pod_pid.map_or(PidNamespace::Own, PidNamespace::Of))
            }
            v1::NamespaceMode::Target => {
                let target = self.state().container(&options.target_id)?;
                let process = target
                    .read(|record| (record.phase == Phase::Running).then_some(record.process))
                    .flatten();
                let process = process.ok_or_else(|| {
                    Error::FailedPrecondition(format!(
                        "target container {:?} is not running",
                        options.target_id
                    ))
                })?;
                Ok(PidNamespace::Of(process.pid))
            }
        }
    }

    /// Starts a container. What goes wrong here is kept in its status, as containerd does.
    pub(crate) async fn start_container(&self, id: &str) -> Result<(), Error> {
        let container = self.state().container(id)?;
        let _operation = container.operation.lock().await;
        let record = container.record();
        if record.phase != Phase::Created {
            return Err(Error::FailedPrecondition(format!(
                "container {id:?} is in {:?} state",
                record.phase
            )));
        }
        if !self.state().sandbox(&record.sandbox_id)?.record().ready {
            return Err(Error::FailedPrecondition(format!(
                "sandbox container {:?} is not running",
                record.sandbox_id
            )));
        }
        let start = Start {
            id: record.id.clone(),
            bundle: self.bundle(&record.id),
            log: (!record.log_path.is_empty()).then(|| PathBuf::from(&record.log_path)),
            exit_file: self.exit_file(&record.id),
            stdin: record.config.stdin,
            stdin_once: record.config.stdin_once,
            tty: record.config.tty,
            cgroup: record.cgroup.clone(),
        };
        let answer = self.link(&record.sandbox_id).call(&Request::Start(start), &[]).await;
        match answer {
            Ok((Reply::Started { pid, at_ns, identity }, _)) => {
                container.update(|record| {
                    // It may have ended already, which the shim told on another connection.
                    if record.phase == Phase::Created {
                        record.phase = Phase::Running;
                    }
                    record.started_at_ns = at_ns;
                    record.process = Process::now(pid);
                    record.identity = Some(identity);
                });
                self.save_container(&container)?;
                self.publish(
                    &record.sandbox_id,
                    &record.id,
                    v1::ContainerEventType::ContainerStartedEvent,
                );
                Ok(())
            }
            Ok((other, _)) => {
                Err(Error::Failed(format!("unexpected answer of the shim: {other:?}")))
            }
            Err(error) => {
                self.kill_left(&record);
                let message = format!("unable to start container process: {error}");
                container.update(|record| {
                    record.phase = Phase::Exited;
                    record.finished_at_ns = now_ns();
                    record.exit_code = EXIT_START_FAILED;
                    record.reason = "StartError".to_owned();
                    record.message.clone_from(&message);
                });
                self.save_container(&container)?;
                self.publish(
                    &record.sandbox_id,
                    &record.id,
                    v1::ContainerEventType::ContainerStoppedEvent,
                );
                Err(Error::Failed(message))
            }
        }
    }

    /// Asks a container to stop, and kills it after the timeout. Again is no error.
    pub(crate) async fn stop_container(&self, id: &str, timeout: Duration) -> Result<(), Error> {
        let container = match self.state().container(id) {
            Ok(container) => container,
            Err(Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        if timeout.is_zero() {
            return self.kill_container(&container).await;
        }
        let record = container.record();
        if record.phase != Phase::Running {
            return Ok(());
        }
        let number = signal::number(&record.stop_signal).unwrap_or(libc::SIGTERM);
        self.signal(&record, number).await?;
        if tokio::time::timeout(timeout, container.wait()).await.is_err() {
            self.kill_container(&container).await?;
        }
        Ok(())
    }

    async fn signal(&self, record: &ContainerRecord, signal: i32) -> Result<(), Error> {
        let request = Request::Signal { id: record.id.clone(), signal };
        let answer = self.link(&record.sandbox_id).call(&request, &[]).await;
        answer.map(drop).map_err(|source| Error::Shim { id: record.sandbox_id.clone(), source })
    }

    /// Kills a container and waits for its end.
    pub(crate) async fn kill_container(&self, container: &Container) -> Result<(), Error> {
        let record = container.record();
        if record.phase != Phase::Running {
            return Ok(());
        }
        if self.signal(&record, libc::SIGKILL).await.is_err() {
            // Without its shim nobody will tell of its end.
            self.recover_exit(container);
        }
        tokio::time::timeout(KILL_WAIT, container.wait()).await.map_err(|_| {
            Error::DeadlineExceeded(format!("container {:?} does not end after SIGKILL", record.id))
        })
    }

    /// Removes a container, killing it first. Again is no error.
    pub(crate) async fn remove_container(&self, id: &str) -> Result<(), Error> {
        let container = match self.state().container(id) {
            Ok(container) => container,
            Err(Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let _operation = container.operation.lock().await;
        self.kill_container(&container).await?;
        let record = container.record();
        let forget = Request::Forget { id: record.id.clone() };
        let _ = self.link(&record.sandbox_id).call(&forget, &[]).await;
        if let Some(cgroup) = &record.cgroup {
            let _ = std::fs::remove_dir(cgroup);
        }
        let _ = std::fs::remove_dir_all(self.bundle(&record.id));
        let volumes = record.config.mounts.iter().filter(|mount| mount.image.is_some()).count();
        self.remove_snapshots(&record.id, volumes).await?;
        std::fs::remove_dir_all(self.container_dir(&record.id))
            .map_err(Error::io("remove container directory"))?;
        self.state().remove_container(&record.id);
        self.publish(&record.sandbox_id, &record.id, v1::ContainerEventType::ContainerDeletedEvent);
        Ok(())
    }

    /// Takes over how a container ended, as its shim tells.
    pub(crate) fn container_exited(&self, id: &str, exit: &Exit) {
        let Ok(container) = self.state().container(id) else { return };
        let (first, sandbox_id) = container.update(|record| {
            let first = record.phase != Phase::Exited;
            if first {
                record.exited(exit);
            }
            (first, record.sandbox_id.clone())
        });
        if first {
            if let Err(error) = self.save_container(&container) {
                tracing::warn!(container = id, %error, "exit not recorded");
            }
            self.publish(&sandbox_id, id, v1::ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// Kills the process of a container that nobody looks after, also when its start was cut short.
    fn kill_left(&self, record: &ContainerRecord) {
        let file = self.bundle(&record.id).join(PID);
        if let Some(process) = record.process.or_else(|| Process::of_file(&file)) {
            process.kill();
        }
    }

    /// Settles a container whose shim is gone: by what the shim wrote, else as unknown.
    pub(crate) fn recover_exit(&self, container: &Container) {
        let record = container.record();
        if record.phase == Phase::Exited {
            return;
        }
        let written = std::fs::read(self.exit_file(&record.id)).ok();
        if let Some(exit) = written.and_then(|bytes| serde_json::from_slice::<Exit>(&bytes).ok()) {
            return self.container_exited(&record.id, &exit);
        }
        self.kill_left(&record);
        if record.phase == Phase::Running {
            self.container_exited(
                &record.id,
                &Exit { code: EXIT_UNKNOWN, at_ns: now_ns(), oom: false },
            );
            container.update(|record| {
                "Unknown".clone_into(&mut record.reason);
            });
            let _ = self.save_container(container);
        }
    }

    /// The CRI status of a container.
    pub(crate) fn container_status(&self, container: &Container) -> v1::ContainerStatus {
        let record = container.record();
        let user = record.identity.as_ref().map(|identity| v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: identity.uid.into(),
                gid: identity.gid.into(),
                supplemental_groups: identity.groups.iter().map(|gid| i64::from(*gid)).collect(),
            }),
        });
        let resources = record.config.linux.as_ref().and_then(|linux| linux.resources.clone());
        let stop_signal = signal::of_name(&record.stop_signal);
        let mounts = self.mounts_of(&record.config);
        v1::ContainerStatus {
            id: record.id,
            metadata: record.config.metadata,
            state: state_of(record.phase).into(),
            created_at: record.created_at_ns,
            started_at: record.started_at_ns,
            finished_at: record.finished_at_ns,
            exit_code: record.exit_code,
            image: record.config.image,
            image_ref: record.image_ref,
            image_id: record.image_id,
            reason: record.reason,
            message: record.message,
            labels: record.config.labels,
            annotations: record.config.annotations,
            mounts,
            log_path: record.log_path,
            resources: resources.map(|linux| v1::ContainerResources { linux: Some(linux) }),
            user,
            stop_signal: stop_signal.into(),
        }
    }

    /// The containers a filter selects.
    pub(crate) fn list_containers(&self, filter: &v1::ContainerFilter) -> Vec<v1::Container> {
        let records = self.state().containers().into_iter().map(|container| container.record());
        records
            .filter(|record| {
                record.id.starts_with(&filter.id)
                    && record.sandbox_id.starts_with(&filter.pod_sandbox_id)
            })
            .filter(|record| {
                filter.state.as_ref().is_none_or(|wanted| wanted.state() == state_of(record.phase))
            })
            .filter(|record| selected(&filter.label_selector, &record.config.labels))
            .map(|record| v1::Container {
                id: record.id,
                pod_sandbox_id: record.sandbox_id,
                metadata: record.config.metadata,
                image: record.config.image,
                image_ref: record.image_ref,
                image_id: record.image_id,
                state: state_of(record.phase).into(),
                created_at: record.created_at_ns,
                labels: record.config.labels,
                annotations: record.config.annotations,
            })
            .collect()
    }

    /// Changes a container's limits. Where nothing can be limited, nothing is changed, and the
    /// runtime's status says so.
    pub(crate) fn update_resources(
        &self,
        id: &str,
        request: &v1::LinuxContainerResources,
    ) -> Result<(), Error> {
        let container = self.state().container(id)?;
        let record = container.record();
        if record.phase == Phase::Exited {
            return Err(Error::FailedPrecondition(format!("container {id:?} is not running")));
        }
        let before = record.config.linux.unwrap_or_default().resources.unwrap_or_default();
        let mut wanted = before.clone();
        crate::cgroup::merge(&mut wanted, request);
        match (&record.cgroup, record.phase) {
            (Some(cgroup), Phase::Running) => {
                let known = self.cgroups().known(request);
                crate::cgroup::change(cgroup, &before, &known)
                    .map_err(Error::io("change resource limits"))?;
            }
            (Some(_), _) => self.prepare_resources(&record.id, &wanted)?,
            (None, _) => {}
        }
        container.update(|record| {
            record.config.linux.get_or_insert_default().resources = Some(wanted);
        });
        self.save_container(&container)
    }

    /// Changes the limits with which a container that was made will be started.
    fn prepare_resources(
        &self,
        id: &str,
        wanted: &v1::LinuxContainerResources,
    ) -> Result<(), Error> {
        let file = self.bundle(id).join(LAUNCH);
        let bytes = std::fs::read(&file).map_err(Error::io("read launch.json"))?;
        let mut launch: Launch =
            serde_json::from_slice(&bytes).map_err(|error| Error::Failed(error.to_string()))?;
        launch.spec["linux"]["resources"] = self.cgroups().resources(wanted);
        save(&file, &launch).map_err(Error::io("write launch.json"))
    }

    /// Opens a container's log again, after the kubelet renamed it.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let record = self.state().container(id)?.record();
        if record.phase != Phase::Running {
            return Err(Error::FailedPrecondition("container is not running".into()));
        }
        let request = Request::ReopenLog { id: record.id.clone() };
        let answer = self.link(&record.sandbox_id).call(&request, &[]).await;
        answer.map(drop).map_err(|source| Error::Shim { id: record.sandbox_id, source })
    }
}

/// The folders that an image declares as volumes, but for those at which something is mounted.
fn declared_volumes(image: &crate::backend::Image, config: &v1::ContainerConfig) -> Vec<PathBuf> {
    let declared = image.config.config().as_ref().and_then(|config| config.volumes().clone());
    let mounted: Vec<PathBuf> =
        config.mounts.iter().map(|mount| PathBuf::from(&mount.container_path)).collect();
    let mut declared: Vec<PathBuf> =
        declared.unwrap_or_default().into_iter().map(PathBuf::from).collect();
    declared.retain(|path| path.is_absolute() && !mounted.contains(path));
    declared.sort();
    declared
}

fn state_of(phase: Phase) -> v1::ContainerState {
    match phase {
        Phase::Created => v1::ContainerState::ContainerCreated,
        Phase::Running => v1::ContainerState::ContainerRunning,
        Phase::Exited => v1::ContainerState::ContainerExited,
    }
}

/// Whether a pod may have privileged containers.
fn privileged(pod: &v1::PodSandboxConfig) -> bool {
    let security = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security.is_some_and(|security| security.privileged)
}

/// Refuses what CRI says no container may ask for.
fn check(config: &v1::ContainerConfig) -> Result<(), Error> {
    let security = spec::security(config);
    let user = security.run_as_user.is_some();
    if user && !security.run_as_username.is_empty() {
        return Err(Error::InvalidArgument(
            "only one of run_as_user and run_as_username can be specified".into(),
        ));
    }
    if let Some(group) = security.run_as_group
        && !user
        && security.run_as_username.is_empty()
    {
        return Err(Error::InvalidArgument(format!(
            "user group {:?} is specified without user",
            group.value
        )));
    }
    apparmor::profile(&security)?;
    for mount in &config.mounts {
        let path = &mount.container_path;
        let refuse = |what: &str| Err(Error::InvalidArgument(format!("mount {path:?}: {what}")));
        if mount.recursive_read_only && !mount.readonly {
            return refuse("recursive_read_only needs readonly");
        }
        if mount.recursive_read_only
            && mount.propagation() != v1::MountPropagation::PropagationPrivate
        {
            return refuse("recursive_read_only needs private propagation");
        }
        if mount.image.is_some() && !mount.host_path.is_empty() {
            return refuse("either an image or a path of the host, not both");
        }
        if mount.image.is_some() && !mount.readonly {
            return refuse("images are mounted read-only");
        }
        if !mount.image_sub_path.is_empty() && mount.image.is_none() {
            return refuse("image_sub_path needs an image");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cri_forbids_is_refused() {
        let mount = v1::Mount { readonly: true, ..Default::default() };
        let image = Some(v1::ImageSpec { image: "a".into(), ..Default::default() });
        let slave = v1::MountPropagation::PropagationHostToContainer.into();
        let with_mount = |mount| v1::ContainerConfig { mounts: vec![mount], ..Default::default() };
        let with_user = |security| v1::ContainerConfig {
            linux: Some(v1::LinuxContainerConfig {
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        };
        let id = Some(v1::Int64Value { value: 1 });
        let user = v1::LinuxContainerSecurityContext { run_as_group: id, ..Default::default() };
        let cases = [
            (with_mount(v1::Mount { recursive_read_only: true, ..mount.clone() }), true),
            (
                with_mount(v1::Mount {
                    recursive_read_only: true,
                    propagation: slave,
                    ..mount.clone()
                }),
                false,
            ),
            (
                with_mount(v1::Mount {
                    recursive_read_only: true,
                    readonly: false,
                    ..mount.clone()
                }),
                false,
            ),
            (with_mount(v1::Mount { image: image.clone(), ..mount.clone() }), true),
            (
                with_mount(v1::Mount { image: image.clone(), readonly: false, ..mount.clone() }),
                false,
            ),
            (with_mount(v1::Mount { image, host_path: "/h".into(), ..mount.clone() }), false),
            (with_mount(v1::Mount { image_sub_path: "a".into(), ..mount }), false),
            (with_user(user.clone()), false),
            (
                with_user(v1::LinuxContainerSecurityContext { run_as_user: id, ..user.clone() }),
                true,
            ),
            (
                with_user(v1::LinuxContainerSecurityContext {
                    run_as_username: "web".into(),
                    ..user.clone()
                }),
                true,
            ),
            (
                with_user(v1::LinuxContainerSecurityContext {
                    run_as_username: "web".into(),
                    run_as_user: id,
                    ..user
                }),
                false,
            ),
        ];
        for (config, good) in cases {
            assert_eq!(check(&config).is_ok(), good, "{config:?}");
        }
    }
}
