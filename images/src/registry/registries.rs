//! `registries.yaml`: mirrors, credentials and TLS of registries, in k3s' format.
//!
//! Source: <https://docs.k3s.io/installation/private-registry>.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::credentials::Auth;
use crate::error::Error;

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Registries {
    #[serde(default)]
    pub mirrors: BTreeMap<String, Option<Mirror>>,
    #[serde(default)]
    pub configs: BTreeMap<String, Option<RegistryConfig>>,
}

/// Whom to ask instead of a registry, in order.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mirror {
    #[serde(default, alias = "endpoints")]
    pub endpoint: Vec<String>,
    /// Regular expressions over the repository's name, and what to put there.
    #[serde(default)]
    pub rewrite: BTreeMap<String, String>,
}

/// How to talk to one host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RegistryConfig {
    #[serde(default)]
    pub auth: Option<AuthConfig>,
    #[serde(default)]
    pub tls: Option<TlsConfig>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuthConfig {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, alias = "identitytoken")]
    identity_token: String,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuthConfig { … }")
    }
}

impl AuthConfig {
    pub fn auth(&self) -> Option<Auth> {
        if !self.identity_token.is_empty() {
            return Some(Auth::IdentityToken(self.identity_token.clone()));
        }
        if !self.auth.is_empty() {
            return Auth::from_encoded(&self.auth);
        }
        (!self.username.is_empty()).then(|| Auth::Basic {
            username: self.username.clone(),
            password: self.password.clone(),
        })
    }
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Hash)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsConfig {
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    #[serde(default)]
    pub insecure_skip_verify: bool,
}

impl Registries {
    /// Reads the file; an absent one is empty.
    pub fn read(path: Option<&Path>) -> Result<Self, Error> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(Error::io("read", path, error)),
        };
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let registries: Self = serde_saphyr::from_str(&text).map_err(|error| {
            Error::Configuration { path: path.to_owned(), reason: error.to_string() }
        })?;
        for mirror in registries.mirrors.values().flatten() {
            for pattern in mirror.rewrite.keys() {
                regex::Regex::new(pattern).map_err(|error| Error::Configuration {
                    path: path.to_owned(),
                    reason: format!("rewrite {pattern:?}: {error}"),
                })?;
            }
        }
        Ok(registries)
    }

    /// The mirror of registry `domain`: its own entry, or that of `*`.
    pub fn mirror(&self, domain: &str) -> Option<&Mirror> {
        let named = self.mirrors.get(domain).or_else(|| self.mirrors.get("*"));
        named.and_then(Option::as_ref)
    }

    /// The configuration of `host[:port]`.
    pub fn config(&self, host: &str) -> Option<&RegistryConfig> {
        // Keys were full URLs in early versions.
        let named = self.configs.iter().find(|(key, _)| {
            let key =
                key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
            key.trim_end_matches('/') == host
        });
        let any = || self.configs.get("*");
        named.map(|(_, config)| config).or_else(any).and_then(Option::as_ref)
    }
}

impl Mirror {
    /// The repository's name at the mirror: the first expression that matches decides.
    pub fn rewrite(&self, repository: &str) -> String {
        for (pattern, replacement) in &self.rewrite {
            if let Ok(expression) = regex::Regex::new(pattern)
                && expression.is_match(repository)
            {
                return expression.replace_all(repository, replacement).into_owned();
            }
        }
        repository.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_k3s_documents() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registries.yaml");
        let text = r#"
mirrors:
  docker.io:
    endpoint:
      - "https://registry.example.com:5000"
    rewrite:
      "^rancher/(.*)": "mirrorproject/rancher-images/$1"
  "*":
  registry.example.com:
configs:
  "registry.example.com:5000":
    auth:
      username: xxxxxx
      password: xxxxxx
    tls:
      cert_file: /path/cert
      key_file: /path/key
      ca_file: /path/ca
      insecure_skip_verify: true
"#;
        std::fs::write(&path, text).unwrap();
        let read = Registries::read(Some(&path)).unwrap();
        let mirror = read.mirror("docker.io").unwrap();
        assert_eq!(mirror.rewrite("rancher/pause"), "mirrorproject/rancher-images/pause");
        assert_eq!(mirror.rewrite("library/busybox"), "library/busybox");
        assert!(read.mirror("quay.io").is_none());
        let config = read.config("registry.example.com:5000").unwrap();
        assert!(config.tls.as_ref().unwrap().insecure_skip_verify);
        assert!(config.auth.as_ref().unwrap().auth().is_some());
        assert!(read.config("registry.example.com").is_none());
    }

    #[test]
    fn tells_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registries.yaml");
        for (text, want) in [
            ("mirrors: {a: {endpont: [x]}}", "endpont"),
            ("mirrors: {a: {rewrite: {\"(\": x}}}", "rewrite"),
            ("mirrors: [", "registries.yaml"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Registries::read(Some(&path)).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        assert!(Registries::read(Some(&directory.path().join("absent"))).is_ok());
    }
}
