//! Jobs that wait, and why.

use std::time::Instant;

use serde_json::json;
use testnet::client::Event;

use super::guests;
use super::jobs::{ended, job, state, submit, until};
use super::net::{Net, within};

#[tokio::test]
async fn a_job_that_waits_says_why() {
    let net = Net::with(2, 1, json!({"capacity": {"slots": 1}}), |_| {}).await;
    let waits = net.add(0, guests::speaks_twice(3_600_000)).await;
    let hello = net.add(0, guests::says("hello\n", "", 0)).await;
    let owner = net.client(0);

    let mut nowhere = job(&hello, 1);
    nowhere["Constraints"] = json!([{"Key": "moon", "Operator": "=", "Values": ["full"]}]);
    let begun = Instant::now();
    let id = submit(&owner, &nowhere).await;
    let queued = within("the reason", owner.wait_for(&id, is_queued)).await;
    assert!(reason(&queued).contains("moon"), "{queued:?}");
    // Two seconds by design; the rest is for a machine that is busy with other tests.
    assert!(begun.elapsed().as_secs() < 15, "the reason came after {:?}", begun.elapsed());

    let first = submit(&owner, &job(&waits, 1)).await;
    until(&owner, &first, |now| now.running == 1).await;
    let second = submit(&owner, &job(&hello, 1)).await;
    let queued = within("the reason", owner.wait_for(&second, is_queued)).await;
    assert!(reason(&queued).to_lowercase().contains("busy"), "{queued:?}");

    net.shell(0).ok(&["job", "stop", &first]).await;
    let described = ended(&owner, &second).await;
    assert_eq!(state(&described), "Completed", "{described}");
}

fn is_queued(event: &Event) -> bool {
    event.name == "state" && event.data["State"]["StateType"] == "Queued" && !reason(event).is_empty()
}

fn reason(event: &Event) -> &str {
    event.data["State"]["Message"].as_str().unwrap_or_default()
}
