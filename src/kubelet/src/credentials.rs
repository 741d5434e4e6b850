//! Registry credentials from image pull secrets. Pure.
//!
//! Source of behaviour: `pkg/credentialprovider/keyring.go`, `config.go`.

use base64::Engine as _;
use k8s_cri::v1::AuthConfig;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

/// Credentials in `secrets` that fit `image`, each with its secret, the most specific first.
pub fn for_image<'s>(image: &str, secrets: &[&'s Secret]) -> Vec<(AuthConfig, &'s Secret)> {
    let mut found: Vec<(usize, AuthConfig, &Secret)> = Vec::new();
    for secret in secrets {
        for (pattern, entry) in entries(secret) {
            if !fits(&pattern, image) {
                continue;
            }
            if let Some(auth) = auth(&entry, &pattern) {
                let (host, path) = normalise(&pattern);
                found.push((host.len() + path.len(), auth, secret));
            }
        }
    }
    found.sort_by_key(|(length, ..)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth, secret)| (auth, secret)).collect()
}

/// Whether credentials kept under `pattern` are for `image`.
pub fn fits(pattern: &str, image: &str) -> bool {
    let ((host, path), (wanted_host, wanted_path)) = (split(image), normalise(pattern));
    host_matches(&wanted_host, &host) && path_matches(&wanted_path, &path)
}

/// The image's name with its registry and without tag and digest, as plugins are told it.
pub fn whole_name(image: &str) -> String {
    let (host, path) = split(image);
    match (host.as_str(), path.as_str()) {
        ("index.docker.io", path) => {
            let path = path.strip_prefix("docker.io/").unwrap_or(path);
            let folder = if path.contains('/') { "" } else { "library/" };
            format!("docker.io/{folder}{path}")
        }
        (host, path) => format!("{host}/{path}"),
    }
}

fn entries(secret: &Secret) -> Vec<(String, Value)> {
    let data = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|b| b.0.as_slice());
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
    let map = match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => {
            data(".dockerconfigjson").and_then(parse).and_then(|v| v.get("auths").cloned())
        }
        Some("kubernetes.io/dockercfg") => data(".dockercfg").and_then(parse),
        _ => None,
    };
    match map {
        Some(Value::Object(map)) => map.into_iter().collect(),
        _ => Vec::new(),
    }
}

fn auth(entry: &Value, server: &str) -> Option<AuthConfig> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut out = AuthConfig {
        username: text("username"),
        password: text("password"),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
        server_address: server.to_owned(),
        auth: String::new(),
    };
    if out.username.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth").trim()).ok();
        if let Some((user, password)) = decoded
            .and_then(|d| String::from_utf8(d).ok())
            .and_then(|t| t.split_once(':').map(|(u, p)| (u.to_owned(), p.to_owned())))
        {
            out.username = user;
            password.trim_end_matches('\0').clone_into(&mut out.password);
        }
    }
    let empty =
        out.username.is_empty() && out.identity_token.is_empty() && out.registry_token.is_empty();
    (!empty).then_some(out)
}

/// Host and path of an image reference; images without a registry are Docker Hub's.
fn split(image: &str) -> (String, String) {
    let (first, rest) = image.split_once('/').unwrap_or(("", image));
    let is_host = first.contains(['.', ':']) || first == "localhost";
    let (host, path) = if is_host { (first, rest) } else { ("index.docker.io", image) };
    let host = if host == "docker.io" { "index.docker.io" } else { host };
    let path = path.split('@').next().unwrap_or(path);
    let path = match path.rsplit_once(':') {
        Some((before, tag)) if !tag.contains('/') => before,
        _ => path,
    };
    (host.to_owned(), path.to_owned())
}

fn normalise(pattern: &str) -> (String, String) {
    let bare = pattern
        .strip_prefix("https://")
        .or_else(|| pattern.strip_prefix("http://"))
        .unwrap_or(pattern);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    // Docker's own configuration keeps the API version in the key.
    let path = path.trim_end_matches('/');
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    let path = path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path);
    let host = if host == "docker.io" { "index.docker.io" } else { host };
    (host.to_owned(), path.to_owned())
}

fn host_matches(pattern: &str, host: &str) -> bool {
    let (pattern_name, pattern_port) = pattern.split_once(':').unwrap_or((pattern, ""));
    let (name, port) = host.split_once(':').unwrap_or((host, ""));
    if !pattern_port.is_empty() && pattern_port != port
        || pattern_port.is_empty() && !port.is_empty()
    {
        return false;
    }
    let wanted: Vec<&str> = pattern_name.split('.').collect();
    let got: Vec<&str> = name.split('.').collect();
    wanted.len() == got.len() && wanted.iter().zip(got).all(|(w, g)| glob(w, g))
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => {
            text.starts_with(before)
                && (before.len()..=text.len())
                    .any(|i| text.is_char_boundary(i) && glob(after, &text[i..]))
        }
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    pattern.is_empty()
        || path == pattern
        || path.starts_with(&format!("{pattern}/"))
        || path.starts_with(pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(auths: Value) -> Secret {
        let json = serde_json::json!({ "auths": auths }).to_string();
        serde_json::from_value(serde_json::json!({
            "type": "kubernetes.io/dockerconfigjson",
            "data": {".dockerconfigjson": base64::engine::general_purpose::STANDARD.encode(json)}}))
        .unwrap()
    }

    #[test]
    fn credentials_fit_their_registry() {
        let basic = base64::engine::general_purpose::STANDARD.encode("u:p:q");
        let s = secret(serde_json::json!({
            "127.0.0.1:5000": {"auth": basic},
            "https://index.docker.io/v1/": {"username": "hub", "password": "x"},
            "*.example.com/team": {"username": "team", "password": "y"}}));
        for (image, user) in [
            ("127.0.0.1:5000/app:1", Some("u")),
            ("127.0.0.1:5001/app:1", None),
            ("busybox", Some("hub")),
            ("docker.io/library/busybox:1", Some("hub")),
            ("reg.example.com/team/app@sha256:00", Some("team")),
            ("reg.example.com/other/app", None),
        ] {
            let got = for_image(image, &[&s]);
            assert_eq!(got.first().map(|(a, _)| a.username.as_str()), user, "{image}");
        }
        assert_eq!(for_image("127.0.0.1:5000/app", &[&s])[0].0.password, "p:q");
    }

    #[test]
    fn names_are_made_whole() {
        for (image, expected) in [
            ("busybox", "docker.io/library/busybox"),
            ("me/app:1", "docker.io/me/app"),
            ("docker.io/library/busybox:1.36", "docker.io/library/busybox"),
            ("reg.example:5000/a/b@sha256:00", "reg.example:5000/a/b"),
        ] {
            assert_eq!(whole_name(image), expected);
        }
    }
}
