//! A guest's share of the processors.
//!
//! What a guest takes beyond its share it pays for by waiting before its next turn. The account begins full and
//! holds a little, so that guests that are soon done never wait.

use std::time::{Duration, Instant};

/// Processor time that a guest may be ahead of its share. Most guests need less than this in all.
const AHEAD: Duration = Duration::from_millis(300);

/// A guest is one thread, which no whole processor is too small for.
const WHOLE: u32 = 1000;

/// The smallest share: a turn of ten milliseconds in each second.
const LEAST: u32 = 10;

/// Holds one guest to its share.
#[derive(Debug)]
pub(super) struct Share {
    milli: u32,
    /// In nanoseconds of processor time; below zero it waits.
    account: i128,
    filled: Instant,
    /// What was taken from the account already.
    booked: Duration,
}

impl Share {
    /// A share of `milli` thousandths of a processor, from now on.
    pub fn new(milli: u32, now: Instant) -> Self {
        Share { milli: milli.max(LEAST), account: nanos(AHEAD), filled: now, booked: Duration::ZERO }
    }

    /// How long the guest is to wait that has taken `spent` since it began.
    pub fn wait(&mut self, now: Instant, spent: Duration) -> Option<Duration> {
        if self.milli >= WHOLE {
            return None;
        }
        let (milli, whole) = (i128::from(self.milli), i128::from(WHOLE));
        let earned = nanos(now.saturating_duration_since(self.filled)) * milli / whole;
        let taken = nanos(spent.saturating_sub(self.booked));
        self.account = (self.account + earned).min(nanos(AHEAD)) - taken;
        (self.filled, self.booked) = (now, spent);
        let wait = -self.account * whole / milli;
        (wait > 0).then(|| Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)))
    }
}

fn nanos(span: Duration) -> i128 {
    i128::try_from(span.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_millis(10);

    /// The share of the processor that a guest gets in `turns` turns that always wants one.
    fn got(milli: u32, turns: u32) -> f64 {
        let began = Instant::now();
        let (mut share, mut now, mut spent) = (Share::new(milli, began), began, Duration::ZERO);
        for _ in 0..turns {
            (now, spent) = (now + TURN, spent + TURN);
            now += share.wait(now, spent).unwrap_or_default();
        }
        spent.as_secs_f64() / (now - began).as_secs_f64()
    }

    #[test]
    fn a_spinning_guest_gets_its_share_and_no_more() {
        for (milli, share) in [(100, 0.1), (500, 0.5), (900, 0.9), (1000, 1.0), (4000, 1.0), (0, 0.01)] {
            let got = got(milli, 10_000);
            assert!((got / share - 1.0).abs() < 0.03, "{milli}m got {got}");
        }
    }

    #[test]
    fn a_guest_that_is_soon_done_never_waits() {
        assert_eq!(got(10, AHEAD.div_duration_f64(TURN) as u32), 1.0);
    }

    #[test]
    fn a_guest_that_slept_is_no_further_ahead_than_one_that_begins() {
        let began = Instant::now();
        let mut share = Share::new(500, began);
        let later = began + Duration::from_secs(3600);
        assert_eq!(share.wait(later, AHEAD), None);
        assert_eq!(share.wait(later, AHEAD + TURN), Some(2 * TURN));
    }
}
