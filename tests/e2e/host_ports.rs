//! Ports of the host: who gets them, and when they are given back.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::json;

use crate::harness::{BUSYBOX, Cluster, eventually};

const PATIENCE: Duration = Duration::from_secs(5);

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

fn pod(name: &str, host_port: u16) -> String {
    let script = "mkdir /w; echo hello > /w/index.html; exec httpd -f -p 80 -h /w";
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script],
             "ports": [{"containerPort": 80, "hostPort": host_port}]}]}})
    .to_string()
}

#[test]
fn a_host_port_has_one_pod_and_the_next_one_waits_for_it() {
    let cluster = Cluster::ephemeral();
    let port = free_port();
    cluster.apply(&pod("first", port));
    cluster.pod_ready("first");
    cluster.apply(&pod("second", port));
    let message = cluster.event("second", "FailedScheduling");
    let wanted = "node(s) didn't have free ports for the requested pod ports";
    assert!(message.contains(wanted), "{message}");
    assert_eq!(cluster.get(&["pod", "second"]).expect("it is there")["status"]["phase"], "Pending");
    cluster.kubectl_ok(&["delete", "pod", "first"]);
    cluster.pod_ready("second");
    let host = SocketAddr::from(([127, 0, 0, 1], port));
    eventually("the port of the second", || {
        TcpStream::connect_timeout(&host, PATIENCE).map_err(|error| error.to_string())
    });
}

#[test]
fn services_come_to_the_host_and_go() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&pod("web", free_port()));
    cluster.pod_ready("web");
    let port = free_port();
    let spec = |kind: &str| {
        let ports = json!([{"port": port, "targetPort": 80}]);
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"type": kind, "selector": {"app": "web"}, "ports": ports}})
        .to_string()
    };
    let reached = |address: SocketAddr| {
        TcpStream::connect_timeout(&address, PATIENCE).map(drop).map_err(|error| error.to_string())
    };
    let withdrawn = |address: SocketAddr| {
        eventually("the port's return", || match reached(address) {
            Err(error) if error.contains("refused") => Ok(()),
            other => Err(format!("{other:?}")),
        });
        TcpListener::bind(address).expect("it is nobody's");
    };
    cluster.apply(&spec("LoadBalancer"));
    let balanced = eventually("the address", || {
        let service = cluster.get(&["service", "web"])?;
        let ip = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str();
        let ip = ip.and_then(|ip| ip.parse().ok()).ok_or_else(|| service.to_string())?;
        Ok(SocketAddr::new(ip, port))
    });
    eventually("the load balancer", || reached(balanced));
    // The same Service as another type, without a restart of anything.
    cluster.apply(&spec("NodePort"));
    withdrawn(balanced);
    let service = cluster.get(&["service", "web"]).expect("it is there");
    let number = service["spec"]["ports"][0]["nodePort"].as_u64().expect("it has a node port");
    let node_port = SocketAddr::from(([127, 0, 0, 1], number as u16));
    eventually("the node port", || reached(node_port));
    eventually("a status without a load balancer", || {
        let service = cluster.get(&["service", "web"])?;
        let told = &service["status"]["loadBalancer"]["ingress"];
        if told.is_null() { Ok(()) } else { Err(told.to_string()) }
    });
    cluster.kubectl_ok(&["delete", "service", "web"]);
    withdrawn(node_port);
}
