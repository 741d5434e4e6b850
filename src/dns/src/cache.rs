//! Answers of other name servers, kept for a moment: a pod with five search domains asks everything
//! five times, and what is not there is asked for the most.
//!
//! Times to live count down as RFC 2181 wants it; how long a name is not there comes from its zone's
//! start of authority (RFC 2308). Nothing is kept for longer than stock clusters keep it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What CoreDNS is told in stock clusters (`cache 30`).
const LONGEST: Duration = Duration::from_secs(30);
const ANSWERS: usize = 4096;
const HEADER: usize = 12;
const TYPE_SOA: u16 = 6;
const TYPE_OPT: u16 = 41;
const NO_ERROR: u8 = 0;
const NAME_ERROR: u8 = 3;

/// Who was asked, and the question from behind its number, with names in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    servers: Vec<SocketAddr>,
    question: Vec<u8>,
    tcp: bool,
}

struct Kept {
    answer: Vec<u8>,
    /// Where the times to live are.
    times: Vec<usize>,
    since: Instant,
    lasts: Duration,
}

/// The cache.
#[derive(Default)]
pub(crate) struct Cache {
    kept: Mutex<HashMap<Key, Kept>>,
}

impl Key {
    /// None if the question is not one that can be kept.
    pub fn of(servers: &[SocketAddr], question: &[u8], tcp: bool) -> Option<Self> {
        let end = name_end(question, HEADER)?;
        let mut own = question.get(2..)?.to_vec();
        own[HEADER - 2..end - 2].make_ascii_lowercase();
        Some(Self { servers: servers.to_vec(), question: own, tcp })
    }
}

impl Cache {
    /// The answer to `question`, if there is one that still holds.
    pub fn get(&self, key: &Key, question: &[u8], now: Instant) -> Option<Vec<u8>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.get(key)?;
        let age = now.saturating_duration_since(kept.since);
        if age >= kept.lasts {
            return None;
        }
        let mut answer = kept.answer.clone();
        answer[..2].copy_from_slice(question.get(..2)?);
        // Clients may compare the case of what they asked.
        let end = name_end(question, HEADER)?;
        answer.get_mut(HEADER..end)?.copy_from_slice(&question[HEADER..end]);
        let age_s = age.as_secs() as u32;
        for at in &kept.times {
            let place = &mut answer[*at..at + 4];
            let left = u32::from_be_bytes([place[0], place[1], place[2], place[3]]);
            place.copy_from_slice(&left.saturating_sub(age_s).to_be_bytes());
        }
        Some(answer)
    }

    /// Keeps an answer for as long as it says.
    pub fn put(&self, key: Key, answer: &[u8], now: Instant) {
        let Some((times, lasts)) = examine(answer) else { return };
        if lasts.is_zero() {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= ANSWERS {
            kept.retain(|_, kept| now.saturating_duration_since(kept.since) < kept.lasts);
        }
        if kept.len() >= ANSWERS {
            kept.clear();
        }
        kept.insert(key, Kept { answer: answer.to_vec(), times, since: now, lasts });
    }
}

/// The code of an answer (RFC 1035, 4.1.1).
pub(crate) fn code(answer: &[u8]) -> Option<u8> {
    answer.get(3).map(|flags| flags & 0xf)
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

fn number32(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(message.get(at..at + 4)?.try_into().ok()?))
}

/// Where the name that begins at `at` ends; a pointer ends a name.
fn name_end(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2).filter(|e| *e <= message.len()),
            length if length & 0xc0 == 0 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

/// Where an answer's times to live are, and how long it may be kept; None if not at all.
fn examine(answer: &[u8]) -> Option<(Vec<usize>, Duration)> {
    let truncated = answer.get(2)? & 2 != 0;
    let code = code(answer)?;
    if truncated || !matches!(code, NO_ERROR | NAME_ERROR) {
        return None;
    }
    let counts: Vec<u16> = (2..6).map(|n| number(answer, 2 * n)).collect::<Option<_>>()?;
    let mut at = HEADER;
    for _ in 0..counts[0] {
        at = name_end(answer, at)? + 4;
    }
    let answers = counts[1];
    let mut times = Vec::new();
    let mut shortest: Option<u32> = None;
    let mut absent: Option<u32> = None;
    for index in 0..u32::from(answers) + u32::from(counts[2]) + u32::from(counts[3]) {
        at = name_end(answer, at)?;
        let kind = number(answer, at)?;
        let end = at + 10 + usize::from(number(answer, at + 8)?);
        if kind != TYPE_OPT {
            let time = number32(answer, at + 4)?;
            times.push(at + 4);
            if index < answers.into() {
                shortest = Some(shortest.map_or(time, |known| known.min(time)));
            } else if kind == TYPE_SOA {
                absent = Some(time.min(number32(answer, end.checked_sub(4)?)?));
            }
        }
        if end > answer.len() {
            return None;
        }
        at = end;
    }
    // An alias whose end is not there is as absent as that.
    let lasts = match (shortest, absent) {
        (Some(shortest), Some(absent)) => shortest.min(absent),
        (Some(shortest), None) if code == NO_ERROR => shortest,
        (None, Some(absent)) => absent,
        _ => return None,
    };
    Some((times, Duration::from_secs(lasts.into()).min(LONGEST)))
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use proptest::prelude::*;

    use super::*;

    fn question(id: u16, name: &str) -> Vec<u8> {
        let mut question = Message::new(id, MessageType::Query, OpCode::Query);
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        question.to_vec().unwrap()
    }

    fn answer(name: &str, ttl: Option<u32>, authority: Option<u32>, code: ResponseCode) -> Vec<u8> {
        let mut answer = Message::response(1, OpCode::Query);
        let name = Name::from_ascii(name).unwrap();
        answer.add_query(Query::query(name.clone(), RecordType::A));
        answer.metadata.response_code = code;
        if let Some(ttl) = ttl {
            answer.add_answers([Record::from_rdata(
                name.clone(),
                ttl,
                RData::A(A([192, 0, 2, 1].into())),
            )]);
        }
        if let Some(minimum) = authority {
            let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, minimum);
            answer.authorities.push(Record::from_rdata(name, 900, RData::SOA(soa)));
        }
        answer.to_vec().unwrap()
    }

    #[test]
    fn answers_are_kept_for_as_long_as_they_say() {
        let (ok, absent, broken) =
            (ResponseCode::NoError, ResponseCode::NXDomain, ResponseCode::ServFail);
        let cases = [
            (answer("a.example.", Some(7), None, ok), Some(7)),
            (answer("a.example.", Some(600), None, ok), Some(30)),
            (answer("a.example.", Some(0), None, ok), Some(0)),
            (answer("a.example.", None, Some(9), absent), Some(9)),
            (answer("a.example.", None, Some(9), ok), Some(9)),
            (answer("a.example.", None, None, absent), None),
            (answer("a.example.", None, None, ok), None),
            (answer("a.example.", Some(7), None, broken), None),
        ];
        for (bytes, want) in cases {
            let lasts = examine(&bytes).map(|(_, lasts)| lasts.as_secs());
            assert_eq!(lasts, want, "{bytes:?}");
        }
    }

    #[test]
    fn what_is_kept_grows_old_and_fits_who_asks() {
        let (cache, now) = (Cache::default(), Instant::now());
        let servers = ["192.0.2.53:53".parse().unwrap()];
        let asked = question(1, "a.example.");
        let key = Key::of(&servers, &asked, false).unwrap();
        cache.put(key, &answer("a.example.", Some(20), None, ResponseCode::NoError), now);
        let other = question(7, "A.Example.");
        let key = Key::of(&servers, &other, false).unwrap();
        let later = now + Duration::from_secs(5);
        let found = cache.get(&key, &other, later).unwrap();
        assert_eq!(found[HEADER..HEADER + 11], other[HEADER..HEADER + 11], "the case asked in");
        let found = Message::from_vec(&found).unwrap();
        assert_eq!((found.metadata.id, found.answers[0].ttl), (7, 15));
        assert!(cache.get(&key, &other, now + Duration::from_secs(20)).is_none(), "too old");
        let elsewhere = Key::of(&["192.0.2.54:53".parse().unwrap()], &other, false).unwrap();
        assert!(cache.get(&elsewhere, &other, later).is_none(), "another server's answer");
    }

    #[test]
    fn there_is_an_end_to_what_is_kept() {
        let (cache, now) = (Cache::default(), Instant::now());
        for n in 0..ANSWERS + 10 {
            let name = format!("n{n}.example.");
            let key = Key::of(&[], &question(1, &name), false).unwrap();
            cache.put(key, &answer(&name, Some(20), None, ResponseCode::NoError), now);
        }
        assert!(cache.kept.lock().unwrap().len() <= ANSWERS);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = examine(&bytes);
            if let Some(key) = Key::of(&[], &bytes, false) {
                let cache = Cache::default();
                cache.put(key.clone(), &bytes, Instant::now());
                let _ = cache.get(&key, &bytes, Instant::now());
            }
        }
    }
}
