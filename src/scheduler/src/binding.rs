//! What follows a decision, step by step: the pod's volumes and devices are made ready (PreBind), then the pod is
//! bound (Bind). Whatever goes wrong, the devices are given back.

use std::sync::Arc;
use std::time::Duration;

use client::Informer;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Client;

use crate::device_binding;
use crate::extended_resources::Extended;
use crate::extender::{self, Extender};
use crate::late_binding::{self, Promise};
use crate::plugins::Reservation;
use crate::pod::PodInfo;
use crate::report;

/// Why a decision could not be carried out.
pub enum Refusal {
    Binding(kube::Error),
    Volumes(late_binding::Error),
    Devices(kube::Error),
    Unready(device_binding::Error),
    Extender(extender::Error),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Binding(error) => write!(f, "binding rejected: {error}"),
            Self::Volumes(error) => error.fmt(f),
            Self::Devices(error) => write!(f, "updating ResourceClaim: {error}"),
            Self::Unready(error) => error.fmt(f),
            Self::Extender(error) => write!(f, "binding rejected: {error}"),
        }
    }
}

/// Where a pod goes, and what the way there takes.
pub struct Binding {
    pub client: Client,
    pub claims: Informer<PersistentVolumeClaim>,
    pub device_claims: Informer<ResourceClaim>,
    pub volume_timeout: Duration,
    pub device_timeout: Duration,
    /// Who binds the pod, if not the scheduler itself.
    pub binder: Option<Extender>,
    pub pod: Arc<PodInfo>,
    pub node: String,
}

/// Whether some of the devices are ready only later.
pub fn waits_for_devices(devices: &Reservation) -> bool {
    let own = devices.extended.iter().map(|extended| &extended.claim);
    devices.claims.iter().map(AsRef::as_ref).chain(own).any(device_binding::waits)
}

impl Binding {
    /// Takes all the steps: `promised` are the volumes and `devices` the devices that were set aside.
    pub async fn carry_out(
        &self,
        promised: &[Promise],
        devices: Reservation,
    ) -> Result<(), Refusal> {
        if !promised.is_empty() {
            let (client, timeout) = (self.client.clone(), self.volume_timeout);
            let kept = late_binding::keep(client, &self.claims, promised, &self.node, timeout);
            kept.await.map_err(Refusal::Volumes)?;
        }
        let Reservation { claims, extended } = devices;
        self.claim(&claims).await?;
        let Some(extended) = extended else { return self.bind().await };
        let claimed = report::claim_extended(self.client.clone(), &self.pod, &extended).await;
        let name = claimed.map_err(Refusal::Devices)?;
        let bound = match self.extended_ready(&extended, &name).await {
            Ok(()) => self.bind().await,
            Err(refusal) => Err(refusal),
        };
        if bound.is_err()
            && let Err(error) =
                report::release(self.client.clone(), &self.pod.namespace, &name).await
        {
            tracing::warn!(pod = self.pod.key(), %error, "a claim for extended resources is left");
        }
        bound
    }

    /// Writes down whose the devices are, and waits until they are ready.
    async fn claim(&self, claims: &[Arc<ResourceClaim>]) -> Result<(), Refusal> {
        report::claim(self.client.clone(), claims).await.map_err(Refusal::Devices)?;
        let awaited = claims.iter().filter(|claim| device_binding::waits(claim));
        let key = |claim: &Arc<ResourceClaim>| {
            let meta = &claim.metadata;
            (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
        };
        let awaited: Vec<_> = awaited.map(key).collect();
        if awaited.is_empty() {
            return Ok(());
        }
        let ready = device_binding::ready(&self.device_claims, &awaited, self.device_timeout).await;
        if ready.is_err()
            && let Err(error) = report::unclaim(self.client.clone(), claims, &self.pod).await
        {
            tracing::warn!(pod = self.pod.key(), %error, "devices are not given back");
        }
        ready.map_err(Refusal::Unready)
    }

    async fn extended_ready(&self, extended: &Extended, name: &str) -> Result<(), Refusal> {
        if !device_binding::waits(&extended.claim) {
            return Ok(());
        }
        let claims = [(self.pod.namespace.clone(), name.to_owned())];
        let ready = device_binding::ready(&self.device_claims, &claims, self.device_timeout);
        ready.await.map_err(Refusal::Unready)
    }

    async fn bind(&self) -> Result<(), Refusal> {
        match &self.binder {
            Some(extender) => extender.bind(&self.pod, &self.node).await.map_err(Refusal::Extender),
            None => report::bind(self.client.clone(), &self.pod, &self.node)
                .await
                .map_err(Refusal::Binding),
        }
    }
}
