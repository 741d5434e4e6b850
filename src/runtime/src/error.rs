//! What goes wrong in the runtime, and as which gRPC code callers see it.

use std::io;

use tonic::{Code, Status};

/// An error of the runtime. The codes are those containerd answers, since kubelets act on them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("an error occurred when try to find {kind} {id:?}: not found")]
    NotFound { kind: &'static str, id: String },
    #[error("{0}")]
    InvalidArgument(String),
    #[error("{0}")]
    FailedPrecondition(String),
    #[error("{0}")]
    DeadlineExceeded(String),
    #[error("{0}")]
    Unimplemented(String),
    #[error("{step}: {source}")]
    Io { step: String, source: io::Error },
    #[error("shim of sandbox {id}: {source}")]
    Shim { id: String, source: io::Error },
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Seccomp(#[from] crate::seccomp::Error),
    #[error("{message}")]
    Image { code: Code, message: String },
}

impl Error {
    /// An I/O error with the step that failed.
    pub(crate) fn io(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| Self::Io { step, source }
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::InvalidArgument(_) => Code::InvalidArgument,
            Self::FailedPrecondition(_) => Code::FailedPrecondition,
            Self::DeadlineExceeded(_) => Code::DeadlineExceeded,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::Image { code, .. } => *code,
            Self::Io { .. } | Self::Shim { .. } | Self::Failed(_) | Self::Seccomp(_) => {
                Code::Unknown
            }
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !message.ends_with(&cause_text) {
                message = format!("{message}: {cause_text}");
            }
            source = cause.source();
        }
        Self::new(error.code(), message)
    }
}
