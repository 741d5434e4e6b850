//! Cluster trust bundles: certificates of authorities, by the bundle's name or by signer and labels.
//!
//! Source of behaviour: `pkg/kubelet/clustertrustbundle`, the projected volumes page of the Kubernetes documentation.

use std::collections::BTreeMap;

use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Api;
use kube::api::ListParams;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use super::Cause;
use crate::context::Context;

/// The certificates that a projection asks for, as one PEM text; empty where it is optional and there are none.
pub async fn anchors(
    context: &Context,
    wanted: &ClusterTrustBundleProjection,
) -> Result<String, Cause> {
    let optional = wanted.optional == Some(true);
    let api: Api<ClusterTrustBundle> = Api::all(context.client.clone());
    let (what, bundles) = if let Some(name) = &wanted.name {
        let what = format!("clustertrustbundle {name:?}");
        let found = api.get_opt(name).await;
        let found = found.map_err(|source| Cause::Fetch { what: what.clone(), source })?;
        (what, found.into_iter().collect())
    } else {
        let signer = wanted.signer_name.clone().unwrap_or_default();
        let what = format!("clustertrustbundles of signer {signer:?}");
        // Without a selector nothing is chosen, as everywhere.
        let bundles = match &wanted.label_selector {
            None => Vec::new(),
            Some(selector) => {
                let parameters = ListParams::default().labels(&text_of(selector));
                let listed = api.list(&parameters).await;
                let listed =
                    listed.map_err(|source| Cause::Fetch { what: what.clone(), source })?;
                let of = |b: &ClusterTrustBundle| b.spec.signer_name.as_deref() == Some(&signer);
                listed.items.into_iter().filter(of).collect()
            }
        };
        (what, bundles)
    };
    if bundles.is_empty() && !optional {
        return Err(Cause::NoBundle(what));
    }
    Ok(normalized(bundles.iter().map(|bundle| bundle.spec.trust_bundle.as_str())))
}

/// A label selector as the API takes it in a query.
fn text_of(selector: &LabelSelector) -> String {
    let labels =
        selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let rules = selector.match_expressions.iter().flatten().map(|rule| {
        let values = rule.values.clone().unwrap_or_default().join(",");
        match rule.operator.as_str() {
            "In" => format!("{} in ({values})", rule.key),
            "NotIn" => format!("{} notin ({values})", rule.key),
            "DoesNotExist" => format!("!{}", rule.key),
            _ => rule.key.clone(),
        }
    });
    labels.chain(rules).collect::<Vec<_>>().join(",")
}

/// Each certificate once, in an order of no meaning that stays the same, without what stands between them.
fn normalized<'a>(bundles: impl Iterator<Item = &'a str>) -> String {
    let mut certificates = BTreeMap::new();
    for bundle in bundles {
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()).flatten() {
            certificates.insert(Sha256::digest(&certificate).to_vec(), certificate);
        }
    }
    certificates.values().map(|certificate| pem("CERTIFICATE", certificate)).collect()
}

/// A block of PEM (RFC 7468).
pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        encoded.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn certificate() -> String {
        rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap().cert.pem()
    }

    #[test]
    fn certificates_come_once_and_bare() {
        let (one, two) = (certificate(), certificate());
        let with_more = format!("about one\n{one}and two\n{two}{one}");
        let all = normalized([with_more.as_str(), two.as_str()].into_iter());
        assert_eq!(all, normalized([format!("{two}{one}").as_str()].into_iter()));
        assert_eq!(all.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(!all.contains("about"), "{all}");
        let plain = one.replace("\r\n", "\n");
        assert_eq!(normalized([one.as_str()].into_iter()), plain, "as others write it");
    }

    #[test]
    fn selectors_are_written_as_queries() {
        for (selector, text) in [
            (json!({}), ""),
            (json!({"matchLabels": {"a": "1", "b": "2"}}), "a=1,b=2"),
            (
                json!({"matchExpressions": [{"key": "k", "operator": "In", "values": ["x", "y"]},
                    {"key": "l", "operator": "DoesNotExist"}, {"key": "m", "operator": "Exists"}]}),
                "k in (x,y),!l,m",
            ),
        ] {
            let selector: LabelSelector =
                serde_json::from_value::<LabelSelector>(selector).unwrap();
            assert_eq!(text_of(&selector), text);
        }
    }
}
