//! The references in a page of HTML, found while it passes.

/// A tag that is longer than this passes as it is.
const TAG_BYTES: usize = 64 << 10;
/// Elements whose content is no markup.
const RAW: [&str; 8] =
    ["script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes"];
/// Attributes that are references, by element.
const REFERENCES: [(&str, &[&str]); 25] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Rewrites the references of a page that comes in pieces.
#[derive(Debug, Default)]
pub struct Links {
    /// The beginning of what is not complete yet.
    pending: Vec<u8>,
    /// The end of what is passed on unread: a comment, or an element of raw text.
    until: Option<String>,
}

impl Links {
    /// The next piece with its references rewritten, as far as it is complete.
    pub fn feed(&mut self, piece: &[u8], rewrite: impl Fn(&str) -> String) -> Vec<u8> {
        let mut page = std::mem::take(&mut self.pending);
        page.extend_from_slice(piece);
        let mut out = Vec::with_capacity(page.len());
        let mut at = 0;
        while at < page.len() {
            let rest = &page[at..];
            let Some(length) = self.step(rest, &mut out, &rewrite) else {
                if rest.len() > TAG_BYTES {
                    out.extend_from_slice(rest);
                } else {
                    self.pending = rest.to_vec();
                }
                break;
            };
            at += length;
        }
        out
    }

    /// What was never completed.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    /// Passes one run of text, comment or tag on and tells its length; nothing if it is not complete.
    fn step(
        &mut self,
        rest: &[u8],
        out: &mut Vec<u8>,
        rewrite: &impl Fn(&str) -> String,
    ) -> Option<usize> {
        if let Some(end) = &self.until {
            let length = match find(rest, end.as_bytes()) {
                Some(length) => {
                    self.until = None;
                    length
                }
                // The end may have begun.
                None => rest.len().checked_sub(end.len() - 1).filter(|length| *length > 0)?,
            };
            out.extend_from_slice(&rest[..length]);
            return Some(length);
        }
        if rest[0] != b'<' {
            let length = rest.iter().position(|b| *b == b'<').unwrap_or(rest.len());
            out.extend_from_slice(&rest[..length]);
            return Some(length);
        }
        if b"<!--".starts_with(&rest[..rest.len().min(4)]) {
            (rest.len() >= 4).then_some(())?;
            self.until = Some("-->".into());
            out.extend_from_slice(&rest[..4]);
            return Some(4);
        }
        if !rest.get(1)?.is_ascii_alphabetic() {
            out.push(b'<');
            return Some(1);
        }
        let length = tag_end(rest)?;
        let tag = &rest[..length];
        let name_end = tag.iter().position(|b| b.is_ascii_whitespace() || b"/>".contains(b));
        let name = String::from_utf8_lossy(&tag[1..name_end?]).to_ascii_lowercase();
        match REFERENCES.iter().find(|(element, _)| *element == name) {
            Some((_, attributes)) => attributes_of(tag, name.len() + 1, attributes, out, rewrite),
            None => out.extend_from_slice(tag),
        }
        if RAW.contains(&name.as_str()) {
            self.until = Some(format!("</{name}"));
        }
        Some(length)
    }
}

/// Where `what`, in any case, begins.
fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window.eq_ignore_ascii_case(what))
}

/// The length of a tag up to its `>`, one in quotes not counted.
fn tag_end(tag: &[u8]) -> Option<usize> {
    let mut quote = None;
    for (at, byte) in tag.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            // Elsewhere a quote is a part of a word.
            (None, b'"' | b'\'') if follows_equals(&tag[..at]) => quote = Some(byte),
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
    }
    None
}

fn follows_equals(before: &[u8]) -> bool {
    before.trim_ascii_end().ends_with(b"=")
}

/// Copies a tag, with these of its attributes rewritten.
fn attributes_of(
    tag: &[u8],
    from: usize,
    wanted: &[&str],
    out: &mut Vec<u8>,
    rewrite: &impl Fn(&str) -> String,
) {
    let (mut at, mut copied) = (from, 0);
    while at < tag.len() {
        let skip = |from: usize, until: &dyn Fn(u8) -> bool| {
            tag[from..].iter().position(|b| until(*b)).map_or(tag.len(), |n| from + n)
        };
        at = skip(at, &|b| !b.is_ascii_whitespace() && b != b'/');
        let name_end = skip(at, &|b| b.is_ascii_whitespace() || b"=/>".contains(&b));
        let name = String::from_utf8_lossy(&tag[at..name_end]).to_ascii_lowercase();
        let equals = skip(name_end, &|b| !b.is_ascii_whitespace());
        if tag.get(equals) != Some(&b'=') {
            at = name_end.max(at + 1);
            continue;
        }
        let start = skip(equals + 1, &|b| !b.is_ascii_whitespace());
        let (from, to, end) = if let Some(quote @ (b'"' | b'\'')) = tag.get(start) {
            let to = skip(start + 1, &|b| b == *quote);
            (start + 1, to, to + 1)
        } else {
            let to = skip(start, &|b| b.is_ascii_whitespace() || b == b'>');
            (start, to, to)
        };
        if wanted.contains(&name.as_str())
            && let Ok(value) = std::str::from_utf8(&tag[from..to])
        {
            out.extend_from_slice(&tag[copied..start]);
            out.extend_from_slice(format!("\"{}\"", escape(&rewrite(&unescape(value)))).as_bytes());
            copied = end.min(tag.len());
        }
        at = end;
    }
    out.extend_from_slice(&tag[copied..]);
}

fn unescape(text: &str) -> String {
    let plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    plain.replace("&#39;", "'").replace("&#34;", "\"").replace("&amp;", "&")
}

fn escape(text: &str) -> String {
    let escaped = text.replace('&', "&amp;").replace('\'', "&#39;").replace('"', "&#34;");
    escaped.replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_pieces(page: &str, size: usize) -> String {
        let mut links = Links::default();
        let mut out = Vec::new();
        for piece in page.as_bytes().chunks(size) {
            out.extend(links.feed(piece, |reference| format!("/p{reference}")));
        }
        out.extend(links.rest());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn references_are_rewritten_wherever_the_page_is_cut() {
        for (page, want) in [
            ("<a href=\"/x\">t</a>", "<a href=\"/p/x\">t</a>"),
            ("<A HREF='/x' id=\"/i\"/>", "<A HREF=\"/p/x\" id=\"/i\"/>"),
            ("<img alt='>' src = /x>", "<img alt='>' src = \"/p/x\">"),
            ("<a href=\"/?a=1&amp;b=2\">", "<a href=\"/p/?a=1&amp;b=2\">"),
            ("<p href=\"/x\">1 < 2</p>", "<p href=\"/x\">1 < 2</p>"),
            ("<!-- <a href=\"/x\"> --><br>", "<!-- <a href=\"/x\"> --><br>"),
            (
                "<script src=/s>\"<a href='/x'>\"</SCRIPT><a href=/y>",
                "<script src=\"/p/s\">\"<a href='/x'>\"</SCRIPT><a href=\"/p/y\">",
            ),
            ("<!DOCTYPE html><a disabled href=/x", "<!DOCTYPE html><a disabled href=/x"),
        ] {
            for size in [1, 2, 7, page.len()] {
                assert_eq!(in_pieces(page, size), want, "in pieces of {size}");
            }
        }
    }

    #[test]
    fn what_never_ends_passes() {
        let page = format!("<a href=\"{}", "x".repeat(TAG_BYTES));
        assert_eq!(in_pieces(&page, 1 << 10), page);
    }
}
