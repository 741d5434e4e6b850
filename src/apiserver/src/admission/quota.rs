//! ResourceQuota: what a request would use is taken from the namespace's quotas before it is stored,
//! by compare-and-swap on the quota's status, so that no two requests take the same amount.
//!
//! Source: `k8s.io/apiserver/pkg/admission/plugin/resourcequota`.

use apimachinery::quantity::Quantity;
use apimachinery::quota::{self, DEVICE_CLAIMS, Surroundings, Usage};
use apimachinery::{Status, meta};
use serde_json::{Value, json};

use crate::attributes::RequestContext;
use crate::gate::Operation;
use crate::registry::Registry;
use crate::zero::Zero;

/// How often a quota that others change meanwhile is tried again.
const ATTEMPTS: usize = 20;

/// Takes what `object` uses beyond `old` from every quota that counts it.
pub async fn admit(
    registry: &Registry,
    ctx: &RequestContext,
    operation: Operation,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    let namespaced = ctx.resource.as_ref().is_some_and(|r| r.namespaced);
    let concerned = matches!(operation, Operation::Create | Operation::Update)
        && namespaced
        && match ctx.subresource.as_str() {
            "" => true,
            "resize" => ctx.is("", "pods"),
            // A volume may be given more than was asked for, and other attributes.
            "status" => ctx.is("", "persistentvolumeclaims"),
            _ => false,
        };
    if !concerned || ctx.is("", "resourcequotas") && operation == Operation::Update {
        return Ok(());
    }
    let quotas = registry.list("", "resourcequotas", Some(&ctx.namespace));
    if quotas.is_empty() {
        return Ok(());
    }
    let change = Change::new(registry, ctx, object, old);
    let names: Vec<String> = quotas.iter().map(|quota| quota.name.clone()).collect();
    let mut taken: Vec<(String, Usage)> = Vec::new();
    for name in names {
        match take(registry, ctx, &name, &change).await {
            Ok(Some(usage)) => taken.push((name, usage)),
            Ok(None) => {}
            Err(status) => {
                // The quotas that had room get it back.
                for (name, usage) in taken {
                    give_back(registry, ctx, &name, &usage).await;
                }
                return Err(status);
            }
        }
    }
    Ok(())
}

fn amounts(list: &Value) -> Usage {
    list.entries()
        .filter_map(|(name, text)| {
            let text = text.as_str().map_or_else(|| text.to_string(), str::to_owned);
            Some((name.clone(), text.parse::<Quantity>().ok()?))
        })
        .collect()
}

fn print<'a>(list: impl Iterator<Item = (&'a String, &'a Quantity)>) -> String {
    let all: Vec<String> =
        list.map(|(name, amount)| format!("{name}={}", amount.canonical())).collect();
    all.join(",")
}

/// What an object counts for.
fn usage(registry: &Registry, ctx: &RequestContext, object: &Value) -> Usage {
    let mut usage = quota::usage(&ctx.group, &ctx.plural, object);
    if (ctx.group.as_str(), ctx.plural.as_str()) == DEVICE_CLAIMS {
        let (group, claims) = DEVICE_CLAIMS;
        let get = |group: &str, plural: &str, namespace: &str, name: &str| {
            registry.get(group, plural, namespace, name).map(|found| found.to_value())
        };
        let around = Surroundings {
            class: &|name| get(group, "deviceclasses", "", name),
            pod: &|name| get("", "pods", &ctx.namespace, name),
            claims: &|| {
                let found = registry.list(group, claims, Some(&ctx.namespace));
                found.iter().map(|claim| claim.to_value()).collect()
            },
        };
        quota::add_extended(&mut usage, object, &around);
    }
    usage
}

/// An object that is made or changed, with what it counts for.
struct Change<'a> {
    object: &'a Value,
    usage: Usage,
    before: Option<(&'a Value, Usage)>,
}

impl<'a> Change<'a> {
    fn new(
        registry: &Registry,
        ctx: &RequestContext,
        object: &'a Value,
        old: Option<&'a Value>,
    ) -> Self {
        let before = old.map(|old| (old, usage(registry, ctx, old)));
        Self { object, usage: usage(registry, ctx, object), before }
    }

    /// What the object uses of the kinds that the quota limits, beyond what it did before.
    fn difference(&self, spec: &Value, ctx: &RequestContext) -> Usage {
        let counts = |object: &Value| quota::counts(spec, &ctx.group, &ctx.plural, object);
        let mut usage = if counts(self.object) { self.usage.clone() } else { Usage::default() };
        if let Some((_, before)) = self.before.as_ref().filter(|(old, _)| counts(old)) {
            for (name, amount) in before {
                let now = usage.get(name).cloned().unwrap_or_default();
                usage.insert(name.clone(), now.minus(amount));
            }
        }
        usage.retain(|name, amount| amount.signum() > 0 && spec["hard"].get(name).is_some());
        usage
    }
}

/// Pods must say what they need of everything that a quota limits.
fn unsaid(spec: &Value, ctx: &RequestContext, pod: &Value) -> Option<String> {
    const COMPUTE: [&str; 6] =
        ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
    let of_pod = &pod["spec"]["resources"];
    let said = |which: &str| of_pod[which].as_object().is_some_and(|list| !list.is_empty());
    // Where the pod says it as a whole its containers need not.
    if !ctx.is("", "pods") || said("requests") || said("limits") {
        return None;
    }
    let wanted: Vec<&str> =
        COMPUTE.into_iter().filter(|name| spec["hard"].get(*name).is_some()).collect();
    let mut missing: Vec<String> = Vec::new();
    for name in wanted {
        let (which, resource) = name.split_once('.').unwrap_or(("requests", name));
        let lacking: Vec<&str> = ["containers", "initContainers"]
            .iter()
            .flat_map(|list| pod["spec"][*list].items())
            .filter(|container| container["resources"][which].get(resource).is_none())
            .map(|container| container["name"].text())
            .collect();
        if !lacking.is_empty() {
            missing.push(format!("{name} for: {}", lacking.join(",")));
        }
    }
    missing.sort();
    (!missing.is_empty()).then(|| missing.join("; "))
}

/// Why the quota called `name` does not allow the change, if it does not: what it uses is unknown, or too much.
fn refusal(name: &str, hard: &Usage, used: &Usage, wanted: &Usage) -> Option<String> {
    let unknown = wanted.keys().filter(|key| !used.contains_key(*key));
    let unknown: Vec<&str> = unknown.map(String::as_str).collect();
    if !unknown.is_empty() {
        // Until the controller has counted, nobody knows what is left.
        let unknown = unknown.join(",");
        return Some(format!("status unknown for quota: {name}, resources: {unknown}"));
    }
    let nothing = Quantity::default();
    let is_over = |(key, amount): &(&String, &Quantity)| {
        let sum = used.get(*key).unwrap_or(&nothing).plus(amount);
        hard.get(*key).is_some_and(|most| sum > *most)
    };
    let over: Vec<&String> = wanted.iter().filter(is_over).map(|(key, _)| key).collect();
    if over.is_empty() {
        return None;
    }
    let of = |list: &Usage| print(list.iter().filter(|(key, _)| over.contains(key)));
    let (wanted, used, hard) = (of(wanted), of(used), of(hard));
    Some(format!("exceeded quota: {name}, requested: {wanted}, used: {used}, limited: {hard}"))
}

/// Takes what the change asks for from the quota called `name`. Returns what was taken.
async fn take(
    registry: &Registry,
    ctx: &RequestContext,
    name: &str,
    change: &Change<'_>,
) -> Result<Option<Usage>, Status> {
    let refuse = |why: String| {
        let object_name = meta::name(change.object);
        Err(Status::forbidden(&ctx.group, &ctx.plural, object_name, &why))
    };
    let Some(resource) = registry.resource("", "resourcequotas") else { return Ok(None) };
    for _ in 0..ATTEMPTS {
        let Some(found) = registry.get("", "resourcequotas", &ctx.namespace, name) else {
            return Ok(None);
        };
        let mut quota = found.to_value();
        if meta::deletion_timestamp(&quota).is_some() {
            return Ok(None);
        }
        let spec = &quota["spec"];
        if change.before.is_none()
            && quota::counts(spec, &ctx.group, &ctx.plural, change.object)
            && let Some(missing) = unsaid(spec, ctx, change.object)
        {
            return refuse(format!("failed quota: {name}: must specify {missing}"));
        }
        let wanted = change.difference(spec, ctx);
        if wanted.is_empty() {
            return Ok(None);
        }
        let (hard, mut used) = (amounts(&spec["hard"]), amounts(&quota["status"]["used"]));
        if let Some(why) = refusal(name, &hard, &used, &wanted) {
            return refuse(why);
        }
        if ctx.dry_run {
            return Ok(None);
        }
        quota::add(&mut used, &wanted);
        write_used(&mut quota, &used);
        let mut own = RequestContext::internal("update", &resource, &ctx.namespace, name);
        own.subresource = "status".into();
        match registry.update(&own, quota).await {
            Ok(_) => return Ok(Some(wanted)),
            Err(status) if status.code == 409 => {}
            Err(status) if status.code == 404 => return Ok(None),
            Err(status) => return Err(status),
        }
    }
    refuse(format!("quota {name} changes too often"))
}

fn write_used(quota: &mut Value, used: &Usage) {
    let map: serde_json::Map<String, Value> =
        used.iter().map(|(name, amount)| (name.clone(), amount.canonical().into())).collect();
    quota["status"]["used"] = json!(map);
}

async fn give_back(registry: &Registry, ctx: &RequestContext, name: &str, usage: &Usage) {
    let Some(resource) = registry.resource("", "resourcequotas") else { return };
    let mut own = RequestContext::internal("update", &resource, &ctx.namespace, name);
    own.subresource = "status".into();
    let change = |quota: &mut Value| {
        let mut used = amounts(&quota["status"]["used"]);
        for (key, amount) in usage {
            if let Some(known) = used.get_mut(key) {
                *known = known.minus(amount);
            }
        }
        write_used(quota, &used);
        Ok(())
    };
    if let Err(error) = registry.update_with(&own, &change).await {
        tracing::debug!(quota = name, %error, "the quota's controller will count anew");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Fixture;

    const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";

    async fn quota(f: &Fixture, name: &str, hard: Value, used: Value) {
        let made =
            f.post(QUOTAS, &json!({"metadata": {"name": name}, "spec": {"hard": hard}})).await;
        assert_eq!(made.code, 201, "{}", made.body);
        let status = json!({"status": {"hard": hard, "used": used}});
        let told = f.patch(&format!("{QUOTAS}/{name}/status"), "merge", &status).await;
        assert_eq!(told.code, 200, "{}", told.body);
    }

    fn map(name: &str) -> Value {
        crate::tests::config_map(name)
    }

    #[tokio::test]
    async fn what_is_used_up_is_refused() {
        let f = Fixture::new().await;
        quota(&f, "q", json!({"count/configmaps": "2"}), json!({"count/configmaps": "0"})).await;
        let path = "/api/v1/namespaces/default/configmaps";
        // Side by side, so that they compete for what is left.
        let names = ["a", "b", "c", "d", "e"];
        let results = futures::future::join_all(names.map(|name| {
            let f = &f;
            async move { f.post(path, &map(name)).await }
        }))
        .await;
        let made = results.iter().filter(|answer| answer.code == 201).count();
        assert_eq!(made, 2);
        let refused = results.iter().find(|answer| answer.code == 403).expect("a refusal");
        let text = refused.body["message"].as_str().expect("a message");
        assert!(
            text.ends_with("is forbidden: exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=2, limited: count/configmaps=2"),
            "{text}"
        );
        let now = f.get(&format!("{QUOTAS}/q")).await;
        assert_eq!(now.body["status"]["used"]["count/configmaps"], "2");
    }

    #[tokio::test]
    async fn devices_are_taken_under_each_of_their_names() {
        let f = Fixture::new().await;
        let class = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass",
            "metadata": {"name": "gpu"}, "spec": {"extendedResourceName": "example.com/gpu"}});
        let made = f.post("/apis/resource.k8s.io/v1/deviceclasses", &class).await;
        assert_eq!(made.code, 201, "{}", made.body);
        let names = [
            "gpu.deviceclass.resource.k8s.io/devices",
            "requests.deviceclass.resource.kubernetes.io/gpu",
            "requests.example.com/gpu",
        ];
        for (place, name) in names.iter().enumerate() {
            quota(&f, &format!("q{place}"), json!({*name: "3"}), json!({*name: "0"})).await;
        }
        let claim = |name: &str| {
            json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
                "metadata": {"name": name}, "spec": {"devices": {"requests": [
                    {"name": "r", "exactly": {"deviceClassName": "gpu", "count": 2}}]}}})
        };
        let path = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";
        assert_eq!(f.post(path, &claim("a")).await.code, 201);
        for (place, name) in names.iter().enumerate() {
            let now = f.get(&format!("{QUOTAS}/q{place}")).await;
            assert_eq!(now.body["status"]["used"][*name], "2", "{name}");
        }
        assert_eq!(f.post(path, &claim("b")).await.code, 403);
    }

    #[test]
    fn pods_say_what_they_need() {
        let spec = json!({"hard": {"requests.cpu": "1", "limits.memory": "1Gi"}});
        let ctx = RequestContext { plural: "pods".into(), ..RequestContext::default() };
        let pod = json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}, {"name": "b"}]}});
        assert_eq!(
            unsaid(&spec, &ctx, &pod).as_deref(),
            Some("limits.memory for: a,b; requests.cpu for: b")
        );
        let mut whole = pod;
        whole["spec"]["resources"] = json!({"limits": {"memory": "1Gi"}});
        assert_eq!(unsaid(&spec, &ctx, &whole), None);
    }
}
