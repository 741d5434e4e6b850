//! A map that forgets what has not been asked for since much else was.

use std::collections::HashMap;
use std::hash::Hash;

/// See the module. It holds at most twice the size that it is made with, and always what was used last.
pub struct Recent<K, V> {
    size: usize,
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    pub fn new(size: usize) -> Self {
        Self { size, young: HashMap::new(), old: HashMap::new() }
    }

    /// What is known of `key`, or a new value.
    pub fn entry(&mut self, key: K, new: impl FnOnce() -> V) -> &mut V {
        if self.young.len() >= self.size && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        let known = self.old.remove(&key);
        self.young.entry(key).or_insert_with(|| known.unwrap_or_else(new))
    }

    /// Drops what `stays` says no to.
    pub fn retain(&mut self, mut stays: impl FnMut(&mut V) -> bool) {
        self.young.retain(|_, value| stays(value));
        self.old.retain(|_, value| stays(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_is_known() {
        let mut recent = Recent::new(2);
        for (key, want) in [(1, 1), (2, 1), (3, 1), (1, 2), (4, 1), (1, 3), (5, 1), (2, 1), (3, 1)]
        {
            let count = recent.entry(key, || 0);
            *count += 1;
            assert_eq!(*count, want, "{key}");
        }
        assert!(recent.young.len() + recent.old.len() <= 4);
    }
}
