//! Several texts in one piece of memory. The caches hold the labels and selectable fields of every object, and of every
//! version of it that watchers may still ask for: in maps of their own they would take more than the objects.

/// A list of texts that does not change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    joined: Box<str>,
    /// Where each of them ends.
    ends: Box<[u32]>,
}

impl Texts {
    /// The text at `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        self.joined.get(start..end)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.ends.len()).filter_map(|index| self.get(index))
    }
}

impl<T: AsRef<str>> FromIterator<T> for Texts {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Self {
        let (mut joined, mut ends) = (String::new(), Vec::new());
        for text in texts {
            joined.push_str(text.as_ref());
            // Objects are of a few megabytes at most.
            ends.push(joined.len() as u32);
        }
        Self { joined: joined.into(), ends: ends.into() }
    }
}

/// The labels of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Texts);

impl Labels {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    /// Keys and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let at = |index| self.0.get(index);
        (0..).step_by(2).map_while(move |index| Some((at(index)?, at(index + 1)?)))
    }
}

impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let (mut joined, mut ends) = (String::new(), Vec::new());
        for (key, value) in labels {
            for text in [key.as_ref(), value.as_ref()] {
                joined.push_str(text);
                ends.push(joined.len() as u32);
            }
        }
        Self(Texts { joined: joined.into(), ends: ends.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_kept_apart() {
        let texts: Texts = ["a", "", "größe", ""].into_iter().collect();
        assert_eq!(texts.iter().collect::<Vec<_>>(), ["a", "", "größe", ""]);
        assert_eq!((texts.get(2), texts.get(4)), (Some("größe"), None));
        assert_eq!(Texts::default().iter().count(), 0);
    }

    #[test]
    fn labels_are_found_by_their_whole_key() {
        let labels: Labels = [("a", "1"), ("ab", ""), ("", "x")].into_iter().collect();
        for (key, want) in [("a", Some("1")), ("ab", Some("")), ("", Some("x")), ("b", None)] {
            assert_eq!(labels.get(key), want, "{key}");
        }
        assert_eq!(labels.iter().count(), 3);
        assert!(Labels::default().get("").is_none());
    }
}
