//! The parsers of what clients send, against anything: they answer or refuse, and never panic or grow
//! without bound.

use apimachinery::cel::{self, Program, Type};
use apimachinery::decode::{self, Validation};
use apimachinery::json_path::JsonPath;
use apimachinery::labels::Selector;
use apimachinery::schema::builtin;
use apimachinery::{fields, patch, protobuf, quantity::Quantity, structural};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Any JSON, with names that the algorithms know.
fn document() -> impl Strategy<Value = Value> {
    let name = || {
        prop::sample::select(vec![
            "metadata",
            "spec",
            "containers",
            "name",
            "ports",
            "containerPort",
            "protocol",
            "labels",
            "annotations",
            "finalizers",
            "$patch",
            "$retainKeys",
            "$setElementOrder/containers",
            "$deleteFromPrimitiveList/finalizers",
            "volumes",
            "emptyDir",
            "strategy",
            "type",
            "x-kubernetes-validations",
            "properties",
            "items",
            "rule",
            "apiVersion",
            "kind",
            "managedFields",
            "",
            "a.b",
            "a/b",
            "~1",
        ])
        .prop_map(str::to_owned)
    };
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec![
            "", "a", "delete", "merge", "replace", "80", "object", "Pod", "v1"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(name(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Text of the tokens that selectors, paths and expressions are made of.
fn tokens() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec![
        "a",
        "a.b/c",
        "in",
        "notin",
        "(",
        ")",
        ",",
        "=",
        "==",
        "!=",
        "!",
        "<",
        ">",
        " ",
        "self",
        ".",
        "[",
        "]",
        "{",
        "}",
        "@",
        "?",
        "*",
        "'",
        "\"",
        "\\",
        ":",
        "&&",
        "||",
        "+",
        "-",
        "1",
        "0x",
        "9999999999999999999",
        "has",
        "all",
        "exists",
        "map",
        "size",
        "matches",
        "quantity",
        "\u{1F600}",
        "\n",
        "..",
        "~",
        "$",
    ]);
    prop::collection::vec(token, 0..24).prop_map(|parts| parts.concat())
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}, "finalizers": ["x/y"]},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "protocol": "TCP"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}]}})
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn texts(text in prop_oneof![tokens(), ".{0,60}"]) {
        let _ = Selector::parse(&text);
        let _ = fields::Selector::parse(&text);
        let _ = text.parse::<Quantity>();
        let _ = decode::yaml_unstructured(&text);
        let _ = decode::json_to_value(text.as_bytes());
        if let Ok(path) = JsonPath::parse(&text) {
            let _ = path.find(&pod());
        }
        let schema = structural::Structural::parse(&json!({"type": "object", "properties": {"a": {"type": "string"}}}));
        let names = vec![("self".to_owned(), Type::Of(&schema))];
        if let Ok(program) = Program::compile(&text, names, Some(&schema)) {
            let object = json!({"a": "b"});
            let variables = [("self", cel::Value::of(&object, Some(&schema)))];
            let _ = program.run(&cel::Named(&variables), &mut 10_000);
        }
    }

    #[test]
    fn patches(original in document(), change in document()) {
        let of = builtin().kind("", "v1", "Pod").expect("a pod");
        for original in [original, pod()] {
            let mut merged = original.clone();
            patch::merge(&mut merged, &change);
            let _ = patch::json(&original, change.to_string().as_bytes());
            let _ = patch::strategic(builtin(), of, original.clone(), change.clone());
        }
    }

    #[test]
    fn objects(object in document()) {
        let of = builtin().kind("apps", "v1", "Deployment").expect("a deployment");
        let text = object.to_string();
        let _ = decode::from_json(builtin(), of, text.as_bytes(), Validation::Strict);
        let _ = decode::from_yaml(builtin(), of, &text, Validation::Warn);
        let mut out = protobuf::Writer::default();
        let _ = protobuf::from_value(builtin(), of, &object, &mut out);
        let path = apimachinery::field::Path::new("s");
        let found = structural::check(&object, &path);
        let schema = structural::Structural::parse(&object);
        if found.is_empty() {
            let _ = cel::rules::check(&schema, &path);
        }
    }

    #[test]
    fn bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..200_usize, bit in 0..8_u32) {
        let _ = protobuf::decode(builtin(), &bytes);
        let _ = protobuf::decode(builtin(), &[protobuf::MAGIC, &bytes].concat());
        // A good message with one bit turned.
        let of = builtin().kind("", "v1", "Pod").expect("a pod");
        let mut out = protobuf::Writer::default();
        protobuf::from_value(builtin(), of, &pod(), &mut out).expect("it fits");
        let mut good = protobuf::envelope("v1", "Pod", &out.into_bytes());
        if let Some(byte) = good.get_mut(at) {
            *byte ^= 1 << bit;
        }
        let _ = protobuf::decode(builtin(), &good);
    }
}

#[test]
fn copies_do_not_grow_without_bound() {
    let copies: Vec<Value> = (0..200)
        .map(|index| json!({"op": "copy", "from": "", "path": format!("/c{index}")}))
        .collect();
    let text = serde_json::to_vec(&copies).expect("plain data");
    let told = patch::json(&json!({"a": "b"}), &text).expect_err("it would double each time");
    assert!(told.to_string().starts_with("Unable to complete the copy"), "{told}");
}
