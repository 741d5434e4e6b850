//! What is told to plugins that say they want to know (CNI's conventions, "Dynamic plugin specific
//! fields"), under the names that containerd and CRI-O give it too.

use runtime::{NetworkPod, Protocol};
use serde_json::{Value, json};

/// A pod's annotations with the addresses, and the link address, that it is to get.
const IPS: &str = "cni.rootlet.dev/ips";
const MAC: &str = "cni.rootlet.dev/mac";

/// All capabilities' arguments for a pod.
pub fn of(pod: &NetworkPod) -> anyhow::Result<Value> {
    let mut all = json!({"io.kubernetes.cri.pod-annotations": pod.annotations});
    if pod.ingress_bps.is_some() || pod.egress_bps.is_some() {
        all["bandwidth"] = bandwidth(pod);
    }
    if !pod.ports.is_empty() {
        all["portMappings"] = port_mappings(pod);
    }
    if let Some(dns) = &pod.dns {
        all["dns"] = json!({"servers": dns.servers, "searches": dns.searches,
            "options": dns.options});
    }
    if let Some(text) = pod.annotations.get(IPS) {
        let ips: Vec<&str> = text.split(',').map(str::trim).filter(|ip| !ip.is_empty()).collect();
        for ip in &ips {
            let address = ip.split_once('/').map_or(*ip, |(address, _)| address);
            if address.parse::<std::net::IpAddr>().is_err() {
                anyhow::bail!("{IPS}: {ip:?} is no address");
            }
        }
        all["ips"] = ips.into();
    }
    if let Some(mac) = pod.annotations.get(MAC) {
        all["mac"] = mac.clone().into();
    }
    Ok(all)
}

fn bandwidth(pod: &NetworkPod) -> Value {
    // Bursts as the kubelet's documentation of the annotations has them: without a limit of their own.
    let burst = i32::MAX;
    let mut bandwidth = json!({});
    for (bps, rate, bursts) in [
        (pod.ingress_bps, "ingressRate", "ingressBurst"),
        (pod.egress_bps, "egressRate", "egressBurst"),
    ] {
        if let Some(bps) = bps {
            bandwidth[rate] = bps.into();
            bandwidth[bursts] = burst.into();
        }
    }
    bandwidth
}

fn port_mappings(pod: &NetworkPod) -> Value {
    let mapping = |port: &runtime::HostPort| {
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        json!({"hostPort": port.host_port, "containerPort": port.container_port,
            "protocol": protocol,
            "hostIP": port.host_ip.map(|ip| ip.to_string()).unwrap_or_default()})
    };
    pod.ports.iter().map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::HostPort;

    #[test]
    fn a_pods_wishes_become_arguments() {
        let annotated = |key: &str, value: &str| NetworkPod {
            annotations: [(key.to_owned(), value.to_owned())].into(),
            ..NetworkPod::default()
        };
        let port = HostPort {
            host_ip: Some("127.0.0.1".parse().unwrap()),
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Udp,
        };
        let cases = [
            (NetworkPod::default(), "bandwidth", Value::Null),
            (
                NetworkPod { ingress_bps: Some(8), ..NetworkPod::default() },
                "bandwidth",
                json!({"ingressRate": 8, "ingressBurst": i32::MAX}),
            ),
            (
                NetworkPod { ports: vec![port], ..NetworkPod::default() },
                "portMappings",
                json!([{"hostPort": 8080, "containerPort": 80, "protocol": "udp",
                    "hostIP": "127.0.0.1"}]),
            ),
            (annotated(IPS, "10.9.0.7/24, fd00::7"), "ips", json!(["10.9.0.7/24", "fd00::7"])),
            (annotated(MAC, "0a:00:00:00:00:07"), "mac", json!("0a:00:00:00:00:07")),
        ];
        for (pod, name, want) in cases {
            assert_eq!(of(&pod).unwrap()[name], want, "{name}");
        }
        assert!(of(&annotated(IPS, "next")).is_err());
    }
}
