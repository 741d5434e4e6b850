//! Resource versions of reads, as the API concepts page has them, through the whole server.

use std::io::Read;

use http::Method;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::Service;

use crate::body::Body;
use crate::tests::{Answer, Fixture, config_map};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn names(answer: &Answer) -> Vec<&str> {
    let items = answer.body["items"].as_array().map_or(&[][..], Vec::as_slice);
    let names = items.iter().filter_map(|item| item["metadata"]["name"].as_str());
    names.filter(|name| *name != "kube-root-ca.crt").collect()
}

async fn filled() -> (Fixture, u64) {
    let f = Fixture::new().await;
    let mut last = 0;
    for name in ["a", "b", "c"] {
        let made = f.post(MAPS, &config_map(name)).await;
        let version = made.body["metadata"]["resourceVersion"].as_str().expect("a version");
        last = version.parse().expect("a number");
    }
    (f, last)
}

#[tokio::test]
async fn a_version_that_has_not_come_is_told_with_a_cause() {
    let (f, last) = filled().await;
    let future = last + 1_000_000;
    for path in [
        format!("{MAPS}?resourceVersion={future}"),
        format!("{MAPS}/a?resourceVersion={future}"),
        format!(
            "{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion={future}"
        ),
    ] {
        let answer = f.get(&path).await;
        assert_eq!(
            (answer.code.as_u16(), &answer.body["reason"]),
            (504, &json!("Timeout")),
            "{path}"
        );
        let message = answer.body["message"].as_str().expect("a message");
        let want = format!("Timeout: Too large resource version: {future}, current: ");
        assert!(message.starts_with(&want), "{message}");
        assert_eq!(answer.body["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
        assert_eq!(answer.body["details"]["retryAfterSeconds"], 1);
    }
}

#[tokio::test]
async fn an_exact_list_is_the_state_of_that_version() {
    let (f, last) = filled().await;
    f.request(Method::DELETE, &format!("{MAPS}/a"), &json!({})).await;
    f.post(MAPS, &config_map("d")).await;
    let exact = f.get(&format!("{MAPS}?resourceVersion={last}&resourceVersionMatch=Exact")).await;
    assert_eq!(names(&exact), ["a", "b", "c"]);
    assert_eq!(exact.body["metadata"]["resourceVersion"], last.to_string());
    // With a limit and no match the version is exact, too; without either it is a lower bound.
    let chunk = f.get(&format!("{MAPS}?resourceVersion={last}&limit=1")).await;
    assert_eq!(names(&chunk), ["a"]);
    let newer = f.get(&format!("{MAPS}?resourceVersion={last}")).await;
    assert_eq!(names(&newer), ["b", "c", "d"]);
}

#[tokio::test]
async fn a_list_whose_version_is_compacted_goes_on_with_what_is_current() {
    let (f, last) = filled().await;
    let first = f.get(&format!("{MAPS}?limit=1")).await;
    let token = |answer: &Answer| answer.body["metadata"]["continue"].as_str().map(str::to_owned);
    let next = format!("{MAPS}?limit=1&continue={}", token(&first).expect("a token"));
    let now = f.post(MAPS, &config_map("d")).await;
    assert_eq!(names(&f.get(&next).await), ["b"]);
    let version = now.body["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok());
    f.api.registry().compact(version.expect("a version")).await.expect("compacts");
    let expired = f.get(&next).await;
    assert_eq!((expired.code.as_u16(), &expired.body["reason"]), (410, &json!("Expired")));
    let next = format!("{MAPS}?limit=2&continue={}", token(&expired).expect("another token"));
    let second = f.get(&next).await;
    assert_eq!(names(&second), ["b", "c"]);
    assert_ne!(
        second.body["metadata"]["resourceVersion"],
        first.body["metadata"]["resourceVersion"]
    );
    let rest = f.get(&format!("{MAPS}?continue={}", token(&second).expect("a token"))).await;
    assert_eq!(names(&rest), ["d"]);
    let exact = f.get(&format!("{MAPS}?resourceVersion={last}&resourceVersionMatch=Exact")).await;
    assert_eq!(exact.code, 410);
}

#[tokio::test]
async fn whatever_version_comes_whole() {
    let (f, _) = filled().await;
    let all = f.get(&format!("{MAPS}?resourceVersion=0&limit=1")).await;
    assert_eq!(names(&all), ["a", "b", "c"]);
    assert_eq!(all.body["metadata"].get("continue"), None);
    let selected = f.get(&format!("{MAPS}?limit=1&labelSelector=!x")).await;
    assert!(selected.body["metadata"]["continue"].is_string());
    // Nobody counts what a selector would choose.
    assert_eq!(selected.body["metadata"].get("remainingItemCount"), None);
}

#[tokio::test]
async fn a_watch_without_initial_events_begins_now() {
    let (f, last) = filled().await;
    let quiet = "sendInitialEvents=false&resourceVersionMatch=NotOlderThan";
    let mut watch = f.watch(&format!("{MAPS}?watch=true&{quiet}")).await;
    let mut since = f.watch(&format!("{MAPS}?watch=true&resourceVersion={last}")).await;
    let mut short = f.watch(&format!("{MAPS}?watch=true&{quiet}&timeoutSeconds=1")).await;
    f.post(MAPS, &config_map("d")).await;
    assert_eq!(watch.tell().await, "ADDED d");
    assert_eq!(since.tell().await, "ADDED d");
    assert_eq!(short.tell().await, "ADDED d");
    assert_eq!(short.next().await, None, "the watch ends when its time is over");
}

#[tokio::test]
async fn large_lists_are_compressed_for_those_who_ask() {
    let f = Fixture::new().await;
    let mut map = config_map("big");
    map["data"]["a"] = "x".repeat(200 << 10).into();
    f.post(MAPS, &map).await;
    let get = |encoding: &'static str| {
        let request = http::Request::get(MAPS)
            .header("accept-encoding", encoding)
            .body(Body::Empty)
            .expect("a request");
        let mut admin = f.admin.clone();
        async move {
            let response = admin.call(request).await.expect("infallible");
            let encoding = response.headers().get("content-encoding").cloned();
            (encoding, response.into_body().collect().await.expect("a body").to_bytes())
        }
    };
    let (encoding, plain) = get("identity").await;
    assert_eq!(encoding, None);
    let (encoding, bytes) = get("gzip").await;
    assert_eq!(encoding.expect("a header"), "gzip");
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut text).expect("gzip");
    let read =
        |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON")["items"].clone();
    assert_eq!(read(&text), read(&plain));
}

#[tokio::test]
async fn an_answer_may_be_wanted_in_time() {
    let (f, _) = filled().await;
    for timeout in ["3m", "500ms", "0s"] {
        assert_eq!(f.get(&format!("{MAPS}?timeout={timeout}")).await.code, 200, "{timeout}");
    }
    let refused = f.get(&format!("{MAPS}?timeout=invalid")).await;
    assert_eq!(
        (refused.code.as_u16(), &refused.body["message"]),
        (
            400,
            &json!(
                "invalid timeout specified in the request URL - time: invalid duration \"invalid\""
            )
        )
    );
    // A list of a version that does not come waits longer than that.
    let late = f.get(&format!("{MAPS}?timeout=10ms&resourceVersion=99999")).await;
    assert_eq!((late.code.as_u16(), &late.body["reason"]), (504, &json!("Timeout")));
    assert!(late.body["message"].as_str().is_some_and(|m| m.contains("deadline exceeded")));
}
