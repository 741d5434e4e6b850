//! Kubeconfig files: one cluster's own, and its context in the user's.
//!
//! Source: `k8s.io/client-go/tools/clientcmd/api/v1` and kubectl's rules for `KUBECONFIG`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// Why a kubeconfig could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read, locked or written.
    #[error("cannot {action} kubeconfig {path}")]
    Io {
        /// `read`, `lock` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not a kubeconfig; it was left as it is.
    #[error("kubeconfig {path} is not valid: {problem}; mend it, or pass --kubeconfig FILE")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// How to reach a cluster as its administrator.
#[derive(Clone, Debug)]
pub struct Access {
    /// Such as `https://127.0.0.1:6443`.
    pub server: String,
    /// The CA's certificate, base64 of PEM.
    pub ca_data: String,
    /// The client's certificate, base64 of PEM.
    pub cert_data: String,
    /// The client's key, base64 of PEM.
    pub key_data: String,
}

/// A kubeconfig of this cluster alone, with `context` as the name of context, cluster and user.
pub fn standalone(context: &str, access: &Access) -> String {
    let mut config = json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {},
        "clusters": [], "users": [], "contexts": [], "current-context": context,
    });
    if let Some(map) = config.as_object_mut() {
        insert(map, context, access);
    }
    to_yaml(&config)
}

/// The user's kubeconfig: the first file of `KUBECONFIG`, else `~/.kube/config`.
pub fn user_path(kubeconfig_variable: Option<&str>, home: &Path) -> PathBuf {
    kubeconfig_variable
        .into_iter()
        .flat_map(|list| list.split(':'))
        .find(|entry| !entry.is_empty())
        .map_or_else(|| home.join(".kube/config"), PathBuf::from)
}

/// Adds or replaces `context` in the kubeconfig at `path` and makes it current if no other is.
/// Everything else in the file keeps its content. Returns whether the context is the current one.
pub fn merge(path: &Path, context: &str, access: &Access) -> Result<bool, Error> {
    edit(path, |config| {
        insert(config, context, access);
        let current = config.get("current-context").and_then(Value::as_str).unwrap_or_default();
        if current.is_empty() {
            config.insert("current-context".into(), context.into());
            return true;
        }
        current == context
    })
}

/// Removes `context`, with its cluster and user, from the kubeconfig at `path`. Returns whether the file is there
/// and nothing is left in it.
pub fn remove(path: &Path, context: &str) -> Result<bool, Error> {
    if !path.exists() {
        return Ok(false);
    }
    edit(path, |config| {
        for list in ["clusters", "users", "contexts"] {
            if let Some(Value::Array(entries)) = config.get_mut(list) {
                entries.retain(|entry| entry["name"] != context);
            }
        }
        if config.get("current-context").is_some_and(|current| current == context) {
            config.insert("current-context".into(), "".into());
        }
        let none =
            |list: &str| config.get(list).and_then(Value::as_array).is_none_or(Vec::is_empty);
        ["clusters", "users", "contexts"].into_iter().all(none)
    })
}

/// The names of all contexts at `path`. None where the file cannot be read.
pub fn contexts(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let config: Value = serde_saphyr::from_str(&text).unwrap_or_default();
    let entries = config["contexts"].as_array().into_iter().flatten();
    entries.filter_map(|entry| entry["name"].as_str()).map(str::to_owned).collect()
}

/// The contexts at `path` whose clusters are on this machine's loopback and have the context's own name, as those
/// of [`merge`] are. None where the file cannot be read.
pub fn local_contexts(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let config: Value = serde_saphyr::from_str(&text).unwrap_or_default();
    let names = |list: &str, fits: &dyn Fn(&Value) -> bool| -> Vec<String> {
        let entries = config[list].as_array().into_iter().flatten();
        let found = entries.filter(|entry| fits(entry)).filter_map(|entry| entry["name"].as_str());
        found.map(str::to_owned).collect()
    };
    let local = names("clusters", &|cluster| {
        cluster["cluster"]["server"].as_str().is_some_and(|s| s.starts_with("https://127.0.0.1:"))
    });
    let contexts = names("contexts", &|context| context["context"]["cluster"] == context["name"]);
    contexts.into_iter().filter(|context| local.contains(context)).collect()
}

/// Writes `text` to `path`, readable by its owner alone, all or nothing.
pub fn write(path: &Path, text: &str) -> Result<(), Error> {
    // A link (dotfiles kept elsewhere) stays one: the file behind it is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let io = |source| Error::Io { action: "write", path: path.to_owned(), source };
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder).map_err(io)?;
    }
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".rootlet-{}", std::process::id()));
    let temporary = target.with_file_name(name);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, &target));
    if written.is_err() {
        // The half-written copy is of no use to anybody.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(io)
}

/// kubectl's own lock (`config.lock` beside the file), held while the file is changed.
struct Lock(PathBuf);

impl Lock {
    fn take(path: &Path) -> Result<Self, Error> {
        let mut name = path.as_os_str().to_os_string();
        name.push(".lock");
        let lock = PathBuf::from(name);
        let io = |source| Error::Io { action: "lock", path: path.to_owned(), source };
        if let Some(folder) = lock.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        match File::create_new(&lock) {
            Ok(_) => Ok(Self(lock)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(io(io::Error::new(
                error.kind(),
                format!(
                    "{} exists: another program is writing; if none is, remove it",
                    lock.display()
                ),
            ))),
            Err(error) => Err(io(error)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Nothing can be done about a lock that somebody else removed.
        let _ = fs::remove_file(&self.0);
    }
}

fn edit<T>(path: &Path, change: impl FnOnce(&mut Map<String, Value>) -> T) -> Result<T, Error> {
    let _lock = Lock::take(path)?;
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(Error::Io { action: "read", path: path.to_owned(), source }),
    };
    let invalid = |problem: String| Error::Invalid { path: path.to_owned(), problem };
    let mut config = if text.trim().is_empty() {
        json!({"apiVersion": "v1", "kind": "Config", "preferences": {}})
    } else {
        serde_saphyr::from_str(&text).map_err(|error| invalid(error.to_string()))?
    };
    let map = config.as_object_mut().ok_or_else(|| invalid("it is not a mapping".into()))?;
    for list in ["clusters", "users", "contexts"] {
        match map.get(list) {
            None | Some(Value::Null) => {
                map.insert(list.into(), json!([]));
            }
            Some(Value::Array(_)) => {}
            Some(_) => return Err(invalid(format!("{list} is not a list"))),
        }
    }
    let answer = change(map);
    write(path, &to_yaml(&config))?;
    Ok(answer)
}

fn insert(config: &mut Map<String, Value>, context: &str, access: &Access) {
    let entries = [
        (
            "clusters",
            json!({"name": context, "cluster": {
                "server": access.server, "certificate-authority-data": access.ca_data}}),
        ),
        (
            "users",
            json!({"name": context, "user": {
                "client-certificate-data": access.cert_data, "client-key-data": access.key_data}}),
        ),
        ("contexts", json!({"name": context, "context": {"cluster": context, "user": context}})),
    ];
    for (list, entry) in entries {
        if let Some(Value::Array(existing)) = config.get_mut(list) {
            match existing.iter_mut().find(|known| known["name"] == context) {
                Some(known) => *known = entry,
                None => existing.push(entry),
            }
        }
    }
}

fn to_yaml(config: &Value) -> String {
    serde_saphyr::to_string(config).expect("JSON values are valid YAML")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access() -> Access {
        Access {
            server: "https://127.0.0.1:6443".into(),
            ca_data: "Q0E=".into(),
            cert_data: "Q0VSVA==".into(),
            key_data: "S0VZ".into(),
        }
    }

    #[test]
    fn other_contexts_stay_and_stay_current() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let theirs = "apiVersion: v1\nkind: Config\ncurrent-context: work\nclusters:\n- name: work\n  \
                      cluster: {server: 'https://w', proxy-url: 'http://p'}\nusers: []\ncontexts:\n- \
                      name: work\n  context: {cluster: work, user: me}\n";
        fs::write(&path, theirs).unwrap();
        assert!(!merge(&path, "rootlet", &access()).unwrap());
        assert!(!merge(&path, "rootlet", &access()).unwrap());
        let merged: Value = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(merged["current-context"], "work");
        assert_eq!(merged["clusters"][0]["cluster"]["proxy-url"], "http://p");
        assert_eq!(merged["contexts"].as_array().map(Vec::len), Some(2));
        remove(&path, "rootlet").unwrap();
        let left: Value = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(left["contexts"].as_array().map(Vec::len), Some(1));
        assert_eq!(left["current-context"], "work");
    }

    #[test]
    fn a_first_context_becomes_current_and_the_file_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/config");
        assert!(merge(&path, "rootlet", &access()).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 1);
    }

    #[test]
    fn a_broken_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        fs::write(&path, "clusters: 3\n").unwrap();
        let error = merge(&path, "rootlet", &access()).unwrap_err();
        assert!(error.to_string().contains("clusters is not a list"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "clusters: 3\n");
    }

    #[test]
    fn the_users_file_is_the_first_named() {
        let home = Path::new("/h");
        assert_eq!(user_path(Some(":/a:/b"), home), Path::new("/a"));
        assert_eq!(user_path(Some(""), home), Path::new("/h/.kube/config"));
        assert_eq!(user_path(None, home), Path::new("/h/.kube/config"));
    }
}
