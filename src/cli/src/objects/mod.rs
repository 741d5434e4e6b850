//! Commands on a cluster's objects, with kubectl's words, flags and output: for machines without kubectl.
//! Start at [`Objects`].

pub mod api;
pub mod apply;
pub mod commands;
pub mod cp;
pub mod delete;
pub mod describe;
pub mod error;
pub mod exec;
pub mod get;
pub mod kinds;
pub mod kustomize;
pub mod logs;
pub mod manifest;
mod migrate;
pub mod pods;
pub mod port_forward;
pub mod print;
mod prune;
pub mod run;
pub mod selection;
pub mod session;
pub mod streams;
pub mod top;
pub mod wait;

use std::io::Write;

pub use commands::Objects;
pub use error::Error;
pub use session::{Connection, Session};

/// Writes to standard output; when nobody reads it any more the command ends as one that SIGPIPE ends.
pub fn put(text: &str) -> Result<(), Error> {
    put_bytes(text.as_bytes())
}

/// As [`put`], of any bytes.
pub fn put_bytes(bytes: &[u8]) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Error::Exit { code: 141, text: String::new() },
        _ => Error::Wrong(format!("cannot write: {error}")),
    })
}
