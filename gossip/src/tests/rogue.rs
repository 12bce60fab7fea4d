//! Peers that keep to no rule, or have bad luck again and again: others do not suffer for it.

use std::time::Duration;

use job::PeerId;
use job::state::JobState;

use super::harness::{Swarm, job, peer};
use crate::lottery;
use crate::message::*;
use crate::owner;
use crate::topic::Class;
use crate::worker;

const SECOND: Duration = Duration::from_secs(1);

/// An owner (1) that runs no jobs itself, and peers 2 to 4 that the test plays.
fn owner_and_three() -> Swarm {
    let mut swarm = Swarm::new(1, 0);
    swarm.quiet = true;
    for number in 2..5 {
        swarm.owner(peer(1), owner::Input::Connected(peer(number)));
        swarm.owner(peer(1), owner::Input::Subscribed { peer: peer(number), class: Class::Wasm });
    }
    swarm
}

fn tell(swarm: &mut Swarm, from: PeerId, message: Direct) -> Vec<owner::Effect> {
    swarm.owner_effects(peer(1), owner::Input::Message { from, message })
}

fn seeds(effects: &[owner::Effect]) -> Vec<u64> {
    let seeds = effects.iter().filter_map(|effect| match effect {
        owner::Effect::Announce { bytes, .. } => {
            Some(super::harness::open_announcements(peer(1), bytes).jobs[0].seed)
        }
        owner::Effect::Send { message: Direct::Ask(ask), .. } => Some(ask.announcement.seed),
        _ => None,
    });
    seeds.collect()
}

fn awards(effects: &[owner::Effect]) -> Vec<(PeerId, AwardOrder)> {
    let awards = effects.iter().filter_map(|effect| match effect {
        owner::Effect::Send { to, message: Direct::Award(award) } => {
            Some((*to, award.order.read().expect("an order")))
        }
        _ => None,
    });
    awards.collect()
}

fn bid(id: job::JobId, seed: u64, at_ms: u64) -> Direct {
    Direct::Bid(Bid {
        job: id,
        version: 1,
        seed,
        stamp: Stamp { start: 1, at_ms },
        start_ms: 0,
        slots: 1,
        local_bytes: 0,
        cached: false,
        hold_ms: 5000,
        skew_s: 0,
    })
}

#[test]
fn what_was_lost_with_a_worker_goes_to_others_first() {
    let mut swarm = owner_and_three();
    let new = job(peer(1), 1, 1);
    let id = new.id;
    let effects = swarm.owner_effects(peer(1), owner::Input::Submitted { token: 1, job: Box::new(new) });
    let seed = seeds(&effects)[0];
    let effects = tell(&mut swarm, peer(2), bid(id, seed, 1));
    assert_eq!(awards(&effects)[0].0, peer(2));

    let mut lost = JobLive::empty(id, 1);
    lost.lost = vec![Span::one(0, 1)];
    let stamp = Stamp { start: 1, at_ms: 2 };
    let effects = tell(&mut swarm, peer(2), Direct::Renew(Renew { stamp, jobs: vec![lost] }));
    assert!(awards(&effects).is_empty(), "not back to it at once");
    // Another search so soon waits a moment.
    swarm.now = swarm.now + Duration::from_millis(100);
    let effects = swarm.owner_effects(peer(1), owner::Input::Tick);
    let seed = *seeds(&effects).last().expect("it looks for others");
    // It is the first to bid again, and the others are slower.
    assert!(awards(&tell(&mut swarm, peer(2), bid(id, seed, 3))).is_empty());
    let effects = tell(&mut swarm, peer(3), bid(id, seed, 3));
    assert!(awards(&effects).iter().all(|(to, _)| *to == peer(3)));

    // Where there is nobody else it gets it again.
    let mut swarm = Swarm::new(2, 0);
    swarm.add(2, 1);
    swarm.program = std::sync::Arc::new(|_, _| (30 * SECOND, Outcome::Exit(0)));
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    swarm.run(SECOND);
    swarm.kill(peer(2));
    swarm.boot(peer(2));
    swarm.run(60 * SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Completed);
    assert_eq!(swarm.started.len(), 2);
}

#[test]
fn an_owner_that_asks_again_and_again_leaves_room_for_others() {
    let mut swarm = Swarm::new(1, 2);
    swarm.quiet = true;
    let bids = |swarm: &mut Swarm, owner: PeerId, number: u8| {
        let job = job(owner, number, 2);
        let announcement = Announcement {
            job: job.id,
            nonce: job.nonce,
            version: 1,
            spec: job.spec_cid,
            facts: job.facts,
            open: 2,
            round: 0,
            theta: lottery::ALL,
            decline: lottery::ALL,
            seed: 1,
        };
        let ask = Ask { announcement, addresses: Vec::new(), ttl_ms: 1000, issued: 0 };
        let message = Direct::Ask(Box::new(ask));
        let effects = swarm.worker_effects(peer(1), worker::Input::Message { from: owner, message });
        effects.iter().any(|effect| matches!(effect, worker::Effect::Send { message: Direct::Bid(_), .. }))
    };
    let greedy = (0..20).filter(|number| bids(&mut swarm, peer(7), *number)).count();
    assert_eq!(greedy, 3, "three times what is free");
    assert!(bids(&mut swarm, peer(8), 1), "another owner is still served");
    assert!(bids(&mut swarm, peer(8), 2));
    assert!(!bids(&mut swarm, peer(8), 3), "in all no more than that");
}

#[test]
fn a_queue_timeout_begins_anew_when_the_node_has_slept() {
    let mut swarm = Swarm::new(1, 0);
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    swarm.run(50 * SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Queued);
    // The lid closes.
    swarm.now = swarm.now + 300 * SECOND;
    swarm.owner(peer(1), owner::Input::Tick);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Queued);
    swarm.run(55 * SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Queued);
    swarm.run(10 * SECOND);
    let (state, message) = swarm.state(peer(1), id);
    assert_eq!(state, JobState::Failed);
    assert!(message.contains("waited longer than 60 s"), "{message}");
}
