//! The daemon: the control plane, the kubelet and the runtime in one process, wired together.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use apiserver::{ApiServer, KubeletAddress, UserInfo};
use clap::ValueEnum;
use cli::args::Component;
use client::Informers;
use k8s_openapi::api::core::v1::Node;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::control::{self, Admin};
use crate::manifests::{Keeper, Kept};
use crate::member::Member;
use crate::node::{DOMAIN, Plan, REVERSE};
use crate::paths::Paths;
use crate::plugins::PluginNetwork;
use crate::settings::{Settings, StoreAddress};
use crate::tracer::Tracer;
use crate::{cri, dial, lock, logging, up, userns};

/// kube-apiserver's usual port.
const API_PORT: u16 = 6443;
/// The kubelet's usual port.
const KUBELET_PORT: u16 = 10250;
/// How long the node may take to become Ready.
const READY_TIMEOUT: Duration = Duration::from_mins(1);
/// How long components may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long pods may take to end at `down`.
const POD_GRACE: Duration = Duration::from_secs(5);

/// Runs until asked to stop.
pub fn run(settings: &str) -> anyhow::Result<()> {
    let (settings, held) = begin(settings)?;
    let tracer = Tracer::default();
    logging::start(Some(tracer.clone()));
    let runtime = threads()?;
    let outcome = runtime.block_on(serve(settings, tracer));
    runtime.shutdown_timeout(DRAIN_TIMEOUT);
    drop(held);
    outcome
}

/// Stops the pods that a daemon which is gone left running.
pub fn sweep(settings: &str) -> anyhow::Result<()> {
    let (settings, _held) = begin(settings)?;
    logging::start(None);
    threads()?.block_on(async {
        if !containers(&settings).exists() {
            println!("ready");
            return Ok(());
        }
        let images = open_images(&settings)?;
        let network = netns::Control::connect(&settings.paths.node_socket())
            .await
            .context("cannot reach the node process")?;
        let config = runtime_config(&settings, images, pod_network(&settings, network)?);
        let runtime = runtime::Runtime::open(config).await?;
        stop_pods(&runtime).await?;
        println!("ready");
        Ok(())
    })
}

fn begin(settings: &str) -> anyhow::Result<(Settings, Vec<lock::Lock>)> {
    let settings = Settings::read(Path::new(settings))?.context("the settings are gone")?;
    let take = |role| lock::take(&settings.paths.lock(role));
    let daemon = take("daemon")?.context("a daemon runs already")?;
    let mut held = vec![daemon];
    if settings.own_runtime() {
        let runtime = take("runtime")?.with_context(|| {
            let name = &settings.paths.name;
            format!("`rootlet cri` runs under this name; end it first: rootlet down --name {name}")
        })?;
        // Released before the other: who holds this one alone is `rootlet cri`.
        held.insert(0, runtime);
    }
    // Several parts bring TLS; they shall agree. An error means that this was done before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok((settings, held))
}

/// The threads of a process that serves.
pub fn threads() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")
}

async fn serve(mut settings: Settings, tracer: Tracer) -> anyhow::Result<()> {
    let paths = settings.paths.clone();
    let node_name = paths.context();
    // Components end first; the API server and the control socket when everybody who speaks with them has.
    let (shutdown, serving) = (CancellationToken::new(), CancellationToken::new());
    let started = Instant::now();

    let api = listen(settings.api_port, API_PORT, settings.api_port_fixed)
        .context("cannot listen for the API (--api-port)")?;
    let api_port = api.local_addr()?.port();
    settings.api_port = Some(api_port);
    let own_node = settings.runs(Component::Kubelet);
    let kubelet =
        own_node.then(|| listen(settings.kubelet_port, KUBELET_PORT, false)).transpose()?;
    let kubelet_port =
        kubelet.as_ref().map(TcpListener::local_addr).transpose()?.map(|address| address.port());
    settings.kubelet_port = kubelet_port.or(settings.kubelet_port);
    settings.write()?;

    let network = netns::Control::connect(&paths.node_socket())
        .await
        .context("cannot reach the node process")?;
    let gateways = network.gateways().await.context("cannot reach the node process")?;
    let plan = Plan::of(&gateways);
    let forward = |port| netns::Forward {
        node: SocketAddr::new(plan.node, port),
        host: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
    };
    let mut forwards: Vec<_> =
        [Some(api_port), kubelet_port].into_iter().flatten().map(forward).collect();
    if settings.store.is_some() && api_port != API_PORT {
        // Servers on one store say the same of where the API is; on each node that leads to its own one.
        forwards.push(netns::Forward {
            node: SocketAddr::new(plan.node, API_PORT),
            host: SocketAddr::from((Ipv4Addr::LOCALHOST, api_port)),
        });
    }
    network.set_forwards(forwards.clone()).await.context("cannot lead pods to the API server")?;

    let (server, store) =
        start_api(&settings, &plan, api, kubelet_port, &network, &serving).await?;
    write_admin(&settings, &server, api_port)?;

    let containers = if settings.own_runtime() {
        Some(Containers::open(&settings, &network).await?)
    } else {
        None
    };
    let runtime = containers.as_ref().map(|containers| containers.runtime.clone());
    let informers = Informers::new(component(&server, "system:kube-controller-manager", &[]));
    let mut tasks = Tasks::new(shutdown.clone());
    let ending = kubelet::Ending::default();
    let link = Link { gateways, plan, network: network.clone(), forwards };
    start_components(&mut tasks, &server, &informers, &link, &settings)?;
    keep_node(&mut tasks, &settings, &link, runtime.clone()).await?;
    if let Some(listener) = kubelet {
        let runtime = runtime.as_ref();
        let drivers = start_kubelet(
            &mut tasks,
            &server,
            &settings,
            listener,
            runtime,
            &link,
            ending.clone(),
        )?;
        start_csi(&mut tasks, &server, &informers, &node_name, drivers);
    }

    let manifests = start_manifests(&mut tasks, &server, &settings);
    let (down, mut asked) = mpsc::channel(1);
    let cluster = control::Cluster {
        server: format!("https://127.0.0.1:{api_port}"),
        node: node_name.clone(),
        informers: informers.clone(),
        store: store.clone(),
        tracer,
        ephemeral: settings.ephemeral,
        publish: settings.publish.clone(),
        manifests,
    };
    let images = containers.map(|containers| containers.images);
    let state = control::State { started, images, down, cluster: Some(cluster) };
    let mut sockets = vec![control::serve(&paths.daemon_socket(), state, serving.clone()).await?];
    if let Some(runtime) = &runtime {
        let listener = cri::listen(&paths.cri_socket())?;
        let served = cri::serve_cri(runtime.clone(), listener, serving.clone());
        sockets.push(tokio::spawn(served));
    }

    tokio::select! {
        () = node_ready(&informers, &node_name), if own_node => {}
        () = std::future::ready(()), if !own_node => {}
        () = tokio::time::sleep(READY_TIMEOUT) => {
            bail!("node {node_name} is not Ready after {} s", READY_TIMEOUT.as_secs())
        }
        ended = tasks.next() => return Err(ended),
    }
    println!("ready");
    logging::detach();
    tracing::info!(elapsed_ms = started.elapsed().as_millis() as u64, "the node is Ready");

    let periods = crate::member::shutdown_periods(&settings.kubelet).unwrap_or_default();
    let graceful = own_node && !periods.is_empty();
    let machine = if graceful { watch_machine(periods.total()).await } else { None };
    let machine_ends = async {
        if let Some(told) = machine
            && let Ok(delay) = told.await
        {
            tracing::info!("the machine shuts down: pods have their time");
            let _ = tokio::time::timeout(periods.total() + DRAIN_TIMEOUT, ending.end()).await;
            drop(delay);
        }
        // What follows is a signal to all processes.
        std::future::pending::<()>().await;
    };
    let stopped = tokio::select! {
        stopped = wait(&mut asked, &mut tasks) => stopped?,
        () = machine_ends => None,
    };
    if stopped.is_some() {
        // For a service manager, which would start it again.
        let _ = std::fs::write(paths.stopped(), "");
        if graceful {
            let _ = tokio::time::timeout(periods.total() + DRAIN_TIMEOUT, ending.end()).await;
        }
    }
    stop(Stop { shutdown, serving, tasks, server, store, runtime, stopped, sockets }).await
}

/// Has the machine's shutdown wait for the pods, where there is a logind.
async fn watch_machine(period: Duration) -> Option<oneshot::Receiver<crate::logind::Delay>> {
    match tokio::task::spawn_blocking(move || crate::logind::watch(period)).await.ok()? {
        Ok(told) => Some(told),
        Err(error) => {
            tracing::info!(error, "a shutdown of the machine will not wait for pods");
            None
        }
    }
}

/// Starts the node process anew should it end: the daemon holds its network, with all pods in it, and
/// lives in its other namespaces.
async fn keep_node(
    tasks: &mut Tasks,
    settings: &Settings,
    link: &Link,
    runtime: Option<runtime::Runtime>,
) -> anyhow::Result<()> {
    let (stop, network, paths) =
        (tasks.shutdown.clone(), link.network.clone(), settings.paths.clone());
    let namespace = network.node_netns().await.context("cannot get hold of the node's network")?;
    let forwards = (!settings.runs(Component::Proxy)).then(|| link.forwards.clone());
    tasks.spawn("keeper of the node process", async move {
        let keep = async {
            loop {
                network.until_lost().await;
                if lock::holder(&paths.lock("node")).is_some() {
                    continue;
                }
                tracing::warn!("the node process has ended; it is started anew");
                let descriptor = namespace.as_raw_fd();
                let place = format!("/proc/{}/fd/{descriptor}", std::process::id());
                let paths = paths.clone();
                let started = tokio::task::spawn_blocking(move || start_node(&paths, &place)).await;
                match started {
                    Ok(Ok(())) => {
                        if let Some(runtime) = &runtime {
                            runtime.attach_again().await;
                        }
                        // Otherwise the proxy tells them, with its own.
                        if let Some(forwards) = &forwards
                            && let Err(error) = network.set_forwards(forwards.clone()).await
                        {
                            tracing::warn!(%error, "cannot lead pods to the API server");
                        }
                    }
                    Ok(Err(error)) => tracing::error!("no node process: {error:#}"),
                    Err(error) => tracing::error!(%error, "no node process"),
                }
            }
        };
        stop.run_until_cancelled(keep).await;
        Ok(())
    });
    Ok(())
}

/// A node process in this process' own namespaces, but for the network, whose place is told.
fn start_node(paths: &Paths, namespace: &str) -> anyhow::Result<()> {
    let mut child = Command::new("/proc/self/exe")
        .arg("node-inside")
        .arg(paths.settings())
        .arg(namespace)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(up::open_log(paths, "node")?)
        .process_group(0)
        .spawn()
        .context("cannot start it")?;
    let ready = userns::supervise(&mut child);
    if ready.is_err() {
        // It may still be there when it was us who could not go on.
        let _ = child.kill();
    }
    // It outlives the daemon or ends before it; then somebody has to take note.
    std::thread::spawn(move || child.wait());
    ready.map(drop)
}

/// Until somebody asks for the end. The channel is there when the pods are to be stopped as well.
async fn wait(
    asked: &mut mpsc::Receiver<oneshot::Sender<()>>,
    tasks: &mut Tasks,
) -> anyhow::Result<Option<oneshot::Sender<()>>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = asked.recv() => Ok(done),
        _ = terminate.recv() => Ok(None),
        ended = tasks.next() => Err(ended),
    }
}

struct Stop {
    shutdown: CancellationToken,
    serving: CancellationToken,
    tasks: Tasks,
    server: ApiServer,
    store: store::Store,
    runtime: Option<runtime::Runtime>,
    stopped: Option<oneshot::Sender<()>>,
    sockets: Vec<tokio::task::JoinHandle<()>>,
}

/// Ends components before what they use; pods only when that was asked for.
async fn stop(stop: Stop) -> anyhow::Result<()> {
    let Stop { shutdown, serving, mut tasks, server, store, runtime, stopped, sockets } = stop;
    // The kubelet first: it would start again what the runtime stops.
    shutdown.cancel();
    let drained = tokio::time::timeout(DRAIN_TIMEOUT, tasks.join()).await;
    if drained.is_err() {
        tracing::warn!("not every component ended in time");
    }
    let mut outcome = Ok(());
    if let Some(done) = stopped {
        if let Some(runtime) = &runtime {
            outcome = stop_pods(runtime).await;
        }
        // The command that asked may have been interrupted; the end comes all the same.
        let _ = done.send(());
    }
    serving.cancel();
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, futures::future::join_all(sockets)).await;
    server.shutdown().await;
    store.close().await.context("the store did not close cleanly")?;
    outcome
}

/// Stops every pod, and tells all that went wrong.
pub async fn stop_pods(runtime: &runtime::Runtime) -> anyhow::Result<()> {
    let problems = runtime.down(POD_GRACE).await;
    if problems.is_empty() {
        return Ok(());
    }
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    bail!("not every pod could be stopped: {}", told.join("; "))
}

/// The components' tasks, by name. None of them ends before the shutdown.
struct Tasks {
    set: JoinSet<(&'static str, anyhow::Result<()>)>,
    shutdown: CancellationToken,
}

impl Tasks {
    fn new(shutdown: CancellationToken) -> Self {
        Self { set: JoinSet::new(), shutdown }
    }

    fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Waits for a component that ends too early, and says so.
    async fn next(&mut self) -> anyhow::Error {
        match self.set.join_next().await {
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("the {name} has ended"),
            Some(Ok((name, Err(error)))) => error.context(format!("the {name} has failed")),
            Some(Err(error)) => anyhow::anyhow!(error).context("a component panicked"),
            None => std::future::pending().await,
        }
    }

    async fn join(&mut self) {
        debug_assert!(self.shutdown.is_cancelled(), "components end at the shutdown");
        while let Some(ended) = self.set.join_next().await {
            match ended {
                Ok((_, Ok(()))) => {}
                Ok((name, Err(error))) => tracing::warn!("the {name} failed: {error:#}"),
                Err(error) => tracing::warn!(%error, "a component panicked"),
            }
        }
    }
}

/// A listener on loopback: on the port of the last time or the usual one, or else any; only on the
/// port asked for when `fixed`.
fn listen(last: Option<u16>, usual: u16, fixed: bool) -> anyhow::Result<TcpListener> {
    let candidates: Vec<u16> = match last {
        Some(port) if fixed => vec![port],
        Some(port) => vec![port, 0],
        None => vec![usual, 0],
    };
    let mut problem = None;
    for port in candidates {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                return Ok(listener);
            }
            Err(error) => problem = Some((port, error)),
        }
    }
    let (port, error) = problem.context("there is a candidate")?;
    Err(error).with_context(|| {
        format!(
            "port {port} on 127.0.0.1 cannot be used; choose another, or none to take a free one"
        )
    })
}

/// Our own runtime and what it runs from.
struct Containers {
    runtime: runtime::Runtime,
    images: images::Store,
}

impl Containers {
    async fn open(settings: &Settings, network: &netns::Control) -> anyhow::Result<Self> {
        let images = open_images(settings)?;
        let pods = pod_network(settings, network.clone())?;
        let config = runtime_config(settings, images.clone(), pods);
        let opened = runtime::Runtime::open(config).await;
        Ok(Self { runtime: opened.context("cannot start the container runtime")?, images })
    }
}

/// The images of a name.
pub fn open_images(settings: &Settings) -> anyhow::Result<images::Store> {
    let config = images::Config {
        registries: settings.registries.clone(),
        ..images::Config::new(settings.paths.data.join("images"))
    };
    images::Store::open(config).context("cannot open the image store")
}

/// Where the runtime of a name keeps what it has made.
fn containers(settings: &Settings) -> PathBuf {
    settings.paths.data.join("containers")
}

/// How the runtime of a name is made.
pub fn runtime_config(
    settings: &Settings,
    images: images::Store,
    network: Arc<dyn runtime::Network>,
) -> runtime::Config {
    runtime::Config {
        root: containers(settings),
        run_dir: settings.paths.run.join("pods"),
        images: Arc::new(images),
        network,
        executable: "/proc/self/exe".into(),
        cgroup_root: crate::scope::delegated(),
    }
}

/// What gives pods their network: the node process, or CNI plugins.
fn pod_network(
    settings: &Settings,
    network: netns::Control,
) -> anyhow::Result<Arc<dyn runtime::Network>> {
    let Some(conf_dir) = &settings.cni_conf_dir else { return Ok(Arc::new(network)) };
    let (conf_dir, bin_dirs) = (conf_dir.clone(), settings.cni_bin_dirs.clone());
    let cache_dir = settings.paths.data.join("cni");
    Ok(Arc::new(PluginNetwork::new(network, conf_dir, bin_dirs, cache_dir)?))
}

async fn start_api(
    settings: &Settings,
    plan: &Plan,
    listener: TcpListener,
    kubelet_port: Option<u16>,
    network: &netns::Control,
    shutdown: &CancellationToken,
) -> anyhow::Result<(ApiServer, store::Store)> {
    let store = if settings.ephemeral {
        store::memory()
    } else if let Some(elsewhere) = &settings.store {
        open_etcd(elsewhere).await.context("cannot use the store that --store names")?
    } else {
        store::open(&settings.paths.data.join("store"), store::Options::default())
            .context("cannot open the store")?
    };
    let own = settings.paths.context();
    let node_ip = plan.node;
    let shared = settings.store.is_some();
    let port = if shared { API_PORT } else { listener.local_addr()?.port() };
    let server = ApiServer::start(apiserver::Config {
        store: store.clone(),
        shared,
        data_dir: settings.paths.data.clone(),
        advertise: SocketAddr::new(plan.node, port),
        listen: vec![listener],
        service_cidr: plan.services.clone(),
        cluster_domain: DOMAIN.into(),
        extra_sans: vec![own.clone()],
        node_address: Arc::new(move |node, object| {
            if let Some(port) = kubelet_port.filter(|_| node == own) {
                return Some(on_loopback(port));
            }
            let reported = KubeletAddress::reported(object)?;
            let port = reported.address.port();
            // Every node of ours has this address to its own pods. That of another cluster folder on
            // this machine has another port here; one with the same port is on another machine.
            if reported.address.ip() == node_ip && kubelet_port != Some(port) {
                return Some(on_loopback(port));
            }
            Some(reported)
        }),
        dial: dial::through(network.clone()),
        access: access(&settings.access),
        runtime_config: settings.access.runtime_config.clone(),
        in_process: [Component::Scheduler, Component::ControllerManager]
            .into_iter()
            .filter(|component| settings.runs(*component))
            .filter_map(|component| Some(component.to_possible_value()?.get_name().to_owned()))
            .collect(),
        metrics: Box::new(controllers::register_metrics),
        shutdown: shutdown.clone(),
    })
    .await
    .context("cannot start the API server")?;
    Ok((server, store))
}

/// A kubelet of this machine: they listen on loopback, where the node's address does not lead.
fn on_loopback(port: u16) -> KubeletAddress {
    KubeletAddress { address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), ours: true }
}

/// The API server's files.
fn access(files: &cli::access::Access) -> apiserver::Access {
    apiserver::Access {
        tokens: files.token_auth_file.clone(),
        authentication: files.authentication_config.clone(),
        authorization: files.authorization_config.clone(),
        modes: apiserver::Modes {
            modes: files.authorization_mode.clone(),
            policy_file: files.authorization_policy_file.clone(),
            webhook_config_file: files.authorization_webhook_config_file.clone(),
            webhook_authorized_ttl: files.authorization_webhook_cache_authorized_ttl.clone(),
            webhook_unauthorized_ttl: files.authorization_webhook_cache_unauthorized_ttl.clone(),
        },
        encryption: files.encryption_provider_config.clone(),
        encryption_reload: files.encryption_provider_config_automatic_reload.unwrap_or_default(),
        audit: crate::audit::options(&files.audit),
    }
}

/// The store of another machine's etcd.
async fn open_etcd(elsewhere: &StoreAddress) -> anyhow::Result<store::Store> {
    let StoreAddress { address, ca, cert, key } = elsewhere.clone();
    let hosts = dial::to_hosts();
    let dial: store::etcd::Dial =
        Arc::new(move |host, port| hosts(apiserver::webhook::Place::Host(host, port)));
    let files = store::etcd::TlsFiles { ca, cert, key };
    let options = store::etcd::EtcdOptions::parse(&address, files, dial)?;
    Ok(store::Store::new(store::Etcd::connect(&options).await?))
}

/// How long the administrator's certificate is kept before a new one is made.
const ADMIN_AGE_MAX: Duration = Duration::from_hours(4320);

/// Leaves the administrator's credentials for the command line: those of the last start while they are
/// good, so that kubeconfigs people have copied go on working.
fn write_admin(settings: &Settings, server: &ApiServer, port: u16) -> anyhow::Result<()> {
    let address = format!("https://127.0.0.1:{port}");
    let ca_pem = server.pki().ca_pem();
    if let Some(mut known) = Admin::read(&settings.paths, ADMIN_AGE_MAX)
        && known.ca_pem == ca_pem
    {
        if known.server != address {
            known.server = address;
            known.write(&settings.paths)?;
        }
        return Ok(());
    }
    let admin = server.pki().issue_client("kubernetes-admin", &["system:masters"])?;
    let (cert_pem, key_pem) = (admin.cert_pem, admin.key_pem);
    Admin { server: address, ca_pem: ca_pem.to_owned(), cert_pem, key_pem }.write(&settings.paths)
}

/// A client that acts as `user`.
fn component(server: &ApiServer, user: &str, groups: &[&str]) -> kube::Client {
    let groups = groups.iter().copied().chain(["system:authenticated"]).map(str::to_owned);
    client::in_process(server.as_user(UserInfo {
        name: user.to_owned(),
        groups: groups.collect(),
        ..UserInfo::default()
    }))
}

/// A client that acts as service account `name` of kube-system, as stock controllers do.
fn service_account(server: &ApiServer, name: &str) -> kube::Client {
    component(
        server,
        &format!("system:serviceaccount:kube-system:{name}"),
        &["system:serviceaccounts", "system:serviceaccounts:kube-system"],
    )
}

/// Signs certificates for the controllers with the cluster's authority.
fn sign(server: &ApiServer) -> Arc<controllers::Sign> {
    let pki = server.pki().clone();
    Arc::new(move |order| {
        let purposes = (order.client, order.server);
        let signed = pki.sign_request(order.request_pem, purposes, order.validity);
        signed.map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    })
}

/// What components need of the node's network.
struct Link {
    network: netns::Control,
    /// The node's own addresses there.
    gateways: Vec<IpAddr>,
    plan: Plan,
    forwards: Vec<netns::Forward>,
}

fn start_components(
    tasks: &mut Tasks,
    server: &ApiServer,
    informers: &Informers,
    link: &Link,
    settings: &Settings,
) -> anyhow::Result<()> {
    if settings.runs(Component::Scheduler) {
        start_scheduler(tasks, server, informers, settings)?;
    }
    if settings.runs(Component::ControllerManager) {
        start_controllers(tasks, server, informers, link, settings);
    }
    if settings.runs(Component::Proxy) {
        start_proxy(tasks, server, informers, link, settings);
    }
    if settings.ingress {
        start_ingress(tasks, server, informers, link, settings);
    }
    if settings.runs(Component::Dns) {
        start_dns(tasks, server, informers, &link.plan, settings);
    }
    Ok(())
}

/// Runs `work` while this process holds the Lease `name`, again and again until `shutdown`; without an
/// election once, and until then.
async fn led<F>(
    election: Option<client::Election>,
    shutdown: CancellationToken,
    mut work: impl FnMut(CancellationToken) -> anyhow::Result<F>,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let Some(election) = election else { return work(shutdown)?.await };
    while !shutdown.is_cancelled() {
        let Some(term) = election.win(&shutdown).await else { break };
        let held = term.held();
        let done = match work(held.clone()) {
            Ok(work) => work.await,
            Err(error) => Err(error),
        };
        let ended = held.is_cancelled();
        term.resign().await;
        if !ended {
            return done;
        }
        // Work that was cut short by the loss of the Lease has failed for that reason.
        if let Err(error) = done {
            tracing::debug!("{error:#}");
        }
    }
    Ok(())
}

/// The election for `name`, where there is one.
fn election(
    server: &ApiServer,
    settings: &Settings,
    user: &str,
    name: &str,
) -> Option<client::Election> {
    // Servers on one store must not do everything twice.
    let shared = settings.store.is_some();
    if !(settings.leader_elect || shared) {
        return None;
    }
    // A daemon that comes back is the same candidate: it need not wait for its own Lease to expire.
    let mut identity = settings.paths.context();
    if shared {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        identity = format!("{}_{identity}", host.trim());
    }
    Some(client::Election::new(component(server, user, &[]), name, &identity))
}

fn start_scheduler(
    tasks: &mut Tasks,
    server: &ApiServer,
    informers: &Informers,
    settings: &Settings,
) -> anyhow::Result<()> {
    let user = "system:kube-scheduler";
    let read = |settings: &Settings| match &settings.scheduler_config {
        Some(file) => crate::up::scheduler_config(file),
        None => Ok(scheduler::configuration::Configuration::default()),
    };
    // A mistake is told at the start, not when the Lease is won.
    read(settings)?;
    let client = component(server, user, &[]);
    let election = election(server, settings, user, "kube-scheduler");
    let (informers, settings) = (informers.clone(), settings.clone());
    let work = move |stop| {
        let (client, informers) = (client.clone(), informers.clone());
        let config = scheduler::Config { client, informers, configuration: read(&settings)? };
        Ok(async move { Ok(scheduler::run(config, stop).await?) })
    };
    tasks.spawn("scheduler", led(election, tasks.shutdown.clone(), work));
    Ok(())
}

fn start_controllers(
    tasks: &mut Tasks,
    server: &ApiServer,
    informers: &Informers,
    link: &Link,
    settings: &Settings,
) {
    let user = "system:kube-controller-manager";
    let election = election(server, settings, user, "kube-controller-manager");
    let (server, informers, settings) = (server.clone(), informers.clone(), settings.clone());
    let cluster = link.plan.cluster;
    let work = move |stop| {
        let accounts = server.clone();
        let config = controllers::Config {
            client_for: Arc::new(move |name: &str| match name {
                controllers::OURSELVES => component(&accounts, user, &[]),
                name => service_account(&accounts, name),
            }),
            informers: informers.clone(),
            cluster_cidr: cluster.into(),
            root_ca_pem: server.pki().ca_pem().to_owned(),
            sign: sign(&server),
            volumes_dir: settings.paths.data.join("volumes"),
            enabled: settings.controllers.clone(),
        };
        Ok(async move { Ok(controllers::run(config, stop).await?) })
    };
    tasks.spawn("controller manager", led(election, tasks.shutdown.clone(), work));
}

fn start_proxy(
    tasks: &mut Tasks,
    server: &ApiServer,
    informers: &Informers,
    link: &Link,
    settings: &Settings,
) {
    let stop = tasks.shutdown.clone();
    let config = proxy::Config {
        informers: informers.clone(),
        control: link.network.clone(),
        client: service_account(server, "service-controller"),
        place: proxy::Place {
            node: settings.paths.context(),
            addresses: link.gateways.clone(),
            zone: None,
        },
        publish: settings.publish.clone(),
        forwards: link.forwards.clone(),
    };
    let proxied = proxy::run(config, stop);
    tasks.spawn("service proxy", async move {
        proxied.await;
        Ok(())
    });
}

fn start_ingress(
    tasks: &mut Tasks,
    server: &ApiServer,
    informers: &Informers,
    link: &Link,
    settings: &Settings,
) {
    let stop = tasks.shutdown.clone();
    let config = proxy::ingress::Config {
        informers: informers.clone(),
        control: link.network.clone(),
        client: service_account(server, "ingress-controller"),
        place: proxy::Place { node: settings.paths.context(), addresses: Vec::new(), zone: None },
        addresses: settings.publish.clone(),
    };
    tasks.spawn("ingress controller", async move {
        proxy::ingress::run(config, stop).await;
        Ok(())
    });
}

fn start_dns(
    tasks: &mut Tasks,
    server: &ApiServer,
    informers: &Informers,
    plan: &Plan,
    settings: &Settings,
) {
    let feeder = dns::Feeder {
        client: service_account(server, "coredns"),
        informers: informers.clone(),
        socket: settings.paths.dns_socket(),
        domain: DOMAIN.into(),
        address: plan.dns,
        endpoint: SocketAddr::new(plan.node, 53),
        reverse: REVERSE.map(str::to_owned).to_vec(),
    };
    let stop = tasks.shutdown.clone();
    tasks.spawn("DNS feeder", async move {
        feeder.run(stop).await;
        Ok(())
    });
}

fn start_kubelet(
    tasks: &mut Tasks,
    server: &ApiServer,
    settings: &Settings,
    listener: TcpListener,
    runtime: Option<&runtime::Runtime>,
    link: &Link,
    ending: kubelet::Ending,
) -> anyhow::Result<Arc<plugin::Drivers>> {
    let drivers: Arc<plugin::Drivers> = Arc::default();
    let node_name = settings.paths.context();
    let user = format!("system:node:{node_name}");
    let certificate = server.pki().issue_server(
        &user,
        &[node_name.clone(), link.plan.node.to_string(), "127.0.0.1".into()],
    )?;
    let client = component(server, &user, &["system:nodes"]);
    let cri = cri::client(runtime, settings.runtime_endpoint.as_deref())?;
    let member = Member {
        node_name,
        client,
        cri,
        own_log: Some(settings.paths.log("daemon")),
        listen: listener,
        tls: kubelet::Tls {
            cert_pem: certificate.cert_pem,
            key_pem: certificate.key_pem,
            client_ca_pem: server.pki().ca_pem().to_owned(),
        },
        cluster_dns: vec![link.plan.dns],
        cluster_domain: DOMAIN.into(),
        node_ip: link.plan.node,
        dialer: Arc::new(Dialer(link.network.clone())),
        labels: BTreeMap::new(),
        ending,
        drivers: drivers.clone(),
    };
    let config = member.config(&settings.kubelet, &settings.paths);
    let stop = tasks.shutdown.clone();
    tasks.spawn("kubelet", async move { Ok(Box::pin(kubelet::run(config, stop)).await?) });
    Ok(drivers)
}

/// Makes, attaches and enlarges volumes of the node's CSI drivers, for those that want it.
fn start_csi(
    tasks: &mut Tasks,
    server: &ApiServer,
    informers: &Informers,
    node: &str,
    drivers: Arc<plugin::Drivers>,
) {
    let client = service_account(server, "csi-controller");
    let stop = tasks.shutdown.clone();
    let work = controllers::csi::run(client, informers.clone(), node.to_owned(), drivers, stop);
    tasks.spawn("CSI controllers", async move {
        Box::pin(work).await;
        Ok(())
    });
}

/// Keeps the folder of `--manifests` applied, as an administrator would.
fn start_manifests(
    tasks: &mut Tasks,
    server: &ApiServer,
    settings: &Settings,
) -> Option<Arc<Mutex<Kept>>> {
    let folder = settings.manifests.clone()?;
    let client = component(server, "system:addon-manager", &["system:masters"]);
    let keeper = Keeper::new(client, folder);
    let kept = keeper.kept();
    let stop = tasks.shutdown.clone();
    tasks.spawn("keeper of manifests", async move {
        keeper.run(stop).await;
        Ok(())
    });
    Some(kept)
}

/// Reaches pods from a process in the host's network.
pub struct Dialer(pub netns::Control);

#[async_trait::async_trait]
impl kubelet::Dialer for Dialer {
    async fn connect(&self, peer: SocketAddr) -> std::io::Result<tokio::net::TcpStream> {
        self.0.connect_tcp(peer).await.map_err(std::io::Error::other)
    }
}

async fn node_ready(informers: &Informers, name: &str) {
    let nodes = informers.get::<Node>();
    let mut changes = std::pin::pin!(nodes.subscribe());
    while futures::StreamExt::next(&mut changes).await.is_some() {
        if nodes.get("", name).as_deref().is_some_and(control::is_ready) {
            return;
        }
    }
}
