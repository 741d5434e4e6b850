//! libcontainer's errors lose their cause on the way up; its tracing output has it. This keeps
//! the error events of this process and of the children it clones in one anonymous file.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The target of errors that are meant for the user as they are.
pub const PLAIN: &str = "rootlet::plain";

struct ErrorFile(File);

/// Installs the subscriber; returns the file the errors go to.
pub fn install() -> Option<File> {
    let memfd: OwnedFd =
        rustix::fs::memfd_create("errors", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
    let file = File::from(memfd);
    tracing::subscriber::set_global_default(ErrorFile(file.try_clone().ok()?)).ok()?;
    Some(file)
}

/// The error to show: a plain one if there is one, else the first, which is nearest to the cause.
pub fn last(file: &File) -> Option<String> {
    let length = file.metadata().ok()?.len();
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.split('\0').filter(|line| !line.is_empty());
    let plain = text.split('\0').find_map(|line| line.strip_prefix(PLAIN));
    plain.or_else(|| lines.next()).map(str::to_owned)
}

impl Subscriber for ErrorFile {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let prefix = if event.metadata().target() == PLAIN { PLAIN } else { "" };
        // One write, since parent and children share the file's position.
        let _ =
            (&self.0).write_all(format!("{prefix}{}{}\0", text.message, text.fields).as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, ", {name}={value:?}"),
        };
    }
}
