//! DNS messages: questions of pods, and answers of other name servers. The first byte says which.

#![no_main]
#![allow(dead_code)]

use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::Instant;

use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;

#[path = "../../../src/dns/src/answer.rs"]
mod answer;
#[path = "../../../src/dns/src/cache.rs"]
mod cache;
#[path = "../../../src/dns/src/zone.rs"]
mod zone;

use zone::{Data, Zone};

struct Nobody;

impl answer::Known for Nobody {
    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        (name == "localhost").then(|| vec![[127, 0, 0, 1].into()])
    }

    fn own_address(&self, v4: bool) -> Option<IpAddr> {
        v4.then(|| [192, 0, 2, 1].into())
    }

    fn turn(&self) -> usize {
        0
    }
}

fn zone() -> &'static Zone {
    static ZONE: OnceLock<Zone> = OnceLock::new();
    ZONE.get_or_init(|| {
        let mut zone = Zone::new("c.local", vec!["10.in-addr.arpa".into()]);
        let mut add = |name: &str, data| zone.add((name.to_owned(), data));
        for n in 0..200 {
            add("many.d.svc.c.local", Data::A([10, 42, 0, n].into()));
        }
        add("a.d.svc.c.local", Data::Cname("b.d.svc.c.local".into()));
        add("b.d.svc.c.local", Data::Cname("a.d.svc.c.local".into()));
        add("o.d.svc.c.local", Data::Cname("example.org".into()));
        add("_h._tcp.s.d.svc.c.local", Data::Srv { port: 80, target: "many.d.svc.c.local".into() });
        add("1.0.43.10.in-addr.arpa", Data::Ptr("s.d.svc.c.local".into()));
        add("dns-version.c.local", Data::Txt("1.1.0".into()));
        zone
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((which, bytes)) = data.split_first() else { return };
    if which & 1 == 0 {
        let Ok(question) = Message::from_vec(bytes) else { return };
        for udp in [true, false] {
            let Some(own) = answer::own(zone(), "c.local", &Nobody, &question, udp) else { continue };
            assert!(!udp || own.bytes.len() <= 1232, "{} bytes", own.bytes.len());
            let answer = Message::from_vec(&own.bytes).expect("what is answered can be read");
            assert_eq!(answer.metadata.id, question.metadata.id);
        }
        return;
    }
    // A question, and what a name server says to it.
    let (question, told) = bytes.split_at((usize::from(which >> 1)).min(bytes.len()));
    let Some(key) = cache::Key::of(&[], question, false) else { return };
    let (cache, now) = (cache::Cache::default(), Instant::now());
    let Some(again) = cache::Key::of(&[], question, false) else { return };
    let _ = cache::code(told);
    cache.put(key, told, now);
    if let Some(kept) = cache.get(&again, question, now) {
        assert_eq!(kept.len(), told.len());
    }
});
