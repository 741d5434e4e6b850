//! A store's content as one stretch of bytes: saved while the store is in use, and put back so that
//! those who watch see it as changes.
//!
//! ```text
//! "rootlet snapshot 1\n"  (key length u32, key, value length u32, value)*  0xffffffff  CRC-32 of it all
//! ```
//! Numbers are little-endian. Keys that end with a lease are left out: they are gone soon anyway.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{Error, Op, Range, Revision, Store, Txn, TxnOutcome};

const MAGIC: &[u8] = b"rootlet snapshot 1\n";
const END: u32 = u32::MAX;
/// Keys that are read at once.
const PAGE: usize = 500;
/// No key or value is longer.
const LENGTH_MAX: u32 = 1 << 28;

/// What putting a snapshot back did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Keys that were written.
    pub written: usize,
    /// Keys that were removed.
    pub removed: usize,
    /// The store's revision after that.
    pub revision: Revision,
}

/// Why a snapshot could not be put back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The bytes are no snapshot, or not a whole one; nothing was changed.
    #[error("this is no whole snapshot ({0}); nothing was changed")]
    Damaged(&'static str),
    /// The bytes could not be read; nothing was changed.
    #[error("the snapshot cannot be read; nothing was changed")]
    Read(#[from] std::io::Error),
    /// The store failed.
    #[error("the store failed while the snapshot was put back")]
    Store(#[from] Error),
}

struct Saving {
    store: Store,
    range: Range,
    crc: crc32fast::Hasher,
    begun: bool,
    ended: bool,
}

/// All that the store holds now.
pub fn save(store: Store) -> BoxStream<'static, Result<Bytes, Error>> {
    let range = Range { limit: PAGE, ..Range::prefix("") };
    let crc = crc32fast::Hasher::new();
    let saving = Saving { store, range, crc, begun: false, ended: false };
    stream::try_unfold(saving, |mut saving| async move {
        let chunk = saving.next().await?;
        Ok(chunk.map(|chunk| (chunk, saving)))
    })
    .boxed()
}

impl Saving {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.ended {
            return Ok(None);
        }
        let mut chunk = BytesMut::new();
        if !self.begun {
            self.begun = true;
            chunk.put_slice(MAGIC);
            self.range.at = Some(self.store.revision().await?);
        }
        let page = self.store.range(self.range.clone()).await?;
        if let Some(last) = page.kvs.last() {
            let mut start = last.key.to_vec();
            start.push(0);
            self.range.start = start.into();
        }
        for kv in page.kvs.iter().filter(|kv| kv.lease.is_none()) {
            for part in [&kv.key, &kv.value] {
                chunk.put_u32_le(part.len() as u32);
                chunk.put_slice(part);
            }
        }
        if !page.more {
            chunk.put_u32_le(END);
            self.ended = true;
        }
        self.crc.update(&chunk);
        if self.ended {
            chunk.put_u32_le(self.crc.clone().finalize());
        }
        Ok(Some(chunk.freeze()))
    }
}

/// Makes the store hold what `snapshot` holds, and nothing else. Everything is read and checked before
/// anything is changed.
///
/// # Errors
/// See [`RestoreError`].
pub async fn restore(
    store: &Store,
    snapshot: impl AsyncRead + Send + Unpin,
) -> Result<Restored, RestoreError> {
    let wanted = read(snapshot).await?;
    let mut ops = Vec::new();
    let mut have: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    for kv in store.range(Range::prefix("")).await?.kvs {
        if !wanted.contains_key(&kv.key) {
            ops.push(Op::Delete { key: kv.key.clone() });
        }
        have.insert(kv.key, kv.value);
    }
    let removed = ops.len();
    for (key, value) in wanted {
        if have.get(&key) != Some(&value) {
            ops.push(Op::Put { key, value, lease: None });
        }
    }
    let written = ops.len() - removed;
    let mut revision = store.revision().await?;
    for part in ops.chunks(store.largest_txn()) {
        let txn = Txn { compares: Vec::new(), ops: part.to_vec() };
        match store.txn(txn).await? {
            TxnOutcome::Committed { revision: made }
            | TxnOutcome::Conflict { revision: made, .. } => revision = made,
        }
    }
    Ok(Restored { written, removed, revision })
}

/// A reader that remembers the checksum of what it gave.
struct Checked<R> {
    reader: R,
    crc: crc32fast::Hasher,
}

impl<R: AsyncRead + Send + Unpin> Checked<R> {
    async fn bytes(&mut self, length: u32) -> Result<Bytes, RestoreError> {
        if length > LENGTH_MAX {
            return Err(RestoreError::Damaged("a length is too great"));
        }
        let mut bytes = Vec::new();
        let read = (&mut self.reader).take(u64::from(length)).read_to_end(&mut bytes).await?;
        if read < length as usize {
            return Err(RestoreError::Damaged("it ends too early"));
        }
        self.crc.update(&bytes);
        Ok(bytes.into())
    }

    async fn number(&mut self) -> Result<u32, RestoreError> {
        let bytes = self.bytes(4).await?;
        let array = <[u8; 4]>::try_from(&bytes[..]);
        array.map(u32::from_le_bytes).map_err(|_| RestoreError::Damaged("it ends too early"))
    }
}

async fn read(
    snapshot: impl AsyncRead + Send + Unpin,
) -> Result<BTreeMap<Bytes, Bytes>, RestoreError> {
    let mut from = Checked { reader: snapshot, crc: crc32fast::Hasher::new() };
    if from.bytes(MAGIC.len() as u32).await? != MAGIC {
        return Err(RestoreError::Damaged("it does not begin as one"));
    }
    let mut all = BTreeMap::new();
    loop {
        let length = from.number().await?;
        if length == END {
            break;
        }
        let key = from.bytes(length).await?;
        let length = from.number().await?;
        let value = from.bytes(length).await?;
        all.insert(key, value);
    }
    let expected = from.crc.clone().finalize();
    if from.number().await? != expected {
        return Err(RestoreError::Damaged("its checksum is wrong"));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;

    async fn saved(store: &Store) -> Vec<u8> {
        let chunks: Vec<Bytes> = save(store.clone()).try_collect().await.expect("readable");
        chunks.concat()
    }

    async fn content(store: &Store) -> Vec<(Bytes, Bytes)> {
        let all = store.range(Range::prefix("")).await.expect("readable").kvs;
        all.into_iter().map(|kv| (kv.key, kv.value)).collect()
    }

    #[tokio::test]
    async fn what_was_saved_comes_back_as_changes() {
        let store = crate::memory();
        for index in 0..1200 {
            store.put(format!("k{index:04}"), format!("v{index}")).await.expect("put");
        }
        let lease = store.lease_grant(3600).await.expect("granted");
        let op = Op::Put { key: "event".into(), value: "e".into(), lease: Some(lease) };
        store.txn(Txn { compares: vec![], ops: vec![op] }).await.expect("put");
        let bytes = saved(&store).await;
        store.delete("event").await.expect("deleted");
        let before = content(&store).await;

        store.put("k0007", "other").await.expect("put");
        store.delete("k0008").await.expect("deleted");
        store.put("new", "n").await.expect("put");
        let revision = store.revision().await.expect("open");
        let mut watch = store.watch("", "", revision + 1);
        let restored = restore(&store, &bytes[..]).await.expect("whole");
        assert_eq!((restored.written, restored.removed), (2, 1));
        assert_eq!(content(&store).await, before);
        let told = loop {
            let batch = watch.next().await.expect("not over").expect("no error");
            if !batch.events.is_empty() {
                break batch;
            }
        };
        assert_eq!((told.events.len(), told.revision), (3, restored.revision));
        // Once more there is nothing to do.
        let again = restore(&store, &bytes[..]).await.expect("whole");
        assert_eq!((again.written, again.removed), (0, 0));
    }

    #[tokio::test]
    async fn a_damaged_snapshot_changes_nothing() {
        let store = crate::memory();
        store.put("a", "b").await.expect("put");
        let good = saved(&store).await;
        store.put("c", "d").await.expect("put");
        let before = content(&store).await;
        for length in 0..good.len() {
            let cut = restore(&store, &good[..length]).await;
            assert!(matches!(cut, Err(RestoreError::Damaged(_))), "{length}");
        }
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            assert!(restore(&store, &bad[..]).await.is_err(), "{index}");
        }
        assert_eq!(content(&store).await, before);
    }
}
