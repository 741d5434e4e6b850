//! Names of objects within others, after they were renamed.
//!
//! Source: kustomize's `namereference.go`, for which objects refer to which.

use serde_json::Value;

use super::entry::{Entry, Id};
use super::path::{parts, visit};
use crate::objects::error::Error;

/// Fields of a pod's spec that name others, and which.
const OF_PODS: [(&str, &str); 19] = [
    ("ConfigMap", "volumes/configMap/name"),
    ("ConfigMap", "volumes/projected/sources/configMap/name"),
    ("ConfigMap", "containers/env/valueFrom/configMapKeyRef/name"),
    ("ConfigMap", "initContainers/env/valueFrom/configMapKeyRef/name"),
    ("ConfigMap", "containers/envFrom/configMapRef/name"),
    ("ConfigMap", "initContainers/envFrom/configMapRef/name"),
    ("Secret", "volumes/secret/secretName"),
    ("Secret", "volumes/projected/sources/secret/name"),
    ("Secret", "containers/env/valueFrom/secretKeyRef/name"),
    ("Secret", "initContainers/env/valueFrom/secretKeyRef/name"),
    ("Secret", "containers/envFrom/secretRef/name"),
    ("Secret", "initContainers/envFrom/secretRef/name"),
    ("Secret", "imagePullSecrets/name"),
    ("ServiceAccount", "serviceAccountName"),
    ("PersistentVolumeClaim", "volumes/persistentVolumeClaim/claimName"),
    ("PriorityClass", "priorityClassName"),
    ("DeviceClass", "resourceClaims/deviceClassName"),
    ("ResourceClaim", "resourceClaims/resourceClaimName"),
    ("ResourceClaimTemplate", "resourceClaims/resourceClaimTemplateName"),
];

/// Fields of other kinds: whose, where, and what is named there.
const OTHERS: [(&str, &str, &str); 34] = [
    ("HorizontalPodAutoscaler", "spec/scaleTargetRef/name", "Deployment"),
    ("HorizontalPodAutoscaler", "spec/scaleTargetRef/name", "StatefulSet"),
    ("HorizontalPodAutoscaler", "spec/scaleTargetRef/name", "ReplicaSet"),
    ("HorizontalPodAutoscaler", "spec/scaleTargetRef/name", "ReplicationController"),
    ("Role", "rules/resourceNames", "ConfigMap"),
    ("Role", "rules/resourceNames", "Secret"),
    ("ClusterRole", "rules/resourceNames", "ConfigMap"),
    ("ClusterRole", "rules/resourceNames", "Secret"),
    ("ClusterRole", "rules/resourceNames", "PersistentVolume"),
    (
        "Ingress",
        "metadata/annotations/nginx.ingress.kubernetes.io\\/fastcgi-params-configmap",
        "ConfigMap",
    ),
    ("Ingress", "metadata/annotations/ingress.kubernetes.io\\/auth-secret", "Secret"),
    ("Ingress", "metadata/annotations/nginx.ingress.kubernetes.io\\/auth-secret", "Secret"),
    ("Ingress", "metadata/annotations/nginx.ingress.kubernetes.io\\/auth-tls-secret", "Secret"),
    ("Ingress", "spec/tls/secretName", "Secret"),
    ("Ingress", "spec/rules/http/paths/backend/service/name", "Service"),
    ("Ingress", "spec/defaultBackend/service/name", "Service"),
    ("Ingress", "spec/ingressClassName", "IngressClass"),
    ("HTTPRoute", "spec/rules/backendRefs/name", "Service"),
    ("ServiceAccount", "imagePullSecrets/name", "Secret"),
    ("StorageClass", "parameters/secretName", "Secret"),
    ("StorageClass", "parameters/adminSecretName", "Secret"),
    ("StorageClass", "parameters/userSecretName", "Secret"),
    ("PersistentVolume", "spec/azureFile/secretName", "Secret"),
    ("StatefulSet", "spec/serviceName", "Service"),
    ("APIService", "spec/service/name", "Service"),
    ("ValidatingWebhookConfiguration", "webhooks/clientConfig/service", "Service"),
    ("MutatingWebhookConfiguration", "webhooks/clientConfig/service", "Service"),
    ("RoleBinding", "roleRef/name", "Role"),
    ("RoleBinding", "roleRef/name", "ClusterRole"),
    ("ClusterRoleBinding", "roleRef/name", "ClusterRole"),
    ("PersistentVolumeClaim", "spec/volumeName", "PersistentVolume"),
    ("PersistentVolume", "spec/storageClassName", "StorageClass"),
    ("PersistentVolumeClaim", "spec/storageClassName", "StorageClass"),
    ("StatefulSet", "spec/volumeClaimTemplates/spec/storageClassName", "StorageClass"),
];

/// Where a kind has the spec of pods.
fn pod_spec(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "Pod" => "spec",
        "PodTemplate" => "template/spec",
        "Deployment"
        | "ReplicaSet"
        | "DaemonSet"
        | "StatefulSet"
        | "Job"
        | "ReplicationController" => "spec/template/spec",
        "CronJob" => "spec/jobTemplate/spec/template/spec",
        _ => return None,
    })
}

/// What an object is called: now and before.
struct Known {
    now: Id,
    before: Vec<Id>,
    prefixes: Vec<String>,
    suffixes: Vec<String>,
}

/// Lets everything that names an object name it as it is called now.
pub fn mend(entries: &mut [Entry]) -> Result<(), Error> {
    let known: Vec<Known> = entries
        .iter()
        .map(|entry| Known {
            now: entry.id(),
            before: entry.before.clone(),
            prefixes: entry.prefixes.clone(),
            suffixes: entry.suffixes.clone(),
        })
        .collect();
    for (entry, me) in entries.iter_mut().zip(&known) {
        let names = Names {
            known: &known,
            me,
            role: entry.value["roleRef"]["kind"].as_str().map(str::to_owned),
        };
        let kind = me.now.kind.as_str();
        let mut fields: Vec<(String, &str)> = Vec::new();
        if let Some(spec) = pod_spec(kind) {
            fields.extend(OF_PODS.iter().map(|(of, path)| (format!("{spec}/{path}"), *of)));
        }
        let own = OTHERS.iter().filter(|(of, _, _)| *of == kind);
        fields.extend(own.map(|(_, path, of)| ((*path).to_owned(), *of)));
        for (path, of) in fields {
            names.field(&mut entry.value, &path, of)?;
        }
        if matches!(kind, "RoleBinding" | "ClusterRoleBinding") {
            names.subjects(&mut entry.value)?;
        }
    }
    Ok(())
}

struct Names<'a> {
    known: &'a [Known],
    me: &'a Known,
    /// Of bindings: the kind of role they refer to.
    role: Option<String>,
}

impl Names<'_> {
    fn field(&self, value: &mut Value, path: &str, of: &str) -> Result<(), Error> {
        if of.ends_with("Role") && path.starts_with("roleRef") && self.role.as_deref() != Some(of) {
            return Ok(());
        }
        let parts = parts(path, '/');
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let mut outcome = Ok(());
        visit(value, &parts, false, &mut |found| {
            let result = match found {
                Value::Array(names) => names.iter_mut().try_for_each(|name| self.name(name, of)),
                Value::Object(_) => self.placed(found, of),
                _ => self.name(found, of),
            };
            if outcome.is_ok() {
                outcome = result;
            }
        });
        outcome
    }

    fn name(&self, found: &mut Value, of: &str) -> Result<(), Error> {
        let Some(old) = found.as_str() else { return Ok(()) };
        let (place, plain) = match old.split_once('/') {
            Some((place, plain)) => (Some(place.to_owned()), plain),
            None => (None, old),
        };
        if let Some(now) = self.now(plain, of, None)? {
            *found = match place {
                Some(_) => format!("{}/{}", now.namespace, now.name),
                None => now.name.clone(),
            }
            .into();
        }
        Ok(())
    }

    /// A reference with a name and a namespace.
    fn placed(&self, found: &mut Value, of: &str) -> Result<(), Error> {
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        let (name, namespace) = (text("name"), text("namespace"));
        if let Some(now) = self.now(&name, of, Some(&namespace))? {
            found["name"] = now.name.clone().into();
            if !now.namespace.is_empty() {
                found["namespace"] = now.namespace.clone().into();
            }
        }
        Ok(())
    }

    fn subjects(&self, value: &mut Value) -> Result<(), Error> {
        for subject in value["subjects"].as_array_mut().into_iter().flatten() {
            if subject["kind"] == "ServiceAccount" {
                self.placed(subject, "ServiceAccount")?;
            }
        }
        Ok(())
    }

    /// What the object of this kind is called now that was called so before; of the same namespace as who
    /// names it, or of the one that is named.
    fn now(&self, name: &str, of: &str, namespace: Option<&str>) -> Result<Option<&Id>, Error> {
        let place =
            |namespace: &str| if namespace.is_empty() { "default" } else { namespace }.to_owned();
        let mut found: Vec<&Known> = self
            .known
            .iter()
            .filter(|known| known.now.kind == of)
            .filter(|known| {
                known.before.iter().any(|before| {
                    before.name == name
                        && namespace.is_none_or(|n| {
                            !before.is_namespaced() || place(&before.namespace) == place(n)
                        })
                })
            })
            .collect();
        if namespace.is_none() && self.me.now.is_namespaced() {
            found.retain(|known| {
                !known.now.is_namespaced() || known.now.place() == self.me.now.place()
            });
        }
        if found.len() > 1 {
            found.retain(|known| {
                ends(&self.me.prefixes, &known.prefixes) && ends(&self.me.suffixes, &known.suffixes)
            });
        }
        match found.as_slice() {
            [] => Ok(None),
            [first, rest @ ..] if rest.iter().all(|other| other.now.name == first.now.name) => {
                Ok(Some(&first.now))
            }
            _ => Err(Error::Wrong(format!(
                "found multiple possible referrals for {of} {name:?}: {}",
                found.iter().map(|known| known.now.to_string()).collect::<Vec<_>>().join(", ")
            ))),
        }
    }
}

/// Whether one was put behind the other: both went the same way from some layer on.
fn ends(mine: &[String], other: &[String]) -> bool {
    mine.ends_with(other) || other.ends_with(mine)
}
