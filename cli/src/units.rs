//! Spans, sizes and moments as people write and read them.

use std::time::Duration;

/// Reads a span: `10s`, `5m`, `1h30m`, `250ms`, `2d`; a bare number counts seconds.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(cli::units::duration("1h30m"), Ok(Duration::from_secs(5400)));
/// assert_eq!(cli::units::duration("45"), Ok(Duration::from_secs(45)));
/// assert!(cli::units::duration("soon").is_err());
/// ```
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a span of time (such as 10s, 5m, 1h30m, or a number of seconds)");
    let text_trimmed = text.trim();
    if let Ok(seconds) = text_trimmed.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| wrong());
    }
    let mut rest = text_trimmed;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let word = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(word);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let span = Duration::try_from_secs_f64(number * unit_seconds(unit.trim()).ok_or_else(wrong)?);
        total = span.ok().and_then(|span| total.checked_add(span)).ok_or_else(wrong)?;
        rest = after.trim_start();
    }
    if text_trimmed.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// Reads a span as whole seconds, as specs have it; a part of a second counts as one.
pub fn seconds(text: &str) -> Result<i64, String> {
    let span = duration(text)?;
    let seconds = span.as_secs() + u64::from(span.subsec_nanos() > 0);
    i64::try_from(seconds).map_err(|_| format!("{text:?} is too long"))
}

fn unit_seconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "ms" => 0.001,
        "s" | "sec" | "secs" => 1.0,
        "m" | "min" | "mins" => 60.0,
        "h" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86400.0,
        _ => return None,
    })
}

/// Reads a size in bytes: `1048576`, `64k`, `1MiB`, `2GB`. Units with an `i` are powers of 1024, others of 1000.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size (such as 1048576, 64KiB, 1MB)");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let factor: u64 = match unit.trim() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000 * 1000,
        "g" | "gb" => 1000 * 1000 * 1000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(wrong);
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = number * factor as f64;
    if bytes.is_finite() && bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(wrong()) }
}

/// Bytes for people: `512 B`, `1.5 KiB`, `2.0 GiB`.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if amount < 1023.95 {
            break;
        }
        amount /= 1024.0;
        unit = next;
    }
    format!("{amount:.1} {unit}")
}

/// A span for people: `12 ms`, `1.4 s`, `3m 20s`, `2h 5m`.
pub fn show_span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 => format!("{} ms", span.as_millis()),
        1..60 => format!("{:.1} s", span.as_secs_f64()),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// A moment in nanoseconds since the Unix epoch as `2026-11-22 08:04:18`, in UTC; empty for none.
pub fn show_nanos(nanos: i64) -> String {
    if nanos <= 0 {
        return String::new();
    }
    let seconds = nanos / 1_000_000_000;
    let (year, month, day) = civil(seconds.div_euclid(86400));
    let of_day = seconds.rem_euclid(86400);
    let (hour, minute, second) = (of_day / 3600, of_day % 3600 / 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// An RFC 3339 moment in UTC, as the API writes it, in the form of [`show_nanos`]; other text unchanged.
pub fn show_rfc3339(text: &str) -> String {
    if text.starts_with("0001-") {
        return String::new();
    }
    match (text.get(..10), text.get(10..11), text.get(11..19), text.ends_with('Z')) {
        (Some(date), Some("T"), Some(time), true) => format!("{date} {time}"),
        _ => text.to_owned(),
    }
}

/// Days since the Unix epoch as year, month, day of the Gregorian calendar (it repeats every 146097 days).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468; // from 0000-03-01, so that a leap day ends its year
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153; // 0 is March
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_with_and_without_units() {
        for (text, millis) in [
            ("10s", 10_000),
            ("5m", 300_000),
            ("7", 7_000),
            ("0.5", 500),
            ("250ms", 250),
            ("1h 2m 3s", 3_723_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "x", "5 parsecs", "-3", "-3s", "1e400", "NaN", "inf", "s", "99999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(seconds("1500ms"), Ok(2));
    }

    #[test]
    fn sizes_tell_powers_of_1000_from_powers_of_1024() {
        for (text, bytes) in
            [("262144", 262_144), ("1MB", 1_000_000), ("1MiB", 1_048_576), ("1.5k", 1500), ("0", 0)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "x", "-1", "1 parsec", "99999999999G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn moments_are_shown_in_utc() {
        assert_eq!(show_nanos(1_795_334_658_329_927_566), "2026-11-22 08:04:18");
        assert_eq!(show_nanos(951_782_400_000_000_000), "2000-02-29 00:00:00");
        assert_eq!(show_nanos(0), "");
        assert_eq!(show_rfc3339("2026-11-22T08:04:22.442145891Z"), "2026-11-22 08:04:22");
        assert_eq!(show_rfc3339("0001-01-01T00:00:00Z"), "");
        assert_eq!(show_rfc3339("soon"), "soon");
    }

    #[test]
    fn amounts_are_short_for_people() {
        assert_eq!(show_bytes(512), "512 B");
        assert_eq!(show_bytes(1536), "1.5 KiB");
        assert_eq!(show_bytes(1 << 30), "1.0 GiB");
        assert_eq!(show_span(Duration::from_millis(12)), "12 ms");
        assert_eq!(show_span(Duration::from_millis(1400)), "1.4 s");
        assert_eq!(show_span(Duration::from_secs(200)), "3m 20s");
        assert_eq!(show_span(Duration::from_secs(90_000)), "1d 1h");
    }
}
