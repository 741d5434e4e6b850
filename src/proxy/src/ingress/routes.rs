//! Which request goes where.
//!
//! Source: the concept page and API reference of Ingress v1. What they leave open is decided like
//! this: paths of type `ImplementationSpecific` are prefixes; of two Ingresses that claim the same
//! path the older one has it; what a host's own paths do not take is for the wildcard and for
//! the rules without a host, then for default backends, first of all that of the host's Ingress.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend};
use kube::ResourceExt;

use super::Problem;
use crate::table::{Place, Slices, endpoints};

/// `appProtocol` of servers that speak HTTP/2 without TLS (KEP-3726).
const H2C: &str = "kubernetes.io/h2c";

/// Where requests of a path go.
#[derive(Debug, Default)]
pub(super) struct Backend {
    /// Empty: nobody is there to answer.
    pub endpoints: Vec<SocketAddr>,
    /// Whether it is spoken to in HTTP/2.
    pub http2: bool,
    turn: AtomicUsize,
}

impl Backend {
    /// The endpoints, from the one whose turn it is: the others are for when that cannot be reached.
    pub fn in_turn(&self) -> impl Iterator<Item = SocketAddr> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.endpoints.len().max(1);
        let (before, from) = self.endpoints.split_at(turn);
        from.iter().chain(before).copied()
    }
}

#[derive(Debug)]
struct Path {
    path: String,
    exact: bool,
    backend: Arc<Backend>,
}

impl Path {
    fn takes(&self, path: &str) -> bool {
        if self.exact {
            return path == self.path;
        }
        // Element by element; a slash at the end is of no meaning.
        let prefix = self.path.trim_end_matches('/');
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// The paths of one host, the best match first.
#[derive(Debug, Default)]
struct Host {
    paths: Vec<Path>,
    default: Option<Arc<Backend>>,
}

impl Host {
    fn find(&self, path: &str) -> Option<&Arc<Backend>> {
        self.paths.iter().find(|candidate| candidate.takes(path)).map(|path| &path.backend)
    }
}

/// All routes.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// By name in lower case; wildcards by what follows their star, `.example.org`.
    hosts: HashMap<String, Host>,
    wildcards: HashMap<String, Host>,
    any: Host,
}

impl Routes {
    /// The routes of these Ingresses, and what of them leads nowhere.
    pub fn new(
        ingresses: &[Arc<Ingress>],
        services: &[Arc<Service>],
        slices: &[Arc<EndpointSlice>],
        place: &Place,
    ) -> (Self, Vec<Problem>) {
        let world = World {
            services: services
                .iter()
                .map(|s| ((s.namespace().unwrap_or_default(), s.name_any()), s.as_ref()))
                .collect(),
            slices: Slices::new(slices),
            place,
        };
        let (mut own, mut problems) = (Self::default(), Vec::new());
        let mut ordered: Vec<&Arc<Ingress>> = ingresses.iter().collect();
        ordered.sort_by_key(|i| (i.creation_timestamp(), i.namespace(), i.name_any()));
        for ingress in ordered {
            let Some(spec) = &ingress.spec else { continue };
            let mut resolve = |backend: &IngressBackend| {
                let (backend, problem) = world.backend(ingress, backend);
                problems.extend(problem.map(|m| Problem::of(ingress, "BackendNotFound", m)));
                Arc::new(backend)
            };
            let default = spec.default_backend.as_ref().map(&mut resolve);
            for rule in spec.rules.iter().flatten() {
                let host = own.host_mut(rule.host.as_deref().unwrap_or_default());
                for path in rule.http.iter().flat_map(|http| &http.paths) {
                    host.paths.push(Path {
                        path: path.path.clone().unwrap_or_else(|| "/".into()),
                        exact: is_exact(path),
                        backend: resolve(&path.backend),
                    });
                }
                // Without paths everything is for the default backend.
                if let Some(default) = &default {
                    host.default.get_or_insert_with(|| default.clone());
                }
            }
            if let Some(default) = default {
                own.any.default.get_or_insert(default);
            }
        }
        let all = own.hosts.values_mut().chain(own.wildcards.values_mut());
        for host in all.chain([&mut own.any]) {
            // The sort is stable: of equal paths the one of the older Ingress stays first.
            host.paths
                .sort_by_key(|path| (Reverse(path.path.trim_end_matches('/').len()), !path.exact));
        }
        problems.sort();
        problems.dedup();
        (own, problems)
    }

    fn host_mut(&mut self, name: &str) -> &mut Host {
        let name = name.to_lowercase();
        if name.is_empty() {
            return &mut self.any;
        }
        match name.strip_prefix('*') {
            Some(suffix) => self.wildcards.entry(suffix.to_owned()).or_default(),
            None => self.hosts.entry(name).or_default(),
        }
    }

    /// Where a request goes; None if nowhere. `host` is as in the request, with a port or not.
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<Backend>> {
        let name = host_name(host).to_lowercase();
        // A star stands for exactly one label.
        let suffix = name.find('.').filter(|dot| *dot > 0).map(|dot| &name[dot..]);
        let wildcard = suffix.and_then(|suffix| self.wildcards.get(suffix));
        let hosts = [self.hosts.get(&name), wildcard, Some(&self.any)];
        let hosts = || hosts.iter().flatten();
        hosts()
            .find_map(|host| host.find(path))
            .or_else(|| hosts().find_map(|host| host.default.as_ref()))
    }
}

/// A host without its port.
pub(super) fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_exact(path: &HTTPIngressPath) -> bool {
    path.path_type == "Exact"
}

struct World<'a> {
    services: HashMap<(String, String), &'a Service>,
    slices: Slices<'a>,
    place: &'a Place,
}

impl World<'_> {
    /// The backend, and why it will not answer if that is plain already.
    fn backend(&self, ingress: &Ingress, backend: &IngressBackend) -> (Backend, Option<String>) {
        let none = |why: String| (Backend::default(), Some(why));
        let Some(wanted) = &backend.service else {
            return none("only Services can be backends, not other resources".into());
        };
        let name = &wanted.name;
        let key = (ingress.namespace().unwrap_or_default(), name.clone());
        let Some(service) = self.services.get(&key) else {
            return none(format!("there is no Service {name:?}"));
        };
        let port = wanted.port.as_ref();
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let found = ports.into_iter().find(|candidate| {
            port.is_some_and(|port| match &port.name {
                Some(name) => candidate.name.as_ref() == Some(name),
                None => Some(candidate.port) == port.number,
            })
        });
        let Some(found) = found else {
            return none(format!("Service {name:?} has no such port"));
        };
        let backend = Backend {
            endpoints: endpoints(self.slices.of(service), found, self.place, false),
            http2: found.app_protocol.as_deref() == Some(H2C),
            turn: AtomicUsize::new(0),
        };
        (backend, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn place() -> Place {
        Place { node: "here".into(), addresses: Vec::new(), zone: None }
    }

    fn ingress(name: &str, spec: &Value) -> Arc<Ingress> {
        let metadata = json!({"name": name, "namespace": "d",
            "creationTimestamp": format!("2026-01-01T00:00:0{}Z", name.len())});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
    }

    fn to(service: &str) -> Value {
        json!({"service": {"name": service, "port": {"number": 80}}})
    }

    /// Services a, b, … with endpoints whose last number is their place in the alphabet.
    fn routes(ingresses: &[Arc<Ingress>]) -> (Routes, Vec<Problem>) {
        let (mut services, mut slices) = (Vec::new(), Vec::new());
        for (number, name) in (1..).zip(["a", "b", "c", "d"]) {
            let service = json!({"metadata": {"name": name, "namespace": "d"},
                "spec": {"ports": [{"name": "http", "port": 80}]}});
            services.push(Arc::new(serde_json::from_value(service).unwrap()));
            let slice = json!({"metadata": {"name": name, "namespace": "d",
                    "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
                "ports": [{"name": "http", "port": 80}],
                "endpoints": [{"addresses": [format!("10.42.0.{number}")]}]});
            slices.push(Arc::new(serde_json::from_value(slice).unwrap()));
        }
        Routes::new(ingresses, &services, &slices, &place())
    }

    fn found(routes: &Routes, host: &str, path: &str) -> String {
        let backend = routes.find(host, path);
        let endpoint =
            backend.map(|b| b.in_turn().next().map_or("nobody".into(), |e| e.to_string()));
        let letter = |text: String| match text.strip_prefix("10.42.0.").map(|t| &t[..1]) {
            Some("1") => "a".into(),
            Some("2") => "b".into(),
            Some("3") => "c".into(),
            Some("4") => "d".into(),
            _ => text,
        };
        endpoint.map_or("none".into(), letter)
    }

    /// The table of the concept page ("Examples"), a line each: type, path, request, whether it fits.
    #[test]
    fn paths_match_as_documented() {
        let cases = [
            ("Prefix", "/", "/any/path", true),
            ("Exact", "/foo", "/foo", true),
            ("Exact", "/foo", "/bar", false),
            ("Exact", "/foo", "/foo/", false),
            ("Exact", "/foo/", "/foo", false),
            ("Prefix", "/foo", "/foo", true),
            ("Prefix", "/foo", "/foo/", true),
            ("Prefix", "/foo/", "/foo", true),
            ("Prefix", "/foo/", "/foo/", true),
            ("Prefix", "/aaa/bb", "/aaa/bbb", false),
            ("Prefix", "/aaa/bbb", "/aaa/bbb", true),
            ("Prefix", "/aaa/bbb/", "/aaa/bbb", true),
            ("Prefix", "/aaa/bbb", "/aaa/bbb/", true),
            ("Prefix", "/aaa/bbb", "/aaa/bbb/ccc", true),
            ("Prefix", "/aaa/bbb", "/aaa/bbbxyz", false),
            ("ImplementationSpecific", "/foo", "/foo/bar", true),
        ];
        for (kind, path, request, want) in cases {
            let path_rule = json!({"pathType": kind, "path": path, "backend": to("a")});
            let spec = json!({"rules": [{"http": {"paths": [path_rule]}}]});
            let (routes, _) = routes(&[ingress("i", &spec)]);
            assert_eq!(routes.find("x", request).is_some(), want, "{kind} {path} {request}");
        }
    }

    #[test]
    fn the_longest_path_wins_and_of_equal_ones_the_exact() {
        let path = |kind: &str, path: &str, service: &str| json!({"pathType": kind, "path": path, "backend": to(service)});
        let paths = json!([
            path("Prefix", "/", "a"),
            path("Prefix", "/aaa", "b"),
            path("Prefix", "/foo", "c"),
            path("Exact", "/foo", "d")
        ]);
        let older = ingress("i", &json!({"rules": [{"http": {"paths": paths}}]}));
        let claim = json!([path("Prefix", "/aaa", "d"), path("Prefix", "/aaa/bbb", "c")]);
        let younger = ingress("ii", &json!({"rules": [{"http": {"paths": claim}}]}));
        let (routes, problems) = routes(&[younger, older]);
        assert!(problems.is_empty());
        let cases =
            [("/ccc", "a"), ("/aaa/ccc", "b"), ("/aaa/bbb/x", "c"), ("/foo", "d"), ("/foo/", "c")];
        for (path, want) in cases {
            assert_eq!(found(&routes, "x", path), want, "{path}");
        }
    }

    #[test]
    fn hosts_match_as_documented() {
        let rule = |host: &str, service: &str| {
            let paths = json!([{"pathType": "Prefix", "path": "/", "backend": to(service)}]);
            json!({"host": host, "http": {"paths": paths}})
        };
        let spec = json!({"rules": [rule("*.foo.com", "a"), rule("bar.foo.com", "b")]});
        let (own, _) = routes(&[ingress("i", &spec)]);
        let cases = [
            ("baz.foo.com", "a"),
            ("bar.foo.com", "b"),
            ("BAR.foo.com:8080", "b"),
            ("baz.bar.foo.com", "none"),
            ("foo.com", "none"),
            (".foo.com", "none"),
            ("", "none"),
        ];
        for (host, want) in cases {
            assert_eq!(found(&own, host, "/"), want, "{host}");
        }
    }

    #[test]
    fn what_no_rule_takes_is_for_the_default_backend() {
        let path = json!([{"pathType": "Prefix", "path": "/x", "backend": to("a")}]);
        let spec = json!({"defaultBackend": to("b"),
            "rules": [{"host": "own.com", "http": {"paths": path}}, {"host": "bare.com"}]});
        let first = ingress("i", &json!({"defaultBackend": to("c")}));
        let (own, _) = routes(&[first, ingress("ii", &spec)]);
        let cases = [
            ("own.com", "/x/y", "a"),
            ("own.com", "/z", "b"),
            ("bare.com", "/", "b"),
            ("other.com", "/x", "c"),
        ];
        for (host, path, want) in cases {
            assert_eq!(found(&own, host, path), want, "{host}{path}");
        }
    }

    #[test]
    fn backends_that_are_not_there_are_told() {
        let by = |service: &str, port: &Value| json!({"service": {"name": service, "port": port}});
        let cases = [
            (by("a", &json!({"name": "http"})), None),
            (by("a", &json!({"number": 81})), Some("Service \"a\" has no such port")),
            (by("z", &json!({"number": 80})), Some("there is no Service \"z\"")),
            (
                json!({"resource": {"kind": "K", "name": "n"}}),
                Some("only Services can be backends, not other resources"),
            ),
        ];
        for (backend, want) in cases {
            let (routes, problems) = routes(&[ingress("i", &json!({"defaultBackend": backend}))]);
            let told: Vec<&str> = problems.iter().map(|p| p.message.as_str()).collect();
            assert_eq!(told, want.into_iter().collect::<Vec<_>>(), "{backend}");
            let nobody = if want.is_some() { "nobody" } else { "a" };
            assert_eq!(found(&routes, "x", "/"), nobody, "{backend}");
        }
    }
}
