//! What the server has done, in Prometheus' text format under CoreDNS' names.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const TYPES: [&str; 9] = ["A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"];
const OTHER: &str = "other";
/// By their numbers (RFC 1035, 4.1.1).
const CODES: [&str; 6] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
/// Upper bounds in microseconds: from 250 µs, each twice the one before.
const BUCKETS: usize = 16;
const FIRST_BUCKET_US: u64 = 250;
/// How long a scraper may take for its request, and how long that may be.
const PATIENCE: Duration = Duration::from_secs(5);
const REQUEST_BYTES: usize = 8 << 10;

/// How a question is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    kind: usize,
    tcp: bool,
}

impl Asked {
    pub fn new(kind: RecordType, tcp: bool) -> Self {
        let name = kind.to_string();
        let kind = TYPES.iter().position(|known| *known == name).unwrap_or(TYPES.len());
        Self { kind, tcp }
    }
}

/// The counters.
#[derive(Default)]
pub(crate) struct Metrics {
    /// By family, protocol and type.
    requests: [[[AtomicU64; TYPES.len() + 1]; 2]; 2],
    responses: [AtomicU64; CODES.len() + 1],
    durations: [AtomicU64; BUCKETS + 1],
    durations_us: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Metrics {
    /// Counts a question that was answered.
    pub fn answered(&self, client: IpAddr, asked: Asked, answer: &[u8], took: Duration) {
        let family = usize::from(client.is_ipv6());
        let add = |counter: &AtomicU64, number| counter.fetch_add(number, Ordering::Relaxed);
        add(&self.requests[family][usize::from(asked.tcp)][asked.kind], 1);
        let code = answer.get(3).map_or(CODES.len(), |flags| usize::from(flags & 0xf));
        add(&self.responses[code.min(CODES.len())], 1);
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = (0..BUCKETS).find(|bucket| took_us <= FIRST_BUCKET_US << bucket);
        add(&self.durations[bucket.unwrap_or(BUCKETS)], 1);
        add(&self.durations_us, took_us);
    }

    /// Counts a look-up in what other name servers said.
    pub fn looked_up(&self, found: bool) {
        let counter = if found { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let common = "server=\"dns://:53\",view=\"\",zone=\".\"";
        let head = |text: &mut String, name: &str, kind: &str, help: &str| {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        };
        let name = "coredns_dns_requests_total";
        head(
            &mut text,
            name,
            "counter",
            "Counter of DNS requests made per zone, protocol and family.",
        );
        let names = || TYPES.iter().chain([&OTHER]);
        for (family, protocols) in ["1", "2"].iter().zip(&self.requests) {
            for (protocol, kinds) in ["udp", "tcp"].iter().zip(protocols) {
                for (kind, counter) in names().zip(kinds).filter(|(_, c)| read(c) > 0) {
                    let _ = writeln!(
                        text,
                        "{name}{{family=\"{family}\",proto=\"{protocol}\",type=\"{kind}\",{common}}} {}",
                        read(counter)
                    );
                }
            }
        }
        let name = "coredns_dns_responses_total";
        head(&mut text, name, "counter", "Counter of response status codes.");
        let codes = CODES.iter().chain([&OTHER]).zip(&self.responses);
        for (code, counter) in codes.filter(|(_, counter)| read(counter) > 0) {
            let _ = writeln!(text, "{name}{{rcode=\"{code}\",{common}}} {}", read(counter));
        }
        let name = "coredns_dns_request_duration_seconds";
        head(&mut text, name, "histogram", "Histogram of the time each request took.");
        let mut total = 0;
        for (bucket, counter) in self.durations.iter().enumerate() {
            total += read(counter);
            let bound = if bucket == BUCKETS {
                "+Inf".to_owned()
            } else {
                ((FIRST_BUCKET_US << bucket) as f64 / 1e6).to_string()
            };
            let _ = writeln!(text, "{name}_bucket{{{common},le=\"{bound}\"}} {total}");
        }
        let seconds = read(&self.durations_us) as f64 / 1e6;
        let _ =
            writeln!(text, "{name}_sum{{{common}}} {seconds}\n{name}_count{{{common}}} {total}");
        let cache = "server=\"dns://:53\",view=\"\",zones=\".\"";
        for (name, help, counter) in [
            ("coredns_cache_hits_total", "The count of cache hits.", &self.hits),
            ("coredns_cache_misses_total", "The count of cache misses.", &self.misses),
        ] {
            head(&mut text, name, "counter", help);
            let _ = writeln!(text, "{name}{{{cache}}} {}", read(counter));
        }
        text
    }
}

/// Tells whoever asks for `/metrics`.
pub(crate) async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(PATIENCE, answer(stream, &metrics)).await;
        });
    }
}

async fn answer(mut stream: TcpStream, metrics: &Metrics) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 || request.len() > REQUEST_BYTES {
            return Ok(());
        }
    }
    let (status, body) = if request.starts_with(b"GET /metrics") {
        ("200 OK", metrics.text())
    } else {
        ("404 Not Found", String::new())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_asked_is_told() {
        let metrics = Arc::new(Metrics::default());
        let (four, six) = ([10, 42, 0, 2].into(), "fd00::2".parse().unwrap());
        let asked = |kind, tcp| Asked::new(kind, tcp);
        let took = Duration::from_micros(300);
        metrics.answered(four, asked(RecordType::A, false), &[0, 1, 0, 0], took);
        metrics.answered(four, asked(RecordType::A, false), &[0, 1, 0, 3], took);
        metrics.answered(six, asked(RecordType::HTTPS, true), &[0, 1, 0, 9], Duration::MAX);
        metrics.looked_up(true);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::clone(&metrics)));
        let ask = async |path: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text
        };
        let text = ask("/metrics").await;
        let common = "server=\"dns://:53\",view=\"\",zone=\".\"";
        for line in [
            format!(
                "coredns_dns_requests_total{{family=\"1\",proto=\"udp\",type=\"A\",{common}}} 2"
            ),
            format!(
                "coredns_dns_requests_total{{family=\"2\",proto=\"tcp\",type=\"other\",{common}}} 1"
            ),
            format!("coredns_dns_responses_total{{rcode=\"NXDOMAIN\",{common}}} 1"),
            format!("coredns_dns_request_duration_seconds_bucket{{{common},le=\"0.00025\"}} 0"),
            format!("coredns_dns_request_duration_seconds_bucket{{{common},le=\"0.0005\"}} 2"),
            format!("coredns_dns_request_duration_seconds_bucket{{{common},le=\"+Inf\"}} 3"),
            "coredns_cache_hits_total{server=\"dns://:53\",view=\"\",zones=\".\"} 1".to_owned(),
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is not in {text}");
        }
        assert!(ask("/").await.starts_with("HTTP/1.1 404"));
    }
}
