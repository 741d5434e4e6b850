//! `rootlet enter`: a command among the pods, as nsenter would run it on a node.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

use crate::paths::Paths;
use crate::{lock, userns};

/// Becomes the command.
pub fn enter(arguments: &cli::args::Enter) -> anyhow::Result<std::convert::Infallible> {
    let paths = Paths::of(&arguments.cluster.name)?;
    let Some(node) = lock::holder(&paths.lock("node")) else { bail!(paths.not_running()) };
    // A process with other threads may not join a user namespace: this runtime has none.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let network = runtime
        .block_on(async { netns::Control::connect(paths.node_socket()).await?.node_netns().await });
    drop(runtime);
    let network = network.context("cannot get hold of the node's network")?;
    let mut command = match arguments.command.split_first() {
        Some((program, rest)) => {
            let mut command = Command::new(program);
            command.args(rest);
            command
        }
        None => Command::new(
            std::env::var_os("SHELL")
                .filter(|shell| !shell.is_empty())
                .map_or_else(|| "/bin/sh".into(), PathBuf::from),
        ),
    };
    userns::execute(node, network, &mut command)
}
