//! What kinds and fields are for, in words: packed at build time, unpacked while documents are made.

use std::collections::HashMap;
use std::io::Read as _;

use serde_json::Value;

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.json.gz"));

/// Descriptions by the name of the definition and of its field.
#[derive(Default)]
pub struct Descriptions(HashMap<String, HashMap<String, String>>);

impl Descriptions {
    /// Unpacks all.
    pub fn unpack() -> Self {
        let mut text = Vec::new();
        let unpacked = flate2::read::GzDecoder::new(PACKED).read_to_end(&mut text);
        // They were packed when this was built.
        Self(unpacked.ok().and_then(|_| serde_json::from_slice(&text).ok()).unwrap_or_default())
    }

    /// Adds what is known of `definition` itself.
    pub fn describe(&self, definition: &str, schema: &mut Value) {
        self.add(definition, "", schema);
    }

    /// Adds what is known of a field.
    pub fn describe_field(&self, definition: &str, field: &str, schema: &mut Value) {
        self.add(definition, field, schema);
    }

    fn add(&self, definition: &str, field: &str, schema: &mut Value) {
        if let (Some(text), Value::Object(map)) =
            (self.0.get(definition).and_then(|of| of.get(field)), schema)
        {
            map.insert("description".into(), text.as_str().into());
        }
    }
}
