//! Everything that can go wrong with an image.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a caller does about an error: the kubelet chooses its back-off and its words by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The reference, a file or an option is wrong as written.
    Invalid,
    /// The registry, or this store, has no such image.
    NotFound,
    /// The registry wants other credentials.
    Unauthorized,
    /// The registry did not answer, or not with anything useful.
    Unreachable,
    /// Bytes are not what their digest or format promises.
    Corrupt,
    /// A bound of [`Limits`](crate::Limits) was passed.
    TooLarge,
    /// No space left.
    DiskFull,
    /// A format that is known and not handled.
    Unsupported,
    /// Somebody still uses it.
    InUse,
    /// The file system or the kernel refused.
    Io,
}

/// An error of the image store. Each variant names the object, and `Display` tells the whole cause: these
/// texts end up in statuses and events, where no chain is walked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("invalid reference {reference:?}: {reason}")]
    InvalidReference { reference: String, reason: String },

    #[error("{what}: not found")]
    NotFound { what: String },

    #[error("{what}: {reason}")]
    Unauthorized { what: String, reason: String },

    #[error("{what}: {reason}")]
    Unreachable { what: String, reason: String },

    #[error("{what} is corrupt: {reason}")]
    Corrupt { what: String, reason: String },

    #[error("layer refused: entry {entry}: {reason}")]
    Hostile { entry: String, reason: String },

    #[error("{what} is too large: {limit}")]
    TooLarge { what: String, limit: String },

    #[error("no space left on device: {operation} {}", path.display())]
    DiskFull { operation: &'static str, path: PathBuf },

    #[error("{what}: {reason}")]
    Unsupported { what: String, reason: String },

    #[error("{what} is in use by {user}")]
    InUse { what: String, user: String },

    #[error(
        "image store {} is in use by another process; stop it, or choose another directory",
        path.display()
    )]
    Locked { path: PathBuf },

    #[error("{}: {reason}", path.display())]
    Configuration { path: PathBuf, reason: String },

    #[error("cannot {operation} {}: {cause}", path.display())]
    Io { operation: &'static str, path: PathBuf, cause: io::Error },

    /// One failed pull seen by all who waited for it.
    #[error(transparent)]
    Shared(Arc<Error>),

    /// The same, told together with what was being done.
    #[error("{what}: {cause}")]
    Context { what: String, cause: Box<Error> },
}

impl Error {
    /// Which kind of remedy applies.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidReference { .. } | Self::Configuration { .. } => ErrorKind::Invalid,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Unauthorized { .. } => ErrorKind::Unauthorized,
            Self::Unreachable { .. } => ErrorKind::Unreachable,
            Self::Corrupt { .. } | Self::Hostile { .. } => ErrorKind::Corrupt,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::DiskFull { .. } => ErrorKind::DiskFull,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::InUse { .. } | Self::Locked { .. } => ErrorKind::InUse,
            Self::Io { .. } => ErrorKind::Io,
            Self::Shared(error) => error.kind(),
            Self::Context { cause, .. } => cause.kind(),
        }
    }

    /// Wraps an I/O error; a full disk or quota becomes [`Error::DiskFull`].
    pub(crate) fn io(
        operation: &'static str,
        path: impl AsRef<Path>,
        cause: impl Into<io::Error>,
    ) -> Self {
        let cause = cause.into();
        let path = path.as_ref().to_owned();
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { operation, path }
            }
            _ => Self::Io { operation, path, cause },
        }
    }

    pub(crate) fn corrupt(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Corrupt { what: what.into(), reason: reason.to_string() }
    }

    pub(crate) fn unsupported(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Unsupported { what: what.into(), reason: reason.to_string() }
    }

    pub(crate) fn context(self, what: impl Into<String>) -> Self {
        Self::Context { what: what.into(), cause: Box::new(self) }
    }
}
