//! Follows the definitions: accepts their names, publishes what they define, and removes the objects of
//! those that are deleted.
//!
//! Source: `pkg/controller/status`, `establish`, `finalizer` and `apiapproval` of
//! apiextensions-apiserver.

use std::time::Duration;

use apimachinery::{Status, meta};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::definition::{self, FINALIZER, condition, is_true, set_condition};
use crate::attributes::RequestContext;
use crate::gate::Open;
use crate::options::DeleteOptions;
use crate::registry::Registry;
use crate::resource::ResourceRef;
use crate::zero::Zero;

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";
/// While objects of a deleted definition wait for their finalizers, they are looked at this often.
const CLEANUP_EVERY: Duration = Duration::from_millis(200);

/// All definitions, oldest first.
fn definitions(registry: &Registry) -> Vec<Value> {
    let mut all: Vec<Value> =
        registry.list(GROUP, PLURAL, None).iter().map(|object| object.to_value()).collect();
    all.sort_by_key(|crd| (meta::creation_timestamp(crd).to_owned(), meta::name(crd).to_owned()));
    all
}

/// Serves what the established definitions define, and forgets what none defines any more.
pub async fn publish(registry: &Registry) -> Result<(), store::Error> {
    publish_definitions(registry, &definitions(registry)).await
}

async fn publish_definitions(registry: &Registry, crds: &[Value]) -> Result<(), store::Error> {
    let (mut served, mut at_rest): (Vec<ResourceRef>, Vec<ResourceRef>) = Default::default();
    let before = registry.served();
    for crd in crds.iter().filter(|crd| is_true(crd, "Established")) {
        let (group, plural) =
            (crd["spec"]["group"].text(), crd["status"]["acceptedNames"]["plural"].text());
        let known = before.preferred(group, plural).cloned();
        let (versions, storage) = super::resources(crd);
        let Some(storage) = storage else { continue };
        // What did not change keeps its cache and its watches.
        if let Some(known) =
            known.filter(|known| known.custom == storage.custom && known.custom.is_some())
        {
            served.extend(
                before.all().iter().filter(|r| r.is(group, plural) && r.custom.is_some()).cloned(),
            );
            at_rest.push(known);
            continue;
        }
        registry.caches().replace(storage.clone()).await?;
        served.extend(versions);
        at_rest.push(storage);
    }
    let gone: Vec<String> = before
        .at_rest()
        .filter(|old| !at_rest.iter().any(|new| new.key_prefix == old.key_prefix))
        .map(|old| old.key_prefix.clone())
        .collect();
    let same = gone.is_empty()
        && before.at_rest().count() == at_rest.len()
        && before.at_rest().all(|old| at_rest.iter().any(|new| std::sync::Arc::ptr_eq(old, new)));
    if same {
        return Ok(());
    }
    registry.publish(before.without_custom().with_custom(served, at_rest));
    for prefix in gone {
        registry.caches().remove(&prefix);
    }
    Ok(())
}

/// Works until `shutdown`.
pub async fn run(registry: Registry, shutdown: CancellationToken) {
    let Some(resource) = registry.resource(GROUP, PLURAL) else { return };
    let Some(cache) = registry.cache(&resource) else { return };
    let mut changed = cache.subscribe();
    loop {
        changed.borrow_and_update();
        let mut again = false;
        for crd in definitions(&registry) {
            match reconcile(&registry, &crd).await {
                Ok(done) => again |= !done,
                Err(status) if matches!(status.code, 404 | 409) => again = true,
                Err(status) => {
                    tracing::warn!(crd = meta::name(&crd), %status, "cannot settle a definition");
                    again = true;
                }
            }
        }
        let wait = async {
            if again {
                tokio::time::sleep(CLEANUP_EVERY).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = wait => {}
            result = changed.changed() => if result.is_err() { return },
        }
    }
}

/// Brings one definition further; tells whether nothing is left to do.
async fn reconcile(registry: &Registry, crd: &Value) -> Result<bool, Status> {
    if meta::deletion_timestamp(crd).is_some() {
        publish(registry).await.map_err(crate::registry::store_failure)?;
        return clean_up(registry, crd).await;
    }
    let others = definitions(registry);
    let mut wanted = crd.clone();
    accept_names(&mut wanted, &others);
    if wanted["status"] != crd["status"] {
        // Served before it is said to be, so that nobody who was told is disappointed.
        let mut all = others;
        if let Some(own) = all.iter_mut().find(|other| meta::uid(other) == meta::uid(crd)) {
            own.clone_from(&wanted);
        }
        publish_definitions(registry, &all).await.map_err(crate::registry::store_failure)?;
        update_status(registry, crd, &wanted).await?;
        return Ok(true);
    }
    publish(registry).await.map_err(crate::registry::store_failure)?;
    Ok(true)
}

async fn update_status(registry: &Registry, crd: &Value, wanted: &Value) -> Result<(), Status> {
    let Some(resource) = registry.resource(GROUP, PLURAL) else { return Ok(()) };
    let mut ctx = RequestContext::internal("update", &resource, "", meta::name(crd));
    ctx.subresource = "status".into();
    let mut object = wanted.clone();
    // Only over what was looked at.
    meta::set(&mut object, "resourceVersion", meta::resource_version(crd));
    registry.update(&ctx, object).await.map(drop)
}

/// The names that other definitions of the group hold: resources, and kinds.
fn taken(crd: &Value, others: &[Value]) -> (Vec<String>, Vec<String>) {
    let (mut resources, mut kinds) = (Vec::new(), Vec::new());
    for other in others {
        if other["spec"]["group"] != crd["spec"]["group"] || meta::uid(other) == meta::uid(crd) {
            continue;
        }
        let names = &other["status"]["acceptedNames"];
        for key in ["plural", "singular"] {
            resources.push(names[key].text().to_owned());
        }
        resources.extend(names["shortNames"].texts().map(str::to_owned));
        for key in ["kind", "listKind"] {
            kinds.push(names[key].text().to_owned());
        }
    }
    (resources, kinds)
}

/// Accepts the names nobody else holds, and sets the conditions that follow.
fn accept_names(crd: &mut Value, others: &[Value]) {
    let (resources, kinds) = taken(crd, others);
    let wanted = crd["spec"]["names"].clone();
    let mut accepted = crd["status"]["acceptedNames"].clone();
    let mut conflict: Option<(&str, String)> = None;
    let mut decide = |key: &'static str, reason: &'static str, taken: &[String]| {
        let name = wanted[key].text();
        if name != accepted[key].text() && taken.iter().any(|other| other == name) {
            conflict = Some((reason, format!("{name:?} is already in use")));
        } else if wanted[key].is_set() {
            accepted[key] = wanted[key].clone();
        }
    };
    decide("plural", "PluralConflict", &resources);
    decide("singular", "SingularConflict", &resources);
    decide("kind", "KindConflict", &kinds);
    decide("listKind", "ListKindConflict", &kinds);
    let clash = wanted["shortNames"].texts().find(|name| {
        resources.iter().any(|other| other == name)
            && !accepted["shortNames"].texts().any(|own| own == *name)
    });
    match clash {
        Some(name) => {
            conflict = Some(("ShortNamesConflict", format!("{name:?} is already in use")));
        }
        None => copy(&mut accepted, &wanted, "shortNames"),
    }
    copy(&mut accepted, &wanted, "categories");
    crd["status"]["acceptedNames"] = accepted;
    approve(crd);
    match &conflict {
        Some((reason, message)) => set_condition(crd, "NamesAccepted", "False", reason, message),
        None => set_condition(crd, "NamesAccepted", "True", "NoConflicts", "no conflicts found"),
    }
    if is_true(crd, "Established") {
        return;
    }
    if conflict.is_some() {
        let message = "not all names are accepted";
        set_condition(crd, "Established", "False", "NotAccepted", message);
    } else {
        let message = "the initial names have been accepted";
        set_condition(crd, "Established", "True", "InitialNamesAccepted", message);
    }
}

fn copy(accepted: &mut Value, wanted: &Value, key: &str) {
    match wanted.get(key).filter(|value| value.is_set()) {
        Some(value) => accepted[key] = value.clone(),
        None => {
            if let Some(map) = accepted.as_object_mut() {
                map.remove(key);
            }
        }
    }
}

/// A definition in a protected group says whether it was approved.
fn approve(crd: &mut Value) {
    const KIND: &str = "KubernetesAPIApprovalPolicyConformant";
    if !definition::is_protected(crd["spec"]["group"].text()) {
        return;
    }
    let (status, reason, message) = match definition::approval(crd) {
        Some(Ok(url)) => ("True", "ApprovedAnnotation", format!("approved in {url}")),
        Some(Err(text)) => ("False", "UnapprovedAnnotation", format!("not approved: {text:?}")),
        None => (
            "False",
            "MissingAnnotation",
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111".into(),
        ),
    };
    set_condition(crd, KIND, status, reason, &message);
}

/// Deletes all objects of a deleted definition; tells whether they are gone, and the definition with
/// them.
async fn clean_up(registry: &Registry, crd: &Value) -> Result<bool, Status> {
    if !meta::finalizers(crd).contains(&FINALIZER) {
        return Ok(true);
    }
    let group = crd["spec"]["group"].text();
    let plural = crd["status"]["acceptedNames"]["plural"].text();
    let own = registry.resource(group, plural).filter(|resource| {
        resource.custom.as_ref().is_some_and(|custom| custom.uid == meta::uid(crd))
    });
    if let Some(resource) = own {
        if condition(crd, "Terminating").is_none_or(|c| c["reason"] == "InstanceDeletionPending") {
            let mut wanted = crd.clone();
            set_condition(
                &mut wanted,
                "Terminating",
                "True",
                "InstanceDeletionInProgress",
                "CustomResource deletion is in progress",
            );
            update_status(registry, crd, &wanted).await?;
            return Ok(false);
        }
        let left = registry.list(group, plural, None);
        for object in &left {
            let ctx =
                RequestContext::internal("delete", &resource, &object.namespace, &object.name);
            match registry.delete_through(&ctx, &DeleteOptions::default(), &Open).await {
                Ok(_) => {}
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        if !registry.list(group, plural, None).is_empty() {
            return Ok(false);
        }
    }
    let Some(resource) = registry.resource(GROUP, PLURAL) else { return Ok(true) };
    let ctx = RequestContext::internal("update", &resource, "", meta::name(crd));
    registry
        .update_with(&ctx, &|object| {
            let rest: Vec<String> = meta::finalizers(object)
                .into_iter()
                .filter(|finalizer| *finalizer != FINALIZER)
                .map(str::to_owned)
                .collect();
            meta::set(object, "finalizers", json!(rest));
            Ok(())
        })
        .await?;
    publish(registry).await.map_err(crate::registry::store_failure)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crd(uid: &str, names: Value) -> Value {
        json!({"metadata": {"uid": uid, "name": uid}, "spec": {"group": "a.io", "names": names}, "status": {}})
    }

    #[test]
    fn names_belong_to_who_came_first() {
        let mut first = crd(
            "1",
            json!({"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList", "shortNames": ["f"]}),
        );
        accept_names(&mut first, &[]);
        assert!(is_true(&first, "Established") && is_true(&first, "NamesAccepted"));
        let cases = [
            (
                json!({"plural": "foos2", "singular": "foo2", "kind": "Foo", "listKind": "Foo2List"}),
                "KindConflict",
                "\"Foo\" is already in use",
            ),
            (
                json!({"plural": "f", "singular": "foo2", "kind": "Foo2", "listKind": "Foo2List"}),
                "PluralConflict",
                "\"f\" is already in use",
            ),
            (
                json!({"plural": "bars", "singular": "bar", "kind": "Bar", "listKind": "BarList", "shortNames": ["foo"]}),
                "ShortNamesConflict",
                "\"foo\" is already in use",
            ),
        ];
        for (names, reason, message) in cases {
            let mut second = crd("2", names);
            accept_names(&mut second, std::slice::from_ref(&first));
            let found = condition(&second, "NamesAccepted").expect("a condition");
            assert_eq!((found["reason"].text(), found["message"].text()), (reason, message));
            assert_eq!(
                condition(&second, "Established").expect("a condition")["reason"],
                "NotAccepted"
            );
        }
        let mut again = first.clone();
        accept_names(&mut again, &[]);
        assert_eq!(again, first);
    }
}
