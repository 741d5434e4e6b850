//! The file of events, one in each line; a full one is put aside under the time's name.
//!
//! Source: the flags `--audit-log-…` and the file names of lumberjack.

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::batch::{Mode, Queue};
use super::{Error, Options, truncate};

const DEFAULT_MEGABYTES: u64 = 100;
/// What compressed files end in.
const COMPRESSED: &str = ".gz";

/// An open log.
pub struct Log {
    path: PathBuf,
    limit: u64,
    max_age: Option<Duration>,
    max_backups: usize,
    compress: bool,
    mode: Mode,
    truncate: Option<truncate::Options>,
    queue: Queue,
    open: Mutex<Option<(File, u64)>>,
}

impl Log {
    /// Opens the log to append to it.
    pub fn open(path: &Path, options: &Options) -> Result<Self, Error> {
        let megabytes = match options.max_size_megabytes {
            0 => DEFAULT_MEGABYTES,
            size => size,
        };
        let days = options.max_age_days;
        let log = Self {
            path: path.to_owned(),
            limit: megabytes << 20,
            max_age: (days > 0).then(|| Duration::from_secs(days * 24 * 60 * 60)),
            max_backups: options.max_backups,
            compress: options.compress,
            mode: options.mode,
            truncate: options.truncate,
            queue: Queue::new(&options.batch),
            open: Mutex::new(None),
        };
        if !log.is_standard_output() {
            let opened = log.append().map_err(|source| Error::Io {
                action: "write",
                path: path.to_owned(),
                source,
            })?;
            *log.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(opened);
        }
        Ok(log)
    }

    fn is_standard_output(&self) -> bool {
        self.path.as_os_str() == "-"
    }

    fn append(&self) -> std::io::Result<(File, u64)> {
        if let Some(parent) = self.path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
        let size = file.metadata()?.len();
        Ok((file, size))
    }

    /// Takes an event; false when its request is to fail.
    pub fn take(&self, event: &Value) -> bool {
        let event = match &self.truncate {
            None => Cow::Borrowed(event),
            Some(truncate) => match truncate.cut(event) {
                Some(cut) => cut,
                None => return true,
            },
        };
        if self.mode == Mode::Batch {
            if !self.queue.push(event.into_owned()) {
                tracing::error!("an audit event is lost: audit buffer queue blocked");
            }
            return true;
        }
        self.write(&event) || self.mode != Mode::BlockingStrict
    }

    /// Writes what waits, until `shutdown`, and then what is left.
    pub async fn run(&self, shutdown: CancellationToken) {
        let Some(mut waiting) = self.queue.take().filter(|_| self.mode == Mode::Batch) else {
            return;
        };
        let write = |events: &[Value]| {
            for event in events {
                self.write(event);
            }
        };
        while !shutdown.is_cancelled() {
            write(&waiting.next(&shutdown).await);
        }
        loop {
            let rest = waiting.rest().await;
            if rest.is_empty() {
                return;
            }
            write(&rest);
        }
    }

    /// Writes an event; false when that fails.
    fn write(&self, event: &Value) -> bool {
        let mut line = event.to_string();
        line.push('\n');
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.write_line(&mut open, line.as_bytes());
        if let Err(error) = &written {
            tracing::error!(path = %self.path.display(), %error, "cannot write the audit log");
        }
        written.is_ok()
    }

    fn write_line(&self, open: &mut Option<(File, u64)>, line: &[u8]) -> std::io::Result<()> {
        if self.is_standard_output() {
            return std::io::stdout().lock().write_all(line);
        }
        if open.as_ref().is_some_and(|(_, size)| size + line.len() as u64 > self.limit) {
            *open = None;
            let aside = self.aside();
            fs::rename(&self.path, &aside)?;
            self.forget();
            if self.compress {
                std::thread::spawn(move || {
                    if let Err(error) = compress(&aside) {
                        let path = aside.display();
                        tracing::warn!(%path, %error, "cannot compress an old audit log");
                    }
                });
            }
        }
        if open.is_none() {
            *open = Some(self.append()?);
        }
        if let Some((file, size)) = open {
            file.write_all(line)?;
            *size += line.len() as u64;
        }
        Ok(())
    }

    fn names(&self) -> (String, String) {
        let text = |part: Option<&std::ffi::OsStr>| {
            part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let extension = text(self.path.extension());
        let dotted = if extension.is_empty() { extension } else { format!(".{extension}") };
        (format!("{}-", text(self.path.file_stem())), dotted)
    }

    /// `audit-2026-01-31T12-00-00.000.log`
    fn aside(&self) -> PathBuf {
        let (prefix, extension) = self.names();
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S%.3f").to_string();
        self.path.with_file_name(format!("{prefix}{now}{extension}"))
    }

    /// Removes old files that are too many or too old.
    fn forget(&self) {
        let (prefix, extension) = self.names();
        let Some(Ok(entries)) = self.path.parent().map(fs::read_dir) else { return };
        let mut aside: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.strip_prefix(&prefix)
                    .map(|rest| rest.strip_suffix(COMPRESSED).unwrap_or(rest))
                    .and_then(|rest| rest.strip_suffix(&extension))
                    .is_some_and(|time| time.starts_with(|c: char| c.is_ascii_digit()))
            })
            .collect();
        aside.sort();
        aside.reverse();
        for (index, path) in aside.iter().enumerate() {
            let written = fs::metadata(path).and_then(|meta| meta.modified());
            let age = written.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
            let old = self.max_age.is_some_and(|max| age.is_some_and(|age| age > max));
            let many = self.max_backups > 0 && index >= self.max_backups;
            if (old || many)
                && let Err(error) = fs::remove_file(path)
            {
                tracing::warn!(path = %path.display(), %error, "cannot remove an old audit log");
            }
        }
    }
}

/// Puts the compressed file in the place of the plain one, which is there until the other is whole.
fn compress(plain: &Path) -> std::io::Result<()> {
    let mut name = plain.as_os_str().to_owned();
    name.push(COMPRESSED);
    let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).clone();
    let mut out = GzEncoder::new(options.open(&name)?, Compression::default());
    let done = std::io::copy(&mut File::open(plain)?, &mut out).and_then(|_| out.finish());
    match done {
        Ok(file) => file.sync_all().and_then(|()| fs::remove_file(plain)),
        Err(error) => fs::remove_file(&name).and(Err(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_put_aside_and_old_ones_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("audit.log");
        let options = Options { max_backups: 2, ..Options::default() };
        let mut log = Log::open(&path, &options).expect("a log");
        log.limit = 40;
        for number in 0..8 {
            log.write(&serde_json::json!({"number": number, "pad": "xxxxxxxx"}));
            // Names have milliseconds.
            let named = jiff::Timestamp::now().as_millisecond();
            while jiff::Timestamp::now().as_millisecond() == named {
                std::hint::spin_loop();
            }
        }
        let mut files: Vec<String> = fs::read_dir(dir.path())
            .expect("it is there")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        files.sort();
        assert_eq!(files.len(), 3, "{files:?}");
        assert_eq!(files.last().map(String::as_str), Some("audit.log"));
        let last = fs::read_to_string(&path).expect("text");
        assert!(last.contains("\"number\":7") && last.lines().count() == 1, "{last}");
    }

    #[test]
    fn files_that_are_put_aside_are_compressed() {
        let dir = tempfile::tempdir().expect("a directory");
        let plain = dir.path().join("audit-2026-01-31T12-00-00.000.log");
        fs::write(&plain, "{}\n".repeat(100)).expect("written");
        compress(&plain).expect("compressed");
        assert!(!plain.exists());
        let packed = File::open(dir.path().join("audit-2026-01-31T12-00-00.000.log.gz"));
        let unpacked = std::io::read_to_string(flate2::read::GzDecoder::new(packed.expect("it")));
        assert_eq!(unpacked.expect("text"), "{}\n".repeat(100));
        // They count among the old ones.
        let options = Options { max_backups: 1, ..Options::default() };
        let log = Log::open(&dir.path().join("audit.log"), &options).expect("a log");
        fs::write(dir.path().join("audit-2026-02-01T12-00-00.000.log"), "").expect("written");
        log.forget();
        assert!(!dir.path().join("audit-2026-01-31T12-00-00.000.log.gz").exists());
    }
}
