//! The server: messages in, messages out, over UDP and TCP.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::host::{self, Host};
use crate::zone::{Answer, Data, Kind, Zone, is_below};

/// Seconds that clients may keep an answer (CoreDNS' default).
const TTL_S: u32 = 5;
/// Largest UDP answer, whatever the client takes: fits every path.
const UDP_MAX_BYTES: u16 = 1232;
/// What a client takes that does not say.
const UDP_PLAIN_BYTES: u16 = 512;
/// Questions that may wait for the host's name servers.
const WAITING_MAX: usize = 1024;
/// Questions of one client that may wait: a flood from one pod leaves room for the others.
const WAITING_PER_CLIENT: usize = 128;
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
    clients: Mutex<HashMap<IpAddr, usize>>,
}

/// A client's place among those who wait.
struct Place<'a> {
    server: &'a Server,
    client: IpAddr,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut clients = self.server.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
    }
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

/// Serves questions on `udp` and `tcp`; zones arrive on `control`, a line of JSON each. Until the
/// first has come, questions about `domain` fail, so that nobody takes its names for absent.
pub fn serve(
    udp: UdpSocket,
    tcp: TcpListener,
    control: StdUnixListener,
    domain: &str,
) -> io::Result<Handle> {
    control.set_nonblocking(true)?;
    let control = UnixListener::from_std(control)?;
    let server = Arc::new(Server {
        domain: domain.to_owned(),
        zone: RwLock::default(),
        turn: AtomicUsize::new(0),
        host: Host::default(),
        waiting: Semaphore::new(WAITING_MAX),
        clients: Mutex::default(),
    });
    let handle = Handle { shutdown: CancellationToken::new(), tasks: TaskTracker::new() };
    let spawn = |task: futures::future::BoxFuture<'static, ()>| {
        let shutdown = handle.shutdown.clone();
        handle.tasks.spawn(async move {
            shutdown.run_until_cancelled(task).await;
        });
    };
    spawn(Box::pin(serve_udp(server.clone(), Arc::new(udp))));
    spawn(Box::pin(serve_tcp(server.clone(), tcp)));
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
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let Ok(question) = Message::from_vec(&buffer[..length]) else { continue };
        if let Some(answer) = server.own(&question, true) {
            // A full queue loses datagrams, which is what datagrams are for.
            let _ = socket.try_send_to(&answer, client);
            continue;
        }
        let (server, socket, bytes) = (server.clone(), socket.clone(), buffer[..length].to_vec());
        tokio::spawn(async move {
            let answer = server.foreign((&question, &bytes), client.ip(), false).await;
            let _ = socket.send_to(&answer, client).await;
        });
    }
}

async fn serve_tcp(server: Arc<Server>, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        tokio::spawn(serve_connection(server.clone(), stream));
    }
}

async fn serve_connection(server: Arc<Server>, mut stream: TcpStream) {
    let Ok(client) = stream.peer_addr() else { return };
    while let Ok(Ok(Some(bytes))) =
        tokio::time::timeout(TCP_IDLE, host::read_message(&mut stream)).await
    {
        let Ok(question) = Message::from_vec(&bytes) else { return };
        let answer = match server.own(&question, false) {
            Some(answer) => answer,
            None => server.foreign((&question, &bytes), client.ip(), true).await,
        };
        if host::write_message(&mut stream, &answer).await.is_err() {
            return;
        }
    }
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
    /// The answer from the zone and the hosts file; `None` when the host's name servers are to be asked.
    fn own(&self, question: &Message, udp: bool) -> Option<Vec<u8>> {
        if question.metadata.message_type != MessageType::Query {
            return Some(failure(question, ResponseCode::FormErr, udp));
        }
        if question.metadata.op_code != OpCode::Query {
            return Some(failure(question, ResponseCode::NotImp, udp));
        }
        let [query] = question.queries.as_slice() else {
            return Some(failure(question, ResponseCode::FormErr, udp));
        };
        if question.edns.as_ref().is_some_and(|edns| edns.version() > EDNS_VERSION) {
            return Some(failure(question, ResponseCode::BADVERS, udp));
        }
        let name = plain(query.name());
        let kind = kind_of(query.query_type());
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner).clone();
        if zone.domain.is_empty() && is_below(&name, &self.domain) {
            return Some(failure(question, ResponseCode::ServFail, udp));
        }
        let mut answer = reply(question);
        if name == zone.domain && query.query_type() == RecordType::SOA {
            answer.metadata.authoritative = true;
            answer.add_answers(start_of_authority(&zone.domain));
            return Some(encode(&answer, question, udp));
        }
        match zone.answer(&name, kind) {
            Answer::NotOurs if is_below(&name, HOST_DOMAIN) => {
                name_host(&mut answer, &name, kind);
            }
            Answer::NotOurs => {
                let known = self.host.files().addresses(&name)?;
                let of_kind = known.into_iter().filter_map(|address| match (address, kind) {
                    (IpAddr::V4(address), Kind::A) => Some(Data::A(address)),
                    (IpAddr::V6(address), Kind::Aaaa) => Some(Data::Aaaa(address)),
                    _ => None,
                });
                answer.add_answers(of_kind.filter_map(|data| record(&name, &data)));
            }
            Answer::Records(mut records) => {
                let chained = matches!(records.last(), Some((_, Data::Cname(_))));
                if chained && !matches!(kind, Kind::Cname | Kind::Any) {
                    // The chain leaves the cluster: its end has to be asked for.
                    return None;
                }
                answer.metadata.authoritative = true;
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
            }
            nothing => {
                answer.metadata.authoritative = true;
                if nothing == Answer::NxDomain {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                answer.authorities.extend(start_of_authority(&zone.domain));
            }
        }
        Some(encode(&answer, question, udp))
    }

    /// A place among those who wait for other name servers; None when the client has its share.
    fn admit(&self, client: IpAddr) -> Option<Place<'_>> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client).or_default();
        if *count >= WAITING_PER_CLIENT {
            return None;
        }
        *count += 1;
        Some(Place { server: self, client })
    }

    /// The answer of the host's name servers.
    async fn foreign(
        &self,
        (question, bytes): (&Message, &[u8]),
        client: IpAddr,
        tcp: bool,
    ) -> Vec<u8> {
        let failed = || failure(question, ResponseCode::ServFail, !tcp);
        let Some(_place) = self.admit(client) else { return failed() };
        let Ok(_permit) = self.waiting.try_acquire() else { return failed() };
        let Some(query) = question.queries.first() else { return failed() };
        let name = plain(query.name());
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner).clone();
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
        if let Some(own) = self.own(&question, false) {
            return Message::from_vec(&own).ok();
        }
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner).clone();
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
        let zone = Zone::of("cluster.local", many);
        Server {
            domain: "cluster.local".into(),
            turn: AtomicUsize::new(0),
            zone: RwLock::new(Arc::new(zone)),
            host: Host::default(),
            waiting: Semaphore::new(1),
            clients: Mutex::default(),
        }
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
        let bytes = server.own(&asked, true).unwrap();
        let udp = Message::from_vec(&bytes).unwrap();
        let told = (bytes.len(), udp.answers.len());
        assert!(udp.metadata.truncation && told.0 <= 512 && told.1 >= 25, "{told:?}");
        let tcp = Message::from_vec(&server.own(&asked, false).unwrap()).unwrap();
        assert_eq!((tcp.answers.len(), tcp.metadata.truncation), (200, false));
        assert_eq!(tcp.metadata.id, asked.metadata.id);
    }

    #[test]
    fn a_flood_from_one_client_leaves_room_for_others() {
        let server = server();
        let (greedy, modest) = ([10, 42, 0, 2].into(), [10, 42, 0, 3].into());
        let places: Vec<_> = (0..200).map_while(|_| server.admit(greedy)).collect();
        assert_eq!(places.len(), WAITING_PER_CLIENT);
        assert!(server.admit(modest).is_some());
        drop(places);
        assert!(server.admit(greedy).is_some());
        assert!(server.clients.lock().unwrap().is_empty(), "nothing is left of those who came");
    }

    #[test]
    fn names_are_not_absent_before_there_is_a_zone() {
        let server = server();
        *server.zone.write().unwrap() = Arc::default();
        let code = |name: &str| {
            let answer = server.own(&question(name, RecordType::A), true)?;
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
            let answer = Message::from_vec(&server.own(&asked, false).unwrap()).unwrap();
            answer.answers[0].data.clone()
        };
        assert_ne!(first(), first());
        let soa = server.own(&question("cluster.local.", RecordType::SOA), true).unwrap();
        assert_eq!(Message::from_vec(&soa).unwrap().answers.len(), 1);
    }

    #[test]
    fn what_is_not_there_is_told_with_its_authority() {
        let server = server();
        let asked = question("none.x.svc.cluster.local.", RecordType::A);
        let answer = Message::from_vec(&server.own(&asked, true).unwrap()).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities.len(), 1);
        assert!(server.own(&question("example.org.", RecordType::MX), true).is_none());
    }
}
