//! Devices as plugins need them: who claims them, who offers them, who has them.
//!
//! Source: `k8s.io/dynamic-resource-allocation/structured`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use apimachinery::cel::{Named, Program, TOTAL_LIMIT, Type, Value};
use apimachinery::quantity::Quantity;
use client::Change;
use k8s_openapi::api::core::v1::NodeSelector;
use k8s_openapi::api::resource::v1::{
    Device, DeviceClass, DeviceSelector, DeviceTaint, DeviceToleration, ResourceClaim,
    ResourceSlice, ResourceSliceSpec,
};

use crate::capacity::{self, Amounts, Counters};
use crate::framework::Event;
use crate::node::NodeInfo;
use crate::plugins::selects;
use crate::volumes;

/// Driver, pool and name of a device.
pub type DeviceId = (String, String, String);

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Devices {
    /// The claims, by namespace and name.
    pub claims: HashMap<(String, String), Arc<ResourceClaim>>,
    /// What drivers offer.
    pub slices: Vec<Arc<ResourceSlice>>,
    /// The classes by name.
    pub classes: HashMap<String, Arc<DeviceClass>>,
}

/// A device on offer.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// The slice it is in.
    pub slice: &'a ResourceSliceSpec,
    /// It.
    pub device: &'a Device,
}

impl Offer<'_> {
    /// Its identity.
    pub fn id(&self) -> DeviceId {
        let slice = self.slice;
        (slice.driver.clone(), slice.pool.name.clone(), self.device.name.clone())
    }

    /// Several may have a share of it.
    pub fn is_shared(&self) -> bool {
        self.device.allow_multiple_allocations == Some(true)
    }

    /// It is tied to one node.
    pub fn is_local(&self) -> bool {
        let bound = self.device.binds_to_node == Some(true);
        bound || self.slice.node_name.is_some() || self.device.node_name.is_some()
    }
}

/// What a node is offered.
#[derive(Debug, Default)]
pub struct Offers<'a> {
    /// The devices.
    pub all: Vec<Offer<'a>>,
    /// A pool, by driver and name, that has something for the node but whose slices do not fit together: nothing can be
    /// had from it.
    pub invalid: Option<String>,
}

/// What of the devices is given away.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// Devices that somebody has to himself.
    pub whole: BTreeSet<DeviceId>,
    /// Devices that several share, with what they take of its capacities together.
    pub shared: BTreeMap<DeviceId, Amounts>,
}

impl Taken {
    /// Whether somebody has the device, or a share of it.
    pub fn has(&self, id: &DeviceId) -> bool {
        self.whole.contains(id) || self.shared.contains_key(id)
    }
}

impl Devices {
    /// Takes over what was told of a claim; says what may help a pod. A claim in `reserved` stays as the decision
    /// under way will leave it.
    pub fn follow(
        &mut self,
        change: Change<ResourceClaim>,
        reserved: &HashMap<(String, String), Arc<ResourceClaim>>,
    ) -> Option<Event> {
        let key = change.key()?;
        if matches!(change, Change::Deleted(_)) {
            let gone = self.claims.remove(&key)?;
            let had = gone.status.as_ref().is_some_and(|status| status.allocation.is_some());
            return had.then_some(Event::DevicesChanged);
        }
        let changed = volumes::follow(&mut self.claims, key.clone(), change)?;
        if let Some(kept) = reserved.get(&key) {
            self.claims.insert(key, Arc::clone(kept));
        }
        Some(Event::DeviceClaimChanged(changed))
    }

    /// The claim `name` of `namespace`.
    pub fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<ResourceClaim>> {
        self.claims.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// What is given away.
    pub fn taken(&self) -> Taken {
        let allocations = self.claims.values().filter_map(|claim| {
            claim.status.as_ref()?.allocation.as_ref()?.devices.as_ref()?.results.as_ref()
        });
        let mut taken = Taken::default();
        // An administrator looks on; the device stays free for others.
        for result in allocations.flatten().filter(|result| result.admin_access != Some(true)) {
            let id = (result.driver.clone(), result.pool.clone(), result.device.clone());
            if result.share_id.is_none() {
                taken.whole.insert(id);
                continue;
            }
            let part = result.consumed_capacity.iter().flatten();
            let part = part.map(|(name, text)| (name.clone(), capacity::quantity(text))).collect();
            capacity::add(taken.shared.entry(id).or_default(), &part);
        }
        taken
    }

    /// What is left of the counters on which devices draw.
    pub fn counters(&self, taken: &Taken) -> Counters {
        let mut counters = Counters::default();
        for slice in self.current() {
            counters.bring(slice);
        }
        for slice in self.current() {
            for device in slice.devices.iter().flatten() {
                if taken.has(&Offer { slice, device }.id()) {
                    counters.draw(slice, device);
                }
            }
        }
        counters
    }

    /// The newest generation of each pool by driver and name, and how many slices of it there are.
    fn newest(&self) -> BTreeMap<(&str, &str), (i64, i64)> {
        let mut newest: BTreeMap<(&str, &str), (i64, i64)> = BTreeMap::new();
        for slice in &self.slices {
            let pool = &slice.spec.pool;
            let known = newest.entry((&slice.spec.driver, &pool.name)).or_insert((i64::MIN, 0));
            if pool.generation > known.0 {
                *known = (pool.generation, 0);
            }
            if pool.generation == known.0 {
                known.1 += 1;
            }
        }
        newest
    }

    /// The slices that count. Of each pool only the newest generation does, and that only when it is
    /// complete.
    fn current(&self) -> Vec<&ResourceSliceSpec> {
        let newest = self.newest();
        let counts = |spec: &&ResourceSliceSpec| {
            let known = newest.get(&(spec.driver.as_str(), spec.pool.name.as_str()));
            let want = (spec.pool.generation, spec.pool.resource_slice_count);
            known.is_some_and(|known| *known == want)
        };
        self.slices.iter().map(|slice| &slice.spec).filter(counts).collect()
    }

    /// A pool that has something for `node` and of whose newest generation slices are still to come.
    pub fn updating(&self, node: &NodeInfo) -> Option<String> {
        let newest = self.newest();
        let specs = self.slices.iter().map(|slice| &slice.spec);
        let mut unfinished = specs.filter(|spec| {
            let pool = &spec.pool;
            let known = newest.get(&(spec.driver.as_str(), pool.name.as_str()));
            known.is_some_and(|(generation, count)| {
                *generation == pool.generation && *count != pool.resource_slice_count
            })
        });
        let found = unfinished.find(|spec| slice_reaches(spec, node))?;
        Some(format!("{}/{}", found.driver, found.pool.name))
    }

    /// What is on offer for `node`: pool after pool, what has to be waited for when it is given last.
    pub fn offers<'a>(&'a self, node: &NodeInfo) -> Offers<'a> {
        let mut pools: BTreeMap<(&str, &str), Vec<&'a ResourceSliceSpec>> = BTreeMap::new();
        for slice in self.current() {
            pools.entry((&slice.driver, &slice.pool.name)).or_default().push(slice);
        }
        pools.retain(|_, slices| slices.iter().any(|slice| slice_reaches(slice, node)));
        let (mut offers, mut late) = (Offers::default(), Vec::new());
        for ((driver, name), slices) in pools {
            if !is_sound(&slices) {
                offers.invalid.get_or_insert_with(|| format!("{driver}/{name}"));
                continue;
            }
            for slice in slices.into_iter().filter(|slice| slice_reaches(slice, node)) {
                let each = slice.per_device_node_selection == Some(true);
                let devices = || slice.devices.iter().flatten();
                let waits = devices().any(|device| device.binding_conditions.is_some());
                let devices = devices().filter(|device| !each || device_reaches(device, node));
                let all = if waits { &mut late } else { &mut offers.all };
                all.extend(devices.map(|device| Offer { slice, device }));
            }
        }
        offers.all.append(&mut late);
        offers
    }
}

/// Whether the slices of a pool fit together: they tell of no device and no set of counters twice, and devices draw on
/// counters that there are.
fn is_sound(slices: &[&ResourceSliceSpec]) -> bool {
    let devices = || slices.iter().flat_map(|slice| slice.devices.iter().flatten());
    let mut names = HashSet::new();
    if !devices().all(|device| names.insert(&device.name)) {
        return false;
    }
    let mut sets = HashMap::new();
    let mut counters = slices.iter().flat_map(|slice| slice.shared_counters.iter().flatten());
    if !counters.all(|set| sets.insert(&set.name, &set.counters).is_none()) {
        return false;
    }
    devices().flat_map(|device| device.consumes_counters.iter().flatten()).all(|drawn| {
        let set = sets.get(&drawn.counter_set);
        set.is_some_and(|set| drawn.counters.keys().all(|name| set.contains_key(name)))
    })
}

fn reaches(
    all: Option<bool>,
    name: Option<&String>,
    selector: Option<&NodeSelector>,
    node: &NodeInfo,
) -> bool {
    all == Some(true)
        || name.is_some_and(|name| *name == node.name)
        || selector.is_some_and(|terms| selects(&terms.node_selector_terms, node))
}

fn device_reaches(device: &Device, node: &NodeInfo) -> bool {
    reaches(device.all_nodes, device.node_name.as_ref(), device.node_selector.as_ref(), node)
}

/// Whether the slice has anything for the node.
fn slice_reaches(slice: &ResourceSliceSpec, node: &NodeInfo) -> bool {
    if slice.per_device_node_selection == Some(true) {
        return slice.devices.iter().flatten().any(|device| device_reaches(device, node));
    }
    reaches(slice.all_nodes, slice.node_name.as_ref(), slice.node_selector.as_ref(), node)
}

/// Whether no taint of the device keeps the request away.
pub fn tolerates(taints: &[DeviceTaint], tolerations: &[DeviceToleration]) -> bool {
    taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")).all(
        |taint| tolerations.iter().any(|toleration| client::tolerates_device(toleration, taint)),
    )
}

/// An attribute in a form that can be compared.
pub fn attribute(offer: &Offer<'_>, name: &str) -> Option<String> {
    let attributes = offer.device.attributes.as_ref()?;
    // A name without a domain is in the driver's own.
    let short = name.strip_prefix(&format!("{}/", offer.slice.driver));
    let found = attributes.get(name).or_else(|| attributes.get(short?))?;
    serde_json::to_string(found).ok()
}

/// Expressions that choose devices, compiled.
pub struct Chooser(Vec<Program>);

impl Chooser {
    /// Of a class and a request. The error is for people.
    pub fn new<'a>(selectors: impl Iterator<Item = &'a DeviceSelector>) -> Result<Self, String> {
        let names = || vec![("device".to_owned(), Type::Dyn)];
        let texts = selectors.filter_map(|selector| selector.cel.as_ref());
        let programs: Result<_, _> =
            texts.map(|cel| Program::compile(&cel.expression, names(), None)).collect();
        programs.map(Self)
    }

    /// Whether all expressions hold. The error says why one cannot be evaluated.
    pub fn takes(&self, offer: &Offer<'_>) -> Result<bool, String> {
        if self.0.is_empty() {
            return Ok(true);
        }
        let variables = [("device", described(offer))];
        let mut budget = TOTAL_LIMIT;
        for program in &self.0 {
            match program.run(&Named(&variables), &mut budget)? {
                Value::Bool(true) => {}
                Value::Bool(false) => return Ok(false),
                _ => return Err("the expression is neither true nor false".into()),
            }
        }
        Ok(true)
    }
}

fn map<'a>(entries: impl IntoIterator<Item = (String, Value<'a>)>) -> Value<'a> {
    let entries = entries.into_iter().map(|(key, value)| (Value::from(key), value));
    Value::Map(Arc::new(entries.collect()))
}

/// Values by their names, below the domains of those names.
fn by_domain<'a>(driver: &str, values: impl Iterator<Item = (&'a String, Value<'a>)>) -> Value<'a> {
    let mut domains: BTreeMap<String, Vec<(String, Value<'a>)>> = BTreeMap::new();
    // The driver's own domain is there even when it is empty.
    domains.insert(driver.to_owned(), Vec::new());
    for (name, value) in values {
        let (domain, name) = name.split_once('/').unwrap_or((driver, name));
        domains.entry(domain.to_owned()).or_default().push((name.to_owned(), value));
    }
    map(domains.into_iter().map(|(domain, values)| (domain, map(values))))
}

/// The device as expressions see it.
fn described<'a>(offer: &Offer<'a>) -> Value<'a> {
    let driver = offer.slice.driver.as_str();
    let attributes = offer.device.attributes.iter().flatten().map(|(name, value)| {
        let value = if let Some(text) = &value.string {
            Value::from(text.as_str())
        } else if let Some(number) = value.int {
            Value::Int(number)
        } else if let Some(truth) = value.bool {
            Value::Bool(truth)
        } else {
            value.version.as_ref().map_or(Value::Null, |version| semver(version))
        };
        (name, value)
    });
    let capacity = offer.device.capacity.iter().flatten().map(|(name, capacity)| {
        let quantity = capacity.value.0.parse::<Quantity>().unwrap_or_default();
        (name, Value::Quantity(Arc::new(quantity)))
    });
    map([
        ("driver".to_owned(), Value::from(driver)),
        ("attributes".to_owned(), by_domain(driver, attributes)),
        ("capacity".to_owned(), by_domain(driver, capacity)),
        (
            "allowMultipleAllocations".to_owned(),
            Value::Bool(offer.device.allow_multiple_allocations == Some(true)),
        ),
    ])
}

/// A version as expressions compare it.
fn semver(text: &str) -> Value<'_> {
    let (core, _) = text.split_once('+').unwrap_or((text, ""));
    let (numbers, pre) = core.split_once('-').unwrap_or((core, ""));
    let parts: Option<Vec<u64>> = numbers.split('.').map(|part| part.parse().ok()).collect();
    match parts.as_deref() {
        Some(&[major, minor, patch]) => {
            Value::Semver(Arc::new(([major, minor, patch], pre.to_owned(), String::new())))
        }
        _ => Value::from(text),
    }
}
