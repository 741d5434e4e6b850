//! Pods among themselves.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Instant;

use netns::{
    AttachRequest, Backend, Bandwidth, Frontend, NodeConfig, Protocol, Ranges6, ServiceTable,
};

use crate::harness::{Pod, TIMEOUT, ask, config, echo, run, serve, start, start_with};

#[test]
fn pods_reach_each_other_and_keep_their_addresses() {
    run("pods::pods_reach_each_other_and_keep_their_addresses", async {
        let (node, control, _dir) = start().await;
        let (a, b) = (Pod::new(), Pod::new());
        let first = a.attach(&control, "a").await;
        let second = b.attach(&control, "b").await;
        assert_eq!(first.address, IpAddr::from([10, 42, 0, 2]));
        assert_eq!(second.address, IpAddr::from([10, 42, 0, 3]));
        assert_eq!(a.attach(&control, "a").await, first, "attach is idempotent");
        assert_eq!(control.attachments().await.unwrap(), [first.clone(), second.clone()]);
        b.serve(80, "b");
        assert_eq!(a.ask((second.address, 80)).unwrap(), format!("b {}\nhello", first.address));
        let probe = control.connect_tcp((second.address, 80).into()).await.unwrap();
        assert_eq!(probe.local_addr().unwrap().ip(), first.gateway);
        control.detach("a").await.unwrap();
        control.detach("a").await.unwrap();
        let c = Pod::new();
        let third = c.attach(&control, "c").await;
        assert_eq!(third.address, IpAddr::from([10, 42, 0, 4]), "no quick reuse");
        node.shutdown().await;
    });
}

#[test]
fn a_pod_cannot_use_another_address() {
    run("pods::a_pod_cannot_use_another_address", async {
        let (_node, control, _dir) = start().await;
        let (a, b) = (Pod::new(), Pod::new());
        a.attach(&control, "a").await;
        let victim = b.attach(&control, "b").await;
        let receiver = b.run(|| UdpSocket::bind("0.0.0.0:9").unwrap());
        receiver.set_read_timeout(Some(TIMEOUT)).unwrap();
        a.run(move || {
            let spoof = std::process::Command::new("ip")
                .args(["address", "add", "10.42.0.99/32", "dev", "eth0"])
                .status();
            assert!(spoof.unwrap().success());
            let socket = UdpSocket::bind("10.42.0.99:0").unwrap();
            socket.send_to(b"spoofed", (victim.address, 9)).unwrap();
            let socket = UdpSocket::bind("10.42.0.2:0").unwrap();
            socket.send_to(b"honest", (victim.address, 9)).unwrap();
        });
        let mut buffer = [0; 16];
        let (length, _) = receiver.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"honest", "the first to arrive");
    });
}

#[test]
fn pods_have_both_families() {
    run("pods::pods_have_both_families", async {
        let ipv6 = Some(Ranges6 {
            pod_cidr: "fd00:10:42::/64".parse().unwrap(),
            gateway: "fd00:10:42::1".parse().unwrap(),
            service_cidr: "fd00:10:43::/112".parse().unwrap(),
        });
        let (_node, control, _dir) = start_with(NodeConfig { ipv6, ..config() }).await;
        if control.gateways().await.unwrap().len() < 2 {
            eprintln!("SKIPPED: this kernel has no IPv6");
            return;
        }
        let (a, b) = (Pod::new(), Pod::new());
        let first = a.attach(&control, "a").await.address6.unwrap();
        let second = b.attach(&control, "b").await.address6.unwrap();
        assert_eq!(first, "fd00:10:42::2".parse::<IpAddr>().unwrap());
        let serve6 = |pod: &Pod, port: u16| {
            serve(pod.run(move || TcpListener::bind(("::", port)).unwrap()), "six");
        };
        serve6(&b, 8080);
        let seen = |who: IpAddr| format!("six {who}\nhello");
        assert_eq!(a.ask((second, 8080)).unwrap(), seen(first), "pod to pod");

        let address = "fd00:10:43::9".parse().unwrap();
        let frontend = Frontend { address, protocol: Protocol::Tcp, port: 80 };
        let table = |endpoints: Vec<SocketAddr>, affinity_s| ServiceTable {
            services: [(frontend, Backend { endpoints, affinity_s, ..Backend::default() })].into(),
        };
        control.apply_services(table(vec![(second, 8080).into()], None)).await.unwrap();
        assert_eq!(a.ask((address, 80)).unwrap(), seen(first), "service");
        let gateway = "fd00:10:42::1".parse().unwrap();
        assert_eq!(b.ask((address, 80)).unwrap(), seen(gateway), "hairpin");
        control.apply_services(table(vec![(second, 8080).into()], Some(60))).await.unwrap();
        assert_eq!(a.ask((address, 80)).unwrap(), seen(first), "sticky");
        control.apply_services(table(Vec::new(), None)).await.unwrap();
        let refused = a.ask((address, 80)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

        // The way out, to the host's IPv6 address.
        let added = std::process::Command::new("ip")
            .args(["address", "add", "2001:db8::10/128", "dev", "lo", "nodad"])
            .status();
        assert!(added.unwrap().success());
        let host: IpAddr = "2001:db8::10".parse().unwrap();
        let listener = TcpListener::bind((host, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        serve(listener, "six");
        // The kernel lets a new address receive later, by a queue of work: until then even the host finds it
        // unreachable.
        let deadline = Instant::now() + TIMEOUT;
        while let Err(error) = ask(server) {
            assert!(Instant::now() < deadline, "the host's own address: {error}");
        }
        assert_eq!(a.ask(server).unwrap(), seen(host));
        let free = TcpListener::bind((host, 0)).unwrap().local_addr().unwrap();
        assert_eq!(a.ask(free).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let datagrams = UdpSocket::bind((host, 0)).unwrap();
        let far = datagrams.local_addr().unwrap();
        echo(datagrams);
        a.run(move || {
            let socket = UdpSocket::bind("[::]:0").unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.connect(far).unwrap();
            socket.send(b"six").unwrap();
            assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 3);
        });
        let free = UdpSocket::bind((host, 0)).unwrap().local_addr().unwrap();
        a.run(move || {
            let socket = UdpSocket::bind("[::]:0").unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.connect(free).unwrap();
            socket.send(b"anyone?").unwrap();
            let refused = socket.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        });
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
        for far in [host, gateway] {
            let answer = a.run(move || ping6(far));
            assert_eq!(answer, [129, 0, 0, 7, b'x'], "{far}");
        }
    });
}

/// Type, code, sequence number and data of the answer to a ping (RFC 4443, 4).
fn ping6(far: IpAddr) -> [u8; 5] {
    use socket2::{Domain, Protocol, Socket, Type};
    let mut socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::ICMPV6)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.connect(&SocketAddr::new(far, 0).into()).unwrap();
    socket.send(&[128, 0, 0, 0, 0, 0, 0, 7, b'x']).unwrap();
    let mut answer = [0; 9];
    socket.read_exact(&mut answer).unwrap();
    [answer[0], answer[1], answer[6], answer[7], answer[8]]
}

#[test]
fn bandwidth_is_limited_in_each_direction() {
    run("pods::bandwidth_is_limited_in_each_direction", async {
        const BPS: u64 = 16_000_000;
        const BYTES: usize = 2 << 20;
        let (_node, control, _dir) = start().await;
        let free = Pod::new();
        let server = free.attach(&control, "free").await.address;
        // Takes everything and gives as much back.
        let listener = free.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut bytes = vec![0; BYTES];
                stream.read_exact(&mut bytes).unwrap();
                stream.write_all(&bytes).unwrap();
            }
        });
        let limits = [(None, None), (Some(BPS), None), (None, Some(BPS))];
        for (number, (ingress_bps, egress_bps)) in limits.into_iter().enumerate() {
            let pod = Pod::new();
            let request = AttachRequest {
                id: number.to_string(),
                ifname: "eth0".into(),
                member: None,
                bandwidth: Bandwidth { ingress_bps, egress_bps },
                address: None,
                anew: false,
            };
            control.attach(request, pod.namespace.as_fd()).await.unwrap();
            let (sent, received) = pod.run(move || {
                let mut stream = TcpStream::connect((server, 80)).unwrap();
                let start = Instant::now();
                stream.write_all(&vec![0; BYTES]).unwrap();
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                let sent = start.elapsed();
                let mut rest = vec![0; BYTES - 1];
                stream.read_exact(&mut rest).unwrap();
                (sent, start.elapsed().checked_sub(sent).unwrap())
            });
            // A second in theory; less the burst, which passes at once.
            let slow = std::time::Duration::from_millis(600);
            assert_eq!(egress_bps.is_some(), sent > slow, "{number}: sent in {sent:?}");
            assert_eq!(
                ingress_bps.is_some(),
                received > slow,
                "{number}: received in {received:?}"
            );
        }
    });
}
