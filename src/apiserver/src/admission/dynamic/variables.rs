//! What expressions of admission may name.

use std::sync::Arc;

use apimachinery::cel::{self, Host, Program, Type, Value as Cel};
use apimachinery::meta;
use serde_json::{Value, json};

use super::{Asked, Dynamic};
use crate::attributes::{RequestContext, UserInfo};
use crate::authz::Authorizer;
use crate::gate::Operation;
use crate::resource::Resource;
use crate::subresources::user_value;

/// Names that every expression may use.
pub const NAMES: [&str; 6] =
    ["object", "oldObject", "request", "namespaceObject", "authorizer", "params"];

/// Compiles an expression that may name `names`.
pub fn compile(text: &str, names: &[&str]) -> Result<Program, String> {
    let names = names.iter().map(|name| ((*name).to_owned(), Type::Dyn)).collect();
    Program::compile(text, names, None)
}

/// The values of one request.
pub struct Variables<'a> {
    object: Option<&'a Value>,
    old: Option<&'a Value>,
    request: &'a Value,
    namespace: Option<&'a Value>,
    params: Option<&'a Value>,
    authorizer: Arc<dyn Host>,
    /// The policy's own variables, as far as they are known.
    pub own: Vec<(String, Result<Cel<'a>, String>)>,
}

impl<'a> Variables<'a> {
    /// The values of a request; `request` and `namespace` are made by [`request_value`] and looked up by
    /// the caller.
    pub fn new(
        dynamic: &Dynamic,
        asked: &Asked<'a>,
        request: &'a Value,
        namespace: Option<&'a Value>,
        params: Option<&'a Value>,
    ) -> Self {
        let authorizer = Asking {
            authorizer: dynamic.authorizer.clone(),
            ctx: RequestContext { user: asked.ctx.user.clone(), ..RequestContext::default() },
            of: asked.ctx.clone(),
        };
        Self {
            object: asked.object,
            old: asked.old,
            request,
            namespace,
            params,
            authorizer: Arc::new(authorizer),
            own: Vec::new(),
        }
    }
}

impl<'a> cel::Variables<'a> for Variables<'a> {
    fn get(&self, name: &str) -> Option<Result<Cel<'a>, String>> {
        let json =
            |value: Option<&'a Value>| Some(Ok(value.map_or(Cel::Null, |v| Cel::of(v, None))));
        match name {
            "object" => json(self.object),
            "oldObject" => json(self.old),
            "request" => json(Some(self.request)),
            "namespaceObject" => json(self.namespace),
            "params" => json(self.params),
            "authorizer" => Some(Ok(Cel::Host(self.authorizer.clone()))),
            "variables" => {
                let known: Vec<(Cel<'a>, Cel<'a>)> = self
                    .own
                    .iter()
                    .filter_map(|(name, value)| Some((name.clone().into(), value.clone().ok()?)))
                    .collect();
                Some(Ok(Cel::Map(Arc::new(known))))
            }
            _ => None,
        }
    }

    fn member(&self, of: &str, field: &str) -> Option<Result<Cel<'a>, String>> {
        let (_, value) = self.own.iter().find(|(name, _)| of == "variables" && name == field)?;
        Some(value.clone())
    }
}

/// `admission.k8s.io/v1` `AdmissionRequest` but for the objects.
pub fn request_value(asked: &Asked<'_>, at: &Resource, uid: &str) -> Value {
    let ctx = asked.ctx;
    let own = ctx.resource.as_deref();
    let kind_of = |resource: &Resource| match resource.subresource(&ctx.subresource) {
        Some(sub) => json!({"group": sub.group, "version": sub.version, "kind": sub.kind}),
        None => {
            json!({"group": resource.group, "version": resource.version, "kind": resource.kind})
        }
    };
    let resource_of = |resource: &Resource| json!({"group": resource.group, "version": resource.version, "resource": resource.plural});
    let (operation, options) = match asked.operation {
        Operation::Create => ("CREATE", "CreateOptions"),
        // Of patches and applies too (`patchToUpdateOptions`).
        Operation::Update => ("UPDATE", "UpdateOptions"),
        Operation::Delete => ("DELETE", "DeleteOptions"),
        Operation::Connect => ("CONNECT", ""),
    };
    let name = match ctx.name.as_str() {
        "" => asked.object.map(meta::name).unwrap_or_default(),
        name => name,
    };
    let mut request = json!({
        "uid": uid,
        "kind": kind_of(at),
        "resource": resource_of(at),
        "requestKind": kind_of(own.unwrap_or(at)),
        "requestResource": resource_of(own.unwrap_or(at)),
        "name": name,
        "operation": operation,
        "userInfo": user_value(&ctx.user),
        "object": null,
        "oldObject": null,
        "dryRun": ctx.dry_run,
        "options": null,
    });
    if !ctx.namespace.is_empty() {
        request["namespace"] = ctx.namespace.clone().into();
    }
    if !ctx.subresource.is_empty() {
        request["subResource"] = ctx.subresource.clone().into();
        request["requestSubResource"] = ctx.subresource.clone().into();
    }
    if !options.is_empty() {
        let mut value = json!({"kind": options, "apiVersion": "meta.k8s.io/v1"});
        if ctx.dry_run {
            value["dryRun"] = json!(["All"]);
        }
        if !ctx.field_manager.is_empty() && asked.operation != Operation::Delete {
            value["fieldManager"] = ctx.field_manager.clone().into();
        }
        request["options"] = value;
    }
    request
}

/// `authorizer`, with what was asked so far.
struct Asking {
    authorizer: Authorizer,
    ctx: RequestContext,
    of: RequestContext,
}

/// What an authoriser said.
struct Answer {
    allowed: bool,
    reason: String,
}

impl Host for Answer {
    fn field<'a>(&self, name: &str) -> Result<Cel<'a>, String> {
        Err(format!("no such key: {name}"))
    }

    fn call<'a>(&self, name: &str, _: &[Cel<'_>]) -> Result<Cel<'a>, String> {
        match name {
            "allowed" => Ok(self.allowed.into()),
            "reason" => Ok(self.reason.clone().into()),
            "error" => Ok(String::new().into()),
            "errored" => Ok(false.into()),
            _ => Err("no such overload".into()),
        }
    }
}

impl Host for Asking {
    fn field<'a>(&self, name: &str) -> Result<Cel<'a>, String> {
        if name != "requestResource" {
            return Err(format!("no such key: {name}"));
        }
        let ctx = RequestContext { verb: "", user: self.ctx.user.clone(), ..self.of.clone() };
        Ok(self.with(ctx))
    }

    fn call<'a>(&self, name: &str, args: &[Cel<'_>]) -> Result<Cel<'a>, String> {
        let texts: Vec<String> = args.iter().map(Cel::to_text).collect();
        let mut ctx = self.ctx.clone();
        match (name, texts.as_slice()) {
            ("group", [group]) => ctx.group.clone_from(group),
            ("resource", [resource]) => ctx.plural.clone_from(resource),
            ("subresource", [sub]) => ctx.subresource.clone_from(sub),
            ("namespace", [namespace]) => ctx.namespace.clone_from(namespace),
            ("name", [name]) => ctx.name.clone_from(name),
            ("path", [path]) => ctx.path.clone_from(path),
            ("fieldSelector" | "labelSelector", [_]) => {}
            ("serviceAccount", [namespace, name]) => {
                let user = format!("system:serviceaccount:{namespace}:{name}");
                let own = format!("system:serviceaccounts:{namespace}");
                ctx.user = Arc::new(UserInfo::new(&user, &["system:serviceaccounts", &own]));
            }
            ("check", [verb]) => {
                ctx.verb = crate::subresources::verb_of(verb);
                let decision = self.authorizer.authorize(&ctx);
                return Ok(Cel::Host(Arc::new(Answer {
                    allowed: decision.allowed(),
                    reason: decision.reason().to_owned(),
                })));
            }
            _ => return Err("no such overload".into()),
        }
        Ok(self.with(ctx))
    }
}

impl Asking {
    fn with<'a>(&self, ctx: RequestContext) -> Cel<'a> {
        Cel::Host(Arc::new(Self { authorizer: self.authorizer.clone(), ctx, of: self.of.clone() }))
    }
}
