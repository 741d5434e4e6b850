//! What a pull tells while it goes on.

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
