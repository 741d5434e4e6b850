//! The CRI services over the runtime (cri-api/pkg/apis/runtime/v1/api.proto).

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use k8s_cri::v1;
use k8s_cri::v1::image_service_server::ImageServiceServer;
use k8s_cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

use crate::backend::Network;
use crate::error::Error;
use crate::runtime::{HANDLER, Runtime};
use crate::serve::{Items, in_parts};
use crate::state::Phase;
use crate::streaming::Wanted;

/// The CRI version spoken.
const API_VERSION: &str = "v1";
/// The largest message accepted, as containerd has it.
const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

type Reply<T> = Result<Response<T>, Status>;

impl Runtime {
    /// The services, for callers in this process.
    pub fn services(&self) -> (RuntimeServiceServer<Self>, ImageServiceServer<Self>) {
        let runtime = RuntimeServiceServer::new(self.clone());
        let images = ImageServiceServer::new(self.clone());
        (
            runtime
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
            images
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
    }
}

impl Runtime {
    /// An error unless the container runs.
    fn running(&self, id: &str) -> Result<(), Error> {
        if self.state().container(id)?.record().phase == Phase::Running {
            return Ok(());
        }
        Err(Error::FailedPrecondition(format!("container {id:?} is not running")))
    }
}

/// What CRI says of the streams of Exec and Attach.
fn check_streams(tty: bool, [stdin, stdout, stderr]: [bool; 3]) -> Result<(), Error> {
    if tty && stderr {
        // With a terminal there is no stderr of its own.
        return Err(Error::InvalidArgument("tty and stderr cannot both be true".into()));
    }
    if !(stdin || stdout || stderr) {
        return Err(Error::InvalidArgument("one of stdin, stdout, or stderr must be set".into()));
    }
    Ok(())
}

fn unimplemented<T>(what: &str) -> Reply<T> {
    Err(Error::Unimplemented(format!("{what} is not supported")).into())
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Reply<v1::VersionResponse> {
        Ok(Response::new(v1::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: HANDLER.into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: API_VERSION.into(),
        }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<v1::RunPodSandboxRequest>,
    ) -> Reply<v1::RunPodSandboxResponse> {
        let request = request.into_inner();
        let config =
            request.config.ok_or_else(|| Error::InvalidArgument("sandbox config is nil".into()))?;
        let pod_sandbox_id = self.run_sandbox(config, request.runtime_handler).await?;
        Ok(Response::new(v1::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Reply<v1::StopPodSandboxResponse> {
        self.stop_sandbox(&request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(v1::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Reply<v1::RemovePodSandboxResponse> {
        self.remove_sandbox(&request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(v1::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Reply<v1::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let sandbox = self.state().sandbox(&request.pod_sandbox_id)?;
        let record = sandbox.record();
        let mut info = HashMap::new();
        if request.verbose {
            let text = serde_json::json!({"pid": record.shim.map_or(0, |shim| shim.pid), "config": record.config});
            info.insert("info".to_owned(), text.to_string());
        }
        let containers = self.state().containers_of(&record.id);
        Ok(Response::new(v1::PodSandboxStatusResponse {
            status: Some(self.sandbox_status(&sandbox)),
            info,
            containers_statuses: containers
                .iter()
                .map(|container| self.container_status(container))
                .collect(),
            timestamp: crate::state::now_ns(),
        }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Reply<v1::ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(v1::ListPodSandboxResponse { items: self.list_sandboxes(&filter) }))
    }

    type StreamPodSandboxesStream = Items<v1::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Reply<Self::StreamPodSandboxesStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(in_parts(self.list_sandboxes(&filter), |pod_sandboxes| v1::StreamPodSandboxesResponse {
            pod_sandboxes,
        }))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Reply<v1::CreateContainerResponse> {
        let request = request.into_inner();
        let config = request
            .config
            .ok_or_else(|| Error::InvalidArgument("container config is nil".into()))?;
        let pod = request.sandbox_config.as_ref();
        let container_id =
            Runtime::create_container(self, &request.pod_sandbox_id, config, pod).await?;
        Ok(Response::new(v1::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<v1::StartContainerRequest>,
    ) -> Reply<v1::StartContainerResponse> {
        Runtime::start_container(self, &request.into_inner().container_id).await?;
        Ok(Response::new(v1::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<v1::StopContainerRequest>,
    ) -> Reply<v1::StopContainerResponse> {
        let request = request.into_inner();
        let timeout = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        Runtime::stop_container(self, &request.container_id, timeout).await?;
        Ok(Response::new(v1::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Reply<v1::RemoveContainerResponse> {
        Runtime::remove_container(self, &request.into_inner().container_id).await?;
        Ok(Response::new(v1::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<v1::ListContainersRequest>,
    ) -> Reply<v1::ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(v1::ListContainersResponse {
            containers: Runtime::list_containers(self, &filter),
        }))
    }

    type StreamContainersStream = Items<v1::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Reply<Self::StreamContainersStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(in_parts(Runtime::list_containers(self, &filter), |containers| {
            v1::StreamContainersResponse { containers }
        }))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Reply<v1::ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.state().container(&request.container_id)?;
        let mut info = HashMap::new();
        if request.verbose {
            let record = container.record();
            let spec = std::fs::read(self.bundle(&record.id).join(crate::oci::launch::CONFIG))
                .unwrap_or_default();
            let text = serde_json::json!({
                "sandboxID": record.sandbox_id,
                "pid": record.process.map_or(0, |process| process.pid),
                "config": record.config,
                "runtimeSpec": serde_json::from_slice::<serde_json::Value>(&spec).unwrap_or_default(),
                "resources": self.cgroups().note(),
            });
            info.insert("info".to_owned(), text.to_string());
        }
        let status = Some(Runtime::container_status(self, &container));
        Ok(Response::new(v1::ContainerStatusResponse { status, info }))
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Reply<v1::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        self.update_resources(&request.container_id, &request.linux.unwrap_or_default())?;
        Ok(Response::new(v1::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Reply<v1::ReopenContainerLogResponse> {
        self.reopen_log(&request.into_inner().container_id).await?;
        Ok(Response::new(v1::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(
        &self,
        request: Request<v1::ExecSyncRequest>,
    ) -> Reply<v1::ExecSyncResponse> {
        Ok(Response::new(Runtime::exec_sync(self, request.into_inner()).await?))
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Reply<v1::ExecResponse> {
        let request = request.into_inner();
        self.running(&request.container_id)?;
        if request.cmd.is_empty() {
            return Err(Error::InvalidArgument("no command specified".into()).into());
        }
        check_streams(request.tty, [request.stdin, request.stdout, request.stderr])?;
        let url = self.streams().url(Wanted::Exec(request))?;
        Ok(Response::new(v1::ExecResponse { url }))
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Reply<v1::AttachResponse> {
        let request = request.into_inner();
        self.running(&request.container_id)?;
        check_streams(request.tty, [request.stdin, request.stdout, request.stderr])?;
        let url = self.streams().url(Wanted::Attach(request))?;
        Ok(Response::new(v1::AttachResponse { url }))
    }

    async fn port_forward(
        &self,
        request: Request<v1::PortForwardRequest>,
    ) -> Reply<v1::PortForwardResponse> {
        let mut request = request.into_inner();
        let record = self.state().sandbox(&request.pod_sandbox_id)?.record();
        if !record.ready {
            let id = &request.pod_sandbox_id;
            let text = format!("sandbox container {id:?} is not running");
            return Err(Error::FailedPrecondition(text).into());
        }
        request.pod_sandbox_id = record.id;
        let url = self.streams().url(Wanted::PortForward(request))?;
        Ok(Response::new(v1::PortForwardResponse { url }))
    }

    async fn container_stats(
        &self,
        request: Request<v1::ContainerStatsRequest>,
    ) -> Reply<v1::ContainerStatsResponse> {
        let stats = self.stats_of(&request.into_inner().container_id)?;
        Ok(Response::new(v1::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Reply<v1::ListContainerStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(v1::ListContainerStatsResponse { stats: self.list_stats(&filter) }))
    }

    type StreamContainerStatsStream = Items<v1::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Reply<Self::StreamContainerStatsStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(in_parts(self.list_stats(&filter), |container_stats| v1::StreamContainerStatsResponse {
            container_stats,
        }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Reply<v1::PodSandboxStatsResponse> {
        let record = self.state().sandbox(&request.into_inner().pod_sandbox_id)?.record();
        Ok(Response::new(v1::PodSandboxStatsResponse { stats: Some(self.pod_stats(record)) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Reply<v1::ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats: self.list_pod_stats(&filter) }))
    }

    type StreamPodSandboxStatsStream = Items<v1::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Reply<Self::StreamPodSandboxStatsStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        Ok(in_parts(self.list_pod_stats(&filter), |pod_sandbox_stats| {
            v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }
        }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Reply<v1::UpdateRuntimeConfigResponse> {
        let config = request.into_inner().runtime_config.and_then(|config| config.network_config);
        if let Some(network) = config.filter(|network| !network.pod_cidr.is_empty()) {
            Network::set_pod_cidr(self.network(), &network.pod_cidr).await?;
        }
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Reply<v1::StatusResponse> {
        let condition = |kind: &str| v1::RuntimeCondition {
            r#type: kind.into(),
            status: true,
            ..Default::default()
        };
        let mut network = condition("NetworkReady");
        if let Err(error) = self.network().status().await {
            network.status = false;
            network.reason = "NetworkPluginNotReady".into();
            network.message = format!("Network plugin returns error: {error}");
        }
        let mut info = HashMap::new();
        if request.into_inner().verbose {
            info.insert("cgroups".to_owned(), self.cgroups().note().to_owned());
            let config = self.config();
            let text = serde_json::json!({"root": config.root, "runDir": config.run_dir, "executable": config.executable});
            info.insert("config".to_owned(), text.to_string());
        }
        let limits = v1::RuntimeCondition {
            message: self.cgroups().note().to_owned(),
            reason: if self.cgroups().delegated() { "Delegated" } else { "NoCgroupDelegation" }
                .into(),
            status: self.cgroups().delegated(),
            r#type: "ResourceLimitsEnforced".into(),
        };
        let handler = |name: &str| v1::RuntimeHandler {
            name: name.into(),
            features: Some(v1::RuntimeHandlerFeatures {
                recursive_read_only_mounts: true,
                user_namespaces: false,
            }),
        };
        Ok(Response::new(v1::StatusResponse {
            status: Some(v1::RuntimeStatus {
                conditions: vec![condition("RuntimeReady"), network, limits],
            }),
            info,
            runtime_handlers: vec![handler(""), handler(HANDLER)],
            features: Some(v1::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
            }),
        }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Reply<v1::CheckpointContainerResponse> {
        unimplemented("CheckpointContainer")
    }

    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = Result<v1::ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(
        &self,
        _: Request<v1::GetEventsRequest>,
    ) -> Reply<Self::GetContainerEventsStream> {
        // A reader that lags behind is told so by the end of the stream, and lists again.
        let events = BroadcastStream::new(self.subscribe());
        let events =
            events.map(|event| event.map_err(|error| Status::data_loss(error.to_string())));
        Ok(Response::new(Box::pin(events)))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Reply<v1::ListMetricDescriptorsResponse> {
        Ok(Response::new(v1::ListMetricDescriptorsResponse {
            descriptors: crate::metrics::descriptors(),
        }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Reply<v1::ListPodSandboxMetricsResponse> {
        Ok(Response::new(v1::ListPodSandboxMetricsResponse { pod_metrics: self.pod_metrics() }))
    }

    type StreamPodSandboxMetricsStream = Items<v1::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Reply<Self::StreamPodSandboxMetricsStream> {
        Ok(in_parts(self.pod_metrics(), |pod_sandbox_metrics| {
            v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }
        }))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Reply<v1::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let sandbox = self.state().sandbox(&request.pod_sandbox_id)?;
        if let Some(resources) = &request.resources {
            let changed = self.cgroups().change_pod(&sandbox.record(), resources);
            changed.map_err(Error::io("change the pod's resource limits"))?;
        }
        sandbox.update(|record| {
            let linux = record.config.linux.get_or_insert_default();
            linux.overhead = request.overhead.or(linux.overhead.take());
            linux.resources = request.resources.or(linux.resources.take());
        });
        self.save_sandbox(&sandbox)?;
        Ok(Response::new(v1::UpdatePodSandboxResourcesResponse {}))
    }

    async fn runtime_config(
        &self,
        _: Request<v1::RuntimeConfigRequest>,
    ) -> Reply<v1::RuntimeConfigResponse> {
        let linux =
            v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs.into() };
        Ok(Response::new(v1::RuntimeConfigResponse { linux: Some(linux) }))
    }
}
