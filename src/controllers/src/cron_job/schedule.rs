//! Cron schedules: five fields, or a word such as `@daily`.
//!
//! Source: `github.com/robfig/cron/v3` (`ParseStandard`, `SpecSchedule.Next`), which upstream uses.

use k8s_openapi::jiff::civil::Weekday;
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp, ToSpan, Unit, Zoned, ZonedRound};

/// A schedule that has not come true within so many years never will.
const YEARS_MAX: i16 = 5;

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Which values of each field match, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether day of month or day of week was left open: then both must match, else either.
    any_day: bool,
    any_weekday: bool,
}

/// When something is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fields(Fields),
    /// Every so many seconds from the last time.
    Every(i64),
}

/// One field: bits, and whether it was `*` or `?`.
fn field(text: &str, min: u32, max: u32, names: &[&str]) -> Result<(u64, bool), String> {
    let number = |text: &str| -> Result<u32, String> {
        let first = u32::from(min == 1);
        if let Some(index) = names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
            return Ok(index as u32 + first);
        }
        text.parse().map_err(|_| format!("failed to parse int from {text}"))
    };
    let (mut bits, mut open) = (0, false);
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(number(step)?)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" || range == "?" => {
                open |= step.is_none_or(|step| step == 1);
                (min, max)
            }
            Some((first, last)) => (number(first)?, number(last)?),
            None => {
                let first = number(range)?;
                (first, if step.is_some() { max } else { first })
            }
        };
        let step = step.unwrap_or(1);
        if first < min {
            return Err(format!("beginning of range ({first}) below minimum ({min}): {part}"));
        }
        if last > max {
            return Err(format!("end of range ({last}) above maximum ({max}): {part}"));
        }
        if first > last {
            return Err(format!(
                "beginning of range ({first}) beyond end of range ({last}): {part}"
            ));
        }
        if step == 0 {
            return Err(format!("step of range should be a positive number: {part}"));
        }
        for value in (first..=last).step_by(step as usize) {
            bits |= 1 << value;
        }
    }
    if bits == 0 { Err("empty spec string".into()) } else { Ok((bits, open)) }
}

impl Schedule {
    /// Reads a schedule; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let fields = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ => text,
        };
        if let Some(period) = fields.strip_prefix("@every ") {
            let period: SignedDuration = period
                .trim()
                .parse()
                .map_err(|error| format!("failed to parse duration: {error}"))?;
            return Ok(Self(Kind::Every(period.as_secs().max(1))));
        }
        if fields.starts_with('@') {
            return Err(format!("unrecognized descriptor: {fields}"));
        }
        let parts: Vec<&str> = fields.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts[..] else {
            return Err(format!("expected exactly 5 fields, found {}: {parts:?}", parts.len()));
        };
        let (days, any_day) = field(day, 1, 31, &[])?;
        let (weekdays, any_weekday) = field(weekday, 0, 6, &DAYS)?;
        Ok(Self(Kind::Fields(Fields {
            minutes: field(minute, 0, 59, &[])?.0,
            hours: field(hour, 0, 23, &[])?.0,
            days,
            months: field(month, 1, 12, &MONTHS)?.0,
            weekdays,
            any_day,
            any_weekday,
        })))
    }

    /// The first time after `after`; `None` when there is none, such as for 30 February.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self.0 {
            Kind::Every(seconds) => {
                Timestamp::from_second(after.as_second().checked_add(seconds)?).ok()
            }
            Kind::Fields(fields) => fields.next(after, zone),
        }
    }

    /// The last time after `since` and not after `now`, and how many there were (a few over
    /// [`super::MISSED_MAX`] stand for all more).
    pub fn latest(
        &self,
        since: Timestamp,
        now: Timestamp,
        zone: &TimeZone,
    ) -> (Option<Timestamp>, usize) {
        let (mut latest, mut count, mut from) = (None, 0, since);
        while let Some(next) = self.next(from, zone).filter(|next| *next <= now) {
            latest = Some(next);
            count += 1;
            from = next;
            if count > super::MISSED_MAX {
                // Near the end the times are as frequent as anywhere: go on from there.
                let near = now - SignedDuration::from_secs(60 * super::MISSED_MAX as i64);
                if near <= from {
                    continue;
                }
                if self.next(near, zone).is_some_and(|next| next <= now) {
                    from = near;
                }
            }
        }
        (latest, count)
    }
}

fn has(bits: u64, value: i8) -> bool {
    bits & (1 << value) != 0
}

impl Fields {
    fn is_day(&self, time: &Zoned) -> bool {
        let weekday = time.weekday().since(Weekday::Sunday);
        let (day, weekday) = (has(self.days, time.day()), has(self.weekdays, weekday));
        if self.any_day || self.any_weekday { day && weekday } else { day || weekday }
    }

    /// Months and days are walked by the calendar, hours and minutes by the clock: an hour that a
    /// change of summer time leaves out does not come, one that it repeats comes twice.
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let start = after.to_zoned(zone.clone());
        let last_year = start.year() + YEARS_MAX;
        let minute =
            ZonedRound::new().smallest(Unit::Minute).mode(k8s_openapi::jiff::RoundMode::Trunc);
        let mut time = start.round(minute).ok()?.checked_add(1.minute()).ok()?;
        while time.year() <= last_year {
            if !has(self.months, time.month()) {
                time =
                    time.first_of_month().ok()?.checked_add(1.month()).ok()?.start_of_day().ok()?;
            } else if !self.is_day(&time) {
                time = time.tomorrow().ok()?.start_of_day().ok()?;
            } else if !has(self.hours, time.hour()) {
                let rest = 60 - i64::from(time.minute());
                time = time.checked_add(SignedDuration::from_mins(rest)).ok()?;
            } else if !has(self.minutes, time.minute()) {
                time = time.checked_add(1.minute()).ok()?;
            } else {
                return Some(time.timestamp());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str, zone: &str) -> Option<String> {
        let schedule = Schedule::parse(schedule).expect("a schedule");
        let zone = TimeZone::get(zone).expect("a zone");
        let next = schedule.next(after.parse().expect("a time"), &zone)?;
        Some(next.to_string())
    }

    #[test]
    fn times_follow_the_fields() {
        let cases = [
            ("* * * * *", "2026-01-01T00:00:30Z", Some("2026-01-01T00:01:00Z")),
            ("*/15 * * * *", "2026-01-01T00:45:00Z", Some("2026-01-01T01:00:00Z")),
            ("30 4 1,15 * 5", "2026-01-02T05:00:00Z", Some("2026-01-09T04:30:00Z")),
            ("0 0 31 * *", "2026-02-01T00:00:00Z", Some("2026-03-31T00:00:00Z")),
            ("0 0 29 feb *", "2026-01-01T00:00:00Z", Some("2028-02-29T00:00:00Z")),
            ("0 0 30 2 *", "2026-01-01T00:00:00Z", None),
            ("0 22 * * 1-5", "2026-01-02T23:00:00Z", Some("2026-01-05T22:00:00Z")),
            ("23 0-20/2 * * *", "2026-01-01T00:23:00Z", Some("2026-01-01T02:23:00Z")),
            ("5 4 * * sun", "2026-01-01T00:00:00Z", Some("2026-01-04T04:05:00Z")),
            ("@hourly", "2026-01-01T00:00:00Z", Some("2026-01-01T01:00:00Z")),
            ("@every 90s", "2026-01-01T00:00:00Z", Some("2026-01-01T00:01:30Z")),
        ];
        for (schedule, after, want) in cases {
            assert_eq!(next(schedule, after, "UTC").as_deref(), want, "{schedule}");
        }
    }

    #[test]
    fn zones_and_summer_time_are_kept() {
        let zone = "America/New_York";
        assert_eq!(
            next("0 9 * * *", "2026-01-01T00:00:00Z", zone).as_deref(),
            Some("2026-01-01T14:00:00Z")
        );
        // 8 March 2026: 02:30 does not exist.
        assert_eq!(
            next("30 2 * * *", "2026-03-08T05:00:00Z", zone).as_deref(),
            Some("2026-03-09T06:30:00Z")
        );
        // 1 November 2026: 01:30 comes twice.
        assert_eq!(
            next("30 1 * * *", "2026-11-01T05:30:00Z", zone).as_deref(),
            Some("2026-11-01T06:30:00Z")
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (text, want) in [
            ("* * * *", "expected exactly 5 fields"),
            ("60 * * * *", "above maximum"),
            ("* * 0 * *", "below minimum"),
            ("5-1 * * * *", "beyond end"),
            ("x * * * *", "failed to parse int"),
            ("@never", "unrecognized descriptor"),
        ] {
            let problem = Schedule::parse(text).expect_err("a mistake");
            assert!(problem.contains(want), "{text}: {problem}");
        }
    }

    #[test]
    fn the_latest_of_many_missed_times_is_found() {
        let schedule = Schedule::parse("* * * * *").expect("a schedule");
        let time = |text: &str| text.parse::<Timestamp>().expect("a time");
        let (latest, count) = schedule.latest(
            time("2026-01-01T00:00:00Z"),
            time("2026-06-01T00:00:30Z"),
            &TimeZone::UTC,
        );
        assert_eq!(latest, Some(time("2026-06-01T00:00:00Z")));
        assert!(count > super::super::MISSED_MAX);
    }
}
