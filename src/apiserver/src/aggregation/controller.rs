//! Follows the APIServices: keeps those of this server, and asks the other servers whether they answer
//! and what they serve.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::meta;
use futures::future::{join_all, select_all};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::availability::{check_service, set_available};
use super::{Aggregator, Described, GROUP, PLURAL, Remote, local};

/// An available server is asked again after so long, as upstream resyncs.
const RECHECK: Duration = Duration::from_secs(30);
/// One that does not answer is asked again after this, doubled each time.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// Its descriptions are fetched anew after so long.
const REDESCRIBE: Duration = Duration::from_mins(2);

/// What is remembered of a server between two rounds.
struct Seen {
    /// Generation of the object, and where it led.
    basis: (String, String),
    next: Instant,
    retry: Duration,
    described: Arc<Described>,
    described_at: Instant,
    available: bool,
}

/// Where an APIService leads, as text: a change of it means a new question.
fn basis(aggregator: &Aggregator, object: &Value, remote: &Remote) -> (String, String) {
    let place = match check_service(&aggregator.registry, remote) {
        Some(verdict) => verdict.message,
        None => match remote.target(&aggregator.registry, "") {
            Ok(target) => format!("{:?}", target.place),
            Err(error) => error.to_string(),
        },
    };
    (format!("{} {}", meta::uid(object), object["spec"]), place)
}

/// Works until `shutdown`.
pub async fn run(aggregator: Arc<Aggregator>, shutdown: CancellationToken) {
    let registry = aggregator.registry.clone();
    let subscribe = |(group, plural): (&str, &str)| -> Option<watch::Receiver<u64>> {
        let resource = registry.resource(group, plural)?;
        Some(registry.cache(&resource)?.subscribe())
    };
    let definitions = ("apiextensions.k8s.io", "customresourcedefinitions");
    let mut changes: Vec<watch::Receiver<u64>> =
        [(GROUP, PLURAL), definitions].into_iter().filter_map(subscribe).collect();
    // These change often, and matter only while there are other servers.
    let mut places: Vec<watch::Receiver<u64>> =
        [("", "services"), ("discovery.k8s.io", "endpointslices")]
            .into_iter()
            .filter_map(subscribe)
            .collect();
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    let own = changes.len();
    let (mut first, mut woken): (bool, Option<usize>) = (true, None);
    while !shutdown.is_cancelled() {
        // What has woken this task counts as seen.
        let mut changed = first || woken.is_some_and(|index| index < own);
        for change in &mut changes {
            changed |= change.has_changed().unwrap_or(true);
            change.borrow_and_update();
        }
        for place in &mut places {
            place.borrow_and_update();
        }
        if changed {
            local::sync(&registry, first).await;
        }
        first = false;
        round(&aggregator, &mut seen).await;
        let next = seen.values().map(|seen| seen.next).min();
        let timer = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let others = if seen.is_empty() { 0 } else { places.len() };
        let watched = changes.iter_mut().chain(&mut places[..others]);
        let changed = select_all(watched.map(|change| Box::pin(change.changed())));
        woken = tokio::select! {
            () = shutdown.cancelled() => return,
            () = timer => None,
            (result, index, _) = changed => if result.is_ok() { Some(index) } else { return },
        };
    }
}

/// Looks at every other server once.
async fn round(aggregator: &Arc<Aggregator>, seen: &mut BTreeMap<String, Seen>) {
    let objects: Vec<(Value, Remote)> = aggregator
        .registry
        .list(GROUP, PLURAL, None)
        .iter()
        .filter_map(|object| {
            let object = object.to_value();
            let remote = Remote::parse(&object)?;
            Some((object, remote))
        })
        .collect();
    seen.retain(|name, _| objects.iter().any(|(_, remote)| remote.name == *name));
    if objects.is_empty() {
        if !aggregator.remotes().is_empty() {
            aggregator.set_remotes(Vec::new());
        }
        return;
    }
    let due = objects.iter().filter(|(object, remote)| {
        seen.get(&remote.name).is_none_or(|seen| {
            seen.next <= Instant::now() || seen.basis != basis(aggregator, object, remote)
        })
    });
    let answers = join_all(due.map(|(object, remote)| {
        let old = seen.get(&remote.name);
        let known = old.map(|old| (old.described.clone(), old.described_at));
        let retry = old.map_or(RETRY_MIN, |old| old.retry);
        look(aggregator, object, remote, known, retry)
    }))
    .await;
    seen.extend(answers);
    let table: Vec<Remote> = objects
        .into_iter()
        .map(|(_, mut remote)| {
            if let Some(seen) = seen.get(&remote.name) {
                remote.available = seen.available;
                remote.described = seen.described.clone();
            }
            remote
        })
        .collect();
    let same = |old: &Remote, new: &Remote| {
        old.name == new.name
            && old.available == new.available
            && Arc::ptr_eq(&old.described, &new.described)
            && (old.port, old.insecure) == (new.port, new.insecure)
            && (&old.service, &old.namespace, &old.ca_bundle)
                == (&new.service, &new.namespace, &new.ca_bundle)
            && (old.group_priority, old.version_priority)
                == (new.group_priority, new.version_priority)
    };
    let old = aggregator.remotes();
    if old.len() != table.len() || !old.iter().zip(&table).all(|(old, new)| same(old, new)) {
        aggregator.set_remotes(table);
    }
}

/// Asks one server, and says in its object how it is.
async fn look(
    aggregator: &Aggregator,
    object: &Value,
    remote: &Remote,
    known: Option<(Arc<Described>, Instant)>,
    retry: Duration,
) -> (String, Seen) {
    let basis = basis(aggregator, object, remote);
    let (verdict, resources) = aggregator.probe(remote).await;
    let now = Instant::now();
    let (mut described, mut described_at) = known.unwrap_or_else(|| (Arc::default(), now));
    let stale = described.resources.is_none()
        || now.duration_since(described_at) > REDESCRIBE
        || resources.is_some() && described.resources != resources;
    if verdict.is_available() && stale {
        described = Arc::new(aggregator.describe(remote, resources).await);
        described_at = now;
    }
    if let Err(status) = set_available(&aggregator.registry, object, &verdict).await
        && status.code != 404
    {
        tracing::warn!(%status, api_service = remote.name, "cannot say whether it is available");
    }
    let available = verdict.is_available();
    let (wait, retry) =
        if available { (RECHECK, RETRY_MIN) } else { (retry, (retry * 2).min(RECHECK)) };
    let seen =
        Seen { basis, next: Instant::now() + wait, retry, described, described_at, available };
    (remote.name.clone(), seen)
}
