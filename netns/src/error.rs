//! What can go wrong in the node network.

use std::borrow::Cow;
use std::io;

/// Each variant names the operation and the object; the cause is its source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("cannot {operation}")]
    System {
        /// What was attempted, with its object.
        operation: String,
        /// The error of the call.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("cannot {operation}{detail}")]
    Netlink {
        /// What the request was for.
        operation: Cow<'static, str>,
        /// The kernel's explanation in parentheses, when it gave one.
        detail: String,
        /// The errno it answered with.
        #[source]
        source: io::Error,
    },
    /// The pod range cannot be used as one.
    #[error(
        "pod range {cidr} with gateway {gateway} is not usable: it must be IPv4, /30 or larger, and contain the gateway"
    )]
    Range {
        /// The range.
        cidr: String,
        /// The gateway.
        gateway: String,
    },
    /// Every address of the pod range is in use.
    #[error("all {used} addresses of {cidr} are in use: delete pods or use a larger range")]
    Exhausted {
        /// The range.
        cidr: String,
        /// How many are in use.
        used: usize,
    },
    /// The request makes no sense; the text says what is wrong.
    #[error("{0}")]
    Invalid(String),
    /// The node process answered with an error.
    #[error("{message}")]
    Remote {
        /// Its text, causes included.
        message: String,
    },
    /// The node network's thread is gone: the node is shutting down.
    #[error("the node network is shut down")]
    Closed,
}

impl Error {
    pub(crate) fn system(operation: impl Into<String>, source: io::Error) -> Self {
        Self::System { operation: operation.into(), source }
    }

    pub(crate) fn netlink(
        operation: impl Into<Cow<'static, str>>,
        source: io::Error,
        text: &str,
    ) -> Self {
        let detail = if text.is_empty() { String::new() } else { format!(" ({text})") };
        Self::Netlink { operation: operation.into(), detail, source }
    }

    /// The errno behind this error, if a system call is.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::System { source, .. } | Self::Netlink { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// The error with its causes, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
