//! How an owner looks for workers, and whom it believes.

use std::sync::Arc;
use std::time::Duration;

use job::PeerId;
use job::state::JobState;

use super::harness::{SWARM, Swarm, job, peer, seal_order};
use crate::lottery;
use crate::message::*;
use crate::owner::{Effect, Input, JobView, Refusal, StoredJob};
use crate::record::Kind;
use crate::topic::Class;

const SECOND: Duration = Duration::from_secs(1);

/// An owner (1) that runs no jobs itself; the test plays everybody else.
fn alone() -> Swarm {
    let mut swarm = Swarm::new(1, 0);
    swarm.quiet = true;
    swarm
}

fn meet(swarm: &mut Swarm, peers: std::ops::Range<u8>) {
    for number in peers {
        swarm.owner(peer(1), Input::Connected(peer(number)));
        swarm.owner(peer(1), Input::Subscribed { peer: peer(number), class: Class::Wasm });
    }
}

fn submit(swarm: &mut Swarm, number: u8, count: u32) -> (job::JobId, Vec<Effect>) {
    let new = job(peer(1), number, count);
    let id = new.id;
    (id, swarm.owner_effects(peer(1), Input::Submitted { token: 1, job: Box::new(new) }))
}

fn sent(effects: &[Effect]) -> Vec<(PeerId, Direct)> {
    let sends = effects.iter().filter_map(|effect| match effect {
        Effect::Send { to, message } => Some((*to, message.clone())),
        _ => None,
    });
    sends.collect()
}

fn announced(effects: &[Effect]) -> Vec<Announcements> {
    let messages = effects.iter().filter_map(|effect| match effect {
        Effect::Announce { bytes, .. } => Some(super::harness::open_announcements(peer(1), bytes)),
        _ => None,
    });
    messages.collect()
}

fn awards(effects: &[Effect]) -> Vec<(PeerId, AwardOrder)> {
    let awards = sent(effects).into_iter().filter_map(|(to, message)| match message {
        Direct::Award(award) => Some((to, award.order.read().expect("an order"))),
        _ => None,
    });
    awards.collect()
}

fn bid(id: job::JobId, seed: u64, slots: u32) -> Bid {
    Bid {
        job: id,
        version: 1,
        seed,
        stamp: Stamp { start: 1, at_ms: 1 },
        start_ms: 0,
        slots,
        local_bytes: 0,
        cached: false,
        hold_ms: 5000,
        skew_s: 0,
    }
}

fn tell(swarm: &mut Swarm, from: PeerId, message: Direct) -> Vec<Effect> {
    swarm.owner_effects(peer(1), Input::Message { from, message })
}

#[test]
fn with_nobody_known_a_job_is_announced_at_once_and_the_first_bid_gets_it() {
    let mut swarm = alone();
    meet(&mut swarm, 2..5);
    let (id, effects) = submit(&mut swarm, 1, 1);
    let message = announced(&effects).pop().expect("an announcement");
    assert_eq!((message.jobs[0].job, message.jobs[0].theta, message.jobs[0].open), (id, lottery::ALL, 1));
    let effects = tell(&mut swarm, peer(3), Direct::Bid(bid(id, message.jobs[0].seed, 4)));
    let awards = awards(&effects);
    assert_eq!(awards.len(), 1);
    assert_eq!((awards[0].0, &awards[0].1.spans[..]), (peer(3), &[Span::one(0, 1)][..]));
    assert_eq!(awards[0].1.answers, Stamp { start: 1, at_ms: 1 });
    let kinds: Vec<Kind> =
        effects.iter().filter_map(|effect| effect.record().map(|record| record.key.kind)).collect();
    assert!(kinds.contains(&Kind::Award), "journalled in the same batch");
}

#[test]
fn recent_bidders_are_asked_before_anybody_else() {
    let mut swarm = alone();
    meet(&mut swarm, 2..5);
    let (id, effects) = submit(&mut swarm, 1, 1);
    let seed = announced(&effects)[0].jobs[0].seed;
    tell(&mut swarm, peer(3), Direct::Bid(bid(id, seed, 4)));
    let (second, effects) = submit(&mut swarm, 2, 1);
    assert!(announced(&effects).is_empty());
    let sent = sent(&effects);
    let [(to, Direct::Ask(ask))] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(*to, peer(3));
    let decline = Decline::new(second, 1, ask.announcement.seed, DeclineCode::Busy, "");
    let effects = tell(&mut swarm, peer(3), Direct::Decline(decline));
    assert_eq!(announced(&effects).len(), 1, "all who were asked have answered: no waiting for the window");
}

#[test]
fn bids_from_outside_the_lottery_are_dropped_and_held_against_the_bidder() {
    let mut swarm = alone();
    meet(&mut swarm, 2..60);
    swarm.owner(peer(1), Input::Swarm { size: 10_000 });
    let (id, effects) = submit(&mut swarm, 1, 1);
    let announcement = announced(&effects)[0].jobs[0].clone();
    assert!(announcement.theta < lottery::ALL / 100);
    let outside = (2..60)
        .map(peer)
        .find(|peer| !lottery::admits(announcement.theta, 1, lottery::draw(announcement.seed, id, *peer)));
    let outside = outside.expect("most are outside");
    let effects = tell(&mut swarm, outside, Direct::Bid(bid(id, announcement.seed, 1)));
    assert!(awards(&effects).is_empty());
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Penalise { peer, .. } if *peer == outside)));
    assert_eq!(swarm.nodes[&peer(1)].owner.as_ref().unwrap().counters().foreign_bids, 1);
    let made_up = tell(&mut swarm, outside, Direct::Bid(bid(id, 12345, 1)));
    assert!(awards(&made_up).is_empty(), "a seed that was never given out");
}

#[test]
fn the_share_widens_each_round_until_everybody_was_asked_and_the_job_says_why_it_waits() {
    let mut swarm = alone();
    meet(&mut swarm, 2..60);
    swarm.owner(peer(1), Input::Swarm { size: 100_000 });
    let (id, effects) = submit(&mut swarm, 1, 1);
    let mut thetas = vec![announced(&effects)[0].jobs[0].theta];
    for _ in 0..6 {
        swarm.now = swarm.now + Duration::from_millis(1200);
        let effects = swarm.owner_effects(peer(1), Input::Tick);
        thetas.extend(announced(&effects).iter().map(|message| message.jobs[0].theta));
    }
    assert!(thetas.windows(2).all(|pair| pair[1] == lottery::ALL || pair[1] == 16 * pair[0]), "{thetas:?}");
    assert_eq!(thetas.last(), Some(&lottery::ALL));
    assert_eq!(swarm.state(peer(1), id).0, JobState::Queued);
}

#[test]
fn until_the_round_closes_one_bidder_gets_only_its_share() {
    let mut swarm = alone();
    meet(&mut swarm, 2..6);
    let (id, effects) = submit(&mut swarm, 1, 40);
    let seed = announced(&effects)[0].jobs[0].seed;
    let first = awards(&tell(&mut swarm, peer(2), Direct::Bid(bid(id, seed, 40))));
    assert_eq!(first[0].1.spans, [Span::from((0, 10, 1))]);
    let effects = tell(&mut swarm, peer(2), Direct::Bid(bid(id, seed, 40)));
    assert!(awards(&effects).iter().all(|(_, order)| order.spans.iter().all(|span| span.count <= 10)));
    swarm.now = swarm.now + Duration::from_millis(1300);
    let rest = awards(&swarm.owner_effects(peer(1), Input::Tick));
    let given: u32 = rest.iter().flat_map(|(_, order)| &order.spans).map(|span| span.count).sum();
    assert!(given >= 20, "the rest goes to whom there is: {given}");
}

#[test]
fn an_owner_paces_its_announcements_and_puts_sixteen_into_a_message() {
    let mut swarm = alone();
    meet(&mut swarm, 2..4);
    let mut messages = Vec::new();
    for number in 1..=200 {
        let (_, effects) = submit(&mut swarm, number, 1);
        messages.extend(announced(&effects));
    }
    assert_eq!(messages.len(), 8, "the burst");
    let before: usize = messages.iter().map(|message| message.jobs.len()).sum();
    for _ in 0..30 {
        swarm.now = swarm.now + Duration::from_millis(1100);
        let effects = swarm.owner_effects(peer(1), Input::Tick);
        let more = announced(&effects);
        assert!(more.len() <= 1);
        messages.extend(more);
    }
    assert_eq!(before, 8);
    assert!(
        messages.iter().any(|message| message.jobs.len() >= 12),
        "{:?}",
        messages.iter().map(|one| one.jobs.len()).collect::<Vec<_>>()
    );
    let mut issued: Vec<u64> = messages.iter().map(|message| message.issued).collect();
    issued.dedup();
    assert_eq!(issued.len(), messages.len(), "issue times are always fresh");
}

#[test]
fn what_cannot_be_owned_is_refused_and_changes_nothing() {
    let mut swarm = alone();
    let refuse = |swarm: &mut Swarm, new: crate::owner::NewJob| {
        let effects = swarm.owner_effects(peer(1), Input::Submitted { token: 9, job: Box::new(new) });
        match &effects[..] {
            [Effect::Refused { token: 9, why }] => why.clone(),
            other => panic!("{other:?}"),
        }
    };
    let mut foreign = job(peer(1), 1, 1);
    foreign.id = job(peer(2), 1, 1).id;
    assert_eq!(refuse(&mut swarm, foreign), Refusal::ForeignId);
    assert_eq!(refuse(&mut swarm, job(peer(1), 1, 0)), Refusal::NoPartitions);
    let mut large = job(peer(1), 1, 1);
    let long = format!("label in ({})", vec!["abcdefghijklmnopqrstuvwxyz0123456789"; 64].join(","));
    large.facts.constraints =
        [job::constraint::parse(&long).unwrap(), job::constraint::parse(&long).unwrap()].concat();
    assert_eq!(refuse(&mut swarm, large), Refusal::AnnouncementTooLarge);
    submit(&mut swarm, 1, 1);
    assert_eq!(refuse(&mut swarm, job(peer(1), 1, 1)), Refusal::VersionExists(1));
    assert_eq!(swarm.nodes[&peer(1)].owner.as_ref().unwrap().jobs().count(), 1);
}

#[test]
fn a_receipt_for_what_was_not_awarded_commits_nothing() {
    let mut swarm = alone();
    meet(&mut swarm, 2..4);
    let (id, effects) = submit(&mut swarm, 1, 2);
    let seed = announced(&effects)[0].jobs[0].seed;
    let given = awards(&tell(&mut swarm, peer(2), Direct::Bid(bid(id, seed, 1))));
    let order = &given[0].1;
    let receipt = |partition, attempt, epoch| Receipt {
        partition,
        attempt,
        epoch,
        outcome: Outcome::Exit(0),
        result: None,
        usage: Usage::default(),
        started_ms: 1,
        ran_ms: 1,
    };
    let mut group = ReceiptGroup {
        job: id,
        version: 1,
        spec: order.spec,
        worker: peer(2),
        inputs: Vec::new(),
        engine: String::new(),
        receipts: vec![
            receipt(1, 1, order.epoch),
            receipt(0, 2, order.epoch),
            receipt(0, 1, order.epoch + 1),
        ],
    };
    let receipts = |from: PeerId, group: &ReceiptGroup| {
        let groups = super::harness::seal_receipts(from, std::slice::from_ref(group));
        Direct::Receipts(Receipts { stamp: Stamp { start: 1, at_ms: 2 }, groups, blocks: Vec::new() })
    };
    tell(&mut swarm, peer(2), receipts(peer(2), &group));
    group.receipts = vec![receipt(0, 1, order.epoch)];
    tell(&mut swarm, peer(3), receipts(peer(3), &group));
    group.worker = peer(3);
    tell(&mut swarm, peer(3), receipts(peer(3), &group));
    assert_eq!(swarm.view(peer(1), id).summary.committed, 0);
    assert!(swarm.nodes[&peer(1)].owner.as_ref().unwrap().counters().bad_receipts >= 5);
    group.worker = peer(2);
    tell(&mut swarm, peer(2), receipts(peer(2), &group));
    assert_eq!(swarm.view(peer(1), id).summary.committed, 1);
    tell(&mut swarm, peer(2), receipts(peer(2), &group));
    assert_eq!(swarm.view(peer(1), id).summary.committed, 1, "a repeated one changes nothing");
}

#[test]
fn nothing_is_committed_before_its_result_is_held() {
    let mut swarm = Swarm::new(1, 1);
    swarm.holds = false;
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    swarm.run(SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Running);
    let hold = swarm.answers.iter().find_map(|effect| match effect {
        Effect::Hold(hold) => Some((**hold).clone()),
        _ => None,
    });
    let hold = hold.expect("its result is asked for");
    let results = vec![crate::owner::Held { partition: 0, attempt: hold.items[0].attempt, result: Ok(()) }];
    swarm.owner(peer(1), Input::Held { job: id, version: 1, results });
    assert_eq!(swarm.state(peer(1), id).0, JobState::Completed);
    assert!(swarm.view(peer(1), id).executions[0].held);
}

#[test]
fn a_restart_takes_a_higher_epoch_and_records_it_first() {
    let mut swarm = Swarm::new(1, 0);
    let epoch = |swarm: &Swarm| swarm.nodes[&peer(1)].owner.as_ref().unwrap().epoch();
    let first = epoch(&swarm);
    assert_eq!(u64::from(first), swarm.now.unix_seconds());
    swarm.start_owner(peer(1));
    assert_eq!(epoch(&swarm), first + 1);
    let recorded = swarm.nodes[&peer(1)].owner_records.keys().any(|key| key.kind == Kind::Epoch);
    assert!(recorded);
}

#[test]
fn an_award_that_shows_a_higher_epoch_raises_ours() {
    let mut swarm = alone();
    meet(&mut swarm, 2..3);
    let epoch = swarm.nodes[&peer(1)].owner.as_ref().unwrap().epoch();
    let order = |signer| {
        seal_order(
            signer,
            &AwardOrder {
                id: 1,
                job: job::JobId::derive(SWARM, peer(1), b"lost"),
                nonce: b"lost"[..].into(),
                version: 1,
                spec: super::harness::cid(b"spec"),
                count: 1,
                epoch: epoch + 100,
                spans: vec![Span::one(0, 1)],
                worker: peer(2),
                answers: Stamp::default(),
                lease_ms: 60_000,
                total_ms: 0,
                keep: false,
            },
        )
    };
    let live = |newest| {
        Direct::Live(Live {
            answers: 0,
            stamp: Stamp { start: 1, at_ms: 1 },
            jobs: Vec::new(),
            newest: Some(newest),
        })
    };
    tell(&mut swarm, peer(2), live(order(peer(2))));
    assert_eq!(swarm.nodes[&peer(1)].owner.as_ref().unwrap().epoch(), epoch, "not ours");
    tell(&mut swarm, peer(2), live(order(peer(1))));
    assert_eq!(swarm.nodes[&peer(1)].owner.as_ref().unwrap().epoch(), epoch + 101);
}

#[test]
fn a_sleeping_owner_loses_no_worker_and_asks_first_when_it_wakes() {
    let mut swarm = Swarm::new(1, 0);
    swarm.add(2, 1);
    swarm.program = Arc::new(|_, _| (600 * SECOND, Outcome::Exit(0)));
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    swarm.run(SECOND);
    // The lid closes: the boot clock goes on, nobody runs.
    swarm.now = swarm.now + 300 * SECOND;
    let effects = swarm.owner_effects(peer(1), Input::Tick);
    assert!(matches!(sent(&effects)[..], [(_, Direct::Reconcile(_))]), "{effects:?}");
    swarm.run(SECOND);
    assert_eq!(swarm.started.len(), 1);
    assert!(!swarm.view(peer(1), id).executions[0].unknown);
}

#[test]
fn records_give_the_view_that_the_machine_gave() {
    let mut swarm = Swarm::new(3, 2);
    swarm.program =
        Arc::new(|worker, one| (SECOND, Outcome::Exit(i32::from(worker == peer(2) && one.partition == 3))));
    let id = swarm.submit(peer(1), job(peer(1), 1, 12));
    swarm.run(Duration::from_millis(1500));
    let live = swarm.view(peer(1), id);
    let records: Vec<_> =
        swarm.nodes[&peer(1)].owner_records.values().filter(|one| one.key.job == id).cloned().collect();
    let machine = swarm.nodes[&peer(1)].owner.as_ref().unwrap();
    let news = machine.reader(id, None).unwrap().history(0).filter(|line| !line.is_routine());
    let news: Vec<_> =
        news.filter_map(|line| Some((line.execution()?.partition, line.event().message))).collect();
    assert!(news.iter().all(|(partition, _)| *partition == 3), "{news:?}");
    assert_eq!(news[0].1, "Failed: exit code 1", "then it goes to another: {news:?}");
    assert!(news[1].1.starts_with("Requested execution on "), "{news:?}");
    let read = StoredJob::from_records(records, peer(1)).unwrap().unwrap().reader().view();
    assert_eq!(live.summary.committed, read.summary.committed);
    assert_eq!(live.summary.state, read.summary.state);
    let ends = |view: &JobView| {
        let ended = view.executions.iter().filter(|one| one.state.is_terminal());
        ended
            .map(|one| (one.key, one.state, one.exit_code, one.result.clone(), one.ended))
            .collect::<Vec<_>>()
    };
    assert_eq!(ends(&live), ends(&read));
    let lines =
        |view: &JobView| view.history.iter().map(|line| (line.seq, line.message.clone())).collect::<Vec<_>>();
    let recorded = lines(&read);
    assert!(
        recorded.iter().all(|line| lines(&live).contains(line)),
        "a record shows nothing that was not shown"
    );
}

#[test]
fn what_ends_with_its_lease_is_not_awarded_once_more_at_that_moment() {
    let mut swarm = alone();
    meet(&mut swarm, 2..3);
    let mut new = job(peer(1), 1, 1);
    new.facts.never = true;
    let id = new.id;
    let effects = swarm.owner_effects(peer(1), Input::Submitted { token: 1, job: Box::new(new) });
    let seed = announced(&effects)[0].jobs[0].seed;
    tell(&mut swarm, peer(2), Direct::Bid(bid(id, seed, 1)));
    let mut repeated = 0;
    // It never answers, and the owner is slow to tick, so that several things are due at once.
    for _ in 0..40 {
        swarm.now = swarm.now + 5 * SECOND;
        let effects = swarm.owner_effects(peer(1), Input::Tick);
        let ended = swarm.state(peer(1), id).0.is_terminal();
        repeated += awards(&effects).len();
        assert!(!ended || awards(&effects).is_empty(), "{effects:?}");
    }
    assert!(swarm.state(peer(1), id).0.is_terminal() && repeated > 5, "{repeated}");
}
