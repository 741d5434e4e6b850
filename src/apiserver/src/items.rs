//! The body of a list, written from the objects' bytes only when it is sent: however long the list is, and
//! however slow its reader, a few chunks of it are in memory at a time.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::object::Object;

/// Chunks are closed when they exceed this: a few records of TLS, and nothing that the allocator gives back to
/// the system and asks for again.
const CHUNK_BYTES: usize = 32 << 10;
const TAIL: &[u8] = b"]}";

/// Objects between the text before them and the end of the list. Iterating gives the chunks.
#[derive(Clone)]
pub struct Items {
    head: Bytes,
    objects: std::vec::IntoIter<Arc<Object>>,
    /// Items tell their type, as those of custom resources do.
    typed: bool,
    first: bool,
    left: u64,
}

impl Items {
    /// `head` ends with the bracket that opens the items.
    pub fn new(head: String, objects: Vec<Arc<Object>>, typed: bool) -> Self {
        let lengths = objects.iter().map(|o| if typed { o.written_len() } else { o.item_len() });
        let commas = objects.len().saturating_sub(1);
        let left = head.len() + lengths.sum::<usize>() + commas + TAIL.len();
        let objects = objects.into_iter();
        Self { head: head.into(), objects, typed, first: true, left: left as u64 }
    }

    /// How many bytes are still to come.
    pub fn left(&self) -> u64 {
        self.left
    }
}

impl Iterator for Items {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES + 8192);
        chunk.put_slice(&std::mem::take(&mut self.head));
        while chunk.len() < CHUNK_BYTES {
            let Some(object) = self.objects.next() else {
                chunk.put_slice(TAIL);
                break;
            };
            if !std::mem::take(&mut self.first) {
                chunk.put_u8(b',');
            }
            if self.typed {
                object.write(&mut chunk);
            } else {
                object.write_item(&mut chunk);
            }
        }
        self.left -= chunk.len() as u64;
        Some(chunk.freeze())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::object::encode;

    fn listed(count: u64, typed: bool) -> (Vec<u8>, u64) {
        let objects = (0..count).map(|index| {
            let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": index.to_string()},
                "spec": {"pad": "x".repeat(index as usize % 3000)}});
            // Revisions of all lengths; none, as a dry run has.
            let revision = if index == 3 { 0 } else { 9_u64.pow((index % 19) as u32) };
            Arc::new(Object::from_stored(encode(&value).0, revision, &[]).expect("an object"))
        });
        let items = Items::new("{\"items\":[".into(), objects.collect(), typed);
        let left = items.left();
        (items.flatten().collect(), left)
    }

    #[test]
    fn the_length_is_known_before() {
        for (count, typed) in [(0, false), (1, false), (1, true), (200, false), (200, true)] {
            let (bytes, left) = listed(count, typed);
            assert_eq!(bytes.len() as u64, left, "{count} {typed}");
            let list: Value = serde_json::from_slice(&bytes).expect("JSON");
            let items = list["items"].as_array().expect("items");
            assert_eq!(items.len() as u64, count);
            assert!(items.iter().all(|item| item["kind"].is_string() == typed));
        }
    }
}
