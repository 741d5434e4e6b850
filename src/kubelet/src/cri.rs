//! The kubelet's only door to containers: CRI v1, in process or over a unix socket, one code path.
//!
//! Source of behaviour: the CRI API (`runtime.v1`), <https://github.com/kubernetes/cri-api>.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceExt};

type Channel = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Transport>;

/// The call did not reach the runtime.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Transport(String);

impl Transport {
    fn new(error: impl Into<BoxError>) -> Self {
        Self(error.into().to_string())
    }
}

/// `ExecSync` may answer with 16 MiB of each stream.
const MAX_MESSAGE_BYTES: usize = 40 << 20;

/// A failed CRI call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The socket could not be reached.
    #[error("connect to the container runtime at {path}: {reason}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why, as the transport tells it.
        reason: String,
    },
    /// The runtime refused; its own words are the message.
    #[error("{}", .status.message())]
    Refused {
        /// The CRI method.
        operation: &'static str,
        /// What the runtime answered.
        status: Box<tonic::Status>,
    },
}

impl Error {
    /// Whether the runtime does not know the object.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.code() == tonic::Code::NotFound)
    }

    /// Whether the runtime does not have the call.
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.code() == tonic::Code::Unimplemented)
    }

    /// The gRPC status code's name, as upstream prints it (`rpc error: code = …`).
    pub fn rpc_text(&self) -> String {
        match self {
            Self::Connect { .. } => self.to_string(),
            Self::Refused { status, .. } => {
                format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
            }
        }
    }
}

/// CRI clients over one boxed service.
#[derive(Clone)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    counts: Arc<Counts>,
}

/// By method, how often it was called, and how often that failed.
type Counts = Mutex<BTreeMap<&'static str, (u64, u64)>>;

macro_rules! calls {
    ($($client:ident . $method:ident ( $request:ident ) -> $response:ident;)*) => {
        $(
            #[doc = concat!("CRI `", stringify!($method), "`.")]
            pub fn $method(
                &self,
                request: cri::$request,
            ) -> BoxFuture<'static, Result<cri::$response, Error>> {
                let mut client = self.$client.clone();
                let counts = self.counts.clone();
                Box::pin(async move {
                    let answer = client.$method(request).await;
                    count(&counts, stringify!($method), answer.is_err());
                    match answer {
                        Ok(response) => Ok(response.into_inner()),
                        Err(status) => Err(Error::Refused {
                            operation: stringify!($method),
                            status: Box::new(status),
                        }),
                    }
                })
            }
        )*
    };
}

impl Cri {
    /// Clients of services in this process: the generated CRI servers of the runtime.
    ///
    /// Each call runs in a task of its own, so that a caller that goes away does not stop the
    /// runtime halfway, just as over a socket.
    pub fn in_process<R, I>(runtime: R, images: I) -> Self
    where
        R: Service<http::Request<Body>, Response = http::Response<Body>>
            + Clone
            + Send
            + Sync
            + 'static,
        R::Future: Send + 'static,
        R::Error: Into<BoxError> + Send,
        I: Service<http::Request<Body>, Response = http::Response<Body>>
            + Clone
            + Send
            + Sync
            + 'static,
        I::Future: Send + 'static,
        I::Error: Into<BoxError> + Send,
    {
        Self::over(detached(runtime), detached(images))
    }

    /// Clients of a runtime that listens on the unix socket `path`; connects at the first call.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let socket = path.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move {
                Ok::<_, std::io::Error>(TokioIo::new(
                    tokio::net::UnixStream::connect(socket).await?,
                ))
            }
        });
        let channel = tonic::transport::Endpoint::try_from("http://runtime")
            .map_err(|e| Error::Connect { path: path.to_owned(), reason: e.to_string() })?
            .connect_with_connector_lazy(connector);
        let boxed = BoxCloneSyncService::new(ServiceExt::<http::Request<Body>>::map_err(
            channel,
            |error: tonic::transport::Error| Transport::new(error),
        ));
        Ok(Self::over(boxed.clone(), boxed))
    }

    fn over(runtime: Channel, images: Channel) -> Self {
        Self {
            runtime: RuntimeServiceClient::new(runtime)
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            images: ImageServiceClient::new(images).max_decoding_message_size(MAX_MESSAGE_BYTES),
            counts: Arc::default(),
        }
    }

    /// By method, how often it was called so far, and how often that failed.
    pub fn calls(&self) -> BTreeMap<&'static str, (u64, u64)> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    calls! {
        runtime.version(VersionRequest) -> VersionResponse;
        runtime.run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
        runtime.stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
        runtime.remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
        runtime.pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
        runtime.list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
        runtime.create_container(CreateContainerRequest) -> CreateContainerResponse;
        runtime.start_container(StartContainerRequest) -> StartContainerResponse;
        runtime.stop_container(StopContainerRequest) -> StopContainerResponse;
        runtime.remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
        runtime.list_containers(ListContainersRequest) -> ListContainersResponse;
        runtime.container_status(ContainerStatusRequest) -> ContainerStatusResponse;
        runtime.update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        runtime.update_pod_sandbox_resources(UpdatePodSandboxResourcesRequest) -> UpdatePodSandboxResourcesResponse;
        runtime.list_metric_descriptors(ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse;
        runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest) -> ListPodSandboxMetricsResponse;
        runtime.reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
        runtime.exec_sync(ExecSyncRequest) -> ExecSyncResponse;
        runtime.exec(ExecRequest) -> ExecResponse;
        runtime.attach(AttachRequest) -> AttachResponse;
        runtime.port_forward(PortForwardRequest) -> PortForwardResponse;
        runtime.list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
        runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
        runtime.update_runtime_config(UpdateRuntimeConfigRequest) -> UpdateRuntimeConfigResponse;
        runtime.status(StatusRequest) -> StatusResponse;
        images.list_images(ListImagesRequest) -> ListImagesResponse;
        images.image_status(ImageStatusRequest) -> ImageStatusResponse;
        images.pull_image(PullImageRequest) -> PullImageResponse;
        images.remove_image(RemoveImageRequest) -> RemoveImageResponse;
        images.image_fs_info(ImageFsInfoRequest) -> ImageFsInfoResponse;
    }

    /// CRI `GetContainerEvents`: what happens to containers, as it happens.
    pub fn container_events(
        &self,
    ) -> BoxFuture<'static, Result<tonic::Streaming<cri::ContainerEventResponse>, Error>> {
        let mut client = self.runtime.clone();
        Box::pin(async move {
            match client.get_container_events(cri::GetEventsRequest {}).await {
                Ok(response) => Ok(response.into_inner()),
                Err(status) => Err(Error::Refused {
                    operation: "get_container_events",
                    status: Box::new(status),
                }),
            }
        })
    }
}

fn count(counts: &Counts, method: &'static str, failed: bool) {
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let (calls, failures) = counts.entry(method).or_default();
    *calls += 1;
    *failures += u64::from(failed);
}

fn detached<S>(service: S) -> Channel
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError> + Send,
{
    BoxCloneSyncService::new(tower::service_fn(move |request: http::Request<Body>| {
        let service = service.clone();
        let call: BoxFuture<'static, Result<http::Response<Body>, Transport>> =
            Box::pin(async move {
                let task =
                    tokio::spawn(
                        async move { service.oneshot(request).await.map_err(Transport::new) },
                    );
                task.await.map_err(Transport::new)?
            });
        call
    }))
}
