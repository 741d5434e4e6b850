//! Pods among themselves.

use std::net::{IpAddr, UdpSocket};

use crate::harness::{Pod, TIMEOUT, run, start};

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
