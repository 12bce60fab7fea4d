//! What happens when things go wrong: kills, splits, silence, failures, stops.

use std::sync::Arc;
use std::time::Duration;

use job::PeerId;
use job::state::{ExecutionState, JobState};

use super::harness::{Swarm, job, peer, small};
use crate::message::{Direct, FaultClass, JobLive, Outcome, Renew, Span, Stamp};
use crate::owner;

const SECOND: Duration = Duration::from_secs(1);

/// A swarm of a submit-only owner (1) and workers (2, 3, …) whose executions take a while.
fn slow(workers: u8, span: Duration) -> Swarm {
    let mut swarm = Swarm::new(1, 0);
    for number in 2..2 + workers {
        swarm.add(number, 2);
    }
    swarm.program = Arc::new(move |_, _| (span, Outcome::Exit(0)));
    swarm
}

fn states(swarm: &Swarm, owner: PeerId, id: job::JobId) -> Vec<(u32, u32, ExecutionState)> {
    let view = swarm.view(owner, id);
    view.executions.iter().map(|one| (one.key.partition, one.key.attempt, one.state)).collect()
}

#[test]
fn a_killed_workers_partition_is_backed_up_at_once() {
    let mut swarm = slow(2, 10 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    swarm.run(SECOND);
    let first = swarm.started[0].1;
    swarm.kill(first);
    swarm.run(Duration::from_millis(10));
    assert_eq!(swarm.started.len(), 2, "the other worker starts it without waiting for a lease");
    assert_ne!(swarm.started[1].1, first);
    swarm.run(11 * SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Completed);
    assert_eq!(states(&swarm, peer(1), id)[1], (0, 2, ExecutionState::Completed));
    assert_eq!(states(&swarm, peer(1), id)[0], (0, 1, ExecutionState::Cancelled));
}

#[test]
fn a_job_whose_owner_has_lost_everybody_says_so_until_somebody_is_back() {
    let mut swarm = slow(1, 10 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    swarm.run(SECOND);
    assert_eq!(swarm.state(peer(1), id), (JobState::Running, String::new()));
    swarm.cut(peer(1), peer(2));
    swarm.run(300 * SECOND);
    let said = "its workers are out of reach: no peer is connected".to_owned();
    assert_eq!(swarm.state(peer(1), id), (JobState::Running, said.clone()));
    assert_eq!(swarm.view(peer(1), id).executions[0].message, said);
    let effects = swarm.owner_effects(peer(1), owner::Input::Connected(peer(3)));
    let told = effects.iter().find_map(|effect| match effect {
        owner::Effect::Changed { message, .. } => Some(message.as_str()),
        _ => None,
    });
    assert_eq!((told, swarm.state(peer(1), id).1.as_str()), (Some(""), ""));
    swarm.heal(peer(1), peer(2));
    swarm.run(SECOND);
    assert_eq!(swarm.state(peer(1), id), (JobState::Completed, String::new()));
    assert_eq!(swarm.started.len(), 1);
}

#[test]
fn a_worker_that_restarts_says_what_it_lost_and_gets_it_again() {
    let mut swarm = slow(1, 10 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 3));
    swarm.run(SECOND);
    swarm.kill(peer(2));
    swarm.run(SECOND);
    swarm.boot(peer(2));
    swarm.run(40 * SECOND);
    let view = swarm.view(peer(1), id);
    assert_eq!(view.summary.state, JobState::Completed, "{:#?}", view.history);
    assert_eq!(view.summary.committed, 3);
    let completed = view.executions.iter().filter(|one| one.state == ExecutionState::Completed).count();
    assert_eq!(completed, 3);
}

#[test]
fn an_owner_that_restarts_adopts_what_runs_and_nothing_runs_twice() {
    let mut swarm = slow(2, 10 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 4));
    swarm.run(SECOND);
    assert_eq!(swarm.started.len(), 4);
    swarm.kill(peer(1));
    swarm.run(2 * SECOND);
    swarm.boot(peer(1));
    swarm.run(20 * SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Completed);
    assert_eq!(swarm.started.len(), 4, "adopted, not started again");
}

#[test]
fn receipts_wait_for_an_owner_that_is_away() {
    let mut swarm = slow(1, 10 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 2));
    swarm.run(SECOND);
    swarm.kill(peer(1));
    swarm.run(3600 * SECOND);
    swarm.boot(peer(1));
    swarm.run(SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Completed);
    assert_eq!(swarm.started.len(), 2);
}

#[test]
fn receipts_survive_the_worker_too() {
    let mut swarm = slow(1, 10 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 2));
    swarm.run(SECOND);
    swarm.kill(peer(1));
    swarm.run(60 * SECOND);
    swarm.kill(peer(2));
    swarm.boot(peer(2));
    swarm.boot(peer(1));
    swarm.run(SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Completed);
    assert_eq!(swarm.started.len(), 2);
}

#[test]
fn a_node_that_owns_and_works_survives_its_own_death() {
    let mut swarm = Swarm::new(1, 2);
    swarm.program = Arc::new(|_, _| (10 * SECOND, Outcome::Exit(0)));
    let id = swarm.submit(peer(1), job(peer(1), 1, 5));
    swarm.run(12 * SECOND);
    swarm.kill(peer(1));
    swarm.boot(peer(1));
    swarm.run(60 * SECOND);
    let view = swarm.view(peer(1), id);
    assert_eq!((view.summary.state, view.summary.committed), (JobState::Completed, 5), "{:#?}", view.history);
    assert_eq!(swarm.started.len(), 7, "five, and the two that were cut off in the middle");
}

#[test]
fn a_silent_worker_is_given_up_after_a_lease_and_a_half_and_its_late_receipt_may_still_win() {
    let mut swarm = slow(2, 100 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    swarm.run(SECOND);
    let first = swarm.started[0].1;
    let other = if first == peer(2) { peer(3) } else { peer(2) };
    swarm.cut(peer(1), first);
    swarm.run(50 * SECOND);
    assert_eq!(swarm.started.len(), 1, "within its lease nothing is presumed");
    swarm.run(42 * SECOND);
    assert_eq!(swarm.started.len(), 2, "awarded again");
    assert_eq!(swarm.started[1].1, other);
    swarm.run(20 * SECOND);
    swarm.heal(peer(1), first);
    swarm.run(SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Completed, "the first receipt wins");
    assert_eq!(
        states(&swarm, peer(1), id),
        [(0, 1, ExecutionState::Completed), (0, 2, ExecutionState::Cancelled)]
    );
    assert!(swarm.running(other).is_empty(), "the loser was stopped");
}

#[test]
fn retry_never_is_not_awarded_again_when_its_worker_is_lost() {
    let mut swarm = slow(2, 100 * SECOND);
    let mut new = job(peer(1), 1, 1);
    new.facts.never = true;
    let id = swarm.submit(peer(1), new);
    swarm.run(SECOND);
    let first = swarm.started[0].1;
    swarm.kill(first);
    swarm.run(100 * SECOND);
    let (state, message) = swarm.state(peer(1), id);
    assert_eq!(state, JobState::Failed);
    assert!(message.contains("lost") && message.contains("must not run twice"), "{message}");
    assert_eq!(swarm.started.len(), 1);
}

#[test]
fn retry_never_ends_with_its_lease_on_a_worker_that_lost_its_owner() {
    let mut swarm = slow(1, 1000 * SECOND);
    let mut new = job(peer(1), 1, 1);
    new.facts.never = true;
    swarm.submit(peer(1), new);
    swarm.run(SECOND);
    swarm.cut(peer(1), peer(2));
    swarm.run(61 * SECOND);
    assert!(swarm.running(peer(2)).is_empty());
}

#[test]
fn other_jobs_go_on_while_their_owner_is_away() {
    let mut swarm = slow(1, 1000 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    swarm.run(SECOND);
    swarm.kill(peer(1));
    swarm.run(1200 * SECOND);
    swarm.boot(peer(1));
    swarm.run(SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Completed);
    assert_eq!(swarm.started.len(), 1);
}

#[test]
fn the_same_exit_code_from_two_workers_is_the_users_error() {
    let mut swarm = slow(3, SECOND);
    swarm.program = Arc::new(|_, _| (SECOND, Outcome::Exit(3)));
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    swarm.run(20 * SECOND);
    assert_eq!(swarm.state(peer(1), id), (JobState::Failed, "exit code 3".to_owned()));
    assert_eq!(swarm.started.len(), 2);
    assert_ne!(swarm.started[0].1, swarm.started[1].1, "the second try was elsewhere");
}

#[test]
fn a_failure_is_final_where_nobody_else_could_run_it() {
    let mut swarm = Swarm::new(1, 1);
    swarm.program = Arc::new(|_, _| (SECOND, Outcome::Exit(3)));
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    swarm.run(5 * SECOND);
    assert_eq!(swarm.state(peer(1), id), (JobState::Failed, "exit code 3".to_owned()));
    assert_eq!(swarm.started.len(), 1);
}

#[test]
fn different_failures_end_after_three_attempts() {
    let mut swarm = slow(4, SECOND);
    swarm.program = Arc::new(|worker, _| (SECOND, Outcome::Exit(i32::from(worker.0[0]))));
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    swarm.run(30 * SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Failed);
    assert_eq!(swarm.started.len(), 3);
}

#[test]
fn a_failed_partition_is_retried_elsewhere_and_finished_ones_are_left_alone() {
    let mut swarm = slow(2, SECOND);
    swarm.program = Arc::new(|worker, execution| {
        let broken = worker == peer(2) && execution.partition % 2 == 0;
        (SECOND, if broken { Outcome::Exit(1) } else { Outcome::Exit(0) })
    });
    let id = swarm.submit(peer(1), job(peer(1), 1, 8));
    swarm.run(60 * SECOND);
    let view = swarm.view(peer(1), id);
    assert_eq!(
        (view.summary.state, view.summary.committed),
        (JobState::Completed, 8),
        "{:#?}",
        view.executions
    );
    for partition in 0..8 {
        let ends: Vec<_> = view.executions.iter().filter(|one| one.key.partition == partition).collect();
        assert_eq!(ends.iter().filter(|one| one.state == ExecutionState::Completed).count(), 1);
        assert!(ends.len() <= 2);
    }
}

#[test]
fn a_fault_of_the_job_ends_all_of_it_at_once_and_names_it() {
    let mut swarm = slow(2, SECOND);
    swarm.program = Arc::new(|_, _| {
        (SECOND, Outcome::Fault(FaultClass::Job, "the module has no function _start".to_owned()))
    });
    let id = swarm.submit(peer(1), job(peer(1), 1, 1000));
    swarm.run(3 * SECOND);
    assert_eq!(swarm.state(peer(1), id), (JobState::Failed, "the module has no function _start".to_owned()));
    assert!(swarm.started.len() <= 4);
}

#[test]
fn an_input_that_nobody_has_is_named() {
    let mut swarm = slow(2, 10 * SECOND);
    swarm.program = Arc::new(|_, _| {
        (10 * SECOND, Outcome::Fault(FaultClass::Input, "no peer offers bafyinput within 10 s".to_owned()))
    });
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    swarm.run(40 * SECOND);
    let (state, message) = swarm.state(peer(1), id);
    assert_eq!(state, JobState::Failed);
    assert!(message.contains("bafyinput"), "{message}");
}

#[test]
fn a_partition_that_kills_its_workers_ends_as_poison() {
    let mut swarm = slow(7, 100 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    for _ in 0..6 {
        swarm.run(SECOND);
        let Some((_, worker, _)) = swarm.started.last().copied() else { panic!("nothing started") };
        if swarm.state(peer(1), id).0.is_terminal() {
            break;
        }
        swarm.kill(worker);
    }
    swarm.run(SECOND);
    let (state, message) = swarm.state(peer(1), id);
    assert_eq!(state, JobState::Failed, "{message}");
    assert!(message.contains("5 workers were lost"), "{message}");
    assert_eq!(swarm.started.len(), 5);
}

#[test]
fn a_stopped_job_ends_everywhere() {
    let mut swarm = slow(2, 1000 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 4));
    swarm.run(SECOND);
    let input = owner::Input::StopRequested { token: 3, job: id, reason: "enough".to_owned() };
    swarm.owner(peer(1), input);
    swarm.deliver();
    assert_eq!(swarm.state(peer(1), id), (JobState::Stopped, "enough".to_owned()));
    assert!(swarm.running(peer(2)).is_empty() && swarm.running(peer(3)).is_empty());
    assert!(states(&swarm, peer(1), id).iter().all(|(_, _, state)| *state == ExecutionState::Cancelled));
    let answered =
        |effect: &owner::Effect| matches!(effect, owner::Effect::StopAnswered { token: 3, result: Ok(()) });
    assert!(swarm.answers.iter().any(answered));
}

#[test]
fn a_stop_waits_for_a_worker_that_is_away_also_over_a_restart_of_the_owner() {
    let mut swarm = slow(1, 100_000 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 2));
    swarm.run(SECOND);
    swarm.cut(peer(1), peer(2));
    let input = owner::Input::StopRequested { token: 3, job: id, reason: "enough".to_owned() };
    swarm.owner(peer(1), input);
    swarm.run(100 * SECOND);
    assert_eq!(swarm.running(peer(2)).len(), 2, "it cannot know");
    swarm.kill(peer(1));
    swarm.boot(peer(1));
    swarm.run(100 * SECOND);
    swarm.heal(peer(1), peer(2));
    assert!(swarm.running(peer(2)).is_empty());
    swarm.run(10 * SECOND);
    assert_eq!(swarm.nodes[&peer(1)].owner.as_ref().unwrap().jobs().count(), 0, "settled");
}

#[test]
fn a_total_timeout_ends_the_job_with_its_reason() {
    let mut swarm = slow(1, 1000 * SECOND);
    let mut new = job(peer(1), 1, 1);
    new.total_timeout = Some(20 * SECOND);
    let id = swarm.submit(peer(1), new);
    swarm.run(21 * SECOND);
    let (state, message) = swarm.state(peer(1), id);
    assert_eq!(state, JobState::Failed);
    assert!(message.starts_with("Job timed out. Job took longer than 20 s"), "{message}");
    assert!(swarm.running(peer(2)).is_empty());
}

#[test]
fn an_execution_timeout_ends_the_execution_and_says_so() {
    let mut swarm = slow(2, 1000 * SECOND);
    let mut new = job(peer(1), 1, 1);
    new.facts.run_ms = 5000;
    let id = swarm.submit(peer(1), new);
    swarm.run(6 * SECOND);
    let (state, message) = swarm.state(peer(1), id);
    assert_eq!(state, JobState::Failed);
    assert!(message.starts_with("Execution timed out after 5 s"), "{message}");
}

#[test]
fn a_job_that_nobody_can_run_is_queued_with_its_reason_and_fails_after_a_minute() {
    let mut swarm = slow(3, SECOND);
    let mut new = job(peer(1), 1, 1);
    new.facts.constraints = job::constraint::parse("gpu=yes").unwrap();
    let id = swarm.submit(peer(1), new);
    swarm.run(2 * SECOND);
    let (state, message) = swarm.state(peer(1), id);
    assert_eq!(state, JobState::Queued);
    assert!(
        message.starts_with("no worker can run it: 3 of 3 peers do not meet the constraints (gpu=yes"),
        "{message}"
    );
    swarm.run(60 * SECOND);
    let (state, message) = swarm.state(peer(1), id);
    assert_eq!(state, JobState::Failed);
    assert!(message.contains("longer than 60 s") && message.contains("gpu=yes"), "{message}");
}

#[test]
fn a_job_waits_while_all_are_busy_and_starts_when_one_is_free() {
    let mut swarm = slow(1, 200 * SECOND);
    let first = swarm.submit(peer(1), job(peer(1), 1, 2));
    swarm.run(SECOND);
    let second = swarm.submit(peer(1), job(peer(1), 2, 1));
    swarm.run(2 * SECOND);
    let (state, message) = swarm.state(peer(1), second);
    assert_eq!(state, JobState::Queued);
    assert!(message.contains("busy"), "{message}");
    swarm.run(196 * SECOND);
    assert_eq!(swarm.state(peer(1), second).0, JobState::Queued, "no queue timeout while all are busy");
    let ends = swarm.now;
    swarm.run(2 * SECOND);
    assert_eq!(swarm.state(peer(1), first).0, JobState::Completed);
    let started = swarm.started.last().unwrap();
    assert!(started.0.since(ends) <= 2 * SECOND && swarm.started.len() == 3, "freed capacity bids at once");
}

#[test]
fn a_queue_timeout_of_the_job_counts_while_all_are_busy() {
    let mut swarm = slow(1, 200 * SECOND);
    swarm.submit(peer(1), job(peer(1), 1, 2));
    swarm.run(SECOND);
    let mut new = job(peer(1), 2, 1);
    new.queue_timeout = Some(10 * SECOND);
    let id = swarm.submit(peer(1), new);
    swarm.run(11 * SECOND);
    let (state, message) = swarm.state(peer(1), id);
    assert_eq!(state, JobState::Failed);
    assert!(message.contains("10 s") && message.contains("busy"), "{message}");
}

#[test]
fn a_node_that_joins_gets_what_waits() {
    let mut swarm = Swarm::new(1, 0);
    let id = swarm.submit(peer(1), job(peer(1), 1, 2));
    swarm.run(2 * SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Queued);
    swarm.add(2, 2);
    swarm.deliver();
    assert_eq!(swarm.started.len(), 2, "at once");
}

#[test]
fn lost_messages_delay_and_do_not_break() {
    for kind in
        ["reply", "receipts", "committed", "renew", "renew-ack", "bid", "ask", "award", "live", "reconcile"]
    {
        let mut swarm = slow(2, 5 * SECOND);
        swarm.lose.insert(kind);
        let id = swarm.submit(peer(1), job(peer(1), 1, 3));
        swarm.run(4 * SECOND);
        swarm.lose.clear();
        swarm.run(200 * SECOND);
        let (state, message) = swarm.state(peer(1), id);
        assert_eq!(state, JobState::Completed, "without {kind}: {message}");
        assert!(swarm.running(peer(2)).is_empty() && swarm.running(peer(3)).is_empty());
        assert_eq!(swarm.nodes[&peer(1)].owner.as_ref().unwrap().jobs().count(), 0, "{kind} settles");
    }
}

#[test]
fn an_update_replaces_the_version_that_runs() {
    let mut swarm = slow(2, 50 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 2));
    swarm.run(SECOND);
    let mut new = job(peer(1), 1, 1);
    new.version = 2;
    swarm.submit(peer(1), new);
    swarm.run(100 * SECOND);
    let view = swarm.view(peer(1), id);
    assert_eq!((view.summary.version, view.summary.state), (2, JobState::Completed));
    let old = swarm.nodes[&peer(1)].owner_records.values().filter(|one| one.key.version == 1).cloned();
    let old = owner::StoredJob::from_records(old, peer(1)).unwrap().unwrap().reader().view();
    assert_eq!(old.summary.state, JobState::Stopped);
}

#[test]
fn capacity_is_shared_between_owners_and_never_exceeded() {
    let mut swarm = Swarm::new(4, 2);
    swarm.program = Arc::new(|_, _| (SECOND, Outcome::Exit(0)));
    let ids: Vec<_> =
        (1..=4).map(|owner| (peer(owner), swarm.submit(peer(owner), job(peer(owner), owner, 10)))).collect();
    for _ in 0..600 {
        swarm.run(Duration::from_millis(100));
        for node in swarm.nodes.values() {
            let load = node.worker.as_ref().unwrap().load();
            assert!(load.used.fits(&small().checked_mul(2).unwrap()));
        }
    }
    for (owner, id) in ids {
        assert_eq!(swarm.state(owner, id).0, JobState::Completed);
    }
    assert_eq!(swarm.started.len(), 40);
}

#[test]
fn a_node_that_is_stopped_and_started_again_goes_on_with_its_job() {
    let mut swarm = Swarm::new(1, 2);
    swarm.program = Arc::new(|_, _| (10 * SECOND, Outcome::Exit(0)));
    let id = swarm.submit(peer(1), job(peer(1), 1, 2));
    for _ in 0..6 {
        swarm.run(SECOND);
        swarm.stop(peer(1));
        swarm.boot(peer(1));
    }
    swarm.run(60 * SECOND);
    assert_eq!(swarm.state(peer(1), id), (JobState::Completed, String::new()));
}

#[test]
fn work_of_a_worker_that_is_stopped_goes_to_another_and_counts_as_no_failure() {
    let mut swarm = slow(2, 10 * SECOND);
    let mut once = job(peer(1), 1, 1);
    once.max_attempts = 1;
    let id = swarm.submit(peer(1), once);
    swarm.run(SECOND);
    let first = swarm.started[0].1;
    swarm.stop(first);
    swarm.run(12 * SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Completed);
    assert_eq!(swarm.started.len(), 2);
}

#[test]
fn the_queue_timeout_counts_from_when_nobody_matches() {
    let mut swarm = slow(1, 300 * SECOND);
    swarm.submit(peer(1), job(peer(1), 1, 2));
    let waits = swarm.submit(peer(1), job(peer(1), 2, 1));
    swarm.run(200 * SECOND);
    assert!(swarm.state(peer(1), waits).1.contains("busy"), "{:?}", swarm.state(peer(1), waits));
    // Nobody answers for a while.
    swarm.lose.extend(["decline", "bid"]);
    swarm.run(50 * SECOND);
    assert_eq!(swarm.state(peer(1), waits).0, JobState::Queued);
    swarm.lose.clear();
    swarm.run(500 * SECOND);
    assert_eq!(swarm.state(peer(1), waits).0, JobState::Completed);
}

#[test]
fn a_connection_that_comes_and_goes_is_no_loss() {
    let mut swarm = slow(2, 60 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    swarm.run(SECOND);
    let first = swarm.started[0].1;
    for _ in 0..8 {
        swarm.cut(peer(1), first);
        swarm.owner(peer(1), owner::Input::Unreachable(first));
        swarm.run(SECOND);
        swarm.heal(peer(1), first);
        swarm.run(SECOND);
    }
    swarm.run(60 * SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Completed);
    assert!(swarm.started.len() <= 2, "one backup at most: {:?}", swarm.started);
}

#[test]
fn a_backup_that_is_lost_too_is_backed_up_at_once() {
    let mut swarm = slow(3, 10 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    for killed in 0..2 {
        swarm.run(SECOND);
        assert_eq!(swarm.started.len(), killed + 1);
        let newest = swarm.started[killed].1;
        swarm.kill(newest);
    }
    swarm.run(Duration::from_millis(200));
    assert_eq!(swarm.started.len(), 3, "the third worker has it");
    swarm.run(11 * SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Completed);
}

#[test]
fn what_a_stranger_names_is_not_kept() {
    let mut swarm = slow(1, 100 * SECOND);
    let id = swarm.submit(peer(1), job(peer(1), 1, 4));
    swarm.run(SECOND);
    swarm.quiet = true;
    let stranger = peer(9);
    swarm.owner(peer(1), owner::Input::Connected(stranger));
    let live = |spans: Vec<Span>| {
        let mut named = JobLive::empty(id, 1);
        named.live = spans;
        let stamp = Stamp { start: 1, at_ms: 1 };
        owner::Input::Message { from: stranger, message: Direct::Renew(Renew { stamp, jobs: vec![named] }) }
    };
    let stops = |effects: Vec<owner::Effect>| {
        let stop = |effect: &owner::Effect| matches!(effect, owner::Effect::Send { to, message: Direct::Stop(_) } if *to == stranger);
        effects.iter().filter(|effect| stop(effect)).count()
    };
    // Partitions that the job does not have, and one that another runs.
    let unknown = vec![Span { first: 1000, count: 60_000, attempt: 7 }, Span::one(0, 1)];
    assert_eq!(stops(swarm.owner_effects(peer(1), live(unknown))), 1, "told once");
    assert_eq!(stops(swarm.owner_effects(peer(1), owner::Input::Connected(stranger))), 0, "and forgotten");
    swarm.now = swarm.now + 30 * SECOND;
    assert_eq!(stops(swarm.owner_effects(peer(1), owner::Input::Tick)), 0);
}
