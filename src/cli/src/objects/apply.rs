//! `apply`: makes objects what manifests say, and leaves what others set in them.
//!
//! Source: `k8s.io/kubectl/pkg/cmd/apply` (`apply.go`, `patcher.go`).

use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use apimachinery::{patch, schema};

use super::api::JSON;
use super::error::{Error, advised};
use super::kinds::{Kinds, Resource};
use super::manifest::{Document, Files};
use super::print::{self, Format, Output, json as text};
use super::prune::{self, Applied};
use super::selection::{Labels, Query};
use super::session::{Connection, Session};
use super::{delete, migrate, put, wait};

/// Where what was applied is remembered, for the next time.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// As whom fields are set on the client's side; the server knows the name, and hands over to server-side apply.
const CLIENT_MANAGER: &str = "kubectl-client-side-apply";
/// As whom on the server's.
const SERVER_MANAGER: &str = "kubectl";
const APPLY_PATCH: &str = "application/apply-patch+yaml";
/// Tries when somebody else writes the object at the same time.
const TRIES: usize = 5;
/// How long a kind may take to be served after its definition was applied.
const KIND_PATIENCE: Duration = Duration::from_secs(10);
const KIND_POLL: Duration = Duration::from_millis(100);

/// What is done for real.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DryRun {
    /// All.
    #[default]
    None,
    /// Nothing; the server is not told.
    Client,
    /// The server does all but store it.
    Server,
}

impl DryRun {
    /// Reads the flag's value.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "none" | "false" => Ok(Self::None),
            "client" | "true" => Ok(Self::Client),
            "server" => Ok(Self::Server),
            _ => Err("must be \"none\", \"server\", or \"client\"".into()),
        }
    }

    /// What is put after what is said to be done.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Client => " (dry run)",
            Self::Server => " (server dry run)",
        }
    }

    /// What the server is told.
    pub fn query(self) -> &'static str {
        if self == Self::Server { "All" } else { "" }
    }
}

/// Flags of `apply`.
#[derive(Args, Clone, Debug)]
pub struct Apply {
    /// The manifests.
    #[command(flatten)]
    pub files: Files,
    /// Let the server merge, and keep who set which field.
    #[arg(long)]
    pub server_side: bool,
    /// Take fields that others own.
    #[arg(long, requires = "server_side")]
    pub force_conflicts: bool,
    /// As whom fields are set [default: kubectl-client-side-apply, or kubectl with --server-side].
    #[arg(long, value_name = "NAME")]
    pub field_manager: Option<String>,
    /// Only say what would be done: `client`, or `server`, which checks it as well.
    #[arg(long, value_name = "WHERE", num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "client", hide_default_value = true, value_parser = DryRun::parse)]
    pub dry_run: DryRun,
    /// What to do about unknown fields: strict (or true), warn, ignore (or false).
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_value = "strict", default_missing_value = "strict")]
    pub validate: String,
    /// By labels.
    #[command(flatten)]
    pub labels: Labels,
    /// Delete and create anew what cannot be changed.
    #[arg(long, conflicts_with = "server_side")]
    pub force: bool,
    /// With --force and --prune: seconds that pods have to end; negative leaves it to them.
    #[arg(long, value_name = "SECONDS", default_value_t = -1, allow_negative_numbers = true, hide_default_value = true)]
    pub grace_period: i64,
    /// With --force and --prune: what to do with dependants: background, foreground or orphan.
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_value = "background", default_missing_value = "background")]
    pub cascade: String,
    /// With --force: wait no longer than this for what is deleted; 0 is as long as it takes.
    #[arg(long, value_name = "DURATION", default_value = "0s", hide_default_value = true)]
    pub timeout: String,
    /// Delete what was applied before and is in no manifest now; of what -l selects, or with --all.
    #[arg(long)]
    pub prune: bool,
    /// With --prune: of everything.
    #[arg(long, requires = "prune", conflicts_with = "selector")]
    pub all: bool,
    /// With --prune: kinds to look through, as `group/version/kind`; may be repeated [default: workloads, services,
    /// configuration, claims, volumes, namespaces].
    #[arg(long, value_name = "GROUP/VERSION/KIND", requires = "prune", value_delimiter = ',')]
    pub prune_allowlist: Vec<String>,
    /// How to print the objects.
    #[command(flatten)]
    pub format: Format,
    /// Which cluster.
    #[command(flatten)]
    pub connection: Connection,
}

/// Carries the command out.
pub async fn run(session: &Session, flags: &Apply) -> Result<(), Error> {
    if flags.files.is_empty() {
        return Err(Error::wrong("must specify one of -f and -k"));
    }
    if flags.server_side && flags.dry_run == DryRun::Client {
        return Err(Error::wrong(
            "--dry-run=client doesn't work with --server-side (did you mean --dry-run=server instead?)",
        ));
    }
    prune::check(flags)?;
    let output = Output::parse(&flags.format)?;
    let (mut documents, mut errors) = flags.files.read().await?;
    let selector = apimachinery::labels::Selector::parse(&flags.labels.selector)
        .map_err(|error| Error::wrong(error.to_string()))?;
    documents.retain(|d| {
        selector.matches_by(|key| d.value["metadata"]["labels"].get(key).and_then(Value::as_str))
    });
    if documents.is_empty() && errors.is_empty() {
        return Err(Error::wrong("no objects passed to apply"));
    }
    let mut apply = Applying {
        session,
        flags,
        validation: validation(&flags.validate)?,
        newer: None,
        defined: false,
    };
    let (mut objects, mut applied) = (Vec::new(), Applied::default());
    let mut tell = |resource: &Resource, mut object: Value, done: &str| match &output {
        Output::Human { .. } => {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            put(&format!("{}/{name} {done}{}\n", resource.word(), flags.dry_run.suffix()))
        }
        Output::Name => put(&format!("{}\n", print::name(&object))),
        _ => {
            if output.omits_managed_fields() && !flags.format.show_managed_fields {
                print::without_managed_fields(&mut object);
            }
            objects.push(object);
            Ok(())
        }
    };
    for mut document in documents {
        match apply.one(&mut document).await {
            Ok((resource, object, done)) => {
                applied.note(&object);
                tell(&resource, object, done)?;
            }
            Err(error) => errors.push(error),
        }
    }
    if flags.prune && errors.is_empty() {
        prune::run(session, flags, &applied, |resource, object| tell(resource, object, "pruned"))
            .await?;
    }
    match objects.len() {
        0 => {}
        1 => output.put(&objects)?,
        _ => output.put(&[print::list(objects)])?,
    }
    Error::all(errors)
}

/// The server's word for what to do about unknown fields.
pub fn validation(text: &str) -> Result<&'static str, Error> {
    match text {
        "strict" | "true" => Ok("Strict"),
        "warn" => Ok("Warn"),
        "ignore" | "false" => Ok("Ignore"),
        other => Err(Error::Wrong(format!(
            "invalid - validate option {other:?}; must be one of: strict (or true), warn, ignore (or false)"
        ))),
    }
}

struct Applying<'a> {
    session: &'a Session,
    flags: &'a Apply,
    validation: &'static str,
    /// The server's resources, asked again after one was defined.
    newer: Option<Kinds>,
    /// Whether a resource was defined by this command.
    defined: bool,
}

impl Applying<'_> {
    /// Applies one object: its resource, what it is now, and what was done.
    async fn one(
        &mut self,
        document: &mut Document,
    ) -> Result<(Resource, Value, &'static str), Error> {
        let resource = self.resource(document).await?;
        let namespace = document.settle(&resource, self.session)?;
        let generated = document.text("/metadata/generateName");
        if document.text("/metadata/name").is_empty() && !generated.is_empty() {
            return Err(Error::Wrong(format!(
                "from {generated}: cannot use generate name with apply"
            )));
        }
        let name = document.name()?.to_owned();
        let target = Target {
            session: self.session,
            resource: &resource,
            namespace: namespace.as_deref(),
            name: &name,
            source: &document.source,
        };
        let (object, done) = if self.flags.server_side {
            (self.server_side(&target, &document.value).await?, "serverside-applied")
        } else {
            self.client_side(&target, &document.value).await?
        };
        self.defined |= resource.plural == "customresourcedefinitions";
        Ok((resource, object, done))
    }

    async fn resource(&mut self, document: &Document) -> Result<Resource, Error> {
        let (version, kind) = (document.text("/apiVersion"), document.text("/kind"));
        if let Some(found) = self.newer.as_ref().and_then(|kinds| kinds.of(version, kind)) {
            return Ok(found.clone());
        }
        let deadline = tokio::time::Instant::now() + KIND_PATIENCE;
        loop {
            let found = match &self.newer {
                None => document.resource(self.session).await.cloned(),
                Some(kinds) => kinds.of(version, kind).cloned().ok_or_else(|| document.unknown()),
            };
            // Its definition may have been applied a moment ago.
            if found.is_ok() || !self.defined || tokio::time::Instant::now() > deadline {
                return found;
            }
            tokio::time::sleep(KIND_POLL).await;
            self.newer = Some(Kinds::discover(&self.session.api).await?);
        }
    }

    fn query(&self, manager: &str) -> Query {
        Query::default()
            .with("dryRun", self.flags.dry_run.query())
            .with("fieldManager", self.flags.field_manager.as_deref().unwrap_or(manager))
            .with("fieldValidation", self.validation)
    }

    async fn server_side(&self, target: &Target<'_>, object: &Value) -> Result<Value, Error> {
        let applied = self.apply_once(target, object).await?;
        let annotated = !applied["metadata"]["annotations"][LAST_APPLIED].is_null();
        if self.flags.dry_run != DryRun::None || !annotated {
            return Ok(applied);
        }
        self.hand_over(target, object, applied).await
    }

    async fn apply_once(&self, target: &Target<'_>, object: &Value) -> Result<Value, Error> {
        let query = self.query(SERVER_MANAGER).flag("force", self.flags.force_conflicts);
        let body = (APPLY_PATCH, object.to_string().into_bytes());
        target.request(Method::PATCH, &query, Some(body)).await.map_err(advised)
    }

    /// What was applied on the client's side before is from now on applied on the server's.
    async fn hand_over(
        &self,
        target: &Target<'_>,
        object: &Value,
        applied: Value,
    ) -> Result<Value, Error> {
        let manager = self.flags.field_manager.as_deref().unwrap_or(SERVER_MANAGER);
        let mut now = applied;
        if manager == SERVER_MANAGER && !migrate::is_noted(&now) {
            // Those who apply on the client's side later find what was applied last.
            let last = now["metadata"]["annotations"][LAST_APPLIED].clone();
            let mut note = json!({"apiVersion": object["apiVersion"], "kind": object["kind"],
                "metadata": {"name": target.name, "annotations": {LAST_APPLIED: last}}});
            if let Some(namespace) = target.namespace {
                note["metadata"]["namespace"] = namespace.into();
            }
            let query = Query::default()
                .with("fieldManager", "kubectl-last-applied")
                .with("fieldValidation", self.validation);
            let body = (APPLY_PATCH, note.to_string().into_bytes());
            match target.request(Method::PATCH, &query, Some(body)).await {
                Ok(noted) => now = noted,
                Err(error) => eprintln!(
                    "Warning: failed to migrate {LAST_APPLIED:?} for Server-Side Apply. This is non-fatal and will be retried next time you apply. Error: {error}"
                ),
            }
        }
        for _ in 0..TRIES {
            let Some(patch) = migrate::patch(&now, manager) else { return Ok(now) };
            let body = ("application/json-patch+json", patch.to_string().into_bytes());
            match target.request(Method::PATCH, &self.query(manager), Some(body)).await {
                Ok(moved) => {
                    return Ok(self.apply_once(target, object).await.unwrap_or_else(|error| {
                        eprintln!(
                            "Warning: failed to re-apply configuration after performing Server-Side Apply migration. This is non-fatal and will be retried next time you apply. Error: {error}"
                        );
                        moved
                    }));
                }
                Err(error) if error.is_conflict() => {
                    now = target.request(Method::GET, &Query::default(), None).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(now)
    }

    async fn client_side(
        &self,
        target: &Target<'_>,
        object: &Value,
    ) -> Result<(Value, &'static str), Error> {
        let modified = remembering(object);
        let mut current = match target.request(Method::GET, &Query::default(), None).await {
            Ok(current) => current,
            Err(error) if error.is_not_found() => {
                return Ok((self.create(target, modified).await?, "created"));
            }
            Err(error) => {
                return Err(error.when(
                    &format!(
                        "retrieving current configuration of:\n{}\nfrom server for:",
                        target.described()
                    ),
                    target.source,
                ));
            }
        };
        if self.flags.dry_run == DryRun::Client {
            return Ok((current, "configured"));
        }
        if current["metadata"]["annotations"][LAST_APPLIED].is_null() {
            eprintln!(
                "Warning: resource {}/{} is missing the {LAST_APPLIED} annotation which is required by kubectl apply. kubectl apply should only be used on resources created declaratively by either kubectl create --save-config or kubectl apply. The missing annotation will be patched automatically.",
                target.resource.plural, target.name
            );
        }
        let mut tries = 0;
        loop {
            let (patch, kind) = target.patch(&modified, &current)?;
            if patch.as_object().is_some_and(serde_json::Map::is_empty) {
                return Ok((current, "unchanged"));
            }
            let body = (kind, patch.to_string().into_bytes());
            let failure = match target
                .request(Method::PATCH, &self.query(CLIENT_MANAGER), Some(body))
                .await
            {
                Ok(object) => {
                    if !object["metadata"]["deletionTimestamp"].is_null() {
                        eprintln!(
                            "Warning: Detected changes to resource {} which is currently being deleted.",
                            target.name
                        );
                    }
                    return Ok((object, "configured"));
                }
                Err(error) => error,
            };
            tries += 1;
            if failure.is_conflict() && tries < TRIES {
                current = target.request(Method::GET, &Query::default(), None).await?;
                continue;
            }
            let invalid = matches!(&failure, Error::Refused { refusal, .. } if refusal.code == 422);
            if self.flags.force && (failure.is_conflict() || invalid) {
                return Ok((self.anew(target, modified).await?, "configured"));
            }
            let doing = format!(
                "applying patch:\n{}\nto:\n{}\nfor:",
                text::line(&patch),
                target.described()
            );
            return Err(failure.when(&doing, target.source));
        }
    }

    async fn create(&self, target: &Target<'_>, object: Value) -> Result<Value, Error> {
        if self.flags.dry_run == DryRun::Client {
            return Ok(object);
        }
        let path = format!(
            "{}{}",
            target.resource.path(target.namespace, ""),
            self.query(CLIENT_MANAGER).text()
        );
        let body = (JSON, object.to_string().into_bytes());
        let created = self.session.api.json(Method::POST, &path, JSON, Some(body)).await;
        created.map_err(|error| error.when("creating", target.source))
    }

    /// Deletes the object, and creates it when it is gone.
    async fn anew(&self, target: &Target<'_>, object: Value) -> Result<Value, Error> {
        let body = (JSON, removal(self.flags)?.to_string().into_bytes());
        let patience = wait::timeout(&self.flags.timeout)?;
        let gone = target.request(Method::DELETE, &Query::default(), Some(body)).await?;
        let uid = delete::uid(&gone)
            .or_else(|| gone["details"]["uid"].as_str())
            .unwrap_or_default()
            .to_owned();
        delete::gone(self.session, target.resource, target.namespace, target.name, &uid, patience)
            .await?;
        self.create(target, object).await
    }
}

/// With which options that is deleted which is in the way, or is no longer applied.
pub fn removal(flags: &Apply) -> Result<Value, Error> {
    let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1",
        "propagationPolicy": delete::policy(&flags.cascade)?});
    if flags.grace_period >= 0 {
        options["gracePeriodSeconds"] = flags.grace_period.into();
    }
    Ok(options)
}

/// An object on the server.
struct Target<'a> {
    session: &'a Session,
    resource: &'a Resource,
    namespace: Option<&'a str>,
    name: &'a str,
    source: &'a str,
}

impl Target<'_> {
    async fn request(
        &self,
        method: Method,
        query: &Query,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Value, Error> {
        let path = format!("{}{}", self.resource.path(self.namespace, self.name), query.text());
        self.session.api.json(method, &path, JSON, body).await
    }

    /// What changes, and how that is written.
    fn patch(&self, modified: &Value, current: &Value) -> Result<(Value, &'static str), Error> {
        let last = current["metadata"]["annotations"][LAST_APPLIED].as_str();
        let original: Value =
            last.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let Resource { group, version, kind, .. } = self.resource;
        match schema::builtin().kind(group, version, kind) {
            Some(of) => {
                let patch = patch::three_way(schema::builtin(), of, &original, modified, current);
                let patch = patch.map_err(|error| {
                    Error::wrong(format!(
                        "error when creating patch for {:?}: {error}",
                        self.source
                    ))
                })?;
                Ok((patch, "application/strategic-merge-patch+json"))
            }
            None => Ok((
                patch::three_way_json(&original, modified, current),
                "application/merge-patch+json",
            )),
        }
    }

    fn described(&self) -> String {
        let Resource { group, version, kind, plural, .. } = self.resource;
        format!(
            "Resource: \"{group}/{version}, Resource={plural}\", GroupVersionKind: \"{group}/{version}, Kind={kind}\"\nName: {:?}, Namespace: {:?}",
            self.name,
            self.namespace.unwrap_or_default()
        )
    }
}

/// The object with the annotation that says what it is.
pub fn remembering(object: &Value) -> Value {
    let mut object = object.clone();
    if object["metadata"]["annotations"].is_null() {
        object["metadata"]["annotations"] = json!({});
    }
    if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
        annotations.remove(LAST_APPLIED);
    }
    let last = text::line(&object) + "\n";
    object["metadata"]["annotations"][LAST_APPLIED] = last.into();
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_applied_is_remembered() {
        let object = json!({"kind": "A", "metadata": {"name": "x", "annotations": {LAST_APPLIED: "old", "b": "<"}}});
        let annotated = remembering(&object);
        assert_eq!(
            annotated["metadata"]["annotations"][LAST_APPLIED],
            "{\"kind\":\"A\",\"metadata\":{\"annotations\":{\"b\":\"\\u003c\"},\"name\":\"x\"}}\n"
        );
    }

    #[test]
    fn dry_runs_are_of_three_kinds() {
        let cases = [
            ("none", Some(DryRun::None)),
            ("client", Some(DryRun::Client)),
            ("server", Some(DryRun::Server)),
            ("no", None),
        ];
        for (text, want) in cases {
            assert_eq!(DryRun::parse(text).ok(), want, "{text}");
        }
    }
}
