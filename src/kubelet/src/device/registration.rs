//! The socket at which plugins register, and what they tell of their devices while they run.
//!
//! Source of behaviour: `pkg/kubelet/cm/devicemanager/plugin/v1beta1` (`server.go`, `handler.go`, `client.go`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use plugin::Plugin;
use plugin::device::{HEALTHY, Listed, Options, Register, VERSION};
use plugin::proto::Empty;
use plugin::serve::{self, Status};
use tokio_util::sync::CancellationToken;

use super::{Devices, Resource, pod_resources};
use crate::context::Context;
use crate::node::is_extended;

/// Serves plugins until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let folder = context.devices.folder.clone();
    // Plugins take a new socket for the sign to register again.
    let listener = match listen(folder.join("kubelet.sock")).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "no device plugin can register");
            return;
        }
    };
    let about = context.clone();
    let handler: serve::Handler = Arc::new(move |request| {
        let context = about.clone();
        Box::pin(async move {
            let work = move |asked: Register| take(&context, &asked).map(|()| Empty {});
            serve::unary(request, work).await
        })
    });
    let told = pod_resources::run(context.clone());
    tokio::select! {
        () = shutdown.cancelled() => {}
        ((), ()) = async { tokio::join!(serve::serve(listener, handler), told) } => {}
    }
}

/// A listener in the place of one that may have been left. The way there may be longer than an address.
pub async fn listen(path: PathBuf) -> std::io::Result<tokio::net::UnixListener> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    tokio::fs::create_dir_all(folder).await?;
    let _ = tokio::fs::remove_file(&path).await;
    plugin::serve::bind(folder, name)
}

/// Takes a plugin in, which is then listened to.
fn take(context: &Arc<Context>, asked: &Register) -> Result<(), Status> {
    if asked.version != VERSION {
        return Err(Status::invalid_argument(format!(
            "requested API version {:?} is not supported by kubelet. Supported version is {VERSION:?}",
            asked.version
        )));
    }
    if !is_extended(&asked.resource_name) {
        return Err(Status::invalid_argument(format!(
            "the ResourceName {:?} is invalid",
            asked.resource_name
        )));
    }
    if asked.endpoint.is_empty() || asked.endpoint.contains('/') {
        return Err(Status::invalid_argument("the endpoint is no name of a socket"));
    }
    let endpoint = context.devices.folder.join(&asked.endpoint);
    follow(context, asked.resource_name.clone(), endpoint, asked.options.clone());
    Ok(())
}

/// Listens to a plugin for as long as it tells of its devices.
pub fn follow(
    context: &Arc<Context>,
    resource: String,
    endpoint: PathBuf,
    options: Option<Options>,
) {
    let run = {
        let mut state = context.devices.lock();
        let run = state.runs.entry(resource.clone()).or_default();
        *run += 1;
        *run
    };
    let context = context.clone();
    tokio::spawn(async move {
        tracing::info!(resource, "a device plugin has registered");
        let devices = &context.devices;
        if let Err(error) = devices.listen_to(&context, &resource, &endpoint, options, run).await {
            tracing::info!(resource, %error, "a device plugin is gone");
        }
        devices.lose(&resource, run);
        devices.tell(&context, &resource);
    });
}

impl Devices {
    async fn listen_to(
        &self,
        context: &Context,
        resource: &str,
        endpoint: &Path,
        options: Option<Options>,
        run: u64,
    ) -> Result<(), plugin::call::Error> {
        let plugin = Plugin::connect(endpoint).await?;
        let options = match options {
            Some(options) => options,
            None => plugin.call("/v1beta1.DevicePlugin/GetDevicePluginOptions", Empty {}).await?,
        };
        let mut stream =
            plugin.stream::<_, Listed>("/v1beta1.DevicePlugin/ListAndWatch", Empty {}).await?;
        while let Some(listed) = stream.next().await {
            let listed = listed?;
            {
                let mut state = self.lock();
                if state.runs.get(resource) != Some(&run) {
                    return Ok(());
                }
                let devices = listed.devices.into_iter();
                let new = Resource {
                    endpoint: Some(endpoint.to_owned()),
                    options: options.clone(),
                    devices: devices.map(|told| (told.id, told.health == HEALTHY)).collect(),
                    gone: None,
                };
                state.lost.remove(resource);
                state.resources.insert(resource.to_owned(), new);
            }
            self.save();
            self.tell(context, resource);
        }
        Ok(())
    }

    /// The plugin is gone: none of its devices can be used.
    fn lose(&self, resource: &str, run: u64) {
        let mut state = self.lock();
        if state.runs.get(resource) != Some(&run) {
            return;
        }
        if let Some(known) = state.resources.get_mut(resource) {
            known.endpoint = None;
            known.gone = Some(Instant::now());
            known.devices.values_mut().for_each(|healthy| *healthy = false);
        }
    }

    /// The node and the pods that have such devices look again.
    fn tell(&self, context: &Context, resource: &str) {
        context.node_changed.notify_one();
        for uid in self.users(resource) {
            context.workers.wake(&uid);
        }
    }
}
