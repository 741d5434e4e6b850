//! A container's environment, and `$(VAR)` expansion. Pure: what it refers to is fetched before.
//!
//! Source of behaviour: `makeEnvironmentVariables` in `kubelet_pods.go`, `third_party/forked/golang/expansion`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret, Service};

use crate::fields::{self, Facts};
use crate::{env_file, pod};

/// Why the environment cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A config map that is not optional is absent.
    #[error("configmap {0:?} not found")]
    ConfigMapNotFound(String),
    /// A secret that is not optional is absent.
    #[error("secret {0:?} not found")]
    SecretNotFound(String),
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    KeyNotFound {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// The volume of a file of variables is not mounted.
    #[error("cannot find the volume {0:?} referenced by FileKeyRef")]
    NoVolume(String),
    /// A file of variables is absent or cannot be understood.
    #[error("couldn't parse env file")]
    File,
    /// A file of variables says nothing of one that is not optional.
    #[error("environment variable key {key:?} not found in file {path:?}")]
    NotInFile {
        /// The key.
        key: String,
        /// The file, in its volume.
        path: String,
    },
    /// A source of variables this kubelet does not know.
    #[error(
        "the value of environment variable {0:?} has a source that is not supported by this node"
    )]
    Unsupported(String),
    /// A downward API field cannot be read.
    #[error(transparent)]
    Field(#[from] fields::Error),
}

/// What a container's environment may refer to, fetched; `None` stands for an absent object.
#[derive(Default)]
pub struct Sources {
    /// Config maps by name.
    pub config_maps: HashMap<String, Option<Arc<ConfigMap>>>,
    /// Secrets by name.
    pub secrets: HashMap<String, Option<Arc<Secret>>>,
    /// Texts of files by volume and path; `None` stands for one that cannot be read.
    pub files: HashMap<(String, String), Option<String>>,
    /// Variables of services, see [`service_variables`].
    pub services: BTreeMap<String, String>,
}

/// Names of the config maps and of the secrets `container` takes variables from.
pub fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        config_maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    (config_maps, secrets)
}

/// The files `container` takes variables from, by volume and path.
pub fn files(container: &Container) -> Vec<(String, String)> {
    let sources = container.env.iter().flatten().filter_map(|e| e.value_from.as_ref());
    let references = sources.filter_map(|source| source.file_key_ref.as_ref());
    references.map(|file| (file.volume_name.clone(), file.path.clone())).collect()
}

/// The environment in order, later entries last and each name once.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    facts: &Facts,
) -> Result<Vec<(String, String)>, Error> {
    let mut env: Vec<(String, String)> = Vec::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match sources.config_maps.get(&reference.name).and_then(Option::as_ref) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        set(&mut env, format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(Error::ConfigMapNotFound(reference.name.clone())),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match sources.secrets.get(&reference.name).and_then(Option::as_ref) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        let value = String::from_utf8_lossy(&value.0).into_owned();
                        set(&mut env, format!("{prefix}{key}"), value);
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(Error::SecretNotFound(reference.name.clone())),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = one(pod, container, variable, &env, sources, facts)? {
            set(&mut env, variable.name.clone(), value);
        }
    }
    for (name, value) in &sources.services {
        if !env.iter().any(|(n, _)| n == name) {
            env.push((name.clone(), value.clone()));
        }
    }
    Ok(env)
}

fn one(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    env: &[(String, String)],
    sources: &Sources,
    facts: &Facts,
) -> Result<Option<String>, Error> {
    let value = variable.value.as_deref().unwrap_or_default();
    let Some(from) = &variable.value_from else {
        let lookup = |name: &str| {
            env.iter()
                .find(|(n, _)| n == name)
                .map(|(_, v)| v.clone())
                .or_else(|| sources.services.get(name).cloned())
        };
        return Ok(Some(expand(value, lookup)));
    };
    if let Some(field) = &from.field_ref {
        return Ok(Some(fields::field(pod, &field.field_path, facts)?));
    }
    if let Some(resource) = &from.resource_field_ref {
        return Ok(Some(fields::resource(pod, resource, &container.name, facts)?));
    }
    let missing = |kind, name: &str, key: &str| Error::KeyNotFound {
        kind,
        namespace: pod::namespace(pod).into(),
        name: name.into(),
        key: key.into(),
    };
    if let Some(reference) = &from.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(map) = sources.config_maps.get(&reference.name).and_then(Option::as_ref) else {
            return if optional {
                Ok(None)
            } else {
                Err(Error::ConfigMapNotFound(reference.name.clone()))
            };
        };
        return match map.data.as_ref().and_then(|d| d.get(&reference.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(missing("ConfigMap", &reference.name, &reference.key)),
        };
    }
    if let Some(reference) = &from.secret_key_ref {
        let optional = reference.optional == Some(true);
        let Some(secret) = sources.secrets.get(&reference.name).and_then(Option::as_ref) else {
            return if optional {
                Ok(None)
            } else {
                Err(Error::SecretNotFound(reference.name.clone()))
            };
        };
        return match secret.data.as_ref().and_then(|d| d.get(&reference.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(missing("Secret", &reference.name, &reference.key)),
        };
    }
    if let Some(reference) = &from.file_key_ref {
        let place = (reference.volume_name.clone(), reference.path.clone());
        let text = sources.files.get(&place).ok_or_else(|| Error::NoVolume(place.0.clone()))?;
        let text = text.as_ref().ok_or(Error::File)?;
        let value = env_file::value(text, &reference.key).map_err(|error| {
            tracing::info!(%error, path = place.1, pod = pod::full_name(pod), "cannot read variables");
            Error::File
        })?;
        return match value.as_str() {
            "" if reference.optional == Some(true) => Ok(None),
            "" => Err(Error::NotInFile { key: reference.key.clone(), path: place.1 }),
            _ => Ok(Some(value)),
        };
    }
    Err(Error::Unsupported(variable.name.clone()))
}

fn set(env: &mut Vec<(String, String)>, name: String, value: String) {
    match env.iter_mut().find(|(n, _)| *n == name) {
        Some(entry) => entry.1 = value,
        None => env.push((name, value)),
    }
}

/// Replaces `$(NAME)` by its value; `$$` is a dollar, and an unknown name stays as it is written.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|b| b.split_once(')')) {
            if let Some(value) = lookup(name) {
                out.push_str(&value);
            } else {
                out.push_str("$(");
                out.push_str(name);
                out.push(')');
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// The variables by which containers of `namespace` find services; without `links` only those of
/// `kubernetes` in `default`.
pub fn service_variables<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut chosen: BTreeMap<String, &Service> = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.clone().unwrap_or_default();
        let own = service.metadata.namespace.as_deref().unwrap_or_default();
        let master = own == "default" && name == "kubernetes";
        if links && own == namespace {
            chosen.insert(name, service);
        } else if master {
            chosen.entry(name).or_insert(service);
        }
    }
    let mut out = BTreeMap::new();
    for (name, service) in chosen {
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None")
        else {
            continue;
        };
        let Some(first) = spec.ports.as_ref().and_then(|p| p.first()) else { continue };
        let prefix = name.to_uppercase().replace('-', "_");
        out.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
        out.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
        let bracketed = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        for (index, port) in spec.ports.iter().flatten().enumerate() {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                let port_name = port_name.to_uppercase().replace('-', "_");
                out.insert(format!("{prefix}_SERVICE_PORT_{port_name}"), port.port.to_string());
            }
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            let url = format!("{}://{bracketed}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                out.insert(format!("{prefix}_PORT"), url.clone());
            }
            let one = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
            out.insert(format!("{one}_PROTO"), protocol.to_lowercase());
            out.insert(format!("{one}_PORT"), port.port.to_string());
            out.insert(format!("{one}_ADDR"), ip.to_owned());
            out.insert(one, url);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion() {
        let lookup = |n: &str| (n == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("$(A)", "1"),
            ("$$(A)", "$(A)"),
            ("x$(A)y$(B)", "x1y$(B)"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    fn container(json: serde_json::Value) -> Container {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn sources_and_order() {
        let c = container(serde_json::json!({"name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}],
            "env": [{"name": "X", "value": "$(P_a)-$(KUBERNETES_SERVICE_HOST)"},
                    {"name": "P_a", "value": "over"},
                    {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "no", "optional": true}}}]}));
        let map: ConfigMap =
            serde_json::from_value(serde_json::json!({"data": {"a": "1"}})).unwrap();
        let mut sources = Sources::default();
        sources.config_maps.insert("m".into(), Some(Arc::new(map)));
        sources.services.insert("KUBERNETES_SERVICE_HOST".into(), "10.43.0.1".into());
        let env = resolve(&Pod::default(), &c, &sources, &Facts::default()).unwrap();
        let text: Vec<String> = env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(text, ["P_a=over", "X=1-10.43.0.1", "KUBERNETES_SERVICE_HOST=10.43.0.1"]);
    }

    #[test]
    fn absent_sources_are_told_as_upstream_tells_them() {
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"namespace": "ns"}})).unwrap();
        let c =
            container(serde_json::json!({"name": "c", "envFrom": [{"secretRef": {"name": "s"}}]}));
        let error = resolve(&pod, &c, &Sources::default(), &Facts::default()).unwrap_err();
        assert_eq!(error.to_string(), "secret \"s\" not found");
        let c = container(serde_json::json!({"name": "c", "env": [
            {"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}));
        let mut sources = Sources::default();
        sources.secrets.insert("s".into(), Some(Arc::new(Secret::default())));
        let error = resolve(&pod, &c, &sources, &Facts::default()).unwrap_err();
        assert_eq!(error.to_string(), "couldn't find key k in Secret ns/s");
    }

    #[test]
    fn variables_come_from_files() {
        let file = |key: &str, optional: bool| {
            container(
                serde_json::json!({"name": "c", "env": [{"name": "X", "valueFrom": {"fileKeyRef":
                {"volumeName": "v", "path": "a.env", "key": key, "optional": optional}}}]}),
            )
        };
        let mut sources = Sources::default();
        let told = |c: &Container, sources: &Sources| match resolve(
            &Pod::default(),
            c,
            sources,
            &Facts::default(),
        ) {
            Ok(env) => env.iter().map(|(k, v)| format!("{k}={v}")).collect(),
            Err(error) => error.to_string(),
        };
        assert_eq!(files(&file("K", false)), [("v".to_owned(), "a.env".to_owned())]);
        assert_eq!(
            told(&file("K", false), &sources),
            "cannot find the volume \"v\" referenced by FileKeyRef"
        );
        let text = "K='1'\nL=".to_owned();
        sources.files.insert(("v".into(), "a.env".into()), Some(text));
        assert_eq!(told(&file("K", false), &sources), "X=1");
        assert_eq!(told(&file("L", true), &sources), "couldn't parse env file");
        sources.files.insert(("v".into(), "a.env".into()), Some(String::new()));
        assert_eq!(told(&file("K", true), &sources), "");
        assert_eq!(
            told(&file("K", false), &sources),
            "environment variable key \"K\" not found in file \"a.env\""
        );
    }

    #[test]
    fn services_become_variables() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "my-db", "namespace": "ns"},
            "spec": {"clusterIP": "10.43.0.9", "ports": [{"name": "sql", "port": 5432}]}}))
        .unwrap();
        let env = service_variables([&service], "ns", true);
        assert_eq!(env["MY_DB_SERVICE_HOST"], "10.43.0.9");
        assert_eq!(env["MY_DB_SERVICE_PORT_SQL"], "5432");
        assert_eq!(env["MY_DB_PORT_5432_TCP"], "tcp://10.43.0.9:5432");
        assert!(service_variables([&service], "ns", false).is_empty());
    }
}
