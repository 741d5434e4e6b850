//! Whatever a client sends is answered: with a status that says whose fault it is, never a panic and
//! never a 5xx.

use std::sync::LazyLock;

use apimachinery::schema::{Shape, TypeId, builtin};
use http::Method;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::body::Body;
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
    if code >= 400 && answer.body != "404 page not found\n" {
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

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap_or(0)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// A value of a shape that nobody in his right mind would send.
fn wild(shape: &Shape, depth: u32, dice: &mut Dice) -> Value {
    const TEXTS: [&str; 22] = [
        "",
        "x",
        "é",
        "\u{1F600}\u{1F600}",
        "/é",
        "-",
        "*.é",
        "*",
        "a/b/c",
        "é=é",
        "..",
        "1.2.3.4",
        "::1",
        "10.0.0.0/99",
        "99999999999999999999",
        "TCP",
        "Prefix",
        "1e400",
        "%",
        "100%",
        "$(é",
        "2026-13-45T99:99:99Z",
    ];
    const NUMBERS: [i64; 8] = [0, -1, 1, 65_536, -2_147_483_648, 2_147_483_647, 7, 80];
    match shape {
        _ if dice.below(12) == 0 => Value::Null,
        Shape::String => match dice.below(20) {
            0 => "é".repeat(400).into(),
            _ => dice.pick(&TEXTS).into(),
        },
        Shape::Bytes => dice.pick(&["", "eA==", "/w=="]).into(),
        Shape::Int32 => dice.pick(&NUMBERS).into(),
        Shape::Int64 => dice.pick(&[0, -1, i64::MIN, i64::MAX, 1]).into(),
        Shape::Double => dice.pick(&[0.0, -1.5, 1e300]).into(),
        Shape::Bool => (dice.below(2) == 0).into(),
        Shape::Quantity => {
            dice.pick(&["0", "-1", "1e18", "9999999999999999999999", "1n", ".5"]).into()
        }
        Shape::IntOrString => match dice.below(2) {
            0 => dice.pick(&NUMBERS).into(),
            _ => dice.pick(&TEXTS).into(),
        },
        Shape::Time => dice.pick(&["2026-01-02T03:04:05Z", "0001-01-01T00:00:00Z"]).into(),
        Shape::MicroTime => {
            dice.pick(&["2026-01-02T03:04:05.000006Z", "9999-12-31T23:59:59.999999Z"]).into()
        }
        Shape::Any => dice.pick(&[
            json!({}),
            json!([]),
            json!("é"),
            json!({"a": {"é": [null]}}),
            json!(1e300),
        ]),
        Shape::List(item) => (0..dice.below(3)).map(|_| wild(item, depth, dice)).collect(),
        Shape::Map(item) => {
            let keys = ["", "k", "é", "a/b/c", "kubernetes.io/é"];
            let entries =
                (0..dice.below(3)).map(|_| (dice.pick(&keys).to_owned(), wild(item, depth, dice)));
            Value::Object(entries.collect())
        }
        Shape::Object(_) if depth == 0 => json!({}),
        Shape::Object(of) => {
            let fields = builtin().get(*of).fields.iter();
            let some = fields.filter_map(|field| {
                if dice.below(3) > 0 {
                    return None;
                }
                Some((field.name.to_string(), wild(&field.shape, depth - 1, dice)))
            });
            Value::Object(some.collect())
        }
    }
}

/// Puts something wild somewhere into a sound object.
fn spoil(value: &mut Value, of: TypeId, dice: &mut Dice) {
    let fields = &builtin().get(of).fields;
    let open = ["apiVersion", "kind", "metadata"];
    let fields: Vec<_> = fields.iter().filter(|field| !open.contains(&&*field.name)).collect();
    if fields.is_empty() || !value.is_object() {
        return;
    }
    let field = fields[dice.below(fields.len())];
    let slot = &mut value[field.name.as_ref()];
    match (&field.shape, &mut *slot) {
        (Shape::Object(of), Value::Object(_)) if dice.below(6) > 0 => spoil(slot, *of, dice),
        (Shape::List(item), Value::Array(list)) if !list.is_empty() && dice.below(6) > 0 => {
            let at = dice.below(list.len());
            match &**item {
                Shape::Object(of) => spoil(&mut list[at], *of, dice),
                item => list[at] = wild(item, 2, dice),
            }
        }
        (shape, slot) => *slot = wild(shape, 3, dice),
    }
}

/// Sound objects, from which updates begin.
fn sound() -> Vec<(&'static str, &'static str, &'static str, &'static str, Value)> {
    let pod = json!({"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
        "env": [{"name": "A", "value": "b"}], "resources": {"limits": {"cpu": "1"}},
        "livenessProbe": {"httpGet": {"port": 80}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}], "tolerations": [{"operator": "Exists"}],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "k", "labelSelector": {"matchLabels": {"a": "b"}}}]}}});
    let labels = json!({"a": "b"});
    let template = json!({"metadata": {"labels": labels}, "spec": pod});
    let workload = json!({"selector": {"matchLabels": labels}, "template": template});
    let mut job = template.clone();
    job["spec"]["restartPolicy"] = "Never".into();
    let mut set = workload.clone();
    set["volumeClaimTemplates"] = json!([{"metadata": {"name": "d"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}}]);
    vec![
        ("", "v1", "Pod", "pods", json!({"spec": pod})),
        (
            "",
            "v1",
            "Service",
            "services",
            json!({"spec": {"ports": [{"port": 80}], "selector": labels}}),
        ),
        ("", "v1", "ConfigMap", "configmaps", json!({"data": {"a": "b"}})),
        ("", "v1", "Secret", "secrets", json!({"data": {"a": "eA=="}})),
        (
            "",
            "v1",
            "ResourceQuota",
            "resourcequotas",
            json!({"spec": {"hard": {"count/x.y": "1"}}}),
        ),
        (
            "",
            "v1",
            "LimitRange",
            "limitranges",
            json!({"spec": {"limits": [{"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}]}}),
        ),
        (
            "",
            "v1",
            "PersistentVolumeClaim",
            "persistentvolumeclaims",
            json!({"spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}),
        ),
        (
            "",
            "v1",
            "Endpoints",
            "endpoints",
            json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}),
        ),
        (
            "",
            "v1",
            "ReplicationController",
            "replicationcontrollers",
            json!({"spec": {"selector": labels, "template": template}}),
        ),
        ("apps", "v1", "Deployment", "deployments", json!({"spec": workload})),
        ("apps", "v1", "DaemonSet", "daemonsets", json!({"spec": workload})),
        ("apps", "v1", "ReplicaSet", "replicasets", json!({"spec": workload})),
        ("apps", "v1", "StatefulSet", "statefulsets", json!({"spec": set})),
        ("batch", "v1", "Job", "jobs", json!({"spec": {"template": job}})),
        (
            "batch",
            "v1",
            "CronJob",
            "cronjobs",
            json!({"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": job}}}}),
        ),
        (
            "autoscaling",
            "v2",
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            json!({"spec": {"maxReplicas": 3,
            "scaleTargetRef": {"kind": "Deployment", "name": "x"}, "metrics": [{"type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}}),
        ),
        (
            "autoscaling",
            "v1",
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            json!({"spec": {"maxReplicas": 3,
            "scaleTargetRef": {"kind": "Deployment", "name": "x"}}}),
        ),
        (
            "networking.k8s.io",
            "v1",
            "Ingress",
            "ingresses",
            json!({"spec": {"tls": [{"hosts": ["h.io"], "secretName": "s"}],
            "rules": [{"host": "h.io", "http": {"paths": [{"path": "/", "pathType": "Prefix",
                "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}}),
        ),
        (
            "networking.k8s.io",
            "v1",
            "NetworkPolicy",
            "networkpolicies",
            json!({"spec": {"podSelector": {},
            "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 80}]}]}}),
        ),
        (
            "policy",
            "v1",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            json!({"spec": {"minAvailable": 1, "selector": {"matchLabels": labels}}}),
        ),
        (
            "rbac.authorization.k8s.io",
            "v1",
            "Role",
            "roles",
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
        ),
        (
            "rbac.authorization.k8s.io",
            "v1",
            "RoleBinding",
            "rolebindings",
            json!({"roleRef": {"kind": "Role", "name": "x",
            "apiGroup": "rbac.authorization.k8s.io"}, "subjects": [{"kind": "User", "name": "u"}]}),
        ),
        (
            "discovery.k8s.io",
            "v1",
            "EndpointSlice",
            "endpointslices",
            json!({"addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]}),
        ),
        ("coordination.k8s.io", "v1", "Lease", "leases", json!({"spec": {"holderIdentity": "h"}})),
        (
            "events.k8s.io",
            "v1",
            "Event",
            "events",
            json!({"eventTime": "2026-01-02T03:04:05.000006Z", "action": "a", "reason": "r",
            "type": "Normal", "reportingController": "c", "reportingInstance": "i",
            "regarding": {"kind": "Pod", "name": "x", "namespace": "default"}}),
        ),
    ]
}

/// Updates, patches and applies of a sound object, with one thing in it or several that make no sense.
#[test]
fn spoilt_objects_are_answered() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    send("POST", accounts, "application/json", account.to_string().into_bytes());
    for (group, version, kind, plural, mut object) in sound() {
        let of = builtin().kind(group, version, kind).expect(kind);
        let root = if group.is_empty() { "/api".into() } else { format!("/apis/{group}") };
        let path = format!("{root}/{version}/namespaces/default/{plural}");
        let api_version =
            if group.is_empty() { version.into() } else { format!("{group}/{version}") };
        apimachinery::meta::set_type(&mut object, &api_version, kind);
        object["metadata"] = json!({"name": format!("spoilt-{version}")});
        let made = send("POST", &path, "application/json", object.to_string().into_bytes());
        let made = made.expect("a request");
        assert_eq!(made.code, 201, "{kind}: {}", made.body);
        let name = format!("{path}/spoilt-{version}");
        for round in 0..120 {
            let mut spoilt = object.clone();
            for _ in 0..=dice.below(3) {
                spoil(&mut spoilt, of, &mut dice);
            }
            let (method, path, content_type) = match round % 6 {
                0 | 1 => ("PUT", name.clone(), "application/json"),
                2 => ("PUT", format!("{name}/status"), "application/json"),
                3 => ("PATCH", name.clone(), "application/strategic-merge-patch+json"),
                4 => (
                    "PATCH",
                    format!("{name}?fieldManager=f&force=true"),
                    "application/apply-patch+yaml",
                ),
                _ => ("POST", format!("{path}?dryRun=All"), "application/json"),
            };
            let asked = format!("{method} {path} {spoilt}");
            let answer = send(method, &path, content_type, spoilt.to_string().into_bytes());
            let answer = answer.expect("a request");
            let text = answer.body["message"].as_str().unwrap_or_default();
            let known = text.starts_with("failed to create typed patch object");
            assert!(answer.code.as_u16() < 500 || known, "{asked}: {}", answer.body);
        }
    }
}

/// What cannot be had is told in a form that was asked for, if that can be, and otherwise in JSON.
#[tokio::test]
async fn what_cannot_be_had_is_told() {
    let f = Fixture::new().await;
    const META: &str = "v=v1;g=meta.k8s.io";
    let offered = "only the following media types are accepted: ";
    let all = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
    let streams = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
    let base = "/api/v1/namespaces/default/configmaps";
    for (path, accept, code, want) in [
        (base.to_owned(), "text/html".to_owned(), 406, format!("{offered}{all}")),
        (format!("{base}?watch=1"), "application/yaml".into(), 406, format!("{offered}{streams}")),
        (
            base.to_owned(),
            format!("application/json;as=PartialObjectMetadata;{META}"),
            406,
            "you requested PartialObjectMetadata, but the requested object is a list (*core.ConfigMapList)".into(),
        ),
        (
            "/api/v1/namespaces/default".into(),
            format!("application/json;as=PartialObjectMetadataList;{META},application/json"),
            406,
            "you requested PartialObjectMetadataList, but the requested object is not a list (*core.Namespace)".into(),
        ),
        (
            format!("{base}/none"),
            format!("application/json;as=Table;{META}"),
            404,
            "configmaps \"none\" not found".into(),
        ),
    ] {
        let request = http::Request::get(&path).header("accept", &accept);
        let answer = f.send(request, Body::Empty).await;
        assert_eq!(answer.code, code, "{path} {accept}");
        let kind = answer.headers["content-type"].to_str().expect("text");
        // A failure has a form in YAML, where a watch has none.
        if accept == "application/yaml" {
            assert_eq!(kind, accept);
            assert!(answer.body.to_string().contains(&want), "{path} {accept}: {}", answer.body);
        } else {
            assert_eq!(kind, "application/json");
            assert_eq!(answer.body["message"], want, "{path} {accept}");
        }
    }
}
