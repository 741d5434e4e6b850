//! Rules for projected volumes: what several objects put into one folder.
//!
//! Source: `validateProjectionSources` of `k8s.io/kubernetes/pkg/apis/core/validation`.

use std::collections::HashSet;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::Value;

use super::volume::{downward_files, file_path, key_paths};
use super::{certificates, label_selector, mistakes, trust};
use crate::zero::Zero;

const KEY_TYPES: [&str; 6] =
    ["ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519", "RSA3072", "RSA4096"];
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;
const CERTIFICATE_SECONDS_MIN: i64 = 3600;
/// 91 days, and a day for what the cluster itself signs.
const CERTIFICATE_SECONDS_MAX: i64 = 7_862_400;
const CLUSTERS_SECONDS_MAX: i64 = 86_400;
const CONFLICT: &str = "conflicting duplicate paths";

/// Checks each source by itself, and that no two put something at one path.
pub fn sources(volume: &Value, path: &Path, errors: &mut ErrorList) {
    let mut taken: HashSet<String> = HashSet::new();
    for (index, source) in volume["sources"].items().iter().enumerate() {
        let at = path.child("sources").index(index);
        for kind in ["secret", "configMap"] {
            let (part, at) = (&source[kind], at.child(kind));
            if part.is_null() {
                continue;
            }
            let name = part["name"].text();
            if name.is_empty() {
                errors.push(Error::required(&at.child("name"), ""));
            }
            key_paths(part, &at, errors);
            for item in part["items"].items() {
                let file = item["path"].text();
                if !file.is_empty() && !taken.insert(file.to_owned()) {
                    errors.push(Error::invalid(path, name, CONFLICT));
                }
            }
        }
        let downward = &source["downwardAPI"];
        if downward.is_set() {
            downward_files(downward, &at.child("downwardAPI"), errors);
            for item in downward["items"].items() {
                take(&mut taken, item["path"].text(), path, errors);
            }
        }
        let token = &source["serviceAccountToken"];
        if token.is_set() {
            service_account_token(token, &at.child("serviceAccountToken"), path, errors);
        }
        let bundle = &source["clusterTrustBundle"];
        if bundle.is_set() {
            trust_bundle(bundle, &at.child("clusterTrustBundle"), errors);
            let file = bundle["path"].text();
            if !taken.insert(file.to_owned()) {
                errors.push(Error::invalid(path, file, CONFLICT));
            }
        }
        let certificate = &source["podCertificate"];
        if certificate.is_set() {
            let at = at.child("podCertificate");
            pod_certificate(certificate, &at, errors);
            for key in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
                take(&mut taken, certificate[key].text(), path, errors);
            }
        }
        if source.entries().filter(|(_, part)| part.is_set()).count() > 1 {
            let detail = "may not specify more than 1 volume type per source";
            errors.push(Error::forbidden(&at, detail));
        }
    }
}

fn take(taken: &mut HashSet<String>, file: &str, path: &Path, errors: &mut ErrorList) {
    if !file.is_empty() && !taken.insert(file.to_owned()) {
        errors.push(Error::invalid(path, file, CONFLICT));
    }
}

fn service_account_token(token: &Value, path: &Path, volume: &Path, errors: &mut ErrorList) {
    let (seconds, at) = (token["expirationSeconds"].int(), path.child("expirationSeconds"));
    if seconds < TOKEN_SECONDS_MIN {
        let detail = "may not specify a duration less than 10 minutes";
        errors.push(Error::invalid(&at, seconds, detail));
    }
    if seconds > TOKEN_SECONDS_MAX {
        let detail = "may not specify a duration larger than 2^32 seconds";
        errors.push(Error::invalid(&at, seconds, detail));
    }
    // Upstream names the volume, not the source.
    let (file, at) = (token["path"].text(), volume.child("path"));
    if file.is_empty() {
        errors.push(Error::required(&at, ""));
    } else {
        file_path(file, &at, errors);
    }
}

fn trust_bundle(bundle: &Value, path: &Path, errors: &mut ErrorList) {
    let (name, signer) = (&bundle["name"], &bundle["signerName"]);
    match (name.as_str(), signer.as_str()) {
        (Some(_), Some(_)) => {
            let detail = "only one of name and signerName may be used";
            errors.push(Error::invalid(path, bundle.clone(), detail));
        }
        (Some(name), None) => {
            if name.is_empty() {
                let detail = "must be a valid object name";
                errors.push(Error::required(&path.child("name"), detail));
            }
            for sentence in trust::bundle_name(name) {
                let detail = format!("not a valid clustertrustbundlename: {sentence}");
                errors.push(Error::invalid(&path.child("name"), name, detail));
            }
            if bundle["labelSelector"].is_set() {
                let detail = "labelSelector must be unset if name is specified";
                let selector = bundle["labelSelector"].clone();
                errors.push(Error::invalid(&path.child("labelSelector"), selector, detail));
            }
        }
        (None, Some(signer)) => {
            if signer.is_empty() {
                let detail = "must be a valid signer name";
                errors.push(Error::required(&path.child("signerName"), detail));
            }
            certificates::signer_name(signer, &path.child("signerName"), errors);
            label_selector(errors, &path.child("labelSelector"), &bundle["labelSelector"]);
        }
        (None, None) => {
            let detail = "either name or signerName must be specified";
            errors.push(Error::required(path, detail));
        }
    }
    let file = bundle["path"].text();
    if file.is_empty() {
        errors.push(Error::required(&path.child("path"), ""));
    }
    file_path(file, &path.child("path"), errors);
}

fn pod_certificate(certificate: &Value, path: &Path, errors: &mut ErrorList) {
    let signer = certificate["signerName"].text();
    certificates::signer_name(signer, &path.child("signerName"), errors);
    super::one_of(errors, &path.child("keyType"), certificate["keyType"].text(), &KEY_TYPES);
    if let Some(seconds) = certificate["maxExpirationSeconds"].as_i64() {
        let clusters = signer.split('/').next().is_some_and(|d| d.ends_with("kubernetes.io"));
        let most = if clusters { CLUSTERS_SECONDS_MAX } else { CERTIFICATE_SECONDS_MAX };
        let at = path.child("maxExpirationSeconds");
        if seconds < CERTIFICATE_SECONDS_MIN {
            let detail =
                format!("if provided, maxExpirationSeconds must be >= {CERTIFICATE_SECONDS_MIN}");
            errors.push(Error::invalid(&at, seconds, detail));
        } else if seconds > most {
            let detail = format!("if provided, maxExpirationSeconds must be <= {most}");
            errors.push(Error::invalid(&at, seconds, detail));
        }
    }
    let files = ["credentialBundlePath", "keyPath", "certificateChainPath"];
    let given = files.iter().filter(|key| !certificate[**key].text().is_empty());
    let mut count = 0;
    for key in given {
        count += 1;
        file_path(certificate[*key].text(), &path.child(key), errors);
    }
    if count == 0 {
        let detail =
            "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.push(Error::required(path, detail));
    }
    for (key, _) in certificate["userAnnotations"].entries() {
        let at = path.child("userAnnotations").key(key);
        mistakes(errors, &at, key, names::qualified_name(key));
        if !key.contains('/') {
            let detail = "userAnnotations keys must be domain-prefixed";
            errors.push(Error::invalid(&at, key.clone(), detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validation::told;

    #[test]
    fn sources_are_checked() {
        let of = |list: Value| {
            told(|errors| sources(&json!({"sources": list}), &Path::new("p"), errors))
        };
        let item = json!({"key": "k", "path": "a"});
        let bundle = |more: Value| {
            let mut bundle = json!({"path": "b"});
            bundle.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!([{ "clusterTrustBundle": bundle }])
        };
        for (list, want) in [
            (
                json!([{"secret": {"name": "s", "items": [item]}}, {"configMap": {"name": "c", "items": [item]}}]),
                "p: Invalid value: \"c\": conflicting duplicate paths",
            ),
            (
                json!([{"secret": {"name": "s"}, "configMap": {"name": "c"}}]),
                "p.sources[0]: Forbidden: may not specify more than 1 volume type per source",
            ),
            (
                json!([{"serviceAccountToken": {"path": "t", "expirationSeconds": 1}}]),
                "p.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 1: may not specify a duration less than 10 minutes",
            ),
            (
                json!([{"serviceAccountToken": {"expirationSeconds": 3600}}]),
                "p.path: Required value",
            ),
            (
                json!([{"downwardAPI": {"items": [{"path": "a"}]}}]),
                "p.sources[0].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
            ),
            (
                bundle(json!({})),
                "p.sources[0].clusterTrustBundle: Required value: either name or signerName must be specified",
            ),
            (
                bundle(json!({"name": "A"})),
                "p.sources[0].clusterTrustBundle.name: Invalid value: \"A\": not a valid clustertrustbundlename: a lowercase RFC 1123 subdomain",
            ),
            (
                bundle(json!({"name": "a", "labelSelector": {}})),
                "p.sources[0].clusterTrustBundle.labelSelector: Invalid value: {}: labelSelector must be unset if name is specified",
            ),
            (
                json!([{"podCertificate": {"signerName": "a.b/c", "keyType": "X", "keyPath": "k"}}]),
                "p.sources[0].podCertificate.keyType: Unsupported value: \"X\": supported values: \"ECDSAP256\"",
            ),
            (
                json!([{"podCertificate": {"signerName": "a.b/c", "keyType": "ED25519"}}]),
                "p.sources[0].podCertificate: Required value: specify at least one of",
            ),
            (
                json!([{"podCertificate": {"signerName": "a.b/c", "keyType": "ED25519", "keyPath": "k", "maxExpirationSeconds": 60}}]),
                "p.sources[0].podCertificate.maxExpirationSeconds: Invalid value: 60: if provided, maxExpirationSeconds must be >= 3600",
            ),
        ] {
            let got = of(list);
            assert!(got.first().is_some_and(|text| text.starts_with(want)), "{want}: {got:?}");
        }
    }
}
