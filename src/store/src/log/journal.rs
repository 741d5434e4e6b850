//! A file of commits, one after the other, which the redb file takes over from time to time: an
//! append and one sync is all that a commit waits for.
//!
//! The file is written over from its beginning each time round, so that its blocks are there already
//! and a sync has no metadata to write. Frames of the last time round, and what is left of writes
//! that failed, are told apart by the checksum: it covers the number of the round, and that of the
//! frame before.
//!
//! ```text
//! frame: payload length u64, CRC-32 of (round, checksum before, payload) u32, payload
//! payload: records u32 (revision u64, place u32, length u32, bytes)*,
//!          granted u32 (lease i64, seconds i64)*, revoked u32 (lease i64)*
//! ```
//! Numbers are little-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::embedded::io_error;
use super::record::take;
use super::{Commit, Position, Record};
use crate::{Error, LeaseId};

const HEADER: usize = 8 + 4;
/// The most bytes that are kept for the next frame.
const BUFFER_KEPT: usize = 1 << 20;

/// What a journal is written on.
pub(crate) trait Medium: Send {
    fn read(&self) -> io::Result<Vec<u8>>;
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
    /// Gives its room back.
    fn clear(&self) -> io::Result<()>;
}

impl Medium for File {
    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.metadata()?.len()).unwrap_or(usize::MAX)];
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn clear(&self) -> io::Result<()> {
        self.set_len(0)
    }
}

/// See the module.
pub(crate) struct Journal {
    medium: Box<dyn Medium>,
    path: PathBuf,
    /// Which time round it is.
    round: u64,
    /// Where the next frame goes.
    end: u64,
    /// The checksum of the last frame.
    checksum: u32,
    /// No frame may follow in this round. Either the round may be over already, or after the last
    /// frame lies a part of one that did not come about: sectors that such parts have in common
    /// could make one whole later on.
    torn: bool,
    buffer: Vec<u8>,
}

impl Journal {
    /// Opens the journal in its `round`th time round, with the commits that it holds of it.
    pub fn open(
        path: &Path,
        medium: Box<dyn Medium>,
        round: u64,
    ) -> Result<(Self, Vec<Commit>), Error> {
        let mut journal = Self {
            medium,
            path: path.to_owned(),
            round,
            end: 0,
            checksum: 0,
            torn: false,
            buffer: Vec::new(),
        };
        let bytes = journal.medium.read().map_err(|source| io_error(path, "read", source))?;
        let mut commits = Vec::new();
        let mut rest = &bytes[..];
        while let Some(frame) = Frame::read(rest, round, journal.checksum) {
            if !frame.whole {
                // The next frame was only begun when this one was safe: it has been damaged since.
                let next = Frame::read(frame.rest, round, frame.checksum);
                if next.is_some_and(|next| next.whole) {
                    return Err(journal.damaged("frame with a wrong checksum"));
                }
                break;
            }
            commits.push(decode(frame.payload).map_err(|detail| journal.damaged(detail))?);
            journal.end += (HEADER + frame.payload.len()) as u64;
            journal.checksum = frame.checksum;
            rest = frame.rest;
        }
        journal.torn = !bytes.is_empty();
        if !commits.is_empty() {
            // What is told from now on must not be lost; it may never have been synced.
            journal.medium.sync().map_err(|source| io_error(path, "write", source))?;
        }
        Ok((journal, commits))
    }

    fn damaged(&self, detail: &str) -> Error {
        Error::Corrupt { path: self.path.clone(), detail: detail.to_owned() }
    }

    /// The bytes of this time round.
    pub fn len(&self) -> u64 {
        self.end
    }

    /// The next frame needs a new round.
    pub fn torn(&self) -> bool {
        self.torn
    }

    /// Which time round it is.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// Makes `commit` durable; a failure leaves the journal torn.
    pub fn append(&mut self, commit: &Commit) -> Result<(), Error> {
        self.buffer.clear();
        self.buffer.resize(HEADER, 0);
        encode_into(commit, &mut self.buffer);
        let (header, payload) = self.buffer.split_at_mut(HEADER);
        let checksum = checksum(self.round, self.checksum, payload);
        header[..8].copy_from_slice(&(payload.len() as u64).to_le_bytes());
        header[8..].copy_from_slice(&checksum.to_le_bytes());
        let written =
            self.medium.write_at(self.end, &self.buffer).and_then(|()| self.medium.sync());
        self.torn = written.is_err();
        let length = self.buffer.len() as u64;
        if length > BUFFER_KEPT as u64 {
            self.buffer = Vec::new();
        }
        written.map_err(|source| io_error(&self.path, "write", source))?;
        self.end += length;
        self.checksum = checksum;
        Ok(())
    }

    /// Leaves it open whether this time round is over.
    pub fn tear(&mut self) {
        self.torn = true;
    }

    /// Begins the next time round: all that the journal holds is safe elsewhere.
    pub fn turn(&mut self) {
        self.round += 1;
        self.end = 0;
        self.checksum = 0;
        self.torn = false;
    }

    /// Gives the room back; only right after [`Self::turn`].
    pub fn clear(&self) -> Result<(), Error> {
        self.medium.clear().map_err(|source| io_error(&self.path, "close", source))
    }
}

fn checksum(round: u64, before: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&round.to_le_bytes());
    hasher.update(&before.to_le_bytes());
    hasher.update(&(payload.len() as u64).to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

struct Frame<'a> {
    payload: &'a [u8],
    /// What it says, which is right when it is whole.
    checksum: u32,
    whole: bool,
    rest: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame that `bytes` begin with, if there is room for one.
    fn read(bytes: &'a [u8], round: u64, before: u32) -> Option<Self> {
        let mut rest = bytes;
        let length = u64::from_le_bytes(take(&mut rest).ok()?);
        let said = u32::from_le_bytes(take(&mut rest).ok()?);
        let (payload, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        let whole = said == checksum(round, before, payload);
        Some(Self { payload, checksum: said, whole, rest })
    }
}

fn encode_into(commit: &Commit, buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&(commit.records.len() as u32).to_le_bytes());
    for record in &commit.records {
        buffer.extend_from_slice(&record.position.revision.to_le_bytes());
        buffer.extend_from_slice(&record.position.sub.to_le_bytes());
        let at = buffer.len();
        buffer.extend_from_slice(&[0; 4]);
        record.encode_into(buffer);
        let length = (buffer.len() - at - 4) as u32;
        buffer[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }
    buffer.extend_from_slice(&(commit.granted.len() as u32).to_le_bytes());
    for (id, ttl_s) in &commit.granted {
        buffer.extend_from_slice(&id.to_le_bytes());
        buffer.extend_from_slice(&ttl_s.to_le_bytes());
    }
    buffer.extend_from_slice(&(commit.revoked.len() as u32).to_le_bytes());
    for id in &commit.revoked {
        buffer.extend_from_slice(&id.to_le_bytes());
    }
}

fn decode(payload: &[u8]) -> Result<Commit, &'static str> {
    let mut rest = payload;
    let mut commit = Commit::default();
    for _ in 0..u32::from_le_bytes(take(&mut rest)?) {
        let revision = u64::from_le_bytes(take(&mut rest)?);
        let sub = u32::from_le_bytes(take(&mut rest)?);
        let length = u32::from_le_bytes(take(&mut rest)?) as usize;
        let (bytes, after) = rest.split_at_checked(length).ok_or("frame cut short")?;
        commit.records.push(Record::decode(Position { revision, sub }, bytes)?);
        rest = after;
    }
    for _ in 0..u32::from_le_bytes(take(&mut rest)?) {
        let id = LeaseId::from_le_bytes(take(&mut rest)?);
        commit.granted.push((id, i64::from_le_bytes(take(&mut rest)?)));
    }
    for _ in 0..u32::from_le_bytes(take(&mut rest)?) {
        commit.revoked.push(LeaseId::from_le_bytes(take(&mut rest)?));
    }
    Ok(commit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EventKind, KeyValue};

    fn commit(revision: u64, length: usize) -> Commit {
        let kv = KeyValue {
            key: format!("key-{revision}").into(),
            value: vec![b'x'; length].into(),
            mod_revision: revision,
            ..KeyValue::default()
        };
        let position = Position::first(revision);
        let record = Record { position, previous: None, kind: EventKind::Put, kv };
        Commit { records: vec![record], granted: vec![(7, 60)], revoked: vec![8, 9] }
    }

    fn open(path: &Path, round: u64) -> Result<(Journal, Vec<u64>), Error> {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(path);
        let (journal, commits) = Journal::open(path, Box::new(file.expect("a file")), round)?;
        let revisions = commits.iter().map(|commit| {
            assert_eq!((&commit.granted[..], &commit.revoked[..]), (&[(7, 60)][..], &[8, 9][..]));
            commit.records[0].position.revision
        });
        Ok((journal, revisions.collect()))
    }

    #[test]
    fn what_was_appended_is_there_again_but_for_earlier_rounds() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let (mut journal, found) = open(&path, 3).expect("a new journal");
        assert_eq!((found, journal.round()), (vec![], 3));
        for revision in 2..6 {
            journal.append(&commit(revision, 100)).expect("room");
        }
        assert_eq!(open(&path, 3).expect("whole").1, [2, 3, 4, 5]);
        journal.turn();
        assert_eq!((journal.len(), journal.round()), (0, 4));
        // As long as the first, so that what follows are whole frames, of another round.
        journal.append(&commit(6, 100)).expect("room");
        assert_eq!(open(&path, 4).expect("whole").1, [6]);
        assert!(open(&path, 4).expect("whole").0.torn());
        journal.append(&commit(7, 30)).expect("room");
        assert_eq!(open(&path, 4).expect("whole").1, [6, 7]);
        assert_eq!(open(&path, 5).expect("another round").1, Vec::<u64>::new());
    }

    #[test]
    fn a_frame_cut_short_did_not_happen_and_a_damaged_one_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("journal");
        let (mut journal, _) = open(&path, 1).expect("a new journal");
        let mut ends = Vec::new();
        for revision in 2..5 {
            journal.append(&commit(revision, 40)).expect("room");
            ends.push(usize::try_from(journal.len()).expect("short"));
        }
        let whole = std::fs::read(&path).expect("the journal");
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).expect("written");
            let frames = ends.iter().filter(|end| **end <= length).count();
            assert_eq!(open(&path, 1).expect("a torn end").1.len(), frames, "{length}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            std::fs::write(&path, &damaged).expect("written");
            let frame = ends.iter().filter(|end| **end <= at).count();
            let begin = frame.checked_sub(1).map_or(0, |before| ends[before]);
            // Where a frame ends is only known from its length, and the next goes on from its sum.
            let told = frame + 1 < ends.len() && at >= begin + HEADER;
            match open(&path, 1) {
                Err(Error::Corrupt { path: named, .. }) => assert!(told && named == path, "{at}"),
                Err(other) => panic!("{at}: {other:?}"),
                Ok((_, found)) => assert!(!told && found.len() == frame, "{at}: {found:?}"),
            }
        }
    }
}
