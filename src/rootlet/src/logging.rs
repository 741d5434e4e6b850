//! Where the long-running processes' messages go: standard error, which is their log file.

use rustix::fs::{Mode, OFlags};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::tracer::Tracer;

/// Starts logging at `info`, or as `ROOTLET_LOG` says, and collecting the pods' steps.
pub fn start(tracer: Option<Tracer>) {
    let filter = EnvFilter::try_from_env("ROOTLET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // The steps are for `rootlet trace`; in the log they would only repeat it.
    let filter = match format!("{}=off", apimachinery::trace::TARGET).parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_filter(filter);
    tracing_subscriber::registry().with(lines).with(tracer).init();
}

/// Lets go of the pipes to the command that started this process, which may end now.
pub fn detach() {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty());
    if let Ok(null) = null {
        // Failing would only mean that a later write meets a closed pipe.
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
}
