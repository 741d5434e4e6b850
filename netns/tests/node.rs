//! The data plane as an unprivileged user sees it.
//!
//! The test binary starts itself again inside a user namespace and a network namespace that plays
//! the host ("inner" tests below); pods are network namespaces with a thread in them. Nothing of
//! the machine's own network is used.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use netns::{
    AttachRequest, Attachment, Backend, Control, Forward, Frontend, Node, NodeConfig, Protocol,
    ServiceTable,
};
use nix::sched::{CloneFlags, setns, unshare};

const INNER: &str = "NETNS_TEST_INNER";
/// The host's address in the namespace that plays the host.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the test of the same name again inside fresh namespaces; true if this is that run.
fn inside(name: &str) -> bool {
    if std::env::var_os(INNER).is_some() {
        return true;
    }
    let probe = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "true"])
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        let message = "SKIPPED: this machine gives no user namespaces (or has no unshare(1))";
        assert!(std::env::var_os("CI").is_none(), "{message}");
        eprintln!("{message}");
        return false;
    }
    let host = format!(
        "ip link set lo up && ip address add {HOST}/32 dev lo && exec \"$0\" --exact --nocapture \"$1\""
    );
    let status = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", &host])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(INNER, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{name} failed inside its namespaces");
    false
}

fn config() -> NodeConfig {
    NodeConfig {
        pod_cidr: "10.42.0.0/24".parse().unwrap(),
        gateway: "10.42.0.1".parse().unwrap(),
        service_cidr: "10.43.0.0/16".parse().unwrap(),
        mtu: 65520,
        forwards: Vec::new(),
        existing: None,
    }
}

/// A network namespace; closures run inside it on threads of their own.
struct Pod {
    namespace: OwnedFd,
}

impl Pod {
    fn new() -> Self {
        let namespace = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
        });
        Self { namespace: namespace.join().unwrap() }
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = self.namespace.try_clone().unwrap();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            job()
        })
        .join()
        .unwrap()
    }

    async fn attach(&self, control: &Control, id: &str) -> Attachment {
        let request = AttachRequest { id: id.into(), ifname: "eth0".into() };
        control.attach(request, self.namespace.as_fd()).await.unwrap()
    }

    /// A server that answers each connection with `banner` and then echoes.
    fn serve(&self, port: u16, banner: &'static str) {
        let listener = self.run(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
        serve(listener, banner);
    }

    /// What a server says first, and whom it sees.
    fn ask(&self, server: impl Into<SocketAddr>) -> std::io::Result<String> {
        let server = server.into();
        self.run(move || ask(server))
    }
}

fn serve(listener: TcpListener, banner: &'static str) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let peer = stream.peer_addr().unwrap().ip();
                let _ = stream.write_all(format!("{banner} {peer}\n").as_bytes());
                let mut bytes = Vec::new();
                let _ = stream.read_to_end(&mut bytes);
                let _ = stream.write_all(&bytes);
            });
        }
    });
}

/// Sends, half-closes, and reads to the end: the banner line and the echo.
fn ask(server: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"hello")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

async fn start() -> (Node, Control, tempfile::TempDir) {
    start_with(config()).await
}

async fn start_with(config: NodeConfig) -> (Node, Control, tempfile::TempDir) {
    let node = Node::start(config).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    node.serve_control(UnixListener::bind(&path).unwrap()).unwrap();
    let control = Control::connect(&path).await.unwrap();
    (node, control, dir)
}

fn run(name: &str, test: impl Future<Output = ()>) {
    if inside(name) {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(test);
    }
}

#[test]
fn pods_reach_each_other_and_keep_their_addresses() {
    run("pods_reach_each_other_and_keep_their_addresses", async {
        let (node, control, _dir) = start().await;
        let (a, b) = (Pod::new(), Pod::new());
        let first = a.attach(&control, "a").await;
        let second = b.attach(&control, "b").await;
        assert_eq!(first.address, IpAddr::from([10, 42, 0, 2]));
        assert_eq!(second.address, IpAddr::from([10, 42, 0, 3]));
        assert_eq!(a.attach(&control, "a").await, first, "attach is idempotent");
        assert_eq!(control.attachments().await.unwrap(), [first.clone(), second.clone()]);
        b.serve(80, "b");
        assert_eq!(a.ask((second.address, 80)).unwrap(), format!("b {}\nhello", first.address));
        let probe = control.connect_tcp((second.address, 80).into()).await.unwrap();
        assert_eq!(probe.local_addr().unwrap().ip(), first.gateway);
        control.detach("a").await.unwrap();
        control.detach("a").await.unwrap();
        let c = Pod::new();
        let third = c.attach(&control, "c").await;
        assert_eq!(third.address, IpAddr::from([10, 42, 0, 4]), "no quick reuse");
        node.shutdown().await;
    });
}

#[test]
fn egress_reaches_the_host_and_refusals_arrive() {
    run("egress_reaches_the_host_and_refusals_arrive", async {
        let (_node, control, _dir) = start().await;
        let pod = Pod::new();
        pod.attach(&control, "a").await;
        let listener = TcpListener::bind((HOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        serve(listener, "host");
        assert_eq!(pod.ask(server).unwrap(), format!("host {HOST}\nhello"));
        let free = TcpListener::bind((HOST, 0)).unwrap().local_addr().unwrap();
        let refused = pod.ask(free).unwrap_err();
        assert!(
            matches!(refused.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset),
            "{refused}"
        );
    });
}

#[test]
fn datagrams_reach_the_host_and_come_back() {
    run("datagrams_reach_the_host_and_come_back", async {
        let (_node, control, _dir) = start().await;
        let pod = Pod::new();
        pod.attach(&control, "a").await;
        let server = UdpSocket::bind((HOST, 0)).unwrap();
        let address = server.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok((length, peer)) = server.recv_from(&mut buffer) {
                server.send_to(&buffer[..length], peer).unwrap();
            }
        });
        pod.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.connect(address).unwrap();
            let mut buffer = vec![0; 65536];
            for size in [1, 1000, 60_000] {
                socket.send(&vec![7; size]).unwrap();
                let received = socket.recv(&mut buffer);
                assert_eq!(received.unwrap_or_else(|e| panic!("{size} bytes: {e}")), size);
            }
        });
        let free = UdpSocket::bind((HOST, 0)).unwrap().local_addr().unwrap();
        pod.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.connect(free).unwrap();
            socket.send(b"anyone?").unwrap();
            let refused = socket.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        });
    });
}

#[test]
fn services_lead_to_their_endpoints() {
    run("services_lead_to_their_endpoints", async {
        let (_node, control, _dir) = start().await;
        let pods = [Pod::new(), Pod::new(), Pod::new()];
        let mut addresses = Vec::new();
        for (number, pod) in pods.iter().enumerate() {
            addresses.push(pod.attach(&control, &number.to_string()).await.address);
        }
        pods[0].serve(8080, "zero");
        pods[1].serve(8080, "one");
        let frontend =
            Frontend { address: [10, 43, 0, 7].into(), protocol: Protocol::Tcp, port: 80 };
        let service = SocketAddr::from((frontend.address, 80));
        let table = |endpoints: &[IpAddr], affinity_s| ServiceTable {
            services: [(
                frontend,
                Backend {
                    endpoints: endpoints.iter().map(|a| (*a, 8080).into()).collect(),
                    affinity_s,
                },
            )]
            .into(),
        };
        let refused = pods[2].ask(service).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "no such service");

        control.apply_services(table(&addresses[..2], None)).await.unwrap();
        let mut answers: Vec<_> = (0..40).map(|_| pods[2].ask(service).unwrap()).collect();
        answers.sort();
        answers.dedup();
        let seen = |banner: &str, who: IpAddr| format!("{banner} {who}\nhello");
        assert_eq!(answers, [seen("one", addresses[2]), seen("zero", addresses[2])]);
        let stream = control.connect_tcp(service).await.unwrap();
        assert_eq!(stream.local_addr().unwrap().ip(), IpAddr::from([10, 42, 0, 1]));

        control.apply_services(table(&addresses[..1], None)).await.unwrap();
        for _ in 0..10 {
            assert_eq!(pods[2].ask(service).unwrap(), seen("zero", addresses[2]));
        }
        let hairpin = pods[0].ask(service).unwrap();
        assert_eq!(hairpin, seen("zero", [10, 42, 0, 1].into()));

        control.apply_services(table(&addresses[..2], Some(60))).await.unwrap();
        let first = pods[2].ask(service).unwrap();
        for _ in 0..20 {
            assert_eq!(pods[2].ask(service).unwrap(), first, "affinity");
        }

        control.apply_services(table(&[], None)).await.unwrap();
        let refused = pods[2].ask(service).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "no endpoints");
    });
}

#[test]
fn forwards_lead_to_servers_on_the_hosts_loopback() {
    run("forwards_lead_to_servers_on_the_hosts_loopback", async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap();
        serve(listener, "api");
        let node_side = SocketAddr::from(([10, 42, 0, 1], 6443));
        let forwards = vec![Forward { node: node_side, host }];
        let (_node, control, _dir) = start_with(NodeConfig { forwards, ..config() }).await;
        let pod = Pod::new();
        pod.attach(&control, "a").await;
        assert_eq!(pod.ask(node_side).unwrap(), "api 127.0.0.1\nhello");
        control.set_forwards(Vec::new()).await.unwrap();
        let refused = pod.ask(node_side).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_pod_cannot_use_another_address() {
    run("a_pod_cannot_use_another_address", async {
        let (_node, control, _dir) = start().await;
        let (a, b) = (Pod::new(), Pod::new());
        a.attach(&control, "a").await;
        let victim = b.attach(&control, "b").await;
        let receiver = b.run(|| UdpSocket::bind("0.0.0.0:9").unwrap());
        receiver.set_read_timeout(Some(TIMEOUT)).unwrap();
        a.run(move || {
            let spoof = std::process::Command::new("ip")
                .args(["address", "add", "10.42.0.99/32", "dev", "eth0"])
                .status();
            assert!(spoof.unwrap().success());
            let socket = UdpSocket::bind("10.42.0.99:0").unwrap();
            socket.send_to(b"spoofed", (victim.address, 9)).unwrap();
            let socket = UdpSocket::bind("10.42.0.2:0").unwrap();
            socket.send_to(b"honest", (victim.address, 9)).unwrap();
        });
        let mut buffer = [0; 16];
        let (length, _) = receiver.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"honest", "the first to arrive");
    });
}
