//! What a pod's containers stand on: volumes and sandbox.

use std::sync::PoisonError;
use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};
use k8s_cri::v1 as cri;

use crate::counters::Counters;
use crate::decide::Actions;
use crate::dns::{Cluster, ResolvConf};
use crate::worker::Worker;
use crate::{observe, pod, sandbox, volumes};

/// The name of the runtime that gives pods users of their own without being told which.
const OWN_RUNTIME: &str = "rootlet";
/// The kernel's limit.
const HOSTNAME_MAX: usize = 64;

impl Worker {
    pub(crate) fn volumes_due(&self, now: Timestamp) -> bool {
        let Some(mounted) = &self.mounted else { return true };
        if mounted.renew_at.is_some_and(|at| now >= at) {
            return true;
        }
        if !mounted.republish.is_empty() {
            return true;
        }
        // Cheap when nothing changed: the objects are watched and files are compared.
        let volumes = self.pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
        volumes.iter().any(|v| {
            v.config_map.is_some()
                || v.secret.is_some()
                || v.projected.is_some()
                || v.downward_api.is_some()
        })
    }

    pub(crate) async fn prepare_volumes(&mut self, now: Timestamp, next: &mut Timestamp) -> bool {
        let started = SystemTime::now();
        let facts = self.facts();
        match volumes::set_up(&self.context, &self.pod, &facts, self.mounted.as_ref()).await {
            Ok(mounted) => {
                if let Some(at) = mounted.renew_at {
                    *next = (*next).min(at);
                }
                if self.mounted.is_none() && !mounted.paths.is_empty() {
                    let detail = format!("{} volumes", mounted.paths.len());
                    apimachinery::trace::step("volumes", pod::uid(&self.pod), started, &detail);
                }
                self.volumes
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone_from(&mounted.paths);
                self.mounted = Some(mounted);
                self.volume_failures = 0;
                true
            }
            Err(error) => {
                // What is on its way to the node is no failure, for two minutes.
                if !error.is_on_its_way() || self.volume_failures > 7 {
                    self.context.warning(&self.pod, None, "FailedMount", error.to_string());
                }
                let delay = 500_i64 << self.volume_failures.min(8);
                self.volume_failures += 1;
                *next = (*next).min(now + SignedDuration::from_millis(delay.min(122_000)));
                // Running containers keep what they have; only new ones need it.
                self.mounted.is_some()
            }
        }
    }

    /// Has the drivers of claimed devices prepare them.
    pub(crate) async fn prepare_claims(&mut self, now: Timestamp, next: &mut Timestamp) -> bool {
        let prepared = self.context.claims.prepare(&self.context, &self.pod).await;
        let Err(error) = prepared else { return true };
        let message = format!("Failed to prepare dynamic resources: {error}");
        self.context.warning(&self.pod, None, "FailedPrepareDynamicResources", message);
        *next = (*next).min(now + SignedDuration::from_secs(2));
        false
    }

    pub(crate) fn facts(&self) -> crate::fields::Facts {
        let ips = self.view.sandboxes.first().map(|s| s.ips.clone()).unwrap_or_default();
        self.context.facts(&ips, pod::host_network(&self.pod))
    }

    /// The sandbox to use and its configuration, made if need be.
    pub(crate) async fn prepare_sandbox(
        &mut self,
        actions: &Actions,
        now: Timestamp,
        next: &mut Timestamp,
    ) -> Option<(String, cri::PodSandboxConfig)> {
        let host = std::fs::read_to_string(&self.context.limits.resolv_conf).unwrap_or_default();
        let host = ResolvConf::parse(&host);
        let cluster =
            Cluster { servers: &self.context.cluster_dns, domain: &self.context.cluster_domain };
        let attempt = actions
            .create_sandbox
            .or_else(|| self.view.sandboxes.first().map(|s| s.attempt))
            .unwrap_or(0);
        let logs = &self.context.pod_log_dir;
        let mut config = sandbox::config(&self.pod, attempt, logs, &host, &cluster);
        config.linux.get_or_insert_default().resources = Some(self.sandbox_limits());
        if actions.create_sandbox.is_none() {
            return self.view.ready_sandbox().map(|s| (s.id.clone(), config));
        }
        if !self.view.sandboxes.is_empty() {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.context.normal(&self.pod, None, "SandboxChanged", message);
            for old in self.view.sandboxes.iter().filter(|s| s.ready) {
                let request = cri::StopPodSandboxRequest { pod_sandbox_id: old.id.clone() };
                if let Err(error) = self.context.cri.stop_pod_sandbox(request).await {
                    tracing::warn!(sandbox = old.id, %error, "cannot stop the old sandbox");
                }
            }
        }
        let started = SystemTime::now();
        match self.make_sandbox(config.clone()).await {
            Ok(made) => {
                Counters::add(&self.context.counters.sandboxes);
                self.sandbox_failures = 0;
                // What failed in the old one is no reason to wait in the new one.
                self.retry_at.clear();
                let detail = made.ips.join(",");
                apimachinery::trace::step("sandbox", pod::uid(&self.pod), started, &detail);
                let id = made.id.clone();
                self.view.sandboxes.insert(0, made);
                // What the downward API tells of addresses is known only now.
                self.wake.notify_one();
                Some((id, config))
            }
            Err(message) => {
                Counters::add(&self.context.counters.sandbox_errors);
                self.context.warning(&self.pod, None, "FailedCreatePodSandBox", message);
                let delay = 1_i64 << self.sandbox_failures.min(6);
                self.sandbox_failures += 1;
                *next = (*next).min(now + SignedDuration::from_secs(delay));
                None
            }
        }
    }

    /// A pod that asks for users of its own gets them, or does not start.
    async fn check_user_namespace(&self, handler: &str) -> Result<(), String> {
        if self.pod.spec.as_ref().and_then(|s| s.host_users) != Some(false) {
            return Ok(());
        }
        let status = self.context.cri.status(cri::StatusRequest { verbose: false }).await;
        let handlers = status.map(|s| s.runtime_handlers).unwrap_or_default();
        let able = handlers
            .iter()
            .any(|h| h.name == handler && h.features.as_ref().is_some_and(|f| f.user_namespaces));
        // Our own does not claim it, since it maps no ids; the node's are not those of the machine anyhow.
        if able || self.context.runtime_name == OWN_RUNTIME {
            return Ok(());
        }
        Err(format!(
            "Failed to create pod sandbox: RuntimeClass handler {handler:?} does not support user namespaces (hostUsers: false)"
        ))
    }

    async fn make_sandbox(
        &self,
        config: cri::PodSandboxConfig,
    ) -> Result<observe::Sandbox, String> {
        let attempt = config.metadata.as_ref().map_or(0, |m| m.attempt);
        std::fs::create_dir_all(&config.log_directory).map_err(|e| {
            format!("Failed to create pod log directory {}: {e}", config.log_directory)
        })?;
        let length = config.hostname.len();
        if length > HOSTNAME_MAX {
            return Err(format!(
                "Failed to create pod sandbox: failed to construct FQDN from pod hostname and cluster domain, FQDN {} is too long ({HOSTNAME_MAX} characters is the max, {length} characters requested)",
                config.hostname
            ));
        }
        let runtime_handler = self.context.runtime_handler(&self.pod).await?;
        self.check_user_namespace(&runtime_handler).await?;
        let failed =
            |e: crate::cri::Error| format!("Failed to create pod sandbox: {}", e.rpc_text());
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler };
        let id = self.context.cri.run_pod_sandbox(request).await.map_err(failed)?.pod_sandbox_id;
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
        let status = self.context.cri.pod_sandbox_status(request).await.map_err(failed)?.status;
        let network = status.and_then(|s| s.network).unwrap_or_default();
        let mut ips: Vec<String> =
            Some(network.ip).filter(|ip| !ip.is_empty()).into_iter().collect();
        ips.extend(network.additional_ips.into_iter().map(|ip| ip.ip));
        Ok(observe::Sandbox { id, attempt, ready: true, created_at: self.context.clock.now(), ips })
    }
}
