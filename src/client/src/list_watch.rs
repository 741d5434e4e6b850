//! List and watch: first every object of a selection, then each change to them, for as long as somebody
//! listens. Interruptions are mended here: a watch that ends goes on where it ended, a version that the
//! server has forgotten (410) leads to a new list.
//!
//! All of it is about text, once for every kind; only the last step, from text to a typed object, is
//! compiled for each. Source of the behaviour: client-go's `tools/cache/reflector.go`.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use http_body_util::{BodyExt, Limited};
use kube::api::{ListParams, WatchParams};
use kube::client::Body;
use kube::core::Request;
use kube::{Api, Client, Resource};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::time::Instant;

/// Objects that one request for a list brings.
const PAGE: u32 = 500;
/// Seconds after which the server is asked to end a watch.
const WATCH_SECONDS: u32 = 290;
/// A watch on which nothing came for so long is dead: the server would have ended it.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 30);
/// Before the first further attempt; doubled for each one after it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Between attempts, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A watch that ends sooner than this is an interruption like an error.
const SHORT: Duration = Duration::from_secs(1);
/// Bytes of an error's answer that are read.
const STATUS_BYTES: usize = 64 << 10;

/// Which objects of a kind.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    fields: Option<String>,
    /// Who wrote which field is of no interest.
    anonymous: bool,
}

impl Selection {
    /// Those that the field selector names, such as `spec.nodeName=one`.
    pub fn fields(selector: impl Into<String>) -> Self {
        Self { fields: Some(selector.into()), anonymous: false }
    }

    /// The same without `metadata.managedFields`, which is much of an object and costs as much to read.
    #[must_use]
    pub fn without_managers(self) -> Self {
        Self { anonymous: true, ..self }
    }
}

/// What is told of the objects of a selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<T> {
    /// A list begins: what is not in it is gone.
    Init,
    /// An object of the list.
    InitApply(T),
    /// The list is complete.
    InitDone,
    /// An object was created or changed.
    Apply(T),
    /// An object is gone, or is no longer of the selection; this is its last state.
    Delete(T),
}

impl<T> Event<T> {
    fn try_map<U, E>(self, map: impl FnOnce(T) -> Result<U, E>) -> Result<Event<U>, E> {
        Ok(match self {
            Self::Init => Event::Init,
            Self::InitDone => Event::InitDone,
            Self::InitApply(object) => Event::InitApply(map(object)?),
            Self::Apply(object) => Event::Apply(map(object)?),
            Self::Delete(object) => Event::Delete(map(object)?),
        })
    }

    /// The object, unless it is gone.
    pub fn applied(self) -> Option<T> {
        match self {
            Self::InitApply(object) | Self::Apply(object) => Some(object),
            Self::Init | Self::InitDone | Self::Delete(_) => None,
        }
    }
}

/// The objects of `selection` and their changes, without end. An object that cannot be read as a `K` is
/// left out, with a warning.
pub fn list_watch<K>(
    api: Api<K>,
    selection: Selection,
) -> impl Stream<Item = Event<K>> + Send + use<K>
where
    K: Resource + DeserializeOwned + Send + 'static,
{
    let path = api.resource_url().to_owned();
    let follower = Follower::new(api.into_client(), path, selection);
    stream::unfold(follower, |mut follower| async move {
        loop {
            let event = follower.next().await;
            let anonymous = follower.selection.anonymous;
            let read = |text: Bytes| match anonymous.then(|| managers(&text)).flatten() {
                Some(part) => read::<K>(&[&text[..part.start], &text[part.end..]].concat()),
                None => read::<K>(&text),
            };
            match event.try_map(read) {
                Ok(event) => {
                    if let Event::Apply(object) | Event::Delete(object) = &event {
                        follower.seen(object.meta().resource_version.as_deref());
                    }
                    return Some((event, follower));
                }
                Err(error) => {
                    tracing::warn!(path = follower.path, %error, "an object cannot be read");
                }
            }
        }
    })
}

/// Where the member `managedFields` is in an object's text, with one of the commas beside it. A string cannot hold
/// the same text: there the quotes would be escaped.
fn managers(text: &[u8]) -> Option<Range<usize>> {
    const NAME: &str = "\"managedFields\":[";
    let mut start = std::str::from_utf8(text).ok()?.find(NAME)?;
    let mut end = start + NAME.len();
    let (mut depth, mut quoted) = (1, false);
    while depth > 0 {
        match (text.get(end)?, quoted) {
            (b'\\', true) => end += 1,
            (b'"', _) => quoted = !quoted,
            (b'[' | b'{', false) => depth += 1,
            (b']' | b'}', false) => depth -= 1,
            _ => {}
        }
        end += 1;
    }
    if text.get(end) == Some(&b',') {
        end += 1;
    } else if start > 0 && text[start - 1] == b',' {
        start -= 1;
    }
    Some(start..end)
}

fn read<K: DeserializeOwned>(text: &[u8]) -> Result<K, serde_json::Error> {
    match std::str::from_utf8(text) {
        Ok(text) => serde_json::from_str(text),
        Err(error) => Err(serde::de::Error::custom(error)),
    }
}

#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error("the version is too old")]
    Expired,
    #[error("{code}: {message}")]
    Refused { code: u16, message: String },
    #[error("the watch ended at once")]
    Short,
    #[error("nothing came for {SILENCE:?}")]
    Silent,
    #[error("the watch ended within an event")]
    Torn,
    #[error(transparent)]
    Client(#[from] kube::Error),
    #[error(transparent)]
    Request(#[from] kube::core::request::Error),
    #[error("the answer is not as expected")]
    Json(#[from] serde_json::Error),
}

/// The parts of a `Status` that are asked about.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    message: String,
}

impl From<Status> for Interruption {
    fn from(Status { code, message }: Status) -> Self {
        if code == 410 { Self::Expired } else { Self::Refused { code, message } }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: Option<String>,
    r#continue: Option<String>,
}

#[derive(Deserialize)]
struct Page<'a> {
    metadata: Metadata,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct Line<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: Metadata,
}

enum State {
    /// To list, from where `continue` says.
    List(Option<String>),
    /// To watch from the version last seen.
    Watch,
    /// Watching.
    Following(Lines, Instant),
}

/// The same for all kinds: objects are text here.
struct Follower {
    client: Client,
    path: String,
    selection: Selection,
    state: State,
    version: String,
    told: VecDeque<Event<Bytes>>,
    pause: Duration,
}

impl Follower {
    fn new(client: Client, path: String, selection: Selection) -> Self {
        let (state, version) = (State::List(None), String::new());
        Self { client, path, selection, state, version, told: VecDeque::new(), pause: FIRST_PAUSE }
    }

    fn seen(&mut self, version: Option<&str>) {
        if let Some(version) = version {
            version.clone_into(&mut self.version);
        }
    }

    async fn next(&mut self) -> Event<Bytes> {
        loop {
            if let Some(event) = self.told.pop_front() {
                return event;
            }
            let Err(error) = self.step().await else { continue };
            self.state = match (&error, &self.state) {
                (Interruption::Expired, _) | (_, State::List(_)) => State::List(None),
                _ => State::Watch,
            };
            tracing::debug!(path = self.path, %error, "list or watch interrupted, trying again");
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn step(&mut self) -> Result<(), Interruption> {
        match &mut self.state {
            State::List(from) => {
                let from = from.take();
                self.list(from).await?;
                self.pause = FIRST_PAUSE;
            }
            State::Watch => {
                let params = WatchParams {
                    field_selector: self.selection.fields.clone(),
                    timeout: Some(WATCH_SECONDS),
                    ..WatchParams::default()
                };
                let request = Request::new(&self.path).watch(&params, &self.version)?;
                let body = ask(&self.client, request).await?;
                self.state = State::Following(Lines::new(body), Instant::now());
            }
            State::Following(lines, begun) => match lines.next().await? {
                Some(line) => {
                    self.take(&line)?;
                    self.pause = FIRST_PAUSE;
                }
                None if begun.elapsed() < SHORT => return Err(Interruption::Short),
                None => self.state = State::Watch,
            },
        }
        Ok(())
    }

    async fn list(&mut self, from: Option<String>) -> Result<(), Interruption> {
        let begins = from.is_none();
        let params = ListParams {
            field_selector: self.selection.fields.clone(),
            limit: Some(PAGE),
            continue_token: from,
            ..ListParams::default()
        };
        let body = ask(&self.client, Request::new(&self.path).list(&params)?).await?;
        let text = body.collect().await?.to_bytes();
        let page: Page<'_> = serde_json::from_slice(&text)?;
        if begins {
            self.told.push_back(Event::Init);
        }
        let items = page.items.into_iter().flatten();
        self.told.extend(items.map(|item| Event::InitApply(part(&text, item))));
        let more = page.metadata.r#continue.filter(|token| !token.is_empty());
        self.state = if more.is_some() {
            State::List(more)
        } else {
            self.version = page.metadata.resource_version.unwrap_or_default();
            self.told.push_back(Event::InitDone);
            State::Watch
        };
        Ok(())
    }

    fn take(&mut self, line: &Bytes) -> Result<(), Interruption> {
        let Line { r#type, object } = serde_json::from_slice(line)?;
        match r#type {
            "ADDED" | "MODIFIED" => self.told.push_back(Event::Apply(part(line, object))),
            "DELETED" => self.told.push_back(Event::Delete(part(line, object))),
            "BOOKMARK" => {
                let bookmark: Bookmark = serde_json::from_str(object.get())?;
                self.seen(bookmark.metadata.resource_version.as_deref());
            }
            _ => return Err(serde_json::from_str::<Status>(object.get())?.into()),
        }
        Ok(())
    }
}

async fn ask(client: &Client, request: http::Request<Vec<u8>>) -> Result<Body, Interruption> {
    let response = client.send(request.map(Body::from)).await?;
    let code = response.status().as_u16();
    if response.status().is_success() {
        return Ok(response.into_body());
    }
    let text = Limited::new(response.into_body(), STATUS_BYTES).collect().await;
    let text = text.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let message = match serde_json::from_slice::<Status>(&text) {
        Ok(status) => status.message,
        Err(_) => String::from_utf8_lossy(&text).into_owned(),
    };
    Err(Status { code, message }.into())
}

/// The bytes of `value`, which was read from `whole`, without copying them.
fn part(whole: &Bytes, value: &RawValue) -> Bytes {
    whole.slice_ref(value.get().as_bytes())
}

/// The lines of a body.
struct Lines {
    body: Body,
    /// Whole lines.
    lines: Bytes,
    /// The beginning of a line whose end has not come yet.
    begun: BytesMut,
}

impl Lines {
    fn new(body: Body) -> Self {
        Self { body, lines: Bytes::new(), begun: BytesMut::new() }
    }

    /// The next line that is not empty; `None` at the end of the body.
    async fn next(&mut self) -> Result<Option<Bytes>, Interruption> {
        loop {
            while !self.lines.is_empty() {
                let end = self.lines.iter().position(|byte| *byte == b'\n');
                let line = self.lines.split_to(end.map_or(self.lines.len(), |end| end + 1));
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
            }
            let frame = tokio::time::timeout(SILENCE, self.body.frame()).await;
            match frame.map_err(|_| Interruption::Silent)? {
                None if self.begun.is_empty() => return Ok(None),
                None => return Err(Interruption::Torn),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.add(data);
                    }
                }
            }
        }
    }

    fn add(&mut self, mut data: Bytes) {
        let Some(last) = data.iter().rposition(|byte| *byte == b'\n') else {
            return self.begun.extend_from_slice(&data);
        };
        let rest = data.split_off(last + 1);
        self.lines = if self.begun.is_empty() {
            data
        } else {
            self.begun.extend_from_slice(&data);
            self.begun.split().freeze()
        };
        self.begun.extend_from_slice(&rest);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use futures::StreamExt;
    use http::Response;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;
    use crate::in_process;

    #[test]
    fn managers_can_be_left_out() {
        for (text, want) in [
            (r#"{"metadata":{"name":"a"}}"#, None),
            (r#"{"metadata":{"managedFields":[]}}"#, Some(r#"{"metadata":{}}"#)),
            (
                r#"{"metadata":{"labels":{"a":"b"},"managedFields":[{"m":"a\"]","f":{"x":[{}]}}],"name":"a"},"spec":{}}"#,
                Some(r#"{"metadata":{"labels":{"a":"b"},"name":"a"},"spec":{}}"#),
            ),
            (
                r#"{"metadata":{"a":1,"managedFields":[{"m":"\\"}]},"spec":{}}"#,
                Some(r#"{"metadata":{"a":1},"spec":{}}"#),
            ),
            (r#"{"metadata":{"annotations":{"last":"{\"managedFields\":[1]}"},"name":"a"}}"#, None),
            (r#"{"metadata":{"managedFields":[{"#, None),
        ] {
            let left = managers(text.as_bytes()).map(|part| {
                let mut left = text.to_owned();
                left.replace_range(part, "");
                left
            });
            assert_eq!(left.as_deref(), want, "{text}");
        }
    }

    type Answers = Arc<Mutex<VecDeque<(u16, Vec<String>)>>>;

    fn map(name: &str, version: u32) -> String {
        format!(r#"{{"metadata":{{"name":"{name}","resourceVersion":"{version}"}}}}"#)
    }

    fn page(version: u32, token: &str, items: &[String]) -> String {
        let items = items.join(",");
        format!(
            r#"{{"metadata":{{"resourceVersion":"{version}","continue":"{token}"}},"items":[{items}]}}"#
        )
    }

    fn line(kind: &str, object: &str) -> String {
        format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
    }

    /// Answers in order, each in the frames given; after the last one, nothing comes any more.
    fn server(answers: &Answers, asked: &Arc<Mutex<Vec<String>>>) -> Client {
        let (answers, asked) = (answers.clone(), asked.clone());
        in_process(tower::service_fn(move |request: http::Request<Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            asked.lock().expect("nobody panics with it").push(query);
            let answer = answers.lock().expect("nobody panics with it").pop_front();
            async move {
                let Some((code, frames)) = answer else { return std::future::pending().await };
                let frames = frames.into_iter().map(|frame| Ok(Frame::data(Bytes::from(frame))));
                let body =
                    StreamBody::new(stream::iter(frames.collect::<Vec<Result<_, Infallible>>>()));
                let response = Response::builder().status(code).body(body);
                Ok::<_, Infallible>(response.expect("a response"))
            }
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn interruptions_are_mended() {
        let watched = line("ADDED", &map("c", 7)) + &line("DELETED", &map("a", 8));
        let (front, back) = watched.split_at(40);
        let answers = [
            (500, vec!["no".to_owned()]),
            (200, vec![page(5, "next", &[map("a", 1)])]),
            (200, vec![page(5, "", &[map("b", 2)])]),
            // A line in two frames, and one that does not end the watch in its midst.
            (200, vec![front.to_owned(), back.to_owned(), line("BOOKMARK", &map("", 9))]),
            (200, vec![line("ERROR", r#"{"kind":"Status","code":410,"reason":"Expired"}"#)]),
            (200, vec![page(20, "", &[])]),
            // An object that is none is left out.
            (200, vec![line("ADDED", r#"{"metadata":3}"#) + &line("MODIFIED", &map("d", 21))]),
            (200, vec!["{\"type\":".to_owned()]),
        ];
        let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
        let asked = Arc::default();
        let api: Api<ConfigMap> = Api::namespaced(server(&answers, &asked), "n");
        let events = list_watch(api, Selection::fields("metadata.name!=z"));
        let name =
            |object: ConfigMap| Ok::<_, Infallible>(object.metadata.name.unwrap_or_default());
        let told: Vec<Event<String>> =
            events.take(9).map(|event| event.try_map(name).unwrap_or(Event::Init)).collect().await;
        let s = |name: &str| name.to_owned();
        let expected = [
            Event::Init,
            Event::InitApply(s("a")),
            Event::InitApply(s("b")),
            Event::InitDone,
            Event::Apply(s("c")),
            Event::Delete(s("a")),
            Event::Init,
            Event::InitDone,
            Event::Apply(s("d")),
        ];
        assert_eq!(told, expected);
        let asked = asked.lock().expect("nobody panics with it");
        let of = |index: usize, key: &str| -> Option<String> {
            let found = asked[index].split('&').find_map(|pair| pair.strip_prefix(key));
            found.and_then(|value| value.strip_prefix('=')).map(str::to_owned)
        };
        let field = Some("metadata.name%21%3Dz".to_owned());
        assert!((0..asked.len()).all(|index| of(index, "fieldSelector") == field), "{asked:?}");
        assert_eq!(of(2, "continue").as_deref(), Some("next"));
        let versions: Vec<_> = (3..7).map(|index| of(index, "resourceVersion")).collect();
        assert_eq!(versions, [Some(s("5")), Some(s("9")), None, Some(s("20"))], "{asked:?}");
    }
}
