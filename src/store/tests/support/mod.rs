//! A real etcd for tests.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use store::etcd::{Dial, EtcdOptions, TlsFiles};
use store::{Etcd, Store};

const DEADLINE: Duration = Duration::from_mins(1);

/// An etcd of one member with an empty store; it ends with this value.
pub struct Server {
    child: Child,
    address: String,
    tls: TlsFiles,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

fn dial() -> Dial {
    Arc::new(|host, port| {
        Box::pin(async move { tokio::net::TcpStream::connect((host.as_str(), port)).await })
    })
}

impl Server {
    /// Starts one; `None` where etcd is not installed, which is an error in CI.
    pub async fn start() -> Option<Self> {
        Self::start_with(TlsFiles::default(), &[]).await
    }

    /// Starts one with further arguments, reached with `tls`.
    pub async fn start_with(tls: TlsFiles, arguments: &[String]) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let scheme = if tls.ca.is_some() { "https" } else { "http" };
        let (client, peer) = (free_port(), free_port());
        let (address, peers) = (format!("127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let urls = format!("{scheme}://{address}");
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir.path())
            .args(["--listen-client-urls", &urls, "--advertise-client-urls", &urls])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "CI must have etcd: {error}");
                eprintln!("skipped: etcd cannot be started ({error}): apt-get install etcd-server");
                return None;
            }
        };
        let server = Self { child, address, tls, _dir: dir };
        let until = Instant::now() + DEADLINE;
        while let Err(error) = Etcd::connect(&server.options("ready")).await {
            assert!(Instant::now() < until, "etcd does not answer: {error}");
        }
        Some(server)
    }

    fn options(&self, prefix: &str) -> EtcdOptions {
        let address = format!("etcd://{}/{prefix}", self.address);
        EtcdOptions::parse(&address, self.tls.clone(), dial()).expect("a good address")
    }

    /// A store whose keys begin with `prefix`.
    pub async fn store(&self, prefix: &str) -> Store {
        Store::new(Etcd::connect(&self.options(prefix)).await.expect("it answered before"))
    }
}
