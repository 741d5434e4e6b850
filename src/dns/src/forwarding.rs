//! Name servers that the cluster's administrator names: for some domains, or instead of the host's.
//!
//! They are in ConfigMap `kube-dns` of `kube-system`, in the format that Kubernetes documents for it
//! ("Customizing DNS Service", kube-dns): `stubDomains`, an object of lists of addresses by domain,
//! and `upstreamNameservers`, a list of addresses, both as JSON texts.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::ConfigMap;
use serde::{Deserialize, Serialize};

use crate::zone::is_below;

/// Other name servers than the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarding {
    /// Name servers of a domain, which is in lower case and without the last dot.
    pub stubs: BTreeMap<String, Vec<SocketAddr>>,
    /// Name servers of everything else; empty means the host's.
    pub upstreams: Vec<SocketAddr>,
}

impl Forwarding {
    /// What the ConfigMap says, and what of it could not be understood.
    pub fn read(map: &ConfigMap) -> (Self, Vec<String>) {
        let mut own = Self::default();
        let mut problems = Vec::new();
        let text = |key: &str| map.data.as_ref().and_then(|data| data.get(key));
        if let Some(text) = text("stubDomains") {
            match serde_json::from_str::<BTreeMap<String, Vec<String>>>(text) {
                Ok(stubs) => {
                    for (domain, servers) in stubs {
                        let servers = addresses(&servers, &mut problems);
                        let domain = domain.trim_matches('.').to_lowercase();
                        if !domain.is_empty() && !servers.is_empty() {
                            own.stubs.insert(domain, servers);
                        }
                    }
                }
                Err(error) => problems.push(format!("stubDomains: {error}")),
            }
        }
        if let Some(text) = text("upstreamNameservers") {
            match serde_json::from_str::<Vec<String>>(text) {
                Ok(servers) => own.upstreams = addresses(&servers, &mut problems),
                Err(error) => problems.push(format!("upstreamNameservers: {error}")),
            }
        }
        (own, problems)
    }

    /// Who is to be asked about a name; None is the host's own.
    pub fn servers(&self, name: &str) -> Option<&[SocketAddr]> {
        let stubs = self.stubs.iter().filter(|(domain, _)| is_below(name, domain));
        let closest = stubs.max_by_key(|(domain, _)| domain.len()).map(|(_, servers)| servers);
        let upstreams = (!self.upstreams.is_empty()).then_some(&self.upstreams);
        closest.or(upstreams).map(Vec::as_slice)
    }
}

fn addresses(texts: &[String], problems: &mut Vec<String>) -> Vec<SocketAddr> {
    let parse = |text: &String| {
        let plain = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, 53));
        plain.ok().or_else(|| text.parse().ok()).or_else(|| {
            problems.push(format!("{text:?} is not the address of a name server"));
            None
        })
    };
    texts.iter().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_closest_domain_is_asked() {
        let map = json!({"data": {
            "stubDomains": r#"{"Acme.local.": ["192.0.2.1"], "eu.acme.local": ["192.0.2.2:5353", "x"]}"#,
            "upstreamNameservers": r#"["192.0.2.3"]"#}});
        let (forwarding, problems) = Forwarding::read(&serde_json::from_value(map).unwrap());
        assert_eq!(problems, ["\"x\" is not the address of a name server"]);
        let cases = [
            ("acme.local", "192.0.2.1:53"),
            ("a.acme.local", "192.0.2.1:53"),
            ("b.eu.acme.local", "192.0.2.2:5353"),
            ("notacme.local", "192.0.2.3:53"),
        ];
        for (name, want) in cases {
            let want: SocketAddr = want.parse().unwrap();
            assert_eq!(forwarding.servers(name), Some(&[want][..]), "{name}");
        }
        assert_eq!(Forwarding::default().servers("acme.local"), None);
        let broken = json!({"data": {"stubDomains": "["}});
        let (forwarding, problems) = Forwarding::read(&serde_json::from_value(broken).unwrap());
        assert_eq!((forwarding, problems.len()), (Forwarding::default(), 1));
    }
}
