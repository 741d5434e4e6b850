//! `/statusz`: since when the server runs, as text for people or as an object.
//!
//! Source: `k8s.io/component-base/zpages/statusz`.

use apimachinery::Status;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use jiff::Timestamp;
use jiff::fmt::strtime;
use serde_json::{Value, json};

use crate::attributes::Warnings;
use crate::body::Response;
use crate::health::Health;
use crate::negotiate::{self, Accepted, Clause, Format};
use crate::respond;
use crate::zero::Zero;

const PATHS: [&str; 5] = ["/healthz", "/livez", "/metrics", "/readyz", "/version"];
/// The name of all API servers.
const COMPONENT: &str = "apiserver";

/// Answers in the first form that the client asks for and there is.
pub fn serve(health: &Health, headers: &HeaderMap) -> Result<Response, Status> {
    let asked = negotiate::asked(headers).filter(|asked| !asked.is_empty()).unwrap_or("*/*");
    for clause in negotiate::clauses(asked) {
        if let Some(response) = object(health, &clause) {
            return Ok(response);
        }
        if clause.takes("text", "plain") {
            let text = respond::answer(StatusCode::OK, "text/plain; charset=utf-8", text(health));
            return Ok(text);
        }
    }
    Err(negotiate::unacceptable(
        "only the following media types are accepted: application/json, application/yaml, text/plain",
    ))
}

/// The object, if that is what a clause names.
fn object(health: &Health, clause: &Clause<'_>) -> Option<Response> {
    if clause.get("g") != Some("config.k8s.io") || clause.get("as") != Some("Statusz") {
        return None;
    }
    let version = clause.get("v").filter(|version| matches!(*version, "v1alpha1" | "v1beta1"))?;
    let (format, name) = [(Format::Json, "json"), (Format::Yaml, "yaml")]
        .into_iter()
        .find(|(_, name)| clause.takes("application", name))?;
    let accepted = Accepted { format, pretty: format == Format::Json, ..Accepted::default() };
    let mut response = respond::value(StatusCode::OK, &document(health, version), accepted);
    let kind = format!("application/{name};g=config.k8s.io;v={version};as=Statusz");
    if let Ok(kind) = HeaderValue::try_from(kind) {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    if version == "v1alpha1" {
        let warnings = Warnings::default();
        warnings
            .add("This version of the statusz endpoint is deprecated. Please use a newer version.");
        respond::add_warnings(&mut response, &warnings);
    }
    Some(response)
}

fn document(health: &Health, version: &str) -> Value {
    let info = crate::version::info();
    json!({
        "kind": "Statusz",
        "apiVersion": format!("config.k8s.io/{version}"),
        "metadata": {"name": COMPONENT},
        "startTime": started(health).strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "uptimeSeconds": health.uptime().as_secs(),
        "goVersion": info["goVersion"],
        "binaryVersion": release(&info),
        "emulationVersion": release(&info),
        "paths": PATHS,
    })
}

fn started(health: &Health) -> Timestamp {
    Timestamp::try_from(health.started()).unwrap_or_default()
}

/// `1.36`
fn release(info: &Value) -> String {
    format!("{}.{}", info["major"].text(), info["minor"].text())
}

fn text(health: &Health) -> String {
    let info = crate::version::info();
    let up = health.uptime().as_secs();
    let started = started(health).to_zoned(jiff::tz::TimeZone::UTC);
    let started = strtime::format("%a %b %e %H:%M:%S UTC %Y", &started).unwrap_or_default();
    let release = release(&info);
    format!(
        "\n{COMPONENT} statusz\n\
         Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n\n\
         Started: {started}\n\
         Up: {} hr {:02} min {:02} sec\n\
         Go version: {}\n\
         Binary version: {release}\n\
         Emulation version: {release}\n\
         Paths: {}\n",
        up / 3600,
        up / 60 % 60,
        up % 60,
        info["goVersion"].text(),
        PATHS.join(" "),
    )
}
