//! `rootlet cri`: the container runtime alone, for crictl or for a kubelet of somebody else's. The node
//! process carries its pods' network, as it does for a cluster.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cli::args::{Cri, HostNetwork};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::host_ports::HostPorts;
use crate::paths::Paths;
use crate::settings::Settings;
use crate::{control, daemon, lock, logging, up, userns};

/// The longest path that a unix socket may have (unix(7)), without its final zero.
const SOCKET_PATH_MAX: usize = 107;
/// How long calls under way may take when the server ends.
const DRAIN: Duration = Duration::from_secs(2);
/// How long the node process may take to end.
const NODE_GRACE: Duration = Duration::from_secs(10);

/// What the command hands to the process that serves, which is itself, executed anew.
#[derive(Serialize, Deserialize)]
struct Order {
    settings: Settings,
    listen: PathBuf,
    stop_pods: bool,
}

/// Carries out `rootlet cri`: starts the node process unless it runs, joins it, and serves.
pub fn cri(arguments: &Cri) -> anyhow::Result<std::convert::Infallible> {
    let paths = Paths::of(&arguments.cluster.name)?;
    paths.create()?;
    let held = lock::wait(&paths.lock("up")).context("cannot lock the runtime's folder")?;
    refuse_second(&paths)?;
    let mut settings = up::settings(
        &cli::args::Up {
            cluster: arguments.cluster.clone(),
            registries: arguments.runtime.registries.clone(),
            publish: arguments.runtime.publish.clone(),
            controllers: vec!["*".to_owned()],
            ..cli::args::Up::default()
        },
        paths.clone(),
    )?;
    settings.host_network_within = arguments.host_network == HostNetwork::Node;
    settings.write()?;
    let node = up::start_node(&paths)?;
    let order = Order {
        settings,
        listen: arguments.listen.clone().unwrap_or_else(|| paths.cri_socket()),
        stop_pods: arguments.runtime.stop_pods,
    };
    let file = paths.run.join("cri.json");
    cli::kubeconfig::write(&file, &serde_json::to_string(&order)?)?;
    let file = file.to_str().context("the runtime folder's path is not UTF-8")?;
    // The lock ends with this process image, and the next one takes its own.
    let _held = held;
    userns::join(node, &["cri-inside", file])
}

/// Two runtimes on one set of pods would each undo what the other does.
fn refuse_second(paths: &Paths) -> anyhow::Result<()> {
    let (name, socket) = (&paths.name, paths.cri_socket());
    if lock::holder(&paths.lock("daemon")).is_some() {
        bail!(
            "cluster {name:?} is running, and its runtime serves CRI at unix://{} already; \
             use that, or another --name",
            socket.display()
        );
    }
    if let Some(pid) = lock::holder(&paths.lock("runtime")) {
        bail!("`rootlet cri --name {name}` runs already (process {pid})");
    }
    Ok(())
}

/// The process of `rootlet cri`, in the node process' namespaces.
pub fn run(order: &str) -> anyhow::Result<()> {
    let text = std::fs::read(order).with_context(|| format!("cannot read {order}"))?;
    let order: Order = serde_json::from_slice(&text).context("the order is damaged")?;
    let paths = order.settings.paths.clone();
    let held = lock::take(&paths.lock("runtime"))?.context("a runtime runs already")?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    logging::start(None);
    let threads = daemon::threads()?;
    let outcome = threads.block_on(serve(&order));
    threads.shutdown_timeout(DRAIN);
    let alive = *outcome.as_ref().unwrap_or(&true);
    let _ = std::fs::remove_file(paths.run.join("cri.json"));
    tidy(&paths, &order.listen, alive)?;
    drop(held);
    outcome.map(drop)
}

/// Removes what a runtime that ends leaves behind: its sockets, and the node process unless pods or
/// others need it.
pub fn tidy(paths: &Paths, cri: &Path, alive: bool) -> anyhow::Result<()> {
    // Sockets are of no use without their process.
    for socket in [cri.to_owned(), paths.runtime_socket()] {
        let _ = std::fs::remove_file(socket);
    }
    let others = ["daemon", "agent"]
        .into_iter()
        .any(|role| lock::holder(&paths.lock(role)).is_some_and(|pid| pid != std::process::id()));
    if alive || others {
        return Ok(());
    }
    lock::end_holder(&paths.lock("node"), NODE_GRACE)
        .context("the node process cannot be stopped")?;
    for socket in [paths.node_socket(), paths.dns_socket()] {
        let _ = std::fs::remove_file(socket);
    }
    Ok(())
}

/// Serves until asked to end; returns whether pods go on running.
async fn serve(order: &Order) -> anyhow::Result<bool> {
    use tokio::signal::unix::{SignalKind, signal};
    let (settings, paths) = (&order.settings, &order.settings.paths);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (runtime, images) = open(settings, true).await?;
    let serving = CancellationToken::new();
    let listener = listen(&order.listen)?;
    let server = tokio::spawn(serve_cri(runtime.clone(), listener, serving.clone()));
    let (down, mut asked) = mpsc::channel::<oneshot::Sender<()>>(1);
    let state =
        control::State { started: Instant::now(), images: Some(images), down, cluster: None };
    let socket = control::serve(&paths.runtime_socket(), state, serving.clone()).await?;

    println!("ready: unix://{}", order.listen.display());
    let asked = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        done = asked.recv() => done,
    };
    let mut outcome = Ok(());
    if order.stop_pods || asked.is_some() {
        outcome = daemon::stop_pods(&runtime).await;
    }
    if let Some(done) = asked {
        let _ = done.send(());
    }
    serving.cancel();
    let _ = server.await;
    let _ = tokio::time::timeout(DRAIN, socket).await;
    let alive = runtime.pods_alive();
    if alive > 0 {
        eprintln!(
            "{alive} pods go on running; `rootlet cri` finds them again, `rootlet down --name {}` stops them",
            paths.name
        );
    }
    outcome.map(|()| alive > 0)
}

/// The runtime of a name, and its images; `alone` when no service proxy shares the node's network.
pub async fn open(
    settings: &Settings,
    alone: bool,
) -> anyhow::Result<(runtime::Runtime, images::Store)> {
    let images = daemon::open_images(settings)?;
    let control = netns::Control::connect(&settings.paths.node_socket())
        .await
        .context("cannot reach the node process")?;
    let network = HostPorts::new(control, settings, alone);
    let config = daemon::runtime_config(settings, images.clone(), Arc::new(network));
    let runtime =
        runtime::Runtime::open(config).await.context("cannot start the container runtime")?;
    Ok((runtime, images))
}

/// The kubelet's way to its runtime: ours in this process, or another's socket.
pub fn client(
    runtime: Option<&runtime::Runtime>,
    socket: Option<&Path>,
) -> anyhow::Result<kubelet::Cri> {
    match (runtime, socket) {
        (Some(runtime), _) => {
            let (runtime_service, image_service) = runtime.services();
            Ok(kubelet::Cri::in_process(runtime_service, image_service))
        }
        (None, Some(socket)) => Ok(kubelet::Cri::connect(socket)?),
        (None, None) => bail!("there is no container runtime for the kubelet"),
    }
}

/// Serves CRI until `shutdown`; what is under way then has some time to end.
pub async fn serve_cri(
    runtime: runtime::Runtime,
    listener: UnixListener,
    shutdown: CancellationToken,
) {
    let served = runtime.serve(listener, shutdown.clone().cancelled_owned());
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        ended = served => if let Err(error) = ended {
            tracing::error!(%error, "the CRI socket is closed");
        },
        // Streams of events have no end of their own.
        () = overdue => {}
    }
}

/// Listens at `path`, for its owner alone; takes the place of a socket that nobody serves.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        bail!(
            "--listen: {} is too long for a socket ({length} of {SOCKET_PATH_MAX} bytes)",
            path.display()
        );
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!("--listen: somebody serves {} already", path.display());
    }
    let failed = || format!("cannot listen at unix://{}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(failed)?;
    }
    if std::fs::symlink_metadata(path).is_ok_and(|found| is_socket(&found)) {
        std::fs::remove_file(path).with_context(failed)?;
    }
    let listener = UnixListener::bind(path).with_context(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).with_context(failed)?;
    Ok(listener)
}

fn is_socket(found: &std::fs::Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_socket(&found.file_type())
}
