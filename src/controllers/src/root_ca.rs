//! The cluster's CA in every namespace, as config map `kube-root-ca.crt`.
//!
//! Source: `pkg/controller/certificates/rootcacertpublisher/publisher.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::Informers;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Next};
use crate::{name, namespace_of, touched, unless_code};

const NAME: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
     endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
     guaranteed across distributions of Kubernetes clusters.",
);

/// What to write.
#[derive(Debug, PartialEq)]
enum Action {
    Nothing,
    Create(ConfigMap),
    Update(ConfigMap),
}

fn decide(namespace: Option<&Namespace>, found: Option<&ConfigMap>, ca_pem: &str) -> Action {
    if namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
        return Action::Nothing;
    }
    let data = BTreeMap::from([(KEY.to_owned(), ca_pem.to_owned())]);
    let (key, text) = (DESCRIPTION.0.to_owned(), DESCRIPTION.1.to_owned());
    match found {
        None => Action::Create(ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                annotations: Some(BTreeMap::from([(key, text)])),
                ..ObjectMeta::default()
            },
            data: Some(data),
            ..ConfigMap::default()
        }),
        Some(found)
            if found.data.as_ref() == Some(&data)
                && found.annotations().get(&key) == Some(&text) =>
        {
            Action::Nothing
        }
        Some(found) => {
            let mut wanted = found.clone();
            wanted.data = Some(data);
            wanted.annotations_mut().insert(key, text);
            Action::Update(wanted)
        }
    }
}

/// Runs until `shutdown`.
pub async fn run(
    client: Client,
    informers: Informers,
    ca_pem: String,
    shutdown: CancellationToken,
) {
    let namespaces = informers.get::<Namespace>();
    let maps = informers.get::<ConfigMap>();
    maps.ready().await;
    let ca_pem: Arc<str> = ca_pem.into();
    let changes = futures::stream::select(
        touched(&namespaces, name),
        touched(&maps, |map| if map.name_any() == NAME { namespace_of(map) } else { Vec::new() }),
    );
    queue::run("root-ca-cert-publisher", changes, shutdown, |namespace: String| {
        let action = decide(
            namespaces.get("", &namespace).as_deref(),
            maps.get(&namespace, NAME).as_deref(),
            &ca_pem,
        );
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
        Box::pin(async move {
            match action {
                Action::Nothing => {}
                Action::Create(map) => {
                    unless_code(api.create(&PostParams::default(), &map).await, 409)?;
                }
                Action::Update(map) => {
                    api.replace(NAME, &PostParams::default(), &map).await?;
                }
            }
            Ok(Next::Done)
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_made_once_and_mended() {
        let namespace = Namespace::default();
        let Action::Create(made) = decide(Some(&namespace), None, "CA") else {
            panic!("it is missing");
        };
        assert_eq!(decide(Some(&namespace), Some(&made), "CA"), Action::Nothing);
        let Action::Update(mended) = decide(Some(&namespace), Some(&made), "NEW") else {
            panic!("it is stale");
        };
        assert_eq!(mended.data.unwrap()[KEY], "NEW");
        assert_eq!(decide(None, Some(&made), "NEW"), Action::Nothing);
    }
}
