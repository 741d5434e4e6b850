//! From method and URL path to what is asked: the API's path grammar.
//!
//! Source: `k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`.

use apimachinery::Status;
use http::Method;

/// A parsed request line. Slices of the path, undecoded: names hold no escapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo<'a> {
    /// Whether the path is about API objects.
    pub is_resource: bool,
    /// The API verb, or the lower-case method for other paths.
    pub verb: &'static str,
    /// API group; empty for the core group.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Namespace; of namespaces, the object itself.
    pub namespace: &'a str,
    /// Resource.
    pub resource: &'a str,
    /// Subresource.
    pub subresource: &'a str,
    /// Object name.
    pub name: &'a str,
    /// What follows the subresource, for proxies.
    pub rest: &'a str,
    /// The deprecated `/watch/` path prefix was used.
    pub watch_prefix: bool,
}

fn method_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        Method::CONNECT => "connect",
        Method::TRACE => "trace",
        _ => "",
    }
}

/// The verb for a resource request; `None` for methods the API does not have.
fn resource_verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// Parses a request line; `watch` tells whether the query asks for one, `named` whether its field
/// selector names one object.
pub fn parse<'a>(method: &Method, path: &'a str, watch: bool) -> Result<RequestInfo<'a>, Status> {
    let mut info = RequestInfo { verb: method_verb(method), ..RequestInfo::default() };
    let trimmed = path.trim_matches('/');
    let mut parts = Segments(trimmed);
    let legacy = match parts.next() {
        Some("api") => true,
        Some("apis") => false,
        _ => return Ok(info),
    };
    let count = trimmed.split('/').count();
    if count < if legacy { 3 } else { 4 } {
        return Ok(info);
    }
    if !legacy {
        info.group = parts.next().unwrap_or_default();
    }
    info.version = parts.next().unwrap_or_default();
    info.is_resource = true;
    info.verb = resource_verb(method);
    let mut first = parts.next().unwrap_or_default();
    if first == "watch" {
        info.watch_prefix = true;
        info.verb = "watch";
        first = parts.next().ok_or_else(|| {
            Status::bad_request("unable to determine kind and namespace from url")
        })?;
    }
    if first == "namespaces"
        && let Some(namespace) = parts.next()
    {
        info.namespace = namespace;
        let mut ahead = Segments(parts.0);
        match ahead.next() {
            Some("status" | "finalize") | None => {
                info.resource = "namespaces";
                info.name = namespace;
                info.subresource = parts.next().unwrap_or_default();
                info.rest = parts.0;
                return Ok(finish(info, watch));
            }
            Some(_) => first = parts.next().unwrap_or_default(),
        }
    }
    info.resource = first;
    info.name = parts.next().unwrap_or_default();
    info.subresource = parts.next().unwrap_or_default();
    info.rest = parts.0;
    Ok(finish(info, watch))
}

fn finish(mut info: RequestInfo<'_>, watch: bool) -> RequestInfo<'_> {
    if info.name.is_empty() {
        info.verb = match info.verb {
            "get" if watch => "watch",
            "get" => "list",
            "delete" => "deletecollection",
            verb => verb,
        };
    }
    info
}

/// Path segments; what is left stays readable.
struct Segments<'a>(&'a str);

impl<'a> Segments<'a> {
    fn next(&mut self) -> Option<&'a str> {
        if self.0.is_empty() {
            return None;
        }
        let (head, tail) = self.0.split_once('/').unwrap_or((self.0, ""));
        self.0 = tail;
        Some(head)
    }
}

/// The URI with those characters written out in its path that clients may encode and need not, such as the colons of
/// roles' names. What is passed on to others (`proxy`) stays as it came.
pub fn written_out(uri: &http::Uri) -> Option<http::Uri> {
    let path = uri.path();
    if !path.contains('%') || path.contains("/proxy/") {
        return None;
    }
    let mut plain = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        plain.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        let stands_for = code.map(char::from);
        let needless = |c: &char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:@".contains(*c);
        if let Some(c) = stands_for.filter(needless) {
            plain.push(c);
            rest = &rest[at + 3..];
        } else {
            plain.push('%');
            rest = &rest[at + 1..];
        }
    }
    plain.push_str(rest);
    if let Some(query) = uri.query() {
        plain.push_str(&format!("?{query}"));
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(plain.parse().ok()?);
    http::Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        // method, path, watch; verb, group, version, namespace, resource, subresource, name
        type Row = (Method, &'static str, bool, [&'static str; 7]);
        let rows: [Row; 18] = [
            (
                Method::GET,
                "/api/v1/namespaces",
                false,
                ["list", "", "v1", "", "namespaces", "", ""],
            ),
            (
                Method::GET,
                "/api/v1/namespaces/other",
                false,
                ["get", "", "v1", "other", "namespaces", "", "other"],
            ),
            (
                Method::PUT,
                "/api/v1/namespaces/other/finalize",
                false,
                ["update", "", "v1", "other", "namespaces", "finalize", "other"],
            ),
            (
                Method::GET,
                "/api/v1/namespaces/other/status",
                false,
                ["get", "", "v1", "other", "namespaces", "status", "other"],
            ),
            (
                Method::GET,
                "/api/v1/namespaces/other/pods",
                false,
                ["list", "", "v1", "other", "pods", "", ""],
            ),
            (
                Method::GET,
                "/api/v1/namespaces/other/pods/foo",
                false,
                ["get", "", "v1", "other", "pods", "", "foo"],
            ),
            (
                Method::HEAD,
                "/api/v1/namespaces/other/pods/foo",
                false,
                ["get", "", "v1", "other", "pods", "", "foo"],
            ),
            (Method::GET, "/api/v1/pods", false, ["list", "", "v1", "", "pods", "", ""]),
            (Method::GET, "/api/v1/pods", true, ["watch", "", "v1", "", "pods", "", ""]),
            (Method::GET, "/api/v1/watch/pods", false, ["watch", "", "v1", "", "pods", "", ""]),
            (
                Method::GET,
                "/api/v1/watch/namespaces/other/pods",
                false,
                ["watch", "", "v1", "other", "pods", "", ""],
            ),
            (
                Method::GET,
                "/api/v1/watch/namespaces/other/pods/foo",
                false,
                ["watch", "", "v1", "other", "pods", "", "foo"],
            ),
            (
                Method::GET,
                "/api/v1/namespaces/other/pods/foo/log",
                false,
                ["get", "", "v1", "other", "pods", "log", "foo"],
            ),
            (
                Method::POST,
                "/apis/apps/v1/namespaces/other/deployments",
                false,
                ["create", "apps", "v1", "other", "deployments", "", ""],
            ),
            (
                Method::DELETE,
                "/apis/apps/v1/namespaces/other/deployments",
                false,
                ["deletecollection", "apps", "v1", "other", "deployments", "", ""],
            ),
            (
                Method::DELETE,
                "/apis/apps/v1/namespaces/other/deployments/x",
                false,
                ["delete", "apps", "v1", "other", "deployments", "", "x"],
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/n/deployments/x/scale",
                false,
                ["patch", "apps", "v1", "n", "deployments", "scale", "x"],
            ),
            (Method::DELETE, "/api/v1/nodes/n", false, ["delete", "", "v1", "", "nodes", "", "n"]),
        ];
        for (method, path, watch, [verb, group, version, namespace, resource, subresource, name]) in
            rows
        {
            let info = parse(&method, path, watch).expect(path);
            let got = [
                info.verb,
                info.group,
                info.version,
                info.namespace,
                info.resource,
                info.subresource,
                info.name,
            ];
            assert_eq!(
                got,
                [verb, group, version, namespace, resource, subresource, name],
                "{method} {path}"
            );
            assert!(info.is_resource);
        }
    }

    #[test]
    fn other_paths_are_not_about_resources() {
        for path in [
            "/",
            "/api",
            "/apis",
            "/api/v1",
            "/apis/apps",
            "/apis/apps/v1",
            "/healthz",
            "/version",
            "/api/",
        ] {
            let info = parse(&Method::GET, path, false).expect(path);
            assert!(!info.is_resource, "{path}");
            assert_eq!(info.verb, "get");
        }
    }

    #[test]
    fn needless_codes_are_written_out() {
        for (path, want) in [
            ("/apis/x/clusterroles/system%3Aa?b=%3A", Some("/apis/x/clusterroles/system:a?b=%3A")),
            ("/a%2Fb%ff%20%", Some("/a%2Fb%ff%20%")),
            ("/plain", None),
            ("/api/v1/namespaces/a/pods/b/proxy/%3A", None),
        ] {
            let found = written_out(&path.parse().unwrap()).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), want, "{path}");
        }
    }
}
