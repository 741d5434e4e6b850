//! The signatures of bootstrap tokens on the ConfigMap `cluster-info`, by which a machine that joins
//! knows that the cluster is the one its token is for; and the end of tokens that have expired.
//!
//! Source: `pkg/controller/bootstrap/{bootstrapsigner,tokencleaner}.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use client::{Event, Informers, Selection, list_watch};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Next};
use crate::{name, touched, unless_code};

const TYPE: &str = "bootstrap.kubernetes.io/token";
const NAMESPACE: &str = "kube-system";
const PUBLIC: &str = "kube-public";
const INFO: &str = "cluster-info";
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE: &str = "jws-kubeconfig-";

fn data(secret: &Secret, key: &str) -> String {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default()
}

fn is_token(secret: &Secret) -> bool {
    secret.type_.as_deref() == Some(TYPE) && secret.metadata.namespace.as_deref() == Some(NAMESPACE)
}

/// How long a token is still good: `None` for ever.
fn rest(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let text = data(secret, "expiration");
    if text.is_empty() {
        return None;
    }
    // What cannot be read counts as over.
    let Ok(end) = text.parse::<Timestamp>() else { return Some(Duration::ZERO) };
    Some(Duration::from_millis(end.duration_since(now).as_millis().max(0) as u64))
}

/// The id and secret of a token that may sign.
fn signer(secret: &Secret, now: Timestamp) -> Option<(String, String)> {
    let (id, key) = (data(secret, "token-id"), data(secret, "token-secret"));
    let good = is_token(secret)
        && !id.is_empty()
        && !key.is_empty()
        && secret.name_any() == format!("bootstrap-token-{id}")
        && data(secret, "usage-bootstrap-signing") == "true"
        && rest(secret, now).is_none_or(|rest| !rest.is_zero());
    good.then_some((id, key))
}

/// HMAC with SHA-256 (RFC 2104).
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 64;
    let mut padded = [0_u8; BLOCK];
    if key.len() > BLOCK {
        padded[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        padded[..key.len()].copy_from_slice(key);
    }
    let with = |byte: u8| padded.map(|k| k ^ byte);
    let inner = Sha256::new().chain_update(with(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(with(0x5c)).chain_update(inner).finalize().to_vec()
}

/// A JWS over `content` by the token, its payload left out.
fn signature(content: &str, id: &str, key: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":\"{id}\"}}"));
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let signature = URL_SAFE_NO_PAD.encode(hmac(key.as_bytes(), signed.as_bytes()));
    format!("{header}..{signature}")
}

/// The data that the map should have; `None` when it has it.
fn signed(map: &ConfigMap, tokens: &[(String, String)]) -> Option<BTreeMap<String, String>> {
    let old = map.data.clone().unwrap_or_default();
    let content = old.get(KUBECONFIG)?.clone();
    let mut new: BTreeMap<String, String> = old
        .iter()
        .filter(|(key, _)| !key.starts_with(SIGNATURE))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    for (id, key) in tokens {
        new.insert(format!("{SIGNATURE}{id}"), signature(&content, id, key));
    }
    (new != old).then_some(new)
}

/// Looks at `keys` whenever a token changes, or is seen for the first time.
fn tokens(
    api: &Api<Secret>,
    keys: impl Fn(&Secret) -> Vec<String> + Send,
) -> impl Stream<Item = Vec<String>> + Send {
    let selection = Selection::fields(format!("type={TYPE}"));
    list_watch(api.clone(), selection).map(move |event| match event {
        Event::Apply(secret) | Event::InitApply(secret) | Event::Delete(secret) => keys(&secret),
        Event::Init | Event::InitDone => Vec::new(),
    })
}

/// Signs until `shutdown`.
pub async fn run_signing(client: Client, informers: Informers, shutdown: CancellationToken) {
    let maps = informers.get::<ConfigMap>();
    maps.ready().await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let changes = futures::stream::select(
        tokens(&secrets, |_| vec![INFO.to_owned()]),
        touched(&maps, |map: &ConfigMap| {
            let public = map.metadata.namespace.as_deref() == Some(PUBLIC);
            if public && map.name_any() == INFO { name(map) } else { Vec::new() }
        }),
    );
    queue::run("bootstrap-signer", changes, shutdown, |_: String| {
        let (secrets, map) = (secrets.clone(), maps.get(PUBLIC, INFO));
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), PUBLIC);
        Box::pin(async move {
            let parameters = ListParams::default().fields(&format!("type={TYPE}"));
            let (all, now) = (secrets.list(&parameters).await?, Timestamp::now());
            let good: Vec<&Secret> =
                all.items.iter().filter(|secret| signer(secret, now).is_some()).collect();
            let tokens: Vec<(String, String)> =
                good.iter().filter_map(|secret| signer(secret, now)).collect();
            if let Some(map) = map
                && let Some(data) = signed(&map, &tokens)
            {
                let mut map = ConfigMap::clone(&map);
                map.data = Some(data);
                api.replace(INFO, &PostParams::default(), &map).await?;
            }
            let next = good.iter().filter_map(|secret| rest(secret, now)).min();
            Ok(next.map_or(Next::Done, Next::After))
        })
    })
    .await;
}

/// Removes expired tokens until `shutdown`.
pub async fn run_cleaning(client: Client, shutdown: CancellationToken) {
    let api: Api<Secret> = Api::namespaced(client, NAMESPACE);
    let changes = tokens(&api, name);
    queue::run("token-cleaner", changes, shutdown, |key: String| {
        let api = api.clone();
        Box::pin(async move {
            let Some(secret) = api.get_opt(&key).await?.filter(is_token) else {
                return Ok(Next::Done);
            };
            match rest(&secret, Timestamp::now()) {
                None => Ok(Next::Done),
                Some(rest) if !rest.is_zero() => Ok(Next::After(rest)),
                Some(_) => {
                    let preconditions = Preconditions { uid: secret.uid(), resource_version: None };
                    let parameters = DeleteParams::default().preconditions(preconditions);
                    unless_code(api.delete(&key, &parameters).await, 404)?;
                    Ok(Next::Done)
                }
            }
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(pairs: &[(&str, &str)]) -> Secret {
        let mut secret = Secret { type_: Some(TYPE.into()), ..Secret::default() };
        secret.metadata.namespace = Some(NAMESPACE.into());
        secret.metadata.name = Some("bootstrap-token-abcdef".into());
        let data = pairs.iter().map(|(k, v)| ((*k).to_owned(), ByteString(v.as_bytes().to_vec())));
        secret.data = Some(data.collect());
        secret
    }

    #[test]
    fn hmacs_are_those_of_rfc_4231() {
        let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(hmac(b"Jefe", b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn tokens_sign_while_they_are_good() {
        let base =
            [("token-id", "abcdef"), ("token-secret", "s"), ("usage-bootstrap-signing", "true")];
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let with = |more: (&'static str, &'static str)| secret(&[&base[..], &[more]].concat());
        let cases = [
            (secret(&base), true),
            (with(("expiration", "2026-01-01T00:00:01Z")), true),
            (with(("expiration", "2026-01-01T00:00:00Z")), false),
            (with(("expiration", "soon")), false),
            (with(("token-id", "other1")), false),
            (with(("usage-bootstrap-signing", "false")), false),
        ];
        for (secret, want) in cases {
            assert_eq!(signer(&secret, now).is_some(), want, "{secret:?}");
        }
    }

    #[test]
    fn the_map_has_the_signatures_of_good_tokens_alone() {
        let data = BTreeMap::from([
            (KUBECONFIG.to_owned(), "content".to_owned()),
            ("jws-kubeconfig-gone00".to_owned(), "x".to_owned()),
        ]);
        let map = ConfigMap { data: Some(data), ..ConfigMap::default() };
        let tokens = [("abcdef".to_owned(), "secret".to_owned())];
        let new = signed(&map, &tokens).expect("it changes");
        let keys: Vec<&String> = new.keys().collect();
        assert_eq!(keys, ["jws-kubeconfig-abcdef", KUBECONFIG]);
        let parts: Vec<&str> = new["jws-kubeconfig-abcdef"].split('.').collect();
        assert_eq!((parts.len(), parts[1]), (3, ""));
        let again = ConfigMap { data: Some(new), ..ConfigMap::default() };
        assert_eq!(signed(&again, &tokens), None);
    }
}
