//! What an image may cost before it is refused.

/// Bounds on foreign input. An image that passes one of them is refused with
/// [`Error::TooLarge`](crate::Error::TooLarge), which names the bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of files one layer may unpack to, holes of sparse files included.
    pub layer_bytes: u64,
    /// Entries one layer may have.
    pub layer_entries: u64,
    /// Layers one image may have. The kernel stacks at most 500.
    pub layers: usize,
    /// Bytes of a path or link target (PATH_MAX).
    pub path_bytes: usize,
    /// Bytes of all extended attributes of one entry.
    pub xattr_bytes: usize,
    /// Bytes of one tar extension header (pax record block, GNU long name).
    pub extension_bytes: u64,
    /// Bytes of a manifest or index.
    pub manifest_bytes: u64,
    /// Bytes of an image configuration.
    pub config_bytes: u64,
    /// Indexes within indexes.
    pub index_depth: usize,
    /// Layers that are fetched and unpacked at the same time.
    pub parallel_layers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 64 << 30,
            layer_entries: 4_000_000,
            layers: 450,
            path_bytes: 4096,
            xattr_bytes: 128 << 10,
            extension_bytes: 1 << 20,
            manifest_bytes: 4 << 20,
            config_bytes: 8 << 20,
            index_depth: 4,
            parallel_layers: 4,
        }
    }
}
