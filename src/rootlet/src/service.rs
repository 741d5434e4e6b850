//! `rootlet service`: a cluster as a unit of the user's systemd, started with the first login, or at boot where
//! the user lingers. And what such a unit is told: sd_notify(3).

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use clap::Parser;
use cli::args::{Cli, Service};
use serde_json::json;

use crate::paths::{Paths, account, home};
use crate::{lock, scope};

/// Carries out `rootlet service …`.
pub fn service(command: &Service) -> anyhow::Result<ExitCode> {
    match command {
        Service::Install { cluster, no_start, flags } => {
            install(&cluster.name, !no_start, flags)?;
        }
        Service::Uninstall(cluster) => uninstall(&cluster.name)?,
        Service::Status(flags) => {
            return status(&Paths::of(&flags.cluster.name)?, flags.output == "json");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn install(cluster: &str, start: bool, flags: &[String]) -> anyhow::Result<()> {
    // What is mistyped is told now, not at the next login.
    let words = ["rootlet", "up", "--name", cluster].map(str::to_owned);
    if let Err(error) = Cli::try_parse_from(words.into_iter().chain(flags.iter().cloned())) {
        let text = error.render().to_string();
        bail!("{}", text.trim_start_matches("error: ").trim_end());
    }
    let program = std::env::current_exe().context("cannot find this program's file")?;
    if !program.is_file() {
        bail!("{} was replaced or removed; run the new one", program.display());
    }
    let file = unit_file(cluster)?;
    let text = unit(cluster, &program, &environment(), flags, &std::env::current_dir()?);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    say!("Wrote {}", file.display());
    let unit = scope::service_unit(cluster);
    let enable: &[&str] = if start { &["enable", "--now", &unit] } else { &["enable", &unit] };
    for words in [&["daemon-reload"][..], enable] {
        systemctl(words).with_context(|| {
            format!(
                "the unit is written but not enabled; in a session of yours run: \
                 systemctl --user daemon-reload && systemctl --user {}",
                enable.join(" ")
            )
        })?;
    }
    say!(
        "Cluster {cluster:?} {} and starts when you log in.",
        if start { "runs" } else { "is enabled" }
    );
    if !lingers() {
        say!("Next: loginctl enable-linger    (it starts at boot, and stays when you log out)");
    }
    Ok(())
}

fn uninstall(cluster: &str) -> anyhow::Result<()> {
    let unit = scope::service_unit(cluster);
    if !unit_file(cluster)?.exists() {
        say!("{unit} is not installed.");
        return Ok(());
    }
    remove(cluster)?;
    say!("{unit} is removed; the cluster is stopped, its data kept.");
    Ok(())
}

/// Stops and removes the unit of a cluster, if it has one.
pub fn remove(cluster: &str) -> anyhow::Result<()> {
    let unit = scope::service_unit(cluster);
    let Some(file) = unit_file(cluster).ok().filter(|file| file.exists()) else { return Ok(()) };
    let stopped = systemctl(&["disable", "--now", &unit]);
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    let reloaded = systemctl(&["daemon-reload"]);
    stopped.and(reloaded).context("the unit's file is removed, but systemd does not know yet")
}

fn status(paths: &Paths, as_json: bool) -> anyhow::Result<ExitCode> {
    let (unit, file) = (scope::service_unit(&paths.name), unit_file(&paths.name)?);
    if !file.exists() {
        if as_json {
            println!("{:#}", json!({"unit": unit, "installed": false}));
        } else {
            println!("{unit} is not installed; `rootlet service install` does that.");
        }
        return Ok(ExitCode::FAILURE);
    }
    let word = |question| {
        let output = Command::new("systemctl").args(["--user", question, &unit]).output();
        let word = output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
        word.ok().filter(|word| !word.is_empty()).unwrap_or_else(|| "unknown".into())
    };
    let (active, enabled) = (word("is-active"), word("is-enabled"));
    let runs = lock::holder(&paths.lock("daemon")).is_some();
    if as_json {
        println!(
            "{:#}",
            json!({"unit": unit, "installed": true, "file": file.display().to_string(), "enabled": enabled,
                "state": active, "running": runs, "atBoot": lingers()})
        );
    } else {
        println!("unit     {} ({enabled})", file.display());
        println!("state    {active}");
        println!("cluster  {}", if runs { "running" } else { "not running" });
        println!("at boot  {}", if lingers() { "yes" } else { "no (loginctl enable-linger)" });
    }
    Ok(if active == "active" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether the user's services start at boot and outlive the sessions.
pub fn lingers() -> bool {
    let user = account(rustix::process::geteuid().as_raw()).map(|account| account.name);
    user.is_some_and(|user| Path::new("/var/lib/systemd/linger").join(user).exists())
}

/// Where the unit of a cluster is.
pub fn unit_file(cluster: &str) -> anyhow::Result<PathBuf> {
    let folder = match std::env::var_os("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => home()?.join(".config"),
    };
    Ok(folder.join("systemd/user").join(scope::service_unit(cluster)))
}

fn systemctl(words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("systemctl").arg("--user").args(words).stdin(Stdio::null()).output();
    let output = output.context("cannot run systemctl; is this a machine with systemd?")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("systemctl --user {}: {}", words.join(" "), said.trim());
    }
    Ok(())
}

/// Where the cluster's files are, if that is not where the user's systemd would look for them.
fn environment() -> Vec<(&'static str, String)> {
    ["XDG_DATA_HOME", "XDG_CONFIG_HOME", "KUBECONFIG", "ROOTLET_LOG"]
        .into_iter()
        .filter_map(|name| Some((name, std::env::var(name).ok().filter(|v| !v.is_empty())?)))
        .collect()
}

/// The unit (systemd.service(5), systemd.resource-control(5)).
fn unit(
    cluster: &str,
    program: &Path,
    environment: &[(&str, String)],
    flags: &[String],
    folder: &Path,
) -> String {
    let mut command = quoted(&program.to_string_lossy());
    command += &format!(" up --foreground --name {cluster}");
    for flag in flags {
        command = format!("{command} {}", quoted(flag));
    }
    let mut settings = format!("Environment={}={}\n", scope::UNIT, scope::service_unit(cluster));
    for (name, value) in environment {
        settings += &format!("Environment={}\n", quoted(&format!("{name}={value}")));
    }
    if !flags.is_empty() {
        // Flags may name files from there.
        settings += &format!("WorkingDirectory={}\n", escaped(&folder.to_string_lossy()));
    }
    format!(
        "# Written by `rootlet service install`; `rootlet service uninstall` removes it.\n\
         [Unit]\n\
         Description=rootlet: Kubernetes cluster {cluster}\n\
         Documentation=man:rootlet(1)\n\
         StartLimitIntervalSec=120\n\
         StartLimitBurst=4\n\
         \n\
         [Service]\n\
         Type=notify\n\
         NotifyAccess=main\n\
         {settings}\
         ExecStart={command}\n\
         # Asked to end, it stops the pods first. It starts a daemon that dies again itself.\n\
         KillMode=mixed\n\
         TimeoutStartSec=5min\n\
         TimeoutStopSec=2min\n\
         Restart=on-failure\n\
         RestartSec=2\n\
         # Pods get their cgroups below this unit's; one of them out of memory is not the end of all.\n\
         Delegate=yes\n\
         OOMPolicy=continue\n\
         TasksMax=infinity\n\
         \n\
         [Install]\n\
         WantedBy=default.target\n"
    )
}

/// Without specifiers (systemd.unit(5)).
fn escaped(text: &str) -> String {
    text.replace('%', "%%")
}

/// A word of a command line or a list of assignments (systemd.service(5), "Command lines").
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let word = escaped(word).replace('\\', "\\\\").replace('"', "\\\"").replace('$', "$$");
    format!("\"{}\"", word.replace('\n', "\\n"))
}

/// Tells the service manager that started this process, if one did.
pub fn notify(state: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::SocketAddr;
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&socket),
    };
    // Nobody is helped by an end for want of a listener.
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        eprintln!("warning: cannot notify {}: {error}", socket.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_systemd_reads_them() {
        for (word, want) in [
            ("--ingress", "--ingress"),
            ("cpu=1,memory=1Gi", "cpu=1,memory=1Gi"),
            ("memory.available<10%", "\"memory.available<10%%\""),
            ("a b", "\"a b\""),
            ("a\"b\\$c", "\"a\\\"b\\\\$$c\""),
            ("", "\"\""),
        ] {
            assert_eq!(quoted(word), want);
        }
    }

    #[test]
    fn a_unit_says_how_its_cluster_runs() {
        let environment = [("XDG_DATA_HOME", "/data dir".to_owned())];
        let flags = ["--eviction-hard".to_owned(), "memory.available<5%".to_owned()];
        let text =
            unit("dev", Path::new("/opt/rootlet"), &environment, &flags, Path::new("/home/me"));
        for line in [
            "Environment=ROOTLET_UNIT=rootlet-dev.service",
            "Environment=\"XDG_DATA_HOME=/data dir\"",
            "WorkingDirectory=/home/me",
            "ExecStart=/opt/rootlet up --foreground --name dev --eviction-hard \"memory.available<5%%\"",
            "Type=notify",
            "Delegate=yes",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
