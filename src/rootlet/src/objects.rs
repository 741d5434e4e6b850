//! Commands on a cluster's objects: which cluster is meant, and `rootlet kubectl`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use cli::objects::{Connection, Objects, Session};

use crate::lock;
use crate::paths::Paths;

/// Runs the command, and tells what went wrong as kubectl does.
pub fn run(command: &Objects) -> anyhow::Result<ExitCode> {
    let own = own(command.connection())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        // What is interrupted leaves the terminal as it was.
        let interrupted = async {
            let signal = tokio::signal::ctrl_c().await;
            if signal.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            outcome = command.run(own.as_deref()) => outcome,
            () = interrupted => Err(cli::objects::Error::Exit { code: 130, text: String::new() }),
        }
    });
    // A read from a terminal that nobody ends must not hold the process.
    runtime.shutdown_background();
    let Err(error) = outcome else { return Ok(ExitCode::SUCCESS) };
    Ok(told(&error))
}

/// The kubeconfig of the running cluster of rootlet's that is meant, unless the flags name another.
fn own(connection: &Connection) -> anyhow::Result<Option<PathBuf>> {
    let name = connection.name.as_deref().unwrap_or("default");
    Ok(running(&Paths::of(name)?))
}

fn told(error: &cli::objects::Error) -> ExitCode {
    eprint!("{}", error.text());
    ExitCode::from(error.code())
}

/// Prints what holds an object that does not come up.
pub fn why(arguments: &cli::args::Why) -> anyhow::Result<ExitCode> {
    let own = own(&arguments.connection)?;
    let (kind, name) = &arguments.object;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let held = runtime.block_on(async {
        let session = Session::open(&arguments.connection, own.as_deref()).await?;
        let held = cli::report::why_not(session.api.client(), kind, &session.namespace, name).await;
        held.map_err(|error| session.api.failed(&error))
    });
    let held = match held {
        Ok(held) => held,
        Err(error) => return Ok(told(&error)),
    };
    if arguments.output == "json" {
        println!("{}", serde_json::to_string_pretty(&held.verdict)?);
    } else {
        print!("{}", cli::why::told(&held.object, &held.verdict));
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what a kustomization makes.
pub fn kustomize(folder: &str) -> anyhow::Result<ExitCode> {
    match cli::objects::kustomize::build(folder)
        .and_then(|made| cli::objects::kustomize::print(&made))
    {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Ok(told(&error)),
    }
}

/// What `rootlet logs` without a pod asks for.
pub fn process_log(flags: &cli::objects::logs::Logs) -> cli::args::Logs {
    let name = flags.connection.name.clone().unwrap_or_else(|| "default".into());
    cli::args::Logs {
        cluster: cli::args::Cluster { name },
        follow: flags.follow,
        tail: flags.tail.and_then(|lines| usize::try_from(lines).ok()),
        process: flags.process.clone(),
    }
}

/// The kubeconfig of the cluster, if it runs.
pub fn running(paths: &Paths) -> Option<PathBuf> {
    let file = paths.kubeconfig();
    (file.exists() && lock::holder(&paths.lock("daemon")).is_some()).then_some(file)
}

/// Becomes kubectl.
pub fn kubectl(words: &[OsString]) -> anyhow::Result<ExitCode> {
    let (name, words) = name(words)?;
    let paths = Paths::of(&name)?;
    let Some(kubeconfig) = running(&paths) else {
        bail!(paths.not_running());
    };
    let error =
        std::process::Command::new("kubectl").args(words).env("KUBECONFIG", kubeconfig).exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        bail!(
            "there is no kubectl in PATH; install it (https://kubernetes.io/docs/tasks/tools), or use rootlet's \
             own get, apply, describe, logs, exec, delete, port-forward, wait, run, cp and top"
        );
    }
    Err(error).context("cannot run kubectl")
}

/// The cluster's name, when the words begin with it, and the rest of them.
fn name(words: &[OsString]) -> anyhow::Result<(String, &[OsString])> {
    let given = std::env::var("ROOTLET_NAME").ok().filter(|name| !name.is_empty());
    let text = |word: Option<&OsString>| word.and_then(|word| word.to_str()).map(str::to_owned);
    match text(words.first()) {
        Some(word) if word == "--name" => {
            let name = text(words.get(1)).context("--name wants the name of a cluster")?;
            Ok((name, &words[2..]))
        }
        Some(word) if word.starts_with("--name=") => {
            Ok((word["--name=".len()..].to_owned(), &words[1..]))
        }
        _ => Ok((given.unwrap_or_else(|| "default".into()), words)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_named_before_kubectls_words() {
        let cases = [
            ("--name x get pods", "x", "get pods"),
            ("--name=x get pods", "x", "get pods"),
            ("get pods --name x", "default", "get pods --name x"),
        ];
        for (words, want, rest) in cases {
            let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
            let (name, left) = name(&words).unwrap();
            let left: Vec<&str> = left.iter().filter_map(|word| word.to_str()).collect();
            assert_eq!((name.as_str(), left.join(" ").as_str()), (want, rest));
        }
        assert!(name(&["--name".into()]).is_err());
    }
}
