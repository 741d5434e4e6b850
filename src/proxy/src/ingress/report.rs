//! What is told about Ingresses: the class, where they are reached, and what is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use client::{Recorder, object_reference};
use k8s_openapi::api::networking::v1::{
    Ingress, IngressClass, IngressClassSpec, IngressLoadBalancerIngress, IngressPortStatus,
};
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use super::listen::Door;
use super::{CLASS, CONTROLLER, Problem};

/// The component that events name.
const COMPONENT: &str = "ingress-controller";
const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
const EACCES: i32 = 13;

/// Writes class, status and events.
pub(super) struct Reporter {
    client: Client,
    recorder: Recorder,
    /// Where Ingresses are reached, and whether by HTTPS.
    places: Vec<(SocketAddr, bool)>,
    /// What to say about the ports, once there is a class to say it of.
    complaints: Vec<(&'static str, String)>,
    /// Problems that were told and still hold.
    told: BTreeSet<Problem>,
    /// Uids of the Ingresses whose status is ours.
    written: BTreeSet<String>,
}

impl Reporter {
    /// One for these doors.
    pub fn new(client: Client, doors: &[Door]) -> Self {
        Self {
            recorder: Recorder::new(client.clone(), COMPONENT, ""),
            client,
            places: doors.iter().map(|door| (door.address, door.tls)).collect(),
            complaints: doors.iter().filter_map(complaint).collect(),
            told: BTreeSet::new(),
            written: BTreeSet::new(),
        }
    }

    /// Makes the class, as the default one unless there is another.
    pub async fn keep_class(&mut self, classes: &[Arc<IngressClass>]) {
        let known = classes.iter().find(|class| class.name_any() == CLASS);
        let class = match known {
            Some(class) => (**class).clone(),
            None => match self.make_class(classes).await {
                Ok(class) => class,
                Err(error) => {
                    tracing::warn!(%error, "cannot make the IngressClass");
                    return;
                }
            },
        };
        for (reason, message) in self.complaints.drain(..) {
            self.recorder.warning(object_reference(&class), reason, message);
        }
    }

    async fn make_class(&self, classes: &[Arc<IngressClass>]) -> kube::Result<IngressClass> {
        let is_default = |class: &Arc<IngressClass>| {
            class.annotations().get(IS_DEFAULT).is_some_and(|value| value == "true")
        };
        let annotations = (!classes.iter().any(is_default))
            .then(|| BTreeMap::from([(IS_DEFAULT.to_owned(), "true".to_owned())]));
        let class = IngressClass {
            metadata: ObjectMeta { name: Some(CLASS.into()), annotations, ..ObjectMeta::default() },
            spec: Some(IngressClassSpec {
                controller: Some(CONTROLLER.into()),
                ..IngressClassSpec::default()
            }),
        };
        Api::all(self.client.clone()).create(&PostParams::default(), &class).await
    }

    /// Writes the status of Ingresses, and events about their problems.
    pub async fn tell(
        &mut self,
        all: &[Arc<Ingress>],
        ours: &[Arc<Ingress>],
        problems: Vec<Problem>,
    ) {
        let served: BTreeSet<String> = ours.iter().filter_map(|i| i.uid()).collect();
        for ingress in all {
            let uid = ingress.uid().unwrap_or_default();
            if served.contains(&uid) {
                self.set_status(ingress, &wanted(&self.places)).await;
            } else if self.written.contains(&uid) {
                // It was given to another class.
                self.set_status(ingress, &[]).await;
            }
        }
        self.written = served;
        let problems: BTreeSet<Problem> = problems.into_iter().collect();
        for problem in problems.difference(&self.told) {
            let ingress = ours.iter().find(|ingress| {
                ingress.name_any() == problem.ingress
                    && ingress.namespace().as_deref() == Some(&problem.namespace)
            });
            if let Some(ingress) = ingress {
                let object = object_reference(&**ingress);
                self.recorder.warning(object, problem.reason, problem.message.clone());
            }
        }
        self.told = problems;
    }

    async fn set_status(&self, ingress: &Ingress, wanted: &[IngressLoadBalancerIngress]) {
        let status = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let said = status.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
        if said == wanted {
            return;
        }
        let namespace = ingress.namespace().unwrap_or_default();
        let api: Api<Ingress> = Api::namespaced(self.client.clone(), &namespace);
        let patch = json!({"status": {"loadBalancer": {"ingress": wanted}}});
        let name = ingress.name_any();
        match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) if !wanted.is_empty() => {
                let object = object_reference(ingress);
                self.recorder.normal(object, "Published", reached(&self.places));
            }
            // It is gone, or a newer state of it is on its way here.
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, %namespace, name, "status not written"),
        }
    }
}

/// The status: each address with its ports.
fn wanted(places: &[(SocketAddr, bool)]) -> Vec<IngressLoadBalancerIngress> {
    let mut ports: BTreeMap<std::net::IpAddr, Vec<IngressPortStatus>> = BTreeMap::new();
    for (place, _) in places {
        let port =
            IngressPortStatus { port: place.port().into(), protocol: "TCP".into(), error: None };
        ports.entry(place.ip()).or_default().push(port);
    }
    let ingress = ports.into_iter().map(|(ip, ports)| IngressLoadBalancerIngress {
        ip: Some(ip.to_string()),
        ports: Some(ports),
        hostname: None,
    });
    ingress.collect()
}

fn reached(places: &[(SocketAddr, bool)]) -> String {
    let urls: Vec<String> = places
        .iter()
        .map(|(place, tls)| format!("{}://{place}", if *tls { "https" } else { "http" }))
        .collect();
    format!("reached at {}", urls.join(" and "))
}

/// What to say about a door that is not the usual one, and the remedy.
fn complaint(door: &Door) -> Option<(&'static str, String)> {
    let (port, error) = door.instead_of.as_ref()?;
    let (wanted, place) = (SocketAddr::new(door.address.ip(), *port), door.address);
    Some(if error.raw_os_error() == Some(EACCES) {
        let message = format!(
            "cannot listen on {wanted}, so it is {place}: ports below \
             net.ipv4.ip_unprivileged_port_start need a privilege; to allow this one: sudo sysctl -w \
             net.ipv4.ip_unprivileged_port_start={port}"
        );
        ("PortNeedsPrivilege", message)
    } else {
        ("PortConflict", format!("cannot listen on {wanted}, so it is {place}: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_tells_every_address_with_its_ports() {
        let places = [
            ("127.0.0.1:8080".parse().unwrap(), false),
            ("127.0.0.1:8443".parse().unwrap(), true),
            ("192.0.2.1:80".parse().unwrap(), false),
        ];
        let told: Vec<String> = wanted(&places)
            .iter()
            .map(|i| {
                let ports = i.ports.iter().flatten().map(|p| p.port.to_string());
                format!("{}:{}", i.ip.as_deref().unwrap(), ports.collect::<Vec<_>>().join(","))
            })
            .collect();
        assert_eq!(told, ["127.0.0.1:8080,8443", "192.0.2.1:80"]);
        assert_eq!(
            reached(&places[..2]),
            "reached at http://127.0.0.1:8080 and https://127.0.0.1:8443"
        );
    }
}
