//! The cluster's own public-key infrastructure: one certificate authority, what it issues, and the
//! key that signs service-account tokens. Files lie below `data_dir/pki`, readable by the owner only.
//!
//! Certificates follow kubeadm's conventions: a client's common name is the user, its organisations
//! are the groups.

mod files;
pub mod jwt;
pub mod shared;
pub mod tls;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType,
};
use rustls::CipherSuite;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};

const DAY: Duration = Duration::from_hours(24);
const CA_VALIDITY: Duration = Duration::from_hours(87600);
const LEAF_VALIDITY: Duration = Duration::from_hours(8760);
/// A certificate with less time left than this is issued anew at start.
const RENEW_BEFORE: Duration = Duration::from_hours(720);
/// The name by which proxies are known; kubeadm's too.
pub const FRONT_PROXY: &str = "front-proxy-client";
/// Clocks of client and server may differ by this much.
const CLOCK_SKEW: Duration = Duration::from_mins(5);

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or the directory cannot be read or written.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// `read`, `write` or `create`.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} is not a usable {what}; remove it to have a new one made at the next start", path = path.display())]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// What was expected in it.
        what: &'static str,
    },
    /// A certificate or key cannot be made.
    #[error("cannot issue a certificate for {name:?}")]
    Issue {
        /// Whose.
        name: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A client with more groups than a certificate of ours carries.
    #[error("a client certificate carries at most two groups; {name:?} has {count}")]
    TooManyGroups {
        /// Whose.
        name: String,
        /// How many were asked for.
        count: usize,
    },
    /// The TLS configuration is rejected.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The random number generator or a signature failed.
    #[error("cannot {0}")]
    Crypto(&'static str),
}

/// A certificate with its private key, both as PEM.
#[derive(Clone)]
pub struct KeyPair {
    /// The certificate.
    pub cert_pem: String,
    /// Its PKCS#8 private key.
    pub key_pem: String,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

/// The cluster's certificate authority and service-account key. Cheap to clone.
#[derive(Clone)]
pub struct Pki(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    issuer: Issuer<'static, rcgen::KeyPair>,
    tokens: jwt::Signer,
    client_verifier: Arc<dyn rustls::server::danger::ClientCertVerifier>,
    server_verifier: Arc<rustls::client::WebPkiServerVerifier>,
    front_proxy: FrontProxy,
}

/// The authority whose certificates let a proxy say for whom it asks.
struct FrontProxy {
    ca_pem: String,
    issuer: Issuer<'static, rcgen::KeyPair>,
    verifier: Arc<dyn rustls::server::danger::ClientCertVerifier>,
}

impl FrontProxy {
    fn load_or_create(dir: &Path) -> Result<Self, Error> {
        let (ca_pem, key) = load_or_create_ca(dir, "front-proxy-ca")?;
        let path = dir.join("front-proxy-ca.crt");
        let corrupt = || Error::Corrupt { path: path.clone(), what: "CA certificate" };
        let der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|_| corrupt())?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(|_| corrupt())?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der.into_owned())?;
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::new(rustls::crypto::ring::default_provider()),
        )
        .build()
        .map_err(|_| corrupt())?;
        Ok(Self { ca_pem, issuer, verifier })
    }
}

impl Pki {
    /// Loads the authority and the service-account key from `dir`, or makes them there.
    pub fn load_or_create(dir: &Path) -> Result<Self, Error> {
        files::private_directory(dir)?;
        let (ca_pem, key) = load_or_create_ca(dir, "ca")?;
        let corrupt = || Error::Corrupt { path: dir.join("ca.crt"), what: "CA certificate" };
        let ca_der =
            CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|_| corrupt())?.into_owned();
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, key).map_err(|_| corrupt())?;
        let tokens = jwt::Signer::load_or_create(&dir.join("sa.key"))?;

        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca_der.clone())?;
        let (roots, provider) =
            (Arc::new(roots), Arc::new(rustls::crypto::ring::default_provider()));
        let client_verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            roots.clone(),
            provider.clone(),
        )
        .build()
        .map_err(|_| corrupt())?;
        let server_verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|_| corrupt())?;

        Ok(Self(Arc::new(Inner {
            dir: dir.to_owned(),
            ca_pem,
            ca_der,
            issuer,
            tokens,
            client_verifier,
            server_verifier,
            front_proxy: FrontProxy::load_or_create(dir)?,
        })))
    }

    /// The certificate of the authority that vouches for proxies in front of API servers.
    pub fn front_proxy_ca_pem(&self) -> &str {
        &self.0.front_proxy.ca_pem
    }

    /// A certificate with which an API server that trusts [`Self::front_proxy_ca_pem`] believes what
    /// this one says of the user.
    pub fn issue_front_proxy(&self) -> Result<KeyPair, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, FRONT_PROXY);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        issue_by(&self.0.front_proxy.issuer, FRONT_PROXY, params)
    }

    /// Whether `cert_der` is a proxy's certificate, valid now.
    pub fn verifies_front_proxy(&self, cert_der: &[u8]) -> bool {
        let (cert, now) = (CertificateDer::from(cert_der), rustls_pki_types::UnixTime::now());
        self.0.front_proxy.verifier.verify_client_cert(&cert, &[], now).is_ok()
    }

    /// The TLS client configuration for calling another API server as `pair`, with whatever trust
    /// `verifier` has.
    pub fn front_proxy_config(
        &self,
        pair: &KeyPair,
        verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>,
    ) -> Result<rustls::ClientConfig, Error> {
        let (certs, key) = rustls_chain(pair, &self.0.dir)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(certs, key)?)
    }

    /// The CA certificate, as `kube-root-ca.crt` and kubeconfigs carry it.
    pub fn ca_pem(&self) -> &str {
        &self.0.ca_pem
    }

    /// The CA certificate as DER.
    pub fn ca_der(&self) -> &CertificateDer<'static> {
        &self.0.ca_der
    }

    /// The signer and verifier of service-account tokens.
    pub fn tokens(&self) -> &jwt::Signer {
        &self.0.tokens
    }

    /// A client certificate for `user` in `groups`, valid for a year.
    pub fn issue_client(&self, user: &str, groups: &[&str]) -> Result<KeyPair, Error> {
        let mut name = DistinguishedName::new();
        // rcgen keeps one value per attribute type; the second organisation goes by its number.
        let kinds = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
        if groups.len() > kinds.len() {
            return Err(Error::TooManyGroups { name: user.to_owned(), count: groups.len() });
        }
        for (kind, group) in kinds.into_iter().zip(groups) {
            name.push(kind, *group);
        }
        name.push(DnType::CommonName, user);
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(user, params)
    }

    /// A server certificate for `sans` (DNS names and IP addresses), valid for a year.
    pub fn issue_server(&self, common_name: &str, sans: &[String]) -> Result<KeyPair, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        for san in sans {
            let san = match san.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(
                    san.as_str()
                        .try_into()
                        .map_err(|source| Error::Issue { name: san.clone(), source })?,
                ),
            };
            params.subject_alt_names.push(san);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(common_name, params)
    }

    /// The certificate that a signing request (PEM) asks for, for a client, a server or both, valid for so
    /// long, as PEM. What the request says of a CA or of usages is not taken over; its subject and names are.
    pub fn sign_request(
        &self,
        request_pem: &str,
        (client, server): (bool, bool),
        validity: Duration,
    ) -> Result<String, Error> {
        let usages = [
            client.then_some(ExtendedKeyUsagePurpose::ClientAuth),
            server.then_some(ExtendedKeyUsagePurpose::ServerAuth),
        ];
        let failed = |source| Error::Issue { name: "the request's subject".into(), source };
        let mut request = CertificateSigningRequestParams::from_pem(request_pem).map_err(failed)?;
        let organisations = organisations(request_pem);
        if organisations.len() > 2 {
            let name = "the request's subject".to_owned();
            return Err(Error::TooManyGroups { name, count: organisations.len() });
        }
        if let [first, second] = organisations.as_slice() {
            let name = &mut request.params.distinguished_name;
            name.push(DnType::OrganizationName, first.as_str());
            name.push(DnType::CustomDnType(vec![2, 5, 4, 10]), second.as_str());
        }
        request.params.is_ca = IsCa::ExplicitNoCa;
        request.params.extended_key_usages = usages.into_iter().flatten().collect();
        request.params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        request.params.use_authority_key_identifier_extension = true;
        set_validity(&mut request.params, validity.min(CA_VALIDITY));
        Ok(request.signed_by(&self.0.issuer).map_err(failed)?.pem())
    }

    /// The API server's own certificate: kept on disk, issued anew when it runs out, when the
    /// authority changed, or when other names are wanted.
    pub fn serving(&self, sans: &[String]) -> Result<KeyPair, Error> {
        let (cert, key) = (self.0.dir.join("apiserver.crt"), self.0.dir.join("apiserver.key"));
        if let (Some(cert_pem), Some(key_pem)) = (files::read(&cert)?, files::read(&key)?)
            && self.still_serves(&cert_pem, sans)
        {
            return Ok(KeyPair { cert_pem, key_pem });
        }
        let pair = self.issue_server("kube-apiserver", sans)?;
        files::write(&key, &pair.key_pem)?;
        files::write(&cert, &pair.cert_pem)?;
        Ok(pair)
    }

    fn still_serves(&self, cert_pem: &str, sans: &[String]) -> bool {
        let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()) else {
            return false;
        };
        let Ok(cert) = pem.parse_x509() else { return false };
        let Ok((_, ca)) = x509_parser::parse_x509_certificate(&self.0.ca_der) else { return false };
        let names = subject_alternative_names(&cert);
        seconds_left(&cert) > RENEW_BEFORE.as_secs() as i64
            && cert.issuer() == ca.subject()
            && cert.verify_signature(Some(ca.public_key())).is_ok()
            && sans.iter().map(|s| normalised_san(s)).collect::<BTreeSet<_>>() == names
    }

    fn issue(&self, name: &str, params: CertificateParams) -> Result<KeyPair, Error> {
        issue_by(&self.0.issuer, name, params)
    }

    /// Whether `cert_der` is a client certificate that this authority issued and that is valid now.
    pub fn verifies_client(&self, cert_der: &[u8]) -> bool {
        let cert = CertificateDer::from(cert_der);
        self.0
            .client_verifier
            .verify_client_cert(&cert, &[], rustls_pki_types::UnixTime::now())
            .is_ok()
    }

    /// The TLS server configuration with `pair`: HTTP/2 and HTTP/1.1, and client certificates asked
    /// for but not judged; a bad one is answered with 401 by the authenticator, as upstream does it,
    /// and not with a broken handshake.
    pub fn server_config(&self, pair: &KeyPair) -> Result<rustls::ServerConfig, Error> {
        let (certs, key) = rustls_chain(pair, &self.0.dir)?;
        let mut provider = rustls::crypto::ring::default_provider();
        // As Go's servers do: it is strong enough, and long lists and watches take less time.
        provider.cipher_suites.sort_by_key(|suite| {
            let preferred = [
                CipherSuite::TLS13_AES_128_GCM_SHA256,
                CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
                CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            ];
            !preferred.contains(&suite.suite())
        });
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(Arc::new(tls::OfferedClientCertificates::new(
                self.0.client_verifier.clone(),
                &self.0.front_proxy.verifier,
            )))
            .with_single_cert(certs, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ignore_client_order = true;
        Ok(config)
    }

    /// The TLS client configuration for calling a kubelet as `pair`: its certificate must be of this
    /// authority and for one of `names`; it may be any when there are none.
    pub fn kubelet_client_config(
        &self,
        pair: &KeyPair,
        names: Option<Vec<ServerName<'static>>>,
    ) -> Result<rustls::ClientConfig, Error> {
        let (certs, key) = rustls_chain(pair, &self.0.dir)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier: Arc<dyn rustls::client::danger::ServerCertVerifier> = match names {
            Some(names) => Arc::new(tls::AnyOfNames::new(self.0.server_verifier.clone(), names)),
            None => Arc::new(tls::Anybody(provider.clone())),
        };
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(certs, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// TLS towards a server whose certificate nobody can vouch for.
pub fn unverified_client_config() -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(tls::Anybody(provider)))
        .with_no_client_auth())
}

/// The names and addresses under which the API server answers, `extra` among them; `service_ip` is the
/// `kubernetes` Service's cluster address.
pub fn serving_sans(
    service_ip: IpAddr,
    advertise: IpAddr,
    cluster_domain: &str,
    extra: &[String],
) -> Vec<String> {
    let mut sans: Vec<String> =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(String::from).to_vec();
    sans.push(format!("kubernetes.default.svc.{cluster_domain}"));
    sans.extend(["localhost", "127.0.0.1", "::1"].map(String::from));
    sans.push(service_ip.to_string());
    sans.push(advertise.to_string());
    for name in extra {
        sans.push(name.clone());
    }
    let mut seen = BTreeSet::new();
    sans.retain(|san| seen.insert(san.clone()));
    sans
}

/// The organisations in a signing request's subject.
fn organisations(request_pem: &str) -> Vec<String> {
    use x509_parser::prelude::FromDer;
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(request_pem.as_bytes()) else {
        return Vec::new();
    };
    let request =
        x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents);
    let Ok((_, request)) = request else { return Vec::new() };
    let subject = &request.certification_request_info.subject;
    subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect()
}

fn issue_by(
    issuer: &Issuer<'static, rcgen::KeyPair>,
    name: &str,
    mut params: CertificateParams,
) -> Result<KeyPair, Error> {
    let failed = |source| Error::Issue { name: name.to_owned(), source };
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, LEAF_VALIDITY);
    let cert = params.signed_by(&key, issuer).map_err(failed)?;
    Ok(KeyPair { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

/// A chain of certificates and the key of the first.
pub type Chain = (Vec<CertificateDer<'static>>, rustls_pki_types::PrivateKeyDer<'static>);

/// A pair as rustls takes it; `dir` is where it lies, for the error.
pub fn rustls_chain(pair: &KeyPair, dir: &Path) -> Result<Chain, Error> {
    let corrupt = |what| Error::Corrupt { path: dir.to_owned(), what };
    let certs = CertificateDer::pem_slice_iter(pair.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| corrupt("certificate"))?;
    let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())
        .map_err(|_| corrupt("private key"))?;
    Ok((certs, key))
}

fn load_or_create_ca(dir: &Path, file: &str) -> Result<(String, rcgen::KeyPair), Error> {
    let (cert, key) = (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
    let name = if file == "ca" { "kubernetes" } else { file };
    if let (Some(cert_pem), Some(key_pem)) = (files::read(&cert)?, files::read(&key)?) {
        let pair = rcgen::KeyPair::from_pem(&key_pem)
            .map_err(|_| Error::Corrupt { path: key.clone(), what: "private key" })?;
        let corrupt = || Error::Corrupt { path: cert.clone(), what: "CA certificate" };
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).map_err(|_| corrupt())?;
        let parsed = pem.parse_x509().map_err(|_| corrupt())?;
        if seconds_left(&parsed) > DAY.as_secs() as i64 {
            return Ok((cert_pem, pair));
        }
    }
    let failed = |source| Error::Issue { name: name.to_owned(), source };
    let pair = rcgen::KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::KeyCertSign,
    ];
    set_validity(&mut params, CA_VALIDITY);
    let cert_pem = params.self_signed(&pair).map_err(failed)?.pem();
    files::write(&key, &pair.serialize_pem())?;
    files::write(&cert, &cert_pem)?;
    Ok((cert_pem, pair))
}

fn set_validity(params: &mut CertificateParams, validity: Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(now.checked_sub(CLOCK_SKEW).unwrap().as_secs());
    params.not_after = epoch + Duration::from_secs((now + validity).as_secs());
}

fn seconds_left(cert: &x509_parser::certificate::X509Certificate<'_>) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
    cert.validity().not_after.timestamp() - now
}

fn normalised_san(san: &str) -> String {
    san.parse::<IpAddr>().map_or_else(|_| san.to_owned(), |address| address.to_string())
}

fn subject_alternative_names(
    cert: &x509_parser::certificate::X509Certificate<'_>,
) -> BTreeSet<String> {
    use x509_parser::extensions::GeneralName;
    let Ok(Some(extension)) = cert.subject_alternative_name() else { return BTreeSet::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| IpAddr::from(b).to_string()),
            _ => None,
        },
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_authority_is_kept_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        let first = Pki::load_or_create(&pki).unwrap();
        let second = Pki::load_or_create(&pki).unwrap();
        assert_eq!(first.ca_pem(), second.ca_pem());
        assert_eq!(first.tokens().jwks(), second.tokens().jwks());
        for entry in std::fs::read_dir(&pki).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn only_our_clients_verify() {
        let dir = tempfile::tempdir().unwrap();
        let ours = Pki::load_or_create(&dir.path().join("a")).unwrap();
        let other = Pki::load_or_create(&dir.path().join("b")).unwrap();
        let der =
            |pair: &KeyPair| CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).unwrap();
        let client = ours.issue_client("kubernetes-admin", &["system:masters"]).unwrap();
        assert!(ours.verifies_client(&der(&client)));
        assert!(!other.verifies_client(&der(&client)));
        // A server certificate is no client certificate.
        let server = ours.issue_server("kubelet", &["10.42.0.1".into()]).unwrap();
        assert!(!ours.verifies_client(&der(&server)));
        assert!(matches!(
            ours.issue_client("u", &["a", "b", "c"]),
            Err(Error::TooManyGroups { count: 3, .. })
        ));
    }

    #[test]
    fn the_serving_certificate_follows_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(&dir.path().join("pki")).unwrap();
        let sans = serving_sans(
            "10.43.0.1".parse().unwrap(),
            "10.42.0.1".parse().unwrap(),
            "cluster.local",
            &["example.org".into(), "localhost".into()],
        );
        assert_eq!(sans.iter().filter(|s| *s == "localhost").count(), 1);
        let first = pki.serving(&sans).unwrap();
        assert_eq!(pki.serving(&sans).unwrap().cert_pem, first.cert_pem);
        let more = [sans, vec!["10.0.0.9".into()]].concat();
        assert_ne!(pki.serving(&more).unwrap().cert_pem, first.cert_pem);
        assert!(pki.server_config(&first).is_ok());
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        Pki::load_or_create(&pki).unwrap();
        std::fs::write(pki.join("ca.crt"), "nonsense").unwrap();
        let error = Pki::load_or_create(&pki).err().unwrap().to_string();
        assert!(error.contains("ca.crt") && error.contains("remove it"), "{error}");
    }
}
