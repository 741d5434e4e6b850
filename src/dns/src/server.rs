//! The server: messages in, messages out, over UDP and TCP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::{self, Known, Own, encode, failure, kind_of, plain, record, reply};
use crate::forwarding::Forwarding;
use crate::host::{self, Host};
use crate::metrics::{self, Asked, Metrics};
use crate::recent::{Given, Recent};
use crate::shares::Shares;
use crate::update::Update;
use crate::zone::{Answer, Data, Zone};

/// Questions that may wait for the host's name servers.
const WAITING_MAX: usize = 1024;
/// Questions of one client that may wait, and connections that it may have.
const WAITING_PER_CLIENT: usize = 128;
const CONNECTIONS_PER_CLIENT: usize = 128;
/// How long a TCP connection may be silent.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// What the server was told.
#[derive(Default)]
struct Told {
    /// Another one after every change.
    version: u64,
    zone: Zone,
    forwarding: Forwarding,
}

struct Server {
    /// The cluster's domain.
    domain: String,
    told: RwLock<Told>,
    turn: AtomicUsize,
    host: Host,
    waiting: Semaphore,
    clients: Arc<Shares>,
    connections: Arc<Shares>,
    metrics: Arc<Metrics>,
}

/// A running server.
pub struct Handle {
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Handle {
    /// Ends it.
    pub async fn shutdown(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The server's sockets.
pub struct Sockets {
    /// All with one address: each client's questions come to the same of them, and each is served in its
    /// turn.
    pub udp: Vec<UdpSocket>,
    /// The same address.
    pub tcp: TcpListener,
    /// Where the server tells what it has done.
    pub metrics: TcpListener,
    /// Where the daemon says what names there are: an update a line, the first one whole.
    pub control: StdUnixListener,
}

/// Serves questions. Until the first zone has come, questions about `domain` fail, so that nobody takes
/// its names for absent.
pub fn serve(sockets: Sockets, domain: &str) -> io::Result<Handle> {
    sockets.control.set_nonblocking(true)?;
    let control = UnixListener::from_std(sockets.control)?;
    let server = Arc::new(Server::new(domain));
    let handle = Handle { shutdown: CancellationToken::new(), tasks: TaskTracker::new() };
    let spawn = |task: futures::future::BoxFuture<'static, ()>| {
        let shutdown = handle.shutdown.clone();
        handle.tasks.spawn(async move {
            shutdown.run_until_cancelled(task).await;
        });
    };
    for udp in sockets.udp {
        spawn(Box::pin(serve_udp(server.clone(), Arc::new(udp))));
    }
    spawn(Box::pin(serve_tcp(server.clone(), sockets.tcp)));
    spawn(Box::pin(metrics::serve(sockets.metrics, server.metrics.clone())));
    spawn(Box::pin(serve_control(server, control)));
    Ok(handle)
}

async fn serve_control(server: Arc<Server>, control: UnixListener) {
    loop {
        let Ok((stream, _)) = control.accept().await else { continue };
        // One daemon at a time; the next one connects when this one has gone.
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            match serde_json::from_str(&line) {
                Ok(update) => server.told_of(update),
                Err(error) => tracing::warn!(%error, "the daemon sent an update that is none"),
            }
        }
    }
}

async fn serve_udp(server: Arc<Server>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 4096];
    let mut recent = Recent::new();
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let (began, bytes) = (Instant::now(), &buffer[..length]);
        // A full queue loses datagrams, which is what datagrams are for.
        let send = |answer: &[u8], asked| {
            let _ = socket.try_send_to(answer, client);
            server.count(client.ip(), asked, answer, began);
        };
        let Some(question) = server.at_once(&mut recent, bytes, send) else { continue };
        let asked = asked(&question, false);
        let (server, socket, bytes) = (server.clone(), socket.clone(), bytes.to_vec());
        tokio::spawn(async move {
            let answer = server.foreign((&question, &bytes), client.ip(), false).await;
            let _ = socket.send_to(&answer, client).await;
            server.count(client.ip(), asked, &answer, began);
        });
    }
}

async fn serve_tcp(server: Arc<Server>, listener: TcpListener) {
    loop {
        let Ok((stream, client)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // Beyond its share a client's connections end at once.
        let Some(place) = server.connections.admit(client.ip()) else { continue };
        let server = server.clone();
        tokio::spawn(async move {
            serve_connection(&server, stream, client.ip()).await;
            drop(place);
        });
    }
}

async fn serve_connection(server: &Server, mut stream: TcpStream, client: IpAddr) {
    while let Ok(Ok(Some(bytes))) =
        tokio::time::timeout(TCP_IDLE, host::read_message(&mut stream)).await
    {
        let began = Instant::now();
        let Ok(question) = Message::from_vec(&bytes) else { return };
        let answer = match server.own(&question, false) {
            Some(own) => own.bytes,
            None => server.foreign((&question, &bytes), client, true).await,
        };
        server.count(client, asked(&question, true), &answer, began);
        if host::write_message(&mut stream, &answer).await.is_err() {
            return;
        }
    }
}

fn asked(question: &Message, tcp: bool) -> Asked {
    let kind = question.queries.first().map_or(RecordType::ZERO, Query::query_type);
    Asked::new(kind, tcp)
}

impl Server {
    fn new(domain: &str) -> Self {
        let metrics = Arc::new(Metrics::default());
        Self {
            domain: domain.to_owned(),
            told: RwLock::default(),
            turn: AtomicUsize::new(0),
            host: Host::new(Arc::clone(&metrics)),
            waiting: Semaphore::new(WAITING_MAX),
            clients: Shares::new(WAITING_PER_CLIENT),
            connections: Shares::new(CONNECTIONS_PER_CLIENT),
            metrics,
        }
    }

    fn told(&self) -> RwLockReadGuard<'_, Told> {
        self.told.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn told_of(&self, update: Update) {
        let whole = update.whole.map(|whole| Zone::new(&whole.domain, whole.reverse));
        let mut told = self.told.write().unwrap_or_else(PoisonError::into_inner);
        told.version += 1;
        if let Some(zone) = whole {
            told.zone = zone;
        }
        update.gone.iter().for_each(|record| told.zone.remove(record));
        update.added.into_iter().for_each(|record| told.zone.add(record));
        if let Some(forwarding) = update.forwarding {
            told.forwarding = forwarding;
        }
    }

    fn own(&self, question: &Message, udp: bool) -> Option<Own> {
        answer::own(&self.told().zone, &self.domain, self, question, udp)
    }

    /// Sends the answer to a datagram, if it can be given at once; otherwise the question is returned, if
    /// it is one.
    fn at_once(
        &self,
        recent: &mut Recent<Asked>,
        bytes: &[u8],
        send: impl Fn(&[u8], Asked),
    ) -> Option<Message> {
        let told = self.told();
        if let Some(given) = recent.get(told.version, bytes) {
            send(&given.answer, given.counts_as);
            return None;
        }
        let question = Message::from_vec(bytes).ok()?;
        let Some(own) = answer::own(&told.zone, &self.domain, self, &question, true) else {
            return Some(question);
        };
        let asked = asked(&question, false);
        send(&own.bytes, asked);
        if own.lasting {
            let answer = own.bytes.into_boxed_slice();
            recent.put(told.version, bytes, Given { answer, counts_as: asked });
        }
        None
    }

    fn count(&self, client: IpAddr, asked: Asked, answer: &[u8], began: Instant) {
        self.metrics.answered(client, asked, answer, began.elapsed());
    }

    /// The answer of the host's name servers.
    async fn foreign(
        &self,
        (question, bytes): (&Message, &[u8]),
        client: IpAddr,
        tcp: bool,
    ) -> Vec<u8> {
        let failed = || failure(question, ResponseCode::ServFail, !tcp);
        let Some(_place) = self.clients.admit(client) else { return failed() };
        let Ok(_permit) = self.waiting.try_acquire() else { return failed() };
        let Some(query) = question.queries.first() else { return failed() };
        let name = plain(query.name());
        let found = self.told().zone.answer(&name, kind_of(query.query_type()));
        let Answer::Records(records) = found else {
            let servers = self.servers(&name);
            return self.host.ask(servers.as_deref(), bytes, tcp).await.unwrap_or_else(failed);
        };
        // An alias that leads out of the cluster: its target's addresses follow it.
        let mut answer = reply(question);
        answer.add_answers(records.iter().filter_map(|(name, data)| record(name, data)));
        if let Some((_, Data::Cname(target))) = records.last() {
            let Some(found) =
                self.resolve(question.metadata.id, target, query.query_type(), tcp).await
            else {
                return failed();
            };
            answer.metadata.response_code = found.metadata.response_code;
            answer.add_answers(found.answers);
        }
        encode(&answer, question, !tcp)
    }

    /// Who is to be asked about a name; None is the host's own.
    fn servers(&self, name: &str) -> Option<Vec<SocketAddr>> {
        self.told().forwarding.servers(name).map(<[_]>::to_vec)
    }

    async fn resolve(&self, id: u16, name: &str, kind: RecordType, tcp: bool) -> Option<Message> {
        let mut question = Message::new(id, MessageType::Query, OpCode::Query);
        question.metadata.recursion_desired = true;
        let mut query = Query::query(Name::from_ascii(format!("{name}.")).ok()?, kind);
        query.set_query_class(DNSClass::IN);
        question.add_query(query);
        if let Some(own) = self.own(&question, false) {
            return Message::from_vec(&own.bytes).ok();
        }
        let servers = self.servers(name);
        let answer = self.host.ask(servers.as_deref(), &question.to_vec().ok()?, tcp).await?;
        Message::from_vec(&answer).ok()
    }
}

impl Known for Server {
    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        self.host.files().addresses(name)
    }

    fn own_address(&self, v4: bool) -> Option<IpAddr> {
        host::own_address(v4)
    }

    fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::Whole;
    use crate::zone::Data;
    use crate::zone::Kind;

    fn told(server: &Server, lines: &[&str], name: &str) -> Answer {
        for line in lines {
            server.told_of(serde_json::from_str(line).unwrap());
        }
        server.told().zone.answer(name, Kind::A)
    }

    #[test]
    fn updates_change_what_was_told_and_whole_ones_replace_it() {
        let server = Server::new("cluster.local");
        let record = |n| vec![("a.cluster.local".to_owned(), Data::A([10, 0, 0, n].into()))];
        let whole = Some(Whole { domain: "cluster.local".into(), reverse: Vec::new() });
        let first = Update { whole: whole.clone(), added: record(1), ..Update::default() };
        let next = Update { gone: record(1), added: record(2), ..Update::default() };
        let nothing = Update { whole, ..Update::default() };
        let lines = [first, next, nothing].map(|update| serde_json::to_string(&update).unwrap());
        let [first, next, nothing] = [&lines[0], &lines[1], &lines[2]];
        let name = "a.cluster.local";
        assert_eq!(told(&server, &[first], name), Answer::Records(record(1)));
        let before = server.told().version;
        assert_eq!(told(&server, &[next], name), Answer::Records(record(2)));
        assert!(server.told().version > before, "what was answered until now is forgotten");
        assert_eq!(told(&server, &[nothing], name), Answer::NxDomain);
    }
}
