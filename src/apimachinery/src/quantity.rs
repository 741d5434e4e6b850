//! `resource.Quantity`: exact decimal amounts with SI and binary suffixes.
//!
//! Source: `k8s.io/apimachinery/pkg/api/resource`. Up to 38 significant digits are kept; upstream has
//! no such bound, but rounds to a billionth as we do.

use std::{cmp::Ordering, fmt, str::FromStr};

/// Why text is no quantity; the texts are upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It does not have the shape of one.
    #[error(
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    )]
    Format,
    /// The number is not one, or too long.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix is not known.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// How a quantity is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `1500m`, `12M`
    #[default]
    DecimalSi,
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
}

/// The smallest exponent of ten that is kept.
const NANO: i32 = -9;
const DIGITS: u32 = 38;

const DECIMAL: &[(&str, i32)] = &[
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
const BINARY: &[(&str, u32)] =
    &[("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

/// `mantissa × 10^scale`, written in `format`. Equality and order are of the amount alone.
#[derive(Clone, Debug, Default)]
pub struct Quantity {
    mantissa: i128,
    scale: i32,
    format: Format,
    /// What was parsed, where upstream keeps a spelling that is canonical enough.
    text: Option<Box<str>>,
}

fn digits(value: i128) -> u32 {
    value.unsigned_abs().checked_ilog10().map_or(0, |d| d + 1)
}

impl Quantity {
    /// A whole amount.
    pub fn new(value: i64, format: Format) -> Self {
        Self { mantissa: value.into(), scale: 0, format, text: None }.trimmed()
    }

    /// Thousandths, as CPU is counted.
    pub fn milli(value: i64) -> Self {
        Self { mantissa: value.into(), scale: -3, format: Format::DecimalSi, text: None }.trimmed()
    }

    /// Moves factors of ten from the mantissa to the scale, so that one amount has one form.
    fn trimmed(mut self) -> Self {
        if self.mantissa == 0 {
            self.scale = 0;
        }
        while self.mantissa != 0 && self.mantissa % 10 == 0 {
            self.mantissa /= 10;
            self.scale += 1;
        }
        self
    }

    /// How it is written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    /// -1, 0 or 1.
    pub fn signum(&self) -> i32 {
        self.mantissa.signum() as i32
    }

    /// The amount in units of `10^scale`, rounded away from zero, and whether that was exact.
    /// Amounts beyond the integer's range saturate.
    fn at_scale(&self, scale: i32) -> (i128, bool) {
        let shift = self.scale.saturating_sub(scale);
        if shift >= 0 {
            let factor = 10i128.checked_pow(shift as u32);
            let value = factor.and_then(|f| self.mantissa.checked_mul(f));
            let limit = if self.mantissa < 0 { i128::MIN } else { i128::MAX };
            return value
                .map_or((if self.is_zero() { 0 } else { limit }, self.is_zero()), |v| (v, true));
        }
        match 10i128.checked_pow(shift.unsigned_abs()) {
            Some(divisor) => {
                let (whole, rest) = (self.mantissa / divisor, self.mantissa % divisor);
                (whole + if rest == 0 { 0 } else { rest.signum() }, rest == 0)
            }
            None => (self.mantissa.signum(), false),
        }
    }

    /// The amount in whole units, rounded away from zero, within 64 bits.
    pub fn value(&self) -> i64 {
        self.scaled(0)
    }

    /// Whether there is nothing behind the point.
    pub fn is_whole(&self) -> bool {
        self.scale >= 0 || self.at_scale(0).1
    }

    /// Whether it is some number of `unit`s; both as whole amounts.
    pub fn is_multiple_of(&self, unit: &Self) -> bool {
        let (amount, unit) = (self.at_scale(0).0, unit.at_scale(0).0);
        unit != 0 && amount % unit == 0
    }

    /// The amount in thousandths, rounded away from zero, within 64 bits.
    pub fn milli_value(&self) -> i64 {
        self.scaled(-3)
    }

    fn scaled(&self, scale: i32) -> i64 {
        let (value, _) = self.at_scale(scale);
        i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
    }

    /// Rounds away from zero to a multiple of `10^scale`.
    #[must_use]
    pub fn rounded_up(mut self, scale: i32) -> Self {
        if self.scale >= scale {
            return self;
        }
        let (mantissa, _) = self.at_scale(scale);
        self.mantissa = mantissa;
        self.scale = scale;
        self.text = None;
        self.trimmed()
    }

    /// The sum, written as `self` is unless that is zero.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let scale = self.scale.min(other.scale).max(NANO);
        let mantissa = self.at_scale(scale).0.saturating_add(other.at_scale(scale).0);
        let format = if self.is_zero() { other.format } else { self.format };
        Self { mantissa, scale, format, text: None }.trimmed()
    }

    /// The difference, written as `self` is unless that is zero.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let negated = Self { mantissa: other.mantissa.saturating_neg(), ..other.clone() };
        self.plus(&negated)
    }

    /// The amount `factor` times.
    #[must_use]
    pub fn times(&self, factor: i64) -> Self {
        let mantissa = self.mantissa.saturating_mul(factor.into());
        Self { mantissa, scale: self.scale, format: self.format, text: None }.trimmed()
    }

    /// The amount as a float, for scores and metrics.
    pub fn to_f64(&self) -> f64 {
        self.mantissa as f64 * 10f64.powi(self.scale)
    }

    /// The spelling that every equal amount of this format has.
    pub fn canonical(&self) -> String {
        if self.is_zero() {
            return "0".into();
        }
        if self.format == Format::BinarySi
            && let Some(text) = self.binary()
        {
            return text;
        }
        let mut exponent = self.scale - self.scale.rem_euclid(3);
        if self.format != Format::DecimalExponent {
            exponent = exponent.min(18);
        }
        let number = self.digits_at(exponent);
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { number } else { format!("{number}e{exponent}") };
        }
        let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| s);
        format!("{number}{suffix}")
    }

    /// The amount in units of `10^scale`, of which it is a multiple, however many digits that takes.
    fn digits_at(&self, scale: i32) -> String {
        let zeros = usize::try_from(self.scale - scale).unwrap_or(0);
        format!("{}{}", self.mantissa, "0".repeat(zeros))
    }

    /// Whole numbers from 1024 up have a binary spelling; others are shown in decimal, exactly.
    fn binary(&self) -> Option<String> {
        let (mut value, exact) = self.at_scale(0);
        if !exact || value.unsigned_abs() < 1024 {
            return None;
        }
        let mut suffix = "";
        for (name, _) in BINARY {
            if value % 1024 != 0 {
                break;
            }
            value /= 1024;
            suffix = name;
        }
        Some(format!("{value}{suffix}"))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => f.write_str(text),
            None => f.write_str(&self.canonical()),
        }
    }
}

/// Sign, digits before the point, digits after it, suffix.
fn split(text: &str) -> Result<(bool, &str, &str, &str), Error> {
    let (negative, rest) = match text.as_bytes().first() {
        None => return Err(Error::Format),
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        Some(_) => (false, text),
    };
    let end = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let (whole, rest) = rest.split_at(end(rest));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(end(rest)),
        None => ("", rest),
    };
    let letters = suffix.find(|c: char| !"eEinumkKMGTP".contains(c)).unwrap_or(suffix.len());
    let number = suffix[letters..].strip_prefix(['-', '+']).unwrap_or(&suffix[letters..]);
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Error::Format);
    }
    if whole.is_empty() && fraction.is_empty() && !rest.starts_with('.') && !suffix.is_empty() {
        return Err(Error::Format);
    }
    Ok((negative, whole.trim_start_matches('0'), fraction, suffix))
}

enum Suffix {
    Ten(i32, Format),
    Two(u32),
}

fn interpret(suffix: &str) -> Result<Suffix, Error> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok(Suffix::Ten(*exponent, Format::DecimalSi));
    }
    if let Some((_, exponent)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Ok(Suffix::Two(*exponent));
    }
    let digits = suffix.strip_prefix(['e', 'E']).ok_or(Error::Suffix)?;
    let exponent = digits.parse().map_err(|_| Error::Suffix)?;
    Ok(Suffix::Ten(exponent, Format::DecimalExponent))
}

impl FromStr for Quantity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (negative, whole, fraction, suffix) = split(text)?;
        let suffix = interpret(suffix)?;
        // Digits below a billionth only matter as "a bit more": keep one of them, rounded up below.
        let all = format!("{whole}{fraction}");
        let number = all.trim_start_matches('0');
        let zeros = number.len() - number.trim_end_matches('0').len();
        let mut number = &number[..number.len() - zeros];
        let mut scale = zeros as i32 - fraction.len() as i32;
        let mut more = 0;
        if let (true, Suffix::Ten(exponent, _)) = (number.len() > DIGITS as usize, &suffix) {
            // What is below a billionth only rounds up.
            let below = NANO.saturating_sub(scale.saturating_add(*exponent)).max(0);
            let kept = number.len().saturating_sub(below.unsigned_abs() as usize);
            more = i128::from(kept < number.len());
            scale += (number.len() - kept) as i32;
            number = &number[..kept];
        }
        let mantissa: i128 =
            if number.is_empty() { 0 } else { number.parse().map_err(|_| Error::Numeric)? };
        let mantissa = mantissa + more;
        let (mut mantissa, format) = match suffix {
            Suffix::Ten(exponent, format) => {
                scale = scale.saturating_add(exponent);
                (mantissa, format)
            }
            Suffix::Two(exponent) => {
                // Of more digits than fit the last ones go, rounded up.
                let mut kept = mantissa;
                let value = loop {
                    if let Some(value) = kept.checked_mul(1i128 << exponent) {
                        break value;
                    }
                    (kept, scale) = (kept / 10 + 1, scale + 1);
                };
                (value, Format::BinarySi)
            }
        };
        let mut parsed = Self { mantissa, scale, format, text: None };
        if mantissa != 0 && scale < NANO {
            (mantissa, _) = parsed.at_scale(NANO);
            parsed = Self { mantissa, scale: NANO, format, text: None };
        }
        if format == Format::BinarySi && parsed.at_scale(0).0 > i64::MAX.into() {
            parsed = Self::new(i64::MAX, format);
        }
        if format == Format::BinarySi && !parsed.is_zero() && parsed < Self::new(1, format) {
            parsed.format = Format::DecimalSi;
        }
        if negative {
            parsed.mantissa = -parsed.mantissa;
        }
        parsed = parsed.trimmed();
        let keep = match suffix {
            _ if text == "0" => true,
            Suffix::Two(exponent) => {
                let small = whole.len() as u32 + exponent * 3 / 10 < 15;
                fraction.is_empty() && small && whole.parse::<u64>().is_ok_and(|v| v & 7 != 0)
            }
            Suffix::Ten(exponent, _) => {
                let scale = exponent.saturating_sub(fraction.len() as i32);
                let count = whole.len().max(1) + fraction.len();
                (NANO..=1 << 20).contains(&scale)
                    && count <= 18
                    && scale % 3 == 0
                    && !whole.is_empty()
                    && !all.ends_with("000")
            }
        };
        parsed.text = keep.then(|| text.into());
        Ok(parsed)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        let sign = self.mantissa.signum().cmp(&other.mantissa.signum());
        if sign != Ordering::Equal || self.is_zero() {
            return sign;
        }
        // Compare the place of the first digit before aligning, so that aligning cannot overflow.
        let magnitude = |q: &Self| i64::from(digits(q.mantissa)) + i64::from(q.scale);
        let absolute = magnitude(self).cmp(&magnitude(other)).then_with(|| {
            let scale = self.scale.min(other.scale);
            self.at_scale(scale).0.unsigned_abs().cmp(&other.at_scale(scale).0.unsigned_abs())
        });
        if self.mantissa < 0 { absolute.reverse() } else { absolute }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn spellings_are_canonical_as_upstream() {
        let cases = [
            ("0", "0"),
            ("0n", "0"),
            ("0Ki", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("100m", "100m"),
            ("1024Mi", "1Gi"),
            ("1Gi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1000Ki", "1000Ki"),
            ("512Ki", "512Ki"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("9906.25Ki", "10144000"),
            ("0.5Mi", "512Ki"),
            ("1000k", "1M"),
            ("12e6", "12e6"),
            ("1e3", "1e3"),
            ("12E6", "12E6"),
            ("1E", "1E"),
            ("100E", "100E"),
            ("0.0000000001", "1n"),
            ("1.1n", "2n"),
            ("-1.1n", "-2n"),
            ("1000000", "1M"),
            ("1001m", "1001m"),
            ("8Ei", "9223372036854775807"),
            ("10E", "10E"),
            ("+1", "+1"),
            ("1.", "1."),
            (".5", "500m"),
            ("5e-3", "5e-3"),
            ("0.1Mi", "104857600m"),
            // More digits than an integer of 128 bits has.
            (
                "1000000000000000000000000000000000000000000000000000000000000",
                "1000000000000000000000000000000000000000000E",
            ),
            (
                "-100000000000000000000000000000000000000000000000000000000000000",
                "-100000000000000000000000000000000000000000000E",
            ),
            ("1.00000000000000000000000000000000000000000001", "1000000001n"),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text).to_string(), want, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for (text, want) in [
            ("", Error::Format),
            ("1.1.M", Error::Format),
            ("1+1.0M", Error::Format),
            ("aoeu", Error::Format),
            ("1 Mi", Error::Format),
            ("0.1mi", Error::Suffix),
            ("0.1am", Error::Format),
            (".5i", Error::Suffix),
            ("1i", Error::Suffix),
            ("1e", Error::Suffix),
            ("1K", Error::Suffix),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(want), "{text}");
        }
    }

    #[test]
    fn arithmetic_and_rounding() {
        assert_eq!(parse("1").plus(&parse("500m")).to_string(), "1500m");
        assert_eq!(parse("1Gi").minus(&parse("512Mi")).to_string(), "512Mi");
        assert_eq!(parse("0").plus(&parse("1Ki")).to_string(), "1Ki");
        assert_eq!(parse("1Ki").times(3).to_string(), "3Ki");
        assert_eq!(parse("1001u").rounded_up(-3).to_string(), "2m");
        assert_eq!(parse("1m").value(), 1);
        assert_eq!(parse("1.5").milli_value(), 1500);
        assert_eq!(parse("1e40").value(), i64::MAX);
        assert!(parse("1e40") > parse("9E"));
        assert!(parse("-1e40") < parse("0"));
    }

    proptest! {
        #[test]
        fn canonical_text_means_the_same(mantissa in any::<i64>(), suffix in prop::sample::select(vec!["n","u","m","","k","M","Ki","Mi","e3","e-6"])) {
            let parsed = parse(&format!("{mantissa}{suffix}"));
            let again = parse(&parsed.canonical());
            prop_assert_eq!(&parsed, &again);
            prop_assert_eq!(again.canonical(), parsed.canonical());
        }

        #[test]
        fn order_is_that_of_the_amounts(a in -1_000_000i64..1_000_000, b in -1_000_000i64..1_000_000) {
            let (x, y) = (Quantity::milli(a), parse(&format!("{b}m")));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            prop_assert_eq!(x.plus(&y), Quantity::milli(a + b));
            prop_assert_eq!(x.minus(&y), Quantity::milli(a - b));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[+-]?[0-9.]{0,45}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,9}") {
            if let Ok(parsed) = text.parse::<Quantity>() {
                let _ = (parsed.canonical(), parsed.value(), parsed.milli_value());
            }
        }

        #[test]
        fn long_numbers_are_read_back(text in "-?[0-9]{1,60}(\\.[0-9]{0,60})?(n|u|m|k|M|E|Ki|Ei|e3|e-6)?") {
            if let Ok(parsed) = text.parse::<Quantity>() {
                let written = parsed.canonical();
                let again = written.parse::<Quantity>();
                prop_assert!(again.is_ok(), "{} {}", text, written);
                prop_assert_eq!(again.map(|q| q.canonical()), Ok(written));
            }
        }
    }
}
