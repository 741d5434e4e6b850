//! Policies.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use netns::{
    AttachRequest, Bandwidth, Control, Member, PolicyRule, PolicyTable, PortRange, Protocol,
};

use crate::harness::{HOST, Pod, TIMEOUT, echo, run, serve, start};

/// Long enough for a packet that is let through, short for one that is not.
const PATIENCE: Duration = Duration::from_millis(400);

fn connects(pod: &Pod, server: impl Into<SocketAddr>) -> bool {
    let server = server.into();
    match pod.run(move || TcpStream::connect_timeout(&server, PATIENCE)) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
            false
        }
    }
}

fn from(members: &[&str], ports: Option<(u16, u16)>) -> PolicyRule {
    PolicyRule {
        any_peer: false,
        ranges: Vec::new(),
        members: members.iter().map(ToString::to_string).collect(),
        ports: ports.map(|(first, last)| vec![PortRange { protocol: Protocol::Tcp, first, last }]),
    }
}

fn table(
    profiles: Vec<Vec<PolicyRule>>,
    members: &[(&str, Option<usize>, Option<usize>)],
) -> PolicyTable {
    let members = members.iter().map(|(name, ingress, egress)| {
        let member = Member { addresses: Vec::new(), ingress: *ingress, egress: *egress };
        ((*name).to_owned(), member)
    });
    PolicyTable { profiles, members: members.collect(), others_are_free: false }
}

async fn apply(control: &Control, table: PolicyTable) {
    control.apply_policies(table).await.unwrap();
}

#[test]
fn only_what_is_allowed_reaches_an_isolated_pod() {
    run("policy::only_what_is_allowed_reaches_an_isolated_pod", async {
        let (_node, control, _dir) = start().await;
        let (server, friend, stranger) = (Pod::new(), Pod::new(), Pod::new());
        let address = server.attach(&control, "server").await.address;
        friend.attach(&control, "friend").await;
        stranger.attach(&control, "stranger").await;
        for port in [80, 8080, 9090] {
            server.serve(port, "server");
        }
        let all = [("server", Some(0), None), ("friend", None, None), ("stranger", None, None)];
        assert!(connects(&stranger, (address, 80)));
        let old = stranger.run(move || TcpStream::connect((address, 80)).unwrap());
        apply(&control, table(vec![vec![from(&["friend"], Some((80, 8080)))]], &all)).await;
        assert!(connects(&friend, (address, 80)), "first port");
        assert!(connects(&friend, (address, 8080)), "last port");
        assert!(!connects(&friend, (address, 9090)), "another port");
        assert!(!connects(&stranger, (address, 80)), "another pod");
        assert!(connects(&server, (address, 9090)), "itself");
        control.connect_tcp((address, 9090).into()).await.expect("the node");
        let mut line = [0; 6];
        std::io::Read::read_exact(&mut &old, &mut line).expect("what went on goes on");

        apply(&control, table(vec![vec![]], &all)).await;
        assert!(!connects(&friend, (address, 80)), "nothing is allowed");
        let everybody = PolicyRule { any_peer: true, ..PolicyRule::default() };
        apply(&control, table(vec![vec![everybody]], &all)).await;
        assert!(connects(&stranger, (address, 9090)), "everything is allowed");
        apply(&control, table(Vec::new(), &[("server", None, None)])).await;
        assert!(connects(&stranger, (address, 80)), "no policy");
    });
}

#[test]
fn a_pod_leaves_only_as_far_as_it_may() {
    run("policy::a_pod_leaves_only_as_far_as_it_may", async {
        let (_node, control, _dir) = start().await;
        let (pod, peer) = (Pod::new(), Pod::new());
        pod.attach(&control, "pod").await;
        let peer_address = peer.attach(&control, "peer").await.address;
        peer.serve(80, "peer");
        let bind = || {
            let listener = TcpListener::bind((HOST, 0)).unwrap();
            let address = listener.local_addr().unwrap();
            serve(listener, "host");
            address
        };
        let (open, closed) = (bind(), bind());
        let datagrams = UdpSocket::bind((HOST, 0)).unwrap();
        let datagram_address = datagrams.local_addr().unwrap();
        echo(datagrams);
        let answered = |address: SocketAddr| {
            pod.run(move || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.send_to(b"x", address).unwrap();
                socket.recv(&mut [0; 4]).is_ok()
            })
        };
        assert!(answered(datagram_address));
        let out = PolicyRule {
            ranges: vec![(IpAddr::V4(HOST), IpAddr::V4(HOST))],
            ..from(&[], Some((open.port(), open.port())))
        };
        let members = [("pod", None, Some(0)), ("peer", None, None)];
        apply(&control, table(vec![vec![out]], &members)).await;
        assert!(connects(&pod, open));
        assert!(!connects(&pod, closed), "another port");
        assert!(!connects(&pod, (peer_address, 80)), "another pod");
        assert!(!answered(datagram_address), "another protocol");
        assert!(connects(&peer, closed), "others are free");
        let inside = from(&["peer"], None);
        apply(&control, table(vec![vec![inside]], &members)).await;
        assert!(connects(&pod, (peer_address, 80)));
        assert!(!connects(&pod, open));
    });
}

#[test]
fn policies_hold_before_a_pods_first_packet() {
    run("policy::policies_hold_before_a_pods_first_packet", async {
        let (_node, control, _dir) = start().await;
        let server = Pod::new();
        let address = server.attach(&control, "server").await.address;
        server.serve(80, "server");
        let members = [("server", Some(0), None), ("early", None, None)];
        apply(&control, table(vec![vec![from(&["early"], None)]], &members)).await;
        let early = Pod::new();
        early.attach(&control, "early").await;
        assert!(connects(&early, (address, 80)), "known as a peer as soon as it is attached");

        let late = Pod::new();
        let request = AttachRequest {
            id: "late".into(),
            ifname: "eth0".into(),
            member: Some("late".into()),
            bandwidth: Bandwidth::default(),
            address: None,
            anew: false,
        };
        let namespace = late.namespace.try_clone().unwrap();
        let waiting = control.clone();
        let attached =
            tokio::spawn(async move { waiting.attach(request, namespace.as_fd()).await });
        // The connection above came after; the attachment of an unknown pod has to wait.
        assert_eq!(control.attachments().await.unwrap().len(), 2);
        assert!(!attached.is_finished());
        let members = [("server", Some(0), None), ("early", None, None), ("late", None, Some(1))];
        apply(&control, table(vec![vec![from(&["early"], None)], vec![]], &members)).await;
        tokio::time::timeout(TIMEOUT, attached).await.unwrap().unwrap().unwrap();
        assert!(!connects(&late, (address, 80)));
    });
}
