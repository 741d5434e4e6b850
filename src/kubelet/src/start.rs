//! Starting a container: image, environment, mounts, create, start, postStart.
//!
//! Source of behaviour: `startContainer` in `kuberuntime_container.go`.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::background::Background;
use crate::backoff::go_duration;
use crate::container::{self, ImageUser};
use crate::counters::Counters;
use crate::decide::{Kill, Start};
use crate::image::Ensured;
use crate::observe::State;
use crate::pod::{self, Kind};
use crate::status::Waiting;
use crate::volumes::mounts;
use crate::worker::{RETRY, Worker};
use crate::{dns, env, env_file, hooks, logs, probe};

/// How long a start waits for the first list of services.
const SERVICES_TIMEOUT: Duration = Duration::from_secs(5);

/// What came of starting a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Started {
    /// It runs.
    Running,
    /// It does not; the next in order may be tried all the same.
    NotYet,
    /// It does not, and what follows waits for it.
    Bars,
}

impl Worker {
    /// Starts one container, or notes why not.
    pub(crate) async fn start(
        &mut self,
        sandbox_id: &str,
        sandbox: &cri::PodSandboxConfig,
        start: Start,
        now: Timestamp,
        next: &mut Timestamp,
    ) -> Started {
        let Some(container) = self.container(start) else { return Started::NotYet };
        let name = container.name.clone();
        // A plain init container bars the way; everything else starts side by side.
        let bars = start.kind == Kind::Init && !pod::is_sidecar(&container);
        let not_yet = if bars { Started::Bars } else { Started::NotYet };
        // Hooks hold back what comes after them, as upstream's serial start does.
        if !self.hooks.is_empty() && start.kind != Kind::Ephemeral {
            return Started::Bars;
        }
        if let Some(until) = self.held_back(start.kind, &container, now) {
            *next = (*next).min(until);
            return not_yet;
        }
        if let Some(at) = self.retry_at.get(&name).filter(|at| now < **at) {
            *next = (*next).min(*at);
            return not_yet;
        }
        let context = self.context.clone();
        let pod = self.pod.clone();
        let wake = self.wake.clone();
        let mut found = None;
        for wanted in image_volumes(&pod, &container).iter().chain([&container]) {
            match self.pulls.ensure(&context, &pod, start.kind, wanted, &wake).await {
                Ensured::Ready(image_ref, user) => found = Some((image_ref, user)),
                Ensured::Pulling => return not_yet,
                Ensured::Failed(waiting, until) => {
                    let until = until.unwrap_or(now + RETRY);
                    self.fail(&name, waiting, until, next);
                    return not_yet;
                }
            }
        }
        // The last one looked for is the container's own.
        let Some((image_ref, user)) = found else { return not_yet };
        let began = SystemTime::now();
        match self.create_and_start(sandbox_id, sandbox, start, &container, image_ref, user).await {
            Ok(id) => {
                Counters::add(&self.context.counters.started);
                apimachinery::trace::step("containers", pod::uid(&self.pod), began, &name);
                self.waiting.remove(&name);
                self.retry_at.remove(&name);
                self.post_start(&container, id);
                self.wake.notify_one();
                Started::Running
            }
            Err(waiting) => {
                Counters::add(&self.context.counters.start_errors);
                let about = Some((start.kind, name.as_str()));
                self.context.warning(
                    &self.pod,
                    about,
                    "Failed",
                    format!("Error: {}", waiting.message),
                );
                self.fail(&name, waiting, now + RETRY, next);
                self.wake.notify_one();
                not_yet
            }
        }
    }

    fn fail(&mut self, name: &str, waiting: Waiting, until: Timestamp, next: &mut Timestamp) {
        self.waiting.insert(name.to_owned(), waiting);
        self.retry_at.insert(name.to_owned(), until);
        *next = (*next).min(until);
        // The new reason is to be reported.
        self.wake.notify_one();
    }

    fn container(&self, start: Start) -> Option<Container> {
        match start.kind {
            Kind::Init => pod::init_containers(&self.pod).get(start.index).cloned(),
            Kind::Regular => pod::containers(&self.pod).get(start.index).cloned(),
            Kind::Ephemeral => pod::ephemeral_containers(&self.pod)
                .get(start.index)
                .map(pod::ephemeral_as_container),
        }
    }

    /// When a container that ended before may start again, if not yet.
    pub(crate) fn held_back(
        &mut self,
        kind: Kind,
        container: &Container,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let ended = self.view.latest(&container.name).filter(|o| o.state == State::Exited)?.clone();
        let since = ended.finished_at.unwrap_or(ended.created_at);
        let key = container.name.clone();
        // Once per end: an image still on its way is not another failure.
        if self.approved.get(&key) == Some(&ended.id) {
            return None;
        }
        if let Some((delay, until)) = self.backoff.held_until(&key, since, now) {
            let pod = pod::full_name(&self.pod);
            let message = format!(
                "back-off {} restarting failed container={} pod={pod}",
                go_duration(delay),
                container.name
            );
            let waiting = Waiting { reason: "CrashLoopBackOff".into(), message };
            if self.waiting.get(&container.name) != Some(&waiting) {
                self.context.warning(
                    &self.pod,
                    Some((kind, &container.name)),
                    "BackOff",
                    format!("Back-off restarting failed container {} in pod {pod}", container.name),
                );
                self.waiting.insert(container.name.clone(), waiting);
                self.wake.notify_one();
            }
            return Some(until);
        }
        self.backoff.next(&key, since, now);
        self.approved.insert(key, ended.id.clone());
        None
    }

    async fn create_and_start(
        &mut self,
        sandbox_id: &str,
        sandbox: &cri::PodSandboxConfig,
        start: Start,
        spec: &Container,
        image_ref: String,
        image_user: ImageUser,
    ) -> Result<String, Waiting> {
        let config_error =
            |message: String| Waiting { reason: "CreateContainerConfigError".into(), message };
        let devices = self.devices(spec).map_err(config_error)?;
        let edits = self.context.devices.prepare(&self.pod, &spec.name).await;
        let edits = edits
            .map_err(|message| Waiting { reason: "PreStartContainerError".into(), message })?;
        let env = self.environment(spec).await.map_err(config_error)?;
        let mounts = self.mounts(spec, &env).await.map_err(config_error)?;
        let config = container::config(container::Input {
            pod: &self.pod,
            container: spec,
            restart_count: self.restart_count(&spec.name),
            image_ref,
            image_user,
            env,
            mounts,
            devices,
            target_id: self.target_id(start),
            basis: self.context.basis(),
        })
        .map_err(|e| config_error(e.to_string()))?;
        let claimed = self.context.claims.edits(&self.pod, spec);
        let config = edits.into_iter().chain([claimed]).fold(config, container::edited);
        std::fs::create_dir_all(std::path::Path::new(&sandbox.log_directory).join(&spec.name))
            .map_err(|e| config_error(format!("create container log directory: {e}")))?;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox.clone()),
        };
        let about = Some((start.kind, spec.name.as_str()));
        let created = self.context.cri.create_container(request).await;
        let id = created
            .map_err(|e| Waiting { reason: "CreateContainerError".into(), message: e.to_string() })?
            .container_id;
        self.context.normal(&self.pod, about, "Created", "Container created");
        let attempt = self.restart_count(&spec.name);
        let root = &self.context.root_dir;
        if let Err(error) = logs::links::make(root, &self.pod, &spec.name, &id, attempt) {
            tracing::debug!(container = id, %error, "its log has no link");
        }
        let request = cri::StartContainerRequest { container_id: id.clone() };
        if let Err(error) = self.context.cri.start_container(request).await {
            return Err(Waiting { reason: "RunContainerError".into(), message: error.to_string() });
        }
        self.context.normal(&self.pod, about, "Started", "Container started");
        Ok(id)
    }

    /// Block volumes, as devices of the container.
    fn devices(&self, spec: &Container) -> Result<Vec<cri::Device>, String> {
        let paths = self.mounted.as_ref().map(|m| m.paths.clone()).unwrap_or_default();
        let wanted = spec.volume_devices.iter().flatten();
        let devices = wanted.map(|device| {
            let path = paths.get(&device.name).ok_or_else(|| {
                format!(
                    "cannot find volume {:?} to pass into container {:?}",
                    device.name, spec.name
                )
            })?;
            Ok(cri::Device {
                container_path: device.device_path.clone(),
                host_path: path.display().to_string(),
                permissions: "mrw".into(),
            })
        });
        devices.collect()
    }

    fn restart_count(&self, name: &str) -> u32 {
        if let Some(latest) = self.view.latest(name) {
            return latest.restart_count + 1;
        }
        let statuses = [
            &self.reported.container_statuses,
            &self.reported.init_container_statuses,
            &self.reported.ephemeral_container_statuses,
        ];
        let known = statuses.into_iter().flatten().flatten().find(|s| s.name == name);
        match known {
            Some(s) if s.container_id.is_some() => s.restart_count as u32 + 1,
            Some(s) => s.restart_count as u32,
            None => 0,
        }
    }

    /// The container whose processes an ephemeral container sees.
    fn target_id(&self, start: Start) -> Option<String> {
        if start.kind != Kind::Ephemeral {
            return None;
        }
        let ephemeral = pod::ephemeral_containers(&self.pod).get(start.index)?;
        let target = ephemeral.target_container_name.as_deref().filter(|n| !n.is_empty())?;
        self.view.latest(target).map(|o| o.id.clone())
    }

    async fn environment(&self, spec: &Container) -> Result<Vec<(String, String)>, String> {
        let (namespace, uid) = (pod::namespace(&self.pod), pod::uid(&self.pod));
        let (config_maps, secrets) = env::references(spec);
        let mut sources = env::Sources::default();
        for name in config_maps {
            let found = self.context.objects.config_maps.get(namespace, &name, uid).await;
            let found = found.map_err(|e| {
                format!("failed to fetch configmap {name:?}: {}", crate::api::text(&e))
            })?;
            sources.config_maps.insert(name, found);
        }
        for name in secrets {
            let found = self.context.objects.secrets.get(namespace, &name, uid).await;
            let found = found.map_err(|e| {
                format!("failed to fetch secret {name:?}: {}", crate::api::text(&e))
            })?;
            sources.secrets.insert(name, found);
        }
        for (volume, path) in env::files(spec) {
            let Some(at) = self.mounted.as_ref().and_then(|m| m.paths.get(&volume)).cloned() else {
                continue;
            };
            let file = path.clone();
            let read = tokio::task::spawn_blocking(move || env_file::read(&at, &file));
            let read = read.await.map_err(|e| e.to_string())?;
            if let Err(error) = &read {
                tracing::info!(%error, volume, path, "cannot read variables");
            }
            sources.files.insert((volume, path), read.ok());
        }
        let ready = tokio::time::timeout(SERVICES_TIMEOUT, self.context.services.ready()).await;
        ready.map_err(|_| {
            "services have not yet been read at least once, cannot construct envvars".to_owned()
        })?;
        let services = self.context.services.store().state();
        let links = self.pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
        sources.services =
            env::service_variables(services.iter().map(AsRef::as_ref), namespace, links);
        env::resolve(&self.pod, spec, &sources, &self.facts()).map_err(|e| e.to_string())
    }

    async fn mounts(
        &self,
        spec: &Container,
        env: &[(String, String)],
    ) -> Result<Vec<cri::Mount>, String> {
        let host_hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let facts = self.facts();
        let hosts =
            dns::hosts_file(&self.pod, &facts.pod_ips, &host_hosts, &self.context.cluster_domain);
        let mounted = self.mounted.clone().unwrap_or_default();
        let (root, pod) = (self.context.root_dir.clone(), self.pod.clone());
        let (spec, env) = (spec.clone(), env.to_vec());
        let made = tokio::task::spawn_blocking(move || {
            mounts::make(&mounts::Input {
                root: &root,
                pod: &pod,
                container: &spec,
                mounted: &mounted,
                env: &env,
                hosts: &hosts,
            })
            .map_err(|e| e.text())
        });
        made.await.map_err(|e| e.to_string())?
    }

    fn post_start(&mut self, container: &Container, id: String) {
        let hook = container.lifecycle.as_ref().and_then(|l| l.post_start.clone());
        let Some(hook) = hook else { return };
        let (context, pod, container) = (self.context.clone(), self.pod.clone(), container.clone());
        let ip = probe::pod_ip(&context, &pod, &self.view);
        let of = id.clone();
        self.local.hooks.insert(id.clone());
        let work = async move {
            let result = hooks::run(&context, &container, &of, &ip, &hook).await;
            if let Err(error) = &result {
                let pod = pod::full_name(&pod);
                tracing::info!(container = container.name, pod, %error, "postStart hook failed");
            }
            result.is_ok()
        };
        self.hooks.insert(id, Background::spawn(work, self.wake.clone()));
    }

    /// A container whose postStart hook failed is stopped; what follows is its restart policy's.
    pub(crate) fn post_start_failed(&mut self, id: &str) {
        let Some(observed) = self.view.by_id(id).cloned() else { return };
        let kind = pod::find_container(&self.pod, &observed.name).map_or(Kind::Regular, |(k, _)| k);
        self.context.warning(
            &self.pod,
            Some((kind, &observed.name)),
            "FailedPostStartHook",
            "PostStartHook failed",
        );
        let kill = Kill {
            id: id.to_owned(),
            name: observed.name,
            message: "FailedPostStartHook".into(),
            grace_seconds: None,
        };
        self.kill(&kill);
    }
}

/// The images that a container mounts, each as the image of a container, since they are got alike.
fn image_volumes(pod: &Pod, container: &Container) -> Vec<Container> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let mounted = container.volume_mounts.as_deref().unwrap_or_default();
    let used = volumes.iter().filter(|volume| mounted.iter().any(|m| m.name == volume.name));
    used.filter_map(|volume| {
        let image = volume.image.as_ref()?;
        Some(Container {
            name: format!("{}:{}", container.name, volume.name),
            image: image.reference.clone(),
            image_pull_policy: image.pull_policy.clone(),
            ..Container::default()
        })
    })
    .collect()
}
