//! `exec`: runs a command in a container.
//!
//! Source: `k8s.io/kubectl/pkg/cmd/exec/exec.go`.

use std::time::Duration;

use clap::Args;

use super::error::Error;
use super::selection::Query;
use super::session::{Connection, Session};
use super::streams::{Ends, Raw, carry, complain};
use super::{pods, put_bytes, wait};

/// Flags of `exec`.
#[derive(Args, Clone, Debug)]
pub struct Exec {
    /// The pod, or something that has pods, such as deployment/web.
    #[arg(value_name = "POD | TYPE/NAME", required = true)]
    pub pod: String,
    /// The container.
    #[arg(short, long, value_name = "CONTAINER", default_value = "", hide_default_value = true)]
    pub container: String,
    /// Give the command this input.
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Give the command a terminal.
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Say nothing but what the command says.
    #[arg(short, long)]
    pub quiet: bool,
    /// How long to wait for a pod to be there.
    #[arg(long, value_name = "DURATION", default_value = "1m0s")]
    pub pod_running_timeout: String,
    /// Which cluster.
    #[command(flatten)]
    pub connection: Connection,
    /// The command and its arguments.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Carries the command out.
pub async fn run(session: &Session, flags: &Exec) -> Result<(), Error> {
    if flags.command.is_empty() {
        return Err(Error::wrong("you must specify at least one command for the container"));
    }
    let patience = wait::timeout(&flags.pod_running_timeout)?.unwrap_or(Duration::ZERO);
    let pod = pods::find(session, &flags.pod, patience, false).await?;
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if phase == "Succeeded" || phase == "Failed" {
        return Err(Error::Wrong(format!(
            "cannot exec into a container in a completed pod; current phase is {phase}"
        )));
    }
    // Whether the pod has the container that is named the server knows as well.
    let container = match flags.container.as_str() {
        "" => pods::container(&pod, "", flags.quiet)?,
        given => given.to_owned(),
    };
    let tty = terminal(flags.stdin, flags.tty, flags.quiet);
    let mut query = Query::default()
        .with("container", &container)
        .flag("stdin", flags.stdin)
        .flag("stdout", true)
        .flag("stderr", !tty)
        .flag("tty", tty);
    for word in &flags.command {
        query = query.with_empty("command", word);
    }
    let path = pods::path(&pod, &format!("/exec{}", query.text()));
    stream(session, &path, flags.stdin, tty).await
}

/// Whether there is a terminal to give, where one is asked for.
pub fn terminal(stdin: bool, tty: bool, quiet: bool) -> bool {
    if !stdin || !tty {
        return false;
    }
    let possible = Raw::possible();
    if !possible && !quiet {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    possible
}

/// Joins this process' streams with those of the subresource at `path`.
pub async fn stream(session: &Session, path: &str, stdin: bool, tty: bool) -> Result<(), Error> {
    let raw = tty.then(Raw::take);
    let ends = Ends {
        input: stdin.then(|| Box::new(tokio::io::stdin()) as _),
        output: Box::new(put_bytes),
        errors: Box::new(complain),
        terminal: tty,
    };
    let outcome = carry(session, path, ends).await;
    drop(raw);
    outcome
}
