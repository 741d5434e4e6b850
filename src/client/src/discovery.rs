//! The resources that an API server has, each once.

use kube::core::ApiResource;
use kube::discovery::{ApiCapabilities, Discovery};

/// Every resource of the discovered groups: at the version that its group prefers, or at the most stable one of those
/// that have it, where the preferred one does not; of each group by kind.
///
/// Source of behaviour: `ServerPreferredResources` of `k8s.io/client-go/discovery`.
pub fn resources(discovery: &Discovery) -> Vec<(ApiResource, ApiCapabilities)> {
    let mut all = Vec::new();
    for group in discovery.groups() {
        let mut found = group.recommended_resources();
        for (resource, capabilities) in group.resources_by_stability() {
            if !found.iter().any(|(known, _)| known.kind == resource.kind) {
                found.push((resource, capabilities));
            }
        }
        found.sort_by(|(a, _), (b, _)| a.kind.cmp(&b.kind));
        all.append(&mut found);
    }
    all
}

/// Every resource of the discovered groups in every version that has it.
pub fn versioned_resources(discovery: &Discovery) -> Vec<(ApiResource, ApiCapabilities)> {
    let groups = discovery.groups();
    groups.flat_map(|group| group.versions().flat_map(|v| group.versioned_resources(v))).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::in_process;

    #[tokio::test]
    async fn kinds_that_only_other_versions_have_are_found() {
        let kind = |kind: &str, plural: &str| {
            json!({"resource": plural, "singularResource": "", "scope": "Namespaced",
                "responseKind": {"group": "", "version": "", "kind": kind}, "verbs": ["list"]})
        };
        let groups = json!({"apiVersion": "apidiscovery.k8s.io/v2", "kind": "APIGroupDiscoveryList",
            "metadata": {}, "items": [{"metadata": {"name": "example.com"}, "versions": [
                {"version": "v1", "freshness": "Current", "resources": [kind("Route", "routes")]},
                {"version": "v1beta1", "freshness": "Current",
                    "resources": [kind("Route", "routes"), kind("Filter", "filters")]},
                {"version": "v1alpha3", "freshness": "Current",
                    "resources": [kind("Filter", "filters"), kind("Proxy", "proxies")]}]}]});
        let none = json!({"apiVersion": "apidiscovery.k8s.io/v2", "kind": "APIGroupDiscoveryList",
            "metadata": {}, "items": []});
        let client = in_process(tower::service_fn(move |request: Request<Body>| {
            let body = if request.uri().path() == "/apis" { &groups } else { &none };
            let body = Body::from(body.to_string().into_bytes());
            async { Ok::<_, Infallible>(Response::new(body)) }
        }));
        let discovery = Discovery::new(client).run_aggregated().await.expect("discovery");
        let told = |found: Vec<(ApiResource, ApiCapabilities)>| {
            let mut told: Vec<String> =
                found.iter().map(|(of, _)| format!("{}/{}", of.version, of.plural)).collect();
            told.sort();
            told
        };
        let once = ["v1/routes", "v1alpha3/proxies", "v1beta1/filters"];
        assert_eq!(told(resources(&discovery)), once);
        let each = [
            "v1/routes",
            "v1alpha3/filters",
            "v1alpha3/proxies",
            "v1beta1/filters",
            "v1beta1/routes",
        ];
        assert_eq!(told(versioned_resources(&discovery)), each);
    }
}
