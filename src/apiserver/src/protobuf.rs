//! Answers in protobuf: stored objects straight from their JSON bytes, everything else by its kind.
//!
//! Source: `k8s.io/apimachinery/pkg/runtime/serializer/protobuf`.

use std::borrow::Borrow;

use apimachinery::protobuf::{self, Writer};
use apimachinery::schema::{self, Schema, TypeId};
use apimachinery::{Status, meta};
use bytes::Bytes;
use serde_json::Value;

use crate::object::Object;
use crate::resource::Resource;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
/// `metadata` of every kind.
const METADATA: u32 = 1;
/// `items` of every list.
const ITEMS: u32 = 2;

/// The type of a resource's objects; custom resources have none that protobuf could carry.
pub fn type_of(resource: &Resource) -> Option<(&'static Schema, TypeId)> {
    if resource.custom.is_some() {
        return None;
    }
    let facts = schema::builtin();
    Some((facts, facts.kind(&resource.group, &resource.version, &resource.kind)?))
}

fn write(object: &Object, of: (&Schema, TypeId), out: &mut Writer) -> Result<(), Status> {
    protobuf::from_json(of.0, of.1, &object.json(), out).map_err(Status::internal)
}

/// A stored object as a body, in the version it is stored in.
pub fn object(resource: &Resource, object: &Object) -> Result<Bytes, Status> {
    let of = type_of(resource).ok_or_else(crate::negotiate::not_acceptable)?;
    let mut out = Writer::default();
    write(object, of, &mut out)?;
    Ok(protobuf::envelope(&resource.api_version(), &resource.kind, &out.into_bytes()).into())
}

/// A list of stored objects as a body.
pub fn list(
    resource: &Resource,
    metadata: &Value,
    objects: &[impl Borrow<Object>],
) -> Result<Bytes, Status> {
    let of = type_of(resource).ok_or_else(crate::negotiate::not_acceptable)?;
    let mut out = Writer::default();
    list_metadata(metadata, &mut out)?;
    for object in objects {
        out.message(ITEMS, |out| write(object.borrow(), of, out))?;
    }
    let list_kind = &resource.list_kind;
    Ok(protobuf::envelope(&resource.api_version(), list_kind, &out.into_bytes()).into())
}

fn meta_type(name: &str) -> Result<TypeId, Status> {
    let found = schema::builtin().named(&format!("{META}.{name}"));
    found.ok_or_else(|| Status::internal(format!("no type {name}")))
}

fn list_metadata(metadata: &Value, out: &mut Writer) -> Result<(), Status> {
    let of = meta_type("ListMeta")?;
    out.message(METADATA, |out| protobuf::from_value(schema::builtin(), of, metadata, out))
        .map_err(Status::internal)
}

fn partial(value: &Value, out: &mut Writer) -> Result<(), Status> {
    let of = meta_type("ObjectMeta")?;
    let metadata = &value["metadata"];
    out.message(METADATA, |out| protobuf::from_value(schema::builtin(), of, metadata, out))
        .map_err(Status::internal)
}

/// Any object that says its kind, as a body.
///
/// # Errors
/// 406 for kinds that protobuf does not carry.
pub fn value(value: &Value) -> Result<Bytes, Status> {
    let (api_version, kind) = (meta::api_version(value), meta::kind(value));
    let (group, version) = meta::split_api_version(api_version);
    let mut out = Writer::default();
    let facts = schema::builtin();
    match kind {
        "PartialObjectMetadata" => partial(value, &mut out)?,
        "PartialObjectMetadataList" => {
            list_metadata(&value["metadata"], &mut out)?;
            for item in value["items"].as_array().into_iter().flatten() {
                out.message(ITEMS, |out| partial(item, out))?;
            }
        }
        _ => {
            let of = facts
                .kind(group, version, kind)
                .or_else(|| facts.named(&format!("{META}.{kind}")))
                .ok_or_else(crate::negotiate::not_acceptable)?;
            protobuf::from_value(facts, of, value, &mut out).map_err(Status::internal)?;
        }
    }
    Ok(protobuf::envelope(api_version, kind, &out.into_bytes()).into())
}

#[cfg(test)]
mod tests {
    use apimachinery::protobuf::decode;
    use http_body_util::BodyExt;
    use serde_json::json;
    use tower::Service;

    use super::*;
    use crate::body::Body;
    use crate::tests::{Fixture, config_map};

    const MAPS: &str = "/api/v1/namespaces/default/configmaps";

    /// Content type and decoded body of a GET.
    async fn get(f: &Fixture, path: &str, accept: &str) -> (u16, String, Bytes) {
        let request =
            http::Request::get(path).header("accept", accept).body(Body::Empty).expect("a request");
        let response = f.admin.clone().call(request).await.expect("infallible");
        let code = response.status().as_u16();
        let kind = response.headers()["content-type"].to_str().expect("text").to_owned();
        (code, kind, response.into_body().collect().await.expect("a body").to_bytes())
    }

    fn decoded(bytes: &[u8]) -> Value {
        decode(schema::builtin(), bytes).expect("protobuf")
    }

    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

    #[tokio::test]
    async fn objects_lists_and_failures_come_in_protobuf() {
        let f = Fixture::new().await;
        f.post(MAPS, &config_map("a")).await;
        let json = f.get(&format!("{MAPS}/a")).await.body;
        let (code, kind, bytes) = get(&f, &format!("{MAPS}/a"), PROTOBUF).await;
        assert_eq!((code, kind.as_str()), (200, PROTOBUF));
        assert_eq!(decoded(&bytes), json);
        let (_, _, bytes) = get(&f, MAPS, PROTOBUF).await;
        let list = decoded(&bytes);
        assert_eq!(list["kind"], "ConfigMapList");
        let names: Vec<_> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["metadata"]["name"].clone())
            .collect();
        assert!(names.contains(&json!("a")), "{list}");
        assert!(list["metadata"]["resourceVersion"].is_string());
        // A failure is in the form that was asked for, too.
        let (code, kind, bytes) = get(&f, &format!("{MAPS}/none"), PROTOBUF).await;
        assert_eq!((code, kind.as_str()), (404, PROTOBUF));
        assert_eq!(decoded(&bytes)["message"], "configmaps \"none\" not found");
        // The first form that can be had wins.
        let (_, kind, _) =
            get(&f, MAPS, "application/vnd.kubernetes.protobuf,application/json").await;
        assert_eq!(kind, PROTOBUF);
        let (_, kind, _) =
            get(&f, MAPS, "application/json,application/vnd.kubernetes.protobuf").await;
        assert_eq!(kind, "application/json");
        // Tables have no protobuf form.
        let table = "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io";
        assert_eq!(get(&f, MAPS, table).await.0, 406);
        let (_, kind, _) = get(&f, MAPS, &format!("{table},application/json")).await;
        assert_eq!(kind, "application/json");
    }

    #[tokio::test]
    async fn metadata_alone_comes_in_protobuf() {
        let f = Fixture::new().await;
        f.post(MAPS, &config_map("a")).await;
        for version in ["v1", "v1beta1"] {
            let accept = format!("{PROTOBUF};as=PartialObjectMetadata;v={version};g=meta.k8s.io");
            let (_, kind, bytes) = get(&f, &format!("{MAPS}/a"), &accept).await;
            assert_eq!(kind, PROTOBUF);
            let unknown = &bytes[4..];
            let head = format!("meta.k8s.io/{version}");
            assert!(unknown.windows(head.len()).any(|w| w == head.as_bytes()));
            let entry = b"\x0a\x01a\x12\x01b";
            assert!(!unknown.windows(6).any(|w| w == entry), "it has no data");
            let accept = accept.replace("as=PartialObjectMetadata", "as=PartialObjectMetadataList");
            let (code, kind, _) = get(&f, MAPS, &accept).await;
            assert_eq!((code, kind.as_str()), (200, PROTOBUF));
        }
    }

    #[tokio::test]
    async fn a_watch_is_framed() {
        let f = Fixture::new().await;
        f.post(MAPS, &config_map("a")).await;
        let request =
            http::Request::get(format!("{MAPS}?watch=true&fieldSelector=metadata.name%3Da"))
                .header("accept", "application/vnd.kubernetes.protobuf;stream=watch")
                .body(Body::Empty)
                .expect("a request");
        let response = f.admin.clone().call(request).await.expect("infallible");
        assert_eq!(
            response.headers()["content-type"],
            "application/vnd.kubernetes.protobuf;stream=watch"
        );
        let mut body = response.into_body();
        f.patch(&format!("{MAPS}/a"), "merge", &json!({"data": {"a": "z"}})).await;
        let mut buffer = Vec::new();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            while buffer.len() < 4 || buffer.len() < 4 + length(&buffer) {
                let frame = body.frame().await.expect("more").expect("no error");
                buffer.extend_from_slice(&frame.into_data().expect("data"));
            }
            let rest = buffer.split_off(4 + length(&buffer));
            let event = std::mem::replace(&mut buffer, rest);
            let kind_end = 6 + usize::from(event[5]);
            let kind = String::from_utf8(event[6..kind_end].to_vec()).expect("text");
            let at = event.windows(4).position(|w| w == protobuf::MAGIC).expect("an object");
            seen.push((kind, decoded(&event[at..])["data"]["a"].clone()));
        }
        assert_eq!(seen, [("ADDED".into(), json!("b")), ("MODIFIED".into(), json!("z"))]);
    }

    fn length(buffer: &[u8]) -> usize {
        u32::from_be_bytes(buffer[..4].try_into().expect("four bytes")) as usize
    }

    #[tokio::test]
    async fn bodies_in_protobuf_are_answered_in_protobuf() {
        let f = Fixture::new().await;
        let map = config_map("p");
        let body = value(&map).expect("a built-in kind");
        let request = http::Request::post(MAPS)
            .header("content-type", PROTOBUF)
            .header("accept", PROTOBUF)
            .body(Body::from(body))
            .expect("a request");
        let response = f.admin.clone().call(request).await.expect("infallible");
        assert_eq!(response.status(), 201);
        let made = decoded(&response.into_body().collect().await.expect("a body").to_bytes());
        assert_eq!(made["data"], map["data"]);
        assert!(made["metadata"]["uid"].is_string());
    }

    /// Go's clients write every struct that they hold by value, and zeros; people leave them out.
    #[tokio::test]
    async fn what_comes_in_protobuf_is_stored_as_what_comes_in_json() {
        let f = Fixture::new().await;
        let terse = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
            "spec": {"selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}},
                    "spec": {"containers": [{"name": "c", "image": "i",
                        "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}}}]}}}});
        let wordy = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "a", "namespace": "", "generation": 0, "creationTimestamp": null, "annotations": {}},
            "spec": {"selector": {"matchLabels": {"a": "b"}, "matchExpressions": []}, "strategy": {"type": ""},
                "minReadySeconds": 0, "paused": false,
                "template": {"metadata": {"labels": {"a": "b"}, "creationTimestamp": null},
                    "spec": {"hostNetwork": false, "serviceAccountName": "", "volumes": [],
                        "containers": [{"name": "c", "image": "i", "tty": false, "command": [],
                            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {}}}]}}},
            "status": {"replicas": 0, "conditions": []}});
        let path = "/apis/apps/v1/namespaces/default/deployments";
        let send = async |content_type: &str, body: Bytes| {
            let request = http::Request::post(path).header("content-type", content_type);
            let made = f.send(request, body).await;
            assert_eq!(made.code, 201, "{}", made.body);
            let object = f.get(&format!("{path}/a")).await.body;
            f.request(http::Method::DELETE, &format!("{path}/a"), &json!({})).await;
            let fields = object["metadata"]["managedFields"][0]["fieldsV1"].clone();
            (object["spec"].clone(), object["status"].clone(), fields)
        };
        let json = send("application/json", terse.to_string().into()).await;
        assert_eq!(send("application/json", wordy.to_string().into()).await, json);
        assert_eq!(send(PROTOBUF, value(&terse).expect("built in")).await, json);
        assert_eq!(send(PROTOBUF, value(&wordy).expect("built in")).await, json);
        let container = &json.0["template"]["spec"]["containers"][0];
        assert_eq!(container["resources"], json!({"limits": {"cpu": "1", "memory": "1Gi"}}));
        assert_eq!(json.1, json!({}));
    }
}
