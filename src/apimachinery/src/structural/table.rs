//! A structural schema as a type table, which is what strategic algorithms and server-side apply walk.

use serde_json::Value;

use super::{Additional, Structural};
use crate::schema::{
    self, Field, ListType, PatchStrategy, Places, Schema, Shape, Text, Type, TypeId,
};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The kind that a schema is of.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// API group.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
}

impl Names<'_> {
    /// The OpenAPI definition's name: `com.example.v1.Foo` for `Foo` of `example.com/v1`.
    pub fn definition(&self) -> String {
        let mut parts: Vec<&str> = self.group.split('.').collect();
        parts.reverse();
        format!("{}.{}.{}", parts.join("."), self.version, self.kind)
    }
}

/// A type table of one custom kind.
#[derive(Debug)]
pub struct Compiled {
    /// The types.
    pub schema: Schema,
    /// The kind itself.
    pub of: TypeId,
}

impl Compiled {
    /// Compiles the schema of a kind.
    pub fn new(structural: &Structural, names: Names<'_>) -> Self {
        let mut builder = Builder { types: Vec::new() };
        let name = names.definition();
        let root = builder.object(structural, &name, true);
        let text = |text: &str| Text::Owned(text.to_owned());
        builder.types[root.0 as usize].gvk =
            Some((text(names.group), text(names.version), text(names.kind)));
        Self { schema: Schema::new(builder.types, Vec::new()), of: root }
    }
}

struct Builder {
    types: Vec<Type>,
}

fn field(name: &str, shape: Shape) -> Field {
    Field {
        name: Text::Owned(name.to_owned()),
        shape,
        required: false,
        pointer: false,
        always: false,
        list_type: None,
        list_map_keys: Vec::new(),
        atomic_map: None,
        patch: PatchStrategy::default(),
        merge_key: None,
        tag: 0,
        proto: None,
        default: None,
        inner: None,
    }
}

/// Writes what the schema says of a use of a type into the field; of lists and maps within lists and maps too.
fn add_facts(made: &mut Field, of: &Structural) {
    made.default.clone_from(&of.default);
    if of.kind == "array" {
        made.list_type = Some(of.list_type.unwrap_or(ListType::Atomic));
        made.list_map_keys = of.list_map_keys.iter().map(|k| Text::Owned(k.clone())).collect();
    }
    if of.kind == "object" && of.atomic_map {
        made.atomic_map = Some(true);
    }
    let values: Option<&Structural> = match &of.additional {
        Some(Additional::Of(values)) if of.kind == "object" => Some(values),
        _ => of.items.as_deref().filter(|_| of.kind == "array"),
    };
    let is_nested = |of: &&Structural| {
        of.kind == "array"
            || of.kind == "object"
                && (of.atomic_map || matches!(of.additional, Some(Additional::Of(_))))
    };
    made.inner = values.filter(is_nested).map(|of| {
        let mut inner = field("", Shape::Any);
        add_facts(&mut inner, of);
        Box::new(inner)
    });
}

impl Builder {
    fn reserve(&mut self, name: &str) -> TypeId {
        let id = TypeId(u32::try_from(self.types.len()).expect("fewer than 2^32 types"));
        self.types.push(Type {
            name: Text::Owned(name.to_owned()),
            gvk: None,
            fields: Vec::new(),
            atomic: false,
            unions: Vec::new(),
            embedded: Vec::new(),
            preserve_unknown: false,
            zeros: Vec::new(),
            places: Places::default(),
        });
        id
    }

    fn object(&mut self, of: &Structural, name: &str, is_root: bool) -> TypeId {
        let id = self.reserve(name);
        let mut fields = Vec::new();
        let is_root = is_root || of.embedded;
        if is_root {
            let meta = self.builtin(OBJECT_META);
            fields.push(field("apiVersion", Shape::String));
            fields.push(field("kind", Shape::String));
            fields.push(field("metadata", Shape::Object(meta)));
        }
        for (key, schema) in &of.properties {
            if is_root && matches!(key.as_str(), "apiVersion" | "kind" | "metadata") {
                continue;
            }
            let mut made = field(key, self.shape(schema, &format!("{name}.{key}")));
            made.required = of.required.contains(key);
            add_facts(&mut made, schema);
            fields.push(made);
        }
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let preserve = of.preserve_unknown || matches!(of.additional, Some(Additional::Any(true)));
        let made = &mut self.types[id.0 as usize];
        made.fields = fields;
        made.atomic = of.atomic_map;
        made.preserve_unknown = preserve;
        id
    }

    fn shape(&mut self, of: &Structural, name: &str) -> Shape {
        if of.int_or_string {
            return Shape::IntOrString;
        }
        match of.kind.as_str() {
            "string" => Shape::String,
            "integer" => Shape::Int64,
            "number" => Shape::Double,
            "boolean" => Shape::Bool,
            "array" => match &of.items {
                Some(items) => Shape::List(Box::new(self.shape(items, &format!("{name}.items")))),
                None => Shape::List(Box::new(Shape::Any)),
            },
            "object" => match &of.additional {
                Some(Additional::Of(schema)) => {
                    Shape::Map(Box::new(self.shape(schema, &format!("{name}.values"))))
                }
                _ => Shape::Object(self.object(of, name, false)),
            },
            _ => Shape::Any,
        }
    }

    /// Copies a built-in type and what it refers to into this table.
    fn builtin(&mut self, name: &str) -> TypeId {
        if let Some(at) = self.types.iter().position(|t| t.name == name) {
            return TypeId(u32::try_from(at).expect("fewer than 2^32 types"));
        }
        let facts = schema::builtin();
        let id = self.reserve(name);
        let Some(of) = facts.named(name) else { return id };
        let mut copy = facts.get(of).clone();
        for field in &mut copy.fields {
            self.import(&mut field.shape);
        }
        self.types[id.0 as usize] = copy;
        id
    }

    fn import(&mut self, shape: &mut Shape) {
        match shape {
            Shape::List(of) | Shape::Map(of) => self.import(of),
            Shape::Object(id) => {
                let name = schema::builtin().get(*id).name.clone();
                *id = self.builtin(&name);
            }
            _ => {}
        }
    }
}

impl Structural {
    /// The type table of this schema.
    pub fn compile(&self, names: Names<'_>) -> Compiled {
        Compiled::new(self, names)
    }
}

/// The keys of a list-type map in `item`, as a JSON object; absent keys are left out.
pub(super) fn keys_of(keys: &[String], item: &Value) -> Value {
    keys.iter().filter_map(|key| Some((key.clone(), item.get(key)?.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_becomes_types() {
        let schema = Structural::parse(
            &json!({"type": "object", "required": ["spec"], "properties": {
            "spec": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {
                "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "size": {"x-kubernetes-int-or-string": true}}}}}),
        );
        let compiled = schema.compile(Names { group: "a.io", version: "v1", kind: "Foo" });
        let types = &compiled.schema;
        let root = types.get(compiled.of);
        assert_eq!(root.name, "io.a.v1.Foo");
        assert_eq!(types.kind("a.io", "v1", "Foo"), Some(compiled.of));
        let Some(Shape::Object(meta)) = root.field("metadata").map(|f| f.shape.clone()) else {
            panic!("metadata is an object")
        };
        assert!(types.get(meta).field("ownerReferences").is_some());
        let spec = root.field("spec").expect("spec");
        assert_eq!((spec.required, spec.atomic_map), (true, Some(true)));
        let Shape::Object(spec) = spec.shape else { panic!("spec is an object") };
        let spec = types.get(spec);
        let ports = spec.field("ports").expect("ports");
        assert_eq!(ports.list_type, Some(ListType::Map));
        assert_eq!(ports.list_map_keys, ["name"]);
        assert_eq!(
            spec.field("labels").expect("labels").shape,
            Shape::Map(Box::new(Shape::String))
        );
        assert_eq!(spec.field("size").expect("size").shape, Shape::IntOrString);
        let Shape::Object(free) = spec.field("free").expect("free").shape else {
            panic!("an object")
        };
        assert!(types.get(free).preserve_unknown);
    }
}
