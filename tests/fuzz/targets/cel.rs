//! Expressions: parsed, checked, priced and run over an object.

#![no_main]

use apimachinery::cel::{Named, Program, Type, Value};
use apimachinery::structural::Structural;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|text: &str| {
    let schema = Structural::parse(&json!({"type": "object", "properties": {
        "s": {"type": "string"}, "n": {"type": "integer"},
        "l": {"type": "array", "maxItems": 5, "items": {"type": "string"}},
        "m": {"type": "object", "additionalProperties": {"type": "integer"}}}}));
    let object = json!({"s": "text", "n": 7, "l": ["a", "b"], "m": {"k": 1}});
    for (typed, root) in [(Type::Of(&schema), Some(&schema)), (Type::Dyn, None)] {
        if let Ok(program) = Program::compile(text, vec![("self".to_owned(), typed)], root) {
            let variables = [("self", Value::of(&object, root))];
            let _ = program.run(&Named(&variables), &mut 10_000);
        }
    }
});
