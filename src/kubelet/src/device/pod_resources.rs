//! The API that tells agents of the node which pod has which devices.
//!
//! Source of behaviour: `pkg/kubelet/apis/podresources/server_v1.go`.

use std::sync::{Arc, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use plugin::device::{
    AllocatableResources, ContainerDevices, ContainerResources, OnePod, PodResources,
    PodResourcesList, WhichPod,
};
use plugin::proto::Empty;
use plugin::serve::{self, Status};

use super::Devices;
use crate::context::Context;
use crate::pod;

/// Serves it.
pub async fn run(context: Arc<Context>) {
    let path = context.root_dir.join("pod-resources/kubelet.sock");
    let listener = match super::registration::listen(path).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "the pods' resources are not told");
            return;
        }
    };
    let handler: serve::Handler = Arc::new(move |request| {
        let context = context.clone();
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        Box::pin(async move {
            match method.as_str() {
                "List" => {
                    let work =
                        move |_: Empty| Ok(PodResourcesList { pod_resources: all(&context) });
                    serve::unary(request, work).await
                }
                "Get" => serve::unary(request, move |which| one(&context, &which)).await,
                "GetAllocatableResources" => {
                    let work = move |_: Empty| {
                        Ok(AllocatableResources { devices: context.devices.usable() })
                    };
                    serve::unary(request, work).await
                }
                _ => {
                    let unknown =
                        |_: Empty| Err::<Empty, _>(Status::unimplemented("no such method"));
                    serve::unary(request, unknown).await
                }
            }
        })
    });
    serve::serve(listener, handler).await;
}

fn pods(context: &Context) -> Vec<Arc<Pod>> {
    context.admitted.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
}

fn all(context: &Context) -> Vec<PodResources> {
    pods(context).iter().map(|of| context.devices.of_pod(of)).collect()
}

fn one(context: &Context, which: &WhichPod) -> Result<OnePod, Status> {
    let all = pods(context);
    let mut all = all.iter();
    let found =
        all.find(|of| pod::name(of) == which.pod_name && pod::namespace(of) == which.pod_namespace);
    let (name, namespace) = (&which.pod_name, &which.pod_namespace);
    let found = found.ok_or_else(|| {
        Status::not_found(format!("pod {name} in namespace {namespace} not found"))
    })?;
    Ok(OnePod { pod_resources: Some(context.devices.of_pod(found)) })
}

impl Devices {
    fn of_pod(&self, of: &Pod) -> PodResources {
        let state = self.lock();
        let sidecars = pod::init_containers(of).iter().filter(|c| pod::is_sidecar(c));
        let containers = sidecars.chain(pod::containers(of)).map(|container| {
            let own = state
                .given
                .iter()
                .filter(|((uid, name, _), _)| uid == pod::uid(of) && *name == container.name);
            let devices = own.map(|((.., resource), given)| ContainerDevices {
                resource_name: resource.clone(),
                device_ids: given.devices.iter().cloned().collect(),
            });
            ContainerResources { name: container.name.clone(), devices: devices.collect() }
        });
        PodResources {
            name: pod::name(of).to_owned(),
            namespace: pod::namespace(of).to_owned(),
            containers: containers.collect(),
        }
    }

    /// Every device that can be used, whoever has it.
    fn usable(&self) -> Vec<ContainerDevices> {
        let state = self.lock();
        let told = state.resources.iter().map(|(resource, known)| {
            let healthy = known.devices.iter().filter(|(_, healthy)| **healthy);
            ContainerDevices {
                resource_name: resource.clone(),
                device_ids: healthy.map(|(id, _)| id.clone()).collect(),
            }
        });
        told.collect()
    }
}
