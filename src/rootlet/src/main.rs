//! The executable: it parses the command line, plays one of rootlet's roles, and turns errors into exit
//! codes. Roles that need a process with a single thread are dispatched before anything else.

#[macro_use]
mod output;

mod agent;
mod audit;
mod bench;
mod build;
mod bus;
mod candidates;
mod ci;
mod cni;
mod control;
mod cri;
mod daemon;
mod dial;
mod doctor;
mod engine;
mod enter;
mod foreground;
mod host_ports;
mod image;
mod lock;
mod logging;
mod logind;
mod logs;
mod manifests;
mod member;
mod mend;
mod node;
mod objects;
mod paths;
mod plugins;
mod probe;
mod scope;
mod service;
mod settings;
mod snapshot;
mod status;
mod sys;
mod tracer;
mod ui;
mod up;
mod userns;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use cli::args::{Cli, Command};
use cli::objects::Objects;
use nix::sys::signal::Signal;

use crate::control::Client;
use crate::paths::Paths;

#[global_allocator]
static ALLOCATOR: sys::Allocator = sys::Allocator;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    if let Some(code) = role(&words) {
        return code;
    }
    end_with_the_reader();
    let cli = parse(&words);
    if cli.quiet {
        output::be_quiet();
    }
    match command(cli.command) {
        Ok(code) => code,
        Err(error) => tell(&error),
    }
}

/// What a shell reports of a program that SIGPIPE ended.
const BROKEN_PIPE: i32 = 128 + Signal::SIGPIPE as i32;

/// `rootlet … | head -1` ends without a word, as programs do that SIGPIPE ends. That signal itself stays
/// ignored: sockets would raise it as well.
fn end_with_the_reader() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if text.starts_with("failed printing to std") && text.contains("Broken pipe") {
            std::process::exit(BROKEN_PIPE);
        }
        before(panic);
    }));
}

/// The command line; what is wrong with it is told with what would be right, and ends the process with code 2.
fn parse(words: &[&str]) -> Cli {
    cli::args::read().unwrap_or_else(|error| {
        if error.kind() == clap::error::ErrorKind::InvalidSubcommand
            && let ["image", "build", ..] = words
        {
            eprintln!(
                "error: rootlet runs images and does not build them\n\
                 hint: buildah builds them without root: buildah build -t app:1 . && \
                 buildah push app:1 docker-archive:app.tar:app:1 && rootlet image load app.tar"
            );
            std::process::exit(2);
        }
        error.exit()
    })
}

fn tell(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    if let Some(hint) = hint(error) {
        eprintln!("hint: {hint}");
    }
    ExitCode::FAILURE
}

/// The end of a role that the user started and looks at.
fn foreground(outcome: anyhow::Result<()>) -> ExitCode {
    outcome.map_or_else(|error| tell(&error), |()| ExitCode::SUCCESS)
}

/// The roles of re-executed processes; `None` when the words are a user's.
fn role(words: &[&str]) -> Option<ExitCode> {
    let outcome = match words {
        ["shim", ..] => return Some(runtime::shim_main()),
        ["container", ..] => return Some(runtime::container_main()),
        ["node", settings] => userns::enter_new(&["node-inside", settings]).map(drop),
        ["node-inside", settings] => node::run(settings, None),
        ["node-inside", settings, namespace] => node::run(settings, Some(namespace)),
        ["daemon", settings, node] => join(node, &["daemon-inside", settings]),
        ["daemon", settings, node, "sweep"] => join(node, &["daemon-inside", settings, "sweep"]),
        ["daemon-inside", settings] => daemon::run(settings),
        ["daemon-inside", settings, "sweep"] => daemon::sweep(settings),
        ["agent-inside", order] => return Some(foreground(agent::run(order))),
        ["cri-inside", order] => return Some(foreground(cri::run(order))),
        // The CNI specification calls a plugin without arguments, by the name of its file.
        ["cni"] => return Some(cni::run()),
        ["guard", name] => ci::guard(name),
        ["remove", folder] => userns::enter_new(&["remove-inside", folder]).map(drop),
        ["remove-inside", folder] => probe::remove(folder),
        [name @ ("probe-namespaces" | "probe-nftables" | "probe-proc"), ..] => {
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
        Command::Status(arguments) => return status::status(&arguments),
        Command::Down(cluster) => {
            let paths = Paths::of(&cluster.name)?;
            if !paths.data.exists() {
                say!("There is no cluster {:?}.", paths.name);
                return Ok(ExitCode::SUCCESS);
            }
            let held = up::hold(&paths)?;
            up::down(&paths)?;
            drop(held);
            say!(
                "Cluster {:?} is stopped; its data is kept in {}.",
                paths.name,
                paths.data.display()
            );
        }
        Command::Objects(Objects::Delete(flags)) if flags.is_of_cluster() => {
            let paths = Paths::of(flags.connection.name.as_deref().unwrap_or("default"))?;
            let known = paths.data.exists();
            let held = up::hold(&paths)?;
            up::delete(&paths)?;
            drop(held);
            if known {
                say!("Cluster {:?} is deleted.", paths.name);
            } else {
                say!("There is no cluster {:?}.", paths.name);
            }
        }
        Command::Objects(Objects::Logs(flags)) if flags.is_of_process() => {
            logs::logs(&objects::process_log(&flags))?;
        }
        Command::Objects(command) => return objects::run(&command),
        Command::Kubectl { words } => return objects::kubectl(&words),
        Command::Kustomize { folder } => return objects::kustomize(&folder),
        Command::Kubeconfig(cluster) => {
            let paths = Paths::of(&cluster.name)?;
            let access = control::access(&paths)?;
            print!("{}", cli::kubeconfig::standalone(&paths.context(), &access));
        }
        Command::Doctor(arguments) => return doctor::doctor(&arguments),
        Command::Service(command) => return service::service(&command),
        Command::Image(command) => return image::image(command),
        Command::Snapshot(command) => snapshot::snapshot(&command)?,
        Command::Trace(arguments) => {
            let paths = Paths::of(&arguments.cluster.name)?;
            let trace = Client::new(&paths).trace(&arguments.namespace, &arguments.pod)?;
            match arguments.output.as_str() {
                "json" => println!("{}", serde_json::to_string_pretty(&trace)?),
                "html" => print!("{}", cli::waterfall::html(&trace)),
                _ => print!("{}", cli::trace::text(&trace)),
            }
        }
        Command::Ui(arguments) => return ui::ui(&arguments),
        Command::Why(arguments) => return objects::why(&arguments),
        Command::Enter(arguments) => match enter::enter(&arguments)? {},
        Command::Ci(arguments) => return Ok(ci::run(&arguments)),
        Command::Agent(arguments) => match agent::agent(&arguments)? {},
        Command::Cri(arguments) => match cri::cri(&arguments)? {},
        Command::Bench(command) => bench::bench(&command)?,
        Command::Cni => return Ok(cni::run()),
        Command::Version { output } if output == "json" => {
            println!("{}", serde_json::json!({"version": build::VERSION, "kubernetes": "1.36"}));
        }
        Command::Version { .. } => println!("rootlet {} (Kubernetes 1.36)", build::VERSION),
        Command::Man { folder: Some(folder), .. } => manual(&folder)?,
        Command::Man { .. } => print!("{}", cli::reference::markdown(Cli::command())),
        Command::Candidates { words } => candidates::print(&words),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut cli::args::definition(), "rootlet", &mut script);
            let script = String::from_utf8_lossy(&script);
            match shell {
                clap_complete::Shell::Bash => print!("{script}{}", candidates::BASH),
                clap_complete::Shell::Fish => print!("{script}{}", candidates::FISH),
                clap_complete::Shell::Zsh => print!("{}", candidates::zsh(&script)),
                _ => print!("{script}"),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn manual(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    for (name, text) in cli::reference::manual(Cli::command(), build::VERSION) {
        let file = folder.join(name);
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn hint(error: &anyhow::Error) -> Option<&'static str> {
    let text = format!("{error:#}");
    if text.contains("user namespace") {
        return Some("`rootlet doctor` says what this machine lacks and the command that mends it");
    }
    None
}
