//! `cp`: files into and out of containers, by the container's own tar.
//!
//! Source: `k8s.io/kubectl/pkg/cmd/cp/cp.go`.

use std::fs::{self, File};
use std::io::{self, PipeWriter, Write};
use std::path::{Component, Path, PathBuf};
use std::thread;

use clap::Args;
use serde_json::Value;

use super::error::Error;
use super::pods;
use super::selection::Query;
use super::session::{Connection, Session};
use super::streams::{Ends, carry, complain};

/// Flags of `cp`.
#[derive(Args, Clone, Debug)]
pub struct Cp {
    /// From where: a path, or [NAMESPACE/]POD:PATH.
    #[arg(value_name = "FROM", required = true)]
    pub from: String,
    /// To where: the same.
    #[arg(value_name = "TO", required = true)]
    pub to: String,
    /// The container.
    #[arg(short, long, value_name = "CONTAINER", default_value = "", hide_default_value = true)]
    pub container: String,
    /// Leave owner and permissions to the container.
    #[arg(long)]
    pub no_preserve: bool,
    /// How often to begin again when a file from a container breaks off; negative is for ever.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub retries: i32,
    /// Which cluster.
    #[command(flatten)]
    pub connection: Connection,
}

/// One end of a copy.
#[derive(Clone, Debug, PartialEq)]
enum Place {
    Local(PathBuf),
    Pod { namespace: Option<String>, pod: String, path: String },
}

impl Place {
    fn parse(text: &str) -> Result<Self, Error> {
        let local = || Ok(Self::Local(PathBuf::from(text)));
        let Some((pod, path)) = text.split_once(':') else { return local() };
        // A colon in a file's name is not the end of a pod's.
        if pod.starts_with(['.', '/']) || Path::new(text).exists() {
            return local();
        }
        let bad = || {
            Error::wrong("filespec must match the canonical format: [[namespace/]pod:]file/path")
        };
        if pod.is_empty() {
            return Err(bad());
        }
        if path.is_empty() {
            return Err(Error::wrong("filepath can not be empty"));
        }
        let parts: Vec<&str> = pod.split('/').collect();
        let (namespace, pod) = match parts.as_slice() {
            [pod] => (None, *pod),
            [namespace, pod] if !namespace.is_empty() && !pod.is_empty() => {
                (Some((*namespace).to_owned()), *pod)
            }
            _ => return Err(bad()),
        };
        Ok(Self::Pod { namespace, pod: pod.to_owned(), path: path.to_owned() })
    }
}

/// Carries the command out.
pub async fn run(session: &Session, flags: &Cp) -> Result<(), Error> {
    match (Place::parse(&flags.from)?, Place::parse(&flags.to)?) {
        (Place::Local(from), Place::Pod { namespace, pod, path }) => {
            if fs::symlink_metadata(&from).is_err() {
                let from = from.display();
                return Err(Error::Wrong(format!("{from} doesn't exist in local filesystem")));
            }
            let inside = Inside::find(session, flags, namespace, &pod).await?;
            inside.push(&from, &path).await
        }
        (Place::Pod { namespace, pod, path }, Place::Local(to)) => {
            let inside = Inside::find(session, flags, namespace, &pod).await?;
            let mut left = flags.retries;
            loop {
                match inside.pull(&path, &to).await {
                    Err(broken) if broken.again && left != 0 => {
                        left = left.saturating_sub(1).max(-1);
                    }
                    outcome => return outcome.map_err(|broken| broken.error),
                }
            }
        }
        (Place::Pod { .. }, Place::Pod { .. }) => {
            Err(Error::wrong("src and dest are both in pods: one of them must be a local file"))
        }
        (Place::Local(_), Place::Local(_)) => {
            Err(Error::wrong("one of src or dest must be a remote file specification"))
        }
    }
}

/// The container.
struct Inside<'a> {
    session: &'a Session,
    flags: &'a Cp,
    pod: Value,
    container: String,
}

impl<'a> Inside<'a> {
    async fn find(
        session: &'a Session,
        flags: &'a Cp,
        namespace: Option<String>,
        pod: &str,
    ) -> Result<Self, Error> {
        let namespace = namespace.as_deref().unwrap_or(&session.namespace);
        let path = format!("/api/v1/namespaces/{namespace}/pods/{}", super::kinds::escape(pod));
        let pod = session.api.get(&path).await?;
        let container = pods::container(&pod, &flags.container, false)?;
        Ok(Self { session, flags, pod, container })
    }

    fn path(&self, command: &[&str], stdin: bool) -> String {
        let mut query = Query::default()
            .with("container", &self.container)
            .flag("stdin", stdin)
            .flag("stdout", true)
            .flag("stderr", true);
        for word in command {
            query = query.with_empty("command", word);
        }
        pods::path(&self.pod, &format!("/exec{}", query.text()))
    }

    async fn is_folder(&self, path: &str) -> bool {
        let ends = Ends {
            input: None,
            output: Box::new(|_| Ok(())),
            errors: Box::new(|_| Ok(())),
            terminal: false,
        };
        carry(self.session, &self.path(&["test", "-d", path], false), ends).await.is_ok()
    }

    async fn push(&self, from: &Path, to: &str) -> Result<(), Error> {
        let shown = from.display().to_string();
        let mut to = to.trim_end_matches('/').to_owned();
        if to.is_empty() || self.is_folder(&to).await {
            let own = from.canonicalize().unwrap_or_else(|_| from.to_owned());
            let name = own.file_name().map(|name| name.to_string_lossy().into_owned());
            to = format!("{to}/{}", name.unwrap_or_default());
        }
        let (folder, name) = match to.rsplit_once('/') {
            Some(("", name)) => ("/", name),
            Some((folder, name)) => (folder, name),
            None => ("", to.as_str()),
        };
        let mut command = vec!["tar"];
        if self.flags.no_preserve {
            command.extend(["--no-same-permissions", "--no-same-owner"]);
        }
        command.extend(["-xmf", "-"]);
        if !folder.is_empty() {
            command.extend(["-C", folder]);
        }
        let (reader, writer) = pipe()?;
        let (from, name) = (from.to_owned(), PathBuf::from(name));
        let packing = thread::spawn(move || pack(writer, &from, &name));
        let ends = Ends {
            input: Some(Box::new(tokio::fs::File::from_std(File::from(
                std::os::fd::OwnedFd::from(reader),
            )))),
            output: Box::new(complain),
            errors: Box::new(complain),
            terminal: false,
        };
        let outcome = carry(self.session, &self.path(&command, true), ends).await;
        let packed = packing.join().unwrap_or_else(|_| Err(io::Error::other("packing panicked")));
        outcome?;
        packed.map_err(|error| Error::Wrong(format!("cannot read {shown}: {error}")))
    }

    async fn pull(&self, from: &str, to: &Path) -> Result<(), Broken> {
        let (reader, mut writer) = pipe().map_err(|error| Broken { error, again: false })?;
        let prefix = inner(from);
        let target = to.to_owned();
        let unpacking = thread::spawn(move || unpack(reader, &prefix, &target));
        let ends = Ends {
            input: None,
            // When the reader has stopped it says why.
            output: Box::new(move |bytes| {
                writer.write_all(bytes).map_err(|_| Error::Exit { code: 1, text: String::new() })
            }),
            errors: Box::new(complain),
            terminal: false,
        };
        let outcome = carry(self.session, &self.path(&["tar", "cf", "-", from], false), ends).await;
        let unpacked =
            unpacking.join().unwrap_or_else(|_| Err(io::Error::other("unpacking panicked")));
        // What the server, the container's tar or this machine's disk says it would say again.
        let again = !matches!(outcome, Ok(()) | Err(Error::Exit { .. } | Error::Refused { .. }));
        let outcome = match (outcome, unpacked) {
            (Err(refused @ Error::Refused { .. }), _) => Err(refused),
            (_, Err(error)) => Err(Error::wrong(error.to_string())),
            (outcome, Ok(())) => outcome,
        };
        outcome.map_err(|error| Broken { error, again })
    }
}

/// Why not all came.
struct Broken {
    error: Error,
    /// Another attempt may go further.
    again: bool,
}

fn pipe() -> Result<(io::PipeReader, PipeWriter), Error> {
    io::pipe().map_err(|error| Error::Wrong(format!("cannot make a pipe: {error}")))
}

/// A path as tar names it: without what leads out of where it is unpacked.
fn inner(path: &str) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

/// Packs a file or folder under another name.
fn pack(writer: impl Write, from: &Path, name: &Path) -> io::Result<()> {
    let mut archive = tar::Builder::new(writer);
    archive.follow_symlinks(false);
    // What is named itself is meant, not the link to it.
    let from = from.canonicalize()?;
    if from.is_dir() {
        archive.append_dir_all(name, &from)?;
    } else {
        archive.append_path_with_name(&from, name)?;
    }
    archive.into_inner()?.flush()
}

/// Unpacks what lies at `prefix` to `to`.
fn unpack(reader: impl io::Read, prefix: &Path, to: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let Ok(rest) = path.strip_prefix(prefix) else {
            return Err(io::Error::other("tar contents corrupted"));
        };
        if rest.components().any(|part| !matches!(part, Component::Normal(_))) {
            eprintln!(
                "warning: file {:?} is outside target destination {:?}, skipping",
                path.display().to_string(),
                to.display().to_string()
            );
            continue;
        }
        let target = if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) };
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            fs::create_dir_all(&target)?;
        } else if kind.is_symlink() || kind.is_hard_link() {
            eprintln!(
                "warning: skipping symlink: {:?}: links of a container are not made here",
                target.display().to_string()
            );
        } else if kind.is_file() {
            if let Some(folder) = target.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                fs::create_dir_all(folder)?;
            }
            let mut file = File::create(&target)
                .map_err(|error| io::Error::other(format!("open {}: {error}", target.display())))?;
            io::copy(&mut entry, &mut file)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_local_or_in_a_pod() {
        let pod = |namespace: Option<&str>, pod: &str, path: &str| {
            Some(Place::Pod {
                namespace: namespace.map(str::to_owned),
                pod: pod.into(),
                path: path.into(),
            })
        };
        let cases = [
            ("/tmp/x", Some(Place::Local("/tmp/x".into()))),
            ("./a:b", Some(Place::Local("./a:b".into()))),
            ("web:/tmp/x", pod(None, "web", "/tmp/x")),
            ("shop/web:x", pod(Some("shop"), "web", "x")),
            ("web:", None),
            (":x", None),
            ("a/b/c:x", None),
        ];
        for (text, want) in cases {
            assert_eq!(Place::parse(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn folders_come_back_as_they_were_and_nothing_leads_out() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        fs::create_dir_all(from.join("deep")).unwrap();
        fs::write(from.join("deep/a"), "one").unwrap();
        fs::write(from.join("b"), "two").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", from.join("link")).unwrap();
        let mut bytes = Vec::new();
        pack(&mut bytes, &from, Path::new("tmp/from")).unwrap();
        let to = folder.path().join("to");
        unpack(bytes.as_slice(), &inner("/tmp/../tmp/from/"), &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("deep/a")).unwrap(), "one");
        assert_eq!(fs::read_to_string(to.join("b")).unwrap(), "two");
        assert!(!to.join("link").exists());
        let error = unpack(bytes.as_slice(), Path::new("other"), &to).unwrap_err();
        assert_eq!(error.to_string(), "tar contents corrupted");
        // One file alone takes the name it is given.
        let mut bytes = Vec::new();
        pack(&mut bytes, &from.join("b"), Path::new("c")).unwrap();
        unpack(bytes.as_slice(), Path::new("c"), &folder.path().join("d")).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("d")).unwrap(), "two");
    }
}
