//! How much of something one client may have at a time: a flood from one pod leaves room for the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// What the clients have, and the most that one may have.
pub(crate) struct Shares {
    most: usize,
    held: Mutex<HashMap<IpAddr, usize>>,
}

/// A client's place, until it is dropped.
pub(crate) struct Place {
    shares: Arc<Shares>,
    client: IpAddr,
}

impl Shares {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, held: Mutex::default() })
    }

    /// One more place; None when the client has its share.
    pub fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.entry(client).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place { shares: Arc::clone(self), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_from_one_client_leaves_room_for_others() {
        let shares = Shares::new(3);
        let (greedy, modest) = ([10, 42, 0, 2].into(), [10, 42, 0, 3].into());
        let places: Vec<_> = (0..200).map_while(|_| shares.admit(greedy)).collect();
        assert_eq!(places.len(), 3);
        assert!(shares.admit(modest).is_some());
        drop(places);
        assert!(shares.admit(greedy).is_some());
        assert!(shares.held.lock().unwrap().is_empty(), "nothing is left of those who came");
    }
}
