//! Names inside the pod: resolver configuration, host name, `/etc/hosts`. Pure.
//!
//! Source of behaviour: `pkg/kubelet/network/dns/dns.go`, `kubelet_pods.go`.

use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;

use crate::pod;

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// A `resolv.conf`, parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads the file's text (resolv.conf(5)); the last `search` line counts.
    pub fn parse(text: &str) -> Self {
        let mut out = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
                Some("search") => {
                    out.searches = words
                        .map(|w| if w == "." { w } else { w.trim_end_matches('.') })
                        .map(str::to_owned)
                        .collect();
                }
                Some("options") => out.options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        out
    }
}

/// The cluster's side of name resolution.
pub struct Cluster<'a> {
    /// Addresses of the cluster's DNS service.
    pub servers: &'a [IpAddr],
    /// The cluster's domain.
    pub domain: &'a str,
}

/// The pod's resolver configuration. A name server on the host's loopback cannot be reached from a
/// pod, and none of the host's from the node's own network; the cluster's server, which forwards as
/// the host resolves, stands in for it.
pub fn config(pod: &Pod, host: &ResolvConf, cluster: &Cluster<'_>) -> cri::DnsConfig {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let cluster_first = match policy {
        "ClusterFirst" => !pod::host_network(pod),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let cluster_servers: Vec<String> = cluster.servers.iter().map(IpAddr::to_string).collect();
    let mut out = cri::DnsConfig::default();
    if policy == "None" {
    } else if cluster_first && !cluster_servers.is_empty() {
        let namespace = pod::namespace(pod);
        let domain = cluster.domain;
        out.servers = cluster_servers;
        out.searches =
            vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        append(&mut out.searches, &host.searches);
        out.options.clone_from(&host.options);
        merge_option(&mut out.options, "ndots:5");
    } else {
        let loopback = |s: &String| s.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let unreachable = |s: &String| pod::host_network(pod) || loopback(s);
        let reachable: Vec<String> =
            host.servers.iter().filter(|s| !unreachable(s)).cloned().collect();
        out.servers = if reachable.is_empty() { cluster_servers } else { reachable };
        out.searches.clone_from(&host.searches);
        out.options.clone_from(&host.options);
    }
    if let Some(own) = spec.and_then(|s| s.dns_config.as_ref()) {
        append(&mut out.servers, own.nameservers.as_deref().unwrap_or_default());
        append(&mut out.searches, own.searches.as_deref().unwrap_or_default());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            match option.value.as_deref().filter(|v| !v.is_empty()) {
                Some(value) => merge_option(&mut out.options, &format!("{name}:{value}")),
                None => merge_option(&mut out.options, &name),
            }
        }
    }
    out.servers.truncate(MAX_NAMESERVERS);
    out.searches.truncate(MAX_SEARCHES);
    while out.searches.join(" ").len() > MAX_SEARCH_CHARS {
        out.searches.pop();
    }
    out
}

fn append(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn merge_option(options: &mut Vec<String>, option: &str) {
    let name = option.split(':').next().unwrap_or(option);
    options.retain(|o| o.split(':').next() != Some(name));
    options.push(option.to_owned());
}

/// The pod's host name and its fully qualified name, if it has a subdomain.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let spec = pod.spec.as_ref();
    if let Some(name) = spec.and_then(|s| s.hostname_override.clone()).filter(|n| !n.is_empty()) {
        return (name, None);
    }
    let own = spec.and_then(|s| s.hostname.clone()).filter(|n| !n.is_empty());
    let mut name = own.unwrap_or_else(|| pod::name(pod).to_owned());
    if name.len() > 63 {
        name.truncate(63);
        name.truncate(name.trim_end_matches(['-', '.']).len());
    }
    let subdomain = spec.and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty());
    let fqdn =
        subdomain.map(|s| format!("{name}.{s}.{}.svc.{cluster_domain}", pod::namespace(pod)));
    (name, fqdn)
}

/// What the kernel's host name is set to: the short name, or the full one where the pod asks so.
pub fn kernel_hostname(pod: &Pod, cluster_domain: &str) -> String {
    let (short, fqdn) = hostname(pod, cluster_domain);
    let as_fqdn = pod.spec.as_ref().and_then(|s| s.set_hostname_as_fqdn).unwrap_or(false);
    if as_fqdn { fqdn.unwrap_or(short) } else { short }
}

/// The pod's `/etc/hosts`.
pub fn hosts_file(pod: &Pod, ips: &[String], host_file: &str, cluster_domain: &str) -> String {
    let mut out = String::new();
    if pod::host_network(pod) {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(host_file);
    } else {
        out.push_str("# Kubernetes-managed hosts file.\n");
        out.push_str("127.0.0.1\tlocalhost\n");
        out.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
        out.push_str("fe00::0\tip6-localnet\n");
        out.push_str("fe00::0\tip6-mcastprefix\n");
        out.push_str("fe00::1\tip6-allnodes\n");
        out.push_str("fe00::2\tip6-allrouters\n");
        let (name, fqdn) = hostname(pod, cluster_domain);
        for ip in ips {
            let _ = match &fqdn {
                Some(fqdn) => writeln!(out, "{ip}\t{fqdn}\t{name}"),
                None => writeln!(out, "{ip}\t{name}"),
            };
        }
    }
    let aliases = pod.spec.as_ref().and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            let _ = writeln!(out, "{}\t{names}", alias.ip);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec}))
        .unwrap()
    }

    fn of(spec: serde_json::Value) -> (String, String, String) {
        let host = ResolvConf::parse(
            "nameserver 127.0.0.53\nsearch lan.example.\noptions edns0 ndots:1\n",
        );
        let servers = ["10.43.0.10".parse().unwrap()];
        let c = config(&pod(spec), &host, &Cluster { servers: &servers, domain: "cluster.local" });
        (c.servers.join(" "), c.searches.join(" "), c.options.join(" "))
    }

    #[test]
    fn policies() {
        let cluster = "ns.svc.cluster.local svc.cluster.local cluster.local lan.example";
        for (spec, servers, searches, options) in [
            (serde_json::json!({"containers": []}), "10.43.0.10", cluster, "edns0 ndots:5"),
            (
                serde_json::json!({"containers": [], "hostNetwork": true}),
                "10.43.0.10",
                "lan.example",
                "edns0 ndots:1",
            ),
            (
                serde_json::json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
                "10.43.0.10",
                cluster,
                "edns0 ndots:5",
            ),
            (
                serde_json::json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
                    "nameservers": ["1.1.1.1"], "searches": ["x"], "options": [{"name": "ndots", "value": "2"}]}}),
                "1.1.1.1",
                "x",
                "ndots:2",
            ),
        ] {
            let got = of(spec);
            assert_eq!(
                (got.0.as_str(), got.1.as_str(), got.2.as_str()),
                (servers, searches, options)
            );
        }
    }

    #[test]
    fn hosts_and_names() {
        let p = pod(serde_json::json!({"containers": [], "subdomain": "web",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let file = hosts_file(&p, &["10.42.0.9".into()], "", "cluster.local");
        assert!(file.contains("10.42.0.9\tweb-0.web.ns.svc.cluster.local\tweb-0\n"));
        assert!(file.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
        assert_eq!(kernel_hostname(&p, "cluster.local"), "web-0");
    }
}
