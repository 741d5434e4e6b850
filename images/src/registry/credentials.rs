//! Credentials: given with a pull, from `registries.yaml`, or from Docker's and Podman's files.
//!
//! Source: Docker's `config.json` and its credential helpers protocol; containers-auth.json(5).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use crate::reference::Reference;

/// Who pulls.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Auth {
    Basic {
        username: String,
        password: String,
    },
    /// An OAuth 2 refresh token, exchanged at the registry's token server.
    IdentityToken(String),
    /// A bearer token for the registry itself.
    RegistryToken(String),
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username})"),
            Self::IdentityToken(_) => f.write_str("IdentityToken"),
            Self::RegistryToken(_) => f.write_str("RegistryToken"),
        }
    }
}

impl Auth {
    /// Decodes base64 of `user:password`, as credential files have it.
    pub fn from_encoded(text: &str) -> Option<Self> {
        let text = text.trim();
        let bytes = STANDARD.decode(text).or_else(|_| STANDARD_NO_PAD.decode(text)).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (username, password) = text.trim_end_matches('\0').split_once(':')?;
        Some(Self::Basic { username: username.to_owned(), password: password.to_owned() })
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
struct AuthEntry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

/// The credential files of the user this process runs for, those of Podman first.
pub(crate) fn default_files() -> Vec<PathBuf> {
    let variable =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = variable("HOME");
    let candidates = [
        variable("REGISTRY_AUTH_FILE"),
        variable("XDG_RUNTIME_DIR").map(|path| path.join("containers/auth.json")),
        variable("XDG_CONFIG_HOME")
            .or_else(|| home.as_ref().map(|home| home.join(".config")))
            .map(|path| path.join("containers/auth.json")),
        variable("DOCKER_CONFIG")
            .or_else(|| home.as_ref().map(|home| home.join(".docker")))
            .map(|path| path.join("config.json")),
    ];
    candidates.into_iter().flatten().collect()
}

/// What the files say for `reference`; an unreadable file is told and passed over. Blocks.
pub(crate) fn from_files(files: &[PathBuf], reference: &Reference) -> Option<Auth> {
    files.iter().find_map(|path| {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read a credential file");
                return None;
            }
        };
        match serde_json::from_slice::<AuthFile>(&bytes) {
            Ok(file) => find(&file, path, reference),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read a credential file");
                None
            }
        }
    })
}

fn find(file: &AuthFile, path: &Path, reference: &Reference) -> Option<Auth> {
    let host = reference.domain();
    if let Some(helper) = file.cred_helpers.get(host) {
        return ask_helper(helper, host, path);
    }
    for key in keys(reference) {
        let entry = file.auths.iter().find(|(name, _)| normalize(name) == key);
        if let Some(auth) = entry.and_then(|(_, entry)| entry.auth()) {
            return Some(auth);
        }
    }
    let store = file.creds_store.as_ref().filter(|store| !store.is_empty())?;
    let server = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
    ask_helper(store, server, path)
}

/// Most specific first, as containers-auth.json(5) says: `host/a/b`, `host/a`, `host`.
fn keys(reference: &Reference) -> Vec<String> {
    let mut key = reference.repository();
    let mut keys = vec![key.clone()];
    while let Some(slash) = key.rfind('/') {
        key.truncate(slash);
        keys.push(key.clone());
    }
    keys
}

/// Docker writes some keys as URLs.
fn normalize(name: &str) -> String {
    let name =
        name.strip_prefix("https://").or_else(|| name.strip_prefix("http://")).unwrap_or(name);
    let name = name.trim_end_matches('/');
    let name = name.strip_suffix("/v1").or_else(|| name.strip_suffix("/v2")).unwrap_or(name);
    match name {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        _ => name.to_owned(),
    }
}

impl AuthEntry {
    fn auth(&self) -> Option<Auth> {
        if !self.identitytoken.is_empty() {
            return Some(Auth::IdentityToken(self.identitytoken.clone()));
        }
        if !self.registrytoken.is_empty() {
            return Some(Auth::RegistryToken(self.registrytoken.clone()));
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

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Runs `docker-credential-NAME get`, the server's name on its standard input.
fn ask_helper(name: &str, server: &str, path: &Path) -> Option<Auth> {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.chars().all(safe) {
        tracing::warn!(path = %path.display(), helper = name, "odd name of a credential helper");
        return None;
    }
    let program = format!("docker-credential-{name}");
    run_helper(Path::new(&program), server).unwrap_or_else(|error| {
        tracing::warn!(program, %error, "cannot run a credential helper");
        None
    })
}

/// What the helper knows of `server`.
fn run_helper(program: &Path, server: &str) -> std::io::Result<Option<Auth>> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(server.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    // A helper that knows nothing of the server fails; then the pull is anonymous.
    if !output.status.success() {
        return Ok(None);
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout)?;
    Ok(Some(if answer.username == "<token>" {
        Auth::IdentityToken(answer.secret)
    } else {
        Auth::Basic { username: answer.username, password: answer.secret }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(file: &str, reference: &str) -> Option<Auth> {
        let file: AuthFile = serde_json::from_str(file).unwrap();
        find(&file, Path::new("auth.json"), &reference.parse().unwrap())
    }

    fn user(name: &str) -> Auth {
        Auth::Basic { username: name.to_owned(), password: "p:w".to_owned() }
    }

    #[test]
    fn finds_the_most_specific_entry() {
        let encode = |name: &str| STANDARD.encode(format!("{name}:p:w"));
        let file = format!(
            r#"{{"auths":{{
              "https://index.docker.io/v1/":{{"auth":"{}"}},
              "quay.io":{{"auth":"{}"}},
              "quay.io/team":{{"auth":"{}"}},
              "localhost:5000":{{"username":"plain","password":"p:w"}}}}}}"#,
            encode("hub"),
            encode("quay"),
            encode("team")
        );
        for (reference, want) in [
            ("busybox", Some(user("hub"))),
            ("quay.io/a/b", Some(user("quay"))),
            ("quay.io/team/b", Some(user("team"))),
            ("quay.io/teams/b", Some(user("quay"))),
            ("localhost:5000/x", Some(user("plain"))),
            ("localhost:5001/x", None),
        ] {
            assert_eq!(lookup(&file, reference), want, "{reference}");
        }
    }

    #[test]
    fn helpers_are_asked_by_server() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("docker-credential-test");
        let script = r#"#!/bin/sh
            [ "$1" = get ] || exit 3
            case "$(cat)" in
                known:5000) echo '{"ServerURL":"known:5000","Username":"me","Secret":"p:w"}' ;;
                cloud) echo '{"Username":"<token>","Secret":"refresh"}' ;;
                odd) echo 'no JSON' ;;
                *) echo 'credentials not found'; exit 1 ;;
            esac"#;
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let ask = |server| run_helper(&program, server);
        assert_eq!(ask("known:5000").unwrap(), Some(user("me")));
        assert_eq!(ask("cloud").unwrap(), Some(Auth::IdentityToken("refresh".into())));
        assert_eq!(ask("unknown").unwrap(), None);
        assert!(ask("odd").is_err());
        assert!(run_helper(&folder.path().join("absent"), "known:5000").is_err());
    }

    #[test]
    fn hides_secrets() {
        let shown = format!("{:?}", user("me"));
        assert!(shown.contains("me") && !shown.contains("p:w"), "{shown}");
    }
}
