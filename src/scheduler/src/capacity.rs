//! What devices have to give by the piece: shares of a device's capacity, and counters of a pool that its
//! devices draw on.
//!
//! Source: `k8s.io/dynamic-resource-allocation/structured` (consumable capacity of KEP 5075, partitionable
//! devices of KEP 4815).

use std::collections::BTreeMap;

use apimachinery::quantity::Quantity;
use k8s_openapi::api::resource::v1::{
    CapacityRequestPolicy, CapacityRequestPolicyRange, CapacityRequirements, Device,
    DeviceCapacity, DeviceCounterConsumption, ResourceSliceSpec,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// Amounts by name.
pub type Amounts = BTreeMap<String, Quantity>;

/// What a text says; one that cannot be read, which validation does not let pass, says nothing.
pub fn quantity(text: &Text) -> Quantity {
    text.0.parse().unwrap_or_default()
}

/// What a request asks of each device's capacities.
pub fn asked(requirements: Option<&CapacityRequirements>) -> Amounts {
    let requests = requirements.and_then(|all| all.requests.as_ref());
    requests.into_iter().flatten().map(|(name, text)| (name.clone(), quantity(text))).collect()
}

/// Whether both names are one; a name without a domain is in the driver's own.
fn is_same(driver: &str, one: &str, other: &str) -> bool {
    let short = |name: &'_ str| -> String {
        let own = name.strip_prefix(driver).and_then(|rest| rest.strip_prefix('/'));
        own.unwrap_or(name).to_owned()
    };
    one == other || short(one) == short(other)
}

fn capacity<'a>(device: &'a Device, driver: &str, name: &str) -> Option<&'a DeviceCapacity> {
    let mut all = device.capacity.iter().flatten();
    all.find(|(known, _)| is_same(driver, known, name)).map(|(_, capacity)| capacity)
}

/// Whether the device, taken whole, has as much as is asked for.
pub fn covers(device: &Device, driver: &str, asked: &Amounts) -> bool {
    asked.iter().all(|(name, amount)| {
        capacity(device, driver, name).is_some_and(|found| *amount <= quantity(&found.value))
    })
}

/// The least amount of the range that is enough.
fn within(range: &CapacityRequestPolicyRange, amount: &Quantity) -> Option<Quantity> {
    let least = quantity(&range.min);
    let mut rounded = amount.clone().max(least.clone());
    if let Some(step) = range.step.as_ref().map(quantity).filter(|step| step.signum() > 0) {
        let over = rounded.minus(&least);
        // Exact for what the API allows: amounts are whole, or thousandths of small ones.
        let (over, size) =
            if over.clone().rounded_up(0) == over && step.clone().rounded_up(0) == step {
                (over.value(), step.value())
            } else {
                (over.milli_value(), step.milli_value())
            };
        let steps = over / size + i64::from(over % size > 0);
        rounded = least.plus(&step.times(steps));
    }
    let most = range.max.as_ref().map(quantity);
    most.is_none_or(|most| rounded <= most).then_some(rounded)
}

/// How much of one capacity a share takes: what is asked for, rounded up as the device's policy says; by
/// default what the policy names, else all of it.
fn taken(capacity: &DeviceCapacity, asked: Option<&Quantity>) -> Option<Quantity> {
    let policy = capacity.request_policy.as_ref();
    let default = || policy.and_then(|policy| policy.default.as_ref()).unwrap_or(&capacity.value);
    let Some(asked) = asked else { return Some(quantity(default())) };
    match policy {
        Some(CapacityRequestPolicy { valid_range: Some(range), .. }) => within(range, asked),
        Some(CapacityRequestPolicy { valid_values: Some(values), .. }) => {
            values.iter().map(quantity).filter(|value| value >= asked).min()
        }
        _ => Some(asked.clone()),
    }
}

/// What a share of the device takes of each of its capacities, beside what is `used`. Nothing when there is
/// not so much left, or the device has no such capacity.
pub fn share(device: &Device, driver: &str, asked: &Amounts, used: &Amounts) -> Option<Amounts> {
    if !asked.keys().all(|name| capacity(device, driver, name).is_some()) {
        return None;
    }
    let mut share = Amounts::new();
    for (name, capacity) in device.capacity.iter().flatten() {
        let wanted = asked.iter().find(|(known, _)| is_same(driver, known, name));
        let taken = taken(capacity, wanted.map(|(_, amount)| amount))?;
        let before = used.get(name).cloned().unwrap_or_default();
        if before.plus(&taken) > quantity(&capacity.value) {
            return None;
        }
        share.insert(name.clone(), taken);
    }
    Some(share)
}

/// Adds `more` to `sum`.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let entry = sum.entry(name.clone()).or_default();
        *entry = entry.plus(amount);
    }
}

/// Takes `less` from `sum`.
pub fn subtract(sum: &mut Amounts, less: &Amounts) {
    for (name, amount) in less {
        let entry = sum.entry(name.clone()).or_default();
        *entry = entry.minus(amount);
    }
}

/// What is left of the counters of pools: by driver, pool and set of counters.
#[derive(Clone, Debug, Default)]
pub struct Counters(BTreeMap<(String, String, String), Amounts>);

impl Counters {
    fn place(slice: &ResourceSliceSpec, set: &str) -> (String, String, String) {
        (slice.driver.clone(), slice.pool.name.clone(), set.to_owned())
    }

    /// Adds the counters that a slice brings.
    pub fn bring(&mut self, slice: &ResourceSliceSpec) {
        for set in slice.shared_counters.iter().flatten() {
            let amounts =
                set.counters.iter().map(|(name, counter)| (name.clone(), quantity(&counter.value)));
            self.0.entry(Self::place(slice, &set.name)).or_default().extend(amounts);
        }
    }

    fn drawn(drawn: &DeviceCounterConsumption) -> Amounts {
        drawn
            .counters
            .iter()
            .map(|(name, counter)| (name.clone(), quantity(&counter.value)))
            .collect()
    }

    /// Whether enough is left for the device.
    pub fn suffice(&self, slice: &ResourceSliceSpec, device: &Device) -> bool {
        device.consumes_counters.iter().flatten().all(|drawn| {
            let left = self.0.get(&Self::place(slice, &drawn.counter_set));
            Self::drawn(drawn).iter().all(|(name, amount)| {
                left.and_then(|left| left.get(name)).is_some_and(|left| amount <= left)
            })
        })
    }

    /// The device takes its part.
    pub fn draw(&mut self, slice: &ResourceSliceSpec, device: &Device) {
        for drawn in device.consumes_counters.iter().flatten() {
            let left = self.0.entry(Self::place(slice, &drawn.counter_set)).or_default();
            subtract(left, &Self::drawn(drawn));
        }
    }

    /// The device gives its part back.
    pub fn give_back(&mut self, slice: &ResourceSliceSpec, device: &Device) {
        for drawn in device.consumes_counters.iter().flatten() {
            let left = self.0.entry(Self::place(slice, &drawn.counter_set)).or_default();
            add(left, &Self::drawn(drawn));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn shares_are_rounded_as_the_device_says() {
        let range =
            json!({"default": "2Gi", "validRange": {"min": "1Gi", "max": "8Gi", "step": "2Gi"}});
        let values = json!({"default": "1Gi", "validValues": ["1Gi", "4Gi", "16Gi"]});
        for (policy, asked, used, want) in [
            (json!(null), None, "0", Some("20Gi")),
            (json!(null), Some("3Gi"), "0", Some("3Gi")),
            (json!(null), Some("3Gi"), "18Gi", None),
            (json!(null), None, "1", None),
            (range.clone(), None, "0", Some("2Gi")),
            (range.clone(), Some("1"), "0", Some("1Gi")),
            (range.clone(), Some("2Gi"), "0", Some("3Gi")),
            (range.clone(), Some("3Gi"), "0", Some("3Gi")),
            (range, Some("8Gi"), "0", None),
            (values.clone(), None, "0", Some("1Gi")),
            (values.clone(), Some("2Gi"), "0", Some("4Gi")),
            (values.clone(), Some("5Gi"), "5Gi", None),
            (values, Some("17Gi"), "0", None),
        ] {
            let device: Device = serde_json::from_value(json!({"name": "d", "capacity": {
                "memory": {"value": "20Gi", "requestPolicy": policy}}}))
            .expect("a device");
            let number = |text: &str| text.parse::<Quantity>().expect("a quantity");
            let asked: Amounts = asked
                .map(|text| ("gpu.example.com/memory".to_owned(), number(text)))
                .into_iter()
                .collect();
            let used = Amounts::from([("memory".to_owned(), number(used))]);
            let got = share(&device, "gpu.example.com", &asked, &used);
            let want = want.map(|text| Amounts::from([("memory".to_owned(), number(text))]));
            assert_eq!(got, want, "{policy} {asked:?}");
        }
    }

    #[test]
    fn a_whole_device_has_what_is_asked_for_or_not() {
        let device: Device =
            serde_json::from_value(json!({"name": "d", "capacity": {"memory": {"value": "8Gi"}}}))
                .expect("a device");
        let ask = |wanted: Value| {
            let wanted = serde_json::from_value(json!({"requests": wanted}));
            asked(Some(&wanted.expect("requirements")))
        };
        for (wanted, want) in [
            (json!({"memory": "8Gi"}), true),
            (json!({"memory": "9Gi"}), false),
            (json!({"cores": "1"}), false),
            (json!({}), true),
        ] {
            assert_eq!(covers(&device, "gpu.example.com", &ask(wanted.clone())), want, "{wanted}");
        }
    }
}
