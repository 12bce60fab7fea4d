//! A job's life when nothing goes wrong, and the speed at which it goes.

use std::sync::Arc;
use std::time::Duration;

use job::state::{ExecutionState, JobState};

use super::harness::{Swarm, job, peer};
use crate::message::Outcome;
use crate::owner::StoredJob;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_job_on_a_node_of_its_own_needs_no_network_and_no_timer() {
    let mut swarm = Swarm::new(1, 2);
    let id = swarm.submit(peer(1), job(peer(1), 1, 1));
    assert_eq!(swarm.started.len(), 1, "it starts within the same moment");
    swarm.run(Duration::from_millis(100));
    assert_eq!(swarm.state(peer(1), id), (JobState::Completed, String::new()));
    assert!(swarm.sent.is_empty(), "{:?}", swarm.sent);
    let records = swarm.nodes[&peer(1)].owner_records.values().cloned();
    let stored = StoredJob::from_records(records, peer(1)).unwrap().unwrap();
    let routine: Vec<_> = stored.reader().history(1).map(|line| (line.seq(), line.is_routine())).collect();
    let view = swarm.view(peer(1), id);
    let told = view.history[1..].iter().map(|event| (event.seq, event.execution.is_some()));
    assert_eq!(routine, told.collect::<Vec<_>>(), "what a partition does when all is well is routine");
    let lines: Vec<_> = view.history.iter().map(|event| (event.topic, event.message.as_str())).collect();
    let requested = format!("Requested execution on {}", peer(1));
    assert_eq!(
        lines,
        [
            ("Submission", "Job submitted"),
            ("Scheduling", requested.as_str()),
            ("State Update", "Running"),
            ("Execution", "Running"),
            ("Execution", "Completed successfully"),
            ("State Update", "Completed"),
        ]
    );
}

#[test]
fn a_job_of_a_submit_only_node_runs_elsewhere() {
    let mut swarm = Swarm::new(1, 0);
    swarm.add(2, 1);
    swarm.add(3, 1);
    let id = swarm.submit(peer(1), job(peer(1), 1, 2));
    swarm.run(SECOND);
    assert_eq!(swarm.state(peer(1), id).0, JobState::Completed);
    assert_eq!(swarm.started.len(), 2);
    assert_ne!(swarm.started[0].1, swarm.started[1].1, "two partitions on two free nodes");
}

#[test]
fn more_partitions_than_slots_run_in_waves() {
    let mut swarm = Swarm::new(3, 2);
    let id = swarm.submit(peer(1), job(peer(1), 1, 30));
    swarm.run(5 * SECOND);
    let view = swarm.view(peer(1), id);
    assert_eq!((view.summary.state, view.summary.committed), (JobState::Completed, 30), "{:?}", view.summary);
    let records = swarm.nodes[&peer(1)].owner_records.values().cloned();
    let stored = StoredJob::from_records(records, peer(1)).unwrap().unwrap();
    for places in [0..30, 7..9, 29..usize::MAX, 30..31, 5..5] {
        let wanted: Vec<_> = view.executions.iter().skip(places.start).take(places.len()).cloned().collect();
        assert_eq!(stored.reader().executions(places).collect::<Vec<_>>(), wanted);
    }
    assert_eq!(swarm.started.len(), 30, "each partition runs once");
    let mut workers: Vec<_> = swarm.started.iter().map(|(_, worker, _)| *worker).collect();
    workers.sort();
    workers.dedup();
    assert_eq!(workers.len(), 3, "everybody helps");
    assert!(view.executions.iter().all(|one| one.state == ExecutionState::Completed));
}

#[test]
fn ten_thousand_tiny_partitions_flow_in_few_messages() {
    let mut swarm = Swarm::new(1, 0);
    swarm.add(2, 2);
    swarm.add(3, 2);
    swarm.program = Arc::new(|_, _| (Duration::from_micros(300), Outcome::Exit(0)));
    let id = swarm.submit(peer(1), job(peer(1), 1, 10_000));
    swarm.run(3 * SECOND);
    let view = swarm.view(peer(1), id);
    assert_eq!(
        (view.summary.state, view.summary.committed),
        (JobState::Completed, 10_000),
        "{:?}",
        swarm.sent
    );
    assert_eq!(swarm.started.len(), 10_000);
    assert!(swarm.sent["award"] < 1000, "{:?}", swarm.sent);
    let bytes: usize =
        swarm.nodes[&peer(1)].owner_records.values().map(|record| record.value.len() + 29).sum();
    assert!(bytes < 10_000 * 450, "{bytes} bytes of records");
}

#[test]
fn what_records_say_is_what_the_live_machine_said() {
    let mut swarm = Swarm::new(2, 2);
    let id = swarm.submit(peer(1), job(peer(1), 1, 5));
    swarm.run(SECOND);
    let view = swarm.view(peer(1), id);
    assert_eq!(view.summary.state, JobState::Completed);
    assert_eq!(view.executions.len(), 5);
    let seqs: Vec<u64> = view.history.iter().map(|event| event.seq).collect();
    assert!(seqs.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(swarm.nodes[&peer(1)].owner.as_ref().unwrap().jobs().count(), 0, "it has left memory");
    assert!(
        swarm.nodes.values().all(|node| {
            node.worker_records.keys().all(|key| key.kind == crate::record::Kind::OwnerEpoch)
        })
    );
}
