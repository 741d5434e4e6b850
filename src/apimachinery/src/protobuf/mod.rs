//! Kubernetes' protobuf bodies from and to JSON, by the tags of the type table.
//!
//! Source: `k8s.io/apimachinery/pkg/runtime/serializer/protobuf` (the envelope) and the protobuf encoding
//! guide.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use crate::schema::Type;

pub use decode::{Error, decode};
pub use encode::{Writer, envelope, from_json, from_value, watch_frame};

/// What every body begins with.
pub const MAGIC: &[u8] = b"k8s\0";

/// The JSON field that a protobuf field is, where their names differ.
fn json_name(proto: &str) -> std::borrow::Cow<'_, str> {
    match proto {
        "schema" => "$schema".into(),
        "ref" => "$ref".into(),
        "xKubernetesPreserveUnknownFields" => "x-kubernetes-preserve-unknown-fields".into(),
        "xKubernetesEmbeddedResource" => "x-kubernetes-embedded-resource".into(),
        "xKubernetesIntOrString" => "x-kubernetes-int-or-string".into(),
        "xKubernetesListMapKeys" => "x-kubernetes-list-map-keys".into(),
        "xKubernetesListType" => "x-kubernetes-list-type".into(),
        "xKubernetesMapType" => "x-kubernetes-map-type".into(),
        "xKubernetesValidations" => "x-kubernetes-validations".into(),
        other => other.into(),
    }
}

/// A message's full name, as written in a field of `of`: names without a dot are of the same package.
fn qualified(of: &Type, proto: &str) -> String {
    if proto.contains('.') {
        return proto.trim_start_matches('.').to_owned();
    }
    let own = of.message();
    let package = own.rsplit_once('.').map_or("", |(package, _)| package);
    format!("{package}.{proto}")
}
