//! Namespaces that play host and pods.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use netns::{AttachRequest, Attachment, Bandwidth, Control, Node, NodeConfig};
use nix::sched::{CloneFlags, setns, unshare};

const INNER: &str = "NETNS_TEST_INNER";
/// The host's address in the namespace that plays the host.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
pub const TIMEOUT: Duration = Duration::from_secs(5);

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

pub fn config() -> NodeConfig {
    NodeConfig {
        pod_cidr: "10.42.0.0/24".parse().unwrap(),
        gateway: "10.42.0.1".parse().unwrap(),
        service_cidr: "10.43.0.0/16".parse().unwrap(),
        ipv6: None,
        tell_ipv6_only: false,
        mtu: 65520,
        forwards: Vec::new(),
        existing: None,
    }
}

/// A server that sends every datagram back.
pub fn echo(socket: std::net::UdpSocket) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    });
}

/// A network namespace; closures run inside it on threads of their own.
pub struct Pod {
    pub namespace: OwnedFd,
}

impl Pod {
    pub fn new() -> Self {
        let namespace = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
        });
        Self { namespace: namespace.join().unwrap() }
    }

    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = self.namespace.try_clone().unwrap();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            job()
        })
        .join()
        .unwrap()
    }

    pub async fn attach(&self, control: &Control, id: &str) -> Attachment {
        let request = AttachRequest {
            id: id.into(),
            ifname: "eth0".into(),
            member: Some(id.into()),
            bandwidth: Bandwidth::default(),
            address: None,
            anew: false,
        };
        control.attach(request, self.namespace.as_fd()).await.unwrap()
    }

    /// A server that answers each connection with `banner` and then echoes.
    pub fn serve(&self, port: u16, banner: &'static str) {
        let listener = self.run(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
        serve(listener, banner);
    }

    /// What a server says first, and whom it sees.
    pub fn ask(&self, server: impl Into<SocketAddr>) -> std::io::Result<String> {
        let server = server.into();
        self.run(move || ask(server))
    }
}

pub fn serve(listener: TcpListener, banner: &'static str) {
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
pub fn ask(server: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"hello")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

pub async fn start() -> (Node, Control, tempfile::TempDir) {
    start_with(config()).await
}

pub async fn start_with(config: NodeConfig) -> (Node, Control, tempfile::TempDir) {
    let node = Node::start(config).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    node.serve_control(UnixListener::bind(&path).unwrap()).unwrap();
    let control = Control::connect(&path).await.unwrap();
    (node, control, dir)
}

pub fn run(name: &str, test: impl Future<Output = ()>) {
    if inside(name) {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(test);
    }
}
