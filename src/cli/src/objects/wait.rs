//! `wait`: until objects are created, gone, or have a condition or a value.
//!
//! Source: `k8s.io/kubectl/pkg/cmd/wait` (`wait.go`, `condition.go`, `json.go`, `delete.go`, `create.go`).

use std::time::Duration;

use apimachinery::json_path::JsonPath;
use clap::Args;
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use super::api::JSON;
use super::error::Error;
use super::get::meant;
use super::kinds::Resource;
use super::manifest::Files;
use super::print::{self, Format, Output};
use super::selection::{Query, Scope, Selected};
use super::session::{Connection, Session};
use super::{delete, put};

/// Between looks when a watch cannot be had.
const PAUSE: Duration = Duration::from_millis(200);
/// What a negative timeout stands for.
const WEEK: Duration = Duration::from_hours(7 * 24);

/// Flags of `wait`.
#[derive(Args, Clone, Debug)]
pub struct Wait {
    /// What to wait for: `pod/NAME`, `pod NAME…`, or types with -l or --all.
    #[arg(value_name = "TYPE/NAME")]
    pub what: Vec<String>,
    /// Objects named in manifests.
    #[command(flatten)]
    pub files: Files,
    /// condition=NAME[=VALUE], jsonpath='{PATH}'[=VALUE], create, or delete; may be repeated.
    #[arg(long = "for", value_name = "WHAT")]
    pub conditions: Vec<String>,
    /// Wait no longer than this; 0 looks once, negative is a week.
    #[arg(long, value_name = "DURATION", default_value = "30s", allow_hyphen_values = true)]
    pub timeout: String,
    /// All objects of the types.
    #[arg(long)]
    pub all: bool,
    /// Which of them.
    #[command(flatten)]
    pub scope: Scope,
    /// How to tell of those that are so.
    #[command(flatten)]
    pub format: Format,
    /// Which cluster.
    #[command(flatten)]
    pub connection: Connection,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq)]
enum Condition {
    Delete,
    Create,
    Status { name: String, value: String },
    Path { path: JsonPath, value: Option<String> },
}

impl Condition {
    fn parse(text: &str) -> Result<Self, Error> {
        match text.to_lowercase().as_str() {
            "delete" => return Ok(Self::Delete),
            "create" => return Ok(Self::Create),
            _ => {}
        }
        if let Some(rest) = text.strip_prefix("condition=") {
            let (name, value) = rest.split_once('=').unwrap_or((rest, "true"));
            return Ok(Self::Status { name: name.to_owned(), value: value.to_owned() });
        }
        if let Some(rest) = text.strip_prefix("jsonpath=") {
            let (path, value) = path_and_value(rest)?;
            let path = JsonPath::parse(path).map_err(|problem| {
                Error::Wrong(format!("jsonpath parsing error for {path:?}: {problem}"))
            })?;
            return Ok(Self::Path { path, value });
        }
        Err(Error::Wrong(format!("unrecognized condition: {text:?}")))
    }

    /// Whether the object is so; `None` is one that is not there.
    fn holds(&self, object: Option<&Value>) -> bool {
        match (self, object) {
            (Self::Delete, object) => object.is_none(),
            (Self::Create, object) => object.is_some(),
            (Self::Status { name, value }, Some(object)) => {
                let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
                let found = conditions.into_iter().find(|c| {
                    c["type"].as_str().is_some_and(|kind| kind.eq_ignore_ascii_case(name))
                });
                found.is_some_and(|condition| {
                    // What was found out about an older version of the object does not count.
                    let of = condition["observedGeneration"].as_i64();
                    let of = of.or_else(|| object["status"]["observedGeneration"].as_i64());
                    let stale = of.is_some_and(|of| {
                        object["metadata"]["generation"].as_i64().is_some_and(|now| of < now)
                    });
                    !stale
                        && condition["status"]
                            .as_str()
                            .is_some_and(|s| s.eq_ignore_ascii_case(value))
                })
            }
            (Self::Path { path, value }, Some(object)) => {
                let found = path.find(object);
                match value {
                    None => !found.is_empty(),
                    Some(value) => match found.as_slice() {
                        [Value::Object(_) | Value::Array(_)] => false,
                        [one] => shown(one) == *value,
                        _ => false,
                    },
                }
            }
            (_, None) => false,
        }
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `{.status.phase}=Running`: the path and, if there is one, the value.
fn path_and_value(text: &str) -> Result<(&str, Option<String>), Error> {
    let end = text.rfind('}').map_or(0, |at| at + 1);
    let (path, value) = match text[end..].split_once('=') {
        Some((rest, value)) => (&text[..end + rest.len()], Some(value)),
        None => (text, None),
    };
    let value = value.map(|value| value.trim_matches(['\'', '"']).to_owned());
    if value.as_deref() == Some("") {
        return Err(Error::Wrong(format!(
            "jsonpath wait has to have a value after equal sign: {text}"
        )));
    }
    Ok((path.trim_matches(['\'', '"']), value))
}

/// A duration of a flag; `None` for nought.
pub fn timeout(text: &str) -> Result<Option<Duration>, Error> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    let time = seconds.or_else(|| apimachinery::time::duration(text)).ok_or_else(|| {
        Error::Wrong(format!(
            "invalid argument {text:?} for \"--timeout\" flag: time: invalid duration {text:?}"
        ))
    })?;
    Ok(Some(time).filter(|time| !time.is_zero()))
}

/// Carries the command out.
pub async fn run(session: &Session, flags: &Wait) -> Result<(), Error> {
    if flags.conditions.is_empty() {
        return Err(Error::wrong(
            "unrecognized condition: \"\"
hint: name one with --for, such as --for=condition=Ready",
        ));
    }
    let output = Output::parse(&flags.format)?;
    let conditions: Vec<Condition> =
        flags.conditions.iter().map(|text| Condition::parse(text)).collect::<Result<_, _>>()?;
    let patience = match flags.timeout.strip_prefix('-') {
        Some(_) => Some(WEEK),
        None => timeout(&flags.timeout)?,
    };
    let end = patience.map(|time| Instant::now() + time);
    let creates = conditions.contains(&Condition::Create);
    let mut targets = find(session, flags).await?;
    while targets.is_empty() && creates && end.is_some_and(|end| Instant::now() < end) {
        sleep(PAUSE).await;
        targets = find(session, flags).await?;
    }
    if targets.is_empty() {
        if conditions == [Condition::Delete] {
            return Ok(());
        }
        return Err(Error::wrong("no matching resources found"));
    }
    let mut errors = Vec::new();
    for (one, namespace) in &targets {
        for condition in &conditions {
            match wait(session, one, namespace.as_deref(), condition, end).await {
                Ok(Some(object)) => tell(flags, &output, one, condition, object)?,
                Ok(None) => {}
                Err(error) => errors.push(error),
            }
        }
    }
    Error::all(errors)
}

/// Says that an object is as it should be.
fn tell(
    flags: &Wait,
    output: &Output,
    one: &Selected,
    condition: &Condition,
    mut object: Value,
) -> Result<(), Error> {
    if output.is_human() {
        let done = if *condition == Condition::Delete { "deleted" } else { "condition met" };
        let name = one.name.as_deref().unwrap_or_default();
        return put(&format!("{}/{name} {done}\n", one.resource.word()));
    }
    if let Some(map) = object.as_object_mut() {
        map.entry("apiVersion").or_insert_with(|| one.resource.api_version().into());
        map.entry("kind").or_insert_with(|| one.resource.kind.clone().into());
    }
    if output.omits_managed_fields() && !flags.format.show_managed_fields {
        print::without_managed_fields(&mut object);
    }
    output.put(&[object])
}

/// Waits for one object, and gives what it was then; `None` where there was none to begin with.
async fn wait(
    session: &Session,
    one: &Selected,
    namespace: Option<&str>,
    condition: &Condition,
    end: Option<Instant>,
) -> Result<Option<Value>, Error> {
    let name = one.name.as_deref().unwrap_or_default();
    let left = end.map(|end| end.saturating_duration_since(Instant::now()));
    // With no time at all there is one look.
    let timeout = Some(left.unwrap_or_default());
    let until = Until { session, resource: &one.resource, namespace, name, timeout };
    let must_exist = !matches!(condition, Condition::Delete | Condition::Create);
    let mut uid: Option<String> = None;
    let mut last = Value::Null;
    let check = |object: Option<&Value>| {
        if object.is_none() && must_exist {
            let text = format!("{} {name:?} not found", one.resource.qualified());
            return Err(Error::Plain(format!("Error from server (NotFound): {text}")));
        }
        if *condition == Condition::Delete {
            // Another of the same name does not count.
            let now = object.and_then(delete::uid);
            let first = uid.get_or_insert_with(|| now.unwrap_or_default().to_owned());
            let done = now != Some(first.as_str());
            return Ok(done.then(|| last.take()).or_else(|| {
                last = object.cloned().unwrap_or_default();
                None
            }));
        }
        Ok(condition.holds(object).then(|| object.cloned().unwrap_or_default()))
    };
    if let Some(object) = until.holds(check).await? {
        // What was never there was not deleted.
        return Ok(Some(object).filter(Value::is_object));
    }
    let what = format!("{}/{name}", one.resource.plural);
    Err(match condition {
        Condition::Create => Error::wrong("timed out waiting for the condition"),
        _ if end.is_none() && must_exist => Error::Wrong(format!("condition not met for {what}")),
        _ => Error::Wrong(format!("timed out waiting for the condition on {what}")),
    })
}

async fn find(session: &Session, flags: &Wait) -> Result<Vec<(Selected, Option<String>)>, Error> {
    let selected = meant(session, &flags.what, &flags.files).await?;
    if selected.is_empty() {
        return Err(Error::wrong("you must specify what to wait for, such as pod/NAME"));
    }
    let mut found = Vec::new();
    for one in selected {
        let own = one.resource.namespaced.then(|| session.namespace.clone());
        if one.name.is_some() {
            found.push((one, own));
            continue;
        }
        if !flags.all && !flags.scope.is_selective() {
            return Err(Error::wrong("resource(s) were provided, but no name was specified"));
        }
        let (namespace, query) = (flags.scope.namespace(session), flags.scope.query());
        let path = format!("{}{}", one.resource.path(namespace, ""), query.text());
        for item in session.api.get(&path).await?["items"].as_array().into_iter().flatten() {
            let text = |field: &str| item["metadata"][field].as_str().map(str::to_owned);
            let name = text("name");
            found.push((Selected { resource: one.resource.clone(), name }, text("namespace")));
        }
    }
    Ok(found)
}

/// One object that is looked at until something is so.
pub struct Until<'a> {
    /// Through this.
    pub session: &'a Session,
    /// Its resource.
    pub resource: &'a Resource,
    /// Its namespace.
    pub namespace: Option<&'a str>,
    /// Its name.
    pub name: &'a str,
    /// No longer than this; `None` is as long as it takes, nought is one look.
    pub timeout: Option<Duration>,
}

impl Until<'_> {
    /// Looks at the object, `None` when it is not there, at first and whenever it changes, until `check` gives
    /// something; `None` when the time is over.
    pub async fn holds<T>(
        &self,
        mut check: impl FnMut(Option<&Value>) -> Result<Option<T>, Error>,
    ) -> Result<Option<T>, Error> {
        let end = self.timeout.map(|time| Instant::now() + time);
        loop {
            let query =
                Query::default().with("fieldSelector", &format!("metadata.name={}", self.name));
            let root = self.resource.path(self.namespace, "");
            let list = self.session.api.get(&format!("{root}{}", query.text())).await?;
            if let Some(done) = check(list["items"].get(0))? {
                return Ok(Some(done));
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(None);
            }
            let since = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            let query = query.flag("watch", true).with("resourceVersion", since);
            let path = format!("{root}{}", query.text());
            let watch = self.follow(&path, &mut check);
            let outcome = match end {
                Some(end) => match timeout_at(end, watch).await {
                    Ok(outcome) => outcome,
                    Err(_) => return Ok(None),
                },
                None => watch.await,
            };
            if let Some(done) = outcome? {
                return Ok(Some(done));
            }
            // The watch ended, as watches do: look again, and not at once.
            sleep(PAUSE).await;
        }
    }

    async fn follow<T>(
        &self,
        path: &str,
        check: &mut impl FnMut(Option<&Value>) -> Result<Option<T>, Error>,
    ) -> Result<Option<T>, Error> {
        let mut lines = self.session.api.stream(path, JSON).await?.lines();
        while let Some(Ok(line)) = lines.next().await {
            let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
            let done = match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => check(Some(&event["object"]))?,
                Some("DELETED") => check(None)?,
                Some("ERROR") => return Ok(None),
                _ => None,
            };
            if done.is_some() {
                return Ok(done);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_are_read_and_hold() {
        let object = json!({"metadata": {"generation": 2}, "status": {"phase": "Running", "n": 3, "observedGeneration": 2,
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Old", "status": "True", "observedGeneration": 1},
                {"type": "Bad", "status": "False", "reason": "X"}]}});
        let cases = [
            ("condition=Ready", true),
            ("condition=ready=true", true),
            ("condition=Ready=False", false),
            ("condition=Bad", false),
            ("condition=Bad=false", true),
            ("condition=Old", false),
            ("condition=None", false),
            ("jsonpath={.status.phase}=Running", true),
            ("jsonpath='{.status.phase}'=Pending", false),
            ("jsonpath={.status.n}=3", true),
            ("jsonpath={.status.phase}", true),
            ("jsonpath={.status.none}", false),
            ("jsonpath={.status.conditions[?(@.type==\"Ready\")].status}=True", true),
            ("jsonpath=.status.phase=Running", true),
            ("create", true),
            ("delete", false),
        ];
        for (text, want) in cases {
            let condition =
                Condition::parse(text).unwrap_or_else(|e| panic!("{text}: {}", e.text()));
            assert_eq!(condition.holds(Some(&object)), want, "{text}");
        }
        assert!(Condition::Delete.holds(None) && !Condition::Create.holds(None));
        assert_eq!(
            Condition::parse("ready").unwrap_err().text(),
            "error: unrecognized condition: \"ready\"\n"
        );
    }
}
