//! Names outside the cluster, resolved as the host resolves them: its hosts file, then its name servers,
//! which get the question as it came.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::cache::{self, Cache, Key};
use crate::metrics::Metrics;

/// How long what the files say is taken for true.
const FRESH: Duration = Duration::from_secs(2);
/// How long a name server may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Rounds over the name servers.
const ROUNDS: usize = 2;
/// Largest datagram taken.
const DATAGRAM_BYTES: usize = 4096;

/// What the host's files say.
#[derive(Debug, Default)]
pub struct Files {
    servers: Vec<SocketAddr>,
    hosts: HashMap<String, Vec<IpAddr>>,
}

impl Files {
    fn parse(resolv_conf: &str, hosts: &str) -> Self {
        let mut files = Self::default();
        for line in resolv_conf.lines() {
            let mut words = line.split_whitespace();
            if words.next() == Some("nameserver")
                && let Some(address) = words.next().and_then(parse_address)
            {
                files.servers.push(SocketAddr::new(address, 53));
            }
        }
        if files.servers.is_empty() {
            // resolv.conf(5): without a name server, the one on the local machine is asked.
            files.servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 53)));
        }
        for line in hosts.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(address) = words.next().and_then(parse_address) else { continue };
            for name in words {
                let name = name.trim_end_matches('.').to_lowercase();
                let known = files.hosts.entry(name).or_default();
                if !known.contains(&address) {
                    known.push(address);
                }
            }
        }
        files
    }

    /// Addresses of `name`, if the hosts file has it. The host's own loopback addresses would lead a pod
    /// to itself, so they are left out; `localhost` is meant that way.
    pub fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let known = self.hosts.get(name)?;
        if name == "localhost" {
            return Some(known.clone());
        }
        let outside: Vec<IpAddr> =
            known.iter().copied().filter(|address| !address.is_loopback()).collect();
        (!outside.is_empty()).then_some(outside)
    }
}

/// An address, whose zone, if it has one, means nothing here.
fn parse_address(text: &str) -> Option<IpAddr> {
    let plain = text.split('%').next().unwrap_or(text);
    plain
        .parse::<Ipv4Addr>()
        .map(IpAddr::V4)
        .or_else(|_| plain.parse::<Ipv6Addr>().map(IpAddr::V6))
        .ok()
}

/// The host's own address as its neighbours know it: what a connection to the outside would come from.
/// `None` on a host that is alone. Looked up anew each time, so it follows the host from network to
/// network; nothing is sent.
pub fn own_address(v4: bool) -> Option<IpAddr> {
    // Documentation addresses (RFC 5737, RFC 3849) are routed as any other.
    let (any, far): (SocketAddr, SocketAddr) = if v4 {
        ((Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::new(192, 0, 2, 255), 9).into())
    } else {
        let far = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        ((Ipv6Addr::UNSPECIFIED, 0).into(), (far, 9).into())
    };
    let socket = std::net::UdpSocket::bind(any).ok()?;
    socket.connect(far).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// The host's resolver.
pub struct Host {
    resolv_conf: PathBuf,
    hosts: PathBuf,
    files: Mutex<Option<(Instant, Arc<Files>)>>,
    cache: Cache,
    metrics: Arc<Metrics>,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
            files: Mutex::default(),
            cache: Cache::default(),
            metrics: Arc::default(),
        }
    }
}

impl Host {
    /// One whose look-ups are counted.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..Self::default() }
    }

    /// The files as they are, or were a moment ago.
    pub fn files(&self) -> Arc<Files> {
        let mut cached = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, files)) = &*cached
            && read.elapsed() < FRESH
        {
            return files.clone();
        }
        // A missing file says as much as an empty one.
        let text = |path: &PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let files = Arc::new(Files::parse(&text(&self.resolv_conf), &text(&self.hosts)));
        *cached = Some((Instant::now(), files.clone()));
        files
    }

    /// Asks these name servers, or else the host's; `None` when none of them answers. One that cannot
    /// or will not say is as good as none while there is another, as the C library has it.
    pub async fn ask(
        &self,
        servers: Option<&[SocketAddr]>,
        question: &[u8],
        tcp: bool,
    ) -> Option<Vec<u8>> {
        let servers = servers.map_or_else(|| self.files().servers.clone(), <[_]>::to_vec);
        let key = Key::of(&servers, question, tcp);
        let kept = key.as_ref().and_then(|key| self.cache.get(key, question, Instant::now()));
        self.metrics.looked_up(kept.is_some());
        if kept.is_some() {
            return kept;
        }
        let answer = ask_in_turn(&servers, question, tcp).await?;
        if let Some(key) = key {
            self.cache.put(key, &answer, Instant::now());
        }
        Some(answer)
    }
}

async fn ask_in_turn(servers: &[SocketAddr], question: &[u8], tcp: bool) -> Option<Vec<u8>> {
    let mut useless = None;
    for _ in 0..ROUNDS {
        for server in servers {
            let asked = async {
                if tcp {
                    ask_tcp(*server, question).await
                } else {
                    ask_udp(*server, question).await
                }
            };
            match tokio::time::timeout(TIMEOUT, asked).await {
                Ok(Ok(answer)) if says_nothing(&answer) => useless = Some(answer),
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "name server"),
                Err(_) => tracing::debug!(%server, "name server does not answer in time"),
            }
        }
        if useless.is_some() {
            return useless;
        }
    }
    None
}

/// SERVFAIL, NOTIMP and REFUSED, as `res_send` of the C library skips them.
fn says_nothing(answer: &[u8]) -> bool {
    matches!(cache::code(answer), Some(2 | 4 | 5))
}

async fn ask_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    // A port of its own for each question, chosen by the kernel, makes answers hard to forge.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; DATAGRAM_BYTES];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= 12 && answer[..2] == question[..2] {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, question).await?;
    read_message(&mut stream).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Writes a message with its length before it (RFC 1035, 4.2.2).
pub async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// Reads a message with its length before it; `None` at the end.
pub async fn read_message(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match stream.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name server that answers with `code`, and counts.
    async fn server(code: u8) -> (SocketAddr, Arc<std::sync::atomic::AtomicUsize>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (address, count) = (socket.local_addr().unwrap(), Arc::default());
        let counted: Arc<std::sync::atomic::AtomicUsize> = Arc::clone(&count);
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                buffer[2..4].copy_from_slice(&[0x81, 0x80 | code]);
                let _ = socket.send_to(&buffer[..length], peer).await;
            }
        });
        (address, count)
    }

    #[tokio::test]
    async fn servers_that_say_nothing_are_passed_over() {
        let question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
        let ((refuses, asked), (absent, _)) = (server(5).await, server(3).await);
        let host = Host::default();
        let answer = host.ask(Some(&[refuses, absent]), question, false).await.unwrap();
        assert_eq!(cache::code(&answer), Some(3));
        let answer = host.ask(Some(&[refuses]), question, false).await.unwrap();
        assert_eq!(cache::code(&answer), Some(5), "better than nothing");
        assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 2, "once a round is enough");
    }

    /// A VPN that is joined puts its name servers there.
    #[test]
    fn other_name_servers_are_asked_when_the_file_says_so() {
        let folder = std::env::temp_dir().join(format!("rootlet-dns-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let resolv_conf = folder.join("resolv.conf");
        let host = Host { resolv_conf: resolv_conf.clone(), ..Host::default() };
        let deadline = Instant::now() + FRESH * 10;
        for server in ["192.0.2.1", "198.51.100.1"] {
            std::fs::write(&resolv_conf, format!("nameserver {server}\n")).unwrap();
            let want = [SocketAddr::new(server.parse().unwrap(), 53)];
            while host.files().servers != want {
                assert!(Instant::now() < deadline, "{:?}", host.files().servers);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn files_are_read_as_the_host_reads_them() {
        let files = Files::parse(
            "# comment\nsearch x\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\nnameserver bad\n",
            "127.0.0.1 localhost\n127.0.1.1 laptop\n192.0.2.7 Server.example server # it\n",
        );
        let servers: Vec<String> = files.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.2:53", "[fe80::1]:53"]);
        let one = |text: &str| Some(vec![text.parse::<IpAddr>().unwrap()]);
        assert_eq!(files.addresses("server.example"), one("192.0.2.7"));
        assert_eq!(files.addresses("localhost"), one("127.0.0.1"));
        assert_eq!(files.addresses("laptop"), None);
        assert_eq!(Files::parse("", "").servers, ["127.0.0.1:53".parse().unwrap()]);
    }
}
