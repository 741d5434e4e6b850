//! `rootlet agent`: the kubelet alone, as a node of any cluster, with our runtime or over the CRI socket
//! of another.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use apiserver::pki::Pki;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cli::args::Agent;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::member::Member;
use crate::node::DOMAIN;
use crate::paths::Paths;
use crate::settings::Settings;
use crate::{control, cri, daemon, lock, logging, member, up, userns};

/// The kubelet's usual port.
const KUBELET_PORT: u16 = 10250;
/// How long the kubelet and the servers may take to end.
const DRAIN: Duration = Duration::from_secs(5);
/// How often the node is looked at until it is Ready.
const LOOK: Duration = Duration::from_millis(200);

/// What the command hands to the process that runs the kubelet, which is itself, executed anew.
#[derive(Serialize, Deserialize)]
struct Order {
    settings: Settings,
    arguments: Agent,
}

/// Carries out `rootlet agent`: joins the namespaces that the pods live in, and runs the kubelet there.
pub fn agent(arguments: &Agent) -> anyhow::Result<std::convert::Infallible> {
    let mut arguments = arguments.clone();
    arguments.kubeconfig = up::whole("--kubeconfig", &arguments.kubeconfig)?;
    if let Some(file) = &mut arguments.proxy_kubeconfig {
        *file = up::whole("--proxy-kubeconfig", file)?;
    }
    arguments.kubelet = member::checked(&arguments.kubelet, &[])?;
    let paths = Paths::of(&arguments.cluster.name)?;
    paths.create()?;
    let held = lock::wait(&paths.lock("up")).context("cannot lock the node's folder")?;
    if let Some(pid) = lock::holder(&paths.lock("agent")) {
        bail!("`rootlet agent --name {}` runs already (process {pid})", paths.name);
    }
    let settings = match lock::holder(&paths.lock("daemon")) {
        // The cluster's own settings stay as they are.
        Some(_) => Settings::read(&paths.settings())?.context("the settings are gone")?,
        None => up::settings(
            &cli::args::Up {
                cluster: arguments.cluster.clone(),
                registries: arguments.runtime.registries.clone(),
                publish: arguments.runtime.publish.clone(),
                container_runtime_endpoint: arguments.container_runtime_endpoint.clone(),
                controllers: vec!["*".to_owned()],
                ..cli::args::Up::default()
            },
            paths.clone(),
        )?,
    };
    if arguments.container_runtime_endpoint.is_none()
        && lock::holder(&paths.lock("runtime")).is_some()
    {
        bail!(
            "a runtime has the pods of name {0:?}: `rootlet up` needs --disable kubelet; `rootlet cri` is \
             used with --container-runtime-endpoint unix://{1}",
            paths.name,
            paths.cri_socket().display()
        );
    }
    if lock::holder(&paths.lock("daemon")).is_none() {
        settings.write()?;
    } else if arguments.proxy_kubeconfig.is_some() {
        bail!("--proxy-kubeconfig: the proxy of cluster {:?} serves this node", paths.name);
    }
    let place = place(&arguments, &paths)?;
    let order = Order { settings, arguments };
    let file = paths.run.join("agent.json");
    cli::kubeconfig::write(&file, &serde_json::to_string(&order)?)?;
    let file = file.to_str().context("the runtime folder's path is not UTF-8")?.to_owned();
    // The lock ends with this process image, and the next one takes its own.
    let _held = held;
    match place {
        Some(pid) => userns::join(pid, &["agent-inside", &file]),
        None => userns::again(&["agent-inside", &file]),
    }
}

/// The process whose namespaces the kubelet has to share, since mounts it makes are for the runtime:
/// the node process, or somebody else's runtime. `None` when those are the caller's.
fn place(arguments: &Agent, paths: &Paths) -> anyhow::Result<Option<u32>> {
    let Some(socket) = &arguments.container_runtime_endpoint else {
        return up::start_node(paths).map(Some);
    };
    let failed = || format!("--container-runtime-endpoint: nobody serves {}", socket.display());
    let stream = UnixStream::connect(socket).with_context(failed)?;
    let peer = rustix::net::sockopt::socket_peercred(stream.as_fd()).with_context(failed)?;
    let pid = u32::try_from(peer.pid.as_raw_nonzero().get())?;
    let namespace =
        |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let elsewhere = ["user", "mnt"]
        .into_iter()
        .any(|kind| namespace(&pid.to_string(), kind) != namespace("self", kind));
    Ok(elsewhere.then_some(pid))
}

/// The process of `rootlet agent`, in the namespaces of its pods.
pub fn run(order: &str) -> anyhow::Result<()> {
    let text = std::fs::read(order).with_context(|| format!("cannot read {order}"))?;
    let order: Order = serde_json::from_slice(&text).context("the order is damaged")?;
    let paths = order.settings.paths.clone();
    let held = lock::take(&paths.lock("agent"))?.context("an agent runs already")?;
    let own = order.arguments.container_runtime_endpoint.is_none();
    let runtime = if own {
        Some(lock::take(&paths.lock("runtime"))?.context("a runtime runs already")?)
    } else {
        None
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    logging::start(None);
    let threads = daemon::threads()?;
    let outcome = threads.block_on(serve(&order));
    threads.shutdown_timeout(DRAIN);
    let _ = std::fs::remove_file(paths.run.join("agent.json"));
    if own {
        let alive = *outcome.as_ref().unwrap_or(&true);
        cri::tidy(&paths, &paths.cri_socket(), alive)?;
    }
    drop((runtime, held));
    outcome.map(drop)
}

/// Runs the kubelet until asked to end; returns whether pods go on running.
async fn serve(order: &Order) -> anyhow::Result<bool> {
    use tokio::signal::unix::{SignalKind, signal};
    let Order { settings, arguments } = order;
    let paths = &settings.paths;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let own = match &arguments.container_runtime_endpoint {
        None => Some(cri::open(settings, arguments.proxy_kubeconfig.is_none()).await?),
        Some(_) => None,
    };
    let runtime = own.as_ref().map(|(runtime, _)| runtime.clone());
    let (shutdown, serving) = (CancellationToken::new(), CancellationToken::new());
    let (down, mut asked) = mpsc::channel::<oneshot::Sender<()>>(1);
    let mut sockets = Vec::new();
    if let Some((runtime, images)) = own {
        let listener = cri::listen(&paths.cri_socket())?;
        sockets.push(tokio::spawn(cri::serve_cri(runtime, listener, serving.clone())));
        let state =
            control::State { started: Instant::now(), images: Some(images), down, cluster: None };
        sockets.push(control::serve(&paths.runtime_socket(), state, serving.clone()).await?);
    }
    let client = ::client::from_kubeconfig(&arguments.kubeconfig, None).await?;
    let config = config(order, client.clone(), runtime.as_ref()).await?;
    let node_name = config.node_name.clone();
    if let Some(file) = &arguments.proxy_kubeconfig {
        let proxy = service_proxy(settings, file, node_name.clone()).await?;
        sockets.push(tokio::spawn(proxy::run(proxy, serving.clone())));
    }
    let mut kubelet = tokio::spawn(kubelet::run(config, shutdown.clone()));

    let ended = |ended: Result<Result<(), kubelet::Error>, tokio::task::JoinError>| match ended {
        Ok(Ok(())) => anyhow::anyhow!("the kubelet has ended"),
        Ok(Err(error)) => anyhow::Error::from(error).context("the kubelet has failed"),
        Err(error) => anyhow::Error::from(error).context("the kubelet panicked"),
    };
    let until_asked = async {
        tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            Some(done) = asked.recv() => Some(done),
        }
    };
    let mut until_asked = std::pin::pin!(until_asked);
    let asked = tokio::select! {
        asked = &mut until_asked => asked,
        over = &mut kubelet => return Err(ended(over)),
        () = ready(&client, &node_name) => {
            println!("ready: node {node_name}");
            tokio::select! {
                asked = &mut until_asked => asked,
                over = &mut kubelet => return Err(ended(over)),
            }
        }
    };
    // The kubelet first: it would start again what the runtime stops.
    shutdown.cancel();
    let _ = tokio::time::timeout(DRAIN, kubelet).await;
    let mut outcome = Ok(());
    if let Some(runtime) =
        runtime.as_ref().filter(|_| arguments.runtime.stop_pods || asked.is_some())
    {
        outcome = daemon::stop_pods(runtime).await;
    }
    if let Some(done) = asked {
        let _ = done.send(());
    }
    serving.cancel();
    let _ = tokio::time::timeout(DRAIN, futures::future::join_all(sockets)).await;
    let alive = runtime.as_ref().map_or(0, runtime::Runtime::pods_alive);
    if alive > 0 {
        eprintln!(
            "{alive} pods go on running; `rootlet agent` finds them again, `rootlet down --name {}` stops them",
            paths.name
        );
    }
    outcome.map(|()| alive > 0)
}

async fn ready(client: &kube::Client, node: &str) {
    let api: Api<Node> = Api::all(client.clone());
    loop {
        if let Ok(Some(found)) = api.get_opt(node).await
            && control::is_ready(&found)
        {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What the service proxy is run with.
async fn service_proxy(
    settings: &Settings,
    file: &Path,
    node: String,
) -> anyhow::Result<proxy::Config> {
    let client = ::client::from_kubeconfig(file, None).await?;
    let control = netns::Control::connect(&settings.paths.node_socket())
        .await
        .context("cannot reach the node process")?;
    let addresses = control.gateways().await.context("cannot reach the node process")?;
    Ok(proxy::Config {
        informers: ::client::Informers::new(client.clone()),
        control,
        client,
        place: proxy::Place { node, addresses, zone: None },
        publish: settings.publish.clone(),
        forwards: Vec::new(),
    })
}

/// What the kubelet is run with.
async fn config(
    order: &Order,
    client: kube::Client,
    runtime: Option<&runtime::Runtime>,
) -> anyhow::Result<kubelet::Config> {
    let Order { settings, arguments } = order;
    let paths = &settings.paths;
    let access = Access::read(&arguments.kubeconfig).await?;
    let node_name = match &arguments.node_name {
        Some(name) => name.clone(),
        // Beside a cluster of the same name this is the node whose traffic that one's proxy leads.
        None if lock::holder(&paths.lock("daemon")).is_some() => paths.context(),
        None => rustix::system::uname().nodename().to_string_lossy().to_lowercase(),
    };
    let node_ip = match arguments.node_ip {
        Some(ip) => ip,
        None => access.way_there()?,
    };
    let listen = listen(node_ip, arguments.port)?;
    let configured = member::configuration(&arguments.kubelet)?;
    let client_ca_file = arguments.client_ca_file.as_ref().or(configured.client_ca_file.as_ref());
    let client_ca_pem = match client_ca_file {
        Some(file) => std::fs::read_to_string(file).with_context(|| {
            format!("the authority of the kubelet's callers: cannot read {}", file.display())
        })?,
        None => access.ca_pem.context(
            "the kubeconfig names no authority of the cluster; give that of the kubelet's callers with \
             --client-ca-file",
        )?,
    };
    // Nobody but ourselves can vouch for it, as for a kubelet's certificate that was not ordered.
    let pair = Pki::load_or_create(&paths.data.join("kubelet-pki"))?.issue_server(
        &format!("system:node:{node_name}"),
        &[node_name.clone(), node_ip.to_string()],
    )?;
    let cri = cri::client(runtime, arguments.container_runtime_endpoint.as_deref())?;
    let cluster_dns = match (&arguments.cluster_dns[..], &configured.cluster_dns[..]) {
        ([], []) => cluster_dns(&client).await,
        ([], asked) | (asked, _) => asked.to_vec(),
    };
    let member = Member {
        node_name,
        client,
        cri,
        own_log: None,
        listen,
        tls: kubelet::Tls { cert_pem: pair.cert_pem, key_pem: pair.key_pem, client_ca_pem },
        cluster_dns,
        cluster_domain: arguments
            .cluster_domain
            .clone()
            .or(configured.cluster_domain)
            .unwrap_or_else(|| DOMAIN.into()),
        node_ip,
        dialer: dialer(paths).await?,
        labels: arguments.node_labels.iter().cloned().collect::<BTreeMap<_, _>>(),
        ending: kubelet::Ending::default(),
        drivers: Arc::default(),
    };
    Ok(member.config(&arguments.kubelet, paths))
}

/// The kubelet's socket: on the port asked for, or the usual one, or a free one.
fn listen(ip: IpAddr, port: Option<u16>) -> anyhow::Result<TcpListener> {
    let ports = port.map_or(vec![KUBELET_PORT, 0], |port| vec![port]);
    let mut problem = None;
    for port in ports {
        match TcpListener::bind((ip, port)) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                return Ok(listener);
            }
            Err(error) => problem = Some((port, error)),
        }
    }
    let (port, error) = problem.context("there is a port to try")?;
    Err(error).with_context(|| {
        format!("the kubelet cannot listen at {ip}:{port}; see --node-ip and --port")
    })
}

/// Where pods look up names, as the cluster's DNS Service says; nowhere where there is none.
async fn cluster_dns(client: &kube::Client) -> Vec<IpAddr> {
    let api: Api<Service> = Api::namespaced(client.clone(), "kube-system");
    let service = api.get_opt("kube-dns").await.ok().flatten();
    let spec = service.and_then(|service| service.spec).unwrap_or_default();
    let addresses: Vec<IpAddr> =
        spec.cluster_ips.iter().flatten().filter_map(|address| address.parse().ok()).collect();
    if addresses.is_empty() {
        tracing::warn!("the cluster has no Service kube-system/kube-dns: pods get the host's DNS");
    }
    addresses
}

/// Reaches pods where the node process carries their traffic, and else from here.
async fn dialer(paths: &Paths) -> anyhow::Result<Arc<dyn kubelet::Dialer>> {
    if lock::holder(&paths.lock("node")).is_none() {
        return Ok(Arc::new(Direct));
    }
    let control = netns::Control::connect(&paths.node_socket())
        .await
        .context("cannot reach the node process")?;
    Ok(Arc::new(daemon::Dialer(control)))
}

/// Connects from this process.
struct Direct;

#[async_trait::async_trait]
impl kubelet::Dialer for Direct {
    async fn connect(&self, peer: SocketAddr) -> std::io::Result<tokio::net::TcpStream> {
        tokio::net::TcpStream::connect(peer).await
    }
}

/// What a kubeconfig says of the cluster.
struct Access {
    server: http::Uri,
    ca_pem: Option<String>,
}

impl Access {
    async fn read(file: &Path) -> anyhow::Result<Self> {
        let broken = || format!("--kubeconfig: {} cannot be used", file.display());
        let kubeconfig = Kubeconfig::read_from(file).with_context(broken)?;
        let current = kubeconfig.current_context.clone();
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig.clone(), &KubeConfigOptions::default())
                .await
                .with_context(broken)?;
        let context =
            kubeconfig.contexts.iter().find(|named| Some(&named.name) == current.as_ref());
        let name = context.and_then(|named| named.context.as_ref()).map(|named| &named.cluster);
        let cluster = kubeconfig
            .clusters
            .iter()
            .find(|named| Some(&named.name) == name)
            .and_then(|named| named.cluster.as_ref());
        let data = cluster.and_then(|cluster| cluster.certificate_authority_data.as_ref());
        let path = cluster.and_then(|cluster| cluster.certificate_authority.as_ref());
        let ca_pem = match (data, path) {
            (Some(data), _) => {
                Some(String::from_utf8(STANDARD.decode(data).with_context(broken)?)?)
            }
            (None, Some(path)) => {
                let path = file.parent().unwrap_or(Path::new("/")).join(path);
                Some(std::fs::read_to_string(&path).with_context(broken)?)
            }
            (None, None) => None,
        };
        Ok(Self { server: config.cluster_url, ca_pem })
    }

    /// The address of this machine from which the API server is reached. Nothing is sent for that.
    fn way_there(&self) -> anyhow::Result<IpAddr> {
        let host = self.server.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = self.server.port_u16().unwrap_or(443);
        let Ok(server) = host.parse::<IpAddr>() else {
            bail!("--node-ip is needed: the API server is known by a name, {host}");
        };
        let any: IpAddr = match server {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket
            .connect((server, port))
            .with_context(|| format!("there is no way to the API server at {server}"))?;
        Ok(socket.local_addr()?.ip())
    }
}
