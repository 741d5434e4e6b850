//! What a pull tells while it goes on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::digest::Digest;

/// Something happened to a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerEvent {
    /// It will be fetched; its size in bytes.
    Queued { bytes: u64 },
    /// It is in the store already.
    Present { bytes: u64 },
    /// So many bytes have arrived and been handed to unpacking.
    Received { bytes: u64, of: u64 },
    /// The connection broke and is taken up again at this byte.
    Resumed { at: u64 },
    /// It is verified and unpacked.
    Done { bytes: u64 },
}

/// Hears how a pull goes on. Called often and from several threads: be quick.
pub trait Progress: Send + Sync {
    /// The reference was resolved to this digest.
    fn resolved(&self, digest: &Digest) {
        let _ = digest;
    }

    /// `layer` is the digest of the blob.
    fn layer(&self, layer: &Digest, event: LayerEvent);
}

/// How far a pull is, all layers together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulling {
    pub received_bytes: u64,
    pub total_bytes: u64,
}

/// Counts it.
#[derive(Default)]
pub(crate) struct Tally(Mutex<HashMap<Digest, Pulling>>);

impl Tally {
    pub fn sum(&self) -> Pulling {
        let layers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        layers.values().fold(Pulling::default(), |sum, layer| Pulling {
            received_bytes: sum.received_bytes + layer.received_bytes,
            total_bytes: sum.total_bytes + layer.total_bytes,
        })
    }
}

impl Progress for Tally {
    fn layer(&self, layer: &Digest, event: LayerEvent) {
        let (received_bytes, total_bytes) = match event {
            LayerEvent::Queued { bytes } => (0, bytes),
            LayerEvent::Present { bytes } | LayerEvent::Done { bytes } => (bytes, bytes),
            LayerEvent::Received { bytes, of } => (bytes, of),
            LayerEvent::Resumed { .. } => return,
        };
        let mut layers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        layers.insert(layer.clone(), Pulling { received_bytes, total_bytes });
    }
}

/// All who listen to one pull.
#[derive(Default)]
pub(crate) struct Fanout(Mutex<Vec<Arc<dyn Progress>>>);

impl Fanout {
    pub fn add(&self, listener: Option<Arc<dyn Progress>>) {
        self.listeners().extend(listener);
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Arc<dyn Progress>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Fanout {
    fn resolved(&self, digest: &Digest) {
        self.listeners().iter().for_each(|listener| listener.resolved(digest));
    }

    fn layer(&self, layer: &Digest, event: LayerEvent) {
        self.listeners().iter().for_each(|listener| listener.layer(layer, event.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_counted_together() {
        let (tally, a, b) = (Tally::default(), Digest::of(b"a"), Digest::of(b"b"));
        for (layer, event, received, total) in [
            (&a, LayerEvent::Queued { bytes: 10 }, 0, 10),
            (&b, LayerEvent::Queued { bytes: 5 }, 0, 15),
            (&a, LayerEvent::Received { bytes: 4, of: 10 }, 4, 15),
            (&a, LayerEvent::Resumed { at: 4 }, 4, 15),
            (&b, LayerEvent::Present { bytes: 5 }, 9, 15),
            (&a, LayerEvent::Done { bytes: 10 }, 15, 15),
        ] {
            tally.layer(layer, event);
            assert_eq!(tally.sum(), Pulling { received_bytes: received, total_bytes: total });
        }
    }
}
