//! The right word for a wrong command.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue};

use crate::objects::kinds::nearest;

/// kubectl's commands that rootlet has not.
const KUBECTL: [&str; 28] = [
    "annotate",
    "api-resources",
    "api-versions",
    "attach",
    "auth",
    "autoscale",
    "certificate",
    "cluster-info",
    "config",
    "cordon",
    "create",
    "debug",
    "diff",
    "drain",
    "edit",
    "events",
    "explain",
    "expose",
    "label",
    "patch",
    "plugin",
    "proxy",
    "replace",
    "rollout",
    "scale",
    "set",
    "taint",
    "uncordon",
];

/// What others call it: k3s, kind, minikube, k3d, docker, podman.
const OTHERS: [(&str, &str); 20] = [
    ("start", "up"),
    ("server", "up"),
    ("stop", "down"),
    ("pause", "down"),
    ("destroy", "delete"),
    ("rm", "delete"),
    ("remove", "delete"),
    ("list", "status"),
    ("ls", "status"),
    ("info", "status"),
    ("ps", "get pods"),
    ("images", "image ls"),
    ("pull", "image pull"),
    ("load", "image load"),
    ("import", "image load"),
    ("ssh", "enter"),
    ("shell", "enter"),
    ("dashboard", "ui"),
    ("upgrade", "up --upgrade"),
    ("install", "service install"),
];

/// Names the command that was meant: letters that changed places, another program's word, one of kubectl's.
pub fn command(mut error: clap::Error, names: &[String]) -> clap::Error {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return error;
    };
    // A subcommand's own subcommands are clap's to suggest.
    let first = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    if first.as_ref() != Some(word) {
        return error;
    }
    let word = word.clone();
    let known = names.iter().map(String::as_str).chain(KUBECTL);
    let tip = match OTHERS.iter().find(|(theirs, _)| *theirs == word) {
        Some((_, ours)) => format!("it is `rootlet {ours}` here"),
        None => match nearest(&word, known) {
            Some(theirs) if KUBECTL.contains(&theirs) => {
                format!("kubectl has that, and `rootlet kubectl {theirs} …` hands over to kubectl")
            }
            Some(meant) => format!("a similar subcommand exists: '{meant}'"),
            None => return error,
        },
    };
    error.insert(ContextKind::SuggestedSubcommand, ContextValue::None);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
    error
}
