//! `kill -9` of a worker in the middle of a job.

use super::guests;
use super::jobs::{
    check_kept, check_worked, completed, ended, execution_state, executions, job, submit, until,
};
use super::net::{Net, within};

/// Partitions that are done at once, and those that a worker is killed over.
const SHORT: u32 = 4;
const LONG: u32 = 4;

#[tokio::test]
async fn what_a_killed_worker_ran_runs_elsewhere_and_nothing_else_runs_again() {
    let net = Net::up(4, 1).await;
    let module = net.add(0, guests::works(50, 3_000, SHORT)).await;
    let owner = net.client(0);
    let id = submit(&owner, &job(&module, SHORT + LONG)).await;
    until(&owner, &id, |now| now.completed >= SHORT.into() && now.running > 0).await;

    let before = within("describe", owner.describe(&id)).await;
    let running = executions(&before).iter().find(|execution| execution_state(execution) != "Completed");
    let victim = running.unwrap_or_else(|| panic!("nothing runs: {before}"))["NodeID"].as_str().unwrap();
    let begun = std::time::Instant::now();
    net.kill(net.index_of(victim)).await;
    let after = ended(&owner, &id).await;
    let took = begun.elapsed();

    check_worked(&after, (SHORT + LONG).into());
    check_kept(&completed(&before), &after);
    let again = executions(&after)
        .iter()
        .filter(|execution| execution["NodeID"] == victim && execution_state(execution) != "Completed");
    assert!(again.count() > 0, "the killed worker ran nothing that was lost: {after}");
    // Nobody waits for the lease (60 s): the broken connection is enough.
    assert!(took.as_secs() < 45, "it took {took:?}");
    net.down().await;
}

#[tokio::test]
async fn a_worker_that_comes_back_takes_jobs_again() {
    let net = Net::up(2, 1).await;
    let module = net.add(0, guests::works(50, 50, 100)).await;
    let owner = net.client(0);
    net.kill(1).await;
    let id = submit(&owner, &job(&module, 2)).await;
    net.restart(1).await;
    check_worked(&ended(&owner, &id).await, 2);
}
