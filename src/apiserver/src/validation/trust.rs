//! Rules for cluster trust bundles.
//!
//! Source: `pkg/apis/certificates/validation/validation.go`.

use std::collections::HashMap;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{meta, names};
use serde_json::Value;
use x509_parser::pem::Pem;

use super::core::immutable;
use super::{certificates, mistakes};
use crate::zero::Zero;

const BUNDLE_MAX_BYTES: usize = 1 << 20;
const OMITTED: &str = "<value omitted>";

/// A bundle, new (`old` is absent) or changed.
pub fn bundle(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    let signer = spec["signerName"].text();
    if old.is_none() {
        let (at, name) = (Path::new("metadata").child("name"), meta::name(object));
        mistakes(errors, &at, name, name_of_signer(name, signer));
    }
    if !signer.is_empty() {
        certificates::signer_name(signer, &path.child("signerName"), errors);
    }
    if let Some(old) = old {
        let before = &old["spec"]["signerName"];
        immutable(&path.child("signerName"), &spec["signerName"], before, errors);
        if spec["trustBundle"] == old["spec"]["trustBundle"] {
            return;
        }
    }
    anchors(spec["trustBundle"].text(), &path.child("trustBundle"), errors);
}

/// The name of a bundle that says its signer, if any, itself: what is before the last colon.
pub fn bundle_name(name: &str) -> Vec<String> {
    let signer = name.rsplit_once(':').map(|(signer, _)| signer.replace(':', "/"));
    name_of_signer(name, &signer.unwrap_or_default())
}

fn name_of_signer(name: &str, signer: &str) -> Vec<String> {
    if signer.is_empty() {
        if name.contains(':') {
            return vec![
                "ClusterTrustBundle without signer name must not have \":\" in its name".into(),
            ];
        }
        return names::dns_subdomain(name);
    }
    let prefix = format!("{}:", signer.replace('/', ":"));
    match name.strip_prefix(&prefix) {
        Some(rest) => names::dns_subdomain(rest),
        None => vec![format!(
            "ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}"
        )],
    }
}

/// Certificates of authorities in PEM, none of them twice.
fn anchors(text: &str, path: &Path, errors: &mut ErrorList) {
    if text.len() > BUNDLE_MAX_BYTES {
        errors.push(Error::too_long(path, BUNDLE_MAX_BYTES));
        return;
    }
    let mut tell = |detail: String| errors.push(Error::invalid(path, OMITTED, detail));
    let (mut places, mut count) = (HashMap::<Vec<u8>, Vec<String>>::new(), 0);
    for pem in Pem::iter_from_buffer(text.as_bytes()) {
        let index = count;
        count += 1;
        let Ok(pem) = pem else {
            tell(format!("entry {index} does not parse as PEM"));
            break;
        };
        if pem.label != "CERTIFICATE" {
            tell(format!("entry {index} has bad block type: {}", pem.label));
            continue;
        }
        let Ok(certificate) = pem.parse_x509() else {
            tell(format!("entry {index} does not parse as X.509"));
            continue;
        };
        if !certificate.is_ca() {
            tell(format!("entry {index} does not have the CA bit set"));
            continue;
        }
        places.entry(pem.contents.clone()).or_default().push(index.to_string());
    }
    if count == 0 {
        tell("at least one trust anchor must be provided".into());
    }
    let mut twice: Vec<String> =
        places.into_values().filter(|at| at.len() > 1).map(|at| at.join(" ")).collect();
    twice.sort();
    for at in twice {
        tell(format!("duplicate trust anchor (indices [{at}])"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validation::told;

    fn authority() -> String {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn bundles_are_named_after_their_signer_and_hold_authorities() {
        let pem = authority();
        let of = |name: &str, signer: &str, text: &str| {
            let object = json!({"metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": text}});
            told(|errors| bundle(&object, None, errors))
        };
        for (name, signer, text, want) in [
            ("a", "", pem.as_str(), ""),
            ("e.com:s:a", "e.com/s", &pem, ""),
            (
                "e.com:s:a",
                "",
                &pem,
                "metadata.name: Invalid value: \"e.com:s:a\": ClusterTrustBundle without signer name must not have \":\" in its name",
            ),
            (
                "a",
                "e.com/s",
                &pem,
                "metadata.name: Invalid value: \"a\": ClusterTrustBundle for signerName e.com/s must be named with prefix e.com:s:",
            ),
            (
                "a",
                "",
                "",
                "spec.trustBundle: Invalid value: \"<value omitted>\": at least one trust anchor must be provided",
            ),
            (
                "a",
                "",
                &format!("{pem}{pem}"),
                "spec.trustBundle: Invalid value: \"<value omitted>\": duplicate trust anchor (indices [0 1])",
            ),
        ] {
            assert_eq!(of(name, signer, text).first().map_or("", String::as_str), want);
        }
    }
}
