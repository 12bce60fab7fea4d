//! One peer: how much may be on its way from it, and how fast it is.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use job::Time;

use super::Digest;
use crate::exchange::network::Agent;

/// What is asked of a peer at first: enough for 50 MB/s at 20 ms.
const START_WINDOW_BYTES: u64 = 1 << 20;

/// The most that is asked of a peer of ours: 800 MB/s at 20 ms.
const MAX_WINDOW_BYTES: u64 = 16 << 20;

/// Kubo keeps 1 MiB on its way; a second one in its queue keeps it busy, more waits for nothing.
const KUBO_WINDOW_BYTES: u64 = 2 << 20;

/// Above 1 MiB of outstanding wants js-libp2p writes frames that end the connection.
const JAVASCRIPT_WINDOW_BYTES: u64 = 768 << 10;

/// The least that a window shrinks to: one block of the old default size.
const MIN_WINDOW_BYTES: u64 = 256 << 10;

/// Entries at a peer: what Kubo keeps of a wantlist.
const MAX_ENTRIES: usize = 1024;

/// Taken for the speed of a peer that has not shown any, in bytes a second: a slow LAN.
const GUESSED_RATE: u64 = 16 << 20;

/// Taken for the latency of a peer that has not shown any.
const GUESSED_LATENCY: Duration = Duration::from_millis(5);

/// What a dial adds to the time that a block is expected to take.
const DIAL_TIME: Duration = Duration::from_secs(1);

/// Bytes that make a sample of the speed.
const SAMPLE_BYTES: u64 = 256 << 10;

/// Blocks remembered as asked for and no longer wanted: they are no offence when they come.
const MAX_LATE: usize = 2048;

#[derive(Debug)]
pub(super) struct PeerState {
    pub connected: bool,
    /// It let deadlines pass since it last sent a block.
    pub silent: bool,
    pub strikes: u32,
    /// Broken streams since the last block.
    pub losses: u32,
    pub heard_at: Option<Time>,
    /// When it last sent a block that somebody waited for.
    pub served_at: Option<Time>,
    max_window: u64,
    window: u64,
    in_flight: u64,
    entries: usize,
    /// Bytes a second.
    rate: Option<u64>,
    latency: Option<Duration>,
    sample: Sample,
    round: Round,
    late: Late,
}

/// Bytes that came while more were on their way, and the time that took.
#[derive(Debug, Default)]
struct Sample {
    since: Option<Time>,
    bytes: u64,
    span: Duration,
}

/// One window's worth of bytes: the window grows while each round is faster than the best before.
#[derive(Debug, Default)]
struct Round {
    since: Option<Time>,
    bytes: u64,
    best_rate: u64,
    /// The window, and not a lack of wants, held asks back.
    limited: bool,
}

#[derive(Debug, Default)]
struct Late {
    order: VecDeque<Digest>,
    known: BTreeSet<Digest>,
}

impl Default for PeerState {
    fn default() -> Self {
        PeerState {
            connected: false,
            silent: false,
            strikes: 0,
            losses: 0,
            heard_at: None,
            served_at: None,
            max_window: JAVASCRIPT_WINDOW_BYTES,
            window: JAVASCRIPT_WINDOW_BYTES,
            in_flight: 0,
            entries: 0,
            rate: None,
            latency: None,
            sample: Sample::default(),
            round: Round::default(),
            late: Late::default(),
        }
    }
}

impl PeerState {
    pub fn set_agent(&mut self, agent: Agent) {
        self.max_window = match agent {
            Agent::Cardume | Agent::Other => MAX_WINDOW_BYTES,
            Agent::Kubo => KUBO_WINDOW_BYTES,
            Agent::Javascript | Agent::Unknown => JAVASCRIPT_WINDOW_BYTES,
        };
        self.window = self.window.min(self.max_window);
        if self.rate.is_none() {
            self.window = START_WINDOW_BYTES.min(self.max_window);
        }
    }

    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Whether `bytes` more may be asked for. One block always may.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.entries == 0 || (self.in_flight + bytes <= self.window && self.entries < MAX_ENTRIES)
    }

    /// Notes that there was no room for a want.
    pub fn held_back(&mut self) {
        self.round.limited = true;
    }

    /// How long a block of `bytes` would take from now.
    pub fn expected(&self, bytes: u64) -> Duration {
        let latency = self.latency.unwrap_or(GUESSED_LATENCY);
        let dial = if self.connected { Duration::ZERO } else { DIAL_TIME };
        latency + dial + transfer(self.in_flight.saturating_add(bytes), self.rate.unwrap_or(GUESSED_RATE))
    }

    pub fn asked(&mut self, now: Time, bytes: u64) {
        if self.entries == 0 {
            self.sample.since = None;
            self.round.since = Some(now);
            self.round.bytes = 0;
        }
        self.in_flight += bytes;
        self.entries += 1;
    }

    /// An ask ended without a block.
    pub fn released(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.entries = self.entries.saturating_sub(1);
    }

    /// An ask ended with a block of `length` bytes.
    pub fn delivered(&mut self, now: Time, asked_at: Time, bytes: u64, length: u64) {
        self.released(bytes);
        self.measure_rate(now, asked_at, length);
        self.measure_round(now, length);
    }

    fn measure_rate(&mut self, now: Time, asked_at: Time, length: u64) {
        match self.sample.since.replace(now) {
            Some(since) => {
                self.sample.bytes += length;
                self.sample.span += now.since(since);
                if self.sample.bytes >= SAMPLE_BYTES && !self.sample.span.is_zero() {
                    self.add_rate(per_second(self.sample.bytes, self.sample.span));
                    self.sample = Sample { since: Some(now), ..Sample::default() };
                }
            }
            // First of a burst: its time is the round trip, and the transfer of one block.
            None => {
                let span = now.since(asked_at);
                if let Some(rate) = self.rate {
                    self.add_latency(span.saturating_sub(transfer(length, rate)));
                } else if length >= SAMPLE_BYTES {
                    self.add_rate(per_second(length, span));
                } else {
                    self.add_latency(span);
                }
            }
        }
    }

    fn add_rate(&mut self, sample: u64) {
        self.rate = Some(self.rate.map_or(sample, |rate| rate / 4 * 3 + sample / 4).max(1));
    }

    fn add_latency(&mut self, sample: Duration) {
        self.latency = Some(self.latency.map_or(sample, |latency| (latency * 3 + sample) / 4));
    }

    fn measure_round(&mut self, now: Time, length: u64) {
        self.round.bytes += length;
        if self.round.bytes < self.window {
            return;
        }
        let span = self.round.since.map_or(Duration::ZERO, |since| now.since(since));
        let rate = per_second(self.round.bytes, span);
        if self.round.limited && rate > self.round.best_rate.saturating_add(self.round.best_rate / 10) {
            self.window = (self.window * 2).min(self.max_window);
        }
        let best_rate = self.round.best_rate.max(rate);
        self.round = Round { since: Some(now), bytes: 0, best_rate, limited: false };
    }

    /// The peer was late or its stream broke: ask it for less.
    pub fn shrink(&mut self) {
        self.window = (self.window / 2).max(MIN_WINDOW_BYTES);
        self.round.best_rate = 0;
    }

    pub fn expect_late(&mut self, digest: Digest) {
        if !self.late.known.insert(digest) {
            return;
        }
        self.late.order.push_back(digest);
        if self.late.order.len() > MAX_LATE
            && let Some(oldest) = self.late.order.pop_front()
        {
            self.late.known.remove(&oldest);
        }
    }

    /// Whether this block was asked of the peer before.
    pub fn was_late(&self, digest: &Digest) -> bool {
        self.late.known.contains(digest)
    }
}

fn transfer(bytes: u64, rate: u64) -> Duration {
    Duration::from_nanos(
        u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX),
    )
    .min(LONGEST_TRANSFER)
}

/// Longer is never computed with: no peer is waited for that long.
const LONGEST_TRANSFER: Duration = Duration::from_secs(3600);

fn per_second(bytes: u64, span: Duration) -> u64 {
    let nanos = span.as_nanos().max(1000);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves a full window each `round_trip`, at no more than `rate`; the window in the end.
    fn settle(agent: Agent, round_trip: Duration, rate: u64) -> u64 {
        let (mut peer, mut now) = (PeerState { connected: true, ..PeerState::default() }, Time::ZERO);
        peer.set_agent(agent);
        let block = 64 << 10;
        for _ in 0..20 {
            let (asked_at, mut count) = (now, 0);
            while peer.has_room(block) {
                peer.asked(now, block);
                count += 1;
            }
            peer.held_back();
            let window_time = transfer(block * count, rate);
            now = now + round_trip.max(window_time);
            for _ in 0..count {
                peer.delivered(now, asked_at, block, block);
            }
        }
        peer.window
    }

    #[test]
    fn the_window_grows_to_its_cap_where_the_round_trip_is_the_limit() {
        let far = Duration::from_millis(20);
        assert_eq!(settle(Agent::Cardume, far, 10 << 30), MAX_WINDOW_BYTES);
        assert_eq!(settle(Agent::Kubo, far, 10 << 30), KUBO_WINDOW_BYTES);
        assert_eq!(settle(Agent::Javascript, far, 10 << 30), JAVASCRIPT_WINDOW_BYTES);
    }

    #[test]
    fn the_window_stays_small_where_the_line_is_the_limit() {
        assert!(settle(Agent::Cardume, Duration::from_millis(20), 50 << 20) <= 2 << 20);
    }

    #[test]
    fn a_peer_that_was_late_is_asked_for_less_but_never_for_nothing() {
        let mut peer = PeerState::default();
        (0..20).for_each(|_| peer.shrink());
        assert_eq!(peer.window, MIN_WINDOW_BYTES);
        assert!(peer.has_room(2 << 20));
    }

    #[test]
    fn late_blocks_are_remembered_up_to_a_bound() {
        let mut peer = PeerState::default();
        let digest = |n: u64| Digest::wrap(0x12, &n.to_be_bytes()).expect("fits");
        (0..3 * MAX_LATE as u64).for_each(|n| peer.expect_late(digest(n)));
        assert!(!peer.was_late(&digest(0)));
        assert!(peer.was_late(&digest(3 * MAX_LATE as u64 - 1)));
        assert_eq!(peer.late.order.len(), MAX_LATE);
    }
}
