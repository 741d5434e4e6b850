//! The certificates that HTTPS is served with: from the Secrets that Ingresses name, by the name that
//! the client asks for (SNI); for every other name one that is made at the start and signed by nobody.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::{Ingress, IngressTLS};
use kube::ResourceExt;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::Problem;

/// Names in lower case; wildcards by what follows their star.
#[derive(Debug, Default)]
struct Table {
    names: HashMap<String, Arc<CertifiedKey>>,
    wildcards: HashMap<String, Arc<CertifiedKey>>,
    /// Of an entry that names no host.
    unnamed: Option<Arc<CertifiedKey>>,
}

/// All certificates.
#[derive(Debug)]
pub(super) struct Certificates {
    table: RwLock<Arc<Table>>,
    fallback: Option<Arc<CertifiedKey>>,
}

impl Certificates {
    /// None yet but the one for names that have none.
    pub fn new() -> Self {
        let fallback = self_signed()
            .inspect_err(|error| tracing::warn!(%error, "no certificate for unknown names"))
            .ok();
        Self { table: RwLock::default(), fallback: fallback.map(Arc::new) }
    }

    /// Makes the certificates those that Ingresses name; returns what is wrong with them. Of two that
    /// claim the same name the older one has it.
    pub fn set(
        &self,
        ingresses: &[Arc<Ingress>],
        secret: impl Fn(&str, &str) -> Option<Arc<Secret>>,
    ) -> Vec<Problem> {
        let (mut table, mut problems) = (Table::default(), Vec::new());
        let mut ordered: Vec<&Arc<Ingress>> = ingresses.iter().collect();
        ordered.sort_by_key(|i| (i.creation_timestamp(), i.namespace(), i.name_any()));
        for ingress in ordered {
            let namespace = ingress.namespace().unwrap_or_default();
            let entries = ingress.spec.iter().flat_map(|spec| spec.tls.iter().flatten());
            for entry in entries {
                let Some(name) = &entry.secret_name else { continue };
                match read(name, secret(&namespace, name).as_deref()) {
                    Ok(key) => table.add(entry, &Arc::new(key)),
                    Err(why) => problems.push(Problem::of(ingress, "CertificateNotFound", why)),
                }
            }
        }
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        problems
    }

    fn find(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner).clone();
        let name = name.unwrap_or_default().to_lowercase();
        let wildcard = || name.find('.').and_then(|dot| table.wildcards.get(&name[dot..]));
        let named = table.names.get(&name).or_else(wildcard).or(table.unnamed.as_ref());
        named.cloned().or_else(|| self.fallback.clone())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name())
    }
}

impl Table {
    fn add(&mut self, entry: &IngressTLS, key: &Arc<CertifiedKey>) {
        let hosts: Vec<&String> = entry.hosts.iter().flatten().filter(|h| !h.is_empty()).collect();
        if hosts.is_empty() {
            self.unnamed.get_or_insert_with(|| key.clone());
        }
        for host in hosts {
            let host = host.to_lowercase();
            let (map, name) = match host.strip_prefix('*') {
                Some(suffix) => (&mut self.wildcards, suffix.to_owned()),
                None => (&mut self.names, host),
            };
            map.entry(name).or_insert_with(|| key.clone());
        }
    }
}

/// The certificate chain and key of a Secret of type `kubernetes.io/tls`.
fn read(name: &str, secret: Option<&Secret>) -> Result<CertifiedKey, String> {
    let secret = secret.ok_or_else(|| format!("there is no Secret {name:?}"))?;
    let part = |key: &str| {
        let data = secret.data.as_ref().and_then(|data| data.get(key));
        data.map(|bytes| bytes.0.as_slice())
            .ok_or_else(|| format!("Secret {name:?} has no {key:?}"))
    };
    let wrong = |key: &str| format!("{key:?} of Secret {name:?} cannot be read");
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(part("tls.crt")?)
        .collect::<Result<_, _>>()
        .map_err(|_| wrong("tls.crt"))?;
    if chain.is_empty() {
        return Err(wrong("tls.crt"));
    }
    let key = PrivateKeyDer::from_pem_slice(part("tls.key")?).map_err(|_| wrong("tls.key"))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| format!("Secret {name:?}: {error}"))
}

fn self_signed() -> Result<CertifiedKey, String> {
    let made = rcgen::generate_simple_self_signed(["rootlet.internal".to_owned()])
        .map_err(|error| error.to_string())?;
    let key =
        PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(ToString::to_string)?;
    CertifiedKey::from_der(vec![made.cert.der().clone()], key, &ring::default_provider())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use serde_json::{Value, json};

    fn secret(name: &str) -> Secret {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let data = [
            ("tls.crt".to_owned(), ByteString(made.cert.pem().into_bytes())),
            ("tls.key".to_owned(), ByteString(made.signing_key.serialize_pem().into_bytes())),
        ];
        Secret { data: Some(data.into()), ..Secret::default() }
    }

    fn ingress(tls: &Value) -> Arc<Ingress> {
        let ingress = json!({"metadata": {"name": "i", "namespace": "d"}, "spec": {"tls": tls}});
        Arc::new(serde_json::from_value(ingress).unwrap())
    }

    #[test]
    fn names_lead_to_their_certificates() {
        let secrets: HashMap<&str, Arc<Secret>> =
            ["one", "star", "rest"].into_iter().map(|n| (n, Arc::new(secret(n)))).collect();
        let certificates = Certificates::new();
        let tls = json!([{"hosts": ["a.com", "B.com"], "secretName": "one"},
            {"hosts": ["*.c.com"], "secretName": "star"}]);
        let look = |_: &str, name: &str| secrets.get(name).cloned();
        assert!(certificates.set(&[ingress(&tls)], look).is_empty());
        let own = |name: &str| read(name, secrets.get(name).map(AsRef::as_ref)).unwrap().cert;
        let found = |name: Option<&str>| certificates.find(name).unwrap().cert.clone();
        let fallback = found(None);
        assert_eq!(found(Some("a.com")), own("one"));
        assert_eq!(found(Some("b.COM")), own("one"));
        assert_eq!(found(Some("x.c.com")), own("star"));
        for other in ["x.y.c.com", "c.com", "d.com"] {
            assert_eq!(found(Some(other)), fallback, "{other}");
        }
        let unnamed = json!([{"secretName": "rest"}]);
        assert!(certificates.set(&[ingress(&unnamed)], look).is_empty());
        assert_eq!(found(Some("a.com")), own("rest"));
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_told() {
        let mut swapped = secret("a");
        let other = secret("b").data.unwrap_or_default().remove("tls.key").unwrap();
        swapped.data.as_mut().unwrap().insert("tls.key".into(), other);
        let mut broken = secret("a");
        broken.data.as_mut().unwrap().insert("tls.crt".into(), ByteString(b"x".to_vec()));
        let cases = [
            (None, "there is no Secret \"s\""),
            (Some(Secret::default()), "Secret \"s\" has no \"tls.crt\""),
            (Some(broken), "\"tls.crt\" of Secret \"s\" cannot be read"),
            (Some(swapped), "Secret \"s\": "),
        ];
        for (secret, want) in cases {
            let certificates = Certificates::new();
            let secret = secret.map(Arc::new);
            let tls = json!([{"hosts": ["a.com"], "secretName": "s"}]);
            let problems = certificates.set(&[ingress(&tls)], |_, _| secret.clone());
            assert!(problems[0].message.starts_with(want), "{problems:?}");
        }
    }
}
