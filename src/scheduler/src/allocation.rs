//! Which devices a node gives to claims: a search through the combinations, which is pure.
//!
//! Source: `k8s.io/dynamic-resource-allocation/structured` (the allocator), KEP 4381.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, CapacityRequirements, DeviceAllocationConfiguration, DeviceAllocationResult,
    DeviceConstraint, DeviceRequestAllocationResult, DeviceSelector, DeviceToleration,
    ResourceClaim,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::capacity::{self, Amounts, Counters};
use crate::devices::{Chooser, DeviceId, Devices, Offer, Taken, attribute, tolerates};
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
    /// What each device must have, or what the share of it must have.
    capacity: Amounts,
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
    capacity: Option<&'a CapacityRequirements>,
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
        capacity: capacity::asked(asked.capacity),
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
                    capacity: exact.capacity.as_ref(),
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
                    capacity: sub.capacity.as_ref(),
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

/// What has become of an offer.
#[derive(Default)]
struct Stock {
    /// How many have it, or a share of it.
    holders: usize,
    /// What their shares come to.
    used: Amounts,
}

/// What a request gets of a device.
enum Part {
    /// The device, for itself alone or beside others.
    Whole,
    /// So much of its capacity.
    Share(Amounts),
}

struct Search<'a> {
    wishes: Vec<&'a Wish>,
    offers: Vec<Offer<'a>>,
    ids: Vec<DeviceId>,
    stock: Vec<Stock>,
    counters: Counters,
    given: Vec<Given>,
    /// The share of each device given, where it is shared.
    shares: Vec<Option<Amounts>>,
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
        tolerates(taints, &alternative.tolerations) && alternative.chooser.takes(offer)
    }

    /// What of the device the request would get; nothing where there is not enough of it.
    fn left(&self, alternative: &Alternative, at: usize) -> Option<Part> {
        let (offer, stock) = (&self.offers[at], &self.stock[at]);
        let driver = &offer.slice.driver;
        if alternative.admin {
            return Some(Part::Whole);
        }
        if stock.holders == 0 && !self.counters.suffice(offer.slice, offer.device) {
            return None;
        }
        if offer.is_shared() {
            let asked = &alternative.capacity;
            return capacity::share(offer.device, driver, asked, &stock.used).map(Part::Share);
        }
        let free = stock.holders == 0;
        (free && capacity::covers(offer.device, driver, &alternative.capacity))
            .then_some(Part::Whole)
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
            let Some(part) = self.left(alternative, offer) else { continue };
            if !self.suits(alternative, offer) || !self.allowed(given) {
                continue;
            }
            // A shared device may be given once more.
            let next = offer + usize::from(matches!(part, Part::Whole));
            self.take(given, part);
            if self.give(Given { offer: next, ..place }, count - 1) {
                return true;
            }
            self.take_back();
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
                let left = self.left(alternative, *offer).filter(|_| self.allowed(given));
                let possible = left.is_some();
                if let Some(part) = left {
                    self.take(given, part);
                }
                possible
            });
        if possible && self.solve(place.wish, place.request + 1) {
            return true;
        }
        while self.given.len() > before {
            self.take_back();
        }
        false
    }

    fn take(&mut self, given: Given, part: Part) {
        let share = match part {
            Part::Whole => None,
            Part::Share(amounts) => Some(amounts),
        };
        let (offer, stock) = (&self.offers[given.offer], &mut self.stock[given.offer]);
        let admin =
            self.wishes[given.wish].requests[given.request].alternatives[given.alternative].admin;
        if !admin {
            if stock.holders == 0 {
                self.counters.draw(offer.slice, offer.device);
            }
            stock.holders += 1;
            capacity::add(&mut stock.used, share.as_ref().unwrap_or(&Amounts::new()));
        }
        self.given.push(given);
        self.shares.push(share);
    }

    /// Undoes the last step.
    fn take_back(&mut self) {
        let (Some(given), Some(share)) = (self.given.pop(), self.shares.pop()) else { return };
        if self.alternative(given).admin {
            return;
        }
        let (offer, stock) = (&self.offers[given.offer], &mut self.stock[given.offer]);
        stock.holders -= 1;
        capacity::subtract(&mut stock.used, share.as_ref().unwrap_or(&Amounts::new()));
        if stock.holders == 0 {
            self.counters.give_back(offer.slice, offer.device);
        }
    }
}

/// What each of `wishes` gets on `node`, in their order; `None` when it cannot be had there.
pub fn allocate<W: Borrow<Wish>>(
    wishes: &[W],
    devices: &Devices,
    taken: &Taken,
    node: &NodeInfo,
) -> Option<Vec<AllocationResult>> {
    let offers = devices.offers(node);
    let ids: Vec<DeviceId> = offers.iter().map(Offer::id).collect();
    let stock = ids.iter().map(|id| Stock {
        holders: usize::from(taken.has(id)),
        used: taken.shared.get(id).cloned().unwrap_or_default(),
    });
    let draws = |offer: &Offer<'_>| offer.device.consumes_counters.is_some();
    let counters =
        if offers.iter().any(draws) { devices.counters(taken) } else { Counters::default() };
    let mut search = Search {
        wishes: wishes.iter().map(Borrow::borrow).collect(),
        stock: stock.collect(),
        offers,
        ids,
        counters,
        given: Vec::new(),
        shares: Vec::new(),
        steps: 0,
    };
    if !search.solve(0, 0) {
        return None;
    }
    let all = search.wishes.iter().enumerate();
    let results = all.map(|(at, wish)| result(&search, at, wish, devices, node));
    Some(results.collect())
}

fn result(
    search: &Search<'_>,
    at: usize,
    wish: &Wish,
    devices: &Devices,
    node: &NodeInfo,
) -> AllocationResult {
    let own = search.given.iter().zip(&search.shares).filter(|(given, _)| given.wish == at);
    let (given, shares): (Vec<Given>, Vec<Option<Amounts>>) =
        own.map(|(given, share)| (*given, share.clone())).unzip();
    let mut results = Vec::new();
    let mut classes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (one, share) in given.iter().zip(shares) {
        let alternative = search.alternative(*one);
        let (driver, pool, device) = search.ids[one.offer].clone();
        let names = classes.entry(&alternative.class).or_default();
        if !names.contains(&alternative.name) {
            names.push(alternative.name.clone());
        }
        let share_id = share.is_some().then(|| share_id(&wish.claim, results.len()));
        let part = share.map(|share| {
            let texts = share.into_iter().map(|(name, part)| (name, Text(part.canonical())));
            texts.collect()
        });
        let offered = search.offers[one.offer].device;
        results.push(DeviceRequestAllocationResult {
            binding_conditions: offered.binding_conditions.clone(),
            binding_failure_conditions: offered.binding_failure_conditions.clone(),
            admin_access: alternative.admin.then_some(true),
            consumed_capacity: part,
            share_id,
            device,
            driver,
            pool,
            request: alternative.name.clone(),
            tolerations: Some(alternative.tolerations.clone()).filter(|all| !all.is_empty()),
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

/// Tells the share of a device that the claim gets by its result of this number from all others: in the
/// form of a UUID, the same for the same.
fn share_id(claim: &ResourceClaim, number: usize) -> String {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, &claim.metadata.uid, number).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    };
    let (a, b) = (half(0), half(1));
    format!("{}-{}-{}-{}-{}", &a[..8], &a[8..12], &a[12..], &b[..4], &b[4..])
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
