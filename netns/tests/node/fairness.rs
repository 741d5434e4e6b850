//! One pod floods the gateway; another is served all the same.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use crate::harness::{HOST, Pod, TIMEOUT, echo, run, serve, start};

/// How often the modest pod asks.
const ASKED: usize = 30;
/// How often it is to be answered at once. A machine with two processors may be busy with other tests'
/// floods; without shares it is hardly ever.
const ENOUGH: usize = 20;
/// Soon enough for a person, and too soon for a first packet that was lost: TCP repeats it after a second.
const SOON: Duration = Duration::from_millis(900);

/// A pod that sends as fast as it can until it is stopped.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// `prepare` runs in the pod; what it makes is called with a number that goes up.
    fn begin<F: FnMut(u64) + Send + 'static>(
        pod: &Pod,
        prepare: impl FnOnce() -> F + Send + 'static,
    ) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let mut send = pod.run(prepare);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                send(count.fetch_add(1, Ordering::Relaxed));
            }
        });
        let flood = Self { stop, sent, thread: Some(thread) };
        // The limits are per second: it has to be well beyond what may be begun at once.
        while flood.sent.load(Ordering::Relaxed) < 10_000 {
            std::thread::yield_now();
        }
        flood
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        eprintln!("{} packets were sent", self.sent.load(Ordering::Relaxed));
    }
}

/// The first packet of a connection (RFC 9293, 3.1), without its IP header.
fn syn(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend_from_slice(&from.port().to_be_bytes());
    segment.extend_from_slice(&to.port().to_be_bytes());
    segment.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let (source, destination) = (from.ip().octets(), to.ip().octets());
    let mut all = [source, destination, [0, 6, 0, 20]].concat();
    all.extend_from_slice(&segment);
    let words = all.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}

async fn two_pods(control: &netns::Control) -> (Pod, Ipv4Addr, Pod) {
    let (greedy, modest) = (Pod::new(), Pod::new());
    let std::net::IpAddr::V4(address) = greedy.attach(control, "greedy").await.address else {
        panic!("the pods' network is IPv4");
    };
    modest.attach(control, "modest").await;
    (greedy, address, modest)
}

#[test]
fn a_flood_of_first_packets_leaves_room() {
    run("fairness::a_flood_of_first_packets_leaves_room", async {
        let (_node, control, _dir) = start().await;
        let (greedy, source, modest) = two_pods(&control).await;
        let listener = TcpListener::bind((HOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        serve(listener, "host");
        // Nobody answers at the address that the flood is for: its connections stay open.
        let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        silent.bind(&SocketAddr::from((HOST, 0)).into()).unwrap();
        silent.listen(0).unwrap();
        let port = silent.local_addr().unwrap().as_socket().unwrap().port();
        let _first = std::net::TcpStream::connect((HOST, port)).unwrap();
        let _flood = Flood::begin(&greedy, move || {
            let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
            move |number| {
                let from = SocketAddrV4::new(source, 1024 + (number % 60_000) as u16);
                let to = SocketAddrV4::new(HOST, port);
                let _ = raw.send_to(&syn(from, to), &SocketAddr::from(to).into());
            }
        });
        let served = modest.run(move || {
            let soon =
                (0..ASKED).filter(|_| std::net::TcpStream::connect_timeout(&server, SOON).is_ok());
            soon.count()
        });
        assert!(served >= ENOUGH, "{served} of {ASKED} connections");
    });
}

#[test]
fn a_flood_of_small_flows_leaves_room() {
    run("fairness::a_flood_of_small_flows_leaves_room", async {
        let (_node, control, _dir) = start().await;
        let (greedy, _, modest) = two_pods(&control).await;
        let server = UdpSocket::bind((HOST, 0)).unwrap();
        let address = server.local_addr().unwrap();
        echo(server);
        let _flood = Flood::begin(&greedy, move || {
            let sockets: Vec<UdpSocket> =
                (0..32).map(|_| UdpSocket::bind("0.0.0.0:0").unwrap()).collect();
            move |number| {
                let socket = &sockets[number as usize % sockets.len()];
                let port = 1024 + (number / 32 % 60_000) as u16;
                let _ = socket.send_to(b"x", (HOST, port));
            }
        });
        let served = modest.run(move || {
            let answered = (0..ASKED).filter(|_| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_read_timeout(Some(SOON)).unwrap();
                socket.send_to(b"ask", address).unwrap();
                socket.recv(&mut [0; 8]).is_ok()
            });
            answered.count()
        });
        assert!(served >= ENOUGH, "{served} of {ASKED} flows");
    });
}

/// The sockets of the cluster's DNS: what one pod sends fills none but its own.
#[test]
fn shared_sockets_are_chosen_by_the_sender_alone() {
    run("fairness::shared_sockets_are_chosen_by_the_sender_alone", async {
        let (node, control, _dir) = start().await;
        let (greedy, _, modest) = two_pods(&control).await;
        let address = SocketAddr::from(([10, 42, 0, 1], 53));
        let sockets = node.bind_udp_shared(address, 8).await.unwrap();
        let send = |pod: &Pod, times: usize| {
            pod.run(move || {
                for _ in 0..times {
                    // Another port each time, as resolvers do.
                    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                    socket.send_to(b"question", address).unwrap();
                }
            });
        };
        // Nobody reads meanwhile: more than any socket's buffer holds.
        send(&greedy, 5000);
        send(&modest, ASKED);
        let received = |index: usize| {
            let mut buffer = [0; 16];
            std::iter::from_fn(|| sockets[index].try_recv_from(&mut buffer).ok()).count()
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        let mut counts = vec![0; sockets.len()];
        while counts.iter().filter(|count| **count > 0).count() < 2
            || !counts.contains(&ASKED) && std::time::Instant::now() < deadline
        {
            assert!(std::time::Instant::now() < deadline, "{counts:?}");
            for (index, count) in counts.iter_mut().enumerate() {
                *count += received(index);
            }
            tokio::task::yield_now().await;
        }
        let used: Vec<usize> = counts.into_iter().filter(|count| *count > 0).collect();
        assert_eq!(used.len(), 2, "a socket for each pod: {used:?}");
        assert!(used.contains(&ASKED), "all that the modest one sent: {used:?}");
    });
}

/// Without descriptors there is nothing to carry a connection with; whoever begins one is told, and need not wait.
#[test]
fn connections_without_descriptors_are_refused() {
    run("fairness::connections_without_descriptors_are_refused", async {
        let (_node, control, _dir) = start().await;
        let pod = Pod::new();
        let address = pod.attach(&control, "pod").await.address;
        let inside = pod.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
        let outside = TcpListener::bind((HOST, 0)).unwrap();
        let server = outside.local_addr().unwrap();
        let host = SocketAddr::from(([127, 0, 0, 1], 8080));
        let published = netns::Publication {
            host,
            protocol: netns::Protocol::Tcp,
            target: (address, 80).into(),
            served: true,
            allowed: None,
            keeps_client: false,
        };
        assert_eq!(control.publish(vec![published]).await.unwrap(), [None]);
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 512, hard).unwrap();
        let told = |socket: &Socket, server: SocketAddr| {
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            let connected = socket.connect_timeout(&server.into(), TIMEOUT);
            let read = connected.and_then(|()| Read::read(&mut { socket }, &mut [0; 4]));
            read.map_err(|error| error.kind())
        };
        let client = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // Where one is left, half a connection can be made.
        for left in [0, 1] {
            let clients = [(pod.run(client), server), (client(), host)];
            for (socket, server) in clients {
                let mut taken: Vec<File> =
                    std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
                taken.truncate(taken.len() - left);
                let told = told(&socket, server);
                let kinds = [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset];
                assert!(
                    told.is_err_and(|kind| kinds.contains(&kind)),
                    "{left}, {server}: {told:?}"
                );
            }
        }
        serve(inside, "inside");
        serve(outside, "outside");
        for (socket, server) in [(pod.run(client), server), (client(), host)] {
            assert_eq!(told(&socket, server), Ok(4), "{server}");
        }
    });
}
