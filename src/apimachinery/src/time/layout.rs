//! Times as Go reads and writes them: of all years from 0 to 9999, and refused in Go's words.
//!
//! Source: `Parse` of Go's package `time`, with the layouts that `metav1.Time` and `metav1.MicroTime` give it.

/// How a time is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `metav1.Time`: a fraction of the second may be there and is lost.
    Seconds,
    /// `metav1.MicroTime`: a fraction of exactly six digits.
    Micros,
}

impl Layout {
    fn text(self) -> &'static str {
        match self {
            Self::Seconds => "2006-01-02T15:04:05Z07:00",
            Self::Micros => "2006-01-02T15:04:05.000000Z07:00",
        }
    }
}

/// A point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since the beginning of 1970.
    pub seconds: i64,
    /// Nanoseconds after them.
    pub nanos: i32,
}

const DAY: i64 = 86_400;
/// The beginning of the year 0, and the last second of the clock with which typed objects are read.
const KEPT: (i64, i64) = (-62_167_219_200, 253_402_207_200);

impl Moment {
    /// Reads a time, as Go does.
    pub fn read(text: &str, layout: Layout) -> Result<Self, String> {
        let mut rest = Rest { all: text, left: text, layout };
        let year = i64::from(rest.number("2006", 4, true)?);
        let month = rest.after("-")?.within("01", true, 1..=12, "month")?;
        let day = rest.after("-")?.number("02", 2, true)?;
        let hour = rest.after("T")?.within("15", false, 0..=23, "hour")?;
        let minute = rest.after(":")?.within("04", true, 0..=59, "minute")?;
        let second = rest.after(":")?.within("05", true, 0..=59, "second")?;
        let nanos = rest.fraction()?;
        let offset = rest.offset()?;
        if !rest.left.is_empty() {
            return Err(rest.told(&format!("extra text: {:?}", rest.left)));
        }
        if day < 1 || day > days_in(month, year) {
            return Err(rest.told("day out of range"));
        }
        let time = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
        Ok(Self { seconds: days_until(year, month, day) * DAY + time - offset, nanos })
    }

    /// The nearest time that can be stored and read again.
    #[must_use]
    pub fn kept(self) -> Self {
        Self { seconds: self.seconds.clamp(KEPT.0, KEPT.1), ..self }
    }

    /// Writes it in UTC.
    pub fn write(self, layout: Layout) -> String {
        let (days, time) = (self.seconds.div_euclid(DAY), self.seconds.rem_euclid(DAY));
        let (year, month, day) = date(days);
        let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
        let fraction = match layout {
            Layout::Seconds => String::new(),
            Layout::Micros => format!(".{:06}", self.nanos / 1000),
        };
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
    }
}

/// What is still to be read.
struct Rest<'a> {
    all: &'a str,
    left: &'a str,
    layout: Layout,
}

impl Rest<'_> {
    fn told(&self, message: &str) -> String {
        format!("parsing time {:?}: {message}", self.all)
    }

    fn unlike(&self, element: &str) -> String {
        let (all, layout, left) = (self.all, self.layout.text(), self.left);
        format!("parsing time {all:?} as {layout:?}: cannot parse {left:?} as {element:?}")
    }

    fn after(&mut self, sign: &str) -> Result<&mut Self, String> {
        self.left = self.left.strip_prefix(sign).ok_or_else(|| self.unlike(sign))?;
        Ok(self)
    }

    /// A number of `digits` digits; of one too, unless it is `fixed`.
    fn number(&mut self, element: &str, digits: usize, fixed: bool) -> Result<u32, String> {
        let there = self.left.bytes().take(digits).take_while(u8::is_ascii_digit).count();
        if there == 0 || fixed && there < digits {
            return Err(self.unlike(element));
        }
        let (number, left) = self.left.split_at(there);
        self.left = left;
        number.parse().map_err(|_| self.unlike(element))
    }

    fn within(
        &mut self,
        element: &str,
        fixed: bool,
        range: std::ops::RangeInclusive<u32>,
        name: &str,
    ) -> Result<u32, String> {
        let number = self.number(element, 2, fixed)?;
        if !range.contains(&number) {
            return Err(self.told(&format!("{name} out of range")));
        }
        Ok(number)
    }

    /// Nanoseconds: where the layout has none, as many digits as there are.
    fn fraction(&mut self) -> Result<i32, String> {
        let digits = self.left.strip_prefix(['.', ',']).unwrap_or_default();
        let there = digits.bytes().take_while(u8::is_ascii_digit).count();
        let taken = match self.layout {
            Layout::Seconds if there == 0 => return Ok(0),
            Layout::Seconds => there,
            Layout::Micros if there < 6 => return Err(self.unlike(".000000")),
            Layout::Micros => 6,
        };
        self.left = &digits[taken..];
        let nine: String = digits[..taken].chars().chain("000000000".chars()).take(9).collect();
        Ok(nine.parse().unwrap_or_default())
    }

    /// How far the place's clock is ahead, in seconds.
    fn offset(&mut self) -> Result<i64, String> {
        if let Some(left) = self.left.strip_prefix('Z') {
            self.left = left;
            return Ok(0);
        }
        let bytes = self.left.as_bytes();
        let &[sign, h1, h2, b':', m1, m2, ..] = bytes else { return Err(self.unlike("Z07:00")) };
        if ![h1, h2, m1, m2].iter().all(u8::is_ascii_digit) {
            return Err(self.unlike("Z07:00"));
        }
        let two = |tens: u8, ones: u8| i64::from(tens - b'0') * 10 + i64::from(ones - b'0');
        let (hours, minutes) = (two(h1, h2), two(m1, m2));
        let ahead = match sign {
            b'+' => 1,
            b'-' => -1,
            _ => return Err(self.unlike("Z07:00")),
        };
        if hours > 24 {
            return Err(self.told("time zone offset hour out of range"));
        }
        if minutes > 60 {
            return Err(self.told("time zone offset minute out of range"));
        }
        self.left = self.left.get(6..).unwrap_or_default();
        Ok(ahead * (hours * 3600 + minutes * 60))
    }
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(month: u32, year: i64) -> u32 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from the beginning of 1970, in years that begin with March, so that a leap day is the last of its year.
fn days_until(year: i64, month: u32, day: u32) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let months = (i64::from(month) + 9) % 12;
    let of_year = (153 * months + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The year, month and day that begin so many days after the beginning of 1970.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let months = (5 * of_year + 2) / 153;
    let day = of_year - (153 * months + 2) / 5 + 1;
    let month = if months < 10 { months + 3 } else { months - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        use Layout::{Micros, Seconds};
        for (text, layout, want) in [
            ("2026-01-02T03:04:05Z", Seconds, "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05.999+01:00", Seconds, "2026-01-02T02:04:05Z"),
            ("2026-01-02T3:04:05Z", Seconds, "2026-01-02T03:04:05Z"),
            ("2024-02-29T00:00:00-00:30", Seconds, "2024-02-29T00:30:00Z"),
            ("1969-12-31T23:59:59Z", Seconds, "1969-12-31T23:59:59Z"),
            ("0000-03-01T00:00:00Z", Seconds, "0000-03-01T00:00:00Z"),
            ("0001-01-01T00:00:00Z", Seconds, "0001-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59Z", Seconds, "9999-12-31T23:59:59Z"),
            ("9999-12-31T23:59:59.999999Z", Micros, "9999-12-31T23:59:59.999999Z"),
            ("2026-01-02T03:04:05.000006+00:00", Micros, "2026-01-02T03:04:05.000006Z"),
        ] {
            let moment = Moment::read(text, layout).expect(text);
            assert_eq!(moment.write(layout), want, "{text}");
        }
        for (text, want) in [
            ("9999-12-31T23:59:59-01:00", "9999-12-30T22:00:00Z"),
            ("0000-01-01T00:00:00+01:00", "0000-01-01T00:00:00Z"),
            ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        ] {
            let kept = Moment::read(text, Seconds).expect(text).kept().write(Seconds);
            assert_eq!(kept, want, "{text}");
            assert!(
                Moment::read(&kept, Seconds).is_ok() && kept.parse::<jiff::Timestamp>().is_ok()
            );
        }
        for second in [0, -1, 951_782_400, 4_107_542_399, -62_135_596_800] {
            let moment = Moment { seconds: second, nanos: 0 };
            let text = jiff::Timestamp::from_second(second).expect("a time").to_string();
            assert_eq!(moment.write(Seconds), text);
            assert_eq!(Moment::read(&text, Seconds), Ok(moment));
        }
    }

    #[test]
    fn what_is_no_time_is_told_as_go_tells_it() {
        let seconds = "2006-01-02T15:04:05Z07:00";
        for (text, want) in [
            ("yesterday", format!(" as {seconds:?}: cannot parse \"yesterday\" as \"2006\"")),
            ("", format!(" as {seconds:?}: cannot parse \"\" as \"2006\"")),
            ("2026-01-02", format!(" as {seconds:?}: cannot parse \"\" as \"T\"")),
            (
                "2026-1-02T00:00:00Z",
                format!(" as {seconds:?}: cannot parse \"1-02T00:00:00Z\" as \"01\""),
            ),
            (
                "2026-01-02 00:00:00Z",
                format!(" as {seconds:?}: cannot parse \" 00:00:00Z\" as \"T\""),
            ),
            ("2026-01-02T00:00:00", format!(" as {seconds:?}: cannot parse \"\" as \"Z07:00\"")),
            (
                "2026-01-02T00:00:00+0100",
                format!(" as {seconds:?}: cannot parse \"+0100\" as \"Z07:00\""),
            ),
            ("2026-13-02T00:00:00Z", ": month out of range".into()),
            ("2026-02-29T00:00:00Z", ": day out of range".into()),
            ("2026-01-02T24:00:00Z", ": hour out of range".into()),
            ("2026-01-02T00:60:00Z", ": minute out of range".into()),
            ("2026-01-02T00:00:60Z", ": second out of range".into()),
            ("2026-01-02T00:00:00Zz", ": extra text: \"z\"".into()),
            ("2026-01-02T00:00:00+25:00", ": time zone offset hour out of range".into()),
        ] {
            let got = Moment::read(text, Layout::Seconds).expect_err(text);
            assert_eq!(got, format!("parsing time {text:?}{want}"));
        }
        let micros = "2006-01-02T15:04:05.000000Z07:00";
        assert_eq!(
            Moment::read("2026-01-02T00:00:00Z", Layout::Micros).expect_err("no fraction"),
            format!(
                "parsing time \"2026-01-02T00:00:00Z\" as {micros:?}: cannot parse \"Z\" as \".000000\""
            )
        );
    }
}
