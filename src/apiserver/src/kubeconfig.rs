//! Kubeconfig files that say where another server is that this one asks or tells.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::pki::KeyPair;
use crate::pki::tls::{Anybody, Bundle};
use crate::zero::Zero;

/// URL of a server, how TLS is spoken with it, and what goes into the header `Authorization`.
pub type Connection = (String, rustls::ClientConfig, Option<String>);

/// The server of a kubeconfig's current context, and how to speak to it.
pub fn read(file: &Path) -> Result<Connection, String> {
    let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| failed(&error))?;
    let config: Value =
        apimachinery::decode::yaml_to_value(&text).map_err(|error| failed(&error))?;
    let named = |list: &str, name: &str, key: &str| -> Value {
        let found = config[list].items().iter().find(|entry| entry["name"] == name);
        found.map_or(Value::Null, |entry| entry[key].clone())
    };
    let context = named("contexts", config["current-context"].text(), "context");
    let cluster = named("clusters", context["cluster"].text(), "cluster");
    let user = named("users", context["user"].text(), "user");
    let base = file.parent().map(Path::to_path_buf).unwrap_or_default();
    let server = cluster["server"].text().to_owned();
    if !server.starts_with("https://") {
        return Err(failed(&"the current context names no https server"));
    }
    let read = |value: &Value, key: &str| -> Result<Option<Vec<u8>>, String> {
        match (value[&*format!("{key}-data")].text(), value[key].text()) {
            ("", "") => Ok(None),
            ("", path) => {
                let path: PathBuf = base.join(path);
                std::fs::read(&path).map(Some).map_err(|error| failed(&error))
            }
            (data, _) => STANDARD.decode(data).map(Some).map_err(|error| failed(&error)),
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .dangerous();
    let builder = if cluster["insecure-skip-tls-verify"].flag() {
        builder.with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else {
        let bundle = match read(&cluster, "certificate-authority")? {
            Some(pem) => Bundle::new(&pem).map_err(|error| failed(&error))?,
            None => Bundle::of_host(),
        };
        builder.with_custom_certificate_verifier(Arc::new(bundle))
    };
    let pair = (read(&user, "client-certificate")?, read(&user, "client-key")?);
    let tls = match pair {
        (Some(certificate), Some(key)) => {
            let pair = KeyPair {
                cert_pem: String::from_utf8_lossy(&certificate).into_owned(),
                key_pem: String::from_utf8_lossy(&key).into_owned(),
            };
            let (chain, key) = crate::pki::rustls_chain(&pair, file).map_err(|e| failed(&e))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| failed(&error))?
        }
        _ => builder.with_no_client_auth(),
    };
    let token = match (user["token"].text(), user["tokenFile"].text()) {
        ("", "") => None,
        ("", path) => {
            let text = std::fs::read_to_string(base.join(path)).map_err(|error| failed(&error))?;
            Some(text.trim().to_owned())
        }
        (token, _) => Some(token.to_owned()),
    };
    let credentials = match (token, user["username"].text()) {
        (Some(token), _) => Some(format!("Bearer {token}")),
        (None, "") => None,
        (None, name) => {
            let pair = format!("{name}:{}", user["password"].text());
            Some(format!("Basic {}", STANDARD.encode(pair)))
        }
    };
    Ok((server, tls, credentials))
}
