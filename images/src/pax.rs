//! Pax extension records: `<length> <key>=<value>\n`, repeated.
//!
//! Source: POSIX pax(1), "pax Extended Header"; `SCHILY.xattr.` is star's, used by every image builder.

use crate::error::Error;
use crate::tarball::Timestamp;

const XATTR: &[u8] = b"SCHILY.xattr.";

/// Names and values of extended attributes.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Records in the order they came; the last of a key counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        let (_, value) = self.0.iter().rev().find(|(k, _)| k == key.as_bytes())?;
        // An empty value means: as if the record was not there.
        (!value.is_empty()).then_some(value)
    }

    pub fn merge(&mut self, other: Self) {
        for (key, value) in other.0 {
            self.0.retain(|(k, _)| *k != key);
            self.0.push((key, value));
        }
    }

    pub fn check_size(&self, limit: u64) -> Result<(), Error> {
        let size: usize = self.0.iter().map(|(k, v)| k.len() + v.len()).sum();
        if size as u64 > limit {
            return Err(Error::TooLarge {
                what: "global tar headers".to_owned(),
                limit: format!("{size} bytes, {limit} are allowed"),
            });
        }
        Ok(())
    }

    /// Extended attributes, names without the prefix.
    pub fn xattrs(&self, limit: usize) -> Result<Xattrs, Error> {
        let found: Xattrs = self
            .0
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(XATTR)?.to_vec(), value.clone())))
            .collect();
        let size: usize = found.iter().map(|(k, v)| k.len() + v.len()).sum();
        if size > limit {
            return Err(Error::TooLarge {
                what: "extended attributes of an entry".to_owned(),
                limit: format!("{size} bytes, {limit} are allowed"),
            });
        }
        Ok(found)
    }

    fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let wanted = key.as_bytes();
        self.0.iter().filter(move |(k, _)| k == wanted).map(|(_, value)| value.as_slice())
    }
}

/// Parses the body of an extension header.
pub(crate) fn parse(mut body: &[u8]) -> Result<Records, Error> {
    let malformed = || Error::corrupt("archive", "malformed pax records");
    let mut records = Vec::new();
    while !body.is_empty() && body[0] != 0 {
        let space = body.iter().take(20).position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length = number("pax length", &body[..space])? as usize;
        if length <= space + 1 || length > body.len() || body[length - 1] != b'\n' {
            return Err(malformed());
        }
        let record = &body[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let binary = key.starts_with(XATTR);
        if key.is_empty() || key.contains(&0) || (!binary && value.contains(&0)) {
            return Err(malformed());
        }
        records.push((key.to_vec(), value.to_vec()));
        body = &body[length..];
    }
    Ok(Records(records))
}

/// A decimal number.
pub(crate) fn number(key: &str, value: &[u8]) -> Result<u64, Error> {
    std::str::from_utf8(value)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| {
            let value = String::from_utf8_lossy(value);
            Error::corrupt("archive", format!("bad number {value:?} for {key}"))
        })
}

/// `seconds[.fraction]`, possibly negative.
pub(crate) fn timestamp(value: &[u8]) -> Result<Timestamp, Error> {
    let parse = || -> Option<Timestamp> {
        let text = std::str::from_utf8(value).ok()?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = whole.parse().ok()?;
        let mut nanoseconds = 0_u32;
        for i in 0..9 {
            let digit = match fraction.as_bytes().get(i) {
                Some(byte) if byte.is_ascii_digit() => u32::from(byte - b'0'),
                Some(_) => return None,
                None => 0,
            };
            nanoseconds = nanoseconds * 10 + digit;
        }
        Some(if whole.starts_with('-') && nanoseconds > 0 {
            Timestamp { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds }
        } else {
            Timestamp { seconds, nanoseconds }
        })
    };
    parse().ok_or_else(|| Error::corrupt("archive", "bad mtime in a pax record"))
}

/// The map of pax sparse formats 0.0 (a record per number) and 0.1 (one list).
pub(crate) fn sparse_map(records: &Records) -> Result<Option<Vec<(u64, u64)>>, Error> {
    let numbers = if let Some(list) = records.get("GNU.sparse.map") {
        list.split(|byte| *byte == b',')
            .map(|value| number("GNU.sparse.map", value))
            .collect::<Result<Vec<_>, _>>()?
    } else if records.get("GNU.sparse.offset").is_some() {
        let offsets = records.all("GNU.sparse.offset");
        let lengths = records.all("GNU.sparse.numbytes");
        let mut numbers = Vec::new();
        for (offset, length) in offsets.zip(lengths) {
            numbers.push(number("GNU.sparse.offset", offset)?);
            numbers.push(number("GNU.sparse.numbytes", length)?);
        }
        numbers
    } else {
        return Ok(None);
    };
    Ok(Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_records() {
        let records = parse(b"12 path=a/b\n26 SCHILY.xattr.user.x=\0\x01\n\0\0").unwrap();
        assert_eq!(records.get("path"), Some(b"a/b".as_slice()));
        for bad in [
            b"5 a=b\n".as_slice(),
            b"99 a=b\n",
            b"x a=b\n",
            b"6 ab\n\n",
            b"7 a=b\0c\n",
            b"00000000000000000000000000000006 a=b\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn parses_times() {
        for (text, seconds, nanoseconds) in [
            ("1", 1, 0),
            ("1.5", 1, 500_000_000),
            ("-1.25", -2, 750_000_000),
            ("1.1234567899", 1, 123_456_789),
        ] {
            let want = Timestamp { seconds, nanoseconds };
            assert_eq!(timestamp(text.as_bytes()).unwrap(), want, "{text}");
        }
        assert!(timestamp(b"x").is_err());
    }
}
