//! A container's last words.
//!
//! Source of behaviour: `getTerminationMessage` in `kuberuntime_container.go`.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::labels;
use crate::logs;
use crate::observe::Observed;

/// Most of the file that is read.
const MAX_BYTES: u64 = 4096;
/// Most of the log that stands in for it.
const MAX_LOG_BYTES: usize = 2048;
const MAX_LOG_LINES: usize = 80;

/// What an ended container left in its termination message file, or at the end of its log if it
/// failed without a word and its policy says so; else the runtime's own message.
pub fn message(observed: &Observed) -> String {
    let mut text = String::new();
    if let Some(path) = &observed.termination_log
        && let Ok(file) = File::open(path)
    {
        let mut bytes = Vec::new();
        if file.take(MAX_BYTES).read_to_end(&mut bytes).is_ok() {
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
    }
    let fallback = observed.annotations.get(labels::TERMINATION_MESSAGE_POLICY).map(String::as_str)
        == Some("FallbackToLogsOnError");
    if text.is_empty() && fallback && observed.exit_code != 0 {
        text = logs::tail(Path::new(&observed.log_path), MAX_LOG_LINES, MAX_LOG_BYTES);
    }
    if text.is_empty() { observed.message.clone() } else { text }
}
