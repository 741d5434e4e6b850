//! Another process takes the network over, with everything that is going on in it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use netns::{Backend, Control, Frontend, Member, NodeConfig, PolicyTable, Protocol, ServiceTable};

use crate::harness::{HOST, Pod, TIMEOUT, config, run, serve, start, start_with};

/// A connection that has to answer what it is told.
fn exchange(mut stream: &TcpStream) {
    stream.write_all(b"ping").unwrap();
    let mut back = [0; 4];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"ping");
}

/// A server that sends back what it gets, at once.
fn echo(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    stream.write_all(&buffer[..length]).unwrap();
                }
            });
        }
    });
}

fn open(pod: &Pod, server: SocketAddr) -> TcpStream {
    pod.run(move || {
        let stream = TcpStream::connect_timeout(&server, TIMEOUT).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    })
}

#[test]
fn connections_outlive_the_process_that_made_the_network() {
    run("takeover::connections_outlive_the_process_that_made_the_network", async {
        let (node, control, _dir) = start().await;
        let (client, server) = (Pod::new(), Pod::new());
        let address = server.attach(&control, "server").await.address;
        let before = client.attach(&control, "client").await;
        echo(server.run(|| TcpListener::bind("0.0.0.0:80").unwrap()));
        let frontend =
            Frontend { address: [10, 43, 0, 7].into(), protocol: Protocol::Tcp, port: 80 };
        let backend = Backend { endpoints: vec![(address, 80).into()], ..Backend::default() };
        let services = ServiceTable { services: [(frontend, backend)].into() };
        let service = SocketAddr::from((frontend.address, 80));
        let free = || PolicyTable { others_are_free: true, ..PolicyTable::default() };
        control.apply_services(services.clone()).await.unwrap();
        control.apply_policies(free()).await.unwrap();
        let direct = open(&client, (address, 80).into());
        let balanced = open(&client, service);
        exchange(&direct);
        exchange(&balanced);

        let namespace = control.node_netns().await.unwrap();
        node.shutdown().await;
        drop(node);
        let taken = NodeConfig { existing: Some(namespace), ..config() };
        let (_node, control, _dir) = start_with(taken).await;
        exchange(&direct);
        exchange(&balanced);
        let known = control.attachments().await.unwrap();
        assert!(known.contains(&before), "{known:?}");

        // Nobody has said yet who may connect: new connections wait, and are not refused.
        let waiting = client
            .run(move || std::thread::spawn(move || TcpStream::connect_timeout(&service, TIMEOUT)));
        let listener = TcpListener::bind((HOST, 0)).unwrap();
        let outside = listener.local_addr().unwrap();
        serve(listener, "host");
        let short = Duration::from_millis(200);
        let early = client.run(move || TcpStream::connect_timeout(&outside, short));
        assert_eq!(early.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        tell(&control, services, free()).await;
        waiting.join().unwrap().unwrap();
        assert!(client.ask(outside).unwrap().starts_with("host"));
        exchange(&balanced);
        // And what is told holds: nobody may reach a pod under a policy without rules.
        let closed = Member { ingress: Some(0), ..Member::default() };
        let table = PolicyTable {
            profiles: vec![Vec::new()],
            members: [("server".to_owned(), closed)].into(),
            others_are_free: true,
        };
        control.apply_policies(table).await.unwrap();
        let refused = client.run(move || TcpStream::connect_timeout(&service, short));
        assert!(refused.is_err());
    });
}

async fn tell(control: &Control, services: ServiceTable, policies: PolicyTable) {
    control.apply_services(services).await.unwrap();
    control.apply_policies(policies).await.unwrap();
}
