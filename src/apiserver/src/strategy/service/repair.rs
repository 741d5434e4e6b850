//! Sets right what Services and IPAddresses say of each other: after an upgrade from a release without
//! IPAddresses, and after people have changed or deleted some. Also keeps the ServiceCIDR that the
//! server was started with.
//!
//! Source: `pkg/registry/core/service/ipallocator/controller/repairip.go` and
//! `pkg/controlplane/controller/defaultservicecidr`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::{Status, meta};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::NETWORKING;
use super::addresses::{self, FAMILY, MANAGED_BY, MANAGER};
use super::range::Range;
use crate::attributes::RequestContext;
use crate::bootstrap;
use crate::cache::Cache;
use crate::registry::Registry;
use crate::zero::Zero;

/// How often everything is looked at that could not be repaired at once.
const AGAIN: Duration = Duration::from_mins(3);
/// Who tells the events.
const REPORTER: &str = "ipallocator-repair-controller";

/// What is wrong with an address of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// No ServiceCIDR has it.
    OutOfRange,
    /// There is no IPAddress.
    Missing,
    /// The IPAddress is of something else that does not have it.
    WrongReference,
    /// Another Service has it too, and the IPAddress.
    Duplicate,
    /// The IPAddress lacks the labels.
    Labels,
}

/// What there is besides the Service.
trait Surroundings {
    fn in_range(&self, address: IpAddr) -> bool;
    fn ip_address(&self, address: IpAddr) -> Option<Value>;
    fn service(&self, namespace: &str, name: &str) -> Option<Value>;
}

impl Surroundings for Registry {
    fn in_range(&self, address: IpAddr) -> bool {
        self.list(NETWORKING, "servicecidrs", None).iter().any(|range| {
            let value = range.value();
            let mut ranges = value["spec"]["cidrs"].texts().filter_map(Range::parse);
            ranges.any(|range| range.contains(address))
        })
    }

    fn ip_address(&self, address: IpAddr) -> Option<Value> {
        let found = self.get(NETWORKING, "ipaddresses", "", &address.to_string())?;
        Some(found.to_value())
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Value> {
        self.get("", "services", namespace, name).map(|found| found.to_value())
    }
}

fn parent_service(known: &Value, around: &impl Surroundings) -> Option<Value> {
    let parent = &known["spec"]["parentRef"];
    around.service(parent["namespace"].text(), parent["name"].text())
}

/// What is wrong with `address` of `service`.
fn fault(service: &Value, address: IpAddr, around: &impl Surroundings) -> Option<Fault> {
    if !around.in_range(address) {
        return Some(Fault::OutOfRange);
    }
    let Some(known) = around.ip_address(address) else { return Some(Fault::Missing) };
    if !addresses::refers_to(&known, service) {
        let other = addresses::is_of_services(&known).then(|| parent_service(&known, around));
        let has = |other: Value| addresses::of(&other).contains(&address);
        let fault =
            if other.flatten().is_some_and(has) { Fault::Duplicate } else { Fault::WrongReference };
        return Some(fault);
    }
    let labelled = meta::label(&known, FAMILY) == Some(addresses::family(address))
        && meta::label(&known, MANAGED_BY) == Some(MANAGER);
    (!labelled).then_some(Fault::Labels)
}

/// Why an IPAddress that the server keeps is to go: reason and message.
fn superfluous(known: &Value, around: &impl Surroundings) -> Option<(&'static str, String)> {
    let (name, parent) = (meta::name(known), &known["spec"]["parentRef"]);
    if meta::label(known, MANAGED_BY) != Some(MANAGER) {
        return None;
    }
    if !addresses::is_of_services(known) {
        let message = format!(
            "IPAddress {name} appears to have been modified, not referencing a Service {parent}: cleaning up"
        );
        return Some(("IPAddressNotAllocated", message));
    }
    let of = format!(
        "IPAddress: {name} for Service {}/{}",
        parent["namespace"].text(),
        parent["name"].text()
    );
    let Some(service) = parent_service(known, around) else {
        return Some((
            "IPAddressNotAllocated",
            format!("{of} appears to have leaked: cleaning up"),
        ));
    };
    if service["spec"]["clusterIPs"].texts().any(|address| address == name) {
        return None;
    }
    Some(("IPAddressWrongReference", format!("{of} has a wrong reference; cleaning up")))
}

/// Reason and message of the event about a fault, where there is one.
fn told(fault: Fault, service: &Value, address: IpAddr) -> Option<(&'static str, String)> {
    let family = addresses::family(address);
    let (namespace, name) = (meta::namespace(service), meta::name(service));
    Some(match fault {
        Fault::OutOfRange => (
            "ClusterIPOutOfRange",
            format!(
                "Cluster IP [{family}]: {address} is not within any configured Service CIDR; please recreate service"
            ),
        ),
        Fault::Missing => (
            "ClusterIPNotAllocated",
            format!("Cluster IP [{family}]: {address} is not allocated; repairing"),
        ),
        Fault::WrongReference => (
            "ClusterIPNotAllocated",
            format!(
                "the ClusterIP [{family}]: {address} for Service {namespace}/{name} has a wrong reference; repairing"
            ),
        ),
        Fault::Duplicate => (
            "ClusterIPAlreadyAllocated",
            format!(
                "Cluster IP [{family}]:{address} was assigned to multiple services; please recreate service"
            ),
        ),
        Fault::Labels => return None,
    })
}

/// Repairs everything, before anybody is served. Nothing is told: after an upgrade all is missing.
pub async fn once(registry: &Registry) -> Result<(), Status> {
    registry.sync().await?;
    check_all(registry, false).await
}

async fn check_all(registry: &Registry, tell: bool) -> Result<(), Status> {
    for service in registry.list("", "services", None) {
        check_service(registry, &service.namespace, &service.name, tell).await?;
    }
    for address in registry.list(NETWORKING, "ipaddresses", None) {
        check_address(registry, &address.name, tell).await?;
    }
    Ok(())
}

async fn check_service(
    registry: &Registry,
    namespace: &str,
    name: &str,
    tell: bool,
) -> Result<(), Status> {
    let faults = || -> Option<(Value, Vec<(IpAddr, Fault)>)> {
        let service = registry.service(namespace, name)?;
        let all = addresses::of(&service);
        let faulty = all.into_iter().filter_map(|a| Some((a, fault(&service, a, registry)?)));
        let faulty: Vec<_> = faulty.collect();
        (!faulty.is_empty()).then_some((service, faulty))
    };
    if faults().is_none() {
        return Ok(());
    }
    // The cache of one kind may have been ahead of the other's.
    registry.sync().await?;
    let Some((service, faulty)) = faults() else { return Ok(()) };
    for (address, fault) in faulty {
        if let Some((reason, message)) = told(fault, &service, address).filter(|_| tell) {
            tell_of(registry, &service, reason, "ClusterIPAllocation", &message).await;
        }
        match fault {
            Fault::OutOfRange | Fault::Duplicate => continue,
            Fault::Missing => {}
            Fault::WrongReference | Fault::Labels => remove(registry, &address.to_string()).await?,
        }
        let Some(kind) = registry.resource(NETWORKING, "ipaddresses") else { continue };
        let made = addresses::new(address, &service);
        let ctx = RequestContext::internal("create", &kind, "", meta::name(&made));
        unless(registry.create(&ctx, made).await, 409)?;
    }
    Ok(())
}

async fn check_address(registry: &Registry, name: &str, tell: bool) -> Result<(), Status> {
    let found = || -> Option<(Value, &'static str, String)> {
        let known = registry.get(NETWORKING, "ipaddresses", "", name)?.to_value();
        let (reason, message) = superfluous(&known, registry)?;
        Some((known, reason, message))
    };
    if found().is_none() {
        return Ok(());
    }
    registry.sync().await?;
    let Some((known, reason, message)) = found() else { return Ok(()) };
    if tell {
        tell_of(registry, &known, reason, "IPAddressAllocation", &message).await;
    }
    remove(registry, name).await
}

async fn remove(registry: &Registry, name: &str) -> Result<(), Status> {
    let Some(kind) = registry.resource(NETWORKING, "ipaddresses") else { return Ok(()) };
    let ctx = RequestContext::internal("delete", &kind, "", name);
    unless(registry.delete(&ctx).await, 404)
}

fn unless<T>(outcome: Result<T, Status>, code: u16) -> Result<(), Status> {
    match outcome {
        Err(status) if status.code != code => Err(status),
        _ => Ok(()),
    }
}

/// Tells a warning about an object. That it could not be told stops nobody.
async fn tell_of(registry: &Registry, object: &Value, reason: &str, action: &str, message: &str) {
    let Some(kind) = registry.resource("", "events") else { return };
    let namespace = match meta::namespace(object) {
        "" => "default",
        namespace => namespace,
    };
    let name = format!("{}.{:x}", meta::name(object), uuid::Uuid::new_v4().as_u128() >> 64);
    let event = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {
            "apiVersion": object["apiVersion"], "kind": object["kind"],
            "name": meta::name(object), "namespace": meta::namespace(object),
            "uid": meta::uid(object), "resourceVersion": meta::resource_version(object),
        },
        "type": "Warning", "reason": reason, "action": action, "message": message,
        "eventTime": apimachinery::time::now_micros(),
        "reportingComponent": REPORTER, "reportingInstance": REPORTER,
        "source": {}, "firstTimestamp": null, "lastTimestamp": null,
    });
    let ctx = RequestContext::internal("create", &kind, namespace, &name);
    if let Err(status) = registry.create(&ctx, event).await {
        tracing::debug!(%status, "cannot tell an event");
    }
}

/// What is to be looked at since `seen`: Services, and names of IPAddresses. Nothing if the history does
/// not reach back that far.
struct Touched {
    services: BTreeSet<(String, String)>,
    addresses: BTreeSet<String>,
}

fn touched(services: &Cache, addresses: &Cache, seen: &mut (u64, u64)) -> Option<Touched> {
    let mut found = Touched { services: BTreeSet::new(), addresses: BTreeSet::new() };
    for change in services.since(seen.0).ok()? {
        seen.0 = change.revision;
        // What a deleted Service leaves is found through its addresses.
        if let Some(service) = &change.current {
            found.services.insert((service.namespace.clone(), service.name.clone()));
        } else if let Some(service) = &change.previous {
            let gone = addresses::of(&service.value());
            found.addresses.extend(gone.iter().map(ToString::to_string));
        }
    }
    for change in addresses.since(seen.1).ok()? {
        seen.1 = change.revision;
        if let Some(address) = &change.current {
            found.addresses.insert(address.name.clone());
        }
        if let Some(before) = &change.previous {
            let value = before.value();
            if addresses::is_of_services(&value) {
                let parent = &value["spec"]["parentRef"];
                let text = |key: &str| parent[key].text().to_owned();
                found.services.insert((text("namespace"), text("name")));
            }
        }
    }
    Some(found)
}

/// Looks at what changes, until `shutdown`.
pub async fn run(registry: Registry, options: bootstrap::Options, shutdown: CancellationToken) {
    let cache =
        |group: &str, plural: &str| -> Option<Arc<Cache>> { registry.cache_of(group, plural) };
    let (Some(services), Some(known), Some(ranges)) = (
        cache("", "services"),
        cache(NETWORKING, "ipaddresses"),
        cache(NETWORKING, "servicecidrs"),
    ) else {
        return;
    };
    let mut wake = [services.subscribe(), known.subscribe(), ranges.subscribe()];
    let mut again = tokio::time::interval(AGAIN);
    let mut seen = (services.snapshot().revision, known.snapshot().revision);
    let mut failed = false;
    loop {
        let [a, b, c] = &mut wake;
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = again.tick() => if !failed { continue },
            changed = a.changed() => if changed.is_err() { return },
            changed = b.changed() => if changed.is_err() { return },
            changed = c.changed() => if changed.is_err() { return },
        }
        for receiver in &mut wake {
            receiver.mark_unchanged();
        }
        let mut outcome = bootstrap::keep_range(&registry, &options).await;
        if let Some(touched) = touched(&services, &known, &mut seen).filter(|_| !failed) {
            for (namespace, name) in &touched.services {
                outcome = outcome.and(check_service(&registry, namespace, name, true).await);
            }
            for name in &touched.addresses {
                outcome = outcome.and(check_address(&registry, name, true).await);
            }
        } else {
            seen = (services.snapshot().revision, known.snapshot().revision);
            outcome = outcome.and(check_all(&registry, true).await);
        }
        failed = outcome.is_err();
        if let Err(status) = outcome {
            tracing::warn!(%status, "cannot repair addresses of Services");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A range, IPAddresses and Services by name.
    struct Cluster {
        addresses: Vec<Value>,
        services: Vec<Value>,
    }

    impl Surroundings for Cluster {
        fn in_range(&self, address: IpAddr) -> bool {
            Range::parse("10.0.0.0/24").is_some_and(|range| range.contains(address))
        }

        fn ip_address(&self, address: IpAddr) -> Option<Value> {
            self.addresses.iter().find(|a| meta::name(a) == address.to_string()).cloned()
        }

        fn service(&self, namespace: &str, name: &str) -> Option<Value> {
            let same = |s: &&Value| meta::namespace(s) == namespace && meta::name(s) == name;
            self.services.iter().find(same).cloned()
        }
    }

    fn service(name: &str, address: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"clusterIPs": [address]}})
    }

    /// The IPAddress 10.0.0.7 of a Service, with something else in places.
    fn ip_address(service: &str, changes: &[(&str, Value)]) -> Value {
        let parent = json!({"metadata": {"name": service, "namespace": "n"}});
        let mut made = addresses::new("10.0.0.7".parse().unwrap(), &parent);
        for (path, value) in changes {
            *made.pointer_mut(path).expect("a path") = value.clone();
        }
        made
    }

    #[test]
    fn a_service_and_its_address_know_each_other() {
        let family = "/metadata/labels/ipaddress.kubernetes.io~1ip-family";
        let cases = [
            ("10.0.0.7", vec![ip_address("s", &[])], None),
            ("10.0.0.7", vec![], Some(Fault::Missing)),
            ("10.1.0.7", vec![], Some(Fault::OutOfRange)),
            ("10.0.0.7", vec![ip_address("gone", &[])], Some(Fault::WrongReference)),
            ("10.0.0.7", vec![ip_address("other", &[])], Some(Fault::WrongReference)),
            ("10.0.0.7", vec![ip_address("twin", &[])], Some(Fault::Duplicate)),
            (
                "10.0.0.7",
                vec![ip_address("s", &[("/spec/parentRef/resource", json!("gateways"))])],
                Some(Fault::WrongReference),
            ),
            ("10.0.0.7", vec![ip_address("s", &[(family, json!("IPv6"))])], Some(Fault::Labels)),
        ];
        for (address, known, want) in cases {
            let told = format!("{address} {known:?}");
            let services = vec![service("twin", "10.0.0.7"), service("other", "10.0.0.9")];
            let cluster = Cluster { addresses: known, services };
            let found = fault(&service("s", address), address.parse().unwrap(), &cluster);
            assert_eq!(found, want, "{told}");
        }
    }

    #[test]
    fn an_address_that_nobody_has_goes_if_it_is_ours() {
        let by = "/metadata/labels/ipaddress.kubernetes.io~1managed-by";
        let of_other = ("/spec/parentRef/resource", json!("gateways"));
        let cases = [
            (ip_address("twin", &[]), None),
            (ip_address("gone", &[(by, json!("me"))]), None),
            (ip_address("gone", &[]), Some("appears to have leaked: cleaning up")),
            (
                ip_address("other", &[]),
                Some("for Service n/other has a wrong reference; cleaning up"),
            ),
            (ip_address("twin", &[of_other]), Some("cleaning up")),
        ];
        let services = vec![service("twin", "10.0.0.7"), service("other", "10.0.0.9")];
        let cluster = Cluster { addresses: Vec::new(), services };
        for (known, want) in cases {
            let found = superfluous(&known, &cluster).map(|(_, message)| message);
            let same = match (&found, want) {
                (Some(found), Some(want)) => found.ends_with(want),
                (found, want) => found.is_none() && want.is_none(),
            };
            assert!(same, "{known}: {found:?}");
        }
    }
}
