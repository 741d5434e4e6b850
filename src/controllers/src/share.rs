//! Amounts given as a number or as a percentage of something.
//!
//! Source: `k8s.io/apimachinery/pkg/util/intstr` (`GetScaledValueFromIntOrPercent`).

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A number, or a percentage of `total`, rounded `up` or down; nothing is 0.
pub fn of(value: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent * i64::from(total);
            ((product + if up { 99 } else { 0 }) / 100) as i32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_rounded_as_asked() {
        let percent = |text: &str| Some(IntOrString::String(text.into()));
        for (value, total, up, want) in [
            (None, 10, true, 0),
            (Some(IntOrString::Int(3)), 10, true, 3),
            (percent("25%"), 10, true, 3),
            (percent("25%"), 10, false, 2),
            (percent("100%"), 7, false, 7),
        ] {
            assert_eq!(of(value.as_ref(), total, up), want);
        }
    }
}
