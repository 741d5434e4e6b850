//! The way of a request: who is it, may they, what is it about, answer.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use apimachinery::{Status, trace};
use http::Method;
use http::header::USER_AGENT;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::attributes::{RequestContext, UserInfo, Warnings};
use crate::authn::{Authenticator, impersonation};
use crate::authz::Authorizer;
use crate::body::{Body, Request, Response};
use crate::gate::Gate;
use crate::health::Health;
use crate::metrics::{self, Labels, Metrics};
use crate::negotiate::{self, Accepted};
use crate::object::Object;
use crate::options::Query;
use crate::registry::Registry;
use crate::request_info::{self, RequestInfo};
use crate::rest::{self, Call};
use crate::subresources::kubelet::Kubelets;
use crate::{conversion, gzip, paths, protobuf, respond, warnings};

/// Everything that requests share.
pub struct Server {
    /// All objects.
    pub registry: Registry,
    /// Changes or refuses what is written.
    pub admission: Admission,
    /// Finds out who asks.
    pub authenticator: Authenticator,
    /// Decides whether they may.
    pub authorizer: Authorizer,
    /// Counts and times requests.
    pub metrics: Metrics,
    /// What the health checks look at.
    pub health: Health,
    /// `host:port` of this server, as told to clients in the cluster.
    pub advertise: String,
    /// The keys that verify service-account tokens.
    pub jwks: serde_json::Value,
    /// Reaches kubelets.
    pub kubelets: Kubelets,
    /// Ends watches when the server stops.
    pub stopping: CancellationToken,
}

/// Who sends a request, as far as the transport knows.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A TLS client.
    Tls {
        /// Its certificate, if it showed one.
        certificate: Option<Arc<[u8]>>,
        /// The certificate's user, found out once for the connection.
        user: Option<Arc<UserInfo>>,
    },
    /// A component of this process.
    Internal(Arc<UserInfo>),
}

/// What is known of a request before it is read.
struct Arrival<'a> {
    peer: &'a Peer,
    received: SystemTime,
    warnings: &'a Warnings,
}

/// When the first steps of a request were done.
#[derive(Clone, Copy)]
pub struct Times {
    received: SystemTime,
    authenticated: SystemTime,
    asked: SystemTime,
    authorised: SystemTime,
}

fn labels_of(ctx: &RequestContext) -> Labels {
    // Paths and unknown resources come from anybody; they must not grow the metrics.
    let known = ctx.resource.is_some();
    let text = |text: &str| if known { text.to_owned() } else { String::new() };
    Labels {
        verb: metrics::verb(ctx.verb),
        group: text(&ctx.group),
        version: text(&ctx.version),
        resource: text(&ctx.plural),
        subresource: if known
            && ctx.resource.as_ref().is_some_and(|r| r.subresource(&ctx.subresource).is_some())
        {
            ctx.subresource.clone()
        } else {
            String::new()
        },
        scope: match ctx {
            _ if !known => "",
            ctx if !ctx.name.is_empty() => "resource",
            ctx if !ctx.namespace.is_empty() => "namespace",
            _ => "cluster",
        },
        component: "apiserver",
    }
}

impl Server {
    /// Admission of requests from outside.
    pub fn gate(&self) -> &dyn Gate {
        &self.admission
    }

    /// Answers one request, whatever happens.
    pub async fn handle(self: &Arc<Self>, request: Request, peer: &Peer) -> Response {
        let received = SystemTime::now();
        let head = request.method() == Method::HEAD;
        let compressible = gzip::is_wanted(request.headers());
        let (parts, body) = request.into_parts();
        let warnings = Warnings::default();
        let mut accepted = Accepted::default();
        let mut labels = Labels { component: "apiserver", ..Labels::default() };
        let started = Instant::now();
        let mutating = !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let in_flight = self.metrics.in_flight(mutating);
        let arrival = Arrival { peer, received, warnings: &warnings };
        let result = self.answer(parts, body, arrival, &mut accepted, &mut labels).await;
        drop(in_flight);
        let mut response = result.unwrap_or_else(|status| respond::failure(&status, accepted));
        respond::add_warnings(&mut response, &warnings);
        self.metrics.answered(labels, response.status().as_u16(), started.elapsed());
        if head {
            *response.body_mut() = Body::Empty;
        } else if compressible {
            gzip::compress(&mut response);
        }
        response
    }

    async fn answer(
        self: &Arc<Self>,
        parts: http::request::Parts,
        body: Body,
        arrival: Arrival<'_>,
        accepted: &mut Accepted,
        labels: &mut Labels,
    ) -> Result<Response, Status> {
        let user = self.authenticate(&parts, arrival.peer)?;
        let authenticated = SystemTime::now();
        let query = Query::parse(parts.uri.query());
        let path = parts.uri.path().to_owned();
        let info = request_info::parse(&parts.method, &path, query.flag("watch"))?;
        let mut ctx = self.context(&info, user, &path, &query);
        *labels = labels_of(&ctx);
        ctx.warnings = arrival.warnings.clone();
        ctx.field_manager = user_agent_name(&parts);
        let asked = SystemTime::now();
        self.authorizer.require(&ctx)?;
        let times = Times {
            received: arrival.received,
            authenticated,
            asked,
            authorised: SystemTime::now(),
        };
        if !info.is_resource {
            return paths::serve(self, &parts, &query).await;
        }
        let Some(resource) = ctx.resource.clone() else { return Err(rest::not_found_path()) };
        if resource.namespaced
            && info.namespace.is_empty()
            && !matches!(info.verb, "list" | "watch")
        {
            return Err(rest::not_found_path());
        }
        if info.verb.is_empty() {
            return Err(rest::method_not_allowed());
        }
        if let Some(warning) = warnings::deprecated(&resource) {
            ctx.warnings.add(warning);
        }
        let typed = protobuf::type_of(&resource).is_some();
        let mut how = negotiate::accept(&parts.headers, true, typed)?;
        how.pretty |= wants_pretty(&parts, &query);
        *accepted = how;
        let server = self.clone();
        if let Some([group, version, plural, _]) =
            conversion::stored_as(&resource.group, &resource.version, &resource.plural)
        {
            ctx.resource = self.registry.served().at(group, version, plural).cloned();
        }
        Call { server, ctx, resource, parts, query, accepted: how, times }.serve(body).await
    }

    fn context(
        &self,
        info: &RequestInfo<'_>,
        user: Arc<UserInfo>,
        path: &str,
        query: &Query,
    ) -> RequestContext {
        let resource = if info.is_resource {
            self.registry.served().at(info.group, info.version, info.resource).cloned()
        } else {
            None
        };
        let namespaced = resource.as_ref().is_none_or(|r| r.namespaced || r.plural == "namespaces");
        let mut ctx = RequestContext {
            user,
            verb: info.verb,
            group: info.group.into(),
            version: info.version.into(),
            plural: info.resource.into(),
            subresource: info.subresource.into(),
            namespace: if namespaced { info.namespace.into() } else { String::new() },
            name: info.name.into(),
            path: path.into(),
            resource,
            ..RequestContext::default()
        };
        // A list or watch of one name is authorised as that name.
        if matches!(info.verb, "list" | "watch")
            && ctx.name.is_empty()
            && let Some(name) = single_name(query.get("fieldSelector"))
        {
            name.clone_into(&mut ctx.name);
        }
        ctx
    }

    /// What the transport knows of a connection with this certificate.
    pub fn peer(&self, certificate: Option<Arc<[u8]>>) -> Peer {
        let (parts, ()) = http::Request::new(()).into_parts();
        let user = certificate
            .as_ref()
            .and_then(|der| self.authenticator.authenticate(&parts, Some(der.as_ref())).ok())
            .filter(|user| *user != UserInfo::anonymous());
        Peer::Tls { certificate, user: user.map(Arc::new) }
    }

    fn authenticate(
        &self,
        parts: &http::request::Parts,
        peer: &Peer,
    ) -> Result<Arc<UserInfo>, Status> {
        let user = match peer {
            Peer::Internal(user) | Peer::Tls { user: Some(user), .. } => user.clone(),
            Peer::Tls { certificate, .. } => {
                Arc::new(self.authenticator.authenticate(parts, certificate.as_deref())?)
            }
        };
        if !parts.headers.contains_key("impersonate-user")
            && !parts.headers.contains_key("impersonate-group")
            && !parts.headers.contains_key("impersonate-uid")
        {
            return Ok(user);
        }
        let other = impersonation::impersonate(&self.authorizer, &user, &parts.headers)?;
        Ok(other.map_or(user, Arc::new))
    }

    /// Records the steps of a pod's creation that happened before its uid was known.
    pub fn trace_submission(&self, ctx: &RequestContext, object: &Object, times: &Times) {
        if !ctx.is("", "pods") || !ctx.subresource.is_empty() || ctx.dry_run {
            return;
        }
        let (user, uid) = (&ctx.user.name, &object.uid);
        trace::step("submit", uid, times.received, "from the request to its answer");
        trace::span("authenticate", uid, times.received, times.authenticated, user);
        trace::span("authorise", uid, times.asked, times.authorised, "create pods");
    }
}

/// The name in a selector that is just `metadata.name=x`.
fn single_name(field_selector: &str) -> Option<&str> {
    let value = field_selector.strip_prefix("metadata.name=")?;
    let value = value.strip_prefix('=').unwrap_or(value);
    (!value.is_empty() && !value.contains([',', '=', '\\', '/'])).then_some(value)
}

fn user_agent_name(parts: &http::request::Parts) -> String {
    let agent = parts.headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut name = String::new();
    for c in agent.split('/').next().unwrap_or_default().chars().filter(|c| !c.is_control()) {
        if name.len() + c.len_utf8() > 128 {
            break;
        }
        name.push(c);
    }
    name
}

/// People at a terminal get line breaks without asking.
pub fn wants_pretty(parts: &http::request::Parts, query: &Query) -> bool {
    if query.has("pretty") {
        return query.flag("pretty");
    }
    let agent = parts.headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|p| agent.starts_with(p))
}
