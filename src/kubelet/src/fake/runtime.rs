//! A CRI runtime in memory. Containers run until a test ends them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::Stream;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_server::{ImageService, ImageServiceServer};
use k8s_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use tokio::sync::broadcast;
use tonic::{Request, Response, Status};

use crate::clock::Clock;
use crate::cri::Cri;

#[derive(Default)]
pub struct World {
    next_id: u64,
    pub sandboxes: BTreeMap<String, cri::PodSandboxStatus>,
    pub containers: BTreeMap<String, (String, cri::ContainerStatus)>,
    pub images: HashSet<String>,
    /// Pulls fail with this.
    pub pull_error: Option<String>,
    /// How long pulls take.
    pub pull_duration: std::time::Duration,
    /// What was called, in order.
    pub calls: Vec<String>,
    /// Where the streaming server is.
    pub exec_url: String,
    /// Exit code of every exec.
    pub exec_exit_code: i32,
    /// How long every exec takes.
    pub exec_duration: std::time::Duration,
    /// The configuration of each container by name, the last one made.
    pub configs: BTreeMap<String, cri::ContainerConfig>,
}

#[derive(Clone)]
pub struct FakeRuntime {
    pub world: Arc<Mutex<World>>,
    events: broadcast::Sender<cri::ContainerEventResponse>,
    /// The clock of the test, which may be paused.
    pub clock: Clock,
}

impl FakeRuntime {
    pub fn new() -> Self {
        let mut world = World::default();
        world.images.insert("busybox:latest".into());
        let clock = Clock::Tokio {
            start: jiff::Timestamp::now(),
            since: tokio::time::Instant::now(),
            set: Box::leak(Box::default()),
        };
        Self { world: Arc::new(Mutex::new(world)), events: broadcast::channel(256).0, clock }
    }

    /// Sets the clock by so many seconds.
    pub fn set_clock(&self, by_seconds: i64) {
        let Clock::Tokio { set, .. } = self.clock else { return };
        set.fetch_add(by_seconds, std::sync::atomic::Ordering::Relaxed);
    }

    pub fn cri(&self) -> Cri {
        Cri::in_process(
            RuntimeServiceServer::new(self.clone()),
            ImageServiceServer::new(self.clone()),
        )
    }

    pub fn calls(&self) -> Vec<String> {
        self.world.lock().unwrap().calls.clone()
    }

    /// Ends the running container of this name.
    pub fn exit(&self, name: &str, code: i32) {
        let mut world = self.world.lock().unwrap();
        let running = cri::ContainerState::ContainerRunning;
        let id = world
            .containers
            .iter()
            .find(|(_, (_, c))| c.metadata.as_ref().unwrap().name == name && c.state() == running)
            .map_or_else(|| panic!("{name} does not run"), |(id, _)| id.clone());
        end(&mut world, &id, code, self.now());
        drop(world);
        self.tell(&id);
    }

    pub fn running(&self) -> Vec<String> {
        let world = self.world.lock().unwrap();
        let running = |c: &cri::ContainerStatus| c.state() == cri::ContainerState::ContainerRunning;
        let names = world.containers.values().filter(|(_, c)| running(c));
        names.map(|(_, c)| c.metadata.as_ref().unwrap().name.clone()).collect()
    }

    fn now(&self) -> i64 {
        self.clock.now().as_nanosecond() as i64
    }

    fn tell(&self, container: &str) {
        let world = self.world.lock().unwrap();
        let Some((sandbox, _)) = world.containers.get(container) else { return };
        let event = cri::ContainerEventResponse {
            container_id: container.into(),
            pod_sandbox_status: world.sandboxes.get(sandbox).cloned(),
            ..Default::default()
        };
        let _ = self.events.send(event);
    }
}

fn end(world: &mut World, id: &str, code: i32, now: i64) {
    let (_, container) = world.containers.get_mut(id).unwrap();
    container.state = cri::ContainerState::ContainerExited as i32;
    container.exit_code = code;
    container.finished_at = now;
}

type Answer<T> = Result<Response<T>, Status>;

#[allow(clippy::unnecessary_wraps, reason = "it is what the handlers return")]
fn ok<T>(value: T) -> Answer<T> {
    Ok(Response::new(value))
}

fn log_path(sandbox: Option<&cri::PodSandboxConfig>, path: &str) -> String {
    format!("{}/{path}", sandbox.map(|s| s.log_directory.as_str()).unwrap_or_default())
}

fn fits(
    labels: &std::collections::HashMap<String, String>,
    wanted: &std::collections::HashMap<String, String>,
) -> bool {
    wanted.iter().all(|(k, v)| labels.get(k) == Some(v))
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

macro_rules! unimplemented_calls {
    () => {};
    ($method:ident($request:ident) -> stream $response:ident; $($rest:tt)*) => {
        unimplemented_calls! { @ $method $request (Streamed<cri::$response>) }
        unimplemented_calls! { $($rest)* }
    };
    ($method:ident($request:ident) -> $response:ident; $($rest:tt)*) => {
        unimplemented_calls! { @ $method $request (cri::$response) }
        unimplemented_calls! { $($rest)* }
    };
    (@ $method:ident $request:ident ($response:ty)) => {
        fn $method<'a, 'b>(&'a self, _: Request<cri::$request>)
            -> Pin<Box<dyn Future<Output = Answer<$response>> + Send + 'b>>
        where 'a: 'b, Self: 'b {
            Box::pin(async { Err(Status::unimplemented(stringify!($method))) })
        }
    };
}

#[async_trait::async_trait]
impl RuntimeService for FakeRuntime {
    type GetContainerEventsStream = Streamed<cri::ContainerEventResponse>;
    type StreamPodSandboxesStream = Streamed<cri::StreamPodSandboxesResponse>;
    type StreamContainersStream = Streamed<cri::StreamContainersResponse>;
    type StreamContainerStatsStream = Streamed<cri::StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Streamed<cri::StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Streamed<cri::StreamPodSandboxMetricsResponse>;

    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        ok(cri::VersionResponse {
            version: "v1".into(),
            runtime_name: "rootlet".into(),
            runtime_version: "0".into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Answer<cri::RunPodSandboxResponse> {
        let config = request.into_inner().config.unwrap();
        let mut world = self.world.lock().unwrap();
        world.next_id += 1;
        let id = format!("sandbox{}", world.next_id);
        world.calls.push("run-sandbox".into());
        let status = cri::PodSandboxStatus {
            id: id.clone(),
            metadata: config.metadata,
            created_at: self.now(),
            network: Some(cri::PodSandboxNetworkStatus {
                ip: "10.42.0.9".into(),
                additional_ips: vec![],
            }),
            labels: config.labels,
            annotations: config.annotations,
            ..Default::default()
        };
        world.sandboxes.insert(id.clone(), status);
        ok(cri::RunPodSandboxResponse { pod_sandbox_id: id })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let mut world = self.world.lock().unwrap();
        world.calls.push("stop-sandbox".into());
        if let Some(sandbox) = world.sandboxes.get_mut(&id) {
            sandbox.state = cri::PodSandboxState::SandboxNotready as i32;
        }
        ok(cri::StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.world.lock().unwrap().sandboxes.remove(&id);
        ok(cri::RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        match self.world.lock().unwrap().sandboxes.get(&id) {
            Some(status) => ok(cri::PodSandboxStatusResponse {
                status: Some(status.clone()),
                ..Default::default()
            }),
            None => Err(Status::not_found(id)),
        }
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        let wanted = request.into_inner().filter.map(|f| f.label_selector).unwrap_or_default();
        let world = self.world.lock().unwrap();
        let items = world.sandboxes.values().filter(|s| fits(&s.labels, &wanted)).map(|s| {
            cri::PodSandbox {
                id: s.id.clone(),
                metadata: s.metadata.clone(),
                state: s.state,
                created_at: s.created_at,
                labels: s.labels.clone(),
                ..Default::default()
            }
        });
        ok(cri::ListPodSandboxResponse { items: items.collect() })
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request.config.unwrap();
        let mut world = self.world.lock().unwrap();
        world.next_id += 1;
        let id = format!("container{}", world.next_id);
        let name = config.metadata.as_ref().unwrap().name.clone();
        world.configs.insert(name.clone(), config.clone());
        world.calls.push(format!("create {name}"));
        let status = cri::ContainerStatus {
            id: id.clone(),
            metadata: config.metadata,
            created_at: self.now(),
            image: config.image.clone(),
            image_ref: config.image.map(|i| i.image).unwrap_or_default(),
            labels: config.labels,
            annotations: config.annotations,
            mounts: config.mounts,
            resources: config.linux.map(|linux| cri::ContainerResources { linux: linux.resources }),
            log_path: log_path(request.sandbox_config.as_ref(), &config.log_path),
            ..Default::default()
        };
        world.containers.insert(id.clone(), (request.pod_sandbox_id, status));
        ok(cri::CreateContainerResponse { container_id: id })
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        let id = request.into_inner().container_id;
        {
            let mut world = self.world.lock().unwrap();
            let (_, container) = world.containers.get_mut(&id).unwrap();
            container.state = cri::ContainerState::ContainerRunning as i32;
            container.started_at = self.now();
            let name = container.metadata.as_ref().unwrap().name.clone();
            world.calls.push(format!("start {name}"));
        }
        self.tell(&id);
        ok(cri::StartContainerResponse {})
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Answer<cri::StopContainerResponse> {
        let request = request.into_inner();
        {
            let mut world = self.world.lock().unwrap();
            let (_, container) = world.containers.get(&request.container_id).unwrap();
            let name = container.metadata.as_ref().unwrap().name.clone();
            world.calls.push(format!("stop {name} {}", request.timeout));
            end(&mut world, &request.container_id, 143, self.now());
        }
        self.tell(&request.container_id);
        ok(cri::StopContainerResponse {})
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let mut world = self.world.lock().unwrap();
        let (_, container) = world.containers.get_mut(&request.container_id).unwrap();
        container.resources = Some(cri::ContainerResources { linux: request.linux });
        let name = container.metadata.as_ref().unwrap().name.clone();
        world.calls.push(format!("update {name}"));
        ok(cri::UpdateContainerResourcesResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.world.lock().unwrap().containers.remove(&id);
        ok(cri::RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        let wanted = request.into_inner().filter.map(|f| f.label_selector).unwrap_or_default();
        let world = self.world.lock().unwrap();
        let found = world.containers.values().filter(|(_, c)| fits(&c.labels, &wanted));
        let containers = found.map(|(sandbox, c)| cri::Container {
            id: c.id.clone(),
            pod_sandbox_id: sandbox.clone(),
            metadata: c.metadata.clone(),
            state: c.state,
            created_at: c.created_at,
            labels: c.labels.clone(),
            ..Default::default()
        });
        ok(cri::ListContainersResponse { containers: containers.collect() })
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        match self.world.lock().unwrap().containers.get(&id) {
            Some((_, status)) => ok(cri::ContainerStatusResponse {
                status: Some(status.clone()),
                ..Default::default()
            }),
            None => Err(Status::not_found(id)),
        }
    }

    async fn exec_sync(
        &self,
        request: Request<cri::ExecSyncRequest>,
    ) -> Answer<cri::ExecSyncResponse> {
        let command = request.into_inner().cmd.join(" ");
        let (exit_code, duration) = {
            let mut world = self.world.lock().unwrap();
            world.calls.push(format!("exec {command}"));
            (world.exec_exit_code, world.exec_duration)
        };
        tokio::time::sleep(duration).await;
        ok(cri::ExecSyncResponse { exit_code, ..Default::default() })
    }

    async fn exec(&self, _: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        ok(cri::ExecResponse { url: self.world.lock().unwrap().exec_url.clone() })
    }

    async fn update_runtime_config(
        &self,
        _: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        ok(cri::UpdateRuntimeConfigResponse {})
    }

    async fn status(&self, _: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        let condition = |name: &str| cri::RuntimeCondition {
            r#type: name.into(),
            status: true,
            ..Default::default()
        };
        let conditions = vec![condition("RuntimeReady"), condition("NetworkReady")];
        ok(cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions }),
            ..Default::default()
        })
    }

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let receiver = self.events.subscribe();
        let stream = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.ok().map(|event| (Ok(event), receiver))
        });
        ok(Box::pin(stream))
    }

    unimplemented_calls! {
        reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        attach(AttachRequest) -> AttachResponse;
        port_forward(PortForwardRequest) -> PortForwardResponse;
        container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
        list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
        list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
        list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        runtime_config(RuntimeConfigRequest) -> RuntimeConfigResponse;
        update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
        stream_pod_sandboxes(StreamPodSandboxesRequest) -> stream StreamPodSandboxesResponse;
        stream_containers(StreamContainersRequest) -> stream StreamContainersResponse;
        stream_container_stats(StreamContainerStatsRequest) -> stream StreamContainerStatsResponse;
        stream_pod_sandbox_stats(StreamPodSandboxStatsRequest) -> stream StreamPodSandboxStatsResponse;
        stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest) -> stream StreamPodSandboxMetricsResponse;
    }
}

#[async_trait::async_trait]
impl ImageService for FakeRuntime {
    type StreamImagesStream = Streamed<cri::StreamImagesResponse>;

    async fn list_images(
        &self,
        _: Request<cri::ListImagesRequest>,
    ) -> Answer<cri::ListImagesResponse> {
        ok(cri::ListImagesResponse { images: vec![] })
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Answer<cri::ImageStatusResponse> {
        let name = request.into_inner().image.unwrap().image;
        let known = self.world.lock().unwrap().images.contains(&name);
        let image = known.then(|| cri::Image {
            id: format!("sha256:{name}"),
            size: 1234,
            ..Default::default()
        });
        // Every pull has come this far.
        let pull = r#"{"receivedBytes": 11500000, "totalBytes": 30000000}"#;
        let info = HashMap::from([("pull".to_owned(), pull.to_owned())]);
        ok(cri::ImageStatusResponse { image, info })
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Answer<cri::PullImageResponse> {
        let request = request.into_inner();
        let name = request.image.unwrap().image;
        let duration = self.world.lock().unwrap().pull_duration;
        tokio::time::sleep(duration).await;
        let mut world = self.world.lock().unwrap();
        let user = request.auth.map(|a| a.username).unwrap_or_default();
        world.calls.push(format!("pull {name} {user}").trim().to_owned());
        if let Some(error) = &world.pull_error {
            return Err(Status::unknown(error.clone()));
        }
        world.images.insert(name.clone());
        ok(cri::PullImageResponse { image_ref: format!("sha256:{name}") })
    }

    unimplemented_calls! {
        remove_image(RemoveImageRequest) -> RemoveImageResponse;
        image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
        stream_images(StreamImagesRequest) -> stream StreamImagesResponse;
    }
}
