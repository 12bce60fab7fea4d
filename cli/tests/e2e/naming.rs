//! What a submission means beside those before it: names, versions, tokens. And finding a job by what it is called.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use testnet::client::{Answer, Client};

use super::guests;
use super::jobs::{job, state};
use super::net::{Net, within};

async fn put(client: &Client, token: &str, job: &Value) -> Answer {
    let body = json!({"Job": job, "idempotencyToken": token});
    within("submit", client.put("/orchestrator/jobs", &body)).await
}

fn made(answer: &Answer) -> (String, u64) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let json = answer.json();
    (json["JobID"].as_str().unwrap().to_owned(), json["JobVersion"].as_u64().unwrap())
}

/// A named job that is there until it is stopped.
fn named(module: &str, name: &str, priority: u32) -> Value {
    let mut spec = job(module, 1);
    spec["Name"] = json!(name);
    spec["Priority"] = json!(priority);
    spec
}

#[tokio::test]
async fn a_repeated_token_is_the_same_version_of_a_named_job_also_after_a_restart() {
    let net = Net::up(1, 0).await;
    let module = net.add(0, guests::speaks_twice(100_000)).await;
    let client = net.client(0);
    let (first, second) = (named(&module, "words", 1), named(&module, "words", 2));
    let made_first = made(&put(&client, "one", &first).await);
    assert_eq!(made(&put(&client, "one", &first).await), made_first);
    let made_second = made(&put(&client, "two", &second).await);
    assert_eq!((&made_second.0, made_second.1), (&made_first.0, 2));
    net.kill(0).await;
    net.restart(0).await;
    assert_eq!(made(&put(&client, "two", &second).await), made_second);
    assert_eq!(made(&put(&client, "one", &first).await), made_first);
    let other = put(&client, "two", &first).await;
    assert_eq!(other.status, 409, "{}", other.text());
    assert_eq!(put(&client, "three", &second).await.status, 409, "nothing changed");
}

#[tokio::test]
async fn submissions_of_one_name_at_the_same_time_are_versions_of_one_job() {
    let net = Net::up(1, 0).await;
    let module = net.add(0, guests::says("", "", 0)).await;
    let client = net.client(0);
    let submissions = (1..=8).map(|priority| {
        let (client, spec) = (client.clone(), named(&module, "words", priority));
        async move { made(&put(&client, &format!("token {priority}"), &spec).await) }
    });
    let made = futures::future::join_all(submissions).await;
    let ids: BTreeSet<&String> = made.iter().map(|(id, _)| id).collect();
    let versions: BTreeSet<u64> = made.iter().map(|(_, version)| *version).collect();
    assert_eq!((ids.len(), versions), (1, (1..=8).collect()));
    let jobs = net.shell(0).json(&["job", "list", "--output", "json"]).await;
    assert_eq!((jobs.as_array().unwrap().len(), &jobs[0]["Version"]), (1, &json!(8)));
}

#[tokio::test]
async fn a_refused_update_leaves_the_running_version_alone() {
    let net = Net::up(1, 0).await;
    let module = net.add(0, guests::says("", "", 0)).await;
    let client = net.client(0);
    let spec = named(&module, "words", 1);
    let (id, _) = made(&put(&client, "one", &spec).await);
    let mut large = named(&module, "words", 2);
    let zones: Vec<String> = (0..60).map(|zone| format!("{zone:060}")).collect();
    large["Constraints"] = json!([{"Key": "zone", "Operator": "in", "Values": zones}]);
    let refused = put(&client, "two", &large).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("too large to be announced"), "{}", refused.text());
    let described = within("describe", client.describe(&id)).await;
    assert_eq!(described["Job"]["Version"], 1);
    assert!(matches!(state(&described), "Pending" | "Queued" | "Running"), "{described}");
}

#[tokio::test]
async fn a_job_is_found_by_name_in_any_namespace_and_by_the_beginning_of_its_id_while_its_owner_is_away() {
    let net = Net::up(3, 1).await;
    let module = net.add(0, guests::speaks_twice(100_000)).await;
    let client = net.client(0);
    let mut spec = named(&module, "words", 1);
    spec["Namespace"] = json!("lab");
    let (id, _) = made(&put(&client, "one", &spec).await);
    let found = net.shell(2).json(&["job", "describe", "words", "--output", "json"]).await;
    assert_eq!(found["Job"]["ID"], json!(id));
    made(&put(&client, "two", &named(&module, "words", 1)).await);
    for asked in 0..3 {
        let said = net.shell(asked).run(&["job", "describe", "words"]).await;
        assert_eq!(said.code, 1);
        assert!(said.stderr.contains("multiple jobs found for id words"), "{}", said.stderr);
    }
    net.kill(0).await;
    let said = net.shell(1).run(&["job", "describe", &id[..10]]).await;
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("is away"), "{}", said.stderr);
}
