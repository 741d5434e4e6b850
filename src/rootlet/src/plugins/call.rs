//! One call of a plugin: its environment, its input, and what its answer means.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

/// The plugins' folders, and where plugins run.
pub struct Plugins<'a> {
    /// Where plugins are looked for, in this order.
    pub bin_dirs: &'a [PathBuf],
    /// The network namespace that they run in; None is this process' own.
    pub namespace: Option<&'a OwnedFd>,
    /// A folder that they may write to.
    pub state_dir: &'a PathBuf,
}

impl Plugins<'_> {
    /// The file of the plugin that a configuration names.
    pub fn find(&self, plugin: &Value) -> anyhow::Result<PathBuf> {
        let kind = kind(plugin);
        if kind.is_empty() || kind.contains('/') {
            bail!("{kind:?} is not the name of a CNI plugin");
        }
        let found = self.bin_dirs.iter().map(|dir| dir.join(kind)).find(|file| file.is_file());
        found.with_context(|| format!("--cni-bin-dir: there is no CNI plugin {kind:?}"))
    }

    /// Calls a plugin with `variables`; None is an empty answer.
    pub fn call(
        &self,
        command: &str,
        conf: &Value,
        variables: &[(&str, String)],
    ) -> anyhow::Result<Option<Value>> {
        let file = self.find(conf)?;
        let path = std::env::join_paths(self.bin_dirs).context("--cni-bin-dir")?;
        let mut call = Command::new(&file);
        call.env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            // Where iptables has its lock file is not for an ordinary user to write.
            .env("XTABLES_LOCKFILE", self.state_dir.join("xtables.lock"))
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", path)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let kind = kind(conf);
        let (code, out, err) = execute(call, self.namespace, &conf.to_string())
            .with_context(|| format!("cannot run CNI plugin {kind:?}"))?;
        if code != Some(0) {
            bail!("CNI plugin {kind:?} failed ({command}): {}", problem(&out, &err));
        }
        if out.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&out)
            .map(Some)
            .with_context(|| format!("CNI plugin {kind:?} answered something else than JSON"))
    }

    /// That a plugin speaks a version.
    pub fn require(&self, plugin: &Value, version: &str) -> anyhow::Result<()> {
        let kind = kind(plugin);
        let conf = json!({"cniVersion": version, "type": kind});
        let answer = self.call("VERSION", &conf, &[])?.unwrap_or_default();
        let spoken = answer["supportedVersions"].as_array();
        let spoken: Vec<&str> = spoken.into_iter().flatten().filter_map(Value::as_str).collect();
        if !spoken.contains(&version) {
            let spoken = spoken.join(", ");
            bail!("CNI plugin {kind:?} does not speak version {version}, only {spoken}");
        }
        Ok(())
    }
}

fn kind(plugin: &Value) -> &str {
    plugin["type"].as_str().unwrap_or_default()
}

/// Runs a program with `input`.
fn execute(
    mut command: Command,
    namespace: Option<&OwnedFd>,
    input: &str,
) -> anyhow::Result<(Option<i32>, String, String)> {
    // The thread ends with the program: it cannot come back out of the namespace.
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || -> anyhow::Result<_> {
            if let Some(namespace) = namespace {
                setns(namespace, CloneFlags::CLONE_NEWNET)
                    .context("cannot enter the node's network")?;
            }
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // A plugin may fail before it has read everything.
                let _ = stdin.write_all(input.as_bytes());
            }
            let output = child.wait_with_output()?;
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            Ok((output.status.code(), text(output.stdout), text(output.stderr)))
        });
        thread.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
    })
}

/// What a plugin said about its failure ("Error" in the specification), or else what it printed.
fn problem(out: &str, err: &str) -> String {
    match serde_json::from_str::<Value>(out) {
        Ok(error) if error["msg"].is_string() => {
            let (message, details) = (&error["msg"], error["details"].as_str().unwrap_or_default());
            let message = message.as_str().unwrap_or_default();
            let separator = if details.is_empty() { "" } else { ": " };
            format!("{message}{separator}{details} (code {})", error["code"])
        }
        _ => format!("{}{}", out.trim(), err.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn problems_are_told_in_the_plugins_words() {
        let error = r#"{"code": 7, "msg": "no bridge", "details": "x"}"#;
        assert_eq!(problem(error, ""), "no bridge: x (code 7)");
        assert_eq!(problem("", "exec format\n"), "exec format");
    }

    #[test]
    fn plugins_are_called_and_asked_for_their_version() {
        let folder = tempfile::tempdir().unwrap();
        let script = "#!/bin/sh\nif [ $CNI_COMMAND = VERSION ]; then\n\
             echo '{\"cniVersion\": \"1.0.0\", \"supportedVersions\": [\"0.4.0\", \"1.0.0\"]}'\n\
             elif [ $CNI_COMMAND = DEL ]; then exit 0\n\
             else cat; fi\n";
        let file = folder.path().join("echo");
        std::fs::write(&file, script).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let (bin_dirs, state_dir) = ([folder.path().to_owned()], folder.path().to_owned());
        let plugins = Plugins { bin_dirs: &bin_dirs, namespace: None, state_dir: &state_dir };
        let conf = json!({"type": "echo", "x": 1});
        assert_eq!(plugins.call("ADD", &conf, &[]).unwrap(), Some(conf.clone()));
        assert_eq!(plugins.call("DEL", &conf, &[]).unwrap(), None);
        plugins.require(&conf, "1.0.0").unwrap();
        let error = plugins.require(&conf, "1.1.0").unwrap_err().to_string();
        assert!(error.contains("only 0.4.0, 1.0.0"), "{error}");
        assert!(plugins.find(&json!({"type": "../echo"})).is_err());
        assert!(plugins.find(&json!({"type": "other"})).is_err());
    }
}
