//! NamespaceLifecycle: nothing is made in a namespace that is absent or going, and the system's own
//! namespaces stay.

use apimachinery::Status;
use apimachinery::status::Cause;

use crate::attributes::RequestContext;
use crate::fields;
use crate::gate::Operation;
use crate::registry::Registry;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Admits or refuses the request about the object `name`.
pub async fn admit(
    registry: &Registry,
    ctx: &RequestContext,
    operation: Operation,
    name: &str,
) -> Result<(), Status> {
    if ctx.is("", "namespaces") {
        let refused = operation == Operation::Delete && IMMORTAL.contains(&ctx.name.as_str());
        return if refused {
            Err(Status::forbidden("", "namespaces", &ctx.name, "this namespace may not be deleted"))
        } else {
            Ok(())
        };
    }
    // Reviews are asked about namespaces, they are not put into them.
    let review = ctx.group == "authorization.k8s.io";
    if ctx.namespace.is_empty() || operation != Operation::Create || review {
        return Ok(());
    }
    let find = || registry.get("", "namespaces", "", &ctx.namespace);
    let mut namespace = find();
    if namespace.is_none() {
        // It may have been made a moment ago, by somebody who was told so.
        let _ = registry.sync().await;
        namespace = find();
    }
    let Some(namespace) = namespace else {
        return Err(Status::not_found("", "namespaces", &ctx.namespace));
    };
    let phase = fields::of("", "namespaces").iter().position(|field| field.label == "status.phase");
    if phase.and_then(|at| namespace.fields.get(at)) != Some("Terminating") {
        return Ok(());
    }
    let why = format!(
        "unable to create new content in namespace {} because it is being terminated",
        ctx.namespace
    );
    let mut status = Status::forbidden(&ctx.group, &ctx.plural, name, &why);
    if let Some(details) = &mut status.details {
        details.causes.push(Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {} is being terminated", ctx.namespace),
            field: "metadata.namespace".into(),
        });
    }
    Err(status)
}
