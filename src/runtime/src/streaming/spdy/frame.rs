//! Frames of SPDY/3.1, as far as remote commands use them (SPDY protocol draft 3.1, section 2.6).
//!
//! Flow control is left out, as in every implementation that Kubernetes' clients have: window
//! updates are read and ignored.

use bytes::{Buf, Bytes, BytesMut};

use super::headers::{Deflater, Headers, Inflater};

/// The protocol's version in control frames.
const VERSION: u16 = 3;
/// Length of a frame's head.
const HEAD_BYTES: usize = 8;
/// The largest frame that is accepted; clients write a few dozen KiB at a time.
const MAX_FRAME_BYTES: usize = 4 * 1024 * 1024;
/// The flag that ends a stream's direction.
const FIN: u8 = 1;

mod kind {
    pub const SYN_STREAM: u16 = 1;
    pub const SYN_REPLY: u16 = 2;
    pub const RST_STREAM: u16 = 3;
    pub const PING: u16 = 6;
    pub const GOAWAY: u16 = 7;
    pub const HEADERS: u16 = 8;
}

/// What is wrong with what a peer sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("SPDY version {0} is not spoken")]
    Version(u16),
    #[error("SPDY frame of {0} bytes is too large")]
    Large(usize),
    #[error("SPDY frame is too short")]
    Short,
    #[error("SPDY header block cannot be read")]
    Headers,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream; with `fin` the opener will send nothing.
    Open { stream: u32, headers: Headers, fin: bool },
    /// Accepts a stream.
    Reply { stream: u32 },
    /// Bytes of a stream, the last with `fin`.
    Data { stream: u32, bytes: Bytes, fin: bool },
    /// Ends a stream at once.
    Reset { stream: u32, status: u32 },
    /// To be answered by the same.
    Ping(u32),
    /// No more streams are accepted.
    GoAway { last: u32 },
    /// Anything that does not concern us.
    Other,
}

/// Reads frames of one direction.
pub struct Decoder {
    inflater: Inflater,
}

/// Writes frames of one direction.
pub struct Encoder {
    deflater: Deflater,
}

impl Decoder {
    /// At the beginning of a connection.
    pub fn new() -> Self {
        Self { inflater: Inflater::new() }
    }

    /// Takes the first frame off `buffer`; `None` while it is not complete.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, Error> {
        if buffer.len() < HEAD_BYTES {
            return Ok(None);
        }
        let mut head = &buffer[..HEAD_BYTES];
        let (first, second) = (head.get_u32(), head.get_u32());
        let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
        if length > MAX_FRAME_BYTES {
            return Err(Error::Large(length));
        }
        if buffer.len() < HEAD_BYTES + length {
            buffer.reserve(HEAD_BYTES + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(HEAD_BYTES);
        let body = buffer.split_to(length).freeze();
        let fin = flags & FIN != 0;
        if first & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data { stream: first, bytes: body, fin }));
        }
        let version = ((first >> 16) & 0x7fff) as u16;
        if version != VERSION {
            return Err(Error::Version(version));
        }
        self.control((first & 0xffff) as u16, fin, body).map(Some)
    }

    fn control(&mut self, kind: u16, fin: bool, mut body: Bytes) -> Result<Frame, Error> {
        let number = |body: &mut Bytes| body.try_get_u32().map_err(|_| Error::Short);
        let stream_of = |number: u32| number & 0x7fff_ffff;
        Ok(match kind {
            kind::SYN_STREAM => {
                let stream = stream_of(number(&mut body)?);
                number(&mut body)?;
                body.try_get_u16().map_err(|_| Error::Short)?;
                Frame::Open { stream, headers: self.inflater.read(&body)?, fin }
            }
            kind::SYN_REPLY | kind::HEADERS => {
                let stream = stream_of(number(&mut body)?);
                // The block has to be read, since later ones build on it.
                self.inflater.read(&body)?;
                if kind == kind::SYN_REPLY { Frame::Reply { stream } } else { Frame::Other }
            }
            kind::RST_STREAM => {
                Frame::Reset { stream: stream_of(number(&mut body)?), status: number(&mut body)? }
            }
            kind::PING => Frame::Ping(number(&mut body)?),
            kind::GOAWAY => Frame::GoAway { last: stream_of(number(&mut body)?) },
            _ => Frame::Other,
        })
    }
}

impl Encoder {
    /// At the beginning of a connection.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { deflater: Deflater::new()? })
    }

    /// Appends a frame to `out`. Data longer than a frame is cut.
    pub fn encode(&mut self, frame: &Frame, out: &mut Vec<u8>) -> Result<(), Error> {
        match frame {
            Frame::Open { stream, headers, fin } => {
                let mut body = stream.to_be_bytes().to_vec();
                body.extend_from_slice(&[0; 6]);
                body.extend_from_slice(&self.deflater.write(headers)?);
                control(out, kind::SYN_STREAM, *fin, &body);
            }
            Frame::Reply { stream } => {
                let mut body = stream.to_be_bytes().to_vec();
                body.extend_from_slice(&self.deflater.write(&Headers::new())?);
                control(out, kind::SYN_REPLY, false, &body);
            }
            Frame::Data { stream, bytes, fin } => {
                let mut chunks = bytes.chunks(MAX_FRAME_BYTES).peekable();
                if chunks.peek().is_none() {
                    data(out, *stream, &[], *fin);
                }
                while let Some(chunk) = chunks.next() {
                    data(out, *stream, chunk, *fin && chunks.peek().is_none());
                }
            }
            Frame::Reset { stream, status } => {
                let body = [stream.to_be_bytes(), status.to_be_bytes()].concat();
                control(out, kind::RST_STREAM, false, &body);
            }
            Frame::Ping(id) => control(out, kind::PING, false, &id.to_be_bytes()),
            Frame::GoAway { last } => {
                let body = [last.to_be_bytes(), [0; 4]].concat();
                control(out, kind::GOAWAY, false, &body);
            }
            Frame::Other => {}
        }
        Ok(())
    }
}

fn length(body: &[u8], fin: bool) -> [u8; 4] {
    // Both callers keep below 2^24.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX) & 0x00ff_ffff;
    (length | if fin { u32::from(FIN) << 24 } else { 0 }).to_be_bytes()
}

fn control(out: &mut Vec<u8>, kind: u16, fin: bool, body: &[u8]) {
    let head = 0x8000_0000 | u32::from(VERSION) << 16 | u32::from(kind);
    out.extend_from_slice(&head.to_be_bytes());
    out.extend_from_slice(&length(body, fin));
    out.extend_from_slice(body);
}

fn data(out: &mut Vec<u8>, stream: u32, body: &[u8], fin: bool) {
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&length(body, fin));
    out.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let stream = 1u32..0x7fff_ffff;
        let headers = prop::collection::vec(("[a-z]{1,9}", "[ -~]{0,20}"), 0..5);
        prop_oneof![
            (stream.clone(), headers, any::<bool>())
                .prop_map(|(stream, headers, fin)| Frame::Open { stream, headers, fin }),
            stream.clone().prop_map(|stream| Frame::Reply { stream }),
            (stream.clone(), prop::collection::vec(any::<u8>(), 0..5000), any::<bool>())
                .prop_map(|(stream, bytes, fin)| Frame::Data { stream, bytes: bytes.into(), fin }),
            (stream.clone(), any::<u32>())
                .prop_map(|(stream, status)| Frame::Reset { stream, status }),
            any::<u32>().prop_map(Frame::Ping),
            stream.prop_map(|last| Frame::GoAway { last }),
        ]
    }

    proptest! {
        #[test]
        fn frames_come_back_however_they_are_cut(
            frames in prop::collection::vec(frames(), 1..12), cut in 1usize..700) {
            let mut wire = Vec::new();
            let mut encoder = Encoder::new().unwrap();
            for frame in &frames {
                encoder.encode(frame, &mut wire).unwrap();
            }
            let (mut decoder, mut buffer, mut got) = (Decoder::new(), BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, frames);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn noise_is_refused_or_waited_for(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
            let (mut decoder, mut buffer) = (Decoder::new(), BytesMut::from(&noise[..]));
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
        }
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let decode = |bytes: &[u8]| Decoder::new().decode(&mut BytesMut::from(bytes));
        assert_eq!(decode(&[0x80, 2, 0, 6, 0, 0, 0, 0]), Err(Error::Version(2)));
        assert_eq!(decode(&[0x80, 3, 0, 6, 0, 0, 0, 1, 9]), Err(Error::Short));
        assert_eq!(decode(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff]), Err(Error::Large(0x00ff_ffff)));
        assert_eq!(decode(&[0, 0, 0, 1, 0, 0, 0]), Ok(None));
    }
}
