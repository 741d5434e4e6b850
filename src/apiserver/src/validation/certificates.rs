//! Rules for certificate signing requests.
//!
//! Source: `pkg/apis/certificates/validation/validation.go`.

use std::collections::BTreeSet;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use x509_parser::prelude::FromDer as _;

use super::core::immutable;
use super::pod_update::difference;
use super::{mistakes, one_of};
use crate::zero::Zero;

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
const SHORTEST_SECONDS: i64 = 600;
const POD_SHORTEST_SECONDS: i64 = 3600;
/// A day, of signers of Kubernetes itself.
const OWN_LONGEST_SECONDS: i64 = 86_400;
/// 91 days.
const POD_LONGEST_SECONDS: i64 = 7_862_400;
const UID_MAX_BYTES: usize = 128;
const SIGNER_MAX_BYTES: usize = 571;
const DOMAIN_MAX_BYTES: usize = 253;
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const EXCLUSIVE: &str = "Approved and Denied conditions are mutually exclusive";

/// A request, new or changed; what was wrong with it before is not told again.
pub fn request(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    if old.is_none_or(|old| old["spec"]["request"] != spec["request"])
        && let Err(why) = signed_request(spec["request"].text())
    {
        let bytes = spec["request"].clone();
        errors.push(Error::invalid(&path.child("request"), bytes, why));
    }
    let at = path.child("usages");
    if spec["usages"].items().is_empty() {
        errors.push(Error::required(&at, "usages must be provided"));
    }
    if old.is_none() {
        let mut seen = BTreeSet::new();
        for (index, usage) in spec["usages"].texts().enumerate() {
            one_of(errors, &at.index(index), usage, &USAGES);
            if !seen.insert(usage) {
                errors.push(Error::duplicate(&at.index(index), usage));
            }
        }
    }
    let (signer, at) = (spec["signerName"].text(), path.child("signerName"));
    if signer == LEGACY_SIGNER && old.is_none() {
        let detail = "the legacy signerName is not allowed via this API version";
        errors.push(Error::invalid(&at, signer, detail));
    } else if signer != LEGACY_SIGNER {
        signer_name(signer, &at, errors);
    }
    let seconds = &spec["expirationSeconds"];
    if seconds.is_set() && seconds.int() < SHORTEST_SECONDS {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(Error::invalid(&path.child("expirationSeconds"), seconds.int(), detail));
    }
    conditions(object, errors);
    let certificate = object["status"]["certificate"].text();
    if old.is_none_or(|old| old["status"]["certificate"] != certificate)
        && let Err(why) = certificates(certificate)
    {
        let at = Path::new("status").child("certificate");
        errors.push(Error::invalid(&at, "<certificate data>", why));
    }
}

/// A signed PKCS#10 request in PEM.
fn signed_request(text: &str) -> Result<(), String> {
    const TYPE: &str = "PEM block type must be CERTIFICATE REQUEST";
    let bytes = STANDARD.decode(text).map_err(|_| TYPE)?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&bytes).map_err(|_| TYPE)?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err(TYPE.into());
    }
    let parsed =
        x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents);
    let (_, request) = parsed.map_err(|error| format!("asn1: structure error: {error}"))?;
    request.verify_signature().map_err(|_| "x509: signature verification failed".to_owned())
}

/// Nothing, or certificates in PEM.
fn certificates(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    let bytes = STANDARD.decode(text).unwrap_or_default();
    let mut blocks = 0;
    for pem in x509_parser::pem::Pem::iter_from_buffer(&bytes) {
        let Ok(pem) = pem else { break };
        if pem.label != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", pem.label));
        }
        pem.parse_x509().map_err(|error| format!("x509: malformed certificate: {error}"))?;
        blocks += 1;
    }
    if blocks == 0 {
        return Err("must contain at least one CERTIFICATE PEM block".into());
    }
    Ok(())
}

fn conditions(object: &Value, errors: &mut ErrorList) {
    let path = Path::new("status").child("conditions");
    let mut seen = BTreeSet::new();
    for (index, condition) in object["status"]["conditions"].items().iter().enumerate() {
        let (at, kind) = (path.index(index), condition["type"].text());
        if kind.is_empty() {
            errors.push(Error::required(&at.child("type"), ""));
        }
        let decided = matches!(kind, "Approved" | "Denied" | "Failed");
        let known: &[&str] = if decided { &["True"] } else { &["False", "True", "Unknown"] };
        match condition["status"].text() {
            "" => errors.push(Error::required(&at.child("status"), "")),
            status => one_of(errors, &at.child("status"), status, known),
        }
        let other = match kind {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if seen.contains(other) {
            errors.push(Error::invalid(&at.child("type"), kind, EXCLUSIVE));
        }
        if !seen.insert(kind) {
            errors.push(Error::duplicate(&at.child("type"), kind));
        }
    }
}

/// `example.com/signer` (`ValidateCertificateSigningRequestSignerName`).
pub fn signer_name(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.push(Error::required(path, "signerName must be provided"));
        return;
    }
    let segments: Vec<&str> = name.split('/').collect();
    let [domain, rest] = segments.as_slice() else {
        let detail =
            "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(Error::invalid(path, name, detail));
        return;
    };
    if domain.len() > DOMAIN_MAX_BYTES {
        errors.push(Error::too_long(path, DOMAIN_MAX_BYTES));
    }
    let mut labels = |text: &str, rule: fn(&str) -> Vec<String>| {
        let bad = text.split('.').map(|label| (label, rule(label))).find(|(_, m)| !m.is_empty());
        if let Some((label, sentences)) = bad {
            let told = sentences.iter().map(|s| format!("validating label {label:?}: {s}"));
            mistakes(errors, path, text, told.collect());
        }
    };
    labels(domain, names::dns_label);
    labels(rest, names::dns_subdomain);
    if !domain.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.push(Error::invalid(path, *domain, detail));
    }
    if name.len() > SIGNER_MAX_BYTES {
        errors.push(Error::too_long(path, SIGNER_MAX_BYTES));
    }
}

/// What each subresource may change.
pub fn update(subresource: &str, object: &Value, old: &Value, errors: &mut ErrorList) {
    let path = Path::new("status").child("conditions");
    let of_type = |object: &Value, kind: &str| -> Vec<Value> {
        let all = object["status"]["conditions"].items();
        all.iter().filter(|condition| condition["type"] == kind).cloned().collect()
    };
    for kind in ["Approved", "Denied", "Failed"] {
        let (new, before) = (of_type(object, kind), of_type(old, kind));
        if new.len() < before.len() {
            let detail = format!("updates may not remove a condition of type {kind:?}");
            errors.push(Error::forbidden(&path, detail));
        } else if subresource != "approval" && kind != "Failed" {
            if new.len() > before.len() {
                let detail = format!("updates may not add a condition of type {kind:?}");
                errors.push(Error::forbidden(&path, detail));
            } else if new != before {
                let lines = difference(&before.into(), &new.into()).join("\n");
                let detail =
                    format!("updates may not modify a condition of type {kind:?}\n{lines}");
                errors.push(Error::forbidden(&path, detail));
            }
        }
    }
    let (new, before) = (&object["status"]["certificate"], &old["status"]["certificate"]);
    if new != before {
        let at = Path::new("status").child("certificate");
        if subresource != "status" {
            let detail = "updates may not set certificate content";
            errors.push(Error::forbidden(&at, detail));
        } else if !before.text().is_empty() {
            let detail = "updates may not modify existing certificate content";
            errors.push(Error::forbidden(&at, detail));
        }
    }
}

/// A request for a pod's certificate (`ValidatePodCertificateRequestCreate`, `…Update`).
pub fn pod_request(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    if let Some(old) = old {
        immutable(&path, spec, &old["spec"], errors);
        return;
    }
    let signer = spec["signerName"].text();
    signer_name(signer, &path.child("signerName"), errors);
    for field in ["podName", "serviceAccountName", "nodeName"] {
        let name = spec[field].text();
        mistakes(errors, &path.child(field), name, names::dns_subdomain(name));
    }
    for field in ["podUID", "serviceAccountUID", "nodeUID"] {
        let (uid, at) = (spec[field].text(), path.child(field));
        if uid.is_empty() {
            errors.push(Error::invalid(&at, uid, "must not be empty"));
        } else if uid.len() > UID_MAX_BYTES {
            errors.push(Error::too_long(&at, UID_MAX_BYTES));
        }
    }
    let (seconds, at) = (&spec["maxExpirationSeconds"], path.child("maxExpirationSeconds"));
    let domain = signer.split('/').next().unwrap_or_default();
    let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
    let most = if own { OWN_LONGEST_SECONDS } else { POD_LONGEST_SECONDS };
    if !seconds.is_set() {
        errors.push(Error::required(&at, "must be set"));
        return;
    }
    if !(POD_SHORTEST_SECONDS..=most).contains(&seconds.int()) {
        let detail = format!("must be in the range [{POD_SHORTEST_SECONDS}, {most}]");
        errors.push(Error::invalid(&at, seconds.int(), detail));
    }
    let at = path.child("stubPKCS10Request");
    let stub = spec["stubPKCS10Request"].text();
    if stub.is_empty() {
        errors.push(Error::required(&at, "must be set"));
    } else if let Err(why) = stub_request(stub) {
        errors.push(Error::invalid(&at, "<value omitted>", why));
    }
}

/// A PKCS#10 request in DER, signed with the key that it is for: who asks has that key.
fn stub_request(text: &str) -> Result<(), &'static str> {
    const NONE: &str = "must be a valid PKCS#10 request";
    let bytes = STANDARD.decode(text).map_err(|_| NONE)?;
    let parsed = x509_parser::certification_request::X509CertificationRequest::from_der(&bytes);
    let (rest, request) = parsed.map_err(|_| NONE)?;
    if !rest.is_empty() {
        return Err(NONE);
    }
    request.verify_signature().map_err(|_| "could not verify the request's signature")
}

/// What a signer may say of it (`ValidatePodCertificateRequestStatusUpdate`).
pub fn pod_request_status(object: &Value, old: &Value, errors: &mut ErrorList) {
    const ENDS: [&str; 3] = ["Issued", "Denied", "Failed"];
    let path = Path::new("status");
    let conditions = object["status"]["conditions"].items();
    for (index, condition) in conditions.iter().enumerate() {
        let at = path.child("conditions").index(index);
        one_of(errors, &at.child("type"), condition["type"].text(), &ENDS);
        if index > 0 {
            let detail =
                r#"There may be at most one condition with type "Issued", "Denied", or "Failed""#;
            errors.push(Error::invalid(&at.child("type"), condition["type"].text(), detail));
        }
        one_of(errors, &at.child("status"), condition["status"].text(), &["True"]);
    }
    let ended = |object: &Value| object["status"]["conditions"].items().first().cloned();
    if ended(old).is_some() {
        if object["status"] != old["status"] {
            let detail = "immutable after PodCertificateRequest is issued, denied, or failed";
            errors.push(Error::invalid(&path, object["status"].clone(), detail));
        }
        return;
    }
    let refused = ended(object).is_some_and(|condition| condition["type"] != "Issued");
    let others = ["certificateChain", "notBefore", "notAfter", "beginRefreshAt"];
    if refused && others.iter().any(|field| object["status"][*field].is_set()) {
        let detail = "non-condition status fields must be empty when denying or failing the \
                      PodCertificateRequest";
        errors.push(Error::invalid(&path, object["status"].clone(), detail));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::told;
    use serde_json::json;

    fn pem() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        STANDARD.encode(request.pem().unwrap())
    }

    #[test]
    fn requests_are_signed_and_name_their_use() {
        let good = pem();
        let made = |extra: Value| {
            let mut spec =
                json!({"request": good, "signerName": "a.b/c", "usages": ["client auth"]});
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            json!({"spec": spec})
        };
        for (extra, want) in [
            (json!({}), ""),
            (
                json!({"request": "eA=="}),
                "spec.request: Invalid value: \"eA==\": PEM block type must be CERTIFICATE REQUEST",
            ),
            (json!({"usages": []}), "spec.usages: Required value: usages must be provided"),
            (json!({"usages": ["any", "any"]}), "spec.usages[1]: Duplicate value: \"any\""),
            (
                json!({"signerName": ""}),
                "spec.signerName: Required value: signerName must be provided",
            ),
            (
                json!({"signerName": "a.b"}),
                "spec.signerName: Invalid value: \"a.b\": must be a fully qualified domain and path of the form 'example.com/signer-name'",
            ),
            (
                json!({"signerName": "a/b"}),
                "spec.signerName: Invalid value: \"a\": should be a domain with at least two segments separated by dots",
            ),
            (
                json!({"signerName": LEGACY_SIGNER}),
                "spec.signerName: Invalid value: \"kubernetes.io/legacy-unknown\": the legacy signerName is not allowed via this API version",
            ),
            (
                json!({"expirationSeconds": 5}),
                "spec.expirationSeconds: Invalid value: 5: may not specify a duration less than 600 seconds (10 minutes)",
            ),
        ] {
            assert_eq!(told(|e| request(&made(extra.clone()), None, e)).join("; "), want);
        }
    }

    #[test]
    fn approval_has_a_door_of_its_own() {
        let with =
            |kind: &str| json!({"status": {"conditions": [{"type": kind, "status": "True"}]}});
        let none = json!({"status": {}});
        let told =
            |sub: &str, new: &Value, old: &Value| told(|e| update(sub, new, old, e)).join("; ");
        assert_eq!(told("approval", &with("Approved"), &none), "");
        assert_eq!(
            told("status", &with("Approved"), &none),
            "status.conditions: Forbidden: updates may not add a condition of type \"Approved\""
        );
        assert_eq!(told("status", &with("Failed"), &none), "");
        assert_eq!(
            told("approval", &none, &with("Denied")),
            "status.conditions: Forbidden: updates may not remove a condition of type \"Denied\""
        );
        let signed = json!({"status": {"certificate": "eA=="}});
        assert_eq!(told("status", &signed, &none), "");
        assert_eq!(
            told("approval", &signed, &none),
            "status.certificate: Forbidden: updates may not set certificate content"
        );
    }

    /// A request signed by its own key, or by another.
    fn stub(honest: bool) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let request =
            rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let mut bytes = request;
        if !honest {
            // The last byte is of the signature.
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
        }
        STANDARD.encode(bytes)
    }

    #[test]
    fn requests_for_pods() {
        let valid = json!({"spec": {"signerName": "example.com/s", "podName": "p", "podUID": "1",
            "serviceAccountName": "default", "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3",
            "maxExpirationSeconds": 86_401, "stubPKCS10Request": stub(true)}});
        for (field, value, expected) in [
            ("podName", json!("p"), ""),
            ("podUID", json!(""), "spec.podUID: Invalid value: \"\": must not be empty"),
            (
                "nodeUID",
                json!("x".repeat(129)),
                "spec.nodeUID: Too long: may not be more than 128 bytes",
            ),
            (
                "maxExpirationSeconds",
                json!(null),
                "spec.maxExpirationSeconds: Required value: must be set",
            ),
            (
                "maxExpirationSeconds",
                json!(60),
                "spec.maxExpirationSeconds: Invalid value: 60: must be in the range [3600, 7862400]",
            ),
            (
                "signerName",
                json!("kubernetes.io/s"),
                "spec.maxExpirationSeconds: Invalid value: 86401: must be in the range [3600, 86400]",
            ),
            (
                "stubPKCS10Request",
                json!(stub(false)),
                "spec.stubPKCS10Request: Invalid value: \"<value omitted>\": could not verify the request's signature",
            ),
            (
                "stubPKCS10Request",
                json!("AAAA"),
                "spec.stubPKCS10Request: Invalid value: \"<value omitted>\": must be a valid PKCS#10 request",
            ),
        ] {
            let mut object = valid.clone();
            object["spec"][field] = value;
            let told = told(|errors| pod_request(&object, None, errors));
            assert_eq!(told.join("\n"), expected, "{field}");
        }
        let mut other = valid.clone();
        other["spec"]["podName"] = "q".into();
        let told = told(|errors| pod_request(&other, Some(&valid), errors));
        assert!(told[0].ends_with("field is immutable"), "{told:?}");
    }

    #[test]
    fn the_end_of_a_pods_request_is_final() {
        let status = |kind: &str, chain: &str| {
            let mut status = json!({"conditions": [{"type": kind, "status": "True"}]});
            if !chain.is_empty() {
                status["certificateChain"] = chain.into();
            }
            json!({ "status": status })
        };
        let open = json!({"status": {}});
        for (new, old, expected) in [
            (status("Issued", "x"), &open, ""),
            (status("Denied", ""), &open, ""),
            (status("Denied", "x"), &open, "non-condition status fields must be empty"),
            (status("Approved", ""), &open, "Unsupported value: \"Approved\""),
            (status("Issued", "y"), &status("Issued", "x"), "immutable after"),
        ] {
            let told = told(|errors| pod_request_status(&new, old, errors)).join("\n");
            assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{told}");
        }
    }
}
