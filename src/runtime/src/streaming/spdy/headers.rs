//! Header blocks of SPDY/3.1: name and value pairs in one zlib stream per direction, with a
//! dictionary both sides know (SPDY protocol draft 3.1, section 2.6.10).

use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::Error;

/// What an inflated header block may have at most; clients of ours send a few dozen bytes.
const MAX_BLOCK_BYTES: usize = 64 * 1024;

/// Words of the dictionary; each comes with its length, as in a header block.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
    accept-language accept-ranges age allow authorization cache-control connection content-base \
    content-encoding content-language content-length content-location content-md5 content-range \
    content-type date etag expect expires from host if-match if-modified-since if-none-match \
    if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
    proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url \
    public set-cookie keep-alive origin";
/// Text that follows them.
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413\
    414415416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad \
    Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not \
    Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
    Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,\
    deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    for word in WORDS.split_whitespace() {
        put(&mut bytes, word.replace('_', " ").as_bytes());
    }
    bytes.extend_from_slice(TEXT.as_bytes());
    bytes
});

/// Names, in lower case, with their values.
pub type Headers = Vec<(String, String)>;

fn put(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(text);
}

/// Writes header blocks of one direction.
pub struct Deflater(Compress);

impl Deflater {
    /// At the beginning of a connection.
    pub fn new() -> Result<Self, Error> {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(&DICTIONARY).map_err(|_| Error::Headers)?;
        Ok(Self(compress))
    }

    /// The block as it goes over the wire.
    pub fn write(&mut self, headers: &Headers) -> Result<Vec<u8>, Error> {
        let count = u32::try_from(headers.len()).map_err(|_| Error::Headers)?;
        let mut plain = count.to_be_bytes().to_vec();
        for (name, value) in headers {
            put(&mut plain, name.as_bytes());
            put(&mut plain, value.as_bytes());
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let mut taken = 0;
        loop {
            let before = self.0.total_in();
            let status = self
                .0
                .compress_vec(&plain[taken..], &mut out, FlushCompress::Sync)
                .map_err(|_| Error::Headers)?;
            taken += usize::try_from(self.0.total_in() - before).unwrap_or(0);
            // Room that is left says that the flush is complete.
            if taken == plain.len() && out.len() < out.capacity() {
                return Ok(out);
            }
            if status == Status::StreamEnd {
                return Err(Error::Headers);
            }
            out.reserve(256);
        }
    }
}

/// Reads header blocks of one direction.
pub struct Inflater(Decompress);

impl Inflater {
    /// At the beginning of a connection.
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers of a block.
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, Error> {
        let mut plain = Vec::with_capacity(512);
        let mut taken = 0;
        loop {
            let before = self.0.total_in();
            let outcome = self.0.decompress_vec(&block[taken..], &mut plain, FlushDecompress::Sync);
            taken += usize::try_from(self.0.total_in() - before).unwrap_or(0);
            match outcome {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| Error::Headers)?;
                    continue;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(Error::Headers),
                Ok(_) => {}
            }
            if plain.len() > MAX_BLOCK_BYTES {
                return Err(Error::Headers);
            }
            if plain.len() < plain.capacity() {
                break;
            }
            plain.reserve(1024);
        }
        if taken < block.len() {
            return Err(Error::Headers);
        }
        parse(&plain).ok_or(Error::Headers)
    }
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let text = rest.get(..length)?;
    *bytes = &rest[length..];
    Some(text)
}

fn parse(mut bytes: &[u8]) -> Option<Headers> {
    let (count, rest) = bytes.split_first_chunk::<4>()?;
    let count = u32::from_be_bytes(*count);
    bytes = rest;
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = String::from_utf8(take(&mut bytes)?.to_vec()).ok()?;
        let value = String::from_utf8(take(&mut bytes)?.to_vec()).ok()?;
        headers.push((name.to_ascii_lowercase(), value));
    }
    bytes.is_empty().then_some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_dictionary_is_the_one_of_the_draft() {
        // Adler-32 of the draft's dictionary, which every zlib stream with it names.
        let (mut a, mut b) = (1u32, 0u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!((DICTIONARY.len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    proptest! {
        #[test]
        fn blocks_come_back(blocks in prop::collection::vec(
            prop::collection::vec(("[a-z-]{1,20}", ".{0,300}"), 0..12), 1..6)) {
            let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::new());
            for headers in blocks {
                let wire = deflater.write(&headers).unwrap();
                prop_assert_eq!(inflater.read(&wire).unwrap(), headers);
            }
        }

        #[test]
        fn noise_is_refused_without_harm(noise in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Inflater::new().read(&noise);
            let _ = parse(&noise);
        }
    }
}
