//! When to dial whom again: growing pauses for each, no faster than they allow, no slower than wanted.
//!
//! Time and chance are arguments; who is connected is asked.

use std::{collections::BTreeMap, time::Duration};

use libp2p::{Multiaddr, PeerId};
use tokio::time::Instant;

/// The pause after the first failure. Nodes of one swarm often start together, and the first dial comes too early.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause while peers are wanted.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often a bootstrap peer is tried while there are peers enough: it heals a swarm that fell apart.
const HEALING_PAUSE: Duration = Duration::from_secs(300);
/// Dials under way at the same time.
const AT_ONCE: usize = 8;
/// Peers of the book that are looked at: those met last.
const CANDIDATES: usize = 128;
/// Pauses remembered; the oldest failures are forgotten beyond.
const MAX_PAUSES: usize = 2048;

/// Somebody to dial.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// Whoever answers there.
    Address(Multiaddr),
    /// This peer, at one of its known addresses.
    Peer(PeerId),
}

/// How things stand when a decision is made.
pub(crate) struct Situation<'a> {
    pub(crate) now: Instant,
    pub(crate) connected: &'a dyn Fn(&PeerId) -> bool,
    /// How many more peers are wanted.
    pub(crate) missing: usize,
    /// Watched peers: always dialled.
    pub(crate) watched: &'a mut dyn Iterator<Item = PeerId>,
    /// Peers of the book, met last first.
    pub(crate) known: &'a mut dyn Iterator<Item = PeerId>,
}

#[derive(Debug)]
pub(crate) struct Redial {
    bootstrap: Vec<Bootstrap>,
    pauses: BTreeMap<Target, Pause>,
    under_way: usize,
}

#[derive(Debug)]
struct Bootstrap {
    target: Target,
    /// Who answered there.
    peer: Option<PeerId>,
    /// When it was last tried.
    tried: Option<Instant>,
}

#[derive(Debug, Default)]
struct Pause {
    failures: u32,
    until: Option<Instant>,
    dialling: bool,
}

impl Redial {
    pub(crate) fn new(bootstrap: impl Iterator<Item = Target>) -> Self {
        let bootstrap = bootstrap.map(|target| {
            let peer = match &target {
                Target::Peer(peer) => Some(*peer),
                Target::Address(_) => None,
            };
            Bootstrap { target, peer, tried: None }
        });
        Self { bootstrap: bootstrap.collect(), pauses: BTreeMap::new(), under_way: 0 }
    }

    /// Takes those to dial now, and says when to ask again.
    pub(crate) fn take_due(&mut self, situation: Situation<'_>) -> (Vec<Target>, Option<Instant>) {
        let now = situation.now;
        let (mut due, mut later) = (Vec::new(), None);
        for (target, not_before) in self.wanted(situation) {
            let pause = self.pauses.entry(target.clone()).or_default();
            if pause.dialling {
                continue;
            }
            let at = not_before.max(pause.until.unwrap_or(now));
            if at > now {
                later = Some(later.map_or(at, |other: Instant| other.min(at)));
            } else if self.under_way < AT_ONCE {
                pause.dialling = true;
                self.under_way += 1;
                due.push(target);
            }
            // With too many under way: the end of any of them asks again.
        }
        self.note_tried(&due, now);
        (due, later)
    }

    fn wanted(&self, situation: Situation<'_>) -> Vec<(Target, Instant)> {
        let Situation { now, connected, missing, watched, known } = situation;
        let mut wanted: Vec<_> = watched.map(|peer| (Target::Peer(peer), now)).collect();
        for bootstrap in &self.bootstrap {
            if !bootstrap.peer.is_some_and(|peer| connected(&peer)) {
                let healing = bootstrap.tried.map_or(now, |tried| tried + HEALING_PAUSE);
                wanted.push((bootstrap.target.clone(), if missing > 0 { now } else { healing }));
            }
        }
        let known = known.take(if missing > 0 { CANDIDATES } else { 0 });
        wanted.extend(known.map(|peer| (Target::Peer(peer), now)));
        wanted.retain(|(target, _)| !matches!(target, Target::Peer(peer) if connected(peer)));
        wanted
    }

    fn note_tried(&mut self, due: &[Target], now: Instant) {
        for bootstrap in &mut self.bootstrap {
            if due.contains(&bootstrap.target) {
                bootstrap.tried = Some(now);
            }
        }
    }

    /// A dial failed: the next one waits longer, by a random part so that peers do not call in step.
    pub(crate) fn failed(&mut self, target: &Target, now: Instant, random: u32) {
        self.ended(target);
        if self.pauses.len() >= MAX_PAUSES && !self.pauses.contains_key(target) {
            let oldest = self.pauses.iter().filter(|(_, pause)| !pause.dialling);
            if let Some(oldest) = oldest.min_by_key(|(_, pause)| pause.until).map(|(t, _)| t.clone()) {
                self.pauses.remove(&oldest);
            }
        }
        let pause = self.pauses.entry(target.clone()).or_default();
        let doubled = FIRST_PAUSE.saturating_mul(1 << pause.failures.min(16));
        let part = 0.75 + 0.5 * f64::from(random) / f64::from(u32::MAX);
        pause.failures = pause.failures.saturating_add(1);
        pause.until = Some(now + doubled.min(LONGEST_PAUSE).mul_f64(part));
    }

    /// There is new hope: the next dial does not wait.
    pub(crate) fn retry(&mut self, target: &Target) {
        if let Some(pause) = self.pauses.get_mut(target) {
            pause.until = None;
        }
    }

    /// Somebody answered.
    pub(crate) fn reached(&mut self, target: &Target, peer: PeerId) {
        self.ended(target);
        self.pauses.remove(target);
        for bootstrap in self.bootstrap.iter_mut().filter(|bootstrap| bootstrap.target == *target) {
            bootstrap.peer = Some(peer);
        }
    }

    fn ended(&mut self, target: &Target) {
        if let Some(pause) = self.pauses.get_mut(target)
            && std::mem::take(&mut pause.dialling)
        {
            self.under_way -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Swarm {
        redial: Redial,
        known: Vec<PeerId>,
        connected: Vec<PeerId>,
        missing: usize,
        now: Instant,
    }

    impl Swarm {
        fn due(&mut self) -> (Vec<Target>, Option<Instant>) {
            let connected = self.connected.clone();
            self.redial.take_due(Situation {
                now: self.now,
                connected: &|peer| connected.contains(peer),
                missing: self.missing,
                watched: &mut std::iter::empty(),
                known: &mut self.known.iter().copied(),
            })
        }
    }

    fn swarm(bootstrap: Vec<Target>) -> Swarm {
        let redial = Redial::new(bootstrap.into_iter());
        Swarm { redial, known: vec![], connected: vec![], missing: 12, now: Instant::now() }
    }

    fn address() -> Target {
        Target::Address("/ip4/127.0.0.1/tcp/1".parse().unwrap())
    }

    #[test]
    fn a_failing_bootstrap_peer_is_tried_at_once_and_then_with_growing_pauses() {
        let mut swarm = swarm(vec![address()]);
        assert_eq!(swarm.due(), (vec![address()], None));
        assert_eq!(swarm.due(), (vec![], None), "not twice at the same time");
        let mut last = Duration::ZERO;
        for _ in 0..8 {
            swarm.redial.failed(&address(), swarm.now, u32::MAX / 2);
            let (due, later) = swarm.due();
            let pause = later.unwrap() - swarm.now;
            assert!(due.is_empty() && pause > last && pause <= LONGEST_PAUSE, "{pause:?}");
            (last, swarm.now) = (pause, later.unwrap());
            assert_eq!(swarm.due().0, [address()]);
        }
    }

    #[test]
    fn known_peers_are_dialled_only_while_peers_are_missing_and_a_few_at_once() {
        let mut swarm = swarm(vec![]);
        swarm.known = (0..50).map(|_| PeerId::random()).collect();
        assert_eq!(swarm.due().0.len(), AT_ONCE);
        swarm.missing = 0;
        swarm.redial.under_way = 0;
        assert_eq!(swarm.due(), (vec![], None));
    }

    #[test]
    fn a_connected_bootstrap_peer_is_left_alone_and_one_that_is_lost_heals_the_swarm() {
        let mut swarm = swarm(vec![address()]);
        let peer = PeerId::random();
        swarm.due();
        swarm.redial.reached(&address(), peer);
        swarm.connected = vec![peer];
        assert_eq!(swarm.due(), (vec![], None));
        (swarm.connected, swarm.missing) = (vec![], 0);
        let (due, later) = swarm.due();
        assert_eq!((due, later), (vec![], Some(swarm.now + HEALING_PAUSE)));
    }
}
