//! Clients on other machines, which come in through the host's ports.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use netns::{
    Backend, Control, Frontend, Member, PolicyRule, PolicyTable, Protocol, Publication,
    ServiceTable,
};
use socket2::{Domain, Socket, Type};

use crate::harness::{Pod, TIMEOUT, run, start};

/// This machine's address on the link to the other one, and two of that.
const NEAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const SECOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 3);
/// One that the other machine has out of the cluster's own range.
const WITHIN: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 200);
const PATIENCE: Duration = Duration::from_millis(400);

fn shell(script: &str) {
    assert!(Command::new("sh").args(["-ec", script]).status().unwrap().success(), "{script}");
}

/// Another machine.
fn machine() -> Pod {
    let machine = Pod::new();
    let mut holder = machine.run(|| Command::new("sleep").arg("60").spawn().unwrap());
    shell(&format!(
        "ip link add wan type veth peer name wan netns {} && ip address add {NEAR}/24 dev wan && ip link set wan up && ip route add {WITHIN} dev wan",
        holder.id()
    ));
    holder.kill().unwrap();
    holder.wait().unwrap();
    machine.run(|| {
        shell(&format!(
            "ip address add {FIRST}/24 dev wan && ip address add {SECOND}/24 dev wan && ip address add {WITHIN}/32 dev wan && ip link set wan up"
        ));
    });
    machine
}

/// Whom a server sees when one of the other machine's addresses asks it; None when nobody answers.
fn seen(machine: &Pod, client: Ipv4Addr, server: SocketAddr) -> Option<String> {
    let ask = move || -> std::io::Result<String> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((client, 0)).into())?;
        socket.connect_timeout(&server.into(), TIMEOUT)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = [0; 64];
        let length = stream.read(&mut line)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.write_all(b"hello")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut rest = String::new();
        stream.read_to_string(&mut rest)?;
        assert_eq!(rest, "hello");
        let line = String::from_utf8_lossy(&line[..length]).into_owned();
        Ok(line.trim_end().rsplit(' ').next().unwrap_or_default().to_owned())
    };
    match machine.run(ask) {
        Ok(seen) => Some(seen),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
            None
        }
    }
}

/// A server at port 53 that tells whom it sees.
fn mirror(pod: &Pod) {
    let socket = pod.run(|| UdpSocket::bind("0.0.0.0:53").unwrap());
    std::thread::spawn(move || {
        while let Ok((_, client)) = socket.recv_from(&mut [0; 64]) {
            let _ = socket.send_to(client.ip().to_string().as_bytes(), client);
        }
    });
}

fn seen_by_datagram(machine: &Pod, server: SocketAddr) -> String {
    machine.run(move || {
        let socket = UdpSocket::bind((FIRST, 0)).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.send_to(b"who", server).unwrap();
        let mut text = [0; 64];
        let length = socket.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    })
}

async fn publish(control: &Control, target: SocketAddr, protocol: Protocol, keeps_client: bool) {
    let host = SocketAddr::from((NEAR, target.port()));
    let published =
        Publication { host, protocol, target, served: true, allowed: None, keeps_client };
    assert_eq!(control.publish(vec![published]).await.unwrap(), [None]);
}

#[test]
fn clients_keep_their_addresses_where_that_is_asked_for() {
    run("clients::clients_keep_their_addresses_where_that_is_asked_for", async {
        let (_node, control, _dir) = start().await;
        let (pod, machine) = (Pod::new(), machine());
        let address = pod.attach(&control, "a").await.address;
        pod.serve(80, "pod");
        machine.serve(90, "machine");
        let node = IpAddr::from([10, 42, 0, 1]);
        let frontend = Frontend { address: node, protocol: Protocol::Tcp, port: 30_080 };
        let backend = Backend { endpoints: vec![(address, 80).into()], ..Backend::default() };
        let services = [(frontend, backend)].into();
        control.apply_services(ServiceTable { services }).await.unwrap();
        for target in [SocketAddr::from((address, 80)), SocketAddr::from((node, 30_080))] {
            for (kept, want) in [(false, node.to_string()), (true, FIRST.to_string())] {
                publish(&control, target, Protocol::Tcp, kept).await;
                let host = SocketAddr::from((NEAR, target.port()));
                for _ in 0..3 {
                    assert_eq!(seen(&machine, FIRST, host), Some(want.clone()), "{target} {kept}");
                }
                // From this machine it is the node.
                let own = crate::harness::ask(host).unwrap();
                assert_eq!(own, "pod 10.42.0.1\nhello", "{target} {kept}");
            }
        }
        // What a pod begins with the same address goes out as ever.
        let outside = SocketAddr::from((FIRST, 90));
        assert_eq!(pod.ask(outside).unwrap(), format!("machine {NEAR}\nhello"));
        let refused = pod.ask(SocketAddr::from((FIRST, 91))).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn datagrams_tell_whom_they_are_from() {
    run("clients::datagrams_tell_whom_they_are_from", async {
        let (_node, control, _dir) = start().await;
        let (pod, machine) = (Pod::new(), machine());
        let address = pod.attach(&control, "a").await.address;
        mirror(&pod);
        let node = IpAddr::from([10, 42, 0, 1]);
        let frontend = Frontend { address: node, protocol: Protocol::Udp, port: 30_053 };
        let backend = Backend { endpoints: vec![(address, 53).into()], ..Backend::default() };
        let services = [(frontend, backend)].into();
        control.apply_services(ServiceTable { services }).await.unwrap();
        for target in [SocketAddr::from((address, 53)), SocketAddr::from((node, 30_053))] {
            for (kept, want) in [(false, node), (true, FIRST.into())] {
                publish(&control, target, Protocol::Udp, kept).await;
                let host = SocketAddr::from((NEAR, target.port()));
                let told = seen_by_datagram(&machine, host);
                assert_eq!(told, want.to_string(), "{target} {kept}");
            }
        }
    });
}

/// A client's address chooses the endpoint, whether the pod sees it or not.
#[test]
fn clients_keep_their_endpoints() {
    run("clients::clients_keep_their_endpoints", async {
        let (_node, control, _dir) = start().await;
        let (pods, machine) = ([Pod::new(), Pod::new()], machine());
        let mut endpoints = Vec::new();
        for (number, pod) in pods.iter().enumerate() {
            let address = pod.attach(&control, &number.to_string()).await.address;
            endpoints.push(SocketAddr::from((address, 80)));
            // Each tells of itself where others tell of the client.
            let listener = pod.run(|| std::net::TcpListener::bind("0.0.0.0:80").unwrap());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let _ = stream.unwrap().write_all(&[b'0' + number as u8]);
                }
            });
        }
        let node = SocketAddr::from(([10, 42, 0, 1], 30_080));
        let frontend = Frontend { address: node.ip(), protocol: Protocol::Tcp, port: 30_080 };
        let backend = Backend { endpoints, affinity_s: Some(60), ..Backend::default() };
        publish(&control, node, Protocol::Tcp, false).await;
        let chosen = |client: Ipv4Addr| {
            let host = SocketAddr::from((NEAR, node.port()));
            machine.run(move || {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.bind(&SocketAddr::from((client, 0)).into()).unwrap();
                socket.connect(&host.into()).unwrap();
                let mut byte = [0];
                TcpStream::from(socket).read_exact(&mut byte).unwrap();
                byte[0]
            })
        };
        // Drawn anew each time, they are soon not the same for both.
        for _ in 0..100 {
            control.apply_services(ServiceTable::default()).await.unwrap();
            let services = [(frontend, backend.clone())].into();
            control.apply_services(ServiceTable { services }).await.unwrap();
            let (first, second) = (chosen(FIRST), chosen(SECOND));
            for _ in 0..4 {
                assert_eq!((chosen(FIRST), chosen(SECOND)), (first, second));
            }
            if first != second {
                return;
            }
        }
        panic!("both clients always have the same endpoint");
    });
}

#[test]
fn policies_judge_clients_by_their_addresses() {
    run("clients::policies_judge_clients_by_their_addresses", async {
        let (_node, control, _dir) = start().await;
        let (pod, machine) = (Pod::new(), machine());
        let own: IpAddr = FIRST.into();
        let rule = PolicyRule { ranges: vec![(own, own)], ..PolicyRule::default() };
        // Nothing may leave, but answers.
        let member = Member { addresses: Vec::new(), ingress: Some(0), egress: Some(1) };
        let table = PolicyTable {
            profiles: vec![vec![rule], Vec::new()],
            members: [("a".to_owned(), member)].into(),
            others_are_free: true,
        };
        control.apply_policies(table).await.unwrap();
        let address = pod.attach(&control, "a").await.address;
        pod.serve(80, "pod");
        let target = SocketAddr::from((address, 80));
        let host = SocketAddr::from((NEAR, 80));
        publish(&control, target, Protocol::Tcp, true).await;
        assert_eq!(seen(&machine, FIRST, host), Some(FIRST.to_string()));
        assert_eq!(seen(&machine, SECOND, host), None, "it is not among the allowed");
        assert_eq!(seen(&machine, WITHIN, host), None, "the node stands for it without its rights");
        let (free, node) = (Pod::new(), "10.42.0.1".to_owned());
        let other = free.attach(&control, "b").await.address;
        free.serve(81, "free");
        publish(&control, (other, 81).into(), Protocol::Tcp, true).await;
        assert_eq!(seen(&machine, WITHIN, (NEAR, 81).into()), Some(node), "nothing forbids it");
        publish(&control, target, Protocol::Tcp, false).await;
        assert_eq!(seen(&machine, SECOND, host), Some("10.42.0.1".to_owned()), "as the node");
        mirror(&pod);
        publish(&control, (address, 53).into(), Protocol::Udp, true).await;
        assert_eq!(seen_by_datagram(&machine, (NEAR, 53).into()), FIRST.to_string());
    });
}

/// With `ip_nonlocal_bind` every address can be bound.
#[test]
fn this_machine_is_known_by_its_routes() {
    run("clients::this_machine_is_known_by_its_routes", async {
        shell("echo 1 > /proc/sys/net/ipv4/ip_nonlocal_bind");
        let (_node, control, _dir) = start().await;
        let (pod, machine) = (Pod::new(), machine());
        shell("ip address add 198.51.100.9/24 dev wan");
        let address = pod.attach(&control, "a").await.address;
        pod.serve(80, "pod");
        publish(&control, (address, 80).into(), Protocol::Tcp, true).await;
        let host = SocketAddr::from((NEAR, 80));
        assert_eq!(seen(&machine, FIRST, host), Some(FIRST.to_string()));
        // The second is a secondary address.
        for own in [NEAR, Ipv4Addr::new(198, 51, 100, 9)] {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from((own, 0)).into()).unwrap();
            socket.connect(&host.into()).unwrap();
            let mut line = [0; 14];
            TcpStream::from(socket).read_exact(&mut line).unwrap();
            assert_eq!(&line, b"pod 10.42.0.1\n", "{own}");
        }
    });
}

/// Who is to be seen as whom may change while connections go on.
#[test]
fn connections_outlive_a_change_of_traffic_policy() {
    run("clients::connections_outlive_a_change_of_traffic_policy", async {
        let (_node, control, _dir) = start().await;
        let (pod, machine) = (Pod::new(), machine());
        let target = SocketAddr::from((pod.attach(&control, "a").await.address, 80));
        pod.serve(80, "pod");
        let host = SocketAddr::from((NEAR, 80));
        publish(&control, target, Protocol::Tcp, false).await;
        let mut stream = machine.run(move || TcpStream::connect(host).unwrap());
        let mut line = [0; 14];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"pod 10.42.0.1\n");
        publish(&control, target, Protocol::Tcp, true).await;
        assert_eq!(seen(&machine, FIRST, host), Some(FIRST.to_string()), "a new one");
        stream.write_all(b"on").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "on");
    });
}

/// The node would be let in; and it is towards one destination only that a client's ports are taken.
#[test]
fn clients_without_ports_are_refused() {
    run("clients::clients_without_ports_are_refused", async {
        let (_node, control, _dir) = start().await;
        let (pod, machine) = (Pod::new(), machine());
        let address = pod.attach(&control, "a").await.address;
        let published = [80, 81].map(|port| Publication {
            host: (NEAR, port).into(),
            protocol: Protocol::Tcp,
            target: (address, port).into(),
            served: true,
            allowed: None,
            keeps_client: true,
        });
        assert_eq!(control.publish(published.to_vec()).await.unwrap(), [None, None]);
        pod.serve(80, "pod");
        pod.serve(81, "pod");
        let within = Pod { namespace: control.node_netns().await.unwrap() };
        within.run(|| shell("echo 40000 40001 > /proc/sys/net/ipv4/ip_local_port_range"));
        let first_byte = |port: u16| {
            machine.run(move || -> std::io::Result<TcpStream> {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.bind(&SocketAddr::from((FIRST, 0)).into())?;
                socket.connect_timeout(&SocketAddr::from((NEAR, port)).into(), TIMEOUT)?;
                let mut stream = TcpStream::from(socket);
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.read_exact(&mut [0])?;
                Ok(stream)
            })
        };
        let _held = [first_byte(80).unwrap(), first_byte(80).unwrap()];
        assert_eq!(first_byte(80).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(seen(&machine, FIRST, (NEAR, 81).into()), Some(FIRST.to_string()));
        assert_eq!(seen(&machine, SECOND, (NEAR, 80).into()), Some(SECOND.to_string()));
    });
}
