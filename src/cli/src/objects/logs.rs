//! `logs`: what containers wrote.
//!
//! Source: `k8s.io/kubectl/pkg/cmd/logs/logs.go`, `pkg/polymorphichelpers/logsforobject.go`.

use std::time::Duration;

use clap::Args;
use futures::AsyncBufReadExt;
use futures::future::try_join_all;
use serde_json::Value;

use super::error::Error;
use super::pods::{self, LISTS, meta, names};
use super::selection::{Labels, Query};
use super::session::{Connection, Session};
use super::{put_bytes, wait};

/// Lines of each container when a selector chose it.
const SELECTED_TAIL: i64 = 10;

/// Flags of `logs`.
#[derive(Args, Clone, Debug)]
pub struct Logs {
    /// The pod, or something that has pods, such as deployment/web; and the container.
    #[arg(value_name = "POD | TYPE/NAME", num_args = 0..=2)]
    pub what: Vec<String>,
    /// With no pod at all, the cluster's own log: that of the `daemon` has the control plane, the kubelet and the
    /// runtime, that of the `node` the network.
    #[arg(long, value_name = "PROCESS", default_value = "daemon", value_parser = ["daemon", "node"])]
    pub process: String,
    /// The container.
    #[arg(short, long, value_name = "CONTAINER", default_value = "", hide_default_value = true)]
    pub container: String,
    /// Go on with what is written.
    #[arg(short, long)]
    pub follow: bool,
    /// Of the container that ran before this one.
    #[arg(short, long)]
    pub previous: bool,
    /// Of all the pod's containers.
    #[arg(long)]
    pub all_containers: bool,
    /// Of all the pods of TYPE/NAME.
    #[arg(long)]
    pub all_pods: bool,
    /// By labels.
    #[command(flatten)]
    pub labels: Labels,
    /// The last so many lines [default: all, or 10 with a selector].
    #[arg(long, value_name = "LINES", allow_negative_numbers = true)]
    pub tail: Option<i64>,
    /// What is not older than this, such as 5m.
    #[arg(long, value_name = "DURATION", default_value = "", hide_default_value = true)]
    pub since: String,
    /// What was written after this time (RFC 3339).
    #[arg(long, value_name = "TIME", default_value = "", hide_default_value = true)]
    pub since_time: String,
    /// The time of each line before it.
    #[arg(long)]
    pub timestamps: bool,
    /// Pod and container before each line.
    #[arg(long)]
    pub prefix: bool,
    /// So many bytes at most.
    #[arg(long, value_name = "BYTES")]
    pub limit_bytes: Option<u64>,
    /// Go on when one of several logs cannot be read.
    #[arg(long)]
    pub ignore_errors: bool,
    /// How many logs may be followed at once.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub max_log_requests: usize,
    /// How long to wait for a pod to be there.
    #[arg(long, value_name = "DURATION", default_value = "20s")]
    pub pod_running_timeout: String,
    /// Let the API server believe any kubelet.
    #[arg(long)]
    pub insecure_skip_tls_verify_backend: bool,
    /// Which cluster.
    #[command(flatten)]
    pub connection: Connection,
}

impl Logs {
    /// Whether the cluster's own log is meant: no word and no flag that speaks of pods.
    pub fn is_of_process(&self) -> bool {
        let Self { what, labels, container, connection, .. } = self;
        let pods = !what.is_empty()
            || !labels.selector.is_empty()
            || !container.is_empty()
            || self.previous
            || self.all_pods
            || self.all_containers;
        !pods && connection.namespace.is_none() && connection.kubeconfig.is_none()
    }
}

/// One container's log.
struct Log {
    path: String,
    prefix: String,
}

/// Carries the command out.
pub async fn run(session: &Session, flags: &Logs) -> Result<(), Error> {
    let query = query(flags)?;
    let logs = find(session, flags, &query).await?;
    if flags.follow && logs.len() > 1 {
        if logs.len() > flags.max_log_requests {
            return Err(Error::Wrong(format!(
                "you are attempting to follow {} log streams, but maximum allowed concurrency is {}, use --max-log-requests to increase the limit",
                logs.len(),
                flags.max_log_requests
            )));
        }
        try_join_all(logs.iter().map(|log| copy(session, flags, log))).await?;
        return Ok(());
    }
    for log in &logs {
        copy(session, flags, log).await?;
    }
    Ok(())
}

fn query(flags: &Logs) -> Result<Query, Error> {
    if !flags.since.is_empty() && !flags.since_time.is_empty() {
        return Err(Error::wrong("at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if flags.tail.is_some_and(|lines| lines < -1) {
        return Err(Error::wrong("--tail must be greater than or equal to -1"));
    }
    if flags.all_containers && !flags.container.is_empty() {
        return Err(Error::wrong(
            "--all-containers=true should not be specified with container name ",
        ));
    }
    if flags.follow && flags.previous {
        return Err(Error::wrong("only one of follow (-f) or previous (-p) is allowed"));
    }
    let since = match flags.since.as_str() {
        "" => String::new(),
        text => {
            let time = apimachinery::time::duration(text).ok_or_else(|| {
                Error::Wrong(format!("invalid argument {text:?} for \"--since\" flag: time: invalid duration {text:?}"))
            })?;
            // A part of a second counts as one: nought would be all.
            time.as_secs_f64().ceil().to_string()
        }
    };
    if !flags.since_time.is_empty() {
        apimachinery::time::parse(&flags.since_time).map_err(Error::Wrong)?;
    }
    let tail = match flags.tail {
        None if !flags.labels.selector.is_empty() => SELECTED_TAIL.to_string(),
        None | Some(-1) => String::new(),
        Some(lines) => lines.to_string(),
    };
    Ok(Query::default()
        .flag("follow", flags.follow)
        .flag("previous", flags.previous)
        .flag("timestamps", flags.timestamps)
        .flag("insecureSkipTLSVerifyBackend", flags.insecure_skip_tls_verify_backend)
        .with("sinceSeconds", &since)
        .with("sinceTime", &flags.since_time)
        .with("tailLines", &tail)
        .with("limitBytes", &flags.limit_bytes.map(|n| n.to_string()).unwrap_or_default()))
}

async fn find(session: &Session, flags: &Logs, query: &Query) -> Result<Vec<Log>, Error> {
    let wrong = |text: &str| Err(Error::wrong(text));
    let mut given = flags.container.clone();
    let pods = match flags.what.as_slice() {
        [] if flags.labels.selector.is_empty() => {
            return wrong(
                "expected 'logs [-f] [-p] (POD | TYPE/NAME) [-c CONTAINER]'.\nPOD or TYPE/NAME is a required argument for the logs command",
            );
        }
        [] => {
            let pods =
                pods::listed(session, Some(&session.namespace), &flags.labels.selector).await?;
            if pods.is_empty() {
                eprintln!("No resources found in {} namespace.", session.namespace);
            }
            pods
        }
        [_, ..] if !flags.labels.selector.is_empty() => {
            return wrong("only a selector (-l) or a POD name is allowed");
        }
        [word, rest @ ..] => {
            if let [name] = rest {
                if !given.is_empty() {
                    return wrong("only one of -c or an inline [CONTAINER] arg is allowed");
                }
                given.clone_from(name);
            }
            let patience = wait::timeout(&flags.pod_running_timeout)?.unwrap_or(Duration::ZERO);
            if flags.all_pods {
                let object = pods::object(session, word).await?;
                pods::of(session, &object).await?
            } else {
                vec![
                    pods::find(session, word, patience, true)
                        .await
                        .map_err(|e| absent(e, session))?,
                ]
            }
        }
    };
    let mut logs = Vec::new();
    for pod in &pods {
        let containers: Vec<String> = if flags.all_containers {
            // In the order in which they run.
            let [regular, ephemeral, init] =
                LISTS.map(|(list, _)| names(pod, list).map(str::to_owned));
            init.chain(regular).chain(ephemeral).collect()
        } else {
            vec![pods::container(pod, &given, false)?]
        };
        logs.extend(containers.into_iter().map(|container| log(flags, pod, &container, query)));
    }
    Ok(logs)
}

/// A missing pod, as kubectl tells it here.
fn absent(error: Error, session: &Session) -> Error {
    match error {
        Error::Refused { refusal, .. }
            if refusal.code == 404 && refusal.details["kind"] == "pods" =>
        {
            Error::Wrong(format!(
                "error from server (NotFound): {} in namespace {:?}",
                refusal.message, session.namespace
            ))
        }
        other => other,
    }
}

fn log(flags: &Logs, pod: &Value, container: &str, query: &Query) -> Log {
    let query = query.clone().with("container", container);
    let prefix = format!("[pod/{}/{container}] ", meta(pod, "name"));
    Log {
        path: pods::path(pod, &format!("/log{}", query.text())),
        prefix: if flags.prefix || flags.all_pods { prefix } else { String::new() },
    }
}

async fn copy(session: &Session, flags: &Logs, log: &Log) -> Result<(), Error> {
    match pour(session, log).await {
        Err(error) if flags.ignore_errors && !matches!(error, Error::Exit { .. }) => {
            eprint!("{}", error.text());
            Ok(())
        }
        outcome => outcome,
    }
}

async fn pour(session: &Session, log: &Log) -> Result<(), Error> {
    let mut lines = session.api.stream(&log.path, "*/*").await?;
    loop {
        let mut line = log.prefix.clone().into_bytes();
        let start = line.len();
        let read = lines.read_until(b'\n', &mut line).await;
        read.map_err(|error| Error::Wrong(format!("the log broke off: {error}")))?;
        if line.len() == start {
            return Ok(());
        }
        put_bytes(&line)?;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        logs: Logs,
    }

    #[test]
    fn flags_become_a_query() {
        let read = |words: &str| {
            let words = std::iter::once("logs").chain(words.split_whitespace());
            query(&Line::try_parse_from(words).unwrap().logs)
                .map(|q| q.text().to_owned())
                .map_err(|e| e.text())
        };
        let cases = [
            ("p", Ok("")),
            ("p -f --timestamps", Ok("?follow=true&timestamps=true")),
            ("p --tail 5 --since 1m30s", Ok("?sinceSeconds=90&tailLines=5")),
            ("p --since 100ms", Ok("?sinceSeconds=1")),
            ("p --tail -1", Ok("")),
            ("-l a=b", Ok("?tailLines=10")),
            ("-l a=b --tail -1", Ok("")),
            (
                "p --since-time 2024-01-01T00:00:00Z --limit-bytes 7",
                Ok("?sinceTime=2024-01-01T00%3A00%3A00Z&limitBytes=7"),
            ),
            ("p -f -p", Err("error: only one of follow (-f) or previous (-p) is allowed\n")),
            (
                "p --since 1m --since-time 2024-01-01T00:00:00Z",
                Err("error: at most one of `sinceTime` or `sinceSeconds` may be specified\n"),
            ),
        ];
        for (words, want) in cases {
            assert_eq!(read(words).as_deref().map_err(String::as_str), want, "{words}");
        }
    }
}
