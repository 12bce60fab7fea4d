//! A node's two clocks over the simulator's own: rate off by some percent, wall clock off by any amount, boot clock
//! starting anew at a reboot.

use job::Time;

/// One second in the simulator's nanoseconds.
pub(crate) const SECOND: u64 = 1_000_000_000;
/// One millisecond.
pub(crate) const MILLI: u64 = 1_000_000;

/// Where a node's boot clock starts after a reboot: a little after zero, as a kernel's does by the time a node runs.
const BOOT_START: u64 = 20 * SECOND;
const MILLION: i128 = 1_000_000;

/// What a node's clocks show at a moment of the simulation.
#[derive(Debug, Clone)]
pub(crate) struct Clock {
    /// The simulation's moment at which this boot began.
    started: u64,
    boot: u64,
    wall: u64,
    /// How much faster than true time both clocks run, in parts per million.
    rate_ppm: i64,
}

impl Clock {
    /// A node that has been up for `boot`, whose wall clock shows `wall` at the start of the simulation.
    pub fn new(boot: u64, wall: u64, rate_ppm: i64) -> Self {
        Clock { started: 0, boot, wall, rate_ppm }
    }

    /// What the node reads at the simulation's moment `at`.
    pub fn read(&self, at: u64) -> Time {
        let span = self.local_span(at.saturating_sub(self.started));
        Time { boot: self.boot + span, wall: self.wall + span }
    }

    /// The first moment of the simulation at which the node's boot clock shows at least `boot`.
    pub fn when(&self, boot: u64) -> u64 {
        let span = boot.saturating_sub(self.boot);
        // Rates are whole millionths, so this is right to a few nanoseconds; the rest is looked up.
        let guess = i128::from(span) * MILLION / (MILLION + i128::from(self.rate_ppm));
        let mut needed = u64::try_from(guess).unwrap_or(u64::MAX).saturating_sub(2);
        while needed < u64::MAX && self.local_span(needed) < span {
            needed += 1;
        }
        while needed > 0 && self.local_span(needed - 1) >= span {
            needed -= 1;
        }
        self.started.saturating_add(needed)
    }

    /// How much the node's clocks move in a span of true time.
    pub fn local_span(&self, span: u64) -> u64 {
        let span = i128::from(span);
        u64::try_from(span + span * i128::from(self.rate_ppm) / MILLION).unwrap_or(u64::MAX)
    }

    /// The machine starts anew: the boot clock begins again, the wall clock goes on.
    pub fn reboot(&mut self, at: u64) {
        let wall = self.read(at).wall;
        *self = Clock { started: at, boot: BOOT_START, wall, rate_ppm: self.rate_ppm };
    }

    /// The wall clock is set: it jumps, the boot clock does not.
    pub fn step_wall(&mut self, at: u64, by: i64) {
        let now = self.read(at);
        *self = Clock {
            started: at,
            boot: now.boot,
            wall: now.wall.saturating_add_signed(by),
            rate_ppm: self.rate_ppm,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wakeup_is_never_a_moment_too_early() {
        for rate in [-50_000, -3, 0, 7, 50_000] {
            let clock = Clock::new(17, 1_000 * SECOND, rate);
            for boot in [17, 18, 1_000_003, 61 * SECOND + 1, 90_000 * SECOND] {
                let at = clock.when(boot);
                assert!(clock.read(at).boot >= boot, "{rate} {boot}");
                assert!(at == 0 || clock.read(at - 1).boot < boot || boot == 17, "{rate} {boot}");
            }
        }
    }

    #[test]
    fn a_reboot_starts_the_boot_clock_anew_and_keeps_the_wall_clock() {
        let mut clock = Clock::new(500 * SECOND, 1_000 * SECOND, 50_000);
        let before = clock.read(100 * SECOND);
        clock.reboot(100 * SECOND);
        let after = clock.read(100 * SECOND);
        assert_eq!((after.boot, after.wall), (BOOT_START, before.wall));
    }
}
