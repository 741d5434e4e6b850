//! Timestamps and durations.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::{NO_OVERLOAD, Result};
use crate::cel::value::Value;

/// A duration as Go writes it: `1h2m3.5s`.
pub(in crate::cel) fn parse_duration(text: &str) -> std::result::Result<SignedDuration, String> {
    let bad = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(SignedDuration::ZERO);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut nanos = 0f64;
    let mut whole: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let factor: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(bad()),
        };
        match number.parse::<i128>() {
            Ok(n) => whole += n.checked_mul(factor).ok_or_else(bad)?,
            Err(_) => nanos += number.parse::<f64>().map_err(|_| bad())? * factor as f64,
        }
        rest = after;
    }
    let total = whole + nanos.round() as i128;
    let total = i64::try_from(if negative { -total } else { total }).map_err(|_| bad())?;
    Ok(SignedDuration::from_nanos(total))
}

/// A duration as CEL's `string()` writes it: seconds.
pub(in crate::cel) fn duration_text(duration: SignedDuration) -> String {
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos().unsigned_abs());
    if nanos == 0 {
        return format!("{seconds}s");
    }
    let sign = if duration.is_negative() && seconds == 0 { "-" } else { "" };
    format!("{sign}{seconds}.{}s", format!("{nanos:09}").trim_end_matches('0'))
}

pub(super) fn method<'a>(target: &Value<'a>, name: &str, args: &[Value<'a>]) -> Result<'a> {
    match target {
        Value::Duration(duration) => {
            let n = match name {
                "getHours" => duration.as_secs() / 3600,
                "getMinutes" => duration.as_secs() / 60,
                "getSeconds" => duration.as_secs(),
                "getMilliseconds" => i64::try_from(duration.as_millis()).unwrap_or(i64::MAX),
                _ => return Err(NO_OVERLOAD.into()),
            };
            Ok(Value::Int(n))
        }
        Value::Time(time) => part(*time, name, args),
        _ => Err(NO_OVERLOAD.into()),
    }
}

fn part<'a>(time: Timestamp, name: &str, args: &[Value<'a>]) -> Result<'a> {
    let zone = match args {
        [] => TimeZone::UTC,
        [Value::Text(name)] => offset(name)?,
        _ => return Err(NO_OVERLOAD.into()),
    };
    let at = time.to_zoned(zone);
    Ok(Value::Int(match name {
        "getFullYear" => i64::from(at.year()),
        "getMonth" => i64::from(at.month()) - 1,
        "getDate" => i64::from(at.day()),
        "getDayOfMonth" => i64::from(at.day()) - 1,
        "getDayOfYear" => i64::from(at.day_of_year()) - 1,
        "getDayOfWeek" => i64::from(at.weekday().to_sunday_zero_offset()),
        "getHours" => i64::from(at.hour()),
        "getMinutes" => i64::from(at.minute()),
        "getSeconds" => i64::from(at.second()),
        "getMilliseconds" => i64::from(at.millisecond()),
        _ => return Err(NO_OVERLOAD.into()),
    }))
}

/// A zone by its offset (`+02:00`) or its name.
fn offset(name: &str) -> std::result::Result<TimeZone, String> {
    let bad = || format!("unknown time zone {name}");
    if matches!(name, "UTC" | "") {
        return Ok(TimeZone::UTC);
    }
    if let Some((hours, minutes)) = name.split_once(':') {
        let (sign, hours) = match hours.strip_prefix('-') {
            Some(hours) => (-1, hours),
            None => (1, hours.strip_prefix('+').unwrap_or(hours)),
        };
        let number = |text: &str| text.parse::<i32>().map_err(|_| bad());
        let seconds = sign * (number(hours)? * 3600 + number(minutes)? * 60);
        let offset = jiff::tz::Offset::from_seconds(seconds).map_err(|_| bad())?;
        return Ok(offset.to_time_zone());
    }
    TimeZone::get(name).map_err(|_| bad())
}
