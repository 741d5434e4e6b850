//! The commands' words, and who carries them out.

use std::path::Path;

use clap::Subcommand;

use super::apply::Apply;
use super::cp::Cp;
use super::delete::Delete;
use super::describe::Describe;
use super::error::Error;
use super::exec::Exec;
use super::get::Get;
use super::logs::Logs;
use super::port_forward::PortForward;
use super::run::Run;
use super::session::{Connection, Session};
use super::top::Top;
use super::wait::Wait;
use super::{apply, cp, delete, describe, exec, get, logs, port_forward, run, top, wait};

/// Commands on objects, kubectl's own.
#[derive(Debug, Subcommand)]
pub enum Objects {
    /// Show objects.
    #[command(after_help = "Examples:
  rootlet get pods                           those of the namespace, as a table
  rootlet get pods,services -A -o wide       of all namespaces, with more columns
  rootlet get deployment/web -o yaml
  rootlet get pods -l app=web -w             and go on to tell what changes
  rootlet get pod web-0 -o jsonpath='{.status.podIP}'
  rootlet get nodes -o custom-columns=NAME:.metadata.name,CPU:.status.capacity.cpu")]
    Get(Box<Get>),
    /// Make objects what manifests say.
    #[command(after_help = "Examples:
  rootlet apply -f app.yaml
  rootlet apply -R -f deploy/                folders and all below them
  cat app.yaml | rootlet apply -f -
  rootlet apply -f app.yaml --server-side --force-conflicts
  rootlet apply -f app.yaml --dry-run=server -o yaml")]
    Apply(Box<Apply>),
    /// Delete objects; without any, the whole cluster with all its data.
    #[command(after_help = "Examples:
  rootlet delete pod web-0                   objects, as kubectl does
  rootlet delete -f app.yaml --ignore-not-found
  rootlet delete pods,services -l app=web
  rootlet delete pod web-0 --now
  rootlet delete                             the cluster itself
  rootlet delete --name test                 another cluster")]
    Delete(Box<Delete>),
    /// Tell of objects, what belongs to them and what happened to them.
    #[command(after_help = "Examples:
  rootlet describe pod web-0
  rootlet describe node
  rootlet describe pods -l app=web")]
    Describe(Box<Describe>),
    /// Print what containers wrote; without a pod, what the cluster's own processes wrote.
    #[command(after_help = "Examples:
  rootlet logs web-0
  rootlet logs -f deployment/web -c app --tail 20
  rootlet logs -l app=web --all-containers --prefix
  rootlet logs web-0 --previous
  rootlet logs --tail 20                     the daemon's own
  rootlet logs -f --process node")]
    Logs(Box<Logs>),
    /// Run a command in a container.
    #[command(after_help = "Examples:
  rootlet exec web-0 -- date
  rootlet exec -it deployment/web -c app -- sh
The exit code is the command's.")]
    Exec(Box<Exec>),
    /// Wait until objects have a condition, exist, or are gone.
    #[command(after_help = "Examples:
  rootlet wait --for=condition=Ready pod/web-0 --timeout=60s
  rootlet wait --for=condition=Available deployment --all
  rootlet wait --for=jsonpath='{.status.phase}'=Running pod/web-0
  rootlet wait --for=delete pod -l app=web")]
    Wait(Box<Wait>),
    /// Run an image in a pod.
    #[command(after_help = "Examples:
  rootlet run hello --image busybox --restart Never -- echo hello
  rootlet run shell --image busybox --restart Never --rm -it -- sh
  rootlet run web --image nginx --port 80 --expose
  rootlet run web --image nginx --dry-run=client -o yaml > web.yaml")]
    Run(Box<Run>),
    /// Copy files into or out of a container, which must have tar.
    #[command(after_help = "Examples:
  rootlet cp ./site web-0:/srv
  rootlet cp shop/web-0:/var/log/app.log app.log -c app")]
    Cp(Box<Cp>),
    /// Lead ports of this machine into a pod.
    #[command(after_help = "Examples:
  rootlet port-forward pod/web-0 8080:80
  rootlet port-forward service/web :80       a free port of this machine
  rootlet port-forward deployment/web 8080:http --address 0.0.0.0")]
    PortForward(Box<PortForward>),
    /// Show what nodes and pods use.
    #[command(after_help = "Examples:
  rootlet top node
  rootlet top pod -A --sort-by memory
  rootlet top pod web-0 --containers")]
    Top(Box<Top>),
}

impl Objects {
    /// Which cluster the command is about.
    pub fn connection(&self) -> &Connection {
        match self {
            Self::Get(flags) => &flags.connection,
            Self::Apply(flags) => &flags.connection,
            Self::Delete(flags) => &flags.connection,
            Self::Describe(flags) => &flags.connection,
            Self::Logs(flags) => &flags.connection,
            Self::Exec(flags) => &flags.connection,
            Self::Wait(flags) => &flags.connection,
            Self::Run(flags) => &flags.connection,
            Self::Cp(flags) => &flags.connection,
            Self::PortForward(flags) => &flags.connection,
            Self::Top(flags) => flags.connection(),
        }
    }

    /// Carries the command out; `own` is the kubeconfig of a cluster of rootlet's that runs.
    pub async fn run(&self, own: Option<&Path>) -> Result<(), Error> {
        let session = Session::open(self.connection(), own).await?;
        match self {
            Self::Get(flags) => get::run(&session, flags).await,
            Self::Apply(flags) => apply::run(&session, flags).await,
            Self::Delete(flags) => delete::run(&session, flags).await,
            Self::Describe(flags) => describe::run(&session, flags).await,
            Self::Logs(flags) => logs::run(&session, flags).await,
            Self::Exec(flags) => exec::run(&session, flags).await,
            Self::Wait(flags) => wait::run(&session, flags).await,
            Self::Run(flags) => run::run(&session, flags).await,
            Self::Cp(flags) => cp::run(&session, flags).await,
            Self::PortForward(flags) => port_forward::run(&session, flags).await,
            Self::Top(flags) => top::run(&session, flags).await,
        }
    }
}
