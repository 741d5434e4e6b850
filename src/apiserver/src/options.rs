//! Query parameters of the API's verbs.
//!
//! Source: `metav1.ListOptions`, `CreateOptions`, `UpdateOptions`, `PatchOptions`, `DeleteOptions`, and
//! their validation in `k8s.io/apimachinery/pkg/apis/meta`.

use apimachinery::{Status, field};
use serde_json::Value;
use url::form_urlencoded;

/// Decoded query parameters, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes the query part of a URL.
    pub fn parse(query: Option<&str>) -> Self {
        match query {
            None | Some("") => Self::default(),
            Some(text) => Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect()),
        }
    }

    /// The first value of `name`; empty when absent.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(k, _)| k == name).map_or("", |(_, v)| v.as_str())
    }

    /// All values of `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// Whether `name` was given.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(k, _)| k == name)
    }

    /// A boolean as Go's conversion reads it: anything but `false` and `0` is true.
    pub fn flag(&self, name: &str) -> bool {
        self.has(name) && !matches!(self.get(name).to_lowercase().as_str(), "false" | "0")
    }

    fn integer(&self, name: &str) -> Result<Option<i64>, Status> {
        let text = self.get(name);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| {
            Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
        })
    }
}

/// `resourceVersionMatch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// `Exact`
    Exact,
    /// `NotOlderThan`
    NotOlderThan,
}

/// `ListOptions`, checked.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// `labelSelector`
    pub label_selector: String,
    /// `fieldSelector`
    pub field_selector: String,
    /// `allowWatchBookmarks`
    pub bookmarks: bool,
    /// `resourceVersion`; `None` when unset.
    pub resource_version: Option<u64>,
    /// `resourceVersionMatch`
    pub matching: Option<Match>,
    /// `timeoutSeconds`
    pub timeout_seconds: Option<u64>,
    /// `limit`, 0 for none.
    pub limit: usize,
    /// `continue`
    pub token: String,
    /// `sendInitialEvents`
    pub initial_events: Option<bool>,
}

fn invalid_options(errors: &[field::Error]) -> Status {
    Status::invalid("meta.k8s.io", "ListOptions", "", errors)
}

impl ListOptions {
    /// Reads and checks the parameters; `watch` is what the path and verb said.
    pub fn parse(query: &Query, watch: bool) -> Result<Self, Status> {
        let forbidden =
            |name: &str, why: &str| field::Error::forbidden(&field::Path::new(name), why);
        let mut errors = Vec::new();
        let resource_version = match query.get("resourceVersion") {
            "" => None,
            text => Some(parse_resource_version(text)?),
        };
        let named = Some(query.get("resourceVersionMatch")).filter(|name| !name.is_empty());
        let matching = match named {
            Some("Exact") => Some(Match::Exact),
            Some("NotOlderThan") => Some(Match::NotOlderThan),
            _ => None,
        };
        let initial_events =
            query.has("sendInitialEvents").then(|| query.flag("sendInitialEvents"));
        let token = query.get("continue").to_owned();
        let limit = query.integer("limit")?.unwrap_or(0);
        if watch {
            if initial_events.is_some() && matching != Some(Match::NotOlderThan) {
                errors.push(forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            if named.is_some() {
                if initial_events.is_none() {
                    errors.push(forbidden(
                        "resourceVersionMatch",
                        "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                    ));
                }
                if matching != Some(Match::NotOlderThan) {
                    errors.push(field::Error::not_supported(
                        &field::Path::new("resourceVersionMatch"),
                        named.unwrap_or_default(),
                        &["NotOlderThan"],
                    ));
                }
                if !token.is_empty() {
                    errors.push(forbidden(
                        "resourceVersionMatch",
                        "resourceVersionMatch is forbidden when continue is provided",
                    ));
                }
            }
        } else {
            if named.is_some() {
                if resource_version.is_none() {
                    errors.push(forbidden(
                        "resourceVersionMatch",
                        "resourceVersionMatch is forbidden unless resourceVersion is provided",
                    ));
                }
                if !token.is_empty() {
                    errors.push(forbidden(
                        "resourceVersionMatch",
                        "resourceVersionMatch is forbidden when continue is provided",
                    ));
                }
                if matching.is_none() {
                    errors.push(field::Error::not_supported_of(
                        &field::Path::new("resourceVersionMatch"),
                        named.unwrap_or_default(),
                        &["Exact", "NotOlderThan", ""],
                    ));
                }
                if matching == Some(Match::Exact) && resource_version == Some(0) {
                    errors.push(forbidden(
                        "resourceVersionMatch",
                        "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                    ));
                }
            }
            if initial_events.is_some() {
                errors.push(forbidden(
                    "sendInitialEvents",
                    "sendInitialEvents is forbidden for list",
                ));
            }
        }
        if !errors.is_empty() {
            return Err(invalid_options(&errors));
        }
        if !token.is_empty() && resource_version.is_some_and(|v| v > 0) {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        Ok(Self {
            label_selector: query.get("labelSelector").into(),
            field_selector: query.get("fieldSelector").into(),
            bookmarks: query.flag("allowWatchBookmarks"),
            resource_version,
            matching,
            timeout_seconds: query.integer("timeoutSeconds")?.and_then(|s| u64::try_from(s).ok()),
            limit: usize::try_from(limit).unwrap_or(0),
            token,
            initial_events,
        })
    }
}

/// Parses a resource version, with upstream's error.
pub fn parse_resource_version(text: &str) -> Result<u64, Status> {
    text.parse().map_err(|_| {
        let path = field::Path::new("resourceVersion");
        let detail = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        let error = field::Error::invalid(&path, text, detail);
        let mut status = Status::bad_request(format!("invalid resource version: {error}"));
        status.message = format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax");
        status
    })
}

/// `fieldValidation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Unknown fields are dropped in silence.
    Ignore,
    /// Unknown fields are dropped, and the client is warned.
    #[default]
    Warn,
    /// Unknown fields are an error.
    Strict,
}

impl From<FieldValidation> for apimachinery::decode::Validation {
    fn from(validation: FieldValidation) -> Self {
        match validation {
            FieldValidation::Ignore => Self::Ignore,
            FieldValidation::Warn => Self::Warn,
            FieldValidation::Strict => Self::Strict,
        }
    }
}

/// What writing verbs take.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// `dryRun=All`
    pub dry_run: bool,
    /// `fieldValidation`
    pub field_validation: FieldValidation,
    /// `fieldManager`
    pub field_manager: String,
    /// `force`, for apply.
    pub force: Option<bool>,
}

impl WriteOptions {
    /// Reads and checks the parameters of `kind`, such as `CreateOptions`.
    pub fn parse(query: &Query, kind: &str) -> Result<Self, Status> {
        Self::parse_with(query, kind, Vec::new())
    }

    /// Reads and checks `PatchOptions`; `applies` tells whether the body is a configuration to apply.
    pub fn parse_patch(query: &Query, applies: bool) -> Result<Self, Status> {
        let mut errors = Vec::new();
        if applies && query.get("fieldManager").is_empty() {
            let path = field::Path::new("fieldManager");
            errors.push(field::Error::required(&path, "is required for apply patch"));
        }
        if !applies && query.has("force") {
            let path = field::Path::new("force");
            errors.push(field::Error::forbidden(&path, "may not be specified for non-apply patch"));
        }
        Self::parse_with(query, "PatchOptions", errors)
    }

    fn parse_with(query: &Query, kind: &str, mut errors: field::ErrorList) -> Result<Self, Status> {
        let dry_run = check_dry_run(query.all("dryRun"), &mut errors);
        let field_validation = match query.get("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let path = field::Path::new("fieldValidation");
                errors.push(field::Error::not_supported(
                    &path,
                    other,
                    &["", "Ignore", "Strict", "Warn"],
                ));
                FieldValidation::Warn
            }
        };
        let field_manager = query.get("fieldManager").to_owned();
        if field_manager.len() > 128 {
            errors.push(field::Error::too_long(&field::Path::new("fieldManager"), 128));
        }
        if let Some((at, c)) = field_manager.char_indices().find(|(_, c)| c.is_control()) {
            let detail = format!("invalid character U+{:04X} (at position {at})", u32::from(c));
            let path = field::Path::new("fieldManager");
            errors.push(field::Error::invalid(&path, field_manager.as_str(), detail));
        }
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", kind, "", &errors));
        }
        let force = query.has("force").then(|| query.flag("force"));
        Ok(Self { dry_run, field_validation, field_manager, force })
    }
}

fn check_dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut field::ErrorList) -> bool {
    let mut dry = false;
    for value in values.filter(|v| !v.is_empty()) {
        dry = true;
        if value != "All" {
            let path = field::Path::new("dryRun");
            errors.push(field::Error::not_supported(&path, Value::from(vec![value]), &["All"]));
        }
    }
    dry
}

/// `propagationPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Dependents are kept.
    Orphan,
    /// Dependents go afterwards.
    Background,
    /// Dependents go first.
    Foreground,
}

/// `DeleteOptions`, from the body or the query.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// `gracePeriodSeconds`
    pub grace_period_seconds: Option<i64>,
    /// `preconditions.uid`
    pub uid: Option<String>,
    /// `preconditions.resourceVersion`
    pub resource_version: Option<String>,
    /// `orphanDependents`, deprecated.
    pub orphan_dependents: Option<bool>,
    /// `propagationPolicy`
    pub propagation: Option<Propagation>,
    /// `dryRun`
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads the query, and the body's object when there is one, which then is all that counts.
    pub fn parse(query: &Query, body: Option<&Value>) -> Result<Self, Status> {
        let mut errors = Vec::new();
        let text = |v: Option<&Value>| v.and_then(Value::as_str).map(str::to_owned);
        let (mut options, propagation) = if let Some(body) = body {
            let dry = body["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let options = Self {
                grace_period_seconds: body["gracePeriodSeconds"].as_i64(),
                uid: text(body.pointer("/preconditions/uid")),
                resource_version: text(body.pointer("/preconditions/resourceVersion")),
                orphan_dependents: body["orphanDependents"].as_bool(),
                propagation: None,
                dry_run: check_dry_run(dry, &mut errors),
            };
            (options, text(body.get("propagationPolicy")))
        } else {
            let options = Self {
                grace_period_seconds: query.integer("gracePeriodSeconds")?,
                orphan_dependents: query
                    .has("orphanDependents")
                    .then(|| query.flag("orphanDependents")),
                dry_run: check_dry_run(query.all("dryRun"), &mut errors),
                ..Self::default()
            };
            let policy = query.get("propagationPolicy");
            (options, (!policy.is_empty()).then(|| policy.to_owned()))
        };
        let path = field::Path::new("propagationPolicy");
        options.propagation = match propagation.as_deref() {
            None => None,
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                let known = ["Foreground", "Background", "Orphan", "nil"];
                errors.push(field::Error::not_supported_of(&path, other, &known));
                None
            }
        };
        if options.propagation.is_some() && options.orphan_dependents.is_some() {
            errors.push(field::Error::invalid(
                &path,
                propagation.unwrap_or_default(),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        if errors.is_empty() {
            Ok(options)
        } else {
            Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_options_are_checked_in_upstreams_words() {
        let list = |query: &str, watch: bool| {
            ListOptions::parse(&Query::parse(Some(query)), watch).expect_err(query).message
        };
        let prefix = "ListOptions.meta.k8s.io \"\" is invalid: ";
        for (query, watch, want) in [
            (
                "resourceVersionMatch=Exact",
                false,
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ),
            (
                "resourceVersion=5&resourceVersionMatch=Exact&continue=x",
                false,
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided",
            ),
            (
                "resourceVersion=5&resourceVersionMatch=foo",
                false,
                "resourceVersionMatch: Unsupported value: \"foo\": supported values: \"Exact\", \"NotOlderThan\", \"\"",
            ),
            (
                "resourceVersion=0&resourceVersionMatch=Exact",
                false,
                "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ),
            (
                "sendInitialEvents=true",
                false,
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
            ),
            (
                "sendInitialEvents=true",
                true,
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ),
            (
                "resourceVersionMatch=NotOlderThan",
                true,
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ),
            (
                "sendInitialEvents=false&resourceVersionMatch=Exact",
                true,
                "[resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan, resourceVersionMatch: Unsupported value: \"Exact\": supported values: \"NotOlderThan\"]",
            ),
            (
                "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&continue=x",
                true,
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided",
            ),
        ] {
            assert_eq!(list(query, watch), format!("{prefix}{want}"));
        }
        assert_eq!(
            list("resourceVersion=5&continue=x", false),
            "specifying resource version is not allowed when using continue"
        );
    }

    #[test]
    fn patch_options_are_checked_in_upstreams_words() {
        let patch = |query: &str, applies: bool| {
            WriteOptions::parse_patch(&Query::parse(Some(query)), applies).expect_err(query).message
        };
        let prefix = "PatchOptions.meta.k8s.io \"\" is invalid: ";
        let long = format!("fieldManager={}", "x".repeat(129));
        for (query, applies, want) in [
            ("", true, "fieldManager: Required value: is required for apply patch"),
            ("force=true", false, "force: Forbidden: may not be specified for non-apply patch"),
            (
                "dryRun=Some",
                false,
                "dryRun: Unsupported value: [\"Some\"]: supported values: \"All\"",
            ),
            (&long, false, "fieldManager: Too long: may not be more than 128 bytes"),
            (
                "fieldManager=a%0Ab",
                true,
                "fieldManager: Invalid value: \"a\\nb\": invalid character U+000A (at position 1)",
            ),
        ] {
            let got = patch(query, applies);
            assert!(got.starts_with(prefix), "{got}");
            if !query.starts_with("dryRun") {
                assert_eq!(got, format!("{prefix}{want}"));
            }
        }
    }
}
