//! Which devices a node gives to claims: a search through the combinations, which is pure.
//!
//! Source: `k8s.io/dynamic-resource-allocation/structured` (the allocator), KEP 4381. Devices are given whole:
//! shares of a device's capacity, and counters that partitions of a device draw on, are not reckoned with, and
//! devices that need them are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceConstraint,
    DeviceRequestAllocationResult, DeviceSelector, DeviceToleration, ResourceClaim,
};

use crate::devices::{Chooser, DeviceId, Devices, Offer, attribute, tolerates};
use crate::node::NodeInfo;

/// Steps after which a search is given up.
const STEPS_MAX: usize = 100_000;

/// One way to satisfy a request.
struct Alternative {
    /// What results call it.
    name: String,
    class: String,
    chooser: Chooser,
    /// How many devices; all that will do when it is `None`.
    count: Option<usize>,
    admin: bool,
    tolerations: Vec<DeviceToleration>,
}

/// A request, with the ways to satisfy it in the order of preference.
struct Request {
    alternatives: Vec<Alternative>,
}

/// What one claim wants.
pub struct Wish {
    claim: Arc<ResourceClaim>,
    requests: Vec<Request>,
}

/// What `alternative` asks for, in either of its forms in the API.
struct Asked<'a> {
    name: String,
    class: &'a str,
    selectors: &'a [DeviceSelector],
    mode: Option<&'a str>,
    count: Option<i64>,
    admin: bool,
    tolerations: &'a [DeviceToleration],
}

fn alternative(asked: &Asked<'_>, devices: &Devices) -> Result<Alternative, String> {
    let Some(class) = devices.classes.get(asked.class) else {
        return Err(format!("request {}: device class {} does not exist", asked.name, asked.class));
    };
    let of_class = class.spec.selectors.iter().flatten();
    let chooser = Chooser::new(of_class.chain(asked.selectors))
        .map_err(|error| format!("request {}: {error}", asked.name))?;
    let count = match asked.mode.unwrap_or("ExactCount") {
        "All" => None,
        _ => Some(usize::try_from(asked.count.unwrap_or(1)).unwrap_or(1)),
    };
    Ok(Alternative {
        name: asked.name.clone(),
        class: asked.class.to_owned(),
        chooser,
        count,
        admin: asked.admin,
        tolerations: asked.tolerations.to_vec(),
    })
}

impl Wish {
    /// What `claim` wants. The error says what is wrong with it.
    pub fn new(claim: Arc<ResourceClaim>, devices: &Devices) -> Result<Self, String> {
        let mut requests = Vec::new();
        let wanted = claim.spec.devices.iter().flat_map(|wanted| wanted.requests.iter().flatten());
        for request in wanted {
            let mut asked = Vec::new();
            if let Some(exact) = &request.exactly {
                asked.push(Asked {
                    name: request.name.clone(),
                    class: &exact.device_class_name,
                    selectors: exact.selectors.as_deref().unwrap_or_default(),
                    mode: exact.allocation_mode.as_deref(),
                    count: exact.count,
                    admin: exact.admin_access == Some(true),
                    tolerations: exact.tolerations.as_deref().unwrap_or_default(),
                });
            }
            for sub in request.first_available.iter().flatten() {
                asked.push(Asked {
                    name: format!("{}/{}", request.name, sub.name),
                    class: &sub.device_class_name,
                    selectors: sub.selectors.as_deref().unwrap_or_default(),
                    mode: sub.allocation_mode.as_deref(),
                    count: sub.count,
                    admin: false,
                    tolerations: sub.tolerations.as_deref().unwrap_or_default(),
                });
            }
            let alternatives: Result<_, _> =
                asked.iter().map(|asked| alternative(asked, devices)).collect();
            requests.push(Request { alternatives: alternatives? });
        }
        Ok(Self { claim, requests })
    }

    fn constraints(&self) -> &[DeviceConstraint] {
        let wanted = self.claim.spec.devices.as_ref();
        wanted.and_then(|wanted| wanted.constraints.as_deref()).unwrap_or_default()
    }
}

/// A device given to a request: the claim's and the alternative's place, and the offer's.
#[derive(Clone, Copy)]
struct Given {
    wish: usize,
    request: usize,
    alternative: usize,
    offer: usize,
}

struct Search<'a> {
    wishes: &'a [Wish],
    offers: Vec<Offer<'a>>,
    ids: Vec<DeviceId>,
    taken: Vec<bool>,
    given: Vec<Given>,
    steps: usize,
}

fn covers(constraint: &DeviceConstraint, name: &str) -> bool {
    let whole = name.split_once('/').map_or(name, |(request, _)| request);
    let requests = constraint.requests.as_deref().unwrap_or_default();
    requests.is_empty() || requests.iter().any(|known| known == name || known == whole)
}

impl<'a> Search<'a> {
    fn alternative(&self, given: Given) -> &'a Alternative {
        &self.wishes[given.wish].requests[given.request].alternatives[given.alternative]
    }

    /// Whether the device suits the request, taken by itself.
    fn suits(&self, alternative: &Alternative, at: usize) -> bool {
        let offer = &self.offers[at];
        let taints = offer.device.taints.as_deref().unwrap_or_default();
        offer.device.consumes_counters.as_ref().is_none_or(Vec::is_empty)
            && tolerates(taints, &alternative.tolerations)
            && alternative.chooser.takes(offer)
    }

    /// Whether the claim's constraints allow the device beside those given to it already.
    fn allowed(&self, new: Given) -> bool {
        let wish = &self.wishes[new.wish];
        let name = &self.alternative(new).name;
        wish.constraints().iter().filter(|constraint| covers(constraint, name)).all(|constraint| {
            let others = || {
                self.given.iter().filter(|given| {
                    given.wish == new.wish && covers(constraint, &self.alternative(**given).name)
                })
            };
            let of = |at: usize, key: &str| attribute(&self.offers[at], key);
            if let Some(key) = &constraint.match_attribute {
                let Some(own) = of(new.offer, key) else { return false };
                return others().all(|given| of(given.offer, key).as_ref() == Some(&own));
            }
            if let Some(key) = &constraint.distinct_attribute {
                let Some(own) = of(new.offer, key) else { return false };
                return others().all(|given| of(given.offer, key).as_ref() != Some(&own));
            }
            true
        })
    }

    /// Satisfies everything from this request on.
    fn solve(&mut self, wish: usize, request: usize) -> bool {
        let Some(wished) = self.wishes.get(wish) else { return true };
        let Some(wanted) = wished.requests.get(request) else { return self.solve(wish + 1, 0) };
        for alternative in 0..wanted.alternatives.len() {
            let place = Given { wish, request, alternative, offer: 0 };
            let chosen = &wanted.alternatives[alternative];
            let done = match chosen.count {
                Some(count) => self.give(place, count),
                None => self.give_all(place),
            };
            if done {
                return true;
            }
        }
        false
    }

    /// Gives `count` more devices, from the one at `place.offer` on, and goes on with the next request.
    fn give(&mut self, place: Given, count: usize) -> bool {
        if count == 0 {
            return self.solve(place.wish, place.request + 1);
        }
        let alternative = self.alternative(place);
        for offer in place.offer..self.offers.len() {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return false;
            }
            let given = Given { offer, ..place };
            let free = alternative.admin || !self.taken[offer];
            if !free || !self.suits(alternative, offer) || !self.allowed(given) {
                continue;
            }
            self.take(given, true);
            if self.give(Given { offer: offer + 1, ..place }, count - 1) {
                return true;
            }
            self.take(given, false);
        }
        false
    }

    /// Gives every device that suits; none of them may be somebody else's.
    fn give_all(&mut self, place: Given) -> bool {
        let alternative = self.alternative(place);
        let all: Vec<usize> =
            (0..self.offers.len()).filter(|at| self.suits(alternative, *at)).collect();
        let before = self.given.len();
        let possible = !all.is_empty()
            && all.iter().all(|offer| {
                let given = Given { offer: *offer, ..place };
                let free = alternative.admin || !self.taken[*offer];
                let possible = free && self.allowed(given);
                if possible {
                    self.take(given, true);
                }
                possible
            });
        if possible && self.solve(place.wish, place.request + 1) {
            return true;
        }
        while self.given.len() > before {
            let last = self.given[self.given.len() - 1];
            self.take(last, false);
        }
        false
    }

    fn take(&mut self, given: Given, take: bool) {
        if take {
            self.given.push(given);
        } else {
            self.given.pop();
        }
        if !self.alternative(given).admin {
            self.taken[given.offer] = take;
        }
    }
}

/// What each of `wishes` gets on `node`, in their order; `None` when it cannot be had there.
pub fn allocate(
    wishes: &[Wish],
    devices: &Devices,
    taken: &BTreeSet<DeviceId>,
    node: &NodeInfo,
) -> Option<Vec<AllocationResult>> {
    let offers = devices.offers(node);
    let ids: Vec<DeviceId> = offers.iter().map(Offer::id).collect();
    let taken = ids.iter().map(|id| taken.contains(id)).collect();
    let mut search = Search { wishes, offers, ids, taken, given: Vec::new(), steps: 0 };
    if !search.solve(0, 0) {
        return None;
    }
    let results =
        wishes.iter().enumerate().map(|(at, wish)| result(&search, at, wish, devices, node));
    Some(results.collect())
}

fn result(
    search: &Search<'_>,
    at: usize,
    wish: &Wish,
    devices: &Devices,
    node: &NodeInfo,
) -> AllocationResult {
    let given: Vec<Given> = search.given.iter().copied().filter(|g| g.wish == at).collect();
    let mut results = Vec::new();
    let mut classes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for one in &given {
        let alternative = search.alternative(*one);
        let (driver, pool, device) = search.ids[one.offer].clone();
        let names = classes.entry(&alternative.class).or_default();
        if !names.contains(&alternative.name) {
            names.push(alternative.name.clone());
        }
        results.push(DeviceRequestAllocationResult {
            admin_access: alternative.admin.then_some(true),
            device,
            driver,
            pool,
            request: alternative.name.clone(),
            tolerations: Some(alternative.tolerations.clone()).filter(|all| !all.is_empty()),
            ..DeviceRequestAllocationResult::default()
        });
    }
    let of_class = classes.into_iter().flat_map(|(class, names)| {
        let class = devices.classes.get(class);
        let configs = class.and_then(|class| class.spec.config.clone()).unwrap_or_default();
        configs.into_iter().map(move |config| DeviceAllocationConfiguration {
            opaque: config.opaque,
            requests: Some(names.clone()),
            source: "FromClass".into(),
        })
    });
    let own = wish.claim.spec.devices.iter().flat_map(|devices| devices.config.iter().flatten());
    let own = own.map(|config| DeviceAllocationConfiguration {
        opaque: config.opaque.clone(),
        requests: config.requests.clone(),
        source: "FromClaim".into(),
    });
    let config: Vec<_> = of_class.chain(own).collect();
    let local = given.iter().any(|given| search.offers[given.offer].is_local());
    AllocationResult {
        devices: Some(DeviceAllocationResult {
            config: Some(config).filter(|config| !config.is_empty()),
            results: Some(results).filter(|results| !results.is_empty()),
        }),
        node_selector: if local { Some(only(&node.name)) } else { shared(search, &given) },
        ..AllocationResult::default()
    }
}

fn only(node: &str) -> NodeSelector {
    let requirement = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_fields: Some(vec![requirement]), match_expressions: None };
    NodeSelector { node_selector_terms: vec![term] }
}

/// Where devices can be used that are not tied to one node: what all their selectors ask for.
fn shared(search: &Search<'_>, given: &[Given]) -> Option<NodeSelector> {
    let mut requirements = Vec::new();
    for given in given {
        let offer = &search.offers[given.offer];
        let selector = offer.slice.node_selector.as_ref().or(offer.device.node_selector.as_ref());
        // The API allows one term in them.
        let Some(term) = selector.and_then(|selector| selector.node_selector_terms.first()) else {
            continue;
        };
        for requirement in term.match_expressions.iter().flatten() {
            if !requirements.contains(requirement) {
                requirements.push(requirement.clone());
            }
        }
    }
    let term = NodeSelectorTerm { match_expressions: Some(requirements), match_fields: None };
    let any = term.match_expressions.as_ref().is_some_and(|all| !all.is_empty());
    any.then(|| NodeSelector { node_selector_terms: vec![term] })
}
