//! Which form the client wants the answer in, and which form its body has.
//!
//! Source: `k8s.io/apiserver/pkg/endpoints/handlers/negotiation`.

use apimachinery::Status;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};

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
    /// `meta.k8s.io` `PartialObjectMetadata`.
    Metadata,
    /// `meta.k8s.io` `PartialObjectMetadataList`.
    MetadataList,
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
const PROTOBUF_TYPE: &str = "vnd.kubernetes.protobuf";
/// What the server can read and write, in upstream's order.
const OFFERED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// What a watch can be in.
const OFFERED_STREAMS: &str =
    "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";

/// 406 with the list of what can be had.
pub fn not_acceptable() -> Status {
    unacceptable(format!("only the following media types are accepted: {OFFERED}"))
}

/// 406 with the list of what a watch can be in.
pub fn no_such_stream() -> Status {
    unacceptable(format!("only the following media types are accepted: {OFFERED_STREAMS}"))
}

/// 406.
pub fn unacceptable(message: impl Into<String>) -> Status {
    Status::failure(406, "NotAcceptable", message)
}

/// 415 for a body in none of `accepted`.
pub fn unsupported(accepted: &str) -> Status {
    Status::unsupported_media_type(format!(
        "the body of the request was in an unknown format - accepted media types include: {accepted}"
    ))
}

/// What can be asked of an endpoint beside its plain answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// It makes tables and partial metadata.
    pub transformable: bool,
    /// Its kind has a protobuf form.
    pub typed: bool,
    /// The version of the API's own kinds that parameters may name.
    pub version: &'static str,
}

impl Endpoint {
    /// A document that is no object, or a failure.
    pub const PLAIN: Self = Self { transformable: false, typed: true, version: "" };
}

/// One clause of an `Accept` header.
pub struct Clause<'a> {
    /// The type before the slash.
    kind: &'a str,
    /// The type behind it.
    subtype: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    /// The value of a parameter; the last of several.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rfind(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// Whether the type is asked for, by name or with a `*`.
    pub fn takes(&self, kind: &str, subtype: &str) -> bool {
        match (self.kind, self.subtype) {
            ("*", "*") => true,
            (asked, "*") => asked == kind,
            asked => asked == (kind, subtype),
        }
    }

    /// Whether it comes before another: by quality, and `*` after what is named, whatever the quality says.
    fn precedes(&self, other: &Self) -> bool {
        self.quality > other.quality
            || self.kind != "*" && other.kind == "*"
            || self.subtype != "*" && other.subtype == "*"
    }
}

/// Clauses that are read: sorting takes the square of their number.
const CLAUSES_MAX: usize = 64;

/// The clauses of the first `Accept` header, in order; none for what is no clause.
///
/// Source: `ParseAccept` of `github.com/munnerz/goautoneg`. That order is none in which one could sort: which clause
/// comes first depends on the steps, so these are the same, up to the twelve clauses that Go sorts by insertion.
pub fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut list: Vec<Clause<'_>> =
        header.split(',').filter_map(clause).take(CLAUSES_MAX).collect();
    for end in 1..list.len() {
        let mut at = end;
        while at > 0 && list[at].precedes(&list[at - 1]) {
            list.swap(at, at - 1);
            at -= 1;
        }
    }
    list
}

fn clause(part: &str) -> Option<Clause<'_>> {
    let mut pieces = part.trim_matches(' ').split(';');
    let media = pieces.next().unwrap_or_default().trim_matches(' ');
    let (kind, subtype) = match media.split_once('/') {
        Some((_, subtype)) if subtype.contains('/') || subtype.is_empty() => return None,
        Some((kind, subtype)) => (kind.trim_matches(' '), subtype.trim_matches(' ')),
        None if media == "*" => ("*", "*"),
        None => return None,
    };
    let mut clause = Clause { kind, subtype, parameters: Vec::new(), quality: 1.0 };
    for (key, value) in pieces.filter_map(|piece| piece.split_once('=')) {
        if value.is_empty() || value.contains('=') {
            continue;
        }
        match key.trim_matches(' ') {
            "q" => clause.quality = value.parse().unwrap_or(0.0),
            key => clause.parameters.push((key, value.trim_matches(' '))),
        }
    }
    Some(clause)
}

/// The first `Accept` header, in which all must be said.
pub fn asked(headers: &HeaderMap) -> Option<&str> {
    headers.get(ACCEPT).map(said)
}

/// What the header says; what is no text asks for nothing that there is.
pub fn said(header: &HeaderValue) -> &str {
    header.to_str().unwrap_or("not text")
}

/// Picks the first clause that can be served.
pub fn accept(header: Option<&str>, endpoint: Endpoint) -> Result<Accepted, Status> {
    // The forms that nearly every request has, without parsing.
    let header = match header {
        None | Some("" | "application/json" | "*/*" | "application/json, */*") => {
            return Ok(Accepted::default());
        }
        Some(header) => header,
    };
    for clause in clauses(header) {
        let formats =
            [("json", Format::Json), ("yaml", Format::Yaml), (PROTOBUF_TYPE, Format::Protobuf)];
        for (subtype, format) in formats {
            if clause.takes("application", subtype)
                && let Some(accepted) = serve(&clause, format, endpoint)
            {
                return Ok(accepted);
            }
        }
    }
    Err(not_acceptable())
}

fn serve(clause: &Clause<'_>, format: Format, endpoint: Endpoint) -> Option<Accepted> {
    let given = |name: &str| clause.get(name).unwrap_or_default();
    let streams = given("stream") == "watch" && format != Format::Yaml;
    if !given("stream").is_empty() && !streams {
        return None;
    }
    if !given("sv").is_empty() && given("sv") != endpoint.version {
        return None;
    }
    let pretty = given("pretty") == "1";
    let mut accepted = Accepted { format, pretty, ..Accepted::default() };
    if ["as", "g", "v"].iter().all(|name| clause.get(name).is_none()) {
        return (endpoint.typed || format != Format::Protobuf).then_some(accepted);
    }
    if !endpoint.transformable || given("g") != "meta.k8s.io" {
        return None;
    }
    accepted.shape = match given("as") {
        // Tables have no protobuf form.
        "Table" if format != Format::Protobuf => Shape::Table,
        "PartialObjectMetadata" => Shape::Metadata,
        "PartialObjectMetadataList" => Shape::MetadataList,
        _ => return None,
    };
    accepted.beta = match given("v") {
        "v1" => false,
        "v1beta1" => true,
        _ => return None,
    };
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
        other => match other.to_ascii_lowercase().as_str() {
            "application/json" | PROTOBUF => Ok(Format::Json),
            "application/yaml" => Ok(Format::Yaml),
            _ => Err(unsupported(OFFERED)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESOURCE: Endpoint = Endpoint { transformable: true, typed: true, version: "v1" };
    const CUSTOM: Endpoint = Endpoint { typed: false, ..RESOURCE };

    fn told(accepted: Result<Accepted, Status>) -> String {
        match accepted {
            Ok(got) => format!(
                "{:?} {:?}{}{}",
                got.format,
                got.shape,
                if got.beta { " beta" } else { "" },
                if got.pretty { " pretty" } else { "" }
            ),
            Err(status) => status.code.to_string(),
        }
    }

    #[test]
    fn the_first_servable_clause_wins() {
        let cases = [
            ("", "Json Object"),
            ("application/json", "Json Object"),
            ("application/json;charset=utf-8", "Json Object"),
            ("application/json;charset=what;profile=local", "Json Object"),
            ("application/json;pretty=1", "Json Object pretty"),
            ("application/json;pretty=true", "Json Object"),
            ("application/vnd.kubernetes.protobuf,application/json", "Protobuf Object"),
            ("application/*", "Json Object"),
            ("*", "Json Object"),
            ("text/*", "406"),
            ("text/html", "406"),
            ("json", "406"),
            (" ", "406"),
            ("application/json/x", "406"),
            ("Application/JSON", "406"),
            ("text/html,*/*;q=0.8", "Json Object"),
            ("application/json;q=0.5,application/yaml", "Yaml Object"),
            ("application/json;q=0.5,application/yaml;q=0.4", "Json Object"),
            // What is named comes before what is not, whatever its quality.
            ("*/*,application/yaml;q=0.1", "Yaml Object"),
            ("application/*;q=0.9,application/vnd.kubernetes.protobuf;q=0.1", "Protobuf Object"),
            ("application/yaml;q=x,application/json", "Json Object"),
            ("application/yaml; q=0.5 , application/json; q=0.9", "Json Object"),
            ("application/json;stream=watch", "Json Object"),
            ("application/json;stream=other", "406"),
            ("application/yaml;stream=watch", "406"),
            ("*/*;stream=watch", "Json Object"),
            ("application/json;sv=v1", "Json Object"),
            ("application/json;sv=v2", "406"),
            ("application/json;v=v1", "406"),
            ("application/json;g=meta.k8s.io", "406"),
            ("application/json;as=,application/yaml", "Json Object"),
        ];
        for (header, want) in cases {
            assert_eq!(told(accept(Some(header), RESOURCE)), want, "{header}");
        }
        assert_eq!(told(accept(None, RESOURCE)), "Json Object");
    }

    #[test]
    fn answers_are_transformed_where_that_can_be() {
        const META: &str = "g=meta.k8s.io";
        let cases = [
            (format!("application/json;as=Table;v=v1;{META}"), "Json Table", "406"),
            (format!("application/json;as=Table;v=v1beta1;{META}"), "Json Table beta", "406"),
            (format!("application/json;as=Table;v=v1alpha1;{META}"), "406", "406"),
            (format!("application/json;as=Table;{META}"), "406", "406"),
            ("application/json;as=Table;v=v1".into(), "406", "406"),
            ("application/json;as=Table;v=v1;g=other".into(), "406", "406"),
            (format!("application/json;as=\"Table\";v=v1;{META}"), "406", "406"),
            (
                format!("application/json;as=Chart;v=v1;{META},application/yaml"),
                "Yaml Object",
                "Yaml Object",
            ),
            (format!("application/yaml;as=Table;v=v1;{META}"), "Yaml Table", "406"),
            (format!("*/*;as=Table;v=v1;{META}"), "Json Table", "406"),
            (
                format!(
                    "application/vnd.kubernetes.protobuf;as=Table;v=v1;{META},application/json"
                ),
                "Json Object",
                "Json Object",
            ),
            (
                format!("application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;v=v1;{META}"),
                "Protobuf Metadata",
                "406",
            ),
            (
                format!(
                    "application/json;as=PartialObjectMetadataList;v=v1;{META},application/json"
                ),
                "Json MetadataList",
                "Json Object",
            ),
        ];
        for (header, want, plain) in cases {
            assert_eq!(told(accept(Some(&header), RESOURCE)), want, "{header}");
            assert_eq!(told(accept(Some(&header), CUSTOM)), want, "{header}");
            assert_eq!(told(accept(Some(&header), Endpoint::PLAIN)), plain, "{header}");
        }
        let protobuf = Some("application/vnd.kubernetes.protobuf");
        assert_eq!(told(accept(protobuf, CUSTOM)), "406");
    }

    #[test]
    fn bodies_tell_their_form() {
        for (kind, want) in [
            ("", Ok(Format::Json)),
            ("application/json; charset=utf-8", Ok(Format::Json)),
            ("Application/JSON", Ok(Format::Json)),
            ("application/yaml", Ok(Format::Yaml)),
            ("text/plain", Err(415)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, kind.parse().expect("a header"));
            assert_eq!(body_format(&headers).map_err(|status| status.code), want, "{kind}");
        }
    }
}
