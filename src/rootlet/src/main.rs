//! The executable: it parses the command line, plays one of rootlet's roles, and turns errors into exit
//! codes. Roles that need a process with a single thread are dispatched before anything else.

mod control;
mod daemon;
mod doctor;
mod lock;
mod logging;
mod node;
mod paths;
mod probe;
mod settings;
mod tracer;
mod up;
mod userns;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use cli::args::{Cli, Command, Image};

use crate::control::{Client, Progress};
use crate::paths::Paths;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    if let Some(code) = role(&words) {
        return code;
    }
    match command(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(hint) = hint(&error) {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

/// The roles of re-executed processes; `None` when the words are a user's.
fn role(words: &[&str]) -> Option<ExitCode> {
    let outcome = match words {
        ["shim", ..] => return Some(runtime::shim_main()),
        ["container", ..] => return Some(runtime::container_main()),
        ["node", settings] => userns::enter_new(&["node-inside", settings]).map(drop),
        ["node-inside", settings] => node::run(settings),
        ["daemon", settings, node] => join(node, &["daemon-inside", settings]),
        ["daemon", settings, node, "sweep"] => join(node, &["daemon-inside", settings, "sweep"]),
        ["daemon-inside", settings] => daemon::run(settings),
        ["daemon-inside", settings, "sweep"] => daemon::sweep(settings),
        ["remove", folder] => userns::enter_new(&["remove-inside", folder]).map(drop),
        ["remove-inside", folder] => probe::remove(folder),
        [name @ ("probe-namespaces" | "probe-nftables"), ..] => {
            userns::enter_new(&["probe-inside", name]).map(drop)
        }
        ["probe-overlay", folder] => {
            userns::enter_new(&["probe-inside", "probe-overlay", folder]).map(drop)
        }
        ["probe-inside", rest @ ..] => probe::run(rest),
        _ => return None,
    };
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            userns::report_failure(&error);
            ExitCode::FAILURE
        }
    })
}

fn join(node: &str, arguments: &[&str]) -> anyhow::Result<()> {
    userns::enter_existing(node.parse()?, arguments).map(drop)
}

fn command(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(arguments) => up::up(&arguments)?,
        Command::Status(cluster) => return status(&Paths::of(&cluster.name)?),
        Command::Down(cluster) => {
            let paths = Paths::of(&cluster.name)?;
            if !paths.data.exists() {
                println!("There is no cluster {:?}.", paths.name);
                return Ok(ExitCode::SUCCESS);
            }
            up::down(&paths)?;
            println!(
                "Cluster {:?} is stopped; its data is kept in {}.",
                paths.name,
                paths.data.display()
            );
        }
        Command::Delete(cluster) => {
            let paths = Paths::of(&cluster.name)?;
            up::delete(&paths)?;
            println!("Cluster {:?} is deleted.", paths.name);
        }
        Command::Kubeconfig(cluster) => {
            let paths = Paths::of(&cluster.name)?;
            let access = control::access(&paths)?;
            print!("{}", cli::kubeconfig::standalone(&paths.context(), &access));
        }
        Command::Doctor => {
            let checks = doctor::checks();
            print!("{}", cli::doctor::text(&checks));
            if checks.iter().any(|check| check.level == cli::doctor::Level::Broken) {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Image(command) => image(command)?,
        Command::Trace(arguments) => {
            let paths = Paths::of(&arguments.cluster.name)?;
            let trace = Client::new(&paths).trace(&arguments.namespace, &arguments.pod)?;
            if arguments.output == "json" {
                println!("{}", serde_json::to_string_pretty(&trace)?);
            } else {
                print!("{}", cli::trace::text(&trace));
            }
        }
        Command::Version => println!("rootlet {} (Kubernetes 1.36)", env!("CARGO_PKG_VERSION")),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "rootlet", &mut std::io::stdout());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn status(paths: &Paths) -> anyhow::Result<ExitCode> {
    if lock::holder(&paths.lock("daemon")).is_none() {
        println!("Cluster {:?} is not running.", paths.name);
        return Ok(ExitCode::FAILURE);
    }
    let status = Client::new(paths).status()?;
    println!("cluster  {} (rootlet {}, up {} s)", paths.name, status.version, status.uptime_s);
    println!("api      {}", status.server);
    println!("node     {} {}", status.node, if status.node_ready { "Ready" } else { "NotReady" });
    let pods: Vec<String> =
        status.pods.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
    println!("pods     {}", if pods.is_empty() { "none".into() } else { pods.join(", ") });
    println!("data     {}", paths.data.display());
    Ok(ExitCode::SUCCESS)
}

fn image(command: Image) -> anyhow::Result<()> {
    match command {
        Image::Load { files, cluster } => {
            let client = Client::new(&Paths::of(&cluster.name)?);
            for file in files {
                let file = (file.as_os_str() != "-").then_some(file);
                let images = with_bars(|progress| client.load(file.as_deref(), progress))?;
                tell("Loaded", &images);
            }
        }
        Image::Pull { reference, cluster } => {
            let client = Client::new(&Paths::of(&cluster.name)?);
            let images = with_bars(|progress| client.pull(&reference, progress))?;
            tell("Pulled", &images);
        }
        Image::Ls(cluster) => {
            let images = Client::new(&Paths::of(&cluster.name)?).images()?;
            println!("{:<60} {:<14} {:>10}", "IMAGE", "ID", "SIZE");
            for image in images {
                let id = image.id.trim_start_matches("sha256:");
                let names = if image.tags.is_empty() { &image.digests } else { &image.tags };
                for name in names {
                    println!(
                        "{name:<60} {:<14} {:>10}",
                        id.get(..12).unwrap_or(id),
                        indicatif::DecimalBytes(image.size_bytes).to_string()
                    );
                }
            }
        }
        Image::Rm { reference, cluster } => {
            Client::new(&Paths::of(&cluster.name)?).remove_image(&reference)?;
            println!("Removed {reference}");
        }
    }
    Ok(())
}

fn tell(done: &str, images: &[control::ImageLine]) {
    for image in images {
        let name = image.tags.first().or(image.digests.first()).unwrap_or(&image.id);
        println!("{done} {name}");
    }
}

/// Shows a bar per layer while `work` runs, when standard error is a terminal.
fn with_bars<T>(
    work: impl FnOnce(&mut dyn FnMut(&Progress)) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let bars = indicatif::MultiProgress::new();
    let mut layers: Vec<(String, indicatif::ProgressBar)> = Vec::new();
    let answer = work(&mut |progress| {
        let Progress::Layer { digest, done_bytes, total_bytes } = progress else { return };
        let known = layers.iter().position(|(known, _)| known == digest);
        let index = known.unwrap_or_else(|| {
            let bar = bars.add(indicatif::ProgressBar::new(*total_bytes));
            if let Ok(style) = indicatif::ProgressStyle::with_template(
                "{prefix} {bar:32} {decimal_bytes:>10}/{decimal_total_bytes}",
            ) {
                bar.set_style(style);
            }
            let short = digest.trim_start_matches("sha256:");
            bar.set_prefix(short.get(..12).unwrap_or(short).to_owned());
            layers.push((digest.clone(), bar));
            layers.len() - 1
        });
        layers[index].1.set_position(*done_bytes);
    });
    for (_, bar) in &layers {
        bar.finish_and_clear();
    }
    answer
}

fn hint(error: &anyhow::Error) -> Option<&'static str> {
    let text = format!("{error:#}");
    if text.contains("user namespace") {
        return Some("`rootlet doctor` says what this machine lacks and the command that mends it");
    }
    None
}
