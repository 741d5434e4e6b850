//! The server: messages in, messages out, over UDP and TCP.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::host::{self, Host};
use crate::metrics::{self, Asked, Metrics};
use crate::recent::{Given, Recent};
use crate::shares::Shares;
use crate::zone::{Answer, Data, Kind, Zone, is_below};

/// Seconds that clients may keep an answer (CoreDNS' default).
const TTL_S: u32 = 5;
/// Largest UDP answer, whatever the client takes: fits every path.
const UDP_MAX_BYTES: u16 = 1232;
/// What a client takes that does not say.
const UDP_PLAIN_BYTES: u16 = 512;
/// Questions that may wait for the host's name servers.
const WAITING_MAX: usize = 1024;
/// Questions of one client that may wait, and connections that it may have.
const WAITING_PER_CLIENT: usize = 128;
const CONNECTIONS_PER_CLIENT: usize = 128;
/// How long a TCP connection may be silent.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// The host as pods may call it.
const HOST_NAME: &str = "host.rootlet.internal";
const HOST_DOMAIN: &str = "rootlet.internal";
/// Newest version of EDNS that is understood (RFC 6891).
const EDNS_VERSION: u8 = 0;

struct Server {
    /// The cluster's domain.
    domain: String,
    zone: RwLock<Arc<Zone>>,
    turn: AtomicUsize,
    host: Host,
    waiting: Semaphore,
    clients: Arc<Shares>,
    connections: Arc<Shares>,
    metrics: Arc<Metrics>,
}

/// An answer from the zone and the hosts file.
struct Own {
    bytes: Vec<u8>,
    /// Whether the same question has the same answer for as long as the zone is this one.
    lasting: bool,
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
    /// Where zones arrive, a line of JSON each.
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
                Ok(zone) => {
                    let mut held = server.zone.write().unwrap_or_else(PoisonError::into_inner);
                    *held = Arc::new(zone);
                }
                Err(error) => tracing::warn!(%error, "the daemon sent a zone that is none"),
            }
        }
    }
}

async fn serve_udp(server: Arc<Server>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 4096];
    let mut recent = Recent::new(server.zone());
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let (began, bytes, zone) = (Instant::now(), &buffer[..length], server.zone());
        if let Some(given) = recent.get(&zone, bytes) {
            // A full queue loses datagrams, which is what datagrams are for.
            let _ = socket.try_send_to(&given.answer, client);
            server.count(client.ip(), given.counts_as, &given.answer, began);
            continue;
        }
        let Ok(question) = Message::from_vec(bytes) else { continue };
        let asked = asked(&question, false);
        if let Some(own) = server.own(&zone, &question, true) {
            let _ = socket.try_send_to(&own.bytes, client);
            server.count(client.ip(), asked, &own.bytes, began);
            if own.lasting {
                let answer = own.bytes.into_boxed_slice();
                recent.put(&zone, bytes, Given { answer, counts_as: asked });
            }
            continue;
        }
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
        let answer = match server.own(&server.zone(), &question, false) {
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

fn kind_of(kind: RecordType) -> Kind {
    match kind {
        RecordType::A => Kind::A,
        RecordType::AAAA => Kind::Aaaa,
        RecordType::CNAME => Kind::Cname,
        RecordType::SRV => Kind::Srv,
        RecordType::PTR => Kind::Ptr,
        RecordType::TXT => Kind::Txt,
        RecordType::ANY => Kind::Any,
        _ => Kind::Other,
    }
}

fn plain(name: &Name) -> String {
    name.to_lowercase().to_ascii().trim_end_matches('.').to_owned()
}

fn record(name: &str, data: &Data) -> Option<Record> {
    let parse = |name: &str| Name::from_ascii(format!("{name}.")).ok();
    let data = match data {
        Data::A(address) => RData::A(A(*address)),
        Data::Aaaa(address) => RData::AAAA(AAAA(*address)),
        Data::Cname(target) => RData::CNAME(CNAME(parse(target)?)),
        Data::Srv { port, target } => RData::SRV(SRV::new(0, 100, *port, parse(target)?)),
        Data::Ptr(target) => RData::PTR(PTR(parse(target)?)),
        Data::Txt(text) => RData::TXT(TXT::new(vec![text.clone()])),
    };
    Some(Record::from_rdata(parse(name)?, TTL_S, data))
}

/// The record by which clients know how long a name is not there.
fn start_of_authority(domain: &str) -> Option<Record> {
    let parse = |name: String| Name::from_ascii(name).ok();
    let soa = SOA::new(
        parse(format!("ns.dns.{domain}."))?,
        parse(format!("hostmaster.{domain}."))?,
        1,
        7200,
        1800,
        86400,
        TTL_S,
    );
    Some(Record::from_rdata(parse(format!("{domain}."))?, TTL_S, RData::SOA(soa)))
}

/// An answer to `question` that says nothing yet.
fn reply(question: &Message) -> Message {
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(question.queries.iter().cloned());
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_MAX_BYTES);
        answer.set_edns(edns);
    }
    answer
}

/// The answer as bytes; over UDP, cut to what the client takes.
fn encode(answer: &Message, question: &Message, udp: bool) -> Vec<u8> {
    let bytes = answer.to_vec().unwrap_or_default();
    let takes = question
        .edns
        .as_ref()
        .map_or(UDP_PLAIN_BYTES, |edns| edns.max_payload().clamp(UDP_PLAIN_BYTES, UDP_MAX_BYTES));
    let takes = usize::from(takes);
    if !udp || bytes.len() <= takes {
        return bytes;
    }
    let mut cut = answer.clone();
    // What was not asked for may be missing without a word (RFC 2181, 9).
    cut.additionals.clear();
    if let Ok(bytes) = cut.to_vec()
        && bytes.len() <= takes
    {
        return bytes;
    }
    // As many answers as fit; names that were told before take less room, so this cannot be reckoned.
    cut.metadata.truncation = true;
    let all = std::mem::take(&mut cut.answers);
    let (mut fitting, mut most) = (0, all.len());
    let mut bytes = cut.to_vec().unwrap_or_default();
    while fitting < most {
        let tried = usize::midpoint(fitting, most + 1);
        cut.answers = all[..tried].to_vec();
        match cut.to_vec() {
            Ok(longer) if longer.len() <= takes => (fitting, bytes) = (tried, longer),
            _ => most = tried - 1,
        }
    }
    bytes
}

fn failure(question: &Message, code: ResponseCode, udp: bool) -> Vec<u8> {
    let mut answer = reply(question);
    answer.metadata.response_code = code;
    encode(&answer, question, udp)
}

/// The name of the host, and that nothing else is called like it.
fn name_host(answer: &mut Message, name: &str, kind: Kind) {
    answer.metadata.authoritative = true;
    if name != HOST_NAME && name != HOST_DOMAIN {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    let address = match kind {
        Kind::A if name == HOST_NAME => host::own_address(true),
        Kind::Aaaa if name == HOST_NAME => host::own_address(false),
        _ => None,
    };
    if let Some(record) = address.and_then(|address| record(name, &Data::address(address))) {
        answer.add_answers([record]);
    } else {
        answer.authorities.extend(start_of_authority(HOST_DOMAIN));
    }
}

impl Server {
    fn new(domain: &str) -> Self {
        let metrics = Arc::new(Metrics::default());
        Self {
            domain: domain.to_owned(),
            zone: RwLock::default(),
            turn: AtomicUsize::new(0),
            host: Host::new(Arc::clone(&metrics)),
            waiting: Semaphore::new(WAITING_MAX),
            clients: Shares::new(WAITING_PER_CLIENT),
            connections: Shares::new(CONNECTIONS_PER_CLIENT),
            metrics,
        }
    }

    fn zone(&self) -> Arc<Zone> {
        self.zone.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, client: IpAddr, asked: Asked, answer: &[u8], began: Instant) {
        self.metrics.answered(client, asked, answer, began.elapsed());
    }

    /// The answer from the zone and the hosts file; `None` when the host's name servers are to be asked.
    fn own(&self, zone: &Zone, question: &Message, udp: bool) -> Option<Own> {
        let fails = |code| {
            let bytes = failure(question, code, udp);
            Some(Own { bytes, lasting: false })
        };
        if question.metadata.message_type != MessageType::Query {
            return fails(ResponseCode::FormErr);
        }
        if question.metadata.op_code != OpCode::Query {
            return fails(ResponseCode::NotImp);
        }
        let [query] = question.queries.as_slice() else {
            return fails(ResponseCode::FormErr);
        };
        if question.edns.as_ref().is_some_and(|edns| edns.version() > EDNS_VERSION) {
            return fails(ResponseCode::BADVERS);
        }
        let name = plain(query.name());
        let kind = kind_of(query.query_type());
        if zone.domain.is_empty() && is_below(&name, &self.domain) {
            return fails(ResponseCode::ServFail);
        }
        let mut answer = reply(question);
        let mut lasting = true;
        if name == zone.domain && query.query_type() == RecordType::SOA {
            answer.metadata.authoritative = true;
            answer.add_answers(start_of_authority(&zone.domain));
            return Some(Own { bytes: encode(&answer, question, udp), lasting });
        }
        match zone.answer(&name, kind) {
            Answer::NotOurs if is_below(&name, HOST_DOMAIN) => {
                lasting = false;
                name_host(&mut answer, &name, kind);
            }
            Answer::NotOurs => {
                lasting = false;
                self.name_of_file(&mut answer, &name, kind)?;
            }
            Answer::Records(records) => lasting = self.records(&mut answer, records, zone, kind)?,
            nothing => {
                answer.metadata.authoritative = true;
                if nothing == Answer::NxDomain {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                answer.authorities.extend(start_of_authority(&zone.domain));
            }
        }
        Some(Own { bytes: encode(&answer, question, udp), lasting })
    }

    /// What the host's file of names says; None if nothing.
    fn name_of_file(&self, answer: &mut Message, name: &str, kind: Kind) -> Option<()> {
        let known = self.host.files().addresses(name)?;
        let of_kind = known.into_iter().filter_map(|address| match (address, kind) {
            (IpAddr::V4(address), Kind::A) => Some(Data::A(address)),
            (IpAddr::V6(address), Kind::Aaaa) => Some(Data::Aaaa(address)),
            _ => None,
        });
        answer.add_answers(of_kind.filter_map(|data| record(name, &data)));
        Some(())
    }

    /// Records of the zone, and whether their order is always this; None if they lead out of it.
    fn records(
        &self,
        answer: &mut Message,
        mut records: Vec<(String, Data)>,
        zone: &Zone,
        kind: Kind,
    ) -> Option<bool> {
        let chained = matches!(records.last(), Some((_, Data::Cname(_))));
        if chained && !matches!(kind, Kind::Cname | Kind::Any) {
            // The chain leaves the cluster: its end has to be asked for.
            return None;
        }
        answer.metadata.authoritative = true;
        let several = records.len() > 1;
        if matches!(records.first(), Some((_, Data::A(_) | Data::Aaaa(_)))) {
            // Many clients take the first address.
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % records.len();
            records.rotate_left(turn);
        }
        answer.add_answers(records.iter().filter_map(|(name, data)| record(name, data)));
        // Who asks for a port asks for its host next.
        let hosts: BTreeSet<&str> = records
            .iter()
            .filter_map(|(_, data)| match data {
                Data::Srv { target, .. } => Some(target.as_str()),
                _ => None,
            })
            .collect();
        let addresses = hosts.into_iter().flat_map(|host| {
            let known = zone.records.get(host).into_iter().flatten();
            known.filter_map(move |data| record(host, data))
        });
        answer.add_additionals(addresses);
        Some(!several)
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
        let zone = self.zone();
        let Answer::Records(records) = zone.answer(&name, kind_of(query.query_type())) else {
            let servers = zone.forwarding.servers(&name);
            return self.host.ask(servers, bytes, tcp).await.unwrap_or_else(failed);
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

    async fn resolve(&self, id: u16, name: &str, kind: RecordType, tcp: bool) -> Option<Message> {
        let mut question = Message::new(id, MessageType::Query, OpCode::Query);
        question.metadata.recursion_desired = true;
        let mut query = Query::query(Name::from_ascii(format!("{name}.")).ok()?, kind);
        query.set_query_class(DNSClass::IN);
        question.add_query(query);
        let zone = self.zone();
        if let Some(own) = self.own(&zone, &question, false) {
            return Message::from_vec(&own.bytes).ok();
        }
        let servers = zone.forwarding.servers(name);
        let answer = self.host.ask(servers, &question.to_vec().ok()?, tcp).await?;
        Message::from_vec(&answer).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Server {
        let name = "many.x.svc.cluster.local";
        let many = (0..200).map(|n| (name.to_owned(), Data::A([10, 42, 1, n].into())));
        let server = Server::new("cluster.local");
        *server.zone.write().unwrap() = Arc::new(Zone::of("cluster.local", many));
        server
    }

    fn answered(server: &Server, question: &Message, udp: bool) -> Option<Vec<u8>> {
        Some(server.own(&server.zone(), question, udp)?.bytes)
    }

    fn question(name: &str, kind: RecordType) -> Message {
        let mut question = Message::new(7, MessageType::Query, OpCode::Query);
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        question
    }

    #[test]
    fn what_does_not_fit_is_cut_over_udp_alone() {
        let server = server();
        let asked = question("Many.x.svc.cluster.local.", RecordType::A);
        let bytes = answered(&server, &asked, true).unwrap();
        let udp = Message::from_vec(&bytes).unwrap();
        let told = (bytes.len(), udp.answers.len());
        assert!(udp.metadata.truncation && told.0 <= 512 && told.1 >= 25, "{told:?}");
        let tcp = Message::from_vec(&answered(&server, &asked, false).unwrap()).unwrap();
        assert_eq!((tcp.answers.len(), tcp.metadata.truncation), (200, false));
        assert_eq!(tcp.metadata.id, asked.metadata.id);
    }

    #[test]
    fn names_are_not_absent_before_there_is_a_zone() {
        let server = server();
        *server.zone.write().unwrap() = Arc::default();
        let code = |name: &str| {
            let answer = answered(&server, &question(name, RecordType::A), true)?;
            Some(Message::from_vec(&answer).unwrap().metadata.response_code)
        };
        assert_eq!(code("x.default.svc.cluster.local."), Some(ResponseCode::ServFail));
        assert_eq!(code("other.rootlet.internal."), Some(ResponseCode::NXDomain));
        assert_eq!(code("example.org."), None, "the host's name servers are asked");
    }

    #[test]
    fn addresses_take_turns_and_the_domain_has_its_authority() {
        let server = server();
        let first = || {
            let asked = question("many.x.svc.cluster.local.", RecordType::A);
            let answer = Message::from_vec(&answered(&server, &asked, false).unwrap()).unwrap();
            answer.answers[0].data.clone()
        };
        assert_ne!(first(), first());
        let soa = answered(&server, &question("cluster.local.", RecordType::SOA), true).unwrap();
        assert_eq!(Message::from_vec(&soa).unwrap().answers.len(), 1);
    }

    #[test]
    fn what_is_not_there_is_told_with_its_authority() {
        let server = server();
        let asked = question("none.x.svc.cluster.local.", RecordType::A);
        let answer = Message::from_vec(&answered(&server, &asked, true).unwrap()).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities.len(), 1);
        assert!(answered(&server, &question("example.org.", RecordType::MX), true).is_none());
    }
}
