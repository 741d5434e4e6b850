//! Resource quantities, as far as the kubelet computes with them: exact, in thousandths.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const SUFFIXES: &[(&str, i128)] = &[
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("E", 1_000_000_000_000_000_000),
];

/// The quantity in thousandths, rounded up as Kubernetes rounds; `None` when it is not one.
pub fn milli(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    // Numerator and denominator by which the number, taken in thousandths of a billionth, is scaled.
    let (scale, divisor): (i128, i128) = match suffix {
        "" => (1, 1),
        "m" => (1, 1_000),
        "u" => (1, 1_000_000),
        "n" => (1, 1_000_000_000),
        other => match SUFFIXES.iter().find(|(s, _)| *s == other) {
            Some((_, scale)) => (*scale, 1),
            None => exponent(other)?,
        },
    };
    let negative = number.starts_with('-');
    let digits = number.trim_start_matches(['+', '-']);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut value: i128 = 0;
    let mut below: i128 = 1;
    for c in whole.chars().chain(fraction.chars().take(12)) {
        value = value.checked_mul(10)?.checked_add(i128::from(c.to_digit(10)?))?;
    }
    for _ in fraction.chars().take(12) {
        below *= 10;
    }
    let numerator = value.checked_mul(scale)?.checked_mul(1_000)?;
    let denominator = below * divisor;
    let rounded = (numerator + denominator - 1) / denominator;
    Some(if negative { -rounded } else { rounded })
}

/// The quantity in whole units, rounded up.
pub fn value(quantity: &Quantity) -> Option<i64> {
    let milli = milli(quantity)?;
    i64::try_from((milli + if milli > 0 { 999 } else { 0 }) / 1_000).ok()
}

fn exponent(suffix: &str) -> Option<(i128, i128)> {
    let digits = suffix.strip_prefix(['e', 'E'])?;
    let power: i32 = digits.parse().ok()?;
    if power.abs() > 18 {
        return None;
    }
    let ten = 10_i128.pow(power.unsigned_abs());
    Some(if power < 0 { (1, ten) } else { (ten, 1) })
}

/// Bytes as a quantity with the largest binary suffix that fits.
pub fn binary(bytes: u64) -> String {
    for (shift, suffix) in [(40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_exactly() {
        for (text, expected) in [
            ("100m", Some(100)),
            ("1", Some(1_000)),
            ("0.5", Some(500)),
            ("64Mi", Some(64 * 1024 * 1024 * 1_000)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("1e3", Some(1_000_000)),
            ("1E", Some(1_000_000_000_000_000_000_000)),
            ("500u", Some(1)),
            ("12k", Some(12_000_000)),
            ("-2", Some(-2_000)),
            ("", None),
            ("1Q", None),
            ("x", None),
        ] {
            assert_eq!(milli(&Quantity(text.into())), expected, "{text}");
        }
        assert_eq!(value(&Quantity("100m".into())), Some(1));
    }
}
