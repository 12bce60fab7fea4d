//! The node's clocks, read in one place: [`job::Time`] is boot time for spans and wall time for records.

use std::time::Duration;

use job::Time;
use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio::time::Instant;

/// Both clocks, now.
pub fn now() -> Time {
    Time { boot: nanos(clock_gettime(ClockId::Boottime)), wall: nanos(clock_gettime(ClockId::Realtime)) }
}

/// The tokio instant at which the boot clock will show `at`, as far as the machine does not sleep until
/// then; a sleeping machine wakes its timers at once when it is back.
pub fn instant(at: Time) -> Instant {
    Instant::now() + at.since(now())
}

/// Wall time as RFC 3339 with nanoseconds, as Bacalhau writes it.
pub fn rfc3339(wall: u64) -> String {
    let (seconds, nanos) = (wall / 1_000_000_000, wall % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Days since the Unix epoch as year, month and day of the proleptic Gregorian calendar
/// (the 400-year cycle has 146,097 days; years are counted from 1 March so that leap days come last).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let span = Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0));
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_is_written_as_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(rfc3339(1_795_334_658_329_927_566), "2026-11-22T08:04:18.329927566Z");
    }

    #[test]
    fn boot_time_goes_forward() {
        let earlier = now();
        assert!(now() >= earlier);
    }
}
