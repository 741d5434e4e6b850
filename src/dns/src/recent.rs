//! The answers that were given last, for the questions as they came: most pods ask for few names.
//!
//! Only answers from the zone are kept, and no longer than the zone itself.

use std::collections::HashMap;

/// Questions that are kept, and the longest of them.
const QUESTIONS: usize = 1024;
const LONGEST_BYTES: usize = 256;
/// The number of a message, which is another in every question.
const NUMBER_BYTES: usize = 2;

/// An answer, and what it counts as.
#[derive(Clone)]
pub(crate) struct Given<T> {
    pub answer: Box<[u8]>,
    pub counts_as: T,
}

/// What was asked of one version of the zone.
pub(crate) struct Recent<T> {
    version: u64,
    given: HashMap<Box<[u8]>, Given<T>>,
}

impl<T> Recent<T> {
    /// None yet.
    pub fn new() -> Self {
        Self { version: 0, given: HashMap::new() }
    }

    /// The answer to a question about the zone, with the question's own number.
    pub fn get(&mut self, version: u64, question: &[u8]) -> Option<&Given<T>> {
        if version != self.version {
            self.given.clear();
            self.version = version;
            return None;
        }
        let (number, rest) = question.split_at_checked(NUMBER_BYTES)?;
        let given = self.given.get_mut(rest)?;
        given.answer.get_mut(..NUMBER_BYTES)?.copy_from_slice(number);
        Some(given)
    }

    /// Keeps an answer.
    pub fn put(&mut self, version: u64, question: &[u8], given: Given<T>) {
        let Some(question) = question.get(NUMBER_BYTES..) else { return };
        if question.len() > LONGEST_BYTES || version != self.version {
            return;
        }
        if self.given.len() >= QUESTIONS {
            self.given.clear();
        }
        self.given.insert(question.into(), given);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_repeated_until_the_zone_changes() {
        let (zone, other) = (0, 1);
        let mut recent = Recent::new();
        let given = |answer: &[u8]| Given { answer: answer.into(), counts_as: 7 };
        assert!(recent.get(zone, b"\x00\x01what").is_none());
        recent.put(zone, b"\x00\x01what", given(b"\x00\x01that"));
        let found = recent.get(zone, b"\x12\x34what").unwrap();
        assert_eq!((&*found.answer, found.counts_as), (&b"\x12\x34that"[..], 7));
        assert!(recent.get(zone, b"\x12\x34When").is_none(), "as it was asked, to the letter");
        assert!(recent.get(zone, b"\x12").is_none(), "no question at all");
        recent.put(other, b"\x00\x01late", given(b"\x00\x01old"));
        assert!(recent.get(zone, b"\x00\x01late").is_none(), "an answer from another zone");
        assert!(recent.get(other, b"\x12\x34what").is_none(), "a new zone");
        recent.put(other, &[0; LONGEST_BYTES + 9], given(b"xx"));
        assert!(recent.get(other, &[0; LONGEST_BYTES + 9]).is_none(), "too long to keep");
        for number in 0..=QUESTIONS {
            let question = [&[0, 0][..], &number.to_be_bytes()].concat();
            recent.put(other, &question, given(b"xx"));
        }
        assert!(recent.given.len() <= QUESTIONS);
    }
}
