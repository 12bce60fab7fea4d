//! The client against peers in memory, in virtual time: peers that are slow, lose messages, send
//! wrong bytes, go away, or have nothing.

use std::collections::BTreeMap;

use bytes::Bytes;
use cid::Cid;
use proptest::prelude::*;

use super::*;
use crate::block;
use crate::exchange::message::WantKind;

const SECOND: Duration = Duration::from_secs(1);
const GIVE_UP: Duration = Duration::from_secs(10);

fn peer(n: u8) -> Peer {
    Peer::new(&[n])
}

/// A name: what it is the name of matters to nobody here.
fn name(n: u32) -> Cid {
    block::cid_of(block::RAW, &n.to_be_bytes())
}

/// What a simulated peer is like.
#[derive(Debug, Clone)]
struct Habits {
    /// Which blocks it has.
    has: std::ops::Range<u32>,
    round_trip: Duration,
    bytes_a_second: u64,
    /// Of a hundred blocks, how many never arrive.
    loss: u8,
    /// Of a hundred blocks, how many arrive damaged.
    damage: u8,
    /// It no longer answers from then on, and nobody notices.
    falls_silent: Option<Duration>,
    /// Its connection closes then and cannot be opened again.
    leaves: Option<Duration>,
}

impl Default for Habits {
    fn default() -> Self {
        Habits {
            has: 0..u32::MAX,
            round_trip: Duration::from_millis(2),
            bytes_a_second: 100 << 20,
            loss: 0,
            damage: 0,
            falls_silent: None,
            leaves: None,
        }
    }
}

/// A client, its peers, and what is on its way between them.
struct Swarm {
    client: Client,
    now: Time,
    peers: BTreeMap<Peer, (Habits, Time)>,
    /// By time and order: what arrives.
    coming: BTreeMap<(Time, u64), Input>,
    order: u64,
    random: u64,
    block_size: usize,
    data: Bytes,
    names: BTreeMap<Cid, u32>,
    log: Log,
}

#[derive(Default, Debug)]
struct Log {
    delivered: BTreeMap<Digest, u32>,
    failed: Option<(Time, Cid, usize)>,
    penalised: Vec<Peer>,
    searched: u32,
    asked: BTreeMap<Peer, u64>,
    probed: u32,
    steps: u32,
}

impl Swarm {
    fn new(block_size: usize) -> Swarm {
        Swarm {
            client: Client::new(),
            now: Time::ZERO,
            peers: BTreeMap::new(),
            coming: BTreeMap::new(),
            order: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            block_size,
            data: vec![0; block_size].into(),
            names: BTreeMap::new(),
            log: Log::default(),
        }
    }

    fn with(mut self, n: u8, habits: Habits) -> Swarm {
        if let Some(at) = habits.leaves {
            self.come(Time::ZERO + at, Input::Disconnected(peer(n)));
        }
        self.peers.insert(peer(n), (habits, Time::ZERO));
        self.handle(Input::Connected { peer: peer(n), agent: Agent::Cardume });
        self
    }

    fn cid(&mut self, n: u32) -> Cid {
        let cid = name(n);
        self.names.insert(cid, n);
        cid
    }

    fn open(&mut self, hints: &[u8]) {
        let hints = hints.iter().map(|n| peer(*n)).collect();
        self.handle(Input::Opened { session: SessionId(1), hints, give_up_after: GIVE_UP });
    }

    fn want(&mut self, blocks: std::ops::Range<u32>) {
        let size_bytes = self.block_size as u64;
        let wants = blocks.map(|n| Wanted { cid: self.cid(n), size_bytes }).collect();
        self.handle(Input::Wanted { session: SessionId(1), wants, last: true });
    }

    /// Until all wants are here, or it fails, or nothing is left to happen.
    fn run(&mut self) -> &Log {
        while self.log.failed.is_none() && !self.client.wants.is_empty() {
            let arrival = self.coming.first_key_value().map(|((at, _), _)| *at);
            let wakeup = self.client.next_wakeup();
            let Some(next) = arrival.into_iter().chain(wakeup).min() else {
                panic!("nothing happens any more")
            };
            self.now = self.now.max(next);
            if wakeup == Some(next) {
                self.handle(Input::Tick);
            } else if let Some((_, input)) = self.coming.pop_first() {
                self.handle(input);
            }
            self.log.steps += 1;
            assert!(self.log.steps < 200_000, "it goes on for ever");
        }
        &self.log
    }

    fn handle(&mut self, input: Input) {
        let mut out = Vec::new();
        self.client.handle(self.now, input, &mut out);
        if self.log.steps.is_multiple_of(8) {
            self.check();
        }
        for effect in out {
            match effect {
                Effect::Send { peer, entries } => self.send(&peer, entries),
                Effect::Deliver { block, .. } => *self.log.delivered.entry(block.digest).or_default() += 1,
                Effect::Fail { cid, asked, .. } => self.log.failed = Some((self.now, cid, asked)),
                Effect::FindProviders { .. } => self.log.searched += 1,
                Effect::Penalise { peer, .. } => self.log.penalised.push(peer),
            }
        }
    }

    /// The invariants.
    fn check(&self) {
        let asked = self.client.wants.values().map(Want::asked_count).sum::<usize>();
        assert_eq!(asked, self.client.deadlines.len());
        assert_eq!(asked, self.client.peers.values().map(PeerState::entries).sum::<usize>());
        for session in self.client.sessions.values() {
            assert_eq!(session.wants.len(), session.asked + session.queue.len() + session.stuck.len());
        }
    }

    fn send(&mut self, to: &Peer, entries: Vec<Entry>) {
        let Some((habits, _)) = self.peers.get(to).cloned() else {
            return self.come(self.now + Duration::from_millis(20), Input::Unreachable(to.clone()));
        };
        if habits.leaves.is_some_and(|at| self.now >= Time::ZERO + at) {
            return self.come(self.now + Duration::from_millis(1), Input::Unreachable(to.clone()));
        }
        if habits.falls_silent.is_some_and(|at| self.now >= Time::ZERO + at) {
            return;
        }
        for entry in entries.into_iter().filter(|entry| !entry.cancel) {
            self.answer(to, &habits, &entry);
        }
    }

    fn answer(&mut self, from: &Peer, habits: &Habits, entry: &Entry) {
        let n = self.names[&entry.cid];
        let have = habits.has.contains(&n);
        let mut at = self.now + habits.round_trip;
        let (mut blocks, mut presences) = (Vec::new(), Vec::new());
        match entry.kind {
            WantKind::Block if have => {
                *self.log.asked.entry(from.clone()).or_default() += 1;
                let (lost, damaged) = (self.chance(habits.loss), self.chance(habits.damage));
                let busy = &mut self.peers.get_mut(from).unwrap().1;
                let span = Duration::from_secs_f64(self.block_size as f64 / habits.bytes_a_second as f64);
                *busy = (*busy).max(self.now) + span;
                at = *busy + habits.round_trip;
                if lost {
                    return;
                }
                let cid = if damaged { name(n + 1_000_000) } else { entry.cid };
                blocks.push(Arrived { digest: *cid.hash(), data: self.data.clone() });
            }
            kind => {
                self.log.probed += u32::from(kind == WantKind::Have);
                presences.push(Presence { cid: entry.cid, have });
            }
        }
        if habits.leaves.is_none_or(|leaves| at < Time::ZERO + leaves) {
            self.come(at, Input::Received { peer: from.clone(), blocks, presences });
        }
    }

    fn come(&mut self, at: Time, input: Input) {
        self.order += 1;
        self.coming.insert((at, self.order), input);
    }

    fn chance(&mut self, of_hundred: u8) -> bool {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % 100 < u64::from(of_hundred)
    }

    fn share(&self, n: u8) -> u64 {
        self.log.asked.get(&peer(n)).copied().unwrap_or_default()
    }
}

#[test]
fn a_hint_is_asked_for_the_block_at_once_and_nobody_else_is_bothered() {
    let mut swarm = Swarm::new(1000).with(1, Habits::default()).with(2, Habits::default());
    swarm.open(&[1]);
    swarm.want(0..1);
    let log = swarm.run();
    assert_eq!((log.delivered.len(), log.probed, log.searched, log.steps), (1, 0, 0, 1));
    assert_eq!(swarm.now, Time::ZERO + Duration::from_millis(2) + Duration::from_nanos(9537));
}

#[test]
fn without_hints_connected_peers_and_routing_are_asked_at_once() {
    let nothing = Habits { has: 0..0, ..Habits::default() };
    let mut swarm = Swarm::new(1000).with(1, nothing).with(2, Habits::default());
    swarm.open(&[]);
    swarm.want(0..1);
    let log = swarm.run();
    assert_eq!((log.delivered.len(), log.probed, log.searched), (1, 2, 1));
    assert!(swarm.now < Time::ZERO + Duration::from_millis(10));
}

#[test]
fn a_hint_that_takes_long_is_not_waited_for() {
    let slow = Habits { round_trip: SECOND * 5, ..Habits::default() };
    let mut swarm = Swarm::new(1000).with(1, slow).with(2, Habits::default());
    swarm.open(&[1]);
    swarm.want(0..1);
    swarm.run();
    assert_eq!(swarm.log.delivered.len(), 1);
    assert!(swarm.now < Time::ZERO + WIDEN_AFTER * 2);
}

#[test]
fn a_provider_that_routing_finds_is_dialled_and_asked() {
    let mut swarm = Swarm::new(1000);
    swarm.open(&[]);
    swarm.want(0..1);
    assert_eq!(swarm.log.searched, 1);
    swarm.peers.insert(peer(9), (Habits::default(), Time::ZERO));
    let at = swarm.now + SECOND * 9;
    swarm.come(at, Input::Provider { session: SessionId(1), peer: peer(9) });
    assert_eq!(swarm.run().delivered.len(), 1);
}

#[test]
fn a_peer_that_connects_later_is_asked_as_well() {
    let mut swarm = Swarm::new(1000);
    swarm.open(&[]);
    swarm.want(0..1);
    swarm.peers.insert(peer(9), (Habits::default(), Time::ZERO));
    let at = swarm.now + SECOND * 9;
    swarm.come(at, Input::Connected { peer: peer(9), agent: Agent::Unknown });
    assert_eq!(swarm.run().delivered.len(), 1);
}

#[test]
fn when_nobody_has_it_the_session_fails_after_its_time_and_names_the_block() {
    let nothing = Habits { has: 0..0, ..Habits::default() };
    let mut swarm = Swarm::new(1000).with(1, nothing.clone()).with(2, nothing);
    swarm.open(&[1, 77]); // the second cannot be reached
    swarm.want(0..1);
    let cid = swarm.cid(0);
    let (at, failed, asked) = swarm.run().failed.unwrap();
    assert_eq!((failed, asked), (cid, 2));
    assert!(at >= Time::ZERO + GIVE_UP && at < Time::ZERO + GIVE_UP + SECOND);
}

#[test]
fn the_time_to_give_up_runs_from_the_last_progress() {
    let first_half = Habits { has: 0..50, bytes_a_second: 1 << 20, ..Habits::default() };
    let mut swarm = Swarm::new(1 << 20).with(1, first_half);
    swarm.open(&[1]);
    swarm.want(0..100);
    let (at, ..) = swarm.run().failed.unwrap();
    assert_eq!(swarm.log.delivered.len(), 50);
    assert!(at >= Time::ZERO + SECOND * 50 + GIVE_UP - SECOND, "{at:?}");
}

#[test]
fn a_failed_session_goes_on_when_somebody_comes() {
    let mut swarm = Swarm::new(1000);
    swarm.open(&[]);
    swarm.want(0..1);
    assert!(swarm.run().failed.is_some());
    swarm.log.failed = None;
    swarm.peers.insert(peer(9), (Habits::default(), Time::ZERO));
    swarm.handle(Input::Connected { peer: peer(9), agent: Agent::Unknown });
    assert_eq!(swarm.run().delivered.len(), 1);
}

#[test]
fn two_peers_share_the_work_by_their_speed() {
    let fast = Habits { bytes_a_second: 90 << 20, ..Habits::default() };
    let slow = Habits { bytes_a_second: 10 << 20, ..Habits::default() };
    let mut swarm = Swarm::new(256 << 10).with(1, fast).with(2, slow);
    swarm.open(&[1, 2]);
    swarm.want(0..1000);
    assert_eq!(swarm.run().delivered.len(), 1000);
    assert!(swarm.share(1) > 700 && swarm.share(2) > 50, "{} {}", swarm.share(1), swarm.share(2));
    let seconds = swarm.now.since(Time::ZERO).as_secs_f64();
    assert!(seconds < 3.2, "100 MB/s together make it 2.5 s, it took {seconds}");
}

#[test]
fn a_large_fetch_finds_the_other_holders_by_itself() {
    let habits = Habits { bytes_a_second: 20 << 20, ..Habits::default() };
    let mut swarm = Swarm::new(256 << 10);
    for n in 1..=4 {
        swarm = swarm.with(n, habits.clone());
    }
    swarm.open(&[1]);
    swarm.want(0..400);
    assert_eq!(swarm.run().delivered.len(), 400);
    assert!((1..=4).all(|n| swarm.share(n) > 50));
}

#[test]
fn holders_of_different_parts_complete_each_other() {
    let mut swarm = Swarm::new(1000)
        .with(1, Habits { has: 0..30, ..Habits::default() })
        .with(2, Habits { has: 30..60, ..Habits::default() })
        .with(3, Habits { has: 60..100, ..Habits::default() });
    swarm.open(&[1, 2, 3]);
    swarm.want(0..100);
    assert_eq!(swarm.run().delivered.len(), 100);
    assert!(swarm.now < Time::ZERO + SECOND, "{:?}", swarm.now);
}

#[test]
fn a_peer_that_leaves_is_replaced_without_waiting_for_a_deadline() {
    let leaving = Habits { leaves: Some(SECOND), bytes_a_second: 10 << 20, ..Habits::default() };
    let staying = Habits { bytes_a_second: 10 << 20, ..Habits::default() };
    let mut swarm = Swarm::new(256 << 10).with(1, leaving).with(2, staying);
    swarm.open(&[1, 2]);
    swarm.want(0..200);
    assert_eq!(swarm.run().delivered.len(), 200);
    assert!(swarm.now < Time::ZERO + SECOND * 6);
}

#[test]
fn a_peer_that_falls_silent_is_replaced_after_its_deadline() {
    let silent = Habits { falls_silent: Some(SECOND / 10), ..Habits::default() };
    let mut swarm = Swarm::new(256 << 10).with(1, silent).with(2, Habits::default());
    swarm.open(&[1, 2]);
    swarm.want(0..200);
    assert_eq!(swarm.run().delivered.len(), 200);
    assert!(swarm.now < Time::ZERO + SECOND * 5, "{:?}", swarm.now);
}

#[test]
fn the_only_holder_may_be_slow() {
    let slow = Habits { bytes_a_second: 100 << 10, ..Habits::default() };
    let mut swarm = Swarm::new(1 << 20).with(1, slow);
    swarm.open(&[1]);
    swarm.want(0..10);
    for part in 1..2000u32 {
        let at = swarm.now + SECOND / 2 * part;
        swarm.come(at, Input::Heard(peer(1))); // parts of messages come in
    }
    assert_eq!(swarm.run().delivered.len(), 10);
}

#[test]
fn a_peer_that_sends_anything_but_what_was_asked_for_does_not_hold_a_fetch() {
    let lying = Habits { falls_silent: Some(Duration::ZERO), ..Habits::default() };
    let mut swarm = Swarm::new(1 << 20).with(1, lying);
    swarm.open(&[1]);
    swarm.want(0..1);
    for part in 1..2000u32 {
        let at = swarm.now + SECOND / 2 * part;
        let presences = vec![Presence { cid: name(9), have: true }];
        swarm.come(at, Input::Received { peer: peer(1), blocks: Vec::new(), presences });
        swarm.come(at, Input::Heard(peer(1)));
    }
    let (failed, ..) = swarm.run().failed.expect("it ends");
    assert!(failed < Time::ZERO + SECOND * 60, "{failed:?}");
}

#[test]
fn a_want_that_got_lost_is_asked_for_again_where_there_is_nobody_else() {
    let mut swarm = Swarm::new(10_000).with(1, Habits { loss: 5, ..Habits::default() });
    swarm.open(&[1]);
    swarm.want(0..100);
    assert_eq!(swarm.run().delivered.len(), 100);
    assert!(swarm.client.counters().timeouts > 0 && swarm.log.penalised.is_empty());
}

#[test]
fn damaged_and_unasked_blocks_are_dropped_and_scored_until_the_peer_is_left_alone() {
    let damaging = Habits { damage: 100, ..Habits::default() };
    let mut swarm = Swarm::new(1000).with(1, damaging).with(2, Habits::default());
    swarm.open(&[1, 2]);
    swarm.want(0..100);
    let log = swarm.run();
    assert_eq!(log.delivered.len(), 100);
    assert!(log.penalised.len() >= MAX_STRIKES as usize);
    assert!(log.penalised.iter().all(|penalised| *penalised == peer(1)));
    assert!(swarm.client.counters().unasked >= u64::from(MAX_STRIKES));
}

#[test]
fn a_block_that_was_asked_for_and_comes_too_late_is_no_offence() {
    let mut swarm = Swarm::new(1000).with(1, Habits::default()).with(2, Habits::default());
    swarm.open(&[1]);
    swarm.want(0..1);
    swarm.handle(Input::Closed(SessionId(1)));
    let (digest, data) = (*swarm.cid(0).hash(), swarm.data.clone());
    let received =
        Input::Received { peer: peer(1), blocks: vec![Arrived { digest, data }], presences: vec![] };
    swarm.handle(received.clone());
    assert_eq!(swarm.client.counters().duplicates, 1);
    assert!(swarm.log.penalised.is_empty());
}

#[test]
fn a_small_block_that_comes_for_a_probe_and_again_for_the_ask_after_it_is_no_offence() {
    let mut swarm = Swarm::new(1000).with(1, Habits::default());
    swarm.open(&[]);
    swarm.want(0..1); // nobody is known to have it: peer 1 is asked whether it does
    assert_eq!(swarm.log.probed, 1);
    swarm.handle(Input::Provider { session: SessionId(1), peer: peer(1) });
    let (digest, data) = (*swarm.cid(0).hash(), swarm.data.clone());
    let received =
        Input::Received { peer: peer(1), blocks: vec![Arrived { digest, data }], presences: vec![] };
    swarm.handle(received.clone());
    swarm.handle(received);
    assert_eq!(swarm.log.delivered.len(), 1);
    assert_eq!(swarm.client.counters().duplicates, 1);
    assert!(swarm.log.penalised.is_empty());
}

#[test]
fn a_closed_session_leaves_nothing_behind() {
    let mut swarm = Swarm::new(1000).with(1, Habits::default());
    swarm.open(&[1, 5]);
    swarm.want(0..3000);
    swarm.handle(Input::Closed(SessionId(1)));
    assert!(swarm.client.wants.is_empty() && swarm.client.sessions.is_empty());
    assert_eq!(swarm.client.next_wakeup(), None);
    assert_eq!(swarm.client.peers.len(), 1);
}

#[test]
fn sessions_that_want_the_same_block_ask_once_and_both_get_it() {
    let mut swarm = Swarm::new(1000).with(1, Habits::default());
    swarm.open(&[1]);
    swarm.handle(Input::Opened { session: SessionId(2), hints: vec![peer(1)], give_up_after: GIVE_UP });
    swarm.want(0..1);
    let wants = vec![Wanted { cid: swarm.cid(0), size_bytes: 1000 }];
    swarm.handle(Input::Wanted { session: SessionId(2), wants, last: true });
    let digest = *swarm.cid(0).hash();
    assert_eq!(swarm.run().delivered[&digest], 2);
    assert_eq!(swarm.share(1), 1);
}

#[test]
fn the_last_blocks_are_asked_of_a_second_peer_when_the_first_is_slow() {
    let slows = Habits { bytes_a_second: 1 << 20, ..Habits::default() };
    let mut swarm = Swarm::new(1 << 20).with(1, slows).with(2, Habits::default());
    swarm.open(&[1]);
    swarm.want(0..2);
    swarm.handle(Input::Hinted { session: SessionId(1), peers: vec![peer(2)] });
    assert_eq!(swarm.run().delivered.len(), 2);
    assert!(swarm.now < Time::ZERO + SECOND, "{:?}", swarm.now);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_others_do_one_good_peer_is_enough(
        bad in proptest::collection::vec(
            (0u8..100, 0u8..100, 1u64..500, 0u64..4000, any::<bool>(), any::<bool>(), 0u32..200),
            0..5,
        ),
        seed: u64,
        hinted: bool,
    ) {
        let mut swarm = Swarm::new(100 << 10).with(200, Habits::default());
        swarm.random ^= seed;
        for (n, (loss, damage, speed, when, leaves, silent, has)) in bad.into_iter().enumerate() {
            let habits = Habits {
                has: 0..has,
                loss,
                damage,
                bytes_a_second: speed << 16,
                leaves: leaves.then_some(Duration::from_millis(when)),
                falls_silent: silent.then_some(Duration::from_millis(when)),
                ..Habits::default()
            };
            swarm = swarm.with(n as u8 + 1, habits);
        }
        swarm.open(if hinted { &[1, 2, 3, 4, 5, 200] } else { &[] });
        swarm.want(0..150);
        swarm.run();
        prop_assert_eq!(swarm.log.delivered.len(), 150, "{:?}", swarm.log.failed);
        prop_assert!(!swarm.log.penalised.contains(&peer(200)));
        swarm.handle(Input::Closed(SessionId(1)));
        prop_assert!(swarm.client.wants.is_empty());
    }
}
