//! What plugins have judged of nodes before. A judgement that depends on the node and on what many pods have in
//! common, as those of one Deployment do, holds until the node changes: for the next of these pods it is looked
//! up. So a decision over thousands of nodes looks closely at those alone that have changed.

use std::collections::VecDeque;

use crate::framework::{Rejection, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::schedule::Filters;

/// Sorts of pods that are remembered at once.
const KINDS_MAX: usize = 8;
/// Sorts that were met once; nothing is remembered for a pod that stays the only one.
const MET_MAX: usize = 32;
/// Plugins whose scores are remembered; those of others are worked out.
pub const SCORES_MAX: usize = 4;

/// Why a node was rejected, and by which of the filters.
type Rejected = Box<(usize, Rejection)>;

#[derive(Debug, Default)]
struct Row {
    /// The state of the node that this is about.
    state: u64,
    filtered: Option<Result<(), Rejected>>,
    scored: Option<[i64; SCORES_MAX]>,
}

/// What was judged of each node for one sort of pods.
#[derive(Debug)]
pub struct Kind {
    sample: PodInfo,
    rows: Vec<Row>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Judgements {
    met: VecDeque<u64>,
    /// The sort that was asked for last comes first.
    kinds: VecDeque<Kind>,
}

impl Judgements {
    /// What is known for pods such as `pod`.
    pub fn of(&mut self, pod: &PodInfo) -> Option<&mut Kind> {
        if let Some(at) = self.kinds.iter().position(|kind| kind.sample.is_alike(pod)) {
            let kind = self.kinds.remove(at)?;
            self.kinds.push_front(kind);
            return self.kinds.front_mut();
        }
        if !self.met.contains(&pod.likeness) {
            self.met.truncate(MET_MAX - 1);
            self.met.push_front(pod.likeness);
            return None;
        }
        self.kinds.truncate(KINDS_MAX - 1);
        self.kinds.push_front(Kind { sample: pod.clone(), rows: Vec::new() });
        self.kinds.front_mut()
    }

    /// What is known for the sort of `pod`, if that was asked for last.
    pub fn known(&mut self, pod: &PodInfo) -> Option<&mut Kind> {
        self.kinds.front_mut().filter(|kind| kind.sample.is_alike(pod))
    }
}

impl Kind {
    fn row(&mut self, node: &NodeInfo) -> &mut Row {
        if self.rows.len() <= node.place {
            self.rows.resize_with(node.place + 1, Row::default);
        }
        let row = &mut self.rows[node.place];
        if row.state != node.state {
            *row = Row { state: node.state, ..Row::default() };
        }
        row
    }

    /// Asks the filters about one node; the first that rejects it has the word.
    pub fn check(
        &mut self,
        filters: &Filters<'_>,
        node: &NodeInfo,
    ) -> Result<(), (&'static str, Rejection)> {
        let local = self.row(node).filtered.get_or_insert_with(|| {
            for (at, (_, filter)) in filters.asked.iter().enumerate() {
                if filter.is_local() {
                    filter.check(node).map_err(|rejection| Box::new((at, rejection)))?;
                }
            }
            Ok(())
        });
        let end = local.as_ref().map_or_else(|rejected| rejected.0, |()| filters.asked.len());
        if filters.any_of_others {
            for (name, filter) in filters.asked.iter().take(end) {
                if !filter.is_local() {
                    filter.check(node).map_err(|rejection| (*name, rejection))?;
                }
            }
        }
        match local {
            Ok(()) => Ok(()),
            Err(rejected) => Err((filters.asked[rejected.0].0, rejected.1.clone())),
        }
    }

    /// The node's scores by `plugins`, which are local and no more than [`SCORES_MAX`].
    pub fn scores(&mut self, plugins: &[&dyn Score], node: &NodeInfo) -> [i64; SCORES_MAX] {
        *self.row(node).scored.get_or_insert_with(|| {
            let mut scores = [0; SCORES_MAX];
            for (own, plugin) in scores.iter_mut().zip(plugins) {
                *own = plugin.score(node);
            }
            scores
        })
    }
}
