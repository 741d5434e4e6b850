//! Schedules of cron jobs, read as strictly as upstream's parser reads them.
//!
//! Source: `ParseStandard` of `github.com/robfig/cron/v3`.

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Least and greatest number of a field, and names for the numbers from the least on.
type Bounds = (u64, u64, &'static [&'static str]);

/// Minute, hour, day of the month, month, day of the week.
const FIELDS: [Bounds; 5] =
    [(0, 59, &[]), (0, 23, &[]), (1, 31, &[]), (1, 12, &MONTHS), (0, 6, &DAYS)];
const DESCRIPTORS: [&str; 7] =
    ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];

/// What is wrong with a schedule, in upstream's words.
pub fn mistake(schedule: &str) -> Option<String> {
    check(schedule).err()
}

fn check(schedule: &str) -> Result<(), String> {
    if schedule.is_empty() {
        return Err("empty spec string".into());
    }
    let schedule = without_zone(schedule)?;
    if schedule.starts_with('@') {
        return descriptor(schedule);
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        let (want, count) = (FIELDS.len(), fields.len());
        return Err(format!(
            "expected exactly {want} fields, found {count}: [{}]",
            fields.join(" ")
        ));
    }
    for (text, bounds) in fields.into_iter().zip(FIELDS) {
        for part in text.split(',').filter(|part| !part.is_empty()) {
            range(part, bounds)?;
        }
    }
    Ok(())
}

/// The schedule after a `TZ=` or `CRON_TZ=` of a known zone.
fn without_zone(schedule: &str) -> Result<&str, String> {
    let zoned = schedule.strip_prefix("TZ=").or_else(|| schedule.strip_prefix("CRON_TZ="));
    let Some(zoned) = zoned else { return Ok(schedule) };
    let (zone, rest) = zoned.split_once(' ').unwrap_or((zoned, ""));
    if jiff::tz::TimeZone::get(zone).is_err() {
        return Err(format!("provided bad location {zone}: unknown time zone {zone}"));
    }
    Ok(rest.trim())
}

fn descriptor(text: &str) -> Result<(), String> {
    if DESCRIPTORS.contains(&text) {
        return Ok(());
    }
    let Some(duration) = text.strip_prefix("@every ") else {
        return Err(format!("unrecognized descriptor: {text}"));
    };
    if is_duration(duration) {
        return Ok(());
    }
    Err(format!("failed to parse duration {text}: time: invalid duration {duration:?}"))
}

/// Whether Go reads the text as a duration.
fn is_duration(text: &str) -> bool {
    let mut rest = text.trim_start_matches(['+', '-']);
    if rest == "0" {
        return true;
    }
    while !rest.is_empty() {
        let number = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let digits = rest.len() - number.len();
        let after = number.trim_start_matches(|c: char| !(c.is_ascii_digit() || c == '.'));
        let unit = &number[..number.len() - after.len()];
        let known = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"].contains(&unit);
        if !known || rest[..digits].parse::<f64>().is_err() {
            return false;
        }
        rest = after;
    }
    !text.trim_start_matches(['+', '-']).is_empty()
}

fn range(text: &str, (least, greatest, names): Bounds) -> Result<(), String> {
    let mut parts = text.split('/');
    let (body, step) = (parts.next().unwrap_or_default(), parts.next());
    let ends: Vec<&str> = body.split('-').collect();
    let (start, mut end) = if matches!(ends[0], "*" | "?") {
        (least, greatest)
    } else {
        let start = number(ends[0], least, names)?;
        match ends.as_slice() {
            [_] => (start, start),
            [_, end] => (start, number(end, least, names)?),
            _ => return Err(format!("too many hyphens: {text}")),
        }
    };
    if let Some(step) = step {
        let step = whole(step)?;
        if ends.len() == 1 {
            end = greatest;
        }
        if parts.next().is_some() {
            return Err(format!("too many slashes: {text}"));
        }
        if step == 0 {
            return Err(format!("step of range should be a positive number: {text}"));
        }
    }
    if start < least {
        return Err(format!("beginning of range ({start}) below minimum ({least}): {text}"));
    }
    if end > greatest {
        return Err(format!("end of range ({end}) above maximum ({greatest}): {text}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    Ok(())
}

fn number(text: &str, least: u64, names: &[&str]) -> Result<u64, String> {
    let lower = text.to_lowercase();
    match names.iter().zip(least..).find(|(name, _)| **name == lower) {
        Some((_, number)) => Ok(number),
        None => whole(text),
    }
}

fn whole(text: &str) -> Result<u64, String> {
    let number: i64 = text.parse().map_err(|_| {
        format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax")
    })?;
    u64::try_from(number).map_err(|_| format!("negative number ({number}) not allowed: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_read_as_upstream_does() {
        for (schedule, want) in [
            ("* * * * *", None),
            ("*/5 0-6,12 1 JAN-mar mon", None),
            ("? ? ? ? ?", None),
            ("@daily", None),
            ("@every 1h30m", None),
            ("5/15 * * * *", None),
            ("", Some("empty spec string")),
            ("@often", Some("unrecognized descriptor: @often")),
            ("@every x", Some("failed to parse duration @every x: time: invalid duration \"x\"")),
            ("* * *", Some("expected exactly 5 fields, found 3: [* * *]")),
            ("60 * * * *", Some("end of range (60) above maximum (59): 60")),
            ("* * 0 * *", Some("beginning of range (0) below minimum (1): 0")),
            ("9-5 * * * *", Some("beginning of range (9) beyond end of range (5): 9-5")),
            ("*/0 * * * *", Some("step of range should be a positive number: */0")),
            ("1-2-3 * * * *", Some("too many hyphens: 1-2-3")),
            ("1/2/3 * * * *", Some("too many slashes: 1/2/3")),
            (
                "a * * * *",
                Some("failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ),
        ] {
            assert_eq!(mistake(schedule).as_deref(), want, "{schedule}");
        }
    }
}
