//! Connections that wait: the first packet of a pod's connection is held in a queue of the kernel
//! until the outside has answered, so that a refusal is a refusal and silence is silence.
//!
//! Formats: the kernel's `include/uapi/linux/netfilter/nfnetlink_queue.h`.

use std::collections::HashMap;
use std::io;
use std::net::TcpStream as StdTcpStream;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use socket2::{Domain, Type};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::first_packet::{Key, read_packet};
use super::tcp::PLAIN;
use super::{Flows, has_no_descriptors};
use crate::attention::stir;
use crate::netlink::{Requests, Socket, messages};
use crate::network::Network;
use crate::ruleset::{CROWDED_MS, MARK_REFUSED, MARK_UNREACHABLE, QUEUE};
use crate::thread::NetnsThread;
use crate::{Error, sys};

const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_QUEUE as u16) << 8;
const PACKET: u16 = SUBSYSTEM;
const VERDICT: u16 = SUBSYSTEM | 1;
const CONFIG: u16 = SUBSYSTEM | 2;
const CONFIG_COMMAND: u16 = 1;
const CONFIG_PARAMETERS: u16 = 2;
const CONFIG_MAX_LENGTH: u16 = 3;
const COMMAND_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const VERDICT_HEADER: u16 = 2;
const MARK: u16 = 3;

/// Enough for the longest IP header and the ports behind it.
const COPIED_BYTES: u32 = 96;
/// Held packets, of all pods and of one. Beyond that connections begin at once, and a refusal
/// arrives as a reset.
const HELD: usize = 4096;
const HELD_PER_POD: usize = 512;
const RECEIVE_BYTES: usize = 64 << 10;
/// Addresses of this machine that are remembered, and for how long.
const NEAR: usize = 256;
const NEAR_FOR: Duration = Duration::from_mins(1);
/// Connections that the outside accepted and the pod has lost interest in are closed after this.
const UNCLAIMED: Duration = Duration::from_secs(5);

enum State {
    /// The outside has not answered; the pod's own retransmissions add nothing.
    Connecting,
    /// The outside has accepted; the pod's connection is about to arrive at the listener, on whose thread
    /// this one is then watched.
    Connected(StdTcpStream, Instant),
}

/// The connections between their first packet and their arrival at the listener.
#[derive(Default)]
pub(crate) struct Held {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    states: HashMap<Key, State>,
    connecting: HashMap<IpAddr, usize>,
    /// Pods that had too many waiting, and since when that is known.
    crowded: HashMap<IpAddr, Instant>,
    /// Addresses that were of this machine, and when that was seen last.
    near: HashMap<IpAddr, Instant>,
}

impl Held {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("never held across a panic")
    }

    /// The outside's end of a connection that has just arrived.
    pub fn claim(&self, pod: SocketAddr, destination: SocketAddr) -> Option<StdTcpStream> {
        let mut table = self.table();
        match table.states.remove(&(pod, destination)) {
            Some(State::Connected(stream, _)) => Some(stream),
            Some(State::Connecting) => {
                table.states.insert((pod, destination), State::Connecting);
                None
            }
            None => None,
        }
    }

    /// What to do with a first packet: None is to hold it.
    fn admit(&self, key: Key) -> Option<Answer> {
        let mut table = self.table();
        match table.states.get(&key) {
            Some(State::Connecting) => return Some(Answer::Drop),
            Some(State::Connected(..)) => return Some(Answer::Accept),
            None => {}
        }
        let total: usize = table.connecting.values().sum();
        let own = table.connecting.entry(key.0.ip()).or_default();
        if *own >= HELD_PER_POD || total >= HELD {
            return Some(Answer::Accept);
        }
        *own += 1;
        table.states.insert(key, State::Connecting);
        None
    }

    fn settle(&self, key: Key, stream: Option<StdTcpStream>) {
        let mut table = self.table();
        if let Some(count) = table.connecting.get_mut(&key.0.ip()) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                table.connecting.remove(&key.0.ip());
            }
        }
        match stream {
            Some(stream) => table.states.insert(key, State::Connected(stream, Instant::now())),
            None => table.states.remove(&key),
        };
    }

    /// Whether it is news that a pod has more waiting than is its share: said once for as long as the
    /// kernel keeps it.
    fn is_newly_crowded(&self, pod: IpAddr) -> bool {
        let mut table = self.table();
        if table.connecting.get(&pod).is_none_or(|count| *count < HELD_PER_POD) {
            return false;
        }
        let kept = Duration::from_millis(CROWDED_MS);
        let before = table.crowded.get(&pod).is_some_and(|since| since.elapsed() < kept);
        if !before {
            table.crowded.insert(pod, Instant::now());
        }
        !before
    }

    /// Whether an address was of this machine of late.
    fn is_near(&self, address: IpAddr) -> bool {
        self.table().near.contains_key(&address)
    }

    fn found_near(&self, address: IpAddr) {
        let mut table = self.table();
        if table.near.len() < NEAR || table.near.contains_key(&address) {
            table.near.insert(address, Instant::now());
        }
    }

    fn sweep(&self) {
        let mut table = self.table();
        table.near.retain(|_, since| since.elapsed() < NEAR_FOR);
        table.crowded.retain(|_, since| since.elapsed() < UNCLAIMED);
        table.states.retain(|_, state| match state {
            State::Connecting => true,
            State::Connected(_, since) => since.elapsed() < UNCLAIMED,
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Accept,
    Drop,
    Refuse,
    Unreachable,
}

impl Answer {
    /// What the outside's answer means for the pod.
    fn to(error: &io::Error) -> Self {
        match error.kind() {
            _ if has_no_descriptors(error) => Self::Refuse,
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Self::Refuse,
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::PermissionDenied => Self::Unreachable,
            io::ErrorKind::TimedOut => Self::Drop,
            // Our own trouble; the listener tries once more.
            _ => Self::Accept,
        }
    }
}

/// The queue, in the namespace of the calling thread.
pub(crate) fn open() -> Result<socket2::Socket, Error> {
    let socket = Socket::netfilter()?;
    let [high, low] = QUEUE.to_be_bytes();
    let header = [0, 0, high, low];
    let mut parameters = COPIED_BYTES.to_be_bytes().to_vec();
    parameters.push(COPY_PACKET);
    let mut requests = Requests::new();
    let acknowledged = libc::NLM_F_ACK;
    requests.push("bind the queue", CONFIG, acknowledged, &header, |a| {
        a.bytes(CONFIG_COMMAND, &[COMMAND_BIND, 0, 0, 0]);
    });
    requests.push("set the queue up", CONFIG, acknowledged, &header, |a| {
        a.bytes(CONFIG_PARAMETERS, &parameters).be32(CONFIG_MAX_LENGTH, 2 * HELD as u32);
    });
    socket.execute(&requests)?;
    // A full buffer loses a packet, which its sender repeats.
    let _ = sys::set_netlink_flag(&socket, libc::NETLINK_NO_ENOBUFS);
    let socket = socket2::Socket::from(socket.into_fd());
    let _ = socket.set_recv_buffer_size(4 << 20);
    socket.set_nonblocking(true).map_err(|e| Error::system("watch the queue", e))?;
    Ok(socket)
}

/// Serves the queue for ever.
pub(crate) async fn serve(
    queue: socket2::Socket,
    held: Arc<Held>,
    flows: Arc<Flows>,
    tasks: TaskTracker,
    node: NetnsThread<Network>,
) -> Result<(), Error> {
    let failed = |e| Error::system("wait for connections to begin", e);
    let queue = Arc::new(sys::watch(queue).map_err(failed)?);
    let mut buffer = vec![0; RECEIVE_BYTES];
    let mut sweep = tokio::time::interval(UNCLAIMED);
    loop {
        let mut ready = tokio::select! {
            ready = queue.readable() => ready.map_err(failed)?,
            _ = sweep.tick() => {
                held.sweep();
                continue;
            }
        };
        let received = ready.try_io(|socket| {
            use std::io::Read;
            (&mut socket.get_ref()).read(&mut buffer)
        });
        let Ok(Ok(length)) = received else { continue };
        stir();
        // The connections that arrive, and those that wait, are served by the same thread.
        tokio::task::coop::consume_budget().await;
        for (header, payload) in messages(&buffer[..length]) {
            if header.kind != PACKET {
                continue;
            }
            let Some((id, key)) = read_packet(payload) else { continue };
            match key.map(|key| (key, held.admit(key))) {
                None => answer(&queue, id, Answer::Accept),
                Some((key, Some(verdict))) => {
                    answer(&queue, id, verdict);
                    // The rest of a flood does not come here, where the others' connections wait.
                    let pod = key.0.ip();
                    if held.is_newly_crowded(pod) {
                        let node = node.clone();
                        tasks.spawn(async move {
                            if let Ok(Err(error)) = node.run(move |n| n.crowd(pod)).await {
                                tracing::debug!(%pod, error = error.chain(), "a crowd is held");
                            }
                        });
                    }
                }
                Some((key, None)) => match begin(key.1, held.is_near(key.1.ip())) {
                    Ok(Begun::Done(stream)) => {
                        held.found_near(key.1.ip());
                        held.settle(key, Some(stream));
                        answer(&queue, id, Answer::Accept);
                    }
                    Err(error) => {
                        held.settle(key, None);
                        answer(&queue, id, Answer::to(&error));
                    }
                    Ok(Begun::Waiting(stream)) => {
                        let (queue, held) = (Arc::clone(&queue), Arc::clone(&held));
                        let token = flows.of(key.0.ip());
                        tasks.spawn(async move {
                            let connected =
                                token.run_until_cancelled(until_connected(stream)).await;
                            let (verdict, stream) = match connected {
                                Some(Ok(stream)) => (Answer::Accept, Some(stream)),
                                Some(Err(error)) => (Answer::to(&error), None),
                                None => (Answer::Drop, None),
                            };
                            held.settle(key, stream);
                            answer(&queue, id, verdict);
                        });
                    }
                },
            }
        }
    }
}

/// A connection to the outside that was begun.
enum Begun {
    /// It is there already: the other side is on this machine.
    Done(StdTcpStream),
    Waiting(StdTcpStream),
}

/// Begins a connection. One within this machine is accepted or refused while `connect` is under way, which
/// the second call tells: so it needs no watching, and nobody has to be woken for it. On the way to an address
/// that is `near` there is nothing for a congestion control to find out.
fn begin(destination: SocketAddr, near: bool) -> io::Result<Begun> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = socket2::Socket::new(Domain::for_address(destination), kind, None)?;
    if near {
        let _ = socket.set_tcp_congestion(PLAIN);
    }
    let address = destination.into();
    let first = socket.connect(&address);
    let state = match first {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => socket.connect(&address),
        other => other,
    };
    match state.map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) | Err((Some(libc::EISCONN), _)) => Ok(Begun::Done(socket.into())),
        Err((Some(libc::EALREADY | libc::EINPROGRESS), _)) => Ok(Begun::Waiting(socket.into())),
        Err((_, error)) => Err(error),
    }
}

async fn until_connected(stream: StdTcpStream) -> io::Result<StdTcpStream> {
    let stream = TcpStream::from_std(stream)?;
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => stream.into_std(),
    }
}

fn answer(queue: &AsyncFd<socket2::Socket>, id: u32, verdict: Answer) {
    let [high, low] = QUEUE.to_be_bytes();
    let (code, mark) = match verdict {
        Answer::Accept => (libc::NF_ACCEPT, None),
        Answer::Drop => (libc::NF_DROP, None),
        Answer::Refuse => (libc::NF_ACCEPT, Some(MARK_REFUSED)),
        Answer::Unreachable => (libc::NF_ACCEPT, Some(MARK_UNREACHABLE)),
    };
    let mut requests = Requests::new();
    requests.push("answer a held connection", VERDICT, 0, &[0, 0, high, low], |a| {
        a.bytes(VERDICT_HEADER, &[(code as u32).to_be_bytes(), id.to_be_bytes()].concat());
        if let Some(mark) = mark {
            a.be32(MARK, mark);
        }
    });
    if let Err(error) = queue.get_ref().send(requests.bytes()) {
        tracing::debug!(%error, "cannot answer a held connection");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_cannot_hold_everything() {
        let held = Held::default();
        let key = |pod: u8, port: u16| {
            (SocketAddr::from(([10, 42, 0, pod], port)), "192.0.2.1:80".parse().unwrap())
        };
        for port in 0..HELD_PER_POD as u16 {
            assert_eq!(held.admit(key(2, port)), None);
        }
        assert_eq!(held.admit(key(2, 9000)), Some(Answer::Accept), "beyond its share");
        assert_eq!(held.admit(key(2, 1)), Some(Answer::Drop), "a repetition");
        assert_eq!(held.admit(key(3, 1)), None, "another pod");
        let crowded = |pod: u8| held.is_newly_crowded([10, 42, 0, pod].into());
        assert_eq!((crowded(2), crowded(2), crowded(3)), (true, false, false), "told once");
        held.settle(key(2, 1), None);
        assert_eq!(held.admit(key(2, 9000)), None, "a place became free");
    }

    #[tokio::test]
    async fn connections_within_the_machine_are_there_or_refused_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stream = match begin(address, false).unwrap() {
            Begun::Done(stream) => stream,
            // It may be that another thread did a part of the work, and later.
            Begun::Waiting(stream) => until_connected(stream).await.unwrap(),
        };
        assert_eq!(stream.peer_addr().unwrap(), address);
        drop((stream, listener));
        let error = match begin(address, true) {
            Err(error) => error,
            Ok(Begun::Done(_)) => panic!("nobody listens"),
            Ok(Begun::Waiting(stream)) => until_connected(stream).await.unwrap_err(),
        };
        assert_eq!(Answer::to(&error), Answer::Refuse);
    }
}
