//! Where a cluster's files are.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf, absolute};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// The longest path a unix socket may have, with some room for the sockets' names.
const SOCKET_FOLDER_MAX: usize = 80;

/// The folders of one cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Paths {
    /// Name of the cluster.
    pub name: String,
    /// State, images, volumes, logs: kept by `down`, removed by `delete`.
    pub data: PathBuf,
    /// Sockets, locks, process state: worthless after a reboot.
    pub run: PathBuf,
}

impl Paths {
    /// The folders of cluster `name` for the calling user, from the XDG base directories.
    pub fn of(name: &str) -> anyhow::Result<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let data = match std::env::var_os("XDG_DATA_HOME").filter(|v| !v.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => home()?.join(".local/share"),
        };
        let run = match std::env::var_os("XDG_RUNTIME_DIR").filter(|v| !v.is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => runtime_folder(uid),
        };
        let paths = Self {
            name: name.to_owned(),
            data: absolute(data.join("rootlet").join(name))?,
            run: absolute(run.join("rootlet").join(name))?,
        };
        let length = paths.run.as_os_str().len();
        if length > SOCKET_FOLDER_MAX {
            bail!(
                "{} is too long for the sockets below it ({length} of {SOCKET_FOLDER_MAX} bytes); \
                 set XDG_RUNTIME_DIR to a shorter path or use a shorter --name",
                paths.run.display()
            );
        }
        Ok(paths)
    }

    /// Makes the folders, open to their owner alone.
    pub fn create(&self) -> anyhow::Result<()> {
        for folder in [&self.data, &self.run] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
            let owner = fs::metadata(folder)?.uid();
            if owner != rustix::process::geteuid().as_raw() {
                bail!("{} belongs to user {owner}, not to you", folder.display());
            }
        }
        Ok(())
    }

    /// The context's name in kubeconfigs, and the node's name.
    pub fn context(&self) -> String {
        if self.name == "default" { "rootlet".into() } else { format!("rootlet-{}", self.name) }
    }

    /// What a command says that wants the cluster to run.
    pub fn not_running(&self) -> String {
        let flag =
            if self.name == "default" { String::new() } else { format!(" --name {}", self.name) };
        format!("cluster {:?} is not running; start it with `rootlet up{flag}`", self.name)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data.join("kubeconfig")
    }

    /// What the daemon was started with, and the ports it got.
    pub fn settings(&self) -> PathBuf {
        self.data.join("settings.json")
    }

    /// What a role prints.
    pub fn log(&self, role: &str) -> PathBuf {
        self.data.join(format!("{role}.log"))
    }

    /// There when the cluster was stopped on purpose.
    pub fn stopped(&self) -> PathBuf {
        self.run.join("stopped")
    }

    /// The daemon's control socket.
    pub fn daemon_socket(&self) -> PathBuf {
        self.run.join("daemon.sock")
    }

    /// The control socket of a runtime that runs without a cluster.
    pub fn runtime_socket(&self) -> PathBuf {
        self.run.join("runtime.sock")
    }

    /// Where the container runtime serves CRI.
    pub fn cri_socket(&self) -> PathBuf {
        self.run.join("cri.sock")
    }

    /// The node process' control socket.
    pub fn node_socket(&self) -> PathBuf {
        self.run.join("node.sock")
    }

    /// Where the node process takes DNS zones.
    pub fn dns_socket(&self) -> PathBuf {
        self.run.join("dns.sock")
    }

    /// Held locked by the process of `role` while it lives; contains its pid.
    pub fn lock(&self, role: &str) -> PathBuf {
        self.run.join(format!("{role}.pid"))
    }
}

/// The caller's home folder.
pub fn home() -> anyhow::Result<PathBuf> {
    if let Some(home) = std::env::var_os("HOME").filter(|v| !v.is_empty()) {
        return Ok(home.into());
    }
    let uid = rustix::process::geteuid().as_raw();
    account(uid)
        .map(|account| account.home)
        .context("HOME is not set and the user is not in /etc/passwd; set HOME to your home folder")
}

/// An entry of `/etc/passwd`.
pub struct Account {
    /// Login name.
    pub name: String,
    /// Home folder.
    pub home: PathBuf,
}

/// The account with `uid`, read without NSS.
pub fn account(uid: u32) -> Option<Account> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.len() >= 6 && fields[2].parse() == Ok(uid))
            .then(|| Account { name: fields[0].to_owned(), home: PathBuf::from(fields[5]) })
    })
}

fn runtime_folder(uid: u32) -> PathBuf {
    let logind = PathBuf::from(format!("/run/user/{uid}"));
    if is_own_folder(&logind, uid) {
        return logind;
    }
    PathBuf::from(format!("/tmp/rootlet-{uid}"))
}

fn is_own_folder(path: &Path, uid: u32) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == uid)
}

/// Removes `folder` and everything below it; it is no error if it is not there.
pub fn remove_tree(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
