//! Lifecycle hooks: postStart and preStop.
//!
//! Source of behaviour: `pkg/kubelet/lifecycle/handlers.go`.

use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler};

use crate::context::Context;
use crate::probe::http;

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command ended with an error.
    #[error("command {command:?} exited with {code}: {output}")]
    Exit {
        /// The command.
        command: Vec<String>,
        /// Its exit code.
        code: i32,
        /// What it wrote.
        output: String,
    },
    /// The command could not be run.
    #[error(transparent)]
    Runtime(#[from] crate::cri::Error),
    /// The request failed.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// The port is none of the container's.
    #[error("couldn't find port for the hook's request")]
    Port,
    /// It says to do nothing that hooks can do, such as to open a connection.
    #[error("invalid handler: {0:?}")]
    Handler(LifecycleHandler),
}

/// Runs a hook in, or against, the container with this id.
pub async fn run(
    context: &Context,
    container: &Container,
    id: &str,
    pod_ip: &str,
    hook: &LifecycleHandler,
) -> Result<(), Error> {
    if let Some(action) = &hook.exec {
        let command = action.command.clone().unwrap_or_default();
        let request =
            cri::ExecSyncRequest { container_id: id.to_owned(), cmd: command.clone(), timeout: 0 };
        let answer = context.cri.exec_sync(request).await?;
        if answer.exit_code != 0 {
            let mut output = answer.stdout;
            output.extend(answer.stderr);
            output.truncate(1024);
            return Err(Error::Exit {
                command,
                code: answer.exit_code,
                output: String::from_utf8_lossy(&output).into_owned(),
            });
        }
        return Ok(());
    }
    if let Some(action) = &hook.http_get {
        let port = crate::probe::port(&action.port, container).ok_or(Error::Port)?;
        let get = async |action: &HTTPGetAction| {
            let limit = Duration::from_secs(30);
            http::get(context, action, pod_ip, port, "kube-lifecycle/1.36", limit).await
        };
        match get(action).await {
            // Before 1.27 hooks had HTTP whatever they asked for, and some still count on it.
            Err(error) if error.is_plain_answer() => {
                let plain = HTTPGetAction { scheme: Some("HTTP".into()), ..action.clone() };
                get(&plain).await?;
            }
            answer => drop(answer?),
        }
        return Ok(());
    }
    let Some(action) = &hook.sleep else { return Err(Error::Handler(hook.clone())) };
    tokio::time::sleep(Duration::from_secs(action.seconds.max(0) as u64)).await;
    Ok(())
}
