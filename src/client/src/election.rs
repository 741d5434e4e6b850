//! Leader election: of several candidates only the holder of a Lease works.
//!
//! Source: `k8s.io/client-go/tools/leaderelection`. As there, a candidate measures by its own clock how long
//! it has seen the Lease unchanged; the times in it are for people.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Where the Leases of components are.
const NAMESPACE: &str = "kube-system";
/// After so long without a renewal others may take the Lease (`leaseDuration`).
const DURATION: Duration = Duration::from_secs(15);
/// After so long without a renewal the holder gives up (`renewDeadline`).
const DEADLINE: Duration = Duration::from_secs(10);
/// How often the holder renews, and the others look (`retryPeriod`).
const PERIOD: Duration = Duration::from_secs(2);

/// A candidate for one Lease.
pub struct Election {
    leases: Api<Lease>,
    name: String,
    identity: String,
}

/// The time during which a candidate holds the Lease.
pub struct Term {
    held: CancellationToken,
    task: JoinHandle<()>,
}

impl Term {
    /// Ends it, and leaves the Lease to others.
    pub async fn resign(self) {
        self.held.cancel();
        if self.task.await.is_err() {
            tracing::debug!("the keeper of a lease panicked");
        }
    }

    /// Cancelled when the Lease is lost, or the shutdown has begun.
    pub fn held(&self) -> CancellationToken {
        self.held.clone()
    }
}

/// What a candidate makes of the Lease as it finds it.
#[derive(Debug, PartialEq)]
enum Look {
    /// It is there to be taken; how often it has changed hands is told.
    Take(i32),
    /// It is this candidate's.
    Mine,
    /// Somebody else has it.
    Wait,
}

fn look(spec: &LeaseSpec, identity: &str, unchanged: Duration) -> Look {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    let lasts = Duration::from_secs(spec.lease_duration_seconds.unwrap_or(0).max(0) as u64);
    if holder == identity {
        Look::Mine
    } else if holder.is_empty() || unchanged >= lasts {
        Look::Take(spec.lease_transitions.unwrap_or(0) + 1)
    } else {
        Look::Wait
    }
}

impl Election {
    /// `identity` stands for the Lease `name`.
    pub fn new(client: Client, name: &str, identity: &str) -> Self {
        let leases = Api::namespaced(client, NAMESPACE);
        Self { leases, name: name.to_owned(), identity: identity.to_owned() }
    }

    fn spec(&self, before: Option<&LeaseSpec>, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let mine = before.filter(|b| b.holder_identity.as_deref() == Some(&self.identity));
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            acquire_time: mine.and_then(|b| b.acquire_time.clone()).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..before.cloned().unwrap_or_default()
        }
    }

    /// Takes or renews the Lease; `seen` is since when it has looked as it does. Says whether it is held.
    async fn attempt(&self, seen: &mut Option<(String, Instant)>) -> Result<bool, kube::Error> {
        let parameters = PostParams::default();
        let Some(found) = self.leases.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(None, 0)) };
            return self.leases.create(&parameters, &lease).await.map(|_| true);
        };
        let version = found.resource_version().unwrap_or_default();
        let since = match seen {
            Some((known, since)) if *known == version => *since,
            _ => seen.insert((version, Instant::now())).1,
        };
        let spec = found.spec.clone().unwrap_or_default();
        let transitions = match look(&spec, &self.identity, since.elapsed()) {
            Look::Wait => return Ok(false),
            Look::Mine => spec.lease_transitions.unwrap_or(0),
            Look::Take(transitions) => transitions,
        };
        let mut lease = found;
        lease.spec = Some(self.spec(Some(&spec), transitions));
        self.leases.replace(&self.name, &parameters, &lease).await.map(|_| true)
    }

    /// Waits until the Lease is this candidate's, and keeps it. `None` when `shutdown` came first.
    pub async fn win(&self, shutdown: &CancellationToken) -> Option<Term> {
        let mut seen = None;
        loop {
            match self.attempt(&mut seen).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => tracing::debug!(lease = self.name, %error, "not elected"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
        tracing::info!(lease = self.name, "elected");
        let held = shutdown.child_token();
        let keeper = Self {
            leases: self.leases.clone(),
            name: self.name.clone(),
            identity: self.identity.clone(),
        };
        let task = tokio::spawn(keeper.keep(held.clone()));
        Some(Term { held, task })
    }

    /// Leaves the Lease to others at once.
    async fn release(&self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.leases.get_opt(&self.name).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut() else { return Ok(()) };
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(());
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        self.leases.replace(&self.name, &PostParams::default(), &lease).await.map(|_| ())
    }

    /// Renews until that fails for too long.
    async fn keep(self, held: CancellationToken) {
        let (mut renewed, mut seen) = (Instant::now(), None);
        loop {
            tokio::select! {
                () = held.cancelled() => {
                    if let Err(error) = self.release().await {
                        tracing::debug!(lease = self.name, %error, "not released");
                    }
                    return;
                }
                () = tokio::time::sleep(PERIOD) => {}
            }
            let left = DEADLINE.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.attempt(&mut seen)).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => break,
                Ok(Err(error)) => tracing::debug!(lease = self.name, %error, "not renewed"),
                Err(_) => {}
            }
            if renewed.elapsed() >= DEADLINE {
                break;
            }
        }
        tracing::warn!(lease = self.name, "lost the lease");
        held.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_forgotten() {
        let spec = |holder: &str| LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        };
        for (holder, unchanged_s, want) in [
            ("me", 0, Look::Mine),
            ("me", 99, Look::Mine),
            ("", 0, Look::Take(4)),
            ("other", 14, Look::Wait),
            ("other", 15, Look::Take(4)),
        ] {
            let unchanged = Duration::from_secs(unchanged_s);
            assert_eq!(look(&spec(holder), "me", unchanged), want, "{holder} {unchanged_s}");
        }
    }
}
