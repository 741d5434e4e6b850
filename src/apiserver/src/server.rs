//! The way of a request: who is it, may they, what is it about, answer.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use apimachinery::{Status, trace};
use futures::FutureExt;
use http::Method;
use http::header::{ACCEPT, HeaderName, HeaderValue, USER_AGENT};
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::aggregation::Aggregator;
use crate::attributes::{RequestContext, UserInfo, Warnings};
use crate::audit::{Auditor, Record};
use crate::authn::{Authenticator, impersonation};
use crate::authz::{self, Authorizer};
use crate::body::{Body, Request, Response};
use crate::flow::{Flow, Turn};
use crate::gate::Gate;
use crate::health::Health;
use crate::metrics::{self, About, Labels, Metrics};
use crate::negotiate::{self, Endpoint};
use crate::object::Object;
use crate::options::Query;
use crate::registry::Registry;
use crate::request_info::{self, RequestInfo};
use crate::rest::{self, Call};
use crate::subresources::kubelet::Kubelets;
use crate::{conversion, gzip, metadata, paths, protobuf, respond, warnings};

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
    /// Parts of the control plane that are tasks of this process.
    pub in_process: Vec<String>,
    /// Records requests.
    pub auditor: Option<Arc<Auditor>>,
    /// Gives requests their turns.
    pub flow: Arc<Flow>,
    /// Reaches the API servers of other groups.
    pub aggregator: Arc<Aggregator>,
    /// Ends watches when the server stops.
    pub stopping: CancellationToken,
}

/// Who sends a request, as far as the transport knows.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A TLS client.
    Tls {
        /// Where it is.
        address: SocketAddr,
        /// Its certificate, if it showed one.
        certificate: Option<Arc<[u8]>>,
        /// The certificate's user, found out once for the connection.
        user: Option<Arc<UserInfo>>,
    },
    /// A component of this process.
    Internal(Arc<UserInfo>),
}

/// What is found out about a request on its way, for whoever answers it in the end.
#[derive(Default)]
struct Way {
    warnings: Warnings,
    pretty: bool,
    labels: Labels,
    turn: Turn,
    waited: Duration,
    record: Option<Arc<Record>>,
    audit_id: Option<String>,
}

/// When the first steps of a request were done.
#[derive(Clone, Copy)]
pub struct Times {
    received: SystemTime,
    authenticated: SystemTime,
    asked: SystemTime,
    authorised: SystemTime,
}

/// What metrics tell of a request.
pub fn labels_of(ctx: &RequestContext) -> Labels {
    // Paths and unknown resources come from anybody; they must not grow the metrics.
    let known = ctx.resource.is_some();
    let text = |text: &str| if known { text.to_owned() } else { String::new() };
    let about = About {
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
    };
    Labels { about, dry_run: "" }
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
        let (mut parts, body) = request.into_parts();
        let asked = parts.headers.get(ACCEPT).cloned();
        if let Some(uri) = request_info::written_out(&parts.uri) {
            parts.uri = uri;
        }
        let mut way = Way {
            labels: Labels {
                about: About { component: "apiserver", ..About::default() },
                ..Labels::default()
            },
            ..Way::default()
        };
        if let Peer::Tls { address, .. } = peer {
            if self.auditor.is_some() {
                parts.extensions.insert(*address);
            }
            way.audit_id = Some(audit_id(&parts));
        }
        let started = Instant::now();
        let mutating = !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
        let in_flight = self.metrics.in_flight(mutating);
        let limit = time_limit(&parts);
        // Boxed: a large future would be copied along the way, at each layer.
        let answering = Box::pin(self.answer(parts, body, peer, received, &mut way));
        let result = match limit {
            Ok(None) => recovered(answering).await,
            Ok(Some(limit)) => within(limit, recovered(answering)).await,
            Err(status) => {
                drop(answering);
                Err(status)
            }
        };
        drop(in_flight);
        let mut response = result.unwrap_or_else(|status| {
            respond::refusal(&status, asked.as_ref().map(negotiate::said), way.pretty)
        });
        respond::add_warnings(&mut response, &way.warnings);
        way.turn.mark(&mut response);
        way.turn.end();
        if let Some(record) = way.record {
            response = record.answered(response);
        }
        if let Some(id) = way.audit_id.and_then(|id| HeaderValue::try_from(id).ok()) {
            response.headers_mut().insert(AUDIT_ID, id);
        }
        let code = response.status().as_u16();
        self.metrics.answered(way.labels, code, started.elapsed(), way.waited);
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
        peer: &Peer,
        received: SystemTime,
        way: &mut Way,
    ) -> Result<Response, Status> {
        let user = self.authenticate(&parts, peer).await;
        self.metrics.authenticated(user.is_ok());
        let authenticated = SystemTime::now();
        let query = Query::parse(parts.uri.query());
        way.pretty = wants_pretty(&parts, &query);
        let path = parts.uri.path().to_owned();
        let info = request_info::parse(&parts.method, &path, query.flag("watch"))?;
        let (user, refused) = match user {
            Ok(user) => (user, None),
            Err(status) => (Arc::default(), Some(status)),
        };
        let mut ctx = self.context(&info, user, &path, &query);
        if let Some(auditor) = &self.auditor {
            let id = way.audit_id.clone().unwrap_or_else(fresh_id);
            ctx.audit = auditor.begin(&ctx, &parts, id)?;
            way.record.clone_from(&ctx.audit);
        }
        if let Some(status) = refused {
            return Err(status);
        }
        let asked = match self.permit(&mut ctx, &parts, &query, way).await? {
            Ok(asked) => asked,
            Err(refusal) => return Ok(*refusal),
        };
        let times = Times { received, authenticated, asked, authorised: SystemTime::now() };
        if let Some(remote) = self.aggregator.serves(&path) {
            let stopping = self.stopping.clone();
            let relayed = self.aggregator.relay(&remote, &ctx.user, parts, body, stopping);
            return Box::pin(relayed).await;
        }
        if !info.is_resource {
            return Box::pin(paths::serve(self, &parts, &query)).await;
        }
        let Some(resource) = ctx.resource.clone() else { return paths::nothing(self, &path) };
        if resource.namespaced
            && info.namespace.is_empty()
            && !matches!(info.verb, "list" | "watch")
        {
            return paths::nothing(self, &path);
        }
        // What is behind a proxy may know methods that are no verbs of the API.
        let forwarded = parts.method == Method::OPTIONS && info.subresource == "proxy";
        if info.verb.is_empty() && !forwarded {
            return Err(rest::method_not_allowed());
        }
        if let Some(warning) = warnings::deprecated(&resource) {
            ctx.warnings.add(warning);
        }
        let typed = protobuf::type_of(&resource).is_some();
        // What is only answered, like a review, has no tables.
        let transformable = resource.allows("get") || resource.allows("list");
        let endpoint = Endpoint { transformable, typed, version: "v1" };
        let mut how = negotiate::accept(negotiate::asked(&parts.headers), endpoint)?;
        how.pretty |= way.pretty;
        let server = self.clone();
        if let Some([group, version, plural, _]) =
            conversion::stored_as(&resource.group, &resource.version, &resource.plural)
        {
            ctx.resource = self.registry.served().at(group, version, plural).cloned();
        }
        Call { server, ctx, resource, parts, query, accepted: how, times }.serve(body).await
    }

    /// Waits until it is the request's turn, and finds out whether it may be done: when that was asked, or the
    /// answer to one too many.
    async fn permit(
        &self,
        ctx: &mut RequestContext,
        parts: &http::request::Parts,
        query: &Query,
        way: &mut Way,
    ) -> Result<Result<SystemTime, Box<Response>>, Status> {
        way.labels = labels_of(ctx);
        let mutates = !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
        if mutates && query.get("dryRun") == "All" {
            way.labels.dry_run = "All";
        }
        ctx.warnings = way.warnings.clone();
        ctx.field_manager = user_agent_name(parts);
        self.impersonate(ctx, parts)?;
        let began = Instant::now();
        let entered = self.flow.enter(ctx).await;
        way.waited = began.elapsed();
        match entered {
            Ok(turn) => way.turn = turn,
            Err(refusal) => {
                self.metrics.terminated(&way.labels, refusal.status().as_u16());
                return Ok(Err(refusal));
            }
        }
        let asked = SystemTime::now();
        let decision = self.authorizer.decide(ctx).await;
        self.metrics.authorized(decision.result());
        if let Some(record) = &ctx.audit {
            record.decided(&decision);
        }
        if !decision.allowed() {
            return Err(authz::forbidden(ctx, decision.reason()));
        }
        Ok(Ok(asked))
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

    /// What the transport knows of a connection from `address` with this certificate.
    pub fn peer(&self, address: SocketAddr, certificate: Option<Arc<[u8]>>) -> Peer {
        let user = certificate.as_ref().and_then(|der| self.authenticator.certified(der));
        Peer::Tls { address, certificate, user: user.map(Arc::new) }
    }

    async fn authenticate(
        &self,
        parts: &http::request::Parts,
        peer: &Peer,
    ) -> Result<Arc<UserInfo>, Status> {
        match peer {
            Peer::Internal(user) | Peer::Tls { user: Some(user), .. } => Ok(user.clone()),
            Peer::Tls { certificate, .. } => {
                let user = self.authenticator.authenticate(parts, certificate.as_deref()).await?;
                Ok(Arc::new(user))
            }
        }
    }

    /// Lets the client act as the user it asks to be.
    fn impersonate(
        &self,
        ctx: &mut RequestContext,
        parts: &http::request::Parts,
    ) -> Result<(), Status> {
        let asks = parts.headers.keys().any(|name| name.as_str().starts_with("impersonate-"));
        if !asks {
            return Ok(());
        }
        let other = impersonation::impersonate(&self.authorizer, ctx, &parts.headers)?;
        if let Some(other) = other {
            if let Some(record) = &ctx.audit {
                record.impersonated(&other);
            }
            ctx.user = Arc::new(other);
        }
        Ok(())
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

/// A request that panics is told so, and ends alone.
async fn recovered<F>(answering: F) -> Result<Response, Status>
where
    F: Future<Output = Result<Response, Status>>,
{
    let panicked = "This request caused apiserver to panic. Look in the logs for details.";
    let answered = AssertUnwindSafe(answering).catch_unwind().await;
    answered.unwrap_or_else(|_| Err(Status::internal(panicked)))
}

/// The most that a request may ask for (`--request-timeout`).
const TIME_LIMIT_MAX: Duration = Duration::from_mins(1);

/// The time in which the client wants its answer; what lasts as long as its connection has all of it.
fn time_limit(parts: &http::request::Parts) -> Result<Option<Duration>, Status> {
    let query = parts.uri.query().filter(|query| query.contains("timeout="));
    let query = Query::parse(query);
    let text = query.get("timeout");
    if text.is_empty() {
        return Ok(None);
    }
    let info = request_info::parse(&parts.method, parts.uri.path(), query.flag("watch"))?;
    let streams = ["attach", "exec", "log", "portforward", "proxy"];
    if info.verb == "watch" || streams.contains(&info.subresource) {
        return Ok(None);
    }
    let limit = apimachinery::time::duration(text).ok_or_else(|| {
        let why = format!("time: invalid duration {text:?}");
        Status::bad_request(format!("invalid timeout specified in the request URL - {why}"))
    })?;
    Ok(Some(limit.min(TIME_LIMIT_MAX)).filter(|limit| !limit.is_zero()))
}

/// The answer, or that it did not come in time.
async fn within<F>(limit: Duration, answering: F) -> Result<Response, Status>
where
    F: Future<Output = Result<Response, Status>>,
{
    let late =
        "Timeout: request did not complete within requested timeout - context deadline exceeded";
    tokio::time::timeout(limit, answering).await.unwrap_or_else(|_| Err(Status::timeout(late, 0)))
}

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// The id by which the client, or another server before this one, knows the request.
fn audit_id(parts: &http::request::Parts) -> String {
    let given = parts.headers.get(AUDIT_ID).and_then(|value| value.to_str().ok());
    match given {
        Some(id) if !id.is_empty() && id.len() <= 64 => id.to_owned(),
        _ => fresh_id(),
    }
}

/// An id that no other request has.
fn fresh_id() -> String {
    metadata::fresh_uuid().to_string()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_ids_are_uuids_of_their_own() {
        let (a, b) = (fresh_id(), fresh_id());
        assert_ne!(a, b);
        assert!([a, b].iter().all(|id| id.len() == 36 && id.as_bytes()[14] == b'4'));
    }

    #[tokio::test]
    async fn a_panic_is_answered() {
        let status = recovered(async { panic!("on purpose") }).await.err().expect("a failure");
        assert_eq!((status.code, status.reason.as_str()), (500, "InternalError"));
        assert!(status.message.contains("caused apiserver to panic"), "{}", status.message);
    }
}
