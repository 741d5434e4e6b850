//! The network, as pods and people on the host see it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Answer, BUSYBOX, Cluster, eventually, run};
use crate::ingress;

const PATIENCE: Duration = Duration::from_secs(5);

/// The host's own address, if it has one besides loopback: what its default route starts from.
pub fn host_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port is free");
    socket.connect("192.0.2.255:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// A pod that serves `text` over HTTP on port 8080, which it calls `http`.
pub fn server(name: &str, labels: &Value, text: &str) -> String {
    let script =
        format!("mkdir /tmp/w; echo {text} > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w");
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script],
             "ports": [{"name": "http", "containerPort": 8080}],
             "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}]}})
    .to_string()
}

/// A pod that waits to be told what to do.
pub fn client(cluster: &Cluster, name: &str) {
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "main", "image": BUSYBOX, "command": ["sleep", "100000"]}]}});
    cluster.apply(&pod.to_string());
}

/// A Service.
pub fn service(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

/// Runs a script in a pod.
pub fn sh(cluster: &Cluster, pod: &str, script: &str) -> Answer {
    cluster.kubectl(&["exec", pod, "--", "sh", "-c", script])
}

/// What a script in a pod prints, once it succeeds.
pub fn sh_ok(cluster: &Cluster, pod: &str, script: &str) -> String {
    eventually(&format!("{pod}: {script}"), || {
        let answer = sh(cluster, pod, script);
        if answer.code == Some(0) { Ok(answer.out) } else { Err(answer.err + &answer.out) }
    })
}

fn get(address: SocketAddr) -> Result<String, String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    ask().map_err(|error| error.to_string())
}

/// A pod gets what a server of this machine says, where the machine has an address.
pub fn reaches_the_host(cluster: &Cluster, pod: &str) {
    let Some(host) = host_address() else { return };
    let listener = TcpListener::bind((host, 0)).expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a pod connects");
        stream.write_all(b"out\n").expect("it can be written");
    });
    assert_eq!(sh_ok(cluster, pod, &format!("nc {host} {port} </dev/null")), "out\n");
    served.join().expect("the server is done");
}

#[test]
fn pods_reach_out_and_each_other() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&server("web", &json!({"app": "web"}), "hello"));
    client(&cluster, "client");
    let ports = json!([{"name": "http", "port": 80, "targetPort": "http"},
        {"name": "other", "port": 81, "targetPort": 8080}]);
    for name in ["web", "1web"] {
        cluster.apply(&service(name, &json!({"selector": {"app": "web"}, "ports": ports})));
    }
    cluster.apply(&service(
        "direct",
        &json!({"selector": {"app": "web"}, "clusterIP": "None", "ports": [
            {"name": "http", "port": 8080}]}),
    ));
    let far = json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"});
    cluster.apply(&service("alias", &far));
    let web = cluster.pod_ready("web");
    cluster.pod_ready("client");
    let ip = web["status"]["podIP"].as_str().expect("it has an address").to_owned();

    assert_eq!(sh_ok(&cluster, "client", &format!("wget -qO- http://{ip}:8080/")), "hello\n");
    for name in ["web", "web.default", "web.default.svc.cluster.local", "1web", "alias"] {
        let got = sh_ok(&cluster, "client", &format!("wget -qO- http://{name}/"));
        assert_eq!(got, "hello\n", "{name}");
    }
    assert_eq!(sh_ok(&cluster, "client", "wget -qO- http://direct:8080/"), "hello\n");
    assert_eq!(
        sh_ok(&cluster, "web", "wget -qO- http://web.default/"),
        "hello\n",
        "through itself"
    );
    assert_eq!(sh_ok(&cluster, "client", "wget -qO- http://web:81/"), "hello\n", "second port");
    let looked = sh_ok(&cluster, "client", "nslookup -type=a direct.default.svc.cluster.local");
    assert!(looked.contains(&ip), "{looked}");
    let label = ip.replace('.', "-");
    let looked =
        sh_ok(&cluster, "client", &format!("nslookup -type=a {label}.default.pod.cluster.local"));
    assert!(looked.contains(&ip), "{looked}");
    let told = sh_ok(&cluster, "client", "wget -qO- http://kube-dns.kube-system:9153/metrics");
    let line = told.lines().find(|line| line.contains("type=\"A\""));
    assert!(line.is_some_and(|line| line.starts_with("coredns_dns_requests_total{")), "{told}");
    let absent = sh(&cluster, "client", "nslookup -type=a none.default.svc.cluster.local");
    assert!((absent.out + &absent.err).contains("NXDOMAIN"));
    let nobody = json!({"selector": {"app": "nobody"}, "ports": [{"port": 80}]});
    cluster.apply(&service("empty", &nobody));
    eventually("a refusal", || {
        let answer = sh(&cluster, "client", "timeout 3 wget -qO- http://empty/");
        if answer.err.contains("refused") { Ok(()) } else { Err(answer.err) }
    });

    let Some(host) = host_address() else {
        eprintln!("SKIPPED: this machine has no address besides loopback");
        return;
    };
    let listener = TcpListener::bind((host, 0)).expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a pod connects");
        let mut asked = Vec::new();
        // Half-closed by the pod, answered after that.
        stream.read_to_end(&mut asked).expect("it can be read");
        stream.write_all(&asked).expect("it can be written");
    });
    let echoed = sh_ok(&cluster, "client", &format!("echo there and back | nc {host} {port}"));
    assert_eq!(echoed, "there and back\n");
    served.join().expect("the server is done");
    let refused = sh(&cluster, "client", &format!("timeout 3 wget -qO- http://{host}:{port}/"));
    assert!(refused.err.contains("Connection refused"), "{}", refused.err);
    let datagrams = UdpSocket::bind((host, 0)).expect("a port is free");
    let port = datagrams.local_addr().expect("it is bound").port();
    let asked = std::thread::spawn(move || {
        let mut buffer = [0; 512];
        let (length, peer) = datagrams.recv_from(&mut buffer).expect("a pod asks");
        // A DNS answer (RFC 1035, 4.1.1): the question again, marked as an answer, code 3.
        buffer[2..4].copy_from_slice(&[0x81, 0x83]);
        datagrams.send_to(&buffer[..length], peer).expect("it can be sent");
    });
    let told = sh(&cluster, "client", &format!("nslookup -type=a x.test. {host}:{port}"));
    assert!((told.out.clone() + &told.err).contains("NXDOMAIN"), "{told:?}");
    asked.join().expect("the server was asked");
    let by_name = sh_ok(&cluster, "client", "nslookup -type=a host.rootlet.internal");
    assert!(by_name.contains(&host.to_string()), "{by_name}");
}

#[test]
fn ports_of_the_host_lead_to_pods() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&server("web", &json!({"app": "web"}), "hello"));
    let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = free.local_addr().expect("it is bound").port();
    let ports = json!([{"port": port, "targetPort": 8080}]);
    let spec = json!({"type": "LoadBalancer", "selector": {"app": "web"}, "ports": ports});
    cluster.apply(&service("lb", &spec));
    let low = json!([{"port": 79, "targetPort": 8080}]);
    let spec = json!({"type": "LoadBalancer", "selector": {"app": "web"}, "ports": low});
    cluster.apply(&service("low", &spec));
    drop(free);
    let onlooker = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "onlooker"},
        "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 0, "containers": [
            {"name": "main", "image": BUSYBOX, "command": ["sleep", "100000"]}]}});
    cluster.apply(&onlooker.to_string());
    for name in ["web", "onlooker"] {
        cluster.pod_ready(name);
    }
    let ingress = |name: &str| {
        eventually(&format!("the address of {name}"), || {
            let service = cluster.get(&["service", name])?;
            let ingress = &service["status"]["loadBalancer"]["ingress"][0];
            let ip: IpAddr = ingress["ip"]
                .as_str()
                .and_then(|ip| ip.parse().ok())
                .ok_or_else(|| service["status"].to_string())?;
            let port = ingress["ports"][0]["port"].as_u64().unwrap_or_default();
            let node_port = service["spec"]["ports"][0]["nodePort"].as_u64().unwrap_or_default();
            Ok((SocketAddr::new(ip, port as u16), node_port as u16))
        })
    };
    let (address, node_port) = ingress("lb");
    assert!(address.ip().is_loopback() && address.port() == port, "{address}");
    for host in [address, SocketAddr::from(([127, 0, 0, 1], node_port))] {
        let text = eventually(&format!("an answer from {host}"), || {
            let text = get(host)?;
            if text.ends_with("hello\n") { Ok(text) } else { Err(text) }
        });
        assert!(text.contains(" 200 OK"), "{text}");
    }
    // From a pod too, also one on the node's network: as anywhere else, the address is the Service's.
    for name in ["web", "onlooker"] {
        let url = format!("http://{address}/");
        let got = sh_ok(&cluster, name, &format!("timeout 5 wget -qO- {url}"));
        assert_eq!(got, "hello\n", "{name} {url}");
    }
    source_ranges_say_who_reaches_it(&cluster, address);
    // What kube-proxy tells of itself at these ports is told there, too.
    for (port_path, part) in [("10256/healthz", "lastUpdated"), ("10249/proxyMode", "nftables")] {
        let url = format!("http://127.0.0.1:{port_path}");
        let told = sh_ok(&cluster, "onlooker", &format!("timeout 5 wget -qO- {url}"));
        assert!(told.contains(part), "{url}: {told}");
    }
    let kept = "service.kubernetes.io/load-balancer-cleanup";
    let finalizers = |want: Value| {
        eventually(&format!("finalizers {want}"), || {
            let found = cluster.get(&["service", "lb"])?["metadata"]["finalizers"].clone();
            if found == want { Ok(()) } else { Err(found.to_string()) }
        });
    };
    finalizers(json!([kept]));
    for (kind, want) in [("ClusterIP", Value::Null), ("LoadBalancer", json!([kept]))] {
        let patch = json!({"spec": {"type": kind}}).to_string();
        cluster.kubectl_ok(&["patch", "service", "lb", "--type=merge", "-p", &patch]);
        finalizers(want);
    }
    cluster.kubectl_ok(&["delete", "service", "lb", "--timeout=20s"]);
    // Whether port 79 can be had depends on the host; either way the status tells the truth.
    let (address, node_port) = ingress("low");
    eventually(&format!("an answer from {address}"), || get(address));
    if address.port() == node_port {
        let message = cluster.event("low", "PortNeedsPrivilege");
        assert!(message.contains("net.ipv4.ip_unprivileged_port_start=79"), "{message}");
        assert!(message.contains(&format!("127.0.0.1:{node_port}")), "{message}");
    }
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let clash = taken.local_addr().expect("it is bound").port();
    let pod = |name: &str, port: u16| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [
                {"name": "main", "image": BUSYBOX,
                 "command": ["sh", "-c", "echo mine > /tmp/index.html; exec httpd -f -p 80 -h /tmp"],
                 "ports": [{"containerPort": 80, "hostPort": port}]}]}})
        .to_string()
    };
    cluster.apply(&pod("clash", clash));
    let message = cluster.event("clash", "PortConflict");
    assert!(message.contains(&format!("127.0.0.1:{clash}")), "{message}");
    drop(taken);
    let mine = |host| get(host).and_then(|t| t.ends_with("mine\n").then_some(()).ok_or(t));
    let given_back = SocketAddr::from(([127, 0, 0, 1], clash));
    eventually("the port that was given back", || mine(given_back));
    let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = free.local_addr().expect("it is bound").port();
    drop(free);
    cluster.apply(&pod("hosted", port));
    let host = SocketAddr::from(([127, 0, 0, 1], port));
    eventually("the host port", || mine(host));
    cluster.kubectl_ok(&["delete", "pod", "hosted"]);
    eventually("the port's return", || TcpListener::bind(host).map_err(|e| e.to_string()));
}

/// Upstream's "should only allow access from service loadbalancer source ranges", and the host besides: the Service
/// is called `lb`, its pod `web`, and `onlooker` is on the node's network.
fn source_ranges_say_who_reaches_it(cluster: &Cluster, address: SocketAddr) {
    let web = cluster.get(&["pod", "web"]).expect("it is there");
    let web = web["status"]["podIP"].as_str().expect("it has an address").to_owned();
    let script = format!("timeout 2 wget -qO- http://{address}/");
    // Who is let in, and whether web, onlooker and the host are.
    let cases = [
        (json!([format!("{web}/32")]), [true, false, false]),
        (json!(["127.0.0.0/8"]), [false, true, true]),
        (json!(["10.42.0.1/32"]), [false, true, true]),
        (json!([]), [true, true, true]),
    ];
    for (ranges, want) in cases {
        let patch = json!({"spec": {"loadBalancerSourceRanges": ranges}}).to_string();
        cluster.kubectl_ok(&["patch", "service", "lb", "--type=merge", "-p", &patch]);
        eventually(&format!("ranges {ranges}"), || {
            let reached = [
                sh(cluster, "web", &script).out == "hello\n",
                sh(cluster, "onlooker", &script).out == "hello\n",
                get(address).is_ok_and(|text| text.ends_with("hello\n")),
            ];
            if reached == want { Ok(()) } else { Err(format!("{reached:?}, want {want:?}")) }
        });
    }
}

#[test]
fn a_command_enters_the_pods_network() {
    let cluster = Cluster::ephemeral();
    let web = "echo inside > /tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    cluster.kubectl_ok(&[
        "run",
        "web",
        "--image",
        BUSYBOX,
        "--expose",
        "--port=8080",
        "--",
        "sh",
        "-c",
        web,
    ]);
    let pod = cluster.pod_ready("web");
    let service = cluster.get(&["service", "web"]).expect("it is exposed");
    for address in [&pod["status"]["podIP"], &service["spec"]["clusterIP"]] {
        let address = address.as_str().expect("an address");
        let ask = format!(
            "exec 3<>/dev/tcp/{address}/8080; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
        );
        eventually("the page", || {
            let answer = cluster.rootlet_with(&["enter"], &["bash", "-c", &ask]);
            if answer.out.ends_with("inside\n") {
                Ok(())
            } else {
                Err(format!("{address}: {answer:?}"))
            }
        });
    }
    let status = cluster.rootlet_with(&["enter"], &["sh", "-c", "pwd; id -u; exit 7"]);
    let here = format!("{}\n0\n", cluster.path("").display().to_string().trim_end_matches('/'));
    assert_eq!((status.code, status.out), (Some(7), here), "{}", status.err);
    let none = cluster.rootlet_with(&["enter"], &["no-such-program"]);
    assert!(none.err.contains("cannot run no-such-program"), "{}", none.err);
}

#[test]
fn policies_say_who_may_speak_with_whom() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&server("web", &json!({"app": "web"}), "hello"));
    for name in ["friend", "stranger"] {
        client(&cluster, name);
    }
    let web = cluster.pod_ready("web");
    let url = format!("http://{}:8080/", web["status"]["podIP"].as_str().unwrap_or_default());
    for name in ["friend", "stranger"] {
        cluster.pod_ready(name);
        assert_eq!(sh_ok(&cluster, name, &format!("timeout 5 wget -qO- {url}")), "hello\n");
    }
    let policy = |name: &str, spec: Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name}, "spec": spec})
        .to_string()
    };
    cluster.apply(&policy(
        "web",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}],
                "ports": [{"port": "http"}]}]}),
    ));
    let blocked = |name: &str| {
        eventually(&format!("{name} to be kept away"), || {
            let answer = sh(&cluster, name, &format!("timeout 1 wget -qO- {url}"));
            // 143: what `timeout` says of a program that it had to end.
            if answer.code == Some(143) { Ok(()) } else { Err(format!("{answer:?}")) }
        });
    };
    blocked("stranger");
    assert_eq!(sh_ok(&cluster, "friend", &format!("timeout 5 wget -qO- {url}")), "hello\n");
    // The node's own probes still reach it.
    cluster.pod_ready("web");
    // A pod that comes now is under the policies from its first packet on.
    cluster.apply(&policy(
        "none",
        json!({"podSelector": {"matchLabels": {"app": "late"}},
        "policyTypes": ["Egress"]}),
    ));
    let script = format!(
        "timeout 1 wget -qO- {url} && exit 0; nslookup kubernetes.default.svc.cluster.local && exit 7"
    );
    let late = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "late", "labels": {"app": "late"}},
        "spec": {"restartPolicy": "Never", "containers": [
            {"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script]}]}});
    cluster.apply(&late.to_string());
    let late = cluster.pod_phase("late", "Failed");
    let state = &late["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(state["exitCode"], 7, "{state}");
    cluster.kubectl_ok(&["delete", "networkpolicy", "web", "none"]);
    assert_eq!(sh_ok(&cluster, "stranger", &format!("timeout 5 wget -qO- {url}")), "hello\n");
}

#[test]
fn pods_and_services_have_both_families() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral", "--ip-family", "dual"]);
    cluster.load_busybox();
    cluster.apply(&server("web", &json!({"app": "web"}), "hello"));
    client(&cluster, "client");
    let web = cluster.pod_ready("web");
    let ips = web["status"]["podIPs"].as_array().cloned().unwrap_or_default();
    if ips.len() < 2 {
        eprintln!("SKIPPED: this kernel has no IPv6");
        return;
    }
    let spec = json!({"ipFamilyPolicy": "RequireDualStack", "selector": {"app": "web"},
        "ports": [{"port": 80, "targetPort": 8080}]});
    cluster.apply(&service("both", &spec));
    let both = cluster.get(&["service", "both"]).expect("it is there");
    assert_eq!(both["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    let six = both["spec"]["clusterIPs"][1].as_str().expect("it has two addresses").to_owned();
    cluster.pod_ready("client");
    let pod = ips[1]["ip"].as_str().expect("it has an address");
    for url in [format!("http://[{pod}]:8080/"), format!("http://[{six}]/")] {
        assert_eq!(sh_ok(&cluster, "client", &format!("wget -qO- {url}")), "hello\n", "{url}");
    }
    let looked = sh_ok(&cluster, "client", "nslookup -type=aaaa both.default.svc.cluster.local");
    assert!(looked.contains(&six), "{looked}");
}

#[test]
fn a_cluster_may_know_ipv6_alone() {
    let cluster = Cluster::prepared();
    let file = cluster.path("kubeconfig");
    let file = file.to_str().expect("paths are UTF-8");
    let words = ["up", "--kubeconfig", file, "--ephemeral", "--ip-family", "ipv6"];
    let answer = cluster.rootlet(&words);
    if answer.err.contains("no IPv6") {
        eprintln!("SKIPPED: this kernel has no IPv6");
        return;
    }
    assert_eq!(answer.code, Some(0), "{}{}", answer.out, answer.err);
    cluster.load_busybox();
    cluster.apply(&server("web", &json!({"app": "web"}), "hello"));
    client(&cluster, "client");
    let spec = json!({"type": "NodePort", "selector": {"app": "web"}, "ports": [
        {"port": 80, "targetPort": 8080}]});
    cluster.apply(&service("web", &spec));
    let web = cluster.pod_ready("web");
    cluster.pod_ready("client");
    assert_eq!(web["status"]["podIPs"].as_array().map(Vec::len), Some(1), "{}", web["status"]);
    assert!(web["status"]["podIP"].as_str().is_some_and(|ip| ip.starts_with("fd00:")));
    let web = cluster.get(&["service", "web"]).expect("it is there");
    assert_eq!(web["spec"]["ipFamilies"], json!(["IPv6"]));
    assert_eq!(sh_ok(&cluster, "client", "wget -qO- http://web.default/"), "hello\n");
    let api = "wget -qO- --no-check-certificate https://kubernetes.default/livez; \
               nc -w 3 kubernetes.default 443 </dev/null && echo reached";
    assert!(sh_ok(&cluster, "client", api).contains("reached"));
    let node_port = web["spec"]["ports"][0]["nodePort"].as_u64().unwrap_or_default();
    let host = SocketAddr::from(([127, 0, 0, 1], node_port as u16));
    eventually("the node port", || {
        get(host).and_then(|t| t.ends_with("hello\n").then_some(()).ok_or(t))
    });
}

#[test]
fn ingresses_are_served_where_that_is_asked_for() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral", "--ingress"]);
    cluster.load_busybox();
    for (name, text) in [("one", "first"), ("two", "second")] {
        cluster.apply(&server(name, &json!({"app": name}), text));
        let ports = json!([{"name": "web", "port": 80, "targetPort": 8080}]);
        cluster.apply(&service(name, &json!({"selector": {"app": name}, "ports": ports})));
    }
    let to = |name: &str| json!({"service": {"name": name, "port": {"name": "web"}}});
    let ingress = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": "web"}, "spec": {"ingressClassName": "rootlet", "rules": [
            {"host": "one.test", "http": {"paths": [
                {"path": "/", "pathType": "Prefix", "backend": to("one")},
                {"path": "/lost", "pathType": "Exact", "backend": to("gone")}]}},
            {"host": "*.two.test", "http": {"paths": [
                {"path": "/", "pathType": "Prefix", "backend": to("two")}]}}]}});
    cluster.apply(&ingress.to_string());
    let address = ingress::address(&cluster, "web");
    let expect = |host: &str, path: &str, want: &str| {
        eventually(&format!("{host}{path}"), || {
            ingress::answer(address, host, path)
                .and_then(|text| text.contains(want).then_some(()).ok_or(text))
        });
    };
    for name in ["one", "two"] {
        cluster.pod_ready(name);
    }
    expect("one.test", "/", "first\n");
    expect("x.two.test", "/", "second\n");
    expect("other.test", "/", " 404 Not Found");
    expect("one.test", "/lost", " 503 Service Unavailable");
    assert!(cluster.event("web", "BackendNotFound").contains("\"gone\""));
    assert!(cluster.event("web", "Published").contains(&format!("http://{address}")));
    cluster.kubectl_ok(&["delete", "ingress", "web"]);
    expect("one.test", "/", " 404 Not Found");
}

#[test]
fn the_network_outlives_the_node_process() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&server("web", &json!({"app": "web"}), "hello"));
    client(&cluster, "client");
    let ports = json!([{"port": 80, "targetPort": 8080}]);
    cluster.apply(&service("web", &json!({"selector": {"app": "web"}, "ports": ports})));
    cluster.pod_ready("web");
    cluster.pod_ready("client");
    assert_eq!(sh_ok(&cluster, "client", "wget -qO- http://web/"), "hello\n");
    // Connections to another pod and to a service, which say something all the time.
    let echo = "nc -ll -p 9000 -e cat >/dev/null 2>&1 </dev/null &";
    assert_eq!(sh(&cluster, "web", echo).code, Some(0));
    let ip = cluster.get(&["pod", "web"]).expect("it is there");
    let ip = ip["status"]["podIP"].as_str().expect("it has an address").to_owned();
    let spec = json!({"selector": {"app": "web"}, "ports": [{"port": 9000}]});
    cluster.apply(&service("echo", &spec));
    for (place, file) in [(ip.as_str(), "direct"), ("echo", "service")] {
        sh_ok(&cluster, "client", &format!("nc -w 1 {place} 9000 </dev/null"));
        let script = format!(
            "(for i in $(seq 80); do echo $i; sleep 0.1; done; sleep 1) | \
             nc {place} 9000 >/tmp/{file} 2>&1 &"
        );
        assert_eq!(sh(&cluster, "client", &script).code, Some(0));
    }
    for file in ["direct", "service"] {
        sh_ok(&cluster, "client", &format!("grep -q 3 /tmp/{file}"));
    }
    let lock = cluster.path("rootlet").join(&cluster.name).join("node.pid");
    let pid = || std::fs::read_to_string(&lock).unwrap_or_default();
    let first = pid();
    let killed = run(Command::new("kill").args(["-KILL", first.trim()]));
    assert_eq!(killed.code, Some(0), "{}", killed.err);
    eventually("another node process", || {
        let now = pid();
        if now.trim().is_empty() || now == first { Err(now) } else { Ok(()) }
    });
    // By name: so DNS, the service and the way between pods are there again.
    assert_eq!(sh_ok(&cluster, "client", "timeout 5 wget -qO- http://web/"), "hello\n");
    let whole: String = (1..=80).map(|number| format!("{number}\n")).collect();
    for file in ["direct", "service"] {
        eventually("the connection to go on", || {
            let got = sh(&cluster, "client", &format!("cat /tmp/{file}")).out;
            if got == whole { Ok(()) } else { Err(format!("{file}: {got}")) }
        });
    }
    cluster.apply(&server("later", &json!({"app": "later"}), "new"));
    cluster.pod_ready("later");
    reaches_the_host(&cluster, "client");
}

/// Upstream's conformance: "validates that there is no conflict between pods with same hostPort but
/// different hostIP and protocol", as seen from the node's network.
#[test]
fn host_ports_differ_by_address() {
    let cluster = Cluster::ephemeral();
    let pod = |name: &str, host_ip: &str| {
        let script = format!("mkdir /w; echo {name} > /w/index.html; exec httpd -f -p 80 -h /w");
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [
                {"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script],
                 "ports": [{"containerPort": 80, "hostPort": 54323, "hostIP": host_ip}]}]}})
        .to_string()
    };
    cluster.apply(&pod("local", "127.0.0.1"));
    cluster.apply(&pod("node", "10.42.0.1"));
    let onlooker = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "onlooker"},
        "spec": {"hostNetwork": true, "terminationGracePeriodSeconds": 0, "containers": [
            {"name": "main", "image": BUSYBOX, "command": ["sleep", "100000"]}]}});
    cluster.apply(&onlooker.to_string());
    for name in ["local", "node", "onlooker"] {
        cluster.pod_ready(name);
    }
    for (address, want) in [("127.0.0.1", "local\n"), ("10.42.0.1", "node\n")] {
        let script = format!("timeout 5 wget -qO- http://{address}:54323/");
        assert_eq!(sh_ok(&cluster, "onlooker", &script), want);
    }
}

#[test]
fn annotations_limit_a_pods_bandwidth() {
    let cluster = Cluster::ephemeral();
    client(&cluster, "free");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "slow", "annotations": {
            "kubernetes.io/ingress-bandwidth": "3M", "kubernetes.io/egress-bandwidth": "2M"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "main", "image": BUSYBOX, "command": ["sleep", "100000"]}]}});
    cluster.apply(&pod.to_string());
    for name in ["free", "slow"] {
        cluster.pod_ready(name);
    }
    // What comes to the pod is limited before it gets there; what it sends, where it sends it.
    let node = cluster.rootlet_with(&["enter"], &["tc", "qdisc", "show"]);
    assert_eq!(node.out.matches("rate 3Mbit").count(), 1, "{}{}", node.out, node.err);
    let slow = cluster.get(&["pod", "slow"]).expect("it is there");
    let ip = slow["status"]["podIP"].as_str().expect("it has an address").to_owned();
    assert_eq!(
        sh(&cluster, "slow", "nc -ll -p 9 -e cat >/dev/null 2>&1 </dev/null &").code,
        Some(0)
    );
    // At either rate it takes more than a second, beyond the bursts.
    let script = format!("head -c 700000 /dev/zero | nc -w 20 {ip} 9 | wc -c");
    let begun = std::time::Instant::now();
    assert_eq!(sh_ok(&cluster, "free", &script).trim(), "700000");
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(1), "it was not limited: {took:?}");
}
