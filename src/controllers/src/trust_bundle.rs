//! The authority of the API server's certificate, for all to read: a ClusterTrustBundle of the signer
//! `kubernetes.io/kube-apiserver-serving`, and no other one of this signer.
//!
//! Source: `pkg/controller/certificates/clustertrustbundlepublisher`.

use std::sync::Arc;

use client::{Change, Informer, Informers, Selection};
use futures::StreamExt;
use k8s_openapi::api::certificates::v1beta1::{ClusterTrustBundle, ClusterTrustBundleSpec};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Next};
use crate::served::served;
use crate::unless_code;

const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";
/// Bytes of the digest that are in the name.
const DIGEST_BYTES: usize = 12;

/// What is missing, and the names of what is too much.
#[derive(Debug, Default, PartialEq)]
struct Changes {
    create: Option<ClusterTrustBundle>,
    update: Option<ClusterTrustBundle>,
    delete: Vec<String>,
}

fn name_of(ca_pem: &str) -> String {
    let digest = Sha256::digest(ca_pem.as_bytes());
    let digits: String = digest[..DIGEST_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}:{digits}", SIGNER.replace('/', ":"))
}

fn decide(found: &[Arc<ClusterTrustBundle>], ca_pem: &str) -> Changes {
    let name = name_of(ca_pem);
    let spec = ClusterTrustBundleSpec {
        signer_name: Some(SIGNER.into()),
        trust_bundle: ca_pem.to_owned(),
    };
    let mut changes = Changes::default();
    match found.iter().find(|bundle| bundle.name_any() == name) {
        None => {
            let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
            changes.create = Some(ClusterTrustBundle { metadata, spec });
        }
        Some(bundle) if bundle.spec.trust_bundle != ca_pem => {
            changes.update = Some(ClusterTrustBundle { spec, ..ClusterTrustBundle::clone(bundle) });
        }
        Some(_) => {}
    }
    changes.delete = found.iter().map(|b| b.name_any()).filter(|other| *other != name).collect();
    changes
}

async fn apply(api: &Api<ClusterTrustBundle>, changes: Changes) -> Result<Next, queue::Failure> {
    if let Some(bundle) = changes.create {
        unless_code(api.create(&PostParams::default(), &bundle).await, 409)?;
    }
    if let Some(bundle) = changes.update {
        api.replace(&bundle.name_any(), &PostParams::default(), &bundle).await?;
    }
    for name in changes.delete {
        unless_code(api.delete(&name, &DeleteParams::default()).await, 404)?;
    }
    Ok(Next::Done)
}

/// Runs until `shutdown`, or not at all where the API server has no trust bundles.
pub async fn run(client: Client, _: Informers, ca_pem: String, shutdown: CancellationToken) {
    if !served(&client, "certificates.k8s.io/v1beta1", "ClusterTrustBundle", &shutdown).await {
        return;
    }
    let api: Api<ClusterTrustBundle> = Api::all(client);
    let selected = Selection::fields(format!("spec.signerName={SIGNER}"));
    let (bundles, watch) = Informer::spawn(api.clone(), selected);
    let _watch = tokio_util::task::AbortOnDropHandle::new(watch);
    bundles.ready().await;
    // Whatever happens to one of them, all are looked at.
    let first = futures::stream::iter([vec![()]]);
    let changes = first.chain(bundles.subscribe().map(|_: Change<ClusterTrustBundle>| vec![()]));
    queue::run("trust-bundle-publisher", changes, shutdown, |()| {
        let (api, changes) = (api.clone(), decide(&bundles.store().state(), &ca_pem));
        Box::pin(async move { apply(&api, changes).await })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bundle_of_the_signer_stays() {
        let Changes { create: Some(made), update: None, delete } = decide(&[], "CA") else {
            panic!("it is missing");
        };
        assert!(delete.is_empty());
        // printf CA | sha256sum
        assert_eq!(
            made.name_any(),
            "kubernetes.io:kube-apiserver-serving:4b650e5c4785025dee7bd65e"
        );
        let made = Arc::new(made);
        assert_eq!(decide(std::slice::from_ref(&made), "CA"), Changes::default());
        let mut bent = ClusterTrustBundle::clone(&made);
        bent.spec.trust_bundle = "another".into();
        let mended = decide(&[Arc::new(bent)], "CA").update.expect("it is not what it was");
        assert_eq!(mended, *made);
        let next = decide(std::slice::from_ref(&made), "NEW");
        assert!(next.create.is_some());
        assert_eq!(next.delete, [made.name_any()]);
    }
}
