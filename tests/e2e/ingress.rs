//! The Ingress controller, by the cases of upstream's suite (kubernetes-sigs/ingress-controller-conformance:
//! path rules, host rules, load balancing, default backend, class).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{BUSYBOX, Cluster, eventually};

const PATIENCE: Duration = Duration::from_secs(5);
const SERVICES: [&str; 8] = [
    "foo-exact",
    "foo-prefix",
    "aaa-prefix",
    "aaa-bbb-prefix",
    "aaa-bbb-slash",
    "foo-slash-exact",
    "wildcard-foo-com",
    "foo-bar-com",
];

/// Tells who answered and what was asked, at a port of its own for each service.
fn echo_script() -> String {
    let answer = r#"read -r method path rest
while read -r line; do
    line=$(echo "$line" | tr -d '\r')
    case "$line" in "") break;; [Hh]ost:*) host=${line#*: };; esac
done
body="$1 $path $host $HOSTNAME"
printf 'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %s\r\n\r\n%s' ${#body} "$body""#;
    let mut script = format!("cat >/tmp/answer <<'END'\n{answer}\nEND\n");
    for (port, name) in (8080..).zip(SERVICES) {
        let _ = writeln!(script, "nc -ll -p {port} -e sh /tmp/answer {name} &");
    }
    script + "wait"
}

fn deploy(cluster: &Cluster, replicas: usize) {
    let container = json!({"name": "main", "image": BUSYBOX, "command": ["sh", "-c", echo_script()],
        "readinessProbe": {"tcpSocket": {"port": 8087}, "periodSeconds": 1}});
    let labels = json!({"app": "echo"});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "echo"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}}}});
    cluster.apply(&deployment.to_string());
    for (port, name) in (8080..).zip(SERVICES) {
        let ports = json!([{"name": "http", "port": 8080, "targetPort": port}]);
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"selector": labels, "ports": ports}});
        cluster.apply(&service.to_string());
    }
}

fn path(kind: &str, path: &str, service: &str) -> Value {
    let backend = json!({"service": {"name": service, "port": {"number": 8080}}});
    json!({"path": path, "pathType": kind, "backend": backend})
}

fn rule(host: &str, paths: &[Value]) -> Value {
    json!({"host": host, "http": {"paths": paths}})
}

fn ingress(cluster: &Cluster, name: &str, spec: &Value) {
    let ingress = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": name}, "spec": spec});
    cluster.apply(&ingress.to_string());
}

/// Where an Ingress is served.
pub fn address(cluster: &Cluster, name: &str) -> SocketAddr {
    eventually("the address of the ingress", || {
        let ingress = cluster.get(&["ingress", name])?;
        let status = &ingress["status"]["loadBalancer"]["ingress"][0];
        let ip = status["ip"].as_str().and_then(|ip| ip.parse().ok());
        let ip = ip.ok_or_else(|| ingress.to_string())?;
        Ok(SocketAddr::new(ip, status["ports"][0]["port"].as_u64().unwrap_or_default() as u16))
    })
}

/// What a request is answered with, head and body.
pub fn answer(address: SocketAddr, host: &str, path: &str) -> Result<String, String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    ask().map_err(|error| error.to_string())
}

/// Code and body.
fn ask(address: SocketAddr, host: &str, path: &str) -> Result<(u16, String), String> {
    let text = answer(address, host, path)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| text.clone())?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.ok_or_else(|| head.to_owned())?, body.to_owned()))
}

#[test]
fn ingresses_are_as_upstreams_suite_wants_them() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral", "--ingress"]);
    cluster.load_busybox();
    deploy(&cluster, 1);
    let rules = json!([
        rule("exact-path-rules", &[path("Exact", "/foo", "foo-exact")]),
        rule(
            "prefix-path-rules",
            &[
                path("Prefix", "/foo", "foo-prefix"),
                path("Prefix", "/aaa/bbb", "aaa-bbb-prefix"),
                path("Prefix", "/aaa", "aaa-prefix"),
            ]
        ),
        rule(
            "mixed-path-rules",
            &[path("Prefix", "/foo", "foo-prefix"), path("Exact", "/foo", "foo-exact"),]
        ),
        rule(
            "trailing-slash-path-rules",
            &[
                path("Prefix", "/aaa/bbb/", "aaa-bbb-slash"),
                path("Exact", "/foo/", "foo-slash-exact"),
            ]
        ),
        rule("*.foo.com", &[path("Prefix", "/", "wildcard-foo-com")]),
        rule("foo.bar.com", &[path("Prefix", "/", "foo-bar-com")]),
    ]);
    ingress(&cluster, "rules", &json!({"ingressClassName": "rootlet", "rules": rules}));
    let door = address(&cluster, "rules");
    cluster.kubectl_ok(&["rollout", "status", "deployment/echo", "--timeout=60s"]);
    let cases = [
        ("exact-path-rules", "/foo", "foo-exact"),
        ("exact-path-rules", "/foo/", ""),
        ("exact-path-rules", "/FOO", ""),
        ("exact-path-rules", "/bar", ""),
        ("prefix-path-rules", "/foo", "foo-prefix"),
        ("prefix-path-rules", "/foo/", "foo-prefix"),
        ("prefix-path-rules", "/FOO", ""),
        ("prefix-path-rules", "/aaa/bbb", "aaa-bbb-prefix"),
        ("prefix-path-rules", "/aaa/bbb/ccc", "aaa-bbb-prefix"),
        ("prefix-path-rules", "/aaa/ccc", "aaa-prefix"),
        ("prefix-path-rules", "/aaaccc", ""),
        ("mixed-path-rules", "/foo", "foo-exact"),
        ("mixed-path-rules", "/foo/bar", "foo-prefix"),
        ("trailing-slash-path-rules", "/aaa/bbb", "aaa-bbb-slash"),
        ("trailing-slash-path-rules", "/aaa/bbb/", "aaa-bbb-slash"),
        ("trailing-slash-path-rules", "/foo", ""),
        ("trailing-slash-path-rules", "/foo/", "foo-slash-exact"),
        ("foo.bar.com", "/", "foo-bar-com"),
        ("subdomain.bar.com", "/", ""),
        ("bar.foo.com", "/", "wildcard-foo-com"),
        ("baz.bar.foo.com", "/", ""),
        ("foo.com", "/", ""),
    ];
    for (host, path, service) in cases {
        eventually(&format!("{host}{path}"), || {
            let (code, body) = ask(door, host, path)?;
            let fits = match service {
                "" => code == 404,
                name => code == 200 && body.starts_with(&format!("{name} {path} {host} ")),
            };
            if fits { Ok(()) } else { Err(format!("{code} {body}")) }
        });
    }
    // Load balancing: all of ten pods take part in a hundred requests, none of which fails.
    cluster.kubectl_ok(&["scale", "deployment/echo", "--replicas=10"]);
    let backend = json!({"service": {"name": "foo-exact", "port": {"name": "http"}}});
    let spec = json!({"ingressClassName": "rootlet", "defaultBackend": backend});
    ingress(&cluster, "balanced", &spec);
    cluster.kubectl_ok(&["rollout", "status", "deployment/echo", "--timeout=120s"]);
    eventually("all of ten", || {
        let mut pods = BTreeSet::new();
        for _ in 0..100 {
            let (code, body) = ask(door, "any-host", "/any")?;
            if code != 200 {
                return Err(format!("{code} {body}"));
            }
            pods.extend(body.split(' ').next_back().map(str::to_owned));
        }
        if pods.len() == 10 { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    // A class that is nobody's: no address, and its rule is not served.
    let rules = json!([rule("ingress-class", &[path("Prefix", "/", "foo-bar-com")])]);
    ingress(&cluster, "foreign", &json!({"ingressClassName": "none-such", "rules": rules}));
    let (code, body) = ask(door, "ingress-class", "/").expect("an answer");
    assert!(
        code == 200 && body.starts_with("foo-exact "),
        "for the default backend: {code} {body}"
    );
    let foreign = cluster.get(&["ingress", "foreign"]).expect("it is there");
    assert!(foreign["status"]["loadBalancer"]["ingress"].is_null(), "{foreign}");
}
