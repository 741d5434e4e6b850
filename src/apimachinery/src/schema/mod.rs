//! The API's types and resources as a table, and look-ups in it.
//!
//! The built-in kinds come from a compiled-in fact table ([`builtin`]); `CustomResourceDefinition`s
//! become another [`Schema`] of the same shape at run time. Every algorithm of this crate walks it.

mod resource;
mod table;

use std::{borrow::Cow, collections::HashMap, sync::Arc, sync::LazyLock, sync::OnceLock};

pub use resource::{Group, Resource, Subresource, is_builtin_group, plural_of, stability};

/// Text that is either part of the compiled-in table or was made at run time.
pub type Text = Cow<'static, str>;

/// Index of a [`Type`] in its [`Schema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub(crate) u32);

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// UTF-8 text.
    String,
    /// Base64 text, `[]byte` in Go.
    Bytes,
    /// 32-bit signed integer.
    Int32,
    /// 64-bit signed integer.
    Int64,
    /// 64-bit float.
    Double,
    /// `true` or `false`.
    Bool,
    /// `resource.Quantity`: text or a number; always rendered as canonical text.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// `metav1.Time`, RFC 3339 in whole seconds.
    Time,
    /// `metav1.MicroTime`, RFC 3339 with six digits of fraction.
    MicroTime,
    /// Any JSON: `RawExtension`, `FieldsV1`, `apiextensions.JSON` and its unions.
    Any,
    /// `[]T`.
    List(Box<Shape>),
    /// `map[string]T`.
    Map(Box<Shape>),
    /// A struct.
    Object(TypeId),
}

impl Shape {
    /// Whether there are values within its values.
    pub fn is_composite(&self) -> bool {
        matches!(self, Self::List(_) | Self::Map(_) | Self::Object(_))
    }
}

/// How server-side apply and strategic merge see a list (`x-kubernetes-list-type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// Replaced as a whole.
    #[default]
    Atomic,
    /// A set of scalars.
    Set,
    /// Items identified by the values of `list_map_keys`.
    Map,
}

/// The `patchStrategy` tag of a Go field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Lists are merged by the merge key, or as a set of scalars.
    pub merge: bool,
    /// Values absent from `$retainKeys` are dropped.
    pub retain_keys: bool,
    /// Replaced as a whole, even though it is an object.
    pub replace: bool,
}

/// One field of a [`Type`].
#[derive(Clone, Debug)]
pub struct Field {
    /// JSON name.
    pub name: Text,
    /// What it holds.
    pub shape: Shape,
    /// Whether OpenAPI calls it required.
    pub required: bool,
    /// Whether Go holds a pointer, so that a zero says something else than absence.
    pub pointer: bool,
    /// Whether Go writes it even when it is empty: no `omitempty`, or a struct by value.
    pub always: bool,
    /// `None` where the table does not say.
    pub list_type: Option<ListType>,
    /// Keys of a [`ListType::Map`].
    pub list_map_keys: Vec<Text>,
    /// `x-kubernetes-map-type` of this use of a type: `Some(true)` is atomic, `Some(false)` granular.
    pub atomic_map: Option<bool>,
    /// Strategic merge.
    pub patch: PatchStrategy,
    /// `patchMergeKey`.
    pub merge_key: Option<Text>,
    /// Protobuf tag, 0 where the field is part of an embedded message ([`Type::embedded`]).
    pub tag: u32,
    /// Protobuf type where it is not what [`Shape`] implies.
    pub proto: Option<Text>,
    /// What an absent field is taken for, where the schema says so (custom resources).
    pub default: Option<serde_json::Value>,
    /// The same facts of the items of a list, or of a map's values, where they are lists or maps again with something
    /// to be said (custom resources).
    pub inner: Option<Box<Field>>,
}

impl Field {
    /// Whether Go leaves `value` out of what it writes, or writes null in its place: lists and maps do not
    /// tell empty from absent, of scalars only pointers do.
    pub fn omits(&self, value: &serde_json::Value) -> bool {
        use serde_json::Value;
        if self.pointer {
            return false;
        }
        match (&self.shape, value) {
            (Shape::List(_), Value::Array(list)) => list.is_empty(),
            (Shape::Map(_), Value::Object(map)) => map.is_empty(),
            _ if self.always => false,
            (Shape::String | Shape::Bytes, Value::String(text)) => text.is_empty(),
            (Shape::Bool, Value::Bool(flag)) => !flag,
            (Shape::Int32 | Shape::Int64 | Shape::Double, Value::Number(number)) => {
                number.as_f64() == Some(0.0)
            }
            _ => false,
        }
    }
}

/// A protobuf field that has no JSON field of its own name: an embedded Go struct, whose fields are
/// inlined in JSON, or the wire form of a scalar type such as `Quantity`.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// Protobuf name.
    pub name: Text,
    /// Protobuf tag.
    pub tag: u32,
    /// Protobuf type, fully qualified.
    pub proto: Text,
    /// Whether it is `repeated`.
    pub repeated: bool,
}

/// A union: at most one of `fields` is set, as `discriminator` says.
#[derive(Clone, Debug)]
pub struct Union {
    /// The field that names the member, if there is one.
    pub discriminator: Option<Text>,
    /// JSON field and the discriminator's value for it.
    pub fields: Vec<(Text, Text)>,
}

/// A struct of the API.
#[derive(Clone, Debug)]
pub struct Type {
    /// OpenAPI definition name, such as `io.k8s.api.core.v1.Pod`.
    pub name: Text,
    /// Group, version and kind, when it is a kind of its own.
    pub gvk: Option<(Text, Text, Text)>,
    /// Sorted by name.
    pub fields: Vec<Field>,
    /// Whether server-side apply treats it as one value.
    pub atomic: bool,
    /// Unions among its fields.
    pub unions: Vec<Union>,
    /// Protobuf parts without a JSON field of the same name.
    pub embedded: Vec<Embedded>,
    /// Whether fields that are not declared are kept (custom resources).
    pub preserve_unknown: bool,
    /// What Go writes for fields that are absent, by their place in `fields` (built-in kinds).
    pub zeros: Vec<(usize, serde_json::Value)>,
    /// Where its fields are, by name.
    pub(crate) places: Places,
}

/// Where the fields of a type are: by a hash of their names, so that one comparison mostly finds a field. Made when it is
/// first asked, for most types never are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places(OnceLock<Box<[u16]>>);

impl Places {
    fn hash(name: &str) -> usize {
        let bytes = name.as_bytes();
        let at = |index: usize| bytes.get(index).copied().map_or(0, usize::from);
        let length = bytes.len();
        let last = at(length.saturating_sub(1));
        at(0) + 5 * at(length / 2) + 31 * last + 71 * at(length / 4) + 131 * length
    }

    fn of(fields: &[Field]) -> Box<[u16]> {
        let mut slots = vec![0; (2 * fields.len() + 1).next_power_of_two()];
        let mask = slots.len() - 1;
        for (index, field) in fields.iter().enumerate() {
            let mut slot = Self::hash(&field.name) & mask;
            while slots[slot] != 0 {
                slot = (slot + 1) & mask;
            }
            // No type has that many.
            slots[slot] = u16::try_from(index + 1).unwrap_or(u16::MAX);
        }
        slots.into()
    }

    fn find(&self, fields: &[Field], name: &str) -> Option<usize> {
        if fields.len() >= usize::from(u16::MAX) {
            return fields.binary_search_by(|f| f.name.as_ref().cmp(name)).ok();
        }
        let slots = self.0.get_or_init(|| Self::of(fields));
        let mask = slots.len() - 1;
        let mut slot = Self::hash(name) & mask;
        loop {
            let index = usize::from(slots[slot].checked_sub(1)?);
            if fields[index].name == name {
                return Some(index);
            }
            slot = (slot + 1) & mask;
        }
    }
}

impl Type {
    /// The field called `name`, case-sensitively.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.place(name).map(|index| &self.fields[index])
    }

    /// Where the field is in `fields`.
    pub(crate) fn place(&self, name: &str) -> Option<usize> {
        self.places.find(&self.fields, name)
    }

    /// What Go writes for the field called `name` when it is absent.
    pub fn zero(&self, name: &str) -> Option<&serde_json::Value> {
        let zero = self.zeros.iter().find(|(at, _)| self.fields[*at].name == name)?;
        Some(&zero.1)
    }

    /// The last part of the name, which is the Go type's: `PodSpec`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// The Go package's last element: `v1`, or `resource` for quantities.
    pub fn package(&self) -> &str {
        self.name.rsplit('.').nth(1).unwrap_or("")
    }

    /// The protobuf message that carries it.
    pub fn message(&self) -> String {
        match self.name.strip_prefix("io.k8s.") {
            Some(rest) => format!("k8s.io.{}", rest.replace('-', "_")),
            None => self.name.to_string(),
        }
    }
}

/// A set of types and the resources made of them.
#[derive(Debug, Default)]
pub struct Schema {
    types: Vec<Type>,
    by_name: HashMap<Text, TypeId>,
    by_kind: Vec<((Text, Text, Text), TypeId)>,
    resources: Vec<Arc<Resource>>,
    messages: HashMap<Text, Vec<Embedded>>,
}

static BUILTIN: LazyLock<Schema> = LazyLock::new(table::parse);

/// The built-in types and resources of Kubernetes 1.36.
pub fn builtin() -> &'static Schema {
    &BUILTIN
}

impl Schema {
    /// A schema of `types`, whose [`Shape::Object`] ids are indexes into it, and `resources`.
    pub fn new(types: Vec<Type>, mut resources: Vec<Resource>) -> Self {
        let id = |i: usize| TypeId(u32::try_from(i).expect("fewer than 2^32 types"));
        let by_name = types.iter().enumerate().map(|(i, t)| (t.name.clone(), id(i))).collect();
        let mut by_kind: Vec<_> = types
            .iter()
            .enumerate()
            .filter_map(|(i, t)| t.gvk.clone().map(|g| (g, id(i))))
            .collect();
        by_kind.sort();
        resources.sort_by(|a, b| a.key().cmp(&b.key()));
        let resources = resources.into_iter().map(Arc::new).collect();
        Self { types, by_name, by_kind, resources, messages: HashMap::new() }
    }

    /// All types.
    pub fn types(&self) -> &[Type] {
        &self.types
    }

    /// The type with this id.
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    /// The type with this OpenAPI definition name.
    pub fn named(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied()
    }

    /// The type of a kind; `group` is empty for the core group.
    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<TypeId> {
        let wanted = (group, version, kind);
        self.by_kind
            .binary_search_by(|((g, v, k), _)| (g.as_ref(), v.as_ref(), k.as_ref()).cmp(&wanted))
            .ok()
            .map(|i| self.by_kind[i].1)
    }

    /// All resources, those that upstream leaves off by default included, sorted by group, version and plural.
    pub fn resources(&self) -> &[Arc<Resource>] {
        &self.resources
    }

    /// The resource at `/apis/{group}/{version}/{plural}`.
    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.resources
            .binary_search_by(|r| r.key().cmp(&(group, version, plural)))
            .ok()
            .map(|i| &self.resources[i])
    }

    /// The resource that serves a kind.
    pub fn resource_of_kind(
        &self,
        group: &str,
        version: &str,
        kind: &str,
    ) -> Option<&Arc<Resource>> {
        self.resources.iter().find(|r| r.group == group && r.version == version && r.kind == kind)
    }

    /// The groups whose resources satisfy `served`, in the order discovery lists them, preferred
    /// version first. The core group has the empty name.
    pub fn groups(&self, served: impl Fn(&Resource) -> bool) -> Vec<Group> {
        resource::groups(self.resources.iter().filter(|r| served(r)))
    }

    /// Protobuf fields of a message that no JSON type carries, such as `AdmissionRequest`.
    pub fn message(&self, name: &str) -> Option<&[Embedded]> {
        self.messages.get(name).map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_found_and_no_other() {
        for of in &builtin().types {
            for (at, field) in of.fields.iter().enumerate() {
                assert_eq!(of.place(&field.name), Some(at), "{}.{}", of.name, field.name);
                assert_eq!(of.place(&field.name.to_uppercase()), None);
            }
            assert_eq!((of.place(""), of.place("größe")), (None, None));
        }
    }

    #[test]
    fn a_pod_is_described() {
        let schema = builtin();
        let pod = schema.get(schema.kind("", "v1", "Pod").expect("pods are built in"));
        assert_eq!(pod.name, "io.k8s.api.core.v1.Pod");
        assert_eq!(pod.message(), "k8s.io.api.core.v1.Pod");
        let Some(Shape::Object(spec)) = pod.field("spec").map(|f| f.shape.clone()) else {
            panic!("spec is an object")
        };
        let containers = schema.get(spec).field("containers").expect("containers");
        assert!(containers.required && containers.patch.merge && !containers.patch.retain_keys);
        assert_eq!(containers.merge_key.as_deref(), Some("name"));
        assert_eq!(containers.list_type, Some(ListType::Map));
        assert_eq!(containers.list_map_keys, ["name"]);
        assert_eq!(containers.tag, 2);
    }

    #[test]
    fn what_go_holds_is_told_where_the_shape_does_not_say_so() {
        let scalar = |shape: &Shape| {
            matches!(
                shape,
                Shape::String | Shape::Bool | Shape::Int32 | Shape::Int64 | Shape::Double
            )
        };
        for of in builtin().types() {
            for field in &of.fields {
                let name = format!("{}.{}", of.name, field.name);
                assert!(
                    !field.pointer || field.required || field.always || scalar(&field.shape),
                    "{name}"
                );
                assert_eq!(of.zero(&field.name).is_some(), field.always, "{name}");
            }
        }
        let zero = |group: &str, kind: &str, field: &str| {
            let schema = builtin();
            schema.get(schema.kind(group, "v1", kind).expect(kind)).zero(field).cloned()
        };
        assert_eq!(
            zero("", "Node", "status").expect("by value")["daemonEndpoints"]["kubeletEndpoint"]["Port"],
            0
        );
        assert_eq!(zero("", "ServiceAccount", "automountServiceAccountToken"), None);
    }

    #[test]
    fn resources_carry_what_discovery_tells() {
        let pods = builtin().resource("", "v1", "pods").expect("pods");
        assert_eq!(pods.singular, "pod");
        assert_eq!(pods.short_names, ["po"]);
        assert_eq!(pods.categories, ["all"]);
        assert!(pods.namespaced && pods.enabled);
        assert_eq!(
            pods.verbs,
            ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        );
        let names: Vec<&str> = pods.subresources.iter().map(|s| s.name.as_ref()).collect();
        assert_eq!(
            names,
            [
                "attach",
                "binding",
                "ephemeralcontainers",
                "eviction",
                "exec",
                "log",
                "portforward",
                "proxy",
                "resize",
                "status"
            ]
        );
        assert_eq!(pods.subresource("exec").expect("exec").verbs, ["create", "get"]);
        assert_eq!(pods.subresource("eviction").expect("eviction").group, "policy");
    }

    #[test]
    fn only_stable_versions_are_on() {
        let schema = builtin();
        let on = |g: &str, v: &str, p: &str| schema.resource(g, v, p).is_some_and(|r| r.enabled);
        assert!(on("apps", "v1", "deployments"));
        assert!(on("autoscaling", "v2", "horizontalpodautoscalers"));
        assert!(!on("storage.k8s.io", "v1beta1", "volumeattributesclasses"));
        assert!(!on("internal.apiserver.k8s.io", "v1alpha1", "storageversions"));
    }

    #[test]
    fn groups_are_in_upstreams_order() {
        let groups = builtin().groups(|r| r.enabled);
        let names: Vec<&str> = groups.iter().map(|g| g.name.as_ref()).collect();
        assert_eq!(names[..4], ["", "apiregistration.k8s.io", "apps", "events.k8s.io"]);
        let autoscaling = groups.iter().find(|g| g.name == "autoscaling").expect("autoscaling");
        assert_eq!(autoscaling.versions, ["v2", "v1"]);
    }

    #[test]
    fn every_served_kind_has_a_type_and_a_list() {
        let schema = builtin();
        for resource in schema.resources() {
            assert!(
                schema.kind(&resource.group, &resource.version, &resource.kind).is_some(),
                "{} has no type",
                resource.kind
            );
            if resource.verbs.iter().any(|v| v == "list") {
                let list = resource.list_kind();
                assert!(schema.kind(&resource.group, &resource.version, &list).is_some(), "{list}");
            }
        }
    }
}
