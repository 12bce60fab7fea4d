//! [`Time`]: both clocks of a node, as plain numbers.

use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment as one node sees it, on both of its clocks, in nanoseconds.
///
/// Spans, timers and leases count on `boot` (CLOCK_BOOTTIME: it goes on while the machine sleeps and
/// never jumps). What is stored or shown carries `wall`, because boot time starts again with the
/// machine. Moments are ordered by `boot`.
///
/// ```
/// use std::time::Duration;
/// let start = job::Time::ZERO;
/// let later = start + Duration::from_secs(3);
/// assert_eq!(later.since(start), Duration::from_secs(3));
/// assert_eq!(start.since(later), Duration::ZERO);
/// ```
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Time {
    /// Nanoseconds on the boot clock.
    pub boot: u64,
    /// Nanoseconds since the Unix epoch.
    pub wall: u64,
}

impl Time {
    /// The start of both clocks; tests begin here.
    pub const ZERO: Time = Time { boot: 0, wall: 0 };

    /// How long after `earlier` this moment is, on the boot clock; zero when it is not after.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.boot.saturating_sub(earlier.boot))
    }

    /// The moment on this boot's clocks at which the wall clock shows `wall` nanoseconds: how a
    /// persisted deadline is read again after a restart. Moments in the past are given as such.
    pub fn at_wall(self, wall: u64) -> Time {
        let boot = if wall >= self.wall {
            self.boot.saturating_add(wall - self.wall)
        } else {
            self.boot.saturating_sub(self.wall - wall)
        };
        Time { boot, wall }
    }

    /// Seconds since the Unix epoch.
    pub fn unix_seconds(self) -> u64 {
        self.wall / 1_000_000_000
    }
}

impl PartialEq for Time {
    fn eq(&self, other: &Self) -> bool {
        self.boot == other.boot
    }
}

impl Eq for Time {}

impl PartialOrd for Time {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Time {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.boot.cmp(&other.boot)
    }
}

/// Span in nanoseconds; more than 584 years count as that.
fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, span: Duration) -> Time {
        Time { boot: self.boot.saturating_add(nanos(span)), wall: self.wall.saturating_add(nanos(span)) }
    }
}

impl Sub<Duration> for Time {
    type Output = Time;

    fn sub(self, span: Duration) -> Time {
        Time { boot: self.boot.saturating_sub(nanos(span)), wall: self.wall.saturating_sub(nanos(span)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_persisted_deadline_keeps_its_distance_over_a_reboot() {
        let before = Time { boot: 5_000_000_000, wall: 1_000_000_000_000 };
        let deadline = before + Duration::from_secs(60);
        let after = Time { boot: 1_000_000_000, wall: 1_010_000_000_000 };
        assert_eq!(after.at_wall(deadline.wall).since(after), Duration::from_secs(50));
    }
}
