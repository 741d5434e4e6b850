//! Timestamps as the API writes them, and ages as kubectl prints them.
//!
//! Sources: `metav1.Time`, `metav1.MicroTime`, `k8s.io/apimachinery/pkg/util/duration`.

use std::time::Duration;

use jiff::Timestamp;

mod layout;

pub use layout::{Layout, Moment};

/// A time in whole seconds: `2006-01-02T15:04:05Z`.
pub fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time in microseconds: `2006-01-02T15:04:05.000000Z`.
pub fn micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Now, as `metadata.creationTimestamp` has it.
pub fn now() -> String {
    seconds(Timestamp::now())
}

/// Now, as a lease's `renewTime` has it.
pub fn now_micros() -> String {
    micros(Timestamp::now())
}

/// Reads RFC 3339; the error is worded as Go's `time.Parse` words it. What is past our clock's end, which stands for
/// never, becomes that end.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    let moment = Moment::read(text, Layout::Seconds)?;
    let end = if moment.seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Ok(Timestamp::new(moment.seconds, moment.nanos).unwrap_or(end))
}

/// How long ago `text` was, for the AGE column; `<unknown>` when it is no time.
pub fn age(text: &str, now: Timestamp) -> String {
    let Ok(then) = parse(text) else { return "<unknown>".into() };
    let seconds = now.duration_since(then).as_secs();
    // A clock that is a little behind shows 0s; one that is far behind is told as such.
    match u64::try_from(seconds) {
        Ok(seconds) => human(Duration::from_secs(seconds)),
        Err(_) if seconds == -1 => "0s".into(),
        Err(_) => "<invalid>".into(),
    }
}

/// A duration as Go writes it: `1h30m`, `2.5s`, `100ms`; `None` when it is none, or negative.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut nanos = 0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let scale = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        nanos += number.parse::<f64>().ok()? * scale;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::from_nanos(nanos as u64))
}

/// A duration with two or three significant digits: `90s`, `5m30s`, `3h`, `2d4h`, `3y10d`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let two = |big: u64, unit: &str, small: u64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        two(minutes, "m", seconds % 60, "s")
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        two(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 192 {
        two(days, "d", hours % 24, "h")
    } else if days < 365 * 2 {
        format!("{days}d")
    } else if days < 365 * 8 {
        two(years, "y", days % 365, "d")
    } else {
        format!("{years}y")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let cases = [
            ("5s", Some(5000)),
            ("1h30m", Some(5_400_000)),
            ("2.5s", Some(2500)),
            ("100ms", Some(100)),
            ("0", Some(0)),
            ("5", None),
            ("", None),
            ("-1s", None),
            ("1d", None),
        ];
        for (text, ms) in cases {
            assert_eq!(duration(text), ms.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn durations_are_human() {
        let (minute, hour, day) = (60, 3600, 86400);
        for (seconds, want) in [
            (0, "0s"),
            (70, "70s"),
            (2 * minute, "2m"),
            (5 * minute + 30, "5m30s"),
            (70 * minute, "70m"),
            (4 * hour, "4h"),
            (7 * hour + 59 * minute, "7h59m"),
            (47 * hour, "47h"),
            (2 * day + 4 * hour, "2d4h"),
            (8 * day, "8d"),
            (400 * day, "400d"),
            (365 * 3 * day + 10 * day, "3y10d"),
            (365 * 9 * day, "9y"),
        ] {
            assert_eq!(human(Duration::from_secs(seconds)), want);
        }
    }

    #[test]
    fn times_are_written_in_utc() {
        let time = parse("2026-01-02T03:04:05.5+01:00").expect("valid");
        assert_eq!(seconds(time), "2026-01-02T02:04:05Z");
        assert_eq!(micros(time), "2026-01-02T02:04:05.500000Z");
        assert_eq!(
            parse("yesterday").expect_err("no time"),
            "parsing time \"yesterday\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"yesterday\" as \"2006\""
        );
        assert_eq!(age("2026-01-02T02:04:05Z", time + Duration::from_secs(90)), "90s");
        assert_eq!(age("", time), "<unknown>");
    }
}
