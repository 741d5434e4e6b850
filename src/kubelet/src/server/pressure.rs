//! How long tasks waited for processors, memory and disks, and what was swapped out, as the summary tells them.
//!
//! Source: `k8s.io/kubelet/pkg/apis/stats/v1alpha1` (`PSIStats`, `IOStats`, `SwapStats`); psi.rst of the kernel.

use jiff::Timestamp;
use k8s_cri::v1 as cri;
use serde_json::{Map, Value, json};

/// Of the machine: `resource` is `cpu`, `memory` or `io`. Nothing where the kernel does not tell it.
pub fn of_machine(resource: &str) -> Value {
    let text = std::fs::read_to_string(format!("/proc/pressure/{resource}"));
    text.map_or(Value::Null, |text| parse(&text))
}

fn parse(text: &str) -> Value {
    let mut out = Map::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(whose) = words.next() else { continue };
        let numbers = words.filter_map(|word| {
            let (name, number) = word.split_once('=')?;
            let value = match name {
                // The kernel counts microseconds.
                "total" => json!(number.parse::<u64>().ok()?.saturating_mul(1_000)),
                _ => json!(number.parse::<f64>().ok()?),
            };
            Some((name.to_owned(), value))
        });
        out.insert(whose.to_owned(), numbers.collect::<Map<_, _>>().into());
    }
    out.into()
}

/// As the runtime tells it.
pub fn told(psi: Option<&cri::PsiStats>) -> Value {
    let Some(psi) = psi else { return Value::Null };
    let one = |data: Option<&cri::PsiData>| {
        let data = data.copied().unwrap_or_default();
        json!({"total": data.total, "avg10": data.avg10, "avg60": data.avg60, "avg300": data.avg300})
    };
    json!({"full": one(psi.full.as_ref()), "some": one(psi.some.as_ref())})
}

/// Adds what is known of somebody's disks and swap.
pub fn add(
    out: &mut Value,
    io: Option<&cri::IoUsage>,
    swap: Option<&cri::SwapUsage>,
    now: Timestamp,
) {
    if let Some(psi) = io.and_then(|io| io.psi.as_ref()) {
        out["io"] = json!({"time": now, "psi": told(Some(psi))});
    }
    let Some(swap) = swap else { return };
    let mut told = json!({"time": now});
    for (name, value) in [
        ("swapAvailableBytes", &swap.swap_available_bytes),
        ("swapUsageBytes", &swap.swap_usage_bytes),
    ] {
        if let Some(value) = value {
            told[name] = value.value.into();
        }
    }
    out["swap"] = told;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_of_the_machine_is_read() {
        let text = "some avg10=0.22 avg60=0.17 avg300=1.11 total=58761459\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        let expected = json!({"some": {"avg10": 0.22, "avg60": 0.17, "avg300": 1.11, "total": 58_761_459_000_u64},
            "full": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 5000}});
        assert_eq!(parse(text), expected);
        assert_eq!(parse(""), json!({}));
        assert_eq!(told(None), Value::Null);
    }
}
