//! What a worker obeys, and whom.

use std::time::Duration;

use job::{JobId, PeerId, Time};

use super::harness::{SWARM, Swarm, cid, job, peer, seal_announcements, seal_order, seal_stop, small};
use crate::lottery;
use crate::message::*;
use crate::record::Kind;
use crate::topic::Class;
use crate::worker::{Effect, Input, Start, Verdict};

const SECOND: Duration = Duration::from_secs(1);

/// A worker (1) that has bid on a job of an owner (2) that the test plays.
struct Scene {
    swarm: Swarm,
    answers: Stamp,
    nonce: Bytes,
    job: JobId,
    spec: Vec<u8>,
}

impl Scene {
    fn new(slots: u32) -> Self {
        let mut swarm = Swarm::new(1, slots);
        swarm.quiet = true;
        let new = job(peer(2), 1, 100);
        let mut scene = Scene {
            answers: Stamp::default(),
            nonce: new.nonce.clone(),
            job: new.id,
            spec: new.spec.to_vec(),
            swarm,
        };
        let sent = scene.ask(1, lottery::ALL);
        let Some(Direct::Bid(bid)) = sent.first() else { panic!("no bid: {sent:?}") };
        scene.answers = bid.stamp;
        scene
    }

    fn announcement(&self, seed: u64, theta: u64) -> Announcement {
        Announcement {
            job: self.job,
            nonce: self.nonce.clone(),
            version: 1,
            spec: cid(&self.spec),
            facts: Facts::plain("wasm", small()),
            open: 100,
            round: 0,
            theta,
            decline: lottery::ALL,
            seed,
        }
    }

    fn ask(&mut self, seed: u64, theta: u64) -> Vec<Direct> {
        let ask = Ask {
            announcement: self.announcement(seed, theta),
            addresses: Vec::new(),
            ttl_ms: 30_000,
            issued: 0,
        };
        self.tell(peer(2), Direct::Ask(Box::new(ask)))
    }

    fn tell(&mut self, from: PeerId, message: Direct) -> Vec<Direct> {
        sent(&self.input(Input::Message { from, message }))
    }

    fn input(&mut self, input: Input) -> Vec<Effect> {
        self.swarm.worker_effects(peer(1), input)
    }

    fn order(&self, id: u64, epoch: u32, span: (u32, u32, u32)) -> AwardOrder {
        AwardOrder {
            id,
            job: self.job,
            nonce: self.nonce.clone(),
            version: 1,
            spec: cid(&self.spec),
            count: 100,
            epoch,
            spans: vec![span.into()],
            worker: peer(1),
            answers: self.answers,
            lease_ms: 60_000,
            total_ms: 0,
            keep: false,
        }
    }

    fn award(&mut self, from: PeerId, order: &AwardOrder) -> Vec<Effect> {
        let award = Award {
            order: seal_order(from, order),
            facts: Some(Facts::plain("wasm", small())),
            spec: Some(self.spec.clone().into()),
            hints: Vec::new(),
            issued: 0,
        };
        self.input(Input::Message { from, message: Direct::Award(Box::new(award)) })
    }

    fn announced(&mut self, bytes: Vec<u8>, class: Class) -> (Verdict, &'static str) {
        let effects = self.input(Input::Announced { id: 5, relay: peer(3), class, bytes });
        let verdict = effects.iter().find_map(|effect| match effect {
            Effect::Verdict { id: 5, relay, verdict, why } if *relay == peer(3) => Some((*verdict, *why)),
            _ => None,
        });
        verdict.expect("each announcement gets a verdict")
    }

    fn announcements(&self, seed: u64) -> Announcements {
        Announcements {
            owner: peer(2),
            addresses: Vec::new(),
            issued: self.swarm.now.wall + seed,
            ttl_ms: 30_000,
            jobs: vec![self.announcement(seed, lottery::ALL)],
        }
    }
}

fn sent(effects: &[Effect]) -> Vec<Direct> {
    let sends = effects.iter().filter_map(|effect| match effect {
        Effect::Send { message, .. } => Some(message.clone()),
        _ => None,
    });
    sends.collect()
}

fn starts(effects: &[Effect]) -> Vec<Start> {
    let starts = effects.iter().filter_map(|effect| match effect {
        Effect::Start(start) => Some((**start).clone()),
        _ => None,
    });
    starts.collect()
}

fn reply(effects: &[Effect]) -> Reply {
    let replies = sent(effects).into_iter().filter_map(|message| match message {
        Direct::Reply(reply) => Some(reply),
        _ => None,
    });
    replies.last().expect("an answer")
}

#[test]
fn an_award_is_recorded_promised_and_started_in_that_order() {
    let mut scene = Scene::new(2);
    let order = scene.order(1, 5, (0, 2, 1));
    let effects = scene.award(peer(2), &order);
    assert_eq!(reply(&effects).accepted, [Span::from((0, 2, 1))]);
    let started = starts(&effects);
    assert_eq!(started.len(), 2);
    assert_eq!(started[0].spec.inline.as_deref(), Some(&scene.spec[..]));
    assert_eq!(started[0].fence, job::Fence::new(5, 1));
    let kinds: Vec<Kind> =
        effects.iter().filter_map(|effect| effect.record().map(|record| record.key.kind)).collect();
    assert_eq!(kinds, [Kind::OwnerEpoch, Kind::Accepted, Kind::Started]);
}

#[test]
fn a_repeated_award_is_answered_again_and_started_once() {
    let mut scene = Scene::new(2);
    let order = scene.order(1, 5, (0, 2, 1));
    scene.award(peer(2), &order);
    let again = scene.award(peer(2), &order);
    assert_eq!(reply(&again).accepted, [Span::from((0, 2, 1))]);
    assert!(starts(&again).is_empty());
}

#[test]
fn an_award_by_another_than_the_owner_is_dropped_counted_and_held_against_its_sender() {
    let mut scene = Scene::new(2);
    let order = scene.order(1, 5, (0, 1, 1));
    let effects = scene.award(peer(3), &order);
    assert!(starts(&effects).is_empty() && sent(&effects).is_empty());
    let penalised =
        |effect: &Effect| matches!(effect, Effect::Penalise { peer: other, .. } if *other == peer(3));
    assert!(effects.iter().any(penalised));
    assert_eq!(scene.swarm.nodes[&peer(1)].worker.as_ref().unwrap().counters().foreign, 1);
}

#[test]
fn an_award_that_names_a_partition_twice_or_too_many_is_malformed() {
    let mut scene = Scene::new(2);
    for spans in [
        vec![Span::one(0, 1), Span::one(0, 1)],
        vec![Span { first: 0, count: 3, attempt: 1 }, Span::one(2, 2)],
        vec![Span::one(5, 1), Span::one(4, 1)],
    ] {
        let mut order = scene.order(1, 5, (0, 1, 1));
        order.spans = spans;
        assert_eq!(starts(&scene.award(peer(2), &order)), []);
    }
    let mut order = scene.order(1, 5, (0, 1, 1));
    (order.count, order.spans) = (100_000, vec![Span { first: 0, count: 100_000, attempt: 1 }]);
    assert_eq!(starts(&scene.award(peer(2), &order)), []);
    assert!(scene.swarm.penalised.iter().all(|penalised| *penalised == (peer(2), "malformed award")));
    assert_eq!(scene.swarm.penalised.len(), 4);
}

#[test]
fn an_owner_that_asks_for_a_lease_of_nothing_gets_no_storm_of_renewals() {
    let mut scene = Scene::new(2);
    scene.swarm.program = std::sync::Arc::new(|_, _| (100 * SECOND, Outcome::Exit(0)));
    let mut order = scene.order(1, 5, (0, 1, 1));
    order.lease_ms = 0;
    scene.award(peer(2), &order);
    assert_eq!(scene.swarm.started.len(), 1);
    scene.swarm.run(30 * SECOND);
    assert!(scene.swarm.sent.get("renew").is_none_or(|count| *count < 30), "{:?}", scene.swarm.sent);
}

#[test]
fn an_award_of_an_older_epoch_or_attempt_is_refused() {
    let mut scene = Scene::new(4);
    let order = scene.order(1, 5, (0, 1, 3));
    scene.award(peer(2), &order);
    let effects = scene.award(peer(2), &scene.order(2, 5, (0, 1, 2)));
    assert_eq!(
        (reply(&effects).declined, reply(&effects).code),
        (vec![(0, 1, 2).into()], Some(DeclineCode::OldFence))
    );
    let effects = scene.award(peer(2), &scene.order(3, 4, (1, 1, 1)));
    assert_eq!((reply(&effects).code, reply(&effects).epoch), (Some(DeclineCode::OldFence), 5));
    assert!(starts(&effects).is_empty());
    assert_eq!(scene.swarm.nodes[&peer(1)].worker.as_ref().unwrap().load().running, 1);
}

#[test]
fn an_award_that_answers_something_older_than_a_lease_is_refused() {
    let mut scene = Scene::new(2);
    scene.swarm.now = scene.swarm.now + 61 * SECOND;
    let effects = scene.award(peer(2), &scene.order(1, 5, (0, 1, 1)));
    assert_eq!(reply(&effects).code, Some(DeclineCode::Stale));
    assert!(starts(&effects).is_empty());
}

#[test]
fn an_award_from_before_the_workers_restart_is_refused() {
    let mut scene = Scene::new(2);
    scene.swarm.start_worker(peer(1));
    let effects = scene.award(peer(2), &scene.order(1, 5, (0, 1, 1)));
    assert_eq!(reply(&effects).code, Some(DeclineCode::Stale));
}

#[test]
fn what_was_declined_once_never_starts() {
    let mut scene = Scene::new(1);
    let effects = scene.award(peer(2), &scene.order(1, 5, (0, 3, 1)));
    assert_eq!(reply(&effects).accepted, [Span::one(0, 1)]);
    assert_eq!(reply(&effects).declined, [Span::from((1, 2, 1))]);
    assert_eq!(reply(&effects).code, Some(DeclineCode::Busy));
    scene.swarm.run(SECOND);
    let again = scene.award(peer(2), &scene.order(1, 5, (0, 3, 1)));
    assert!(starts(&again).is_empty(), "it was vouched for");
}

#[test]
fn a_newer_award_of_a_partition_ends_the_older_attempt() {
    let mut scene = Scene::new(2);
    scene.award(peer(2), &scene.order(1, 5, (0, 1, 1)));
    let effects = scene.award(peer(2), &scene.order(2, 5, (0, 1, 2)));
    let ended = |effect: &Effect| matches!(effect, Effect::End { execution, .. } if execution.attempt == 1);
    assert!(effects.iter().any(ended));
    assert_eq!(reply(&effects).accepted, [Span::one(0, 2)]);
}

#[test]
fn a_stop_of_another_than_the_owner_ends_nothing() {
    let mut scene = Scene::new(1);
    scene.award(peer(2), &scene.order(1, 5, (0, 1, 1)));
    let order = StopOrder {
        job: scene.job,
        nonce: scene.nonce.clone(),
        version: 1,
        epoch: 5,
        spans: vec![Span::one(0, 1)],
        worker: peer(1),
        reason: "no".into(),
    };
    let stop = |from| Input::Message { from, message: Direct::Stop(Stop { order: seal_stop(from, &order) }) };
    let effects = scene.input(stop(peer(3)));
    assert!(matches!(effects[..], [Effect::Penalise { .. }]));
    let effects = scene.input(stop(peer(2)));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::End { .. })));
    assert!(matches!(sent(&effects)[..], [Direct::Stopped(_)]));
}

#[test]
fn a_recall_takes_back_only_what_has_not_started() {
    let mut scene = Scene::new(1);
    scene.award(peer(2), &scene.order(1, 5, (0, 1, 1)));
    scene.swarm.run(SECOND);
    // With a known run time it takes work ahead.
    let bid = scene.ask(2, lottery::ALL);
    let Some(Direct::Bid(bid)) = bid.first() else { panic!("no bid: {bid:?}") };
    scene.answers = bid.stamp;
    scene.award(peer(2), &scene.order(2, 5, (1, 1, 1)));
    scene.award(peer(2), &scene.order(3, 5, (2, 5, 1)));
    let recall = Recall { job: scene.job, version: 1, spans: vec![Span::from((1, 6, 1))] };
    let answers = scene.tell(peer(2), Direct::Recall(recall));
    let Some(Direct::Recalled(recalled)) = answers.first() else { panic!("{answers:?}") };
    assert!(!recalled.spans.iter().any(|span| span.partitions().contains(&1)), "it runs: {recalled:?}");
}

#[test]
fn a_worker_bids_once_for_a_seed_and_only_where_the_lottery_lets_it() {
    let mut scene = Scene::new(8);
    assert!(scene.ask(1, lottery::ALL).is_empty(), "it has bid for that seed");
    assert_eq!(scene.ask(2, lottery::ALL).len(), 1);
    let mut bids = 0;
    for seed in 10..20 {
        let mut message = scene.announcements(seed);
        message.jobs[0].theta = lottery::ALL / 2;
        let draw = lottery::draw(seed, scene.job, peer(1));
        let bytes = seal_announcements(peer(2), &message);
        let effects = scene.input(Input::Announced { id: 1, relay: peer(3), class: Class::Wasm, bytes });
        let bid = sent(&effects).iter().any(|message| matches!(message, Direct::Bid(_)));
        assert_eq!(bid, lottery::admits(lottery::ALL / 2, 1, draw));
        bids += u32::from(bid);
    }
    assert!((1..10).contains(&bids));
}

#[test]
fn gossip_that_is_malformed_or_forged_is_rejected_and_stale_or_excessive_gossip_is_ignored() {
    let mut scene = Scene::new(2);
    assert_eq!(scene.announced(vec![1, 2, 3], Class::Wasm).0, Verdict::Reject);
    assert_eq!(scene.announced(vec![0; MAX_ANNOUNCEMENT_BYTES + 1], Class::Wasm).0, Verdict::Reject);
    let good = scene.announcements(100);
    assert_eq!(scene.announced(seal_announcements(peer(3), &good), Class::Wasm).0, Verdict::Reject, "forged");
    assert_eq!(
        scene.announced(seal_announcements(peer(2), &good), Class::Gpu).0,
        Verdict::Reject,
        "wrong topic"
    );
    let mut foreign = scene.announcements(101);
    foreign.jobs[0].job = JobId::derive(SWARM, peer(4), &scene.nonce);
    assert_eq!(scene.announced(seal_announcements(peer(2), &foreign), Class::Wasm).0, Verdict::Reject);
    let mut old = scene.announcements(102);
    old.issued -= 121_000_000_000;
    assert_eq!(scene.announced(seal_announcements(peer(2), &old), Class::Wasm).0, Verdict::Ignore);
    assert_eq!(scene.announced(seal_announcements(peer(2), &good), Class::Wasm), (Verdict::Accept, ""));
    let verdicts: Vec<Verdict> = (200..220)
        .map(|seed| {
            let message = scene.announcements(seed);
            scene.announced(seal_announcements(peer(2), &message), Class::Wasm).0
        })
        .collect();
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Accept).count(), 9, "a burst of ten");
    scene.swarm.now = scene.swarm.now + 2 * SECOND;
    let message = scene.announcements(300);
    assert_eq!(scene.announced(seal_announcements(peer(2), &message), Class::Wasm).0, Verdict::Accept);
    let counters = scene.swarm.nodes[&peer(1)].worker.as_ref().unwrap().counters();
    assert_eq!((counters.rejected, counters.ignored), (5, 12));
}

#[test]
fn soft_holds_let_three_bids_out_for_one_place_and_end_after_five_seconds() {
    let mut scene = Scene::new(1);
    let bids = |scene: &mut Scene, from: u8| {
        let mut bids = 0;
        for number in from..from + 5 {
            let new = job(peer(2), number, 1);
            scene.job = new.id;
            scene.nonce = new.nonce;
            bids += scene.ask(9, lottery::ALL).iter().filter(|one| matches!(one, Direct::Bid(_))).count();
        }
        bids
    };
    assert_eq!(bids(&mut scene, 10), 2, "one was out already");
    scene.swarm.now = scene.swarm.now + 6 * SECOND;
    scene.input(Input::Tick);
    assert_eq!(bids(&mut scene, 20), 0, "those that were remembered came first");
}

#[test]
fn a_policy_per_class_of_submitters_decides() {
    let mut scene = Scene::new(2);
    let declined = |sent: Vec<Direct>| match sent.into_iter().next() {
        Some(Direct::Decline(decline)) => Some((decline.code, decline.message)),
        _ => None,
    };
    let mut with = |change: fn(&mut Facts), seed: u64| {
        let mut announcement = scene.announcement(seed, lottery::ALL);
        change(&mut announcement.facts);
        let ask = Ask { announcement, addresses: Vec::new(), ttl_ms: 1000, issued: 0 };
        declined(scene.tell(peer(2), Direct::Ask(Box::new(ask))))
    };
    let engine = with(|facts| facts.engine = "docker".into(), 2);
    assert_eq!(engine, Some((DeclineCode::Engine, "docker".into())));
    let network = with(|facts| facts.network = "host".into(), 3);
    assert_eq!(network, Some((DeclineCode::Network, "host".into())));
    let many = with(|facts| facts.resources.memory = 1 << 40, 4);
    assert_eq!(many, Some((DeclineCode::Resources, "Memory 1tib (here: 2mib)".into())));
    let service = with(|facts| facts.job_type = job::spec::JobType::Service, 5);
    assert_eq!(service, Some((DeclineCode::Policy, "service jobs".into())));
    let source = with(|facts| facts.sources = vec!["s3".into()], 6);
    assert_eq!(source, Some((DeclineCode::Source, "s3".into())));
    assert_eq!(with(|_| {}, 7), None);
}

#[test]
fn a_spec_that_is_not_the_one_named_is_refused() {
    let mut scene = Scene::new(2);
    scene.spec = b"another".to_vec();
    let mut order = scene.order(1, 5, (0, 1, 1));
    order.spec = cid(b"spec 1");
    let effects = scene.award(peer(2), &order);
    assert_eq!(reply(&effects).code, Some(DeclineCode::NoSpec));
    assert!(starts(&effects).is_empty());
}

#[test]
fn announcements_are_passed_on_as_signed_and_only_to_those_who_asked() {
    let mut scene = Scene::new(2);
    let message = scene.announcements(50);
    let bytes = seal_announcements(peer(2), &message);
    scene.announced(bytes.clone(), Class::Wasm);
    let answer = scene.tell(peer(7), Direct::Pull(Pull { most: 5 }));
    let Some(Direct::Remembered(remembered)) = answer.first() else { panic!("{answer:?}") };
    assert_eq!(remembered.messages[0].1, Bytes::from(bytes));
    let mut other = Swarm::new(1, 2);
    other.quiet = true;
    let told = Input::Message { from: peer(7), message: answer[0].clone() };
    assert!(sent(&other.worker_effects(peer(1), told.clone())).is_empty(), "it did not ask");
    other.worker_effects(peer(1), Input::Connected(peer(7)));
    let asked = sent(&other.worker_effects(peer(1), Input::Joined));
    assert!(matches!(asked[..], [Direct::Pull(_)]));
    assert!(matches!(sent(&other.worker_effects(peer(1), told))[..], [Direct::Bid(_)]));
    assert_eq!(other.nodes[&peer(1)].worker.as_ref().unwrap().owner_of(scene.job), Some(peer(2)));
    assert_eq!(Time::ZERO, Time::ZERO);
}
