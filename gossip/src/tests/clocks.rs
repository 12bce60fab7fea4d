//! Peers whose clocks are wrong: found all the same, and told.

use std::time::Duration;

use job::state::JobState;

use super::harness::{SWARM, Swarm, job, peer, seal_announcements, seal_order};
use crate::lottery;
use crate::message::*;
use crate::owner::{self, Input};
use crate::topic::Class;
use crate::worker;

/// What owner 1 sends when its clock has moved on by a round.
fn asks_after_a_round(swarm: &mut Swarm) -> Vec<(job::PeerId, Ask)> {
    swarm.now = swarm.now + Duration::from_millis(1200);
    let effects = swarm.owner_effects(peer(1), Input::Tick);
    let asks = effects.into_iter().filter_map(|effect| match effect {
        owner::Effect::Send { to, message: Direct::Ask(ask) } => Some((to, *ask)),
        _ => None,
    });
    asks.collect()
}

/// Owner 1, which runs no jobs itself, with peers that the test plays.
fn owner_of(peers: u8, believed: u64) -> Swarm {
    let mut swarm = Swarm::new(1, 0);
    swarm.quiet = true;
    for number in 2..peers + 2 {
        swarm.owner(peer(1), Input::Connected(peer(number)));
        swarm.owner(peer(1), Input::Subscribed { peer: peer(number), class: Class::Wasm });
    }
    swarm.owner(peer(1), Input::Swarm { size: believed });
    swarm
}

/// An ask about a job of peer 1, by a clock that is `behind` our time.
fn ask_by(swarm: &Swarm, seed: u64, behind: Duration) -> Ask {
    let job = job(peer(1), 1, 1);
    let announcement = Announcement {
        job: job.id,
        nonce: job.nonce,
        version: 1,
        spec: job.spec_cid,
        facts: job.facts,
        open: 1,
        round: 0,
        theta: lottery::ALL,
        decline: lottery::ALL,
        seed,
    };
    let behind = u64::try_from(behind.as_nanos()).expect("short");
    Ask { announcement, addresses: Vec::new(), ttl_ms: 30_000, issued: swarm.now.wall - behind }
}

/// An award of that job that answers what worker 2 said.
fn award_by(swarm: &Swarm, answers: Stamp, behind: Duration) -> Award {
    let job = job(peer(1), 1, 1);
    let order = AwardOrder {
        id: 1,
        job: job.id,
        nonce: job.nonce,
        version: 1,
        spec: job.spec_cid,
        count: 1,
        epoch: 1,
        spans: vec![Span::one(0, 1)],
        worker: peer(2),
        answers,
        lease_ms: 60_000,
        total_ms: 0,
        keep: false,
    };
    let behind = u64::try_from(behind.as_nanos()).expect("short");
    let (order, issued) = (seal_order(peer(1), &order), swarm.now.wall - behind);
    Award { order, facts: Some(job.facts), spec: None, hints: Vec::new(), issued }
}

fn answers(effects: &[worker::Effect]) -> Vec<&Direct> {
    let sent = effects.iter().filter_map(|effect| match effect {
        worker::Effect::Send { message, .. } => Some(message),
        _ => None,
    });
    sent.collect()
}

#[test]
fn peers_that_did_not_answer_an_announcement_are_asked_once_a_sweep() {
    let mut swarm = owner_of(3, 3);
    swarm.submit(peer(1), job(peer(1), 1, 1));
    let asks = asks_after_a_round(&mut swarm);
    assert_eq!(asks.iter().map(|(to, _)| *to).collect::<Vec<_>>().len(), 3);
    assert!(asks.iter().all(|(_, ask)| ask.issued == swarm.now.wall), "a clock to compare with");
    assert!(asks_after_a_round(&mut swarm).is_empty(), "not again before it is announced again");
}

#[test]
fn however_many_peers_there_are_few_are_asked() {
    for believed in [60, 100_000] {
        let mut swarm = owner_of(60, believed);
        swarm.submit(peer(1), job(peer(1), 1, 1));
        let asked: Vec<usize> = (0..8).map(|_| asks_after_a_round(&mut swarm).len()).collect();
        let sweeps = asked.iter().filter(|asked| **asked > 0).count();
        assert!((1..=2).contains(&sweeps) && asked.iter().all(|asked| [0, 32].contains(asked)), "{asked:?}");
    }
}

#[test]
fn an_ask_is_answered_whatever_the_clocks_say_and_both_sides_are_told() {
    let mut swarm = Swarm::new(1, 2);
    swarm.quiet = true;
    swarm.add(2, 2);
    let hour = Duration::from_secs(3600);
    let announced = {
        let ask = ask_by(&swarm, 1, hour);
        Announcements {
            owner: peer(1),
            addresses: Vec::new(),
            issued: ask.issued,
            ttl_ms: 30_000,
            jobs: vec![ask.announcement],
        }
    };
    let bytes = seal_announcements(peer(1), &announced);
    let heard = worker::Input::Announced { id: 1, relay: peer(1), class: Class::Wasm, bytes };
    assert!(answers(&swarm.worker_effects(peer(2), heard)).is_empty(), "it may be a replay");

    let ask = ask_by(&swarm, 2, hour);
    let asked = |ask| worker::Input::Message { from: peer(1), message: Direct::Ask(Box::new(ask)) };
    let effects = swarm.worker_effects(peer(2), asked(ask));
    let [Direct::Bid(bid)] = answers(&effects)[..] else { panic!("{effects:?}") };
    assert_eq!(bid.skew_s, -3600);
    let stamp = bid.stamp;
    let mut warned = |behind: Duration, late: Duration| {
        swarm.now = swarm.now + late;
        let award = award_by(&swarm, stamp, behind);
        let input = worker::Input::Message { from: peer(1), message: Direct::Award(Box::new(award)) };
        let effects = swarm.worker_effects(peer(2), input);
        effects.contains(&worker::Effect::ClockDiffers { peer: peer(1), ahead_s: -3600 })
    };
    assert!(warned(hour, Duration::ZERO));
    assert!(!warned(hour, Duration::ZERO), "once is enough");

    let mut ask = ask_by(&swarm, 3, hour);
    ask.announcement.facts.engine = "docker".into();
    let effects = swarm.worker_effects(peer(2), asked(ask));
    assert!(matches!(answers(&effects)[..], [Direct::Decline(Decline { skew_s: -3600, .. })]), "{effects:?}");

    let ask = ask_by(&swarm, 4, Duration::from_secs(119));
    let effects = swarm.worker_effects(peer(2), asked(ask));
    assert!(matches!(answers(&effects)[..], [Direct::Bid(Bid { skew_s: 0, .. })]), "{effects:?}");
}

#[test]
fn the_reason_why_a_job_waits_names_clocks_that_differ() {
    let mut swarm = owner_of(2, 2);
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    let asks = asks_after_a_round(&mut swarm);
    for ((to, ask), skew_s) in asks.into_iter().zip([0, -500]) {
        let mut decline = Decline::new(id, 1, ask.announcement.seed, DeclineCode::Policy, "");
        decline.skew_s = skew_s;
        swarm.owner(peer(1), Input::Message { from: to, message: Direct::Decline(decline) });
    }
    swarm.now = swarm.now + Duration::from_secs(5);
    swarm.owner(peer(1), Input::Tick);
    let (state, reason) = swarm.state(peer(1), id);
    assert_eq!(state, JobState::Queued);
    assert!(reason.contains("2 peers do not run such jobs"), "{reason}");
    assert!(reason.ends_with("the clock of one of them differs from this node's by 500 s"), "{reason}");
    assert!(job::JobId::derive(SWARM, peer(1), &[1]) == id);
}
