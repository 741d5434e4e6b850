//! The way out.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::harness::{HOST, Pod, TIMEOUT, echo, run, serve, start};

#[test]
fn egress_reaches_the_host_and_refusals_arrive() {
    run("egress::egress_reaches_the_host_and_refusals_arrive", async {
        let (_node, control, _dir) = start().await;
        let pod = Pod::new();
        pod.attach(&control, "a").await;
        let listener = TcpListener::bind((HOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        serve(listener, "host");
        assert_eq!(pod.ask(server).unwrap(), format!("host {HOST}\nhello"));
        let free = TcpListener::bind((HOST, 0)).unwrap().local_addr().unwrap();
        let refused = pod.ask(free).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    });
}

/// Runs `ip` where the host is.
fn ip(words: &str) {
    let status = std::process::Command::new("ip").args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words}");
}

/// A VPN that is joined, another wireless network: new connections go as the host's do by then.
#[test]
fn the_way_out_follows_the_host() {
    run("egress::the_way_out_follows_the_host", async {
        let (_node, control, _dir) = start().await;
        let pod = Pod::new();
        pod.attach(&control, "a").await;
        let far = SocketAddr::from(([198, 51, 100, 7], 80));
        let kind = |answer: std::io::Result<String>| answer.map_err(|error| error.kind());
        let unreachable = [ErrorKind::HostUnreachable, ErrorKind::NetworkUnreachable];
        let before = kind(pod.ask(far)).unwrap_err();
        assert!(unreachable.contains(&before), "no way there yet: {before:?}");
        ip("link add vpn type veth peer name far");
        ip("address add 198.51.100.7/24 dev vpn");
        ip("link set vpn up");
        let listener = TcpListener::bind(far).unwrap();
        serve(listener, "vpn");
        assert_eq!(kind(pod.ask(far)), Ok("vpn 198.51.100.7\nhello".into()));
        // From one network to another: what the host calls its own address now is what servers see.
        ip("address add 203.0.113.1/32 dev lo");
        let other = TcpListener::bind("203.0.113.1:0").unwrap();
        let address = other.local_addr().unwrap();
        serve(other, "moved");
        assert_eq!(kind(pod.ask(address)), Ok("moved 203.0.113.1\nhello".into()));
        ip("link delete vpn");
        let after = kind(pod.ask(far)).unwrap_err();
        assert!(unreachable.contains(&after), "the way is gone: {after:?}");
    });
}

#[test]
fn datagrams_reach_the_host_and_come_back() {
    run("egress::datagrams_reach_the_host_and_come_back", async {
        let (_node, control, _dir) = start().await;
        let pod = Pod::new();
        pod.attach(&control, "a").await;
        let server = UdpSocket::bind((HOST, 0)).unwrap();
        let address = server.local_addr().unwrap();
        echo(server);
        pod.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.connect(address).unwrap();
            let mut buffer = vec![0; 65536];
            for size in [1, 1000, 60_000] {
                socket.send(&vec![7; size]).unwrap();
                let received = socket.recv(&mut buffer);
                assert_eq!(received.unwrap_or_else(|e| panic!("{size} bytes: {e}")), size);
            }
        });
        let free = UdpSocket::bind((HOST, 0)).unwrap().local_addr().unwrap();
        pod.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.connect(free).unwrap();
            socket.send(b"anyone?").unwrap();
            let refused = socket.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        });
    });
}

/// A connection that breaks off does so on the other side, too, whichever that is.
#[test]
fn a_reset_is_a_reset() {
    run("egress::a_reset_is_a_reset", async {
        let (_node, control, _dir) = start().await;
        let pod = Pod::new();
        pod.attach(&control, "a").await;
        let listener = TcpListener::bind((HOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        let break_off = |stream: TcpStream| {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        };
        let fails = |mut stream: &TcpStream| {
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            stream.read(&mut [0]).map_err(|error| error.kind())
        };
        for outside_breaks in [true, false] {
            let inside = pod.run(move || TcpStream::connect(server).unwrap());
            let (outside, _) = listener.accept().unwrap();
            // Both halves carry something first: what breaks off is a connection that was taken.
            (&inside).write_all(b"x").unwrap();
            (&outside).read_exact(&mut [0]).unwrap();
            let (breaks, stays) =
                if outside_breaks { (outside, inside) } else { (inside, outside) };
            break_off(breaks);
            let got = fails(&stays);
            assert_eq!(got, Err(ErrorKind::ConnectionReset), "{outside_breaks}");
        }
    });
}

#[test]
fn silence_outside_is_silence_for_the_pod() {
    run("egress::silence_outside_is_silence_for_the_pod", async {
        let (_node, control, _dir) = start().await;
        let pod = Pod::new();
        pod.attach(&control, "a").await;
        // A listener whose queue is full answers no first packet (`listen(2)`, backlog 0 takes one).
        let full =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&std::net::SocketAddr::from((HOST, 0)).into()).unwrap();
        full.listen(0).unwrap();
        let address = full.local_addr().unwrap().as_socket().unwrap();
        let _first = std::net::TcpStream::connect(address).unwrap();
        let patience = std::time::Duration::from_millis(300);
        let silent =
            pod.run(move || std::net::TcpStream::connect_timeout(&address, patience)).unwrap_err();
        assert_eq!(silent.kind(), ErrorKind::TimedOut, "{silent}");
        // From a namespace without routes the host's own answer would be this one.
        let nowhere: std::net::SocketAddr = "203.0.113.1:80".parse().unwrap();
        let unreachable = pod.ask(nowhere).unwrap_err();
        let kinds = [ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable];
        assert!(kinds.contains(&unreachable.kind()), "{unreachable}");
    });
}

/// As traceroute does: the gateway is the first hop, and the host's answers come from where they come from.
#[test]
fn hops_are_counted_from_the_gateway() {
    run("egress::hops_are_counted_from_the_gateway", async {
        let (_node, control, _dir) = start().await;
        let pod = Pod::new();
        pod.attach(&control, "a").await;
        let free = UdpSocket::bind((HOST, 0)).unwrap().local_addr().unwrap();
        // Type, code and sender of the ICMP message that comes back, and the port that it is about.
        let answer = move |hops: u32| {
            use socket2::{Domain, Protocol, Socket, Type};
            let mut raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
            raw.set_read_timeout(Some(TIMEOUT)).unwrap();
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_ttl(hops).unwrap();
            socket.send_to(b"probe", free).unwrap();
            let mut packet = [0; 128];
            let length = raw.read(&mut packet).unwrap();
            assert!(length >= 56, "{length} bytes quote too little");
            let sender = std::net::Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
            (packet[20], packet[21], sender, u16::from_be_bytes([packet[50], packet[51]]))
        };
        let gateway = std::net::Ipv4Addr::new(10, 42, 0, 1);
        assert_eq!(pod.run(move || answer(1)), (11, 0, gateway, free.port()), "time exceeded");
        assert_eq!(pod.run(move || answer(2)), (3, 3, HOST, free.port()), "port unreachable");
        assert_eq!(pod.run(move || answer(64)), (3, 3, HOST, free.port()), "as others do");
    });
}
