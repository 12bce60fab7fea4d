//! What ended is kept for so long, and so much of it; then nothing of it is left.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use job::JobId;
use job::state::JobState;

use super::harness::{Swarm, job, peer};
use crate::message::Outcome;
use crate::owner::{Effect, Input, NewJob, Refusal, StopRefusal};
use crate::record::{Kind, Record};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A node of its own that keeps what ended for an hour, and so much of it.
fn keeping(jobs: usize, executions: u64) -> Swarm {
    let mut swarm = Swarm::new(1, 4);
    let settings = &mut swarm.nodes.get_mut(&peer(1)).unwrap().owner_settings;
    settings.retention = HOUR;
    settings.retained_jobs = jobs;
    settings.retained_executions = executions;
    restart(&mut swarm);
    swarm
}

fn restart(swarm: &mut Swarm) {
    swarm.kill(peer(1));
    swarm.boot(peer(1));
}

fn ended(swarm: &mut Swarm, job: NewJob) -> JobId {
    let id = swarm.submit(peer(1), job);
    swarm.run(SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Completed);
    id
}

/// The jobs of which any record is left.
fn recorded(swarm: &Swarm) -> BTreeSet<JobId> {
    let records = swarm.nodes[&peer(1)].owner_records.keys();
    records.filter(|key| key.kind != Kind::Epoch).map(|key| key.job).collect()
}

fn knows(swarm: &Swarm, id: JobId) -> bool {
    swarm.nodes[&peer(1)].owner.as_ref().unwrap().knows(id, 1)
}

#[test]
fn an_ended_job_is_forgotten_when_its_retention_is_over_and_no_sooner() {
    let mut swarm = keeping(10, 1000);
    let id = ended(&mut swarm, job(peer(1), 1, 3));
    swarm.run(HOUR - 2 * SECOND);
    assert!(swarm.forgotten.is_empty() && knows(&swarm, id));
    swarm.run(2 * SECOND);
    assert_eq!(swarm.forgotten, [(id, 1)]);
    assert_eq!((recorded(&swarm), knows(&swarm, id)), (BTreeSet::new(), false));
    let wakeup = swarm.nodes[&peer(1)].owner.as_ref().unwrap().next_wakeup();
    assert_eq!(wakeup, None, "nothing is left to wait for");
}

#[test]
fn a_restart_makes_retention_neither_longer_nor_shorter() {
    let mut swarm = keeping(10, 1000);
    let id = ended(&mut swarm, job(peer(1), 1, 1));
    swarm.run(HOUR / 2);
    restart(&mut swarm);
    assert!(knows(&swarm, id), "it is still in its records");
    swarm.run(HOUR / 2 - 2 * SECOND);
    assert!(swarm.forgotten.is_empty());
    swarm.run(2 * SECOND);
    assert_eq!(swarm.forgotten, [(id, 1)]);
    restart(&mut swarm);
    assert!(!knows(&swarm, id));
}

#[test]
fn a_wall_clock_that_is_set_right_ends_nothing_early() {
    let mut swarm = keeping(10, 1000);
    let id = ended(&mut swarm, job(peer(1), 1, 1));
    swarm.now.wall += 10 * 365 * 24 * 3_600_000_000_000;
    swarm.run(HOUR / 2);
    assert!(knows(&swarm, id));
    swarm.run(HOUR / 2);
    assert_eq!(swarm.forgotten, [(id, 1)]);
}

#[test]
fn of_too_many_jobs_those_that_ended_first_go_first() {
    let mut swarm = keeping(2, 1000);
    let ids: Vec<JobId> = (1..=5).map(|number| ended(&mut swarm, job(peer(1), number, 1))).collect();
    let gone: Vec<JobId> = swarm.forgotten.iter().map(|(id, _)| *id).collect();
    assert_eq!(gone, ids[..3]);
    assert_eq!(recorded(&swarm), ids[3..].iter().copied().collect());
}

#[test]
fn of_too_many_executions_the_oldest_go_and_what_ended_last_stays_however_large() {
    let mut swarm = keeping(100, 10);
    let small: Vec<JobId> = (1..=3).map(|number| ended(&mut swarm, job(peer(1), number, 4))).collect();
    assert_eq!(swarm.forgotten, [(small[0], 1)], "twelve are too many, eight are not");
    let large = ended(&mut swarm, job(peer(1), 4, 20));
    swarm.run(SECOND);
    assert_eq!(recorded(&swarm), BTreeSet::from([large]));
    swarm.run(HOUR);
    assert_eq!(recorded(&swarm), BTreeSet::new(), "its time ends as well");
}

#[test]
fn much_that_is_past_is_forgotten_in_small_steps_between_which_jobs_are_taken() {
    let mut swarm = keeping(10_000, 100_000);
    ended(&mut swarm, job(peer(1), 1, 1));
    // As many more as a busy owner has: their records are those of the first.
    let node = swarm.nodes.get_mut(&peer(1)).unwrap();
    let of_first: Vec<Record> =
        node.owner_records.values().filter(|record| record.key.kind != Kind::Epoch).cloned().collect();
    for number in 0..2000_u16 {
        let [high, low] = number.to_be_bytes();
        let id = JobId([[high, low].as_slice(), [9; 14].as_slice()].concat().try_into().unwrap());
        for record in &of_first {
            let key = crate::record::RecordKey { job: id, ..record.key };
            node.owner_records.insert(key, Record { key, value: record.value.clone() });
        }
    }
    restart(&mut swarm);
    swarm.now = swarm.now + HOUR;
    let first = swarm.owner_effects(peer(1), Input::Tick);
    let count = |effects: &[Effect]| {
        effects.iter().filter(|effect| matches!(effect, Effect::ForgetJob { .. })).count()
    };
    assert_eq!(count(&first), 256);
    let again = swarm.owner_effects(peer(1), Input::Tick);
    assert_eq!(count(&again), 0, "it rests in between");
    let id = swarm.submit(peer(1), job(peer(1), 2, 1));
    swarm.run(2 * SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Completed);
    assert_eq!(recorded(&swarm), BTreeSet::from([id]));
    assert_eq!(swarm.nodes[&peer(1)].owner.as_ref().unwrap().counters().forgotten, 2001);
}

#[test]
fn older_versions_go_first_and_a_version_that_is_kept_is_not_made_again() {
    let mut swarm = keeping(10, 1000);
    let version = |version| NewJob { version, ..job(peer(1), 1, 1) };
    let id = ended(&mut swarm, version(1));
    swarm.run(HOUR / 2);
    ended(&mut swarm, version(2));
    swarm.run(HOUR / 2);
    assert_eq!(swarm.forgotten, [(id, 1)]);
    assert!(swarm.nodes[&peer(1)].owner.as_ref().unwrap().knows(id, 2));
    swarm.submit(peer(1), version(2));
    let refused = swarm.answers.iter().rev().find_map(|answer| match answer {
        Effect::Refused { why, .. } => Some(why.clone()),
        _ => None,
    });
    assert_eq!(refused, Some(Refusal::VersionExists(2)));
    swarm.run(HOUR);
    assert_eq!(swarm.forgotten, [(id, 1), (id, 2)]);
    assert_eq!(recorded(&swarm), BTreeSet::new());
}

#[test]
fn a_forgotten_job_is_like_one_that_never_was() {
    let mut swarm = keeping(10, 1000);
    let id = ended(&mut swarm, job(peer(1), 1, 1));
    swarm.run(HOUR);
    swarm.answers.clear();
    swarm.owner(peer(1), Input::StopRequested { token: 3, job: id, reason: "late".into() });
    assert_eq!(swarm.answers, [Effect::StopAnswered { token: 3, result: Err(StopRefusal::Unknown) }]);
    assert_eq!(recorded(&swarm), BTreeSet::new());
    // The same token makes the same id; it is a new job, and runs.
    let starts = swarm.started.len();
    assert_eq!(ended(&mut swarm, job(peer(1), 1, 1)), id);
    assert_eq!(swarm.started.len(), starts + 1);
}

#[test]
fn a_worker_that_comes_back_with_a_forgotten_job_lets_go_of_it_and_nothing_revives() {
    let mut swarm = Swarm::new(1, 0);
    swarm.add(2, 1);
    let settings = &mut swarm.nodes.get_mut(&peer(1)).unwrap().owner_settings;
    (settings.retention, settings.stop_retention) = (SECOND, HOUR);
    restart(&mut swarm);
    swarm.program = Arc::new(|_, _| (60 * SECOND, Outcome::Exit(0)));
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    swarm.run(SECOND);
    assert_eq!(swarm.running(peer(2)).len(), 1);
    swarm.cut(peer(1), peer(2));
    swarm.owner(peer(1), Input::StopRequested { token: 3, job: id, reason: String::new() });
    swarm.run(HOUR / 2);
    assert!(swarm.forgotten.is_empty(), "a worker must still hear of its stop");
    swarm.run(HOUR);
    assert_eq!(swarm.forgotten, [(id, 1)], "nothing runs for so long without its owner");
    assert_eq!(swarm.nodes[&peer(2)].worker.as_ref().unwrap().load().offered, 1);
    swarm.heal(peer(1), peer(2));
    swarm.run(60 * SECOND);
    assert_eq!(swarm.nodes[&peer(2)].worker.as_ref().unwrap().load().offered, 0);
    assert_eq!((recorded(&swarm), knows(&swarm, id)), (BTreeSet::new(), false));
    assert!(swarm.penalised.is_empty(), "{:?}", swarm.penalised);
}

#[test]
fn what_settled_before_records_said_when_is_kept_from_the_next_start_on() {
    let mut swarm = keeping(10, 1000);
    let id = ended(&mut swarm, job(peer(1), 1, 1));
    let node = swarm.nodes.get_mut(&peer(1)).unwrap();
    let settled = node.owner_records.values_mut().find(|record| record.key.kind == Kind::Settled).unwrap();
    *settled = Record::new(settled.key, &true);
    swarm.run(HOUR / 2);
    restart(&mut swarm);
    swarm.run(HOUR / 2);
    restart(&mut swarm);
    assert!(swarm.forgotten.is_empty(), "the first start decided");
    swarm.run(HOUR / 2);
    assert_eq!(swarm.forgotten, [(id, 1)]);
}
