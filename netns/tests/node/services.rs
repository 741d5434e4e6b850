//! Services.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use netns::{Backend, Frontend, Protocol, Publication, ServiceTable};

use crate::harness::{Pod, TIMEOUT, ask, echo, run, start};

#[test]
fn services_lead_to_their_endpoints() {
    run("services::services_lead_to_their_endpoints", async {
        let (_node, control, _dir) = start().await;
        let pods = [Pod::new(), Pod::new(), Pod::new()];
        let mut addresses = Vec::new();
        for (number, pod) in pods.iter().enumerate() {
            addresses.push(pod.attach(&control, &number.to_string()).await.address);
        }
        pods[0].serve(8080, "zero");
        pods[1].serve(8080, "one");
        let frontend =
            Frontend { address: [10, 43, 0, 7].into(), protocol: Protocol::Tcp, port: 80 };
        let service = SocketAddr::from((frontend.address, 80));
        let table = |endpoints: &[IpAddr], affinity_s| ServiceTable {
            services: [(
                frontend,
                Backend {
                    endpoints: endpoints.iter().map(|a| (*a, 8080).into()).collect(),
                    affinity_s,
                    ..Backend::default()
                },
            )]
            .into(),
        };
        let refused = pods[2].ask(service).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "no such service");

        control.apply_services(table(&addresses[..2], None)).await.unwrap();
        let mut answers: Vec<_> = (0..40).map(|_| pods[2].ask(service).unwrap()).collect();
        answers.sort();
        answers.dedup();
        let seen = |banner: &str, who: IpAddr| format!("{banner} {who}\nhello");
        assert_eq!(answers, [seen("one", addresses[2]), seen("zero", addresses[2])]);
        let stream = control.connect_tcp(service).await.unwrap();
        assert_eq!(stream.local_addr().unwrap().ip(), IpAddr::from([10, 42, 0, 1]));

        control.apply_services(table(&addresses[..1], None)).await.unwrap();
        for _ in 0..10 {
            assert_eq!(pods[2].ask(service).unwrap(), seen("zero", addresses[2]));
        }
        let hairpin = pods[0].ask(service).unwrap();
        assert_eq!(hairpin, seen("zero", [10, 42, 0, 1].into()));

        control.apply_services(table(&addresses[..2], Some(60))).await.unwrap();
        let first = pods[2].ask(service).unwrap();
        for _ in 0..20 {
            assert_eq!(pods[2].ask(service).unwrap(), first, "affinity");
        }

        control.apply_services(table(&[], None)).await.unwrap();
        let refused = pods[2].ask(service).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "no endpoints");

        let elsewhere = Backend { elsewhere: true, ..Backend::default() };
        let away = ServiceTable { services: [(frontend, elsewhere)].into() };
        control.apply_services(away).await.unwrap();
        let soon = Duration::from_millis(300);
        let dropped = pods[2].run(move || TcpStream::connect_timeout(&service, soon).unwrap_err());
        assert_eq!(dropped.kind(), ErrorKind::TimedOut, "endpoints elsewhere");
        control.apply_services(table(&addresses[..1], None)).await.unwrap();
        assert_eq!(pods[2].ask(service).unwrap(), seen("zero", addresses[2]));
    });
}

fn udp_table(endpoints: &[SocketAddr]) -> (SocketAddr, ServiceTable) {
    let frontend = Frontend { address: [10, 43, 0, 8].into(), protocol: Protocol::Udp, port: 53 };
    let backend = Backend { endpoints: endpoints.to_vec(), ..Backend::default() };
    ((frontend.address, 53).into(), ServiceTable { services: [(frontend, backend)].into() })
}

#[test]
fn a_udp_client_moves_on_when_its_endpoint_goes() {
    run("services::a_udp_client_moves_on_when_its_endpoint_goes", async {
        let (_node, control, _dir) = start().await;
        let pods = [Pod::new(), Pod::new(), Pod::new()];
        let mut endpoints: Vec<SocketAddr> = Vec::new();
        for (number, pod) in pods.iter().enumerate() {
            let address = pod.attach(&control, &number.to_string()).await.address;
            endpoints.push((address, 5300).into());
        }
        let [client, first, second] = pods;
        let server = first.run(|| UdpSocket::bind("0.0.0.0:5300").unwrap());
        server.set_read_timeout(Some(TIMEOUT)).unwrap();
        echo(second.run(|| UdpSocket::bind("0.0.0.0:5300").unwrap()));
        let (service, table) = udp_table(&endpoints[1..2]);
        control.apply_services(table).await.unwrap();
        let socket = client.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.connect(service).unwrap();
            socket.send(b"one").unwrap();
            socket
        });
        let mut buffer = [0; 8];
        assert_eq!(server.recv(&mut buffer).unwrap(), 3);
        control.apply_services(udp_table(&endpoints[2..]).1).await.unwrap();
        socket.send(b"two!").unwrap();
        assert_eq!(socket.recv(&mut buffer).unwrap(), 4, "the second endpoint answers");
    });
}

#[test]
fn a_sticky_client_moves_on_when_its_endpoint_goes() {
    run("services::a_sticky_client_moves_on_when_its_endpoint_goes", async {
        let (_node, control, _dir) = start().await;
        let pods = [Pod::new(), Pod::new(), Pod::new()];
        let mut endpoints: Vec<SocketAddr> = Vec::new();
        for (number, pod) in pods.iter().enumerate() {
            let address = pod.attach(&control, &number.to_string()).await.address;
            endpoints.push((address, 80).into());
        }
        let [client, one, two] = pods;
        one.serve(80, "one");
        two.serve(80, "two");
        // An address beyond the cluster's ranges, as external IPs have.
        let frontend =
            Frontend { address: [198, 51, 100, 7].into(), protocol: Protocol::Tcp, port: 80 };
        let service = SocketAddr::from((frontend.address, 80));
        let table = |endpoints: &[SocketAddr]| ServiceTable {
            services: [(
                frontend,
                Backend {
                    endpoints: endpoints.to_vec(),
                    affinity_s: Some(60),
                    ..Backend::default()
                },
            )]
            .into(),
        };
        control.apply_services(table(&endpoints[1..])).await.unwrap();
        let first = client.ask(service).unwrap();
        let kept = usize::from(first.starts_with("one"));
        control.apply_services(table(&endpoints[1 + kept..2 + kept])).await.unwrap();
        let answers: BTreeSet<_> = (0..5).map(|_| client.ask(service).unwrap()).collect();
        assert!(answers.len() == 1 && !answers.contains(&first), "{first} then {answers:?}");
        control.apply_services(table(&[])).await.unwrap();
        let refused = client.ask(service).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "no endpoints");
    });
}

#[test]
fn a_udp_client_finds_an_endpoint_that_came_late() {
    run("services::a_udp_client_finds_an_endpoint_that_came_late", async {
        let (_node, control, _dir) = start().await;
        let (client, server) = (Pod::new(), Pod::new());
        client.attach(&control, "client").await;
        let endpoint = SocketAddr::from((server.attach(&control, "server").await.address, 5300));
        echo(server.run(|| UdpSocket::bind("0.0.0.0:5300").unwrap()));
        // A node port: what is sent there before anybody serves it arrives at the node itself.
        let frontend =
            Frontend { address: [10, 42, 0, 1].into(), protocol: Protocol::Udp, port: 30053 };
        let table = |endpoints: Vec<SocketAddr>| {
            let backend = Backend { endpoints, ..Backend::default() };
            ServiceTable { services: [(frontend, backend)].into() }
        };
        control.apply_services(table(Vec::new())).await.unwrap();
        let socket = client.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.connect(("10.42.0.1", 30053)).unwrap();
            socket.send(b"anyone?").unwrap();
            let refused = socket.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            socket
        });
        control.apply_services(table(vec![endpoint])).await.unwrap();
        socket.send(b"now").unwrap();
        assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 3);
    });
}

#[test]
fn the_nodes_loopback_leads_to_pods_and_is_not_for_them() {
    run("services::the_nodes_loopback_leads_to_pods_and_is_not_for_them", async {
        let (_node, control, _dir) = start().await;
        let (server, other) = (Pod::new(), Pod::new());
        let address = server.attach(&control, "server").await.address;
        other.attach(&control, "other").await;
        server.serve(80, "pod");
        let local = SocketAddr::from(([127, 0, 0, 1], 8080));
        let frontend = Frontend { address: local.ip(), protocol: Protocol::Tcp, port: 8080 };
        let backend = Backend { endpoints: vec![(address, 80).into()], ..Backend::default() };
        let table = ServiceTable { services: [(frontend, backend)].into() };
        control.apply_services(table).await.unwrap();
        let stream = control.connect_tcp(local).await.unwrap();
        let mut line = String::new();
        let mut reader = tokio::io::BufReader::new(stream);
        tokio::io::AsyncBufReadExt::read_line(&mut reader, &mut line).await.unwrap();
        assert_eq!(line, "pod 10.42.0.1\n");
        let timed_out = other.run(move || {
            for words in [
                "link set lo down",
                "route add 127.0.0.1/32 via 10.42.0.1 dev eth0 src 10.42.0.3 table 7",
                "rule add to 127.0.0.1 lookup 7 pref 0",
            ] {
                let _ = std::process::Command::new("ip").args(words.split(' ')).status();
            }
            std::net::TcpStream::connect_timeout(&local, std::time::Duration::from_millis(300))
        });
        assert!(timed_out.is_err());
    });
}

/// A load balancer's address on the host, as Kubernetes has it: pods reach the service there too.
#[test]
fn loopback_addresses_of_services_are_for_pods_too() {
    run("services::loopback_addresses_of_services_are_for_pods_too", async {
        let (_node, control, _dir) = start().await;
        let (server, client) = (Pod::new(), Pod::new());
        let address = server.attach(&control, "server").await.address;
        client.attach(&control, "client").await;
        server.serve(80, "pod");
        let own = SocketAddr::from(([127, 64, 7, 9], 8080));
        let frontend = Frontend { address: own.ip(), protocol: Protocol::Tcp, port: 8080 };
        let empty = Frontend { port: 8081, ..frontend };
        let backend = Backend { endpoints: vec![(address, 80).into()], ..Backend::default() };
        let services = [(frontend, backend), (empty, Backend::default())].into();
        control.apply_services(ServiceTable { services }).await.unwrap();
        assert_eq!(client.ask(own).unwrap(), "pod 10.42.0.3\nhello");
        assert_eq!(server.ask(own).unwrap(), "pod 10.42.0.1\nhello", "through itself");
        control.connect_tcp(own).await.expect("from the node's network");
        let refused = client.ask((own.ip(), 8081)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let others = client.run(move || {
            let other = SocketAddr::from(([127, 64, 7, 9], 9));
            std::net::TcpStream::connect_timeout(&other, std::time::Duration::from_millis(300))
        });
        assert!(others.is_err(), "the node's loopback itself is not for pods");
        let at_home = client.run(|| std::net::TcpListener::bind("127.0.0.1:80").is_ok());
        assert!(at_home, "the pod has its own loopback");
    });
}

#[test]
fn ten_thousand_services_change_by_difference() {
    run("services::ten_thousand_services_change_by_difference", async {
        let (_node, control, _dir) = start().await;
        let (client, server) = (Pod::new(), Pod::new());
        client.attach(&control, "client").await;
        let address = server.attach(&control, "server").await.address;
        server.serve(80, "pod");
        let frontend = |number: u16| {
            let [high, low] = number.to_be_bytes();
            Frontend { address: [10, 43, high, low].into(), protocol: Protocol::Tcp, port: 80 }
        };
        let backend = |last: u8| {
            let endpoints = vec![(address, 80).into(), SocketAddr::from(([10, 42, 0, last], 80))];
            Backend { endpoints, ..Backend::default() }
        };
        let mut table =
            ServiceTable { services: (0..10_000).map(|n| (frontend(n), backend(200))).collect() };
        let begun = std::time::Instant::now();
        control.apply_services(table.clone()).await.unwrap();
        let whole = begun.elapsed();
        let before = table.clone();
        let alone = Backend { endpoints: vec![(address, 80).into()], ..Backend::default() };
        table.services.insert(frontend(5000), alone);
        table.services.remove(&frontend(6000));
        let begun = std::time::Instant::now();
        let change = before.change_to(&table);
        assert_eq!((change.changed.len(), change.gone.len()), (1, 1));
        control.change_services(change).await.unwrap();
        eprintln!("10,000 services in {whole:?}; a change in {:?}", begun.elapsed());
        for _ in 0..8 {
            assert!(client.ask((frontend(5000).address, 80)).unwrap().starts_with("pod"));
        }
        let refused = client.ask((frontend(6000).address, 80)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    });
}

/// `externalTrafficPolicy: Local`, as Kubernetes calls it: what comes in from outside stays here, and
/// what pods begin goes to any endpoint.
#[test]
fn pods_may_have_other_endpoints_than_everybody() {
    run("services::pods_may_have_other_endpoints_than_everybody", async {
        let (_node, control, _dir) = start().await;
        let pods = [Pod::new(), Pod::new(), Pod::new()];
        let mut addresses = Vec::new();
        for (number, pod) in pods.iter().enumerate() {
            let address = pod.attach(&control, &number.to_string()).await.address;
            addresses.push(SocketAddr::from((address, 80)));
        }
        pods[0].serve(80, "zero");
        pods[1].serve(80, "one");
        let target = SocketAddr::from(([10, 42, 0, 1], 30_080));
        let frontend =
            Frontend { address: target.ip(), protocol: Protocol::Tcp, port: target.port() };
        let host = SocketAddr::from(([127, 0, 0, 1], 30_080));
        let apply = async |outside: &[SocketAddr], pods: Option<&[SocketAddr]>| {
            let (endpoints, for_pods) = (outside.to_vec(), pods.map(<[_]>::to_vec));
            let elsewhere = endpoints.is_empty();
            let backend = Backend { endpoints, for_pods, elsewhere, ..Backend::default() };
            let services = [(frontend, backend)].into();
            control.apply_services(ServiceTable { services }).await.unwrap();
            let (protocol, served) = (Protocol::Tcp, !outside.is_empty());
            let published =
                Publication { host, protocol, target, served, allowed: None, keeps_client: false };
            assert_eq!(control.publish(vec![published]).await.unwrap(), [None]);
        };
        let names = |ask: &dyn Fn() -> String| -> BTreeSet<String> {
            let words = (0..40).map(|_| ask());
            words.map(|text| text.split(' ').next().unwrap_or_default().to_owned()).collect()
        };
        let from_pod = || pods[2].ask(target).unwrap();
        let from_host = || ask(host).unwrap();
        let from_node = async || -> BTreeSet<String> {
            let mut seen = BTreeSet::new();
            for _ in 0..40 {
                let stream = control.connect_tcp(target).await.unwrap();
                let mut words =
                    tokio::io::AsyncBufReadExt::split(tokio::io::BufReader::new(stream), b' ');
                let word = words.next_segment().await.unwrap().unwrap();
                seen.insert(String::from_utf8(word).unwrap());
            }
            seen
        };
        let (zero, one) = (addresses[0], addresses[1]);
        let both = BTreeSet::from(["zero".to_owned(), "one".to_owned()]);

        apply(&[zero], Some(&[zero, one])).await;
        assert_eq!(names(&from_pod), both);
        assert_eq!(names(&from_host), ["zero".to_owned()].into());
        assert_eq!(from_node().await, both, "pods on the node's network are in the cluster, too");
        apply(&[zero], Some(&[one])).await;
        assert_eq!(names(&from_pod), ["one".to_owned()].into());
        assert_eq!(names(&from_host), ["zero".to_owned()].into());
        apply(&[], Some(&[zero, one])).await;
        assert_eq!(names(&from_pod), both);
        assert_eq!(ask(host).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        apply(&[one], None).await;
        assert_eq!(names(&from_pod), ["one".to_owned()].into());
        assert_eq!(names(&from_host), ["one".to_owned()].into());
    });
}

/// `loadBalancerSourceRanges`: others' first packets are dropped, and what began goes on.
#[test]
fn services_may_be_for_some_clients_only() {
    run("services::services_may_be_for_some_clients_only", async {
        let (_node, control, _dir) = start().await;
        let (server, client) = (Pod::new(), Pod::new());
        let own = server.attach(&control, "server").await.address;
        let other = client.attach(&control, "client").await.address;
        server.serve(80, "web");
        let frontend =
            Frontend { address: [127, 64, 0, 9].into(), protocol: Protocol::Tcp, port: 80 };
        let service = SocketAddr::from((frontend.address, 80));
        let apply = async |allowed: Option<&[&str]>| {
            let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
            let allowed = allowed.map(ranges);
            let backend =
                Backend { endpoints: vec![(own, 80).into()], allowed, ..Backend::default() };
            let services = [(frontend, backend)].into();
            control.apply_services(ServiceTable { services }).await.unwrap();
        };
        let patience = Duration::from_millis(300);
        let reached = || {
            let stream = client.run(move || TcpStream::connect_timeout(&service, patience));
            stream.map_err(|error| error.kind())
        };
        let cases: [(Option<&[&str]>, bool); 6] = [
            (None, true),
            (Some(&["192.0.2.0/24", "10.42.0.3/32"]), true),
            (Some(&["10.42.0.0/24"]), true),
            (Some(&["192.0.2.0/24"]), false),
            (Some(&[]), false),
            (Some(&["0.0.0.0/0"]), true),
        ];
        assert_eq!(other, IpAddr::from([10, 42, 0, 3]));
        apply(None).await;
        let before = client.run(move || TcpStream::connect(service)).unwrap();
        for (ranges, want) in cases {
            apply(ranges).await;
            let wanted = if want { Ok(()) } else { Err(ErrorKind::TimedOut) };
            assert_eq!(reached().map(drop), wanted, "{ranges:?}");
        }
        apply(Some(&[])).await;
        before.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        before.set_read_timeout(Some(TIMEOUT)).unwrap();
        std::io::Read::read_to_string(&mut &before, &mut text).unwrap();
        assert_eq!(text, format!("web {other}\n"), "what began goes on");
        apply(None).await;
        assert!(reached().is_ok(), "everybody again, and the kernel lets go of the ranges");
    });
}
