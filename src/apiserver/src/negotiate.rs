//! Which form the client wants the answer in, and which form its body has.
//!
//! Source: `k8s.io/apiserver/pkg/endpoints/handlers/negotiation`.

use apimachinery::Status;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

/// The serialisation of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `application/json`
    #[default]
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

/// The transformation of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// The object itself.
    #[default]
    Object,
    /// `meta.k8s.io` `Table`.
    Table,
    /// `meta.k8s.io` `PartialObjectMetadata` or its list.
    Metadata,
}

/// How to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// The serialisation.
    pub format: Format,
    /// The transformation.
    pub shape: Shape,
    /// `meta.k8s.io/v1beta1` instead of `v1` for a transformed answer.
    pub beta: bool,
    /// The client asked for line breaks and indentation.
    pub pretty: bool,
}

impl Accepted {
    /// The `Content-Type` of the answer.
    pub fn content_type(self) -> &'static str {
        match self.format {
            Format::Json => "application/json",
            Format::Yaml => "application/yaml",
            Format::Protobuf => PROTOBUF,
        }
    }

    /// `meta.k8s.io/v1` or `meta.k8s.io/v1beta1`.
    pub fn meta_version(self) -> &'static str {
        if self.beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
    }
}

/// Kubernetes' protobuf.
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// What the server can read and write, in upstream's order.
const OFFERED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// 406 with the list of what can be had.
pub fn not_acceptable() -> Status {
    let message = format!("only the following media types are accepted: {OFFERED}");
    Status::failure(406, "NotAcceptable", message)
}

/// 415 for a body in none of `accepted`.
pub fn unsupported(accepted: &str) -> Status {
    Status::unsupported_media_type(format!(
        "the body of the request was in an unknown format - accepted media types include: {accepted}"
    ))
}

/// One clause of an `Accept` header.
struct Clause<'a> {
    media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut list: Vec<Clause<'_>> = header
        .split(',')
        .filter_map(|part| {
            let mut pieces = part.split(';').map(str::trim);
            let media = pieces.next().filter(|m| !m.is_empty())?;
            let mut clause = Clause { media, parameters: Vec::new(), quality: 1.0 };
            for (key, value) in pieces.filter_map(|p| p.split_once('=')) {
                let value = value.trim().trim_matches('"');
                if key.trim() == "q" {
                    clause.quality = value.parse().unwrap_or(1.0);
                } else {
                    clause.parameters.push((key.trim(), value));
                }
            }
            Some(clause)
        })
        .collect();
    list.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    list
}

fn format_of(media: &str) -> Option<Format> {
    match media {
        "application/json" | "*/*" | "application/*" => Some(Format::Json),
        "application/yaml" => Some(Format::Yaml),
        PROTOBUF => Some(Format::Protobuf),
        _ => None,
    }
}

/// Picks the first clause that can be served. `transformable` tells whether this endpoint makes tables
/// and partial metadata, `typed` whether its kind has a protobuf form.
pub fn accept(headers: &HeaderMap, transformable: bool, typed: bool) -> Result<Accepted, Status> {
    let mut seen = false;
    for header in headers.get_all(ACCEPT) {
        let Ok(header) = header.to_str() else { continue };
        // The forms that nearly every request has, without parsing.
        if matches!(header, "application/json" | "*/*" | "application/json, */*") {
            return Ok(Accepted::default());
        }
        for clause in clauses(header) {
            seen = true;
            if let Some(accepted) = serve(&clause, transformable, typed) {
                return Ok(accepted);
            }
        }
    }
    if seen { Err(not_acceptable()) } else { Ok(Accepted::default()) }
}

fn serve(clause: &Clause<'_>, transformable: bool, typed: bool) -> Option<Accepted> {
    let mut accepted = Accepted { format: format_of(clause.media)?, ..Accepted::default() };
    let get = |name: &str| clause.parameters.iter().find(|(k, _)| *k == name).map(|(_, v)| *v);
    if get("pretty") == Some("1") {
        accepted.pretty = true;
    }
    if let Some(kind) = get("as") {
        if !transformable || get("g") != Some("meta.k8s.io") {
            return None;
        }
        accepted.shape = match kind {
            // Tables have no protobuf form.
            "Table" if accepted.format != Format::Protobuf => Shape::Table,
            "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::Metadata,
            _ => return None,
        };
        accepted.beta = match get("v") {
            Some("v1") => false,
            Some("v1beta1") => true,
            _ => return None,
        };
    } else if accepted.format == Format::Protobuf && !typed {
        return None;
    }
    Some(accepted)
}

/// The media type of a body, without parameters; empty when the client did not say.
pub fn content_type(headers: &HeaderMap) -> &str {
    headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .map_or("", |v| v.split(';').next().unwrap_or(v).trim())
}

/// The serialisation of a request body.
pub fn body_format(headers: &HeaderMap) -> Result<Format, Status> {
    match content_type(headers) {
        // Protobuf bodies tell themselves apart by their first bytes, and become JSON.
        "" | "application/json" | PROTOBUF => Ok(Format::Json),
        "application/yaml" => Ok(Format::Yaml),
        _ => Err(unsupported(OFFERED)),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn ask(accept_header: &str) -> Result<Accepted, Status> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_str(accept_header).expect("a header"));
        accept(&headers, true, true)
    }

    #[test]
    fn the_first_servable_clause_wins() {
        let json = Accepted::default();
        let table = Accepted { shape: Shape::Table, ..json };
        let yaml = Accepted { format: Format::Yaml, ..json };
        let protobuf = Accepted { format: Format::Protobuf, ..json };
        let cases = [
            ("application/json", json),
            ("application/vnd.kubernetes.protobuf,application/json", protobuf),
            (
                "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/yaml",
                yaml,
            ),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", table),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io", Accepted { beta: true, ..table }),
            ("application/json;as=Chart;v=v1;g=meta.k8s.io,application/yaml", yaml),
            ("application/json;q=0.5,application/yaml", yaml),
            ("text/html,*/*;q=0.8", json),
            ("application/json;stream=watch", json),
        ];
        for (header, want) in cases {
            assert_eq!(ask(header).expect(header), want, "{header}");
        }
        assert_eq!(ask("text/html").expect_err("no such form").code, 406);
    }
}
