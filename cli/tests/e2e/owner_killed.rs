//! `kill -9` of the node that a job was submitted to, at every stage of the job.

use std::collections::BTreeMap;

use serde_json::Value;

use super::guests;
use super::jobs::{check_kept, check_worked, completed, ended, job, submit, until};
use super::net::{Net, within};

const COUNT: u32 = 6;

/// When the node is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    Answered,
    FirstRuns,
    FirstDone,
    MostDone,
    Ended,
}

#[tokio::test]
async fn a_job_survives_its_owner_at_every_moment() {
    let net = Net::up(3, 1).await;
    let module = net.add(0, guests::works(100, 1_500, COUNT - 2)).await;
    let owner = net.client(0);
    for moment in [Moment::Answered, Moment::FirstRuns, Moment::FirstDone, Moment::MostDone, Moment::Ended] {
        let id = submit(&owner, &job(&module, COUNT)).await;
        match moment {
            Moment::Answered => None,
            Moment::FirstRuns => Some(until(&owner, &id, |now| now.running > 0).await),
            Moment::FirstDone => Some(until(&owner, &id, |now| now.completed > 0).await),
            Moment::MostDone => Some(until(&owner, &id, |now| now.completed >= u64::from(COUNT - 2)).await),
            Moment::Ended => Some(until(&owner, &id, |now| now.completed == u64::from(COUNT)).await),
        };
        let before: BTreeMap<u64, Value> = match moment {
            Moment::Answered => BTreeMap::new(),
            _ => completed(&within("describe", owner.describe(&id)).await),
        };
        net.kill(0).await;
        net.restart(0).await;

        let known = within("describe", owner.describe(&id)).await;
        assert_eq!(known["Job"]["ID"], id.as_str(), "{moment:?}");
        let after = ended(&owner, &id).await;
        check_worked(&after, COUNT.into());
        check_kept(&before, &after);
        // Any peer finds it again, by its old id.
        let elsewhere = within("describe", net.client(1).describe(&id)).await;
        assert_eq!(super::jobs::state(&elsewhere), "Completed", "{moment:?}");
    }
    net.down().await;
}

/// What a worker has done while its owner was dead is not done again, also when the worker dies after it: a small
/// result lives in its receipt's record until the owner has it.
#[tokio::test]
async fn what_ended_while_its_owner_was_dead_is_not_run_again() {
    // One owner, one worker, and one that is always there.
    let net = Net::up(3, 2).await;
    let module = net.add(0, guests::works(4_000, 4_000, COUNT)).await;
    // The worker has it, so that it needs its owner for nothing.
    net.add(2, guests::works(4_000, 4_000, COUNT)).await;
    let owner = net.client(0);
    let id = submit(&owner, &job(&module, COUNT)).await;
    within("the worker's word that all run", all_run(&owner, &id)).await;
    net.kill(0).await;
    within("the ends of all executions", all_ended(&net, &id)).await;
    net.kill(2).await;
    net.restart(2).await;
    net.restart(0).await;

    let after = ended(&owner, &id).await;
    check_worked(&after, COUNT.into());
    assert_eq!(super::jobs::executions(&after).len(), COUNT as usize, "each ran once: {after}");
    net.down().await;
}

/// Waits until the worker has said of all executions that they run: an award alone may never have reached it.
async fn all_run(owner: &testnet::client::Client, id: &str) -> anyhow::Result<()> {
    loop {
        let now = owner.describe(id).await?;
        let running = super::jobs::executions(&now)
            .iter()
            .filter(|execution| super::jobs::execution_state(execution) == "Running");
        if running.count() == COUNT as usize {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Waits until the worker has ended whatever it had of a job whose owner is away.
async fn all_ended(net: &Net, id: &str) -> anyhow::Result<()> {
    loop {
        let answer = net.client(2).get(&format!("/orchestrator/jobs/{id}")).await?;
        let here = answer.json()["Details"]["Executions"].as_str().unwrap_or_default().to_owned();
        if !here.is_empty() && here.split(", ").all(|one| one.ends_with("Ended")) {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}
