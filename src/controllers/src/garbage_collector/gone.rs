//! Owners that the API server does not have: asked for once, not by each of their dependents.
//!
//! Source: `pkg/controller/garbagecollector/uid_cache.go` (`ReferenceCache`).

use std::collections::{HashSet, VecDeque};

/// So many are remembered.
const REMEMBERED: usize = 500;

/// The namespace of a dependent, and the uid of its owner. Another object never has the same uid.
pub type Owner = (String, String);

/// See the module. The latest are remembered.
#[derive(Default)]
pub struct Gone {
    known: HashSet<Owner>,
    order: VecDeque<Owner>,
}

impl Gone {
    /// Whether the owner is known not to be there.
    pub fn has(&self, owner: &Owner) -> bool {
        self.known.contains(owner)
    }

    /// Remembers that the owner is not there.
    pub fn note(&mut self, owner: Owner) {
        if !self.known.insert(owner.clone()) {
            return;
        }
        self.order.push_back(owner);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_remembered() {
        let owner = |n: usize| ("n".to_owned(), n.to_string());
        let mut gone = Gone::default();
        for n in (0..REMEMBERED).chain([0, REMEMBERED]) {
            gone.note(owner(n));
        }
        for (owner, want) in [
            (owner(0), false),
            (owner(1), true),
            (owner(REMEMBERED), true),
            (owner(REMEMBERED + 1), false),
            (("m".to_owned(), "1".to_owned()), false),
        ] {
            assert_eq!(gone.has(&owner), want, "{owner:?}");
        }
        assert_eq!((gone.known.len(), gone.order.len()), (REMEMBERED, REMEMBERED));
    }
}
