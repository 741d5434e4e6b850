//! Users by client certificate: the common name is the user, the organisations are the groups.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::attributes::UserInfo;

/// The user that the (already verified) certificate names; nobody when it has no common name.
pub fn user(der: &[u8]) -> Option<UserInfo> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    let name = cert.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let mut groups: Vec<String> = cert
        .subject()
        .iter_organization()
        .filter_map(|group| group.as_str().ok().map(str::to_owned))
        .collect();
    groups.push("system:authenticated".into());
    let fingerprint: String = Sha256::digest(der).iter().map(|b| format!("{b:02x}")).collect();
    let extra = BTreeMap::from([(
        "authentication.kubernetes.io/credential-id".to_owned(),
        vec![format!("X509SHA256={fingerprint}")],
    )]);
    Some(UserInfo { name, uid: String::new(), groups, extra })
}
