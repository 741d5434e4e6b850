//! Questions to answers, as messages: what the zone says, what the hosts file says, what is called like
//! the host. No sockets.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::zone::{Answer, Data, Kind, Zone, is_below};

/// Seconds that clients may keep an answer (CoreDNS' default).
const TTL_S: u32 = 5;
/// Largest UDP answer, whatever the client takes: fits every path.
const UDP_MAX_BYTES: u16 = 1232;
/// What a client takes that does not say.
const UDP_PLAIN_BYTES: u16 = 512;
/// The host as pods may call it.
const HOST_NAME: &str = "host.rootlet.internal";
const HOST_DOMAIN: &str = "rootlet.internal";
/// Newest version of EDNS that is understood (RFC 6891).
const EDNS_VERSION: u8 = 0;

/// What is known without asking anybody, besides the zone.
pub(crate) trait Known {
    /// Addresses of a name by the hosts file.
    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>>;
    /// The host's own address, of IPv4 or IPv6.
    fn own_address(&self, v4: bool) -> Option<IpAddr>;
    /// Another number each time.
    fn turn(&self) -> usize;
}

/// An answer from the zone and the hosts file.
pub(crate) struct Own {
    pub bytes: Vec<u8>,
    /// Whether the same question has the same answer for as long as the zone is this one.
    pub lasting: bool,
}

pub(crate) fn kind_of(kind: RecordType) -> Kind {
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

pub(crate) fn plain(name: &Name) -> String {
    name.to_lowercase().to_ascii().trim_end_matches('.').to_owned()
}

pub(crate) fn record(name: &str, data: &Data) -> Option<Record> {
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
pub(crate) fn reply(question: &Message) -> Message {
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
pub(crate) fn encode(answer: &Message, question: &Message, udp: bool) -> Vec<u8> {
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

pub(crate) fn failure(question: &Message, code: ResponseCode, udp: bool) -> Vec<u8> {
    let mut answer = reply(question);
    answer.metadata.response_code = code;
    encode(&answer, question, udp)
}

/// The name of the host, and that nothing else is called like it.
fn name_host(answer: &mut Message, name: &str, kind: Kind, known: &impl Known) {
    answer.metadata.authoritative = true;
    if name != HOST_NAME && name != HOST_DOMAIN {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    let address = match kind {
        Kind::A if name == HOST_NAME => known.own_address(true),
        Kind::Aaaa if name == HOST_NAME => known.own_address(false),
        _ => None,
    };
    if let Some(record) = address.and_then(|address| record(name, &Data::address(address))) {
        answer.add_answers([record]);
    } else {
        answer.authorities.extend(start_of_authority(HOST_DOMAIN));
    }
}

/// The answer from the zone and the hosts file; `None` when the host's name servers are to be asked.
/// `domain` is the cluster's, also before there is a zone.
pub(crate) fn own(
    zone: &Zone,
    domain: &str,
    known: &impl Known,
    question: &Message,
    udp: bool,
) -> Option<Own> {
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
    if zone.domain().is_empty() && is_below(&name, domain) {
        return fails(ResponseCode::ServFail);
    }
    let mut answer = reply(question);
    let mut lasting = true;
    if name == zone.domain() && query.query_type() == RecordType::SOA {
        answer.metadata.authoritative = true;
        answer.add_answers(start_of_authority(zone.domain()));
        return Some(Own { bytes: encode(&answer, question, udp), lasting });
    }
    match zone.answer(&name, kind) {
        Answer::NotOurs if is_below(&name, HOST_DOMAIN) => {
            lasting = false;
            name_host(&mut answer, &name, kind, known);
        }
        Answer::NotOurs => {
            lasting = false;
            name_of_file(&mut answer, &name, kind, known)?;
        }
        Answer::Records(records) => {
            lasting = zone_records(&mut answer, records, zone, kind, known)?;
        }
        nothing => {
            answer.metadata.authoritative = true;
            if nothing == Answer::NxDomain {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            answer.authorities.extend(start_of_authority(zone.domain()));
        }
    }
    Some(Own { bytes: encode(&answer, question, udp), lasting })
}

/// What the host's file of names says; None if nothing.
fn name_of_file(answer: &mut Message, name: &str, kind: Kind, known: &impl Known) -> Option<()> {
    let known = known.addresses(name)?;
    let of_kind = known.into_iter().filter_map(|address| match (address, kind) {
        (IpAddr::V4(address), Kind::A) => Some(Data::A(address)),
        (IpAddr::V6(address), Kind::Aaaa) => Some(Data::Aaaa(address)),
        _ => None,
    });
    answer.add_answers(of_kind.filter_map(|data| record(name, &data)));
    Some(())
}

/// Records of the zone, and whether their order is always this; None if they lead out of it.
fn zone_records(
    answer: &mut Message,
    mut records: Vec<(String, Data)>,
    zone: &Zone,
    kind: Kind,
    known: &impl Known,
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
        let turn = known.turn() % records.len();
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
    let addresses = hosts
        .into_iter()
        .flat_map(|host| zone.records(host).filter_map(move |data| record(host, data)));
    answer.add_additionals(addresses);
    Some(!several)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hickory_proto::op::Query;

    use super::*;

    fn zone() -> Zone {
        let name = "many.x.svc.cluster.local";
        let many = (0..200).map(|n| (name.to_owned(), Data::A([10, 42, 1, n].into())));
        Zone::of("cluster.local", many)
    }

    #[derive(Default)]
    struct Turns(AtomicUsize);

    impl Known for Turns {
        fn addresses(&self, _: &str) -> Option<Vec<IpAddr>> {
            None
        }

        fn own_address(&self, _: bool) -> Option<IpAddr> {
            None
        }

        fn turn(&self) -> usize {
            self.0.fetch_add(1, Ordering::Relaxed)
        }
    }

    fn answered(zone: &Zone, question: &Message, udp: bool) -> Option<Vec<u8>> {
        Some(own(zone, "cluster.local", &Turns(1.into()), question, udp)?.bytes)
    }

    fn question(name: &str, kind: RecordType) -> Message {
        let mut question = Message::new(7, MessageType::Query, OpCode::Query);
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        question
    }

    #[test]
    fn what_does_not_fit_is_cut_over_udp_alone() {
        let zone = zone();
        let asked = question("Many.x.svc.cluster.local.", RecordType::A);
        let bytes = answered(&zone, &asked, true).unwrap();
        let udp = Message::from_vec(&bytes).unwrap();
        let told = (bytes.len(), udp.answers.len());
        assert!(udp.metadata.truncation && told.0 <= 512 && told.1 >= 25, "{told:?}");
        let tcp = Message::from_vec(&answered(&zone, &asked, false).unwrap()).unwrap();
        assert_eq!((tcp.answers.len(), tcp.metadata.truncation), (200, false));
        assert_eq!(tcp.metadata.id, asked.metadata.id);
    }

    #[test]
    fn names_are_not_absent_before_there_is_a_zone() {
        let zone = Zone::default();
        let code = |name: &str| {
            let answer = answered(&zone, &question(name, RecordType::A), true)?;
            Some(Message::from_vec(&answer).unwrap().metadata.response_code)
        };
        assert_eq!(code("x.default.svc.cluster.local."), Some(ResponseCode::ServFail));
        assert_eq!(code("other.rootlet.internal."), Some(ResponseCode::NXDomain));
        assert_eq!(code("example.org."), None, "the host's name servers are asked");
    }

    #[test]
    fn addresses_take_turns_and_the_domain_has_its_authority() {
        let zone = zone();
        let turns = Turns::default();
        let first = || {
            let asked = question("many.x.svc.cluster.local.", RecordType::A);
            let bytes = own(&zone, "cluster.local", &turns, &asked, false).unwrap().bytes;
            let answer = Message::from_vec(&bytes).unwrap();
            answer.answers[0].data.clone()
        };
        assert_ne!(first(), first());
        let soa = answered(&zone, &question("cluster.local.", RecordType::SOA), true).unwrap();
        assert_eq!(Message::from_vec(&soa).unwrap().answers.len(), 1);
    }

    #[test]
    fn what_is_not_there_is_told_with_its_authority() {
        let zone = zone();
        let asked = question("none.x.svc.cluster.local.", RecordType::A);
        let answer = Message::from_vec(&answered(&zone, &asked, true).unwrap()).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities.len(), 1);
        assert!(answered(&zone, &question("example.org.", RecordType::MX), true).is_none());
    }
}
