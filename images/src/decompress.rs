//! The compressions of layers and archives, told apart by their first bytes.

use std::io::{self, BufRead, BufReader, Read};

use crate::error::Error;

const BUFFER_BYTES: usize = 128 << 10;
/// A zstd frame may ask for a window as large as it likes; this is what `zstd -d` itself accepts.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Whether these first bytes are of one of the compressions, known or not.
pub(crate) fn is_compressed(start: &[u8]) -> bool {
    matches!(
        start,
        [0x1f, 0x8b, ..]
            | [0x28, 0xb5, 0x2f, 0xfd, ..]
            | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]
            | [b'B', b'Z', b'h', ..]
            | [0xfd, b'7', b'z', b'X', b'Z', ..]
    )
}

/// Reads `reader` uncompressed: gzip (many members in a row too), zstd (many frames too), or plain.
pub(crate) fn decompress<'r>(
    reader: impl Read + Send + 'r,
) -> Result<Box<dyn Read + Send + 'r>, Error> {
    let broken = |error: io::Error| Error::corrupt("compressed data", error);
    let mut reader =
        BufReader::with_capacity(BUFFER_BYTES, Prefixed::read(reader).map_err(broken)?);
    let start = reader.fill_buf().map_err(broken)?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader).map_err(broken)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(broken)?;
            Box::new(decoder)
        }
        [b'B', b'Z', b'h', ..] => {
            return Err(Error::unsupported("archive", "bzip2 compression is not supported"));
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            return Err(Error::unsupported("archive", "xz compression is not supported"));
        }
        _ => Box::new(reader),
    })
}

/// A reader whose first bytes are gathered at once, however slowly they arrive, so that they can be told.
struct Prefixed<R> {
    start: [u8; 8],
    range: std::ops::Range<usize>,
    rest: R,
}

impl<R: Read> Prefixed<R> {
    fn read(mut rest: R) -> io::Result<Self> {
        let mut start = [0; 8];
        let mut filled = 0;
        while filled < start.len() {
            match rest.read(&mut start[filled..]) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { start, range: 0..filled, rest })
    }
}

impl<R: Read> Read for Prefixed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.range.is_empty() {
            return self.rest.read(buffer);
        }
        let got = self.range.len().min(buffer.len());
        buffer[..got].copy_from_slice(&self.start[self.range.start..self.range.start + got]);
        self.range.start += got;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// A frame of zstd that is not to be read: where zstd:chunked keeps what it knows of its files.
    fn skipped(bytes: &[u8]) -> Vec<u8> {
        let size = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        [&[0x50, 0x2a, 0x4d, 0x18][..], &size, bytes].concat()
    }

    #[test]
    fn layers_that_can_be_read_in_parts_are_read_whole() {
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        for (name, archive) in [
            // Each file is a member, and an empty one says at the end where the table is.
            ("estargz", [gzip(b"one "), gzip(b"two "), gzip(b"three"), gzip(b"")].concat()),
            (
                "zstd:chunked",
                [zstd(b"one "), skipped(b"table"), zstd(b"two three"), skipped(b"footer")].concat(),
            ),
            (
                "zstd that begins with what is skipped",
                [skipped(b"x"), zstd(b"one two three")].concat(),
            ),
            ("plain", b"one two three".to_vec()),
        ] {
            let mut text = String::new();
            decompress(&archive[..]).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "one two three", "{name}");
        }
    }
}
