//! One stored object: its JSON bytes plus the few parsed parts that lookups and selectors need.
//!
//! The bytes are the store's own, shared and not copied. They do not hold `metadata.resourceVersion`,
//! which nobody knows before the commit; it is written in when the object is served, at `splice`.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::fields::{self, Read, Selectable};
use crate::json;
use crate::texts::{Labels, Texts};

/// `"metadata":{`, after which the resource version is written in.
const METADATA: &[u8] = b"\"metadata\":{";
const VERSION: &[u8] = b"\"resourceVersion\":\"";

/// An object at one revision. Cloning is cheap only behind `Arc`, which is how the caches hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// The object as stored: `apiVersion`, `kind` and `metadata` first, without resource version.
    pub raw: Bytes,
    /// Where in `raw` the metadata's first field begins.
    pub(crate) splice: usize,
    /// The store revision that wrote it; `metadata.resourceVersion` in decimal.
    pub revision: u64,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`; empty for cluster-scoped objects.
    pub namespace: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// The field-selector values of its kind other than name and namespace, in the order of the kind's
    /// selectable fields.
    pub fields: Texts,
}

impl Object {
    /// An object from the store's bytes. Bytes that another program wrote in another order are
    /// written anew.
    pub fn from_stored(
        raw: Bytes,
        revision: u64,
        selectable: &[Selectable],
    ) -> Result<Self, serde_json::Error> {
        let (raw, splice) = match splice_of(&raw) {
            Some(splice) => (raw, splice),
            None => encode(&serde_json::from_slice(&raw)?),
        };
        let read = fields::read(&raw, selectable)?;
        Ok(Self::of_parts(raw, splice, revision, read))
    }

    /// An object of which is known what would be read of it; nothing if the bytes are not this server's.
    pub fn from_parts(raw: Bytes, revision: u64, read: Read) -> Option<Self> {
        let splice = splice_of(&raw)?;
        Some(Self::of_parts(raw, splice, revision, read))
    }

    fn of_parts(raw: Bytes, splice: usize, revision: u64, read: Read) -> Self {
        let Read { name, namespace, uid, labels, fields } = read;
        Self { raw, splice, revision, name, namespace, uid, labels, fields }
    }

    /// The same object at another revision, as deletion events carry it.
    #[must_use]
    pub fn at(&self, revision: u64) -> Self {
        Self { revision, ..self.clone() }
    }

    /// `apiVersion`, as the bytes begin with it.
    pub fn api_version(&self) -> &str {
        const HEAD: usize = b"{\"apiVersion\":\"".len();
        let rest = self.raw.get(HEAD..).unwrap_or_default();
        let end = rest.iter().position(|b| *b == b'"').unwrap_or(0);
        std::str::from_utf8(&rest[..end]).unwrap_or_default()
    }

    /// The same object under another `apiVersion`, which holds nothing that JSON escapes.
    #[must_use]
    pub fn with_api_version(&self, api_version: &str) -> Self {
        const HEAD: &[u8] = b"{\"apiVersion\":\"";
        let old = self.api_version().len();
        let mut raw = BytesMut::with_capacity(self.raw.len() + api_version.len());
        raw.put_slice(HEAD);
        raw.put_slice(api_version.as_bytes());
        raw.put_slice(&self.raw[HEAD.len() + old..]);
        let splice = self.splice + api_version.len() - old;
        Self { raw: raw.freeze(), splice, ..self.clone() }
    }

    /// How many bytes [`Object::write`] writes.
    pub fn written_len(&self) -> usize {
        self.raw.len() + self.version_len()
    }

    /// How many bytes [`Object::write_item`] writes.
    pub fn item_len(&self) -> usize {
        self.written_len() - self.splice + 1 + METADATA.len()
    }

    /// How long the resource version is when it is written in.
    fn version_len(&self) -> usize {
        if self.revision == 0 {
            return 0;
        }
        let digits = self.revision.ilog10() as usize + 1;
        VERSION.len() + digits + 1 + usize::from(self.has_more_metadata())
    }

    fn has_more_metadata(&self) -> bool {
        self.raw.get(self.splice) != Some(&b'}')
    }

    /// Writes the object as it is served.
    pub fn write(&self, out: &mut BytesMut) {
        out.put_slice(&self.raw[..self.splice]);
        self.write_rest(out);
    }

    /// Writes the object as an item of a typed list: without `apiVersion` and `kind`.
    pub fn write_item(&self, out: &mut BytesMut) {
        out.put_u8(b'{');
        out.put_slice(METADATA);
        self.write_rest(out);
    }

    fn write_rest(&self, out: &mut BytesMut) {
        // A dry run has no revision.
        if self.revision > 0 {
            out.put_slice(VERSION);
            write_decimal(out, self.revision);
            out.put_u8(b'"');
            if self.has_more_metadata() {
                out.put_u8(b',');
            }
        }
        out.put_slice(&self.raw[self.splice..]);
    }

    /// The object's JSON as served, `metadata.resourceVersion` included.
    pub fn json(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.written_len());
        self.write(&mut out);
        out.freeze()
    }

    /// The whole object, parsed anew: callers that look often keep the result.
    pub fn value(&self) -> Arc<Value> {
        Arc::new(self.to_value())
    }

    /// The whole object for changing, `metadata.resourceVersion` included.
    pub fn to_value(&self) -> Value {
        // The bytes were written by this server's encoder or checked when they were read.
        let value = json::read(&self.raw).or_else(|| serde_json::from_slice(&self.raw).ok());
        let mut value = value.unwrap_or(Value::Null);
        if self.revision > 0 {
            apimachinery::meta::set(&mut value, "resourceVersion", self.revision.to_string());
        }
        value
    }

    /// Parses the object into a typed view, ignoring what `T` does not name. The view does not see
    /// the resource version.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.raw)
    }
}

/// Where the metadata's first field begins, if the bytes are in this server's order.
fn splice_of(raw: &[u8]) -> Option<usize> {
    if !raw.starts_with(b"{\"apiVersion\":") {
        return None;
    }
    // apiVersion and kind are short and free of quotes.
    let window = &raw[..raw.len().min(512)];
    let at = window.windows(METADATA.len()).position(|w| w == METADATA)?;
    (raw[at - 1] == b',').then_some(at + METADATA.len())
}

/// Writing goes on with so much memory; what a larger object needed is given back.
const KEPT_BYTES: usize = 64 << 10;

/// The bytes to store for `value`, and where the resource version is to be written in.
pub fn encode(value: &Value) -> (Bytes, usize) {
    thread_local! {
        static WRITTEN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    WRITTEN.with_borrow_mut(|out| {
        out.clear();
        let splice = write(out, value);
        // They are kept for long, so they take no more memory than they need.
        let bytes = Bytes::copy_from_slice(out);
        out.shrink_to(KEPT_BYTES);
        (bytes, splice)
    })
}

fn write(out: &mut Vec<u8>, value: &Value) -> usize {
    let empty = serde_json::Map::new();
    let object = value.as_object().unwrap_or(&empty);
    out.extend_from_slice(b"{\"apiVersion\":");
    json::write(out, object.get("apiVersion").unwrap_or(&Value::Null));
    out.extend_from_slice(b",\"kind\":");
    json::write(out, object.get("kind").unwrap_or(&Value::Null));
    out.push(b',');
    out.extend_from_slice(METADATA);
    let splice = out.len();
    let metadata = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let mut first = true;
    for (key, v) in metadata.iter().filter(|(k, _)| *k != "resourceVersion") {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        json::write_name(out, key);
        json::write(out, v);
    }
    out.push(b'}');
    let rest =
        object.iter().filter(|(k, _)| !matches!(k.as_str(), "apiVersion" | "kind" | "metadata"));
    for (key, v) in rest {
        out.push(b',');
        json::write_name(out, key);
        json::write(out, v);
    }
    out.push(b'}');
    splice
}

fn write_decimal(out: &mut BytesMut, mut n: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.put_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_resource_version_is_written_in() {
        let value = json!({"kind": "Pod", "apiVersion": "v1", "spec": {"metadata": {}},
            "metadata": {"name": "a", "namespace": "n", "resourceVersion": "7", "labels": {"x": "y"}}});
        let (raw, splice) = encode(&value);
        assert_eq!(splice_of(&raw), Some(splice));
        let object = Object::from_stored(raw, 42, &[]).expect("parses");
        assert_eq!((object.name.as_str(), object.namespace.as_str()), ("a", "n"));
        let served: Value = serde_json::from_slice(&object.json()).expect("is JSON");
        assert_eq!(served["metadata"]["resourceVersion"], "42");
        assert_eq!(served, object.to_value());
        let mut item = BytesMut::new();
        object.write_item(&mut item);
        let item: Value = serde_json::from_slice(&item).expect("is JSON");
        assert!(item.get("kind").is_none());
        assert_eq!(item["spec"], json!({"metadata": {}}));
    }

    #[test]
    fn a_foreign_order_is_written_anew() {
        let raw = Bytes::from_static(
            b"{\"kind\":\"Pod\",\"metadata\":{\"name\":\"a\"},\"apiVersion\":\"v1\"}",
        );
        let object = Object::from_stored(raw, 3, &[]).expect("parses");
        assert_eq!(&object.json()[..], b"{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"resourceVersion\":\"3\",\"name\":\"a\"}}");
    }
}
