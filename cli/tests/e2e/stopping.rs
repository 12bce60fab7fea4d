//! Jobs that are stopped or run out of time.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testnet::client::Client;

use super::guests;
use super::jobs::{ended, execution_state, executions, job, job_with, message, state, submit, until};
use super::net::{Net, within};

/// DESIGN section 8, invariant 4.
const STOPPED_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_stopped_job_leaves_nothing_running() {
    let net = Net::up(3, 1).await;
    let module = net.add(0, guests::spins()).await;
    let owner = net.client(0);
    let id = submit(&owner, &job(&module, 4)).await;
    until(&owner, &id, |now| now.running >= 2).await;
    let said = net.shell(0).run(&["job", "stop", &id, "--reason", "seen enough"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let begun = Instant::now();
    let described = ended(&owner, &id).await;
    assert_eq!(state(&described), "Stopped");
    assert!(message(&described).contains("seen enough"), "{described}");
    for worker in [net.client(1), net.client(2)] {
        idle(&worker, begun + STOPPED_WITHIN).await;
    }
    let described = within("describe", owner.describe(&id)).await;
    for execution in executions(&described) {
        assert_eq!(execution_state(execution), "Cancelled", "{execution}");
    }
    let again = net.shell(2).refused(&["job", "stop", &id], b"").await;
    assert!(again.contains("cannot stop job in state Stopped"), "{again}");
}

#[tokio::test]
async fn each_timeout_ends_the_job_and_is_named() {
    let net = Net::up(2, 1).await;
    let module = net.add(0, guests::spins()).await;
    let owner = net.client(0);
    let timeouts = |timeouts: Value| job_with(&module, 1, json!({"Timeouts": timeouts}));

    let execution = submit(&owner, &timeouts(json!({"ExecutionTimeout": 1}))).await;
    let total = submit(&owner, &timeouts(json!({"TotalTimeout": 2}))).await;
    let mut nowhere = timeouts(json!({"QueueTimeout": 1}));
    nowhere["Constraints"] = json!([{"Key": "moon", "Operator": "=", "Values": ["full"]}]);
    let queue = submit(&owner, &nowhere).await;

    for (id, words) in
        [(execution, vec!["time", "1 s"]), (total, vec!["time", "2 s"]), (queue, vec!["waiting", "moon"])]
    {
        let described = ended(&owner, &id).await;
        assert_eq!(state(&described), "Failed", "{described}");
        let text = message(&described).to_lowercase();
        for word in words {
            assert!(text.contains(word), "no {word:?} in {text:?}");
        }
    }
    idle(&net.client(1), Instant::now() + STOPPED_WITHIN).await;
}

/// Waits until a worker runs nothing any more; fails when it still does at `deadline`.
async fn idle(worker: &Client, deadline: Instant) {
    loop {
        let node = within("agent/node", async { worker.get("/agent/node").await?.ok() }).await;
        let running = node["ComputeNodeInfo"]["RunningExecutions"].as_u64();
        if running == Some(0) {
            return;
        }
        assert!(Instant::now() < deadline, "still running: {node}");
        // What runs on a worker is a figure, not an event.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
