//! `delete`: objects by name, selector or manifest.
//!
//! Source: `k8s.io/kubectl/pkg/cmd/delete/delete.go`.

use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::api::JSON;
use super::apply::DryRun;
use super::error::Error;
use super::kinds::Resource;
use super::manifest::Files;
use super::put;
use super::selection::{Scope, select};
use super::session::{Connection, Session};
use super::wait::{self, Until};

/// Flags of `delete`.
#[derive(Args, Clone, Debug)]
pub struct Delete {
    /// What to delete: `pod NAME…`, `pod/NAME svc/NAME`, or types with -l or --all. With nothing at all, the
    /// whole cluster that --name names.
    #[arg(value_name = "TYPE [NAME…]")]
    pub what: Vec<String>,
    /// Objects named in manifests.
    #[command(flatten)]
    pub files: Files,
    /// All objects of the types.
    #[arg(long)]
    pub all: bool,
    /// Which of them.
    #[command(flatten)]
    pub scope: Scope,
    /// Seconds that pods have to end; negative leaves it to them.
    #[arg(long, value_name = "SECONDS", default_value_t = -1, allow_negative_numbers = true, hide_default_value = true)]
    pub grace_period: i64,
    /// Delete at once, without waiting for what runs to end.
    #[arg(long)]
    pub force: bool,
    /// Give pods a second to end.
    #[arg(long)]
    pub now: bool,
    /// What to do with dependants: background, foreground or orphan.
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_value = "background", default_missing_value = "background")]
    pub cascade: String,
    /// What does not exist is no error [default: true with --all].
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Wait until the objects are gone.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub wait: bool,
    /// Wait no longer than this; 0 is as long as it takes.
    #[arg(long, value_name = "DURATION", default_value = "0s", hide_default_value = true)]
    pub timeout: String,
    /// Only say what would be done: `client`, or `server`, which checks it as well.
    #[arg(long, value_name = "WHERE", num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "client", hide_default_value = true, value_parser = DryRun::parse)]
    pub dry_run: DryRun,
    /// `name` prints names alone.
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true, value_parser = ["", "name"], hide_possible_values = true)]
    pub output: String,
    /// Which cluster.
    #[command(flatten)]
    pub connection: Connection,
}

impl Delete {
    /// Whether the whole cluster is meant: no word and no flag that speaks of objects.
    pub fn is_of_cluster(&self) -> bool {
        let Self { what, files, connection, .. } = self;
        let objects = !what.is_empty()
            || !files.is_empty()
            || files.recursive
            || self.all
            || self.scope.all_namespaces
            || self.scope.is_selective()
            || self.force
            || self.now
            || self.ignore_not_found
            || !self.wait
            || self.grace_period >= 0
            || self.dry_run != DryRun::None
            || !self.output.is_empty();
        let named = connection.namespace.is_some()
            || connection.kubeconfig.is_some()
            || connection.context.is_some()
            || connection.server.is_some();
        !objects && !named
    }
}

/// One object to delete.
struct Doomed {
    resource: Resource,
    namespace: Option<String>,
    name: String,
    source: Option<String>,
}

/// Carries the command out.
pub async fn run(session: &Session, flags: &Delete) -> Result<(), Error> {
    check(flags)?;
    let timeout = wait::timeout(&flags.timeout)?;
    let mut errors = Vec::new();
    let doomed = find(session, flags, &mut errors).await?;
    if doomed.is_empty() && errors.is_empty() {
        put("No resources found\n")?;
        return Ok(());
    }
    if flags.force && flags.grace_period <= 0 {
        eprintln!(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely."
        );
    }
    let mut going = Vec::new();
    for one in doomed {
        match delete(session, flags, &one).await {
            Ok(Some(uid)) => going.push((one, uid)),
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
    }
    if flags.wait && flags.dry_run == DryRun::None {
        for (one, uid) in going {
            let namespace = one.namespace.as_deref();
            if let Err(error) =
                gone(session, &one.resource, namespace, &one.name, &uid, timeout).await
            {
                errors.push(error);
            }
        }
    }
    Error::all(errors)
}

fn check(flags: &Delete) -> Result<(), Error> {
    let named = flags.what.len() > 1 || flags.what.iter().any(|word| word.contains('/'));
    let wrong = |text: &str| Err(Error::wrong(text));
    if flags.what.is_empty() && flags.files.is_empty() {
        return wrong(
            "at least one resource must be specified, such as `rootlet delete pod NAME` or `rootlet delete -f FILE`",
        );
    }
    if !flags.files.is_empty() && !flags.what.is_empty() {
        return wrong(
            "when paths, URLs, or stdin is provided as input, you may not specify resource arguments as well",
        );
    }
    if flags.files.is_empty() && !named && !flags.all && !flags.scope.is_selective() {
        return wrong("resource(s) were provided, but no name was specified");
    }
    if named && (flags.all || flags.scope.is_selective()) {
        return wrong("name cannot be provided when a selector is specified");
    }
    if flags.all && !flags.scope.labels.selector.is_empty() {
        return wrong("setting 'all' parameter but found a non empty selector. ");
    }
    if flags.now && flags.grace_period >= 0 {
        return wrong("--now and --grace-period cannot be specified together");
    }
    if flags.force && flags.grace_period > 0 {
        return wrong("--force and --grace-period greater than 0 cannot be specified together");
    }
    Ok(())
}

async fn find(
    session: &Session,
    flags: &Delete,
    errors: &mut Vec<Error>,
) -> Result<Vec<Doomed>, Error> {
    let mut doomed = Vec::new();
    if !flags.files.is_empty() {
        let (documents, broken) = flags.files.read().await?;
        errors.extend(broken);
        for mut document in documents {
            let found = async {
                let resource = document.resource(session).await?.clone();
                let namespace = document.settle(&resource, session)?;
                let name = document.name()?.to_owned();
                Ok(Doomed { resource, namespace, name, source: Some(document.source.clone()) })
            };
            match found.await {
                Ok(one) => doomed.push(one),
                Err(error) => errors.push(error),
            }
        }
        return Ok(doomed);
    }
    for one in select(session.kinds().await?, &flags.what)? {
        if let Some(name) = one.name {
            let namespace = one.resource.namespaced.then(|| session.namespace.clone());
            if session.namespace_given && !one.resource.namespaced {
                eprintln!(
                    "Warning: deleting cluster-scoped resources, not scoped to the provided namespace"
                );
            }
            doomed.push(Doomed { resource: one.resource, namespace, name, source: None });
            continue;
        }
        let (namespace, query) = (flags.scope.namespace(session), flags.scope.query());
        let path = format!("{}{}", one.resource.path(namespace, ""), query.text());
        let list = session.api.get(&path).await?;
        for item in list["items"].as_array().into_iter().flatten() {
            let text = |field: &str| item["metadata"][field].as_str().map(str::to_owned);
            doomed.push(Doomed {
                resource: one.resource.clone(),
                namespace: text("namespace"),
                name: text("name").unwrap_or_default(),
                source: None,
            });
        }
    }
    Ok(doomed)
}

/// Deletes one object; its uid when it may still be there.
async fn delete(session: &Session, flags: &Delete, one: &Doomed) -> Result<Option<String>, Error> {
    let path = one.resource.path(one.namespace.as_deref(), &one.name);
    let answer = if flags.dry_run == DryRun::Client {
        session.api.get(&path).await
    } else {
        let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy(&flags.cascade)?});
        if let Some(seconds) = grace(flags) {
            options["gracePeriodSeconds"] = seconds.into();
        }
        if flags.dry_run == DryRun::Server {
            options["dryRun"] = json!(["All"]);
        }
        let body = (JSON, options.to_string().into_bytes());
        session.api.json(Method::DELETE, &path, JSON, Some(body)).await
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) if error.is_not_found() && (flags.ignore_not_found || flags.all) => {
            return Ok(None);
        }
        Err(error) => {
            return Err(match &one.source {
                Some(source) => error.when("deleting", source),
                None => error,
            });
        }
    };
    tell(flags, one)?;
    let uid = answer["details"]["uid"].as_str().or_else(|| uid(&answer));
    Ok(Some(uid.unwrap_or_default().to_owned()))
}

fn tell(flags: &Delete, one: &Doomed) -> Result<(), Error> {
    if flags.output == "name" {
        return put(&format!("{}/{}\n", one.resource.word(), one.name));
    }
    let how = if grace(flags) == Some(0) { "force deleted" } else { "deleted" };
    let place = one.namespace.as_ref().map(|n| format!(" from {n} namespace")).unwrap_or_default();
    let suffix = flags.dry_run.suffix();
    put(&format!("{} {:?} {how}{place}{suffix}\n", one.resource.word(), one.name))
}

/// Seconds to end, if they are not left to the object.
fn grace(flags: &Delete) -> Option<i64> {
    if flags.now {
        return Some(1);
    }
    match flags.grace_period {
        seconds if seconds < 0 => flags.force.then_some(0),
        // Without --force nothing is torn away by accident.
        0 if !flags.force => Some(1),
        seconds => Some(seconds),
    }
}

/// The server's word for a value of `--cascade`.
pub fn policy(cascade: &str) -> Result<&'static str, Error> {
    match cascade {
        "background" | "true" => Ok("Background"),
        "foreground" => Ok("Foreground"),
        "orphan" | "false" => Ok("Orphan"),
        other => Err(Error::Wrong(format!(
            "invalid cascade value ({other}). Must be \"background\", \"foreground\", or \"orphan\""
        ))),
    }
}

/// The uid of an object.
pub fn uid(object: &Value) -> Option<&str> {
    object["metadata"]["uid"].as_str()
}

/// Waits until the object with this uid is gone; another of its name does not count.
pub async fn gone(
    session: &Session,
    resource: &Resource,
    namespace: Option<&str>,
    name: &str,
    uid: &str,
    timeout: Option<Duration>,
) -> Result<(), Error> {
    let until = Until { session, resource, namespace, name, timeout };
    let check = |object: Option<&Value>| {
        Ok(object
            .is_none_or(|object| !uid.is_empty() && self::uid(object) != Some(uid))
            .then_some(()))
    };
    match until.holds(check).await? {
        Some(()) => Ok(()),
        None => Err(Error::wrong(format!(
            "timed out waiting for the condition on {}/{name}",
            resource.plural
        ))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        delete: Delete,
    }

    fn read(words: &str) -> Delete {
        Line::try_parse_from(std::iter::once("delete").chain(words.split_whitespace()))
            .unwrap()
            .delete
    }

    #[test]
    fn a_cluster_is_deleted_only_when_nothing_else_is_said() {
        let cases = [
            ("", true),
            ("--name x", true),
            ("pod", false),
            ("pod a", false),
            ("-f x.yaml", false),
            ("--all", false),
            ("-n default", false),
            ("-l app=x", false),
            ("-A", false),
            ("--force", false),
            ("--grace-period 0", false),
            ("--dry-run=client", false),
            ("--ignore-not-found", false),
        ];
        for (words, want) in cases {
            assert_eq!(read(words).is_of_cluster(), want, "{words}");
        }
    }

    #[test]
    fn grace_is_as_kubectl_has_it() {
        let cases = [
            ("pod a", None),
            ("pod a --grace-period=0", Some(1)),
            ("pod a --force", Some(0)),
            ("pod a --force --grace-period=0", Some(0)),
            ("pod a --now", Some(1)),
            ("pod a --grace-period=5", Some(5)),
        ];
        for (words, want) in cases {
            assert_eq!(grace(&read(words)), want, "{words}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for (words, want) in [
            ("pod", "error: resource(s) were provided, but no name was specified\n"),
            ("pod a -l x=y", "error: name cannot be provided when a selector is specified\n"),
            (
                "pod a --now --grace-period=3",
                "error: --now and --grace-period cannot be specified together\n",
            ),
            (
                "pod a --force --grace-period=3",
                "error: --force and --grace-period greater than 0 cannot be specified together\n",
            ),
        ] {
            assert_eq!(check(&read(words)).unwrap_err().text(), want);
        }
    }
}
