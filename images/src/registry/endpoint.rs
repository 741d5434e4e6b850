//! Whom to ask for a repository: its mirrors in order, then the registry itself.

use std::path::Path;

use url::Url;

use super::registries::{Registries, TlsConfig};
use crate::error::Error;
use crate::reference::Reference;
use crate::registry::credentials::Auth;

/// One place a repository can be had from.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Up to and with `/v2`, without a slash at the end.
    pub base: Url,
    /// The repository's name there.
    pub repository: String,
    /// The registry this stands in for, when it is a mirror.
    pub mirror_of: Option<String>,
    /// Plain HTTP may be tried when HTTPS does not work: on loopback, unless the scheme was given.
    pub plain_allowed: bool,
    pub tls: Option<TlsConfig>,
    pub auth: Option<Auth>,
}

impl Endpoint {
    /// `host[:port]`, as configurations name it.
    pub fn host(&self) -> String {
        authority(&self.base)
    }

    /// The URL of `kind` (manifests or blobs) `name`.
    pub fn url(&self, kind: &str, name: &str) -> Url {
        let mut url = self.base.clone();
        let path =
            format!("{}/{}/{kind}/{name}", url.path().trim_end_matches('/'), self.repository);
        url.set_path(&path);
        if let Some(registry) = &self.mirror_of {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        url
    }
}

/// The endpoints of `reference`, mirrors first. Reads `registries.yaml` anew each time, so that an edit
/// counts at once. `given` are the credentials of the pull, for the registry itself alone; `found` those
/// of the user's files.
pub(crate) fn endpoints(
    registries: Option<&Path>,
    reference: &Reference,
    given: Option<&Auth>,
    found: Option<Auth>,
) -> Result<Vec<Endpoint>, Error> {
    let configured = Registries::read(registries)?;
    let domain = reference.domain();
    let mut endpoints = Vec::new();
    let mirror = configured.mirror(domain);
    for text in mirror.iter().flat_map(|mirror| &mirror.endpoint) {
        let base = base_url(text).ok_or_else(|| Error::Configuration {
            path: registries.unwrap_or(Path::new("registries.yaml")).to_owned(),
            reason: format!("mirror of {domain}: {text:?} is not a URL"),
        })?;
        let repository = mirror.map_or_else(String::new, |mirror| mirror.rewrite(reference.path()));
        endpoints.push(endpoint(&configured, base, repository, Some(domain)));
    }
    let host = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
    let base =
        Url::parse(&format!("https://{host}/v2")).map_err(|error| Error::InvalidReference {
            reference: reference.to_string(),
            reason: format!("registry name: {error}"),
        })?;
    let mut own = endpoint(&configured, base, reference.path().to_owned(), None);
    own.plain_allowed = is_loopback(&own.base);
    if domain == "docker.io" && own.auth.is_none() {
        own.auth = configured.config(domain).and_then(|config| config.auth.as_ref()?.auth());
    }
    own.auth = given.cloned().or(own.auth).or(found);
    // A mirror that is the registry itself, named to say how to speak to it, stands for both.
    let same = endpoints.iter().position(|endpoint| {
        endpoint.host() == own.host() && endpoint.repository == own.repository
    });
    match same {
        Some(index) => {
            endpoints[index].mirror_of = None;
            endpoints[index].auth = own.auth;
        }
        None => endpoints.push(own),
    }
    Ok(endpoints)
}

fn endpoint(
    configured: &Registries,
    base: Url,
    repository: String,
    mirror_of: Option<&str>,
) -> Endpoint {
    let config = configured.config(&authority(&base));
    Endpoint {
        repository,
        mirror_of: mirror_of.map(str::to_owned),
        plain_allowed: false,
        tls: config.and_then(|config| config.tls.clone()),
        auth: config.and_then(|config| config.auth.as_ref()?.auth()),
        base,
    }
}

/// A URL without a path means `/v2` below it, as in containerd; one without a scheme HTTPS.
fn base_url(text: &str) -> Option<Url> {
    let text = text.trim();
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let mut url = Url::parse(&full).ok()?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return None;
    }
    if matches!(url.path(), "" | "/") {
        url.set_path("/v2");
    }
    Some(url)
}

fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether the URL's host is this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_mirrors_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registries.yaml");
        let text = r#"
mirrors:
  docker.io:
    endpoint: ["http://mirror:5000", "https://cache/hub/v2"]
    rewrite: {"^library/(.*)": "hub/$1"}
configs:
  "mirror:5000": {auth: {username: a, password: b}}
"#;
        std::fs::write(&path, text).unwrap();
        let reference = "busybox".parse().unwrap();
        let given = Auth::RegistryToken("t".to_owned());
        let found = endpoints(Some(&path), &reference, Some(&given), None).unwrap();
        let urls: Vec<String> =
            found.iter().map(|e| e.url("manifests", "latest").to_string()).collect();
        assert_eq!(
            urls,
            [
                "http://mirror:5000/v2/hub/busybox/manifests/latest?ns=docker.io",
                "https://cache/hub/v2/hub/busybox/manifests/latest?ns=docker.io",
                "https://registry-1.docker.io/v2/library/busybox/manifests/latest",
            ]
        );
        assert!(matches!(found[0].auth, Some(Auth::Basic { .. })));
        assert_eq!(found[1].auth, None, "the pull's own credentials go to the registry alone");
        assert_eq!(found[2].auth, Some(given));
    }

    #[test]
    fn plain_http_is_for_loopback() {
        for (reference, plain) in [
            ("localhost:5000/a", true),
            ("127.0.0.1:5000/a", true),
            ("[::1]:5000/a", true),
            ("quay.io/a/b", false),
            ("10.0.0.1:5000/a", false),
        ] {
            let found = endpoints(None, &reference.parse().unwrap(), None, None).unwrap();
            assert_eq!(found[0].plain_allowed, plain, "{reference}");
        }
    }
}
