//! The way in, and the host's servers within.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use netns::{Forward, NodeConfig, Protocol, Publication};

use crate::harness::{Pod, TIMEOUT, ask, config, echo, run, serve, start, start_with};

#[test]
fn forwards_lead_to_servers_on_the_hosts_loopback() {
    run("publish::forwards_lead_to_servers_on_the_hosts_loopback", async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap();
        serve(listener, "api");
        let node_side = SocketAddr::from(([10, 42, 0, 1], 6443));
        let forwards = vec![Forward { node: node_side, host }];
        let (_node, control, _dir) = start_with(NodeConfig { forwards, ..config() }).await;
        let pod = Pod::new();
        pod.attach(&control, "a").await;
        assert_eq!(pod.ask(node_side).unwrap(), "api 127.0.0.1\nhello");
        control.set_forwards(Vec::new()).await.unwrap();
        let refused = pod.ask(node_side).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn ports_of_the_host_lead_to_pods() {
    run("publish::ports_of_the_host_lead_to_pods", async {
        let (_node, control, _dir) = start().await;
        let pod = Pod::new();
        let address = pod.attach(&control, "a").await.address;
        pod.serve(80, "pod");
        echo(pod.run(|| UdpSocket::bind("0.0.0.0:53").unwrap()));
        let host = |last: u8, port| SocketAddr::from(([127, 0, 0, last], port));
        let tcp = Publication {
            host: host(1, 8080),
            protocol: Protocol::Tcp,
            target: (address, 80).into(),
            served: true,
            allowed: None,
            keeps_client: false,
        };
        let udp = Publication {
            host: host(1, 5353),
            protocol: Protocol::Udp,
            target: (address, 53).into(),
            served: true,
            allowed: None,
            keeps_client: false,
        };
        let taken = TcpListener::bind(host(1, 0)).unwrap();
        let clash = Publication { host: taken.local_addr().unwrap(), ..tcp.clone() };
        let twice = Publication { target: (address, 81).into(), ..tcp.clone() };
        let answers = control.publish(vec![tcp.clone(), udp.clone(), clash, twice]).await.unwrap();
        let errors: Vec<_> = answers.iter().map(|a| a.as_ref().map(|r| r.errno)).collect();
        assert_eq!(errors, [None, None, Some(98), Some(98)]);

        assert_eq!(ask(tcp.host).unwrap(), "pod 10.42.0.1\nhello");
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.connect(udp.host).unwrap();
        socket.send(b"datagram").unwrap();
        assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 8);

        let unserved = Publication { served: false, ..tcp.clone() };
        let other = Publication { host: host(1, 8081), ..unserved.clone() };
        assert_eq!(control.publish(vec![unserved, other.clone()]).await.unwrap(), [None, None]);
        let refused = ask(tcp.host).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "nobody is there");
        assert!(TcpListener::bind(other.host).is_err(), "the port is kept");

        // Loopback is this machine, which is the first of these clients and not the second.
        for (range, answers) in [("127.0.0.0/8", true), ("198.51.100.0/24", false)] {
            let allowed = Some(vec![range.parse().unwrap()]);
            let both = [tcp.clone(), udp.clone()]
                .map(|all| Publication { allowed: allowed.clone(), ..all });
            assert_eq!(control.publish(both.to_vec()).await.unwrap(), [None, None]);
            assert_eq!(ask(tcp.host).is_ok(), answers, "TCP, {range}");
            let patience = if answers { TIMEOUT } else { Duration::from_millis(300) };
            socket.set_read_timeout(Some(patience)).unwrap();
            socket.send(b"datagram").unwrap();
            assert_eq!(socket.recv(&mut [0; 16]).is_ok(), answers, "UDP, {range}");
        }
        control.publish(Vec::new()).await.unwrap();
        TcpListener::bind(tcp.host).expect("the port is given back");
    });
}
