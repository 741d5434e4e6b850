//! Which devices a node gives to claims: a search through the combinations, which is pure.
//!
//! Source: `k8s.io/dynamic-resource-allocation/structured` (the allocator), KEP 4381.

use std::borrow::{Borrow, Cow};
use std::collections::HashMap;
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
use crate::devices::{Chooser, DeviceId, Devices, Offer, Offers, Taken, attribute, tolerates};
use crate::node::NodeInfo;

/// Steps after which a search is given up.
const STEPS_MAX: usize = 100_000;
/// Why a node is refused, where there is no more to say.
const NOT_ALL: &str = "cannot allocate all claims";
/// The same, where something could not be had because its pool contradicts itself.
const INVALID: &str = "invalid resource pools were encountered";
/// As many devices as one claim can get.
const RESULTS_MAX: usize = 32;

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

impl Alternative {
    /// Its name beside the other ways to satisfy the request.
    fn short_name(&self) -> &str {
        self.name.rsplit('/').next().unwrap_or_default()
    }
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

    /// Its name, for people.
    fn told(&self) -> String {
        let meta = &self.claim.metadata;
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        format!("claim {}/{}", part(&meta.namespace), part(&meta.name))
    }

    fn constraints(&self) -> &[DeviceConstraint] {
        let wanted = self.claim.spec.devices.as_ref();
        wanted.and_then(|wanted| wanted.constraints.as_deref()).unwrap_or_default()
    }
}

/// A device given to a request: the claim's and the alternative's place, and the offer's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
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
    /// Whether the expressions choose a device, as far as that is known.
    chosen: HashMap<Given, bool>,
    /// The offers that requests for all devices get, by the places of claim, request and alternative.
    all: HashMap<(usize, usize, usize), Vec<usize>>,
    steps: usize,
    /// Why the search cannot go on.
    aborted: Option<String>,
}

/// Whether `names` has the alternative called `name`, or the request it is of.
fn is_among(names: &[String], name: &str) -> bool {
    let whole = name.split_once('/').map_or(name, |(request, _)| request);
    names.iter().any(|known| known == name || known == whole)
}

fn covers(constraint: &DeviceConstraint, name: &str) -> bool {
    let requests = constraint.requests.as_deref().unwrap_or_default();
    requests.is_empty() || is_among(requests, name)
}

impl<'a> Search<'a> {
    fn alternative(&self, given: Given) -> &'a Alternative {
        &self.wishes[given.wish].requests[given.request].alternatives[given.alternative]
    }

    /// Whether the expressions of the request and its class choose the device. One that cannot be evaluated ends the
    /// search.
    fn chooses(&mut self, given: Given) -> bool {
        if let Some(known) = self.chosen.get(&given) {
            return *known;
        }
        let chosen = self.alternative(given).chooser.takes(&self.offers[given.offer]);
        let chosen = chosen.unwrap_or_else(|error| {
            let (claim, id) = (self.wishes[given.wish].told(), &self.ids[given.offer]);
            let device = format!("{}/{}/{}", id.0, id.1, id.2);
            let aborted =
                format!("{claim}: selector on device {device}: CEL runtime error: {error}");
            self.aborted.get_or_insert(aborted);
            false
        });
        self.chosen.insert(given, chosen);
        chosen
    }

    /// Whether no taint of the device keeps the request away.
    fn bears(&self, given: Given) -> bool {
        let taints = self.offers[given.offer].device.taints.as_deref().unwrap_or_default();
        tolerates(taints, &self.alternative(given).tolerations)
    }

    /// What of the device the request would get; nothing where its capacity is not enough.
    fn part(&self, alternative: &Alternative, at: usize) -> Option<Part> {
        let (offer, stock) = (&self.offers[at], &self.stock[at]);
        let (driver, asked) = (&offer.slice.driver, &alternative.capacity);
        if alternative.admin {
            return Some(Part::Whole);
        }
        if offer.is_shared() {
            return capacity::share(offer.device, driver, asked, &stock.used).map(Part::Share);
        }
        capacity::covers(offer.device, driver, asked).then_some(Part::Whole)
    }

    /// Whether the device can be had: nobody else has it, and it has all that it draws on. An administrator looks at
    /// what others have too, but in one claim only once.
    fn is_free(&self, given: Given) -> bool {
        let (offer, stock) = (&self.offers[given.offer], &self.stock[given.offer]);
        let admin = self.alternative(given).admin;
        if !offer.is_shared() {
            let here = |other: &Given| other.offer == given.offer;
            let mut others = self.given.iter().filter(|other| here(other));
            let in_use = if admin {
                others.any(|other| other.wish == given.wish)
            } else {
                stock.holders > 0 || others.next().is_some()
            };
            if in_use {
                return false;
            }
        }
        admin || stock.holders > 0 || self.counters.suffice(offer.slice, offer.device)
    }

    /// Whether the claim may have so many devices more.
    fn has_room(&self, wish: usize, more: usize) -> bool {
        self.given.iter().filter(|given| given.wish == wish).count() + more <= RESULTS_MAX
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
        if !self.has_room(place.wish, count) {
            return false;
        }
        let alternative = self.alternative(place);
        for offer in place.offer..self.offers.len() {
            self.steps += 1;
            if self.steps > STEPS_MAX || self.aborted.is_some() {
                return false;
            }
            let given = Given { offer, ..place };
            if !self.is_free(given) || !self.chooses(given) {
                continue;
            }
            let Some(part) = self.part(alternative, offer) else { continue };
            if !self.bears(given) || !self.allowed(given) {
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

    /// What cannot be satisfied whatever is free: finds all devices for requests that ask for all, and counts.
    /// `unusable` says what keeps a pool from telling of all it has.
    fn survey(&mut self, unusable: Option<&str>) -> Result<(), String> {
        for (wish, wished) in self.wishes.clone().into_iter().enumerate() {
            let mut least = 0_usize;
            for (request, wanted) in wished.requests.iter().enumerate() {
                let mut smallest = usize::MAX;
                for (alternative, chosen) in wanted.alternatives.iter().enumerate() {
                    let place = Given { wish, request, alternative, offer: 0 };
                    let count = match chosen.count {
                        Some(count) => count,
                        None => self.find_all(place, unusable)?,
                    };
                    smallest = smallest.min(count);
                }
                least = least.saturating_add(smallest);
            }
            if least > RESULTS_MAX {
                let claim = wished.told();
                return Err(format!(
                    "{claim}: number of requested devices {least} exceeds the claim limit of {RESULTS_MAX}"
                ));
            }
        }
        Ok(())
    }

    /// Finds the devices that are chosen and have what is asked for; says how many they are.
    fn find_all(&mut self, place: Given, unusable: Option<&str>) -> Result<usize, String> {
        let alternative = self.alternative(place);
        if let Some(why) = unusable {
            let (claim, name) = (self.wishes[place.wish].told(), alternative.short_name());
            return Err(format!(
                "{claim}, request {name}: asks for all devices, but resource pool {why}"
            ));
        }
        let all = (0..self.offers.len()).filter(|offer| {
            self.chooses(Given { offer: *offer, ..place })
                && self.part(alternative, *offer).is_some()
        });
        let all: Vec<usize> = all.collect();
        if let Some(aborted) = &self.aborted {
            return Err(aborted.clone());
        }
        let count = all.len();
        self.all.insert((place.wish, place.request, place.alternative), all);
        Ok(count)
    }

    /// Gives every device that is chosen and has what is asked for; all of them must be free.
    fn give_all(&mut self, place: Given) -> bool {
        let alternative = self.alternative(place);
        let known = self.all.get(&(place.wish, place.request, place.alternative));
        let all = known.cloned().unwrap_or_default();
        if all.is_empty() || self.aborted.is_some() || !self.has_room(place.wish, all.len()) {
            return false;
        }
        let before = self.given.len();
        let possible = all.into_iter().map(|offer| Given { offer, ..place }).all(|given| {
            let part = self.part(alternative, given.offer);
            let Some(part) = part.filter(|_| self.is_free(given) && self.bears(given)) else {
                return false;
            };
            if !self.allowed(given) {
                // It makes no sense to ask for all devices and to constrain them.
                let (claim, name) = (self.wishes[place.wish].told(), alternative.short_name());
                let id = &self.ids[given.offer];
                let device = format!("{}/{}/{}", id.0, id.1, id.2);
                let aborted = format!(
                    "{claim}, request {name}: cannot add device {device} because a claim constraint would not be satisfied"
                );
                self.aborted.get_or_insert(aborted);
                return false;
            }
            self.take(given, part);
            true
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

/// What each of `wishes` gets on `node`, in their order. The error says why it cannot be had there.
pub fn allocate<W: Borrow<Wish>>(
    wishes: &[W],
    devices: &Devices,
    taken: &Taken,
    node: &NodeInfo,
) -> Result<Vec<AllocationResult>, Cow<'static, str>> {
    let Offers { all: offers, invalid } = devices.offers(node);
    let ids: Vec<DeviceId> = offers.iter().map(Offer::id).collect();
    let stock = ids.iter().map(|id| Stock {
        holders: usize::from(taken.has(id)),
        used: taken.shared.get(id).cloned().unwrap_or_default(),
    });
    let draws = |offer: &Offer<'_>| offer.device.consumes_counters.is_some();
    let counters =
        if offers.iter().any(draws) { devices.counters(taken) } else { Counters::default() };
    let wishes: Vec<&Wish> = wishes.iter().map(Borrow::borrow).collect();
    let alternatives = wishes.iter().flat_map(|wish| &wish.requests);
    let mut alternatives = alternatives.flat_map(|request| &request.alternatives);
    let wants_all = alternatives.any(|alternative| alternative.count.is_none());
    let mut search = Search {
        wishes,
        stock: stock.collect(),
        offers,
        ids,
        counters,
        given: Vec::new(),
        shares: Vec::new(),
        chosen: HashMap::new(),
        all: HashMap::new(),
        steps: 0,
        aborted: None,
    };
    let updating = if wants_all { devices.updating(node) } else { None };
    let unusable = updating
        .map(|pool| format!("{pool} is currently being updated"))
        .or(invalid.as_ref().map(|pool| format!("{pool} is currently invalid")));
    search.survey(unusable.as_deref())?;
    if !search.solve(0, 0) {
        let why = if invalid.is_some() { INVALID } else { NOT_ALL };
        return Err(search.aborted.map_or(why.into(), Cow::from));
    }
    let all = search.wishes.iter().enumerate();
    let results = all.map(|(at, wish)| result(&search, at, wish, devices, node));
    Ok(results.collect())
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
    for (one, share) in given.iter().zip(shares) {
        let alternative = search.alternative(*one);
        let (driver, pool, device) = search.ids[one.offer].clone();
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
    let mut chosen: Vec<&Alternative> = Vec::new();
    for one in &given {
        let alternative = search.alternative(*one);
        if !chosen.iter().any(|known| known.name == alternative.name) {
            chosen.push(alternative);
        }
    }
    let config = configuration(wish, &chosen, devices);
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

/// How the devices are to be set up: first what the classes say, then what the claim does for those of the
/// alternatives that were chosen.
fn configuration(
    wish: &Wish,
    chosen: &[&Alternative],
    devices: &Devices,
) -> Vec<DeviceAllocationConfiguration> {
    let mut classes: Vec<(&str, Vec<String>)> = Vec::new();
    for alternative in chosen {
        let known = classes.iter_mut().find(|(class, _)| *class == alternative.class);
        match known {
            Some((_, names)) => names.push(alternative.name.clone()),
            None => classes.push((&alternative.class, vec![alternative.name.clone()])),
        }
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
    let concerns = |requests: Option<&Vec<String>>| {
        requests.is_none_or(|names| {
            names.is_empty() || chosen.iter().any(|alternative| is_among(names, &alternative.name))
        })
    };
    let own = wish.claim.spec.devices.iter().flat_map(|devices| devices.config.iter().flatten());
    let own = own.filter(|config| concerns(config.requests.as_ref()));
    let own = own.map(|config| DeviceAllocationConfiguration {
        opaque: config.opaque.clone(),
        requests: config.requests.clone(),
        source: "FromClaim".into(),
    });
    of_class.chain(own).collect()
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
    let (mut expressions, mut fields) = (Vec::new(), Vec::new());
    let add = |all: &mut Vec<NodeSelectorRequirement>, more: &Option<Vec<_>>| {
        for requirement in more.iter().flatten() {
            if !all.contains(requirement) {
                all.push(requirement.clone());
            }
        }
    };
    for given in given {
        let offer = &search.offers[given.offer];
        let selector = offer.slice.node_selector.as_ref().or(offer.device.node_selector.as_ref());
        // The API allows one term in them.
        let Some(term) = selector.and_then(|selector| selector.node_selector_terms.first()) else {
            continue;
        };
        add(&mut expressions, &term.match_expressions);
        add(&mut fields, &term.match_fields);
    }
    if expressions.is_empty() && fields.is_empty() {
        return None;
    }
    let some = |all: Vec<_>| Some(all).filter(|all| !all.is_empty());
    let term =
        NodeSelectorTerm { match_expressions: some(expressions), match_fields: some(fields) };
    Some(NodeSelector { node_selector_terms: vec![term] })
}
