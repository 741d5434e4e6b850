//! What comes back over netlink, as bytes.
//!
//! Formats: `netlink(7)` and the kernel's `include/uapi/linux/netlink.h`.

const HEADER_LEN: usize = 16;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const ATTRIBUTE_KIND_MASK: u16 = 0x3fff;

/// The fixed part of a received message.
pub(crate) struct Header {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
}

/// Walks received messages; stops at the first malformed one.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        if length < HEADER_LEN || length > bytes.len() {
            return None;
        }
        let header = Header {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
        };
        let payload = &bytes[HEADER_LEN..length];
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, payload))
    })
}

/// Walks attributes; stops at the first malformed one. Kinds come without the nested bit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & ATTRIBUTE_KIND_MASK;
        if length < 4 || length > bytes.len() {
            return None;
        }
        let value = &bytes[4..length];
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let slice = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(slice.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let slice = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(slice.try_into().ok()?))
}

/// The errno and the kernel's text of an NLMSG_ERROR, or None for an acknowledgement.
pub(super) fn parse_error(flags: u16, payload: &[u8]) -> Option<(i32, String)> {
    let errno = (u32_at(payload, 0).unwrap_or_default() as i32).wrapping_neg();
    if errno == 0 {
        return None;
    }
    let mut text = String::new();
    if flags & NLM_F_ACK_TLVS != 0 {
        let original = if flags & NLM_F_CAPPED != 0 {
            HEADER_LEN
        } else {
            (u32_at(payload, 4).unwrap_or_default() as usize).next_multiple_of(4)
        };
        let tlvs = payload.get(4 + original..).unwrap_or_default();
        for (kind, value) in attributes(tlvs) {
            if kind == NLMSGERR_ATTR_MSG {
                text = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
            }
        }
    }
    Some((errno, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_error_number_is_too_strange() {
        assert_eq!(parse_error(0, &0u32.to_ne_bytes()), None);
        let told = |number: i32| parse_error(0, &number.to_ne_bytes()).map(|(errno, _)| errno);
        assert_eq!((told(-2), told(i32::MIN)), (Some(2), Some(i32::MIN)));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for (header, payload) in messages(&bytes) {
                let _ = parse_error(header.flags, payload);
                let _ = attributes(payload).count();
            }
            let _ = attributes(&bytes).count();
            let _ = parse_error(NLM_F_ACK_TLVS, &bytes);
        }
    }
}
