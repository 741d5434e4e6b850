//! `run`: a pod of one container.
//!
//! Source: `k8s.io/kubectl/pkg/cmd/run/run.go`, `pkg/generate/versioned/run.go`.

use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::api::JSON;
use super::apply::DryRun;
use super::error::Error;
use super::exec::{stream, terminal};
use super::print::{self, Format, Output};
use super::selection::Query;
use super::session::{Connection, Session};
use super::wait::{self, Until};
use super::{delete, pods, put, put_bytes};

/// Flags of `run`.
#[derive(Args, Clone, Debug)]
pub struct Run {
    /// Name of the pod, and arguments, or the command with --command.
    #[arg(value_name = "NAME [-- WORDS…]", required = true)]
    pub words: Vec<String>,
    /// The image.
    #[arg(long, value_name = "IMAGE", required = true)]
    pub image: String,
    /// When to fetch the image: Always, IfNotPresent or Never.
    #[arg(long, value_name = "WHEN", default_value = "", hide_default_value = true)]
    pub image_pull_policy: String,
    /// When to start it anew: Always, OnFailure or Never.
    #[arg(long, value_name = "WHEN", default_value = "Always", value_parser = ["Always", "OnFailure", "Never"])]
    pub restart: String,
    /// A variable of its environment; may be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// A port that it serves.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Make a service for that port as well.
    #[arg(long, requires = "port")]
    pub expose: bool,
    /// Labels, instead of run=NAME.
    #[arg(short = 'l', long, value_name = "K=V", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Annotations; may be repeated.
    #[arg(long, value_name = "K=V")]
    pub annotations: Vec<String>,
    /// The words are the command, not the image's command's arguments.
    #[arg(long)]
    pub command: bool,
    /// Run it privileged.
    #[arg(long)]
    pub privileged: bool,
    /// Give it this input, and wait for it.
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Give it a terminal.
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Wait for it, with its output here [default: true with -i].
    #[arg(long)]
    pub attach: bool,
    /// Keep its input open when the first one who gave some has gone.
    #[arg(long, requires = "stdin")]
    pub leave_stdin_open: bool,
    /// Delete it when it has ended.
    #[arg(long)]
    pub rm: bool,
    /// Say nothing but what it says.
    #[arg(short, long)]
    pub quiet: bool,
    /// JSON that is merged into the pod.
    #[arg(long, value_name = "JSON", default_value = "", hide_default_value = true)]
    pub overrides: String,
    /// How: merge, strategic, or a list of operations, json.
    #[arg(long, value_name = "HOW", default_value = "merge", value_parser = ["merge", "strategic", "json"])]
    pub override_type: String,
    /// How long to wait for it to run.
    #[arg(long, value_name = "DURATION", default_value = "1m0s")]
    pub pod_running_timeout: String,
    /// Only say what would be done: `client`, or `server`, which checks it as well.
    #[arg(long, value_name = "WHERE", num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "client", hide_default_value = true, value_parser = DryRun::parse)]
    pub dry_run: DryRun,
    /// How to print it.
    #[command(flatten)]
    pub format: Format,
    /// Which cluster.
    #[command(flatten)]
    pub connection: Connection,
}

impl Run {
    fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    fn arguments(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

/// Carries the command out.
pub async fn run(session: &Session, flags: &Run) -> Result<(), Error> {
    let attached = flags.attach || flags.stdin;
    check(flags, attached)?;
    let output = Output::parse(&flags.format)?;
    let object = pod(flags)?;
    let created = create(session, flags, "pods", object).await?;
    if flags.expose {
        let service = create(session, flags, "services", service(flags)?).await?;
        tell(flags, &output, service)?;
        if matches!(output, Output::Yaml) && !attached {
            // Twice, as kubectl has it.
            put("---\n---\n")?;
        }
    }
    if !attached || flags.dry_run != DryRun::None {
        return tell(flags, &output, created);
    }
    let outcome = attend(session, flags, &created).await;
    if flags.rm {
        remove(session, flags, &created).await?;
    }
    outcome
}

fn check(flags: &Run, attached: bool) -> Result<(), Error> {
    if flags.tty && !flags.stdin {
        return Err(Error::wrong("stdin is required for containers with -t/--tty"));
    }
    if flags.rm && !attached {
        return Err(Error::wrong("--rm should only be used for attached containers"));
    }
    if attached && flags.dry_run != DryRun::None {
        return Err(Error::wrong(
            "--dry-run=[server|client] can't be used with attached containers options (--attach, --stdin, or --tty)",
        ));
    }
    if flags.image.is_empty() {
        return Err(Error::wrong("--image is required"));
    }
    if !is_reference(&flags.image) {
        return Err(Error::Wrong(format!(
            "Invalid image name {:?}: invalid reference format",
            flags.image
        )));
    }
    if flags.command && flags.arguments().is_empty() {
        return Err(Error::wrong("--command wants a command after --"));
    }
    Ok(())
}

/// Whether an image can be called so: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, the path in small letters.
fn is_reference(image: &str) -> bool {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(a, b)| (a, Some(b)));
    let (host, rest) = match rest.split_once('/') {
        Some((host, path))
            if host.contains(':')
                || host == "localhost"
                || host.contains(char::is_uppercase)
                || host.contains('.') && !host.contains('_') =>
        {
            (Some(host), path)
        }
        _ => (None, rest),
    };
    let (path, tag) = rest.split_once(':').map_or((rest, None), |(a, b)| (a, Some(b)));
    let of = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let edge = |text: &str| {
        let good = |c: char| c.is_ascii_alphanumeric();
        text.starts_with(good) && text.ends_with(good)
    };
    host.is_none_or(|host| of(host, ".:-[]"))
        && path
            .split('/')
            .all(|part| of(part, "._-") && edge(part) && !part.contains(char::is_uppercase))
        && tag.is_none_or(|tag| of(tag, "._-") && !tag.starts_with(['.', '-']) && tag.len() <= 128)
        && digest.is_none_or(|digest| {
            digest.split_once(':').is_some_and(|(algorithm, hex)| {
                of(algorithm, "+._-")
                    && hex.len() >= 32
                    && hex.chars().all(|c| c.is_ascii_hexdigit())
            })
        })
}

/// `key=value` pairs as an object.
fn pairs(list: &[String]) -> Result<Value, Error> {
    let mut map = serde_json::Map::new();
    for pair in list {
        let (key, value) =
            pair.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
                Error::Wrong(format!("unexpected label: {pair:?}, write it as KEY=VALUE"))
            })?;
        map.insert(key.to_owned(), value.into());
    }
    Ok(Value::Object(map))
}

fn labels(flags: &Run) -> Result<Value, Error> {
    if flags.labels.is_empty() { Ok(json!({"run": flags.name()})) } else { pairs(&flags.labels) }
}

fn pod(flags: &Run) -> Result<Value, Error> {
    let mut container = json!({"name": flags.name(), "image": flags.image, "resources": {}});
    if !flags.arguments().is_empty() {
        container[if flags.command { "command" } else { "args" }] = json!(flags.arguments());
    }
    let mut env = Vec::new();
    for pair in &flags.env {
        let (name, value) = pair
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| Error::Wrong(format!("invalid env: {pair}")))?;
        env.push(json!({"name": name, "value": value}));
    }
    if !env.is_empty() {
        container["env"] = env.into();
    }
    if let Some(port) = flags.port {
        container["ports"] = json!([{"containerPort": port}]);
    }
    if !flags.image_pull_policy.is_empty() {
        container["imagePullPolicy"] = flags.image_pull_policy.clone().into();
    }
    if flags.privileged {
        container["securityContext"] = json!({"privileged": true});
    }
    for (set, field) in [
        (flags.stdin, "stdin"),
        (flags.stdin && !flags.leave_stdin_open, "stdinOnce"),
        (flags.tty, "tty"),
    ] {
        if set {
            container[field] = true.into();
        }
    }
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": flags.name(), "labels": labels(flags)?},
        "spec": {"containers": [container], "restartPolicy": flags.restart, "dnsPolicy": "ClusterFirst"}, "status": {}});
    if !flags.annotations.is_empty() {
        pod["metadata"]["annotations"] = pairs(&flags.annotations)?;
    }
    if flags.overrides.is_empty() {
        return Ok(pod);
    }
    let patch: Value = serde_json::from_str(&flags.overrides)
        .map_err(|error| Error::Wrong(format!("--overrides is not JSON: {error}")))?;
    if flags.override_type == "json" {
        let patched = apimachinery::patch::json(&pod, flags.overrides.as_bytes());
        return patched.map_err(|error| Error::Wrong(error.to_string()));
    }
    let schema = apimachinery::schema::builtin();
    let strategic = flags.override_type == "strategic";
    if let Some(of) = schema.kind("", "v1", "Pod").filter(|_| strategic) {
        return apimachinery::patch::strategic(schema, of, pod, patch)
            .map_err(|error| Error::Wrong(error.to_string()));
    }
    apimachinery::patch::merge(&mut pod, &patch);
    Ok(pod)
}

fn service(flags: &Run) -> Result<Value, Error> {
    let port = flags.port.unwrap_or_default();
    Ok(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": flags.name()},
        "spec": {"ports": [{"port": port, "protocol": "TCP", "targetPort": port}], "selector": labels(flags)?},
        "status": {"loadBalancer": {}}}))
}

async fn create(
    session: &Session,
    flags: &Run,
    plural: &str,
    object: Value,
) -> Result<Value, Error> {
    if flags.dry_run == DryRun::Client {
        let mut object = object;
        if session.namespace_given {
            object["metadata"]["namespace"] = session.namespace.clone().into();
        }
        return Ok(object);
    }
    let query =
        Query::default().with("dryRun", flags.dry_run.query()).with("fieldManager", "kubectl-run");
    let path = format!("/api/v1/namespaces/{}/{plural}{}", session.namespace, query.text());
    session.api.json(Method::POST, &path, JSON, Some((JSON, object.to_string().into_bytes()))).await
}

fn tell(flags: &Run, output: &Output, mut object: Value) -> Result<(), Error> {
    if output.is_human() {
        return put(&format!("{} created{}\n", print::name(&object), flags.dry_run.suffix()));
    }
    if output.omits_managed_fields() && !flags.format.show_managed_fields {
        print::without_managed_fields(&mut object);
    }
    output.put(&[object])
}

fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

fn ended(pod: &Value) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Joins the pod's streams, and returns when it has ended, with its exit code.
async fn attend(session: &Session, flags: &Run, created: &Value) -> Result<(), Error> {
    let kinds = session.kinds().await?;
    let resource = kinds.find("pods")?;
    let namespace = Some(pods::meta(created, "namespace"));
    let until = |timeout| Until {
        session,
        resource,
        namespace,
        name: pods::meta(created, "name"),
        timeout,
    };
    let gone = || Error::Wrong(format!("pod {:?} is gone", flags.name()));
    let patience = wait::timeout(&flags.pod_running_timeout)?.or(Some(Duration::ZERO));
    let started = |pod: Option<&Value>| {
        let pod = pod.ok_or_else(gone)?;
        let ready = phase(pod) == "Running" && {
            let status = &pod["status"]["containerStatuses"][0]["state"];
            status["running"].is_object() || status["terminated"].is_object()
        };
        Ok((ready || ended(pod)).then(|| pod.clone()))
    };
    let Some(pod) = until(patience).holds(started).await? else {
        return Err(Error::wrong("timed out waiting for the condition"));
    };
    let over =
        ended(&pod) || pod["status"]["containerStatuses"][0]["state"]["terminated"].is_object();
    if over {
        log(session, &pod).await?;
    } else {
        join(session, flags, &pod).await?;
    }
    if flags.leave_stdin_open || flags.restart == "Always" {
        return Ok(());
    }
    let never = flags.restart == "Never";
    let finished = |pod: Option<&Value>| {
        let pod = pod.ok_or_else(gone)?;
        let done = phase(pod) == "Succeeded" || never && ended(pod);
        Ok(done.then(|| pod.clone()))
    };
    match until(None).holds(finished).await? {
        Some(pod) => verdict(&pod),
        None => Ok(()),
    }
}

async fn join(session: &Session, flags: &Run, pod: &Value) -> Result<(), Error> {
    let tty = terminal(flags.stdin, flags.tty, flags.quiet);
    if flags.stdin && !flags.quiet {
        eprintln!(
            "All commands and output from this session will be recorded in container logs, including credentials and sensitive information passed through the command prompt."
        );
        eprintln!("If you don't see a command prompt, try pressing enter.");
    }
    let query = Query::default()
        .with("container", flags.name())
        .flag("stdin", flags.stdin)
        .flag("stdout", true)
        .flag("stderr", !tty)
        .flag("tty", tty);
    let path = pods::path(pod, &format!("/attach{}", query.text()));
    match stream(session, &path, flags.stdin, tty).await {
        Ok(()) => Ok(()),
        // It ended before it could be attached to: what it said is in its log.
        Err(error) => {
            let now = session.api.get(&pods::path(pod, "")).await?;
            if now["status"]["containerStatuses"][0]["state"]["running"].is_object() {
                return Err(error);
            }
            log(session, pod).await
        }
    }
}

async fn log(session: &Session, pod: &Value) -> Result<(), Error> {
    let bytes = session.api.bytes(Method::GET, &pods::path(pod, "/log"), "*/*", None).await?;
    put_bytes(&bytes)
}

fn verdict(pod: &Value) -> Result<(), Error> {
    if phase(pod) != "Failed" {
        return Ok(());
    }
    let (namespace, name) = (pods::meta(pod, "namespace"), pods::meta(pod, "name"));
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    match ended["exitCode"].as_i64() {
        Some(code) if code != 0 => {
            let text = |field: &str| ended[field].as_str().unwrap_or_default();
            let told = format!(
                "pod {namespace}/{name} terminated ({})\n{}",
                text("reason"),
                text("message")
            );
            Err(Error::Exit { code: code as u8, text: told })
        }
        _ => Err(Error::Wrong(format!("pod {namespace}/{name} failed with unknown exit code"))),
    }
}

async fn remove(session: &Session, flags: &Run, pod: &Value) -> Result<(), Error> {
    let options =
        json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
    let body = (JSON, options.to_string().into_bytes());
    let namespace = pods::meta(pod, "namespace");
    match session.api.json(Method::DELETE, &pods::path(pod, ""), JSON, Some(body)).await {
        Ok(_) => {}
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    }
    if !flags.quiet {
        put(&format!("pod {:?} deleted from {namespace} namespace\n", flags.name()))?;
    }
    let kinds = session.kinds().await?;
    let uid = delete::uid(pod).unwrap_or_default();
    delete::gone(session, kinds.find("pods")?, Some(namespace), flags.name(), uid, None).await
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    fn read(words: &str) -> Run {
        Line::try_parse_from(std::iter::once("run").chain(words.split_whitespace())).unwrap().run
    }

    #[test]
    fn flags_become_a_pod() {
        let flags = read(
            "x --image i --env A=b=c --port 80 --labels a=b,c=d --command --restart Never -it -- sh -c true",
        );
        assert_eq!(
            pod(&flags).unwrap(),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "labels": {"a": "b", "c": "d"}},
                "spec": {"containers": [{"name": "x", "image": "i", "resources": {}, "command": ["sh", "-c", "true"],
                    "env": [{"name": "A", "value": "b=c"}], "ports": [{"containerPort": 80}],
                    "stdin": true, "stdinOnce": true, "tty": true}],
                    "restartPolicy": "Never", "dnsPolicy": "ClusterFirst"}, "status": {}})
        );
        let flags = read(r#"x --image i --overrides={"spec":{"hostNetwork":true}} -- a"#);
        let spec = pod(&flags).unwrap()["spec"].take();
        assert_eq!(
            (&spec["hostNetwork"], &spec["containers"][0]["args"]),
            (&json!(true), &json!(["a"]))
        );
    }

    #[test]
    fn images_are_called_so_or_not() {
        let digest = format!("a@sha256:{}", "0a".repeat(32));
        let good = [
            "a",
            "a/b:1.2",
            "localhost:5000/a",
            "GHCR.io/a/b_c",
            "1.2.3.4:5/x",
            "a_b.c/d:1",
            &digest,
        ];
        let bad = ["A", "a:", "a b", "a//b", "-a", "a@sha256:xyz", "a:b:c", "http://a/b", "a:-x"];
        for (names, want) in [(&good[..], true), (&bad[..], false)] {
            for name in names {
                assert_eq!(is_reference(name), want, "{name}");
            }
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for (words, want) in [
            ("x --image i -t", "error: stdin is required for containers with -t/--tty\n"),
            ("x --image i --rm", "error: --rm should only be used for attached containers\n"),
            ("x --image=", "error: --image is required\n"),
            ("x --image A", "error: Invalid image name \"A\": invalid reference format\n"),
        ] {
            assert_eq!(check(&read(words), read(words).stdin).unwrap_err().text(), want);
        }
    }

    #[test]
    fn the_exit_code_is_the_containers() {
        let ended = |code: i64| {
            json!({"metadata": {"name": "p", "namespace": "n"}, "status": {"phase": "Failed",
                "containerStatuses": [{"state": {"terminated": {"exitCode": code, "reason": "Error"}}}]}})
        };
        let error = verdict(&ended(3)).unwrap_err();
        assert_eq!((error.code(), error.text().as_str()), (3, "pod n/p terminated (Error)\n"));
        assert_eq!(verdict(&ended(0)).unwrap_err().code(), 1);
    }
}
