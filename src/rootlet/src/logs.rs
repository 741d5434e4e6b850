//! `rootlet logs`: what a cluster's own processes have written.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::time::Duration;

use anyhow::Context;
use cli::args::Logs;

use crate::lock;
use crate::paths::Paths;

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Carries out `rootlet logs`.
pub fn logs(arguments: &Logs) -> anyhow::Result<()> {
    let paths = Paths::of(&arguments.cluster.name)?;
    let path = paths.log(&arguments.process);
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            anyhow::bail!(paths.not_running());
        }
        opened => opened.with_context(|| format!("cannot read {}", path.display()))?,
    };
    if let Some(lines) = arguments.tail {
        let start = tail(&mut file, lines)?;
        file.seek(SeekFrom::Start(start))?;
    }
    let mut output = io::stdout().lock();
    let mut at = file.stream_position()?;
    loop {
        // A reader that has seen enough closes the pipe.
        match io::copy(&mut file, &mut output).and_then(|copied| output.flush().map(|()| copied)) {
            Ok(copied) => at += copied,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error).context("cannot copy the log"),
        }
        if !arguments.follow {
            return Ok(());
        }
        let ended = !paths.data.exists()
            || (lock::holder(&paths.lock(&arguments.process)).is_none()
                && lock::holder(&paths.lock("up")).is_none());
        let size = file.metadata()?.len();
        if size < at {
            // It was cut.
            at = file.seek(SeekFrom::Start(0))?;
        } else if size == at && ended {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

/// Where the last `lines` lines begin.
fn tail(file: &mut (impl Read + Seek), lines: usize) -> io::Result<u64> {
    let mut starts = std::collections::VecDeque::from([0]);
    let mut reader = BufReader::new(&mut *file);
    let (mut at, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)? as u64;
        if read == 0 {
            break;
        }
        at += read;
        starts.push_back(at);
        if starts.len() > lines.saturating_add(1) {
            starts.pop_front();
        }
    }
    Ok(starts.front().copied().unwrap_or(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found() {
        let text = "one\ntwo\nthree\nhalf";
        for (lines, want) in
            [(0, ""), (1, "half"), (2, "three\nhalf"), (4, text), (9, text), (usize::MAX, text)]
        {
            let start = tail(&mut io::Cursor::new(text), lines).unwrap();
            assert_eq!(&text[start as usize..], want, "{lines}");
        }
        assert_eq!(tail(&mut io::Cursor::new(""), 3).unwrap(), 0);
    }
}
