//! PersistentVolumeClaimResize: only bound claims grow, and only where their class allows it.
//!
//! Source: `plugin/pkg/admission/storage/persistentvolume/resize`.

use apimachinery::Status;
use apimachinery::quantity::Quantity;
use serde_json::Value;

use crate::registry::Registry;
use crate::zero::Zero;

const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

fn size(claim: &Value) -> Option<Quantity> {
    claim["spec"]["resources"]["requests"]["storage"].text().parse().ok()
}

/// Refuses a growth that cannot be.
pub fn admit(registry: &Registry, claim: &Value, old: &Value) -> Result<(), Status> {
    let (Some(new), Some(before)) = (size(claim), size(old)) else { return Ok(()) };
    if new <= before {
        return Ok(());
    }
    let refuse = |why: &str| {
        let name = claim["metadata"]["name"].text();
        Err(Status::forbidden("", "persistentvolumeclaims", name, why))
    };
    if old["status"]["phase"] != "Bound" {
        return refuse("Only bound persistent volume claims can be expanded");
    }
    let name = match claim["metadata"]["annotations"][CLASS].text() {
        "" => claim["spec"]["storageClassName"].text(),
        name => name,
    };
    let class = registry.get("storage.k8s.io", "storageclasses", "", name);
    if class.is_some_and(|class| class.value()["allowVolumeExpansion"].flag()) {
        return Ok(());
    }
    refuse(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_grow_when_bound() {
        let claim = |size: &str, phase: &str| {
            json!({"metadata": {"name": "c"}, "status": {"phase": phase},
                "spec": {"storageClassName": "none", "resources": {"requests": {"storage": size}}}})
        };
        let registry = Registry::default();
        let said = |new: &str, phase: &str| {
            let result = admit(&registry, &claim(new, phase), &claim("1Gi", phase));
            result.err().map(|status| status.message)
        };
        let cases = [
            ("1Gi", "Pending", None),
            ("2Gi", "Pending", Some("Only bound")),
            ("2Gi", "Bound", Some("only dynamically")),
        ];
        for (size, phase, want) in cases {
            let got = said(size, phase);
            assert_eq!(got.is_some(), want.is_some(), "{size} {phase}: {got:?}");
            assert!(want.is_none_or(|want| got.is_some_and(|text| text.contains(want))));
        }
    }
}
