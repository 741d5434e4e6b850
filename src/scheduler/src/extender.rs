//! Extenders: servers that are asked over HTTP which nodes will do, how good they are, whom preemption may
//! remove, and to bind.
//!
//! Source: `pkg/scheduler/extender.go`; the messages are those of `k8s.io/kube-scheduler/extender/v1`, whose
//! fields have no JSON names of their own. Answers are read whatever the case of their keys, as Go does.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};

use crate::configuration::{Extender as Config, Tls};
use crate::framework::{MAX_NODE_SCORE, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::preemption::Candidate;

/// The name under which extenders reject nodes.
pub const EXTENDER: &str = "extender";
/// The best score of an extender.
const MAX_SCORE: i64 = 10;
/// How long an answer may take unless configured.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What went wrong with an extender.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its settings cannot be used.
    #[error("extender {url}: {problem}")]
    Settings {
        /// Which.
        url: String,
        /// Why.
        problem: String,
    },
    /// It did not answer, or not with what was asked for.
    #[error("extender {url}: {problem}")]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong.
        problem: String,
    },
}

/// One extender.
#[derive(Clone)]
pub struct Extender {
    config: Config,
    client: reqwest::Client,
}

/// The nodes that an extender leaves, and what it says about the others.
#[derive(Debug, Default)]
pub struct Filtered {
    /// Names of those that will do.
    pub left: Vec<String>,
    /// Why others will not.
    pub failed: BTreeMap<String, Rejection>,
}

/// The value of `key`, whatever its case.
fn field<'a>(value: &'a Value, key: &str) -> &'a Value {
    const NULL: &Value = &Value::Null;
    let found = value.as_object().and_then(|fields| {
        fields.get(key).or_else(|| {
            fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value)
        })
    });
    found.unwrap_or(NULL)
}

fn pem(path: &str, data: &str, field: &str) -> Result<Option<Vec<u8>>, String> {
    if !data.is_empty() {
        let bytes = base64::engine::general_purpose::STANDARD.decode(data);
        return bytes.map(Some).map_err(|error| format!("tlsConfig.{field}Data: {error}"));
    }
    if path.is_empty() {
        return Ok(None);
    }
    std::fs::read(path).map(Some).map_err(|error| format!("tlsConfig.{field}File: {path}: {error}"))
}

fn with_tls(
    mut builder: reqwest::ClientBuilder,
    tls: &Tls,
) -> Result<reqwest::ClientBuilder, String> {
    if let Some(authority) = pem(&tls.ca_file, &tls.ca_data, "ca")? {
        let certificate = reqwest::Certificate::from_pem(&authority);
        let certificate = certificate.map_err(|error| format!("tlsConfig.caFile: {error}"))?;
        builder = builder.tls_certs_merge([certificate]);
    }
    let certificate = pem(&tls.cert_file, &tls.cert_data, "cert")?;
    let key = pem(&tls.key_file, &tls.key_data, "key")?;
    if let (Some(mut certificate), Some(key)) = (certificate, key) {
        certificate.push(b'\n');
        certificate.extend(key);
        let identity = reqwest::Identity::from_pem(&certificate);
        builder = builder.identity(identity.map_err(|error| format!("tlsConfig: {error}"))?);
    }
    Ok(if tls.insecure { builder.tls_danger_accept_invalid_certs(true) } else { builder })
}

/// The URL with `name` in the place of its host, and the address that is meant by both.
fn called(url: &str, name: &str) -> Result<(String, IpAddr), String> {
    let mut parsed = reqwest::Url::parse(url).map_err(|error| format!("urlPrefix: {error}"))?;
    let host = parsed.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let address = match host {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        host => host.parse().ok(),
    };
    let address = address
        .ok_or("tlsConfig.serverName: the host of urlPrefix must be an address beside it")?;
    let named = parsed.set_host(Some(name));
    named.map_err(|error| format!("tlsConfig.serverName: {name:?}: {error}"))?;
    Ok((parsed.to_string(), address))
}

impl Extender {
    /// The extender that `config` names.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let settings =
            |problem: String| Error::Settings { url: config.url_prefix.clone(), problem };
        let mut config = config.clone();
        if !config.url_prefix.contains("://") {
            let scheme = if config.enable_https { "https" } else { "http" };
            config.url_prefix = format!("{scheme}://{}", config.url_prefix);
        }
        let timeout = config.http_timeout.as_deref().and_then(apimachinery::time::duration);
        let timeout = timeout.filter(|timeout| !timeout.is_zero()).unwrap_or(TIMEOUT);
        let mut builder = reqwest::Client::builder().timeout(timeout).no_proxy();
        if let Some(tls) = &config.tls_config {
            builder = with_tls(builder, tls).map_err(settings)?;
            if !tls.server_name.is_empty() {
                let (url, address) =
                    called(&config.url_prefix, &tls.server_name).map_err(settings)?;
                // The port is the URL's.
                builder = builder.resolve(&tls.server_name, SocketAddr::new(address, 0));
                config.url_prefix = url;
            }
        }
        let client = builder.build().map_err(|error| settings(error.to_string()))?;
        Ok(Self { config, client })
    }

    /// Whether decisions go on when it fails.
    pub fn is_ignorable(&self) -> bool {
        self.config.ignorable
    }

    /// Whether it is asked about the pod at all.
    pub fn is_interested(&self, pod: &PodInfo) -> bool {
        let managed = &self.config.managed_resources;
        if managed.is_empty() {
            return true;
        }
        let spec = pod.spec();
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        containers.filter_map(|container| container.resources.as_ref()).any(|resources| {
            let asked = [resources.requests.as_ref(), resources.limits.as_ref()];
            asked
                .into_iter()
                .flatten()
                .any(|list| managed.iter().any(|resource| list.contains_key(&resource.name)))
        })
    }

    /// Whether it binds pods.
    pub fn binds(&self) -> bool {
        !self.config.bind_verb.is_empty()
    }

    /// Whether it has a say in preemption.
    pub fn preempts(&self) -> bool {
        !self.config.preempt_verb.is_empty()
    }

    async fn ask(&self, verb: &str, body: &Value) -> Result<Value, Error> {
        let url = format!("{}/{verb}", self.config.url_prefix.trim_end_matches('/'));
        let failed = |problem: String| Error::Answer { url: url.clone(), problem };
        let answer = self.client.post(&url).json(body).send().await;
        let answer = answer.map_err(|error| failed(told(&error)))?;
        if !answer.status().is_success() {
            return Err(failed(format!(
                "failed {verb} with extender at URL, code {}",
                answer.status().as_u16()
            )));
        }
        answer.json().await.map_err(|error| failed(told(&error)))
    }

    /// The nodes as the extender wants to be told of them.
    fn nodes(&self, nodes: &[&NodeInfo]) -> (Value, Value) {
        if self.config.node_cache_capable {
            (Value::Null, nodes.iter().map(|node| node.name.as_str()).collect())
        } else {
            let items: Vec<_> = nodes.iter().map(|node| node.node.as_ref()).collect();
            (json!({"metadata": {}, "items": items}), Value::Null)
        }
    }

    /// Which of `nodes` will do for `pod`.
    pub async fn filter(&self, pod: &PodInfo, nodes: &[&NodeInfo]) -> Result<Filtered, Error> {
        if self.config.filter_verb.is_empty() {
            let left = nodes.iter().map(|node| node.name.clone()).collect();
            return Ok(Filtered { left, failed: BTreeMap::new() });
        }
        let (items, names) = self.nodes(nodes);
        let body = json!({"Pod": pod.pod.as_ref(), "Nodes": items, "NodeNames": names});
        let answer = self.ask(&self.config.filter_verb, &body).await?;
        if let Some(problem) = field(&answer, "Error").as_str().filter(|text| !text.is_empty()) {
            let url = self.config.url_prefix.clone();
            return Err(Error::Answer { url, problem: problem.to_owned() });
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let left = match field(&answer, "NodeNames").as_array() {
            Some(names) if self.config.node_cache_capable => {
                names.iter().filter_map(text).collect()
            }
            _ => {
                let items = field(field(&answer, "Nodes"), "items").as_array();
                let items = items.into_iter().flatten();
                items.filter_map(|node| text(field(field(node, "metadata"), "name"))).collect()
            }
        };
        let mut failed = BTreeMap::new();
        for (key, resolvable) in [("FailedNodes", true), ("FailedAndUnresolvableNodes", false)] {
            for (node, reason) in field(&answer, key).as_object().into_iter().flatten() {
                let reason = reason.as_str().unwrap_or_default().to_owned();
                let rejection = Rejection { resolvable, reasons: vec![reason.into()] };
                failed.insert(node.clone(), rejection);
            }
        }
        Ok(Filtered { left, failed })
    }

    /// What the extender adds to the scores of `nodes`, by name.
    pub async fn prioritize(
        &self,
        pod: &PodInfo,
        nodes: &[&NodeInfo],
    ) -> Result<BTreeMap<String, i64>, Error> {
        if self.config.prioritize_verb.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (items, names) = self.nodes(nodes);
        let body = json!({"Pod": pod.pod.as_ref(), "Nodes": items, "NodeNames": names});
        let answer = self.ask(&self.config.prioritize_verb, &body).await?;
        let scores = answer.as_array().into_iter().flatten();
        let factor = self.config.weight * (MAX_NODE_SCORE / MAX_SCORE);
        let score = |entry: &Value| {
            let host = field(entry, "Host").as_str()?.to_owned();
            Some((host, field(entry, "Score").as_i64()? * factor))
        };
        Ok(scores.filter_map(score).collect())
    }

    /// Has the pod bound.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), Error> {
        let body = json!({"PodName": pod.name, "PodNamespace": pod.namespace, "PodUID": pod.uid, "Node": node});
        let answer = self.ask(&self.config.bind_verb, &body).await?;
        match field(&answer, "Error").as_str() {
            Some(problem) if !problem.is_empty() => Err(Error::Answer {
                url: self.config.url_prefix.clone(),
                problem: problem.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// The candidates that the extender agrees to, with the victims that it wants.
    pub async fn preempt(
        &self,
        pod: &PodInfo,
        candidates: &[Candidate],
    ) -> Result<Vec<Candidate>, Error> {
        let mut victims = serde_json::Map::new();
        let mut meta = serde_json::Map::new();
        for candidate in candidates {
            let violations = candidate.violations;
            if self.config.node_cache_capable {
                let pods: Vec<_> =
                    candidate.victims.iter().map(|pod| json!({"UID": pod.uid})).collect();
                meta.insert(
                    candidate.node.clone(),
                    json!({"Pods": pods, "NumPDBViolations": violations}),
                );
            } else {
                let pods: Vec<_> = candidate.victims.iter().map(|pod| pod.pod.as_ref()).collect();
                victims.insert(
                    candidate.node.clone(),
                    json!({"Pods": pods, "NumPDBViolations": violations}),
                );
            }
        }
        let body = json!({"Pod": pod.pod.as_ref(),
            "NodeNameToVictims": (!victims.is_empty()).then_some(victims),
            "NodeNameToMetaVictims": (!meta.is_empty()).then_some(meta)});
        let answer = self.ask(&self.config.preempt_verb, &body).await?;
        let left = field(&answer, "NodeNameToMetaVictims").as_object().cloned();
        let known: HashMap<&str, &Candidate> =
            candidates.iter().map(|candidate| (candidate.node.as_str(), candidate)).collect();
        let agreed = left.unwrap_or_default().into_iter().filter_map(|(node, victims)| {
            let candidate = known.get(node.as_str())?;
            let uids: Vec<String> = field(&victims, "Pods")
                .as_array()?
                .iter()
                .filter_map(|pod| field(pod, "UID").as_str().map(str::to_owned))
                .collect();
            let wanted = candidate.victims.iter().filter(|pod| uids.contains(&pod.uid));
            Some(Candidate {
                node,
                victims: wanted.map(Arc::clone).collect(),
                violations: field(&victims, "NumPDBViolations").as_u64().unwrap_or(0) as usize,
            })
        });
        Ok(agreed.collect())
    }
}

/// An error with its causes.
fn told(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_be_called_by_another_name() {
        for (url, name, want) in [
            (
                "https://127.0.0.1:9443/x",
                "extender.example",
                Some(("https://extender.example:9443/x", "127.0.0.1")),
            ),
            (
                "https://[::1]:9443",
                "extender.example",
                Some(("https://extender.example:9443/", "::1")),
            ),
            (
                "https://localhost",
                "extender.example",
                Some(("https://extender.example/", "127.0.0.1")),
            ),
            ("https://other.example/x", "extender.example", None),
            ("https://127.0.0.1", "not a name", None),
        ] {
            let got = called(url, name).ok();
            let want = want.map(|(url, ip)| (url.to_owned(), ip.parse().expect("an address")));
            assert_eq!(got, want, "{url} {name}");
        }
    }
}
