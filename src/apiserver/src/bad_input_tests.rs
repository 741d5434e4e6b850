//! Whatever a client sends is answered: with a status that says whose fault it is, never a panic and
//! never a 5xx.

use std::sync::LazyLock;

use apimachinery::schema::{Shape, TypeId, builtin};
use http::Method;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::tests::{Answer, Fixture};

/// One server for all cases.
static SERVER: LazyLock<(Runtime, Fixture)> = LazyLock::new(|| {
    let runtime = Runtime::new().expect("a runtime");
    let fixture = runtime.block_on(Fixture::new());
    (runtime, fixture)
});

fn send(method: &str, path: &str, content_type: &str, body: Vec<u8>) -> Option<Answer> {
    let (runtime, fixture) = &*SERVER;
    let method = Method::from_bytes(method.as_bytes()).ok()?;
    let uri: http::Uri = path.parse().ok()?;
    let request =
        http::Request::builder().method(method).uri(uri).header("content-type", content_type);
    Some(runtime.block_on(fixture.send(request, body)))
}

/// The answer blames the client, if anybody.
fn check(answer: &Answer, asked: &str) {
    let code = answer.code.as_u16();
    assert!(code < 500, "{asked}: {code} {}", answer.body);
    if code >= 400 {
        assert_eq!(answer.body["kind"], "Status", "{asked}: {code} {}", answer.body);
        assert_eq!(answer.body["code"], code, "{asked}");
    }
}

fn segment() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "api",
        "apis",
        "v1",
        "apps",
        "batch",
        "namespaces",
        "default",
        "pods",
        "deployments",
        "status",
        "scale",
        "log",
        "watch",
        "configmaps",
        "nodes",
        "proxy",
        "a",
        "..",
        ".",
        "%00",
        "%ff",
        "%2F",
        "openapi",
        "v3",
        "v2",
        "healthz",
        "version",
        "*",
        "bindings",
        "binding",
        "customresourcedefinitions",
        "apiextensions.k8s.io",
        "serviceaccounts",
        "token",
    ]);
    prop_oneof![4 => known.prop_map(str::to_owned), 1 => "[!-~]{0,12}", 1 => Just(String::new())]
}

fn query() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "limit",
        "continue",
        "labelSelector",
        "fieldSelector",
        "resourceVersion",
        "resourceVersionMatch",
        "timeoutSeconds",
        "dryRun",
        "fieldManager",
        "force",
        "pretty",
        "propagationPolicy",
        "gracePeriodSeconds",
        "orphanDependents",
        "fieldValidation",
        "as",
        "sendInitialEvents",
        "allowWatchBookmarks",
    ]);
    let value = prop_oneof![
        "[!-~]{0,16}",
        Just("0".to_owned()),
        Just("-1".to_owned()),
        Just("99999999999999999999".to_owned()),
        Just("a,!b,c in (d".to_owned())
    ];
    prop::collection::vec((key, value), 0..4).prop_map(|pairs| {
        let mut text = url::form_urlencoded::Serializer::new(String::new());
        text.extend_pairs(pairs).finish()
    })
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let valid = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": "b"}});
    let cut = valid.to_string().into_bytes();
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        Just(cut.clone()),
        (0..cut.len()).prop_map(move |length| cut[..length].to_vec()),
        Just(b"k8s\0\x0a\x7f".to_vec()),
        prop::collection::vec(any::<u8>(), 0..200)
            .prop_map(|rest| [b"k8s\0".to_vec(), rest].concat()),
        "[\\[\\]{}\":,a0 -]{0,60}".prop_map(String::into_bytes),
    ]
}

const TYPES: [&str; 9] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "text/plain",
    "a/b; c=\"",
];
const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn any_request_line_is_answered(
        method in prop::sample::select(METHODS.to_vec()),
        segments in prop::collection::vec(segment(), 0..8),
        query in query(),
        content_type in prop::sample::select(TYPES.to_vec()),
        body in body(),
    ) {
        let path = format!("/{}?{query}", segments.join("/"));
        // A watch is answered for as long as somebody listens.
        if !path.contains("watch") && let Some(answer) = send(method, &path, content_type, body) {
            let head = method == "HEAD";
            prop_assert!(answer.code.as_u16() < 500, "{method} {path}: {}", answer.body);
            if !head && answer.code.as_u16() >= 400 {
                check(&answer, &format!("{method} {path}"));
            }
        }
    }

    #[test]
    fn any_body_is_answered(
        method in prop::sample::select(vec!["POST", "PUT", "PATCH", "DELETE"]),
        path in prop::sample::select(vec![
            "/api/v1/namespaces/default/configmaps",
            "/api/v1/namespaces/default/configmaps/a",
            "/api/v1/namespaces/default/configmaps/a?fieldManager=x&force=true",
            "/apis/apps/v1/namespaces/default/deployments/a/scale",
            "/api/v1/namespaces/default/pods/a/eviction",
            "/api/v1/namespaces/default/serviceaccounts/default/token",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        ]),
        content_type in prop::sample::select(TYPES.to_vec()),
        body in body(),
    ) {
        if let Some(answer) = send(method, path, content_type, body.clone()) {
            let text = String::from_utf8_lossy(&body).into_owned();
            check(&answer, &format!("{method} {path} {content_type} {text:?}"));
        }
    }
}

#[test]
fn deep_and_wide_bodies_are_refused() {
    let deep = |open: &str, close: &str| {
        let depth = 100_000;
        format!("{}{}", open.repeat(depth), close.repeat(depth)).into_bytes()
    };
    let bomb = b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    // Groups within groups, as protobuf allows them.
    let groups = [b"k8s\0\x12\xc0\x9a\x0c".to_vec(), vec![0x0b; 200_000]].concat();
    for (content_type, bytes) in [
        ("application/json", deep("[", "]")),
        ("application/json", deep("{\"a\":", "}")),
        ("application/yaml", deep("[", "]")),
        ("application/yaml", deep("{a: ", "}")),
        ("application/yaml", bomb.to_vec()),
        ("application/vnd.kubernetes.protobuf", groups),
        ("application/json", b"{\"metadata\":{\"name\":\"\xff\xfe\"}}".to_vec()),
        ("application/yaml", b"metadata: {name: \"\xff\xfe\"}".to_vec()),
        ("application/json", b"{\"metadata\":{\"name\":\"a\",\"generation\":1e400}}".to_vec()),
        ("application/json", b"{\"metadata\":{\"name\":\"\\ud800\"}}".to_vec()),
    ] {
        let path = "/api/v1/namespaces/default/configmaps";
        let answer = send("POST", path, content_type, bytes.clone()).expect("a request");
        let code = answer.code.as_u16();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        assert!((400..500).contains(&code), "{content_type} {shown:?}: {code} {}", answer.body);
        for kind in [
            "json-patch+json",
            "merge-patch+json",
            "strategic-merge-patch+json",
            "apply-patch+yaml",
        ] {
            let path = format!("{path}/a?fieldManager=x");
            let answer = send("PATCH", &path, &format!("application/{kind}"), bytes.clone());
            let answer = answer.expect("a request");
            assert!(answer.code.as_u16() < 500, "{kind} {shown:?}: {}", answer.body);
        }
    }
}

/// A value for every field of a type, a few levels deep; `odd` makes them ones that nobody expects.
fn filled(of: TypeId, depth: u32, odd: bool) -> Value {
    let fields = &builtin().get(of).fields;
    let all = fields
        .iter()
        .filter_map(|field| Some((field.name.to_string(), sample(&field.shape, depth, odd)?)));
    Value::Object(all.collect())
}

fn sample(shape: &Shape, depth: u32, odd: bool) -> Option<Value> {
    Some(match shape {
        Shape::String if odd => "\u{7f}/../\u{1F600} -".into(),
        Shape::String => "x".into(),
        Shape::Bytes => "eA==".into(),
        Shape::Int32 if odd => i32::MIN.into(),
        Shape::Int64 if odd => i64::MIN.into(),
        Shape::Int32 | Shape::Int64 => 7.into(),
        Shape::Double => 1.5.into(),
        Shape::Bool => true.into(),
        Shape::Quantity if odd => "-9223372036854775808".into(),
        Shape::Quantity => "1".into(),
        Shape::IntOrString if odd => "101%".into(),
        Shape::IntOrString => 80.into(),
        Shape::Time => "2026-01-02T03:04:05Z".into(),
        Shape::MicroTime => "2026-01-02T03:04:05.000006Z".into(),
        Shape::Any => json!({"type": "object"}),
        Shape::List(item) => {
            let item = sample(item, depth, odd)?;
            Value::Array(if odd { vec![item.clone(), item] } else { vec![item] })
        }
        Shape::Map(item) => json!({"k": sample(item, depth, odd)?}),
        Shape::Object(_) if depth == 0 => return None,
        Shape::Object(of) => filled(*of, depth - 1, odd),
    })
}

/// Defaults, strategies, validation and warnings of every kind see every field set, and none.
#[test]
fn objects_full_of_everything_are_answered() {
    for resource in builtin().resources().iter().filter(|r| r.enabled) {
        let (group, version) = (&resource.group, &resource.version);
        let Some(of) = builtin().kind(group, version, &resource.kind) else { continue };
        let root = if group.is_empty() {
            format!("/api/{version}")
        } else {
            format!("/apis/{group}/{version}")
        };
        let place = if resource.namespaced { "/namespaces/default" } else { "" };
        let path = format!("{root}{place}/{}", resource.plural);
        for depth in [0, 1, 2, 4, 6] {
            for odd in [false, true] {
                let mut object = filled(of, depth, odd);
                if !object["metadata"].is_object() {
                    object["metadata"] = json!({});
                }
                let metadata = json!({"name": "x", "labels": object["metadata"]["labels"]});
                object["metadata"] = metadata;
                apimachinery::meta::set_type(&mut object, &resource.api_version(), &resource.kind);
                let bytes = object.to_string().into_bytes();
                let asked = format!("{path} {depth} {odd}");
                let answer = send("POST", &path, "application/json", bytes.clone());
                check(&answer.expect("a request"), &asked);
                for (method, content_type, rest) in [
                    ("PUT", "application/json", ""),
                    ("PUT", "application/json", "/status"),
                    ("PATCH", "application/merge-patch+json", ""),
                    ("PATCH", "application/merge-patch+json", "/status"),
                    ("PATCH", "application/strategic-merge-patch+json", ""),
                    ("PATCH", "application/json", ""),
                ] {
                    let path = format!("{path}/x{rest}");
                    let answer = send(method, &path, content_type, bytes.clone());
                    check(&answer.expect("a request"), &format!("{method} {asked} {content_type}"));
                }
                let path = format!("{path}/x?fieldManager=f&force=true");
                let answer = send("PATCH", &path, "application/apply-patch+yaml", bytes);
                let answer = answer.expect("a request");
                // Upstream too calls what its schema does not have an internal error.
                let text = answer.body["message"].as_str().unwrap_or_default();
                let known = text.starts_with("failed to create typed patch object");
                assert!(answer.code.as_u16() < 500 || known, "{asked}: {}", answer.body);
            }
        }
    }
}
