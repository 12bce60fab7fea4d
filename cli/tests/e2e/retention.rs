//! What ended is kept for so long, and so much of it; then it is as if it never was.

use std::time::Duration;

use serde_json::{Value, json};
use testnet::client::Client;

use super::guests;
use super::jobs::{check_worked, ended, job};
use super::net::{Net, within};

async fn submit(client: &Client, token: &str, job: &Value) -> String {
    let body = json!({"Job": job, "idempotencyToken": token});
    let answer = within("submit", async { client.put("/orchestrator/jobs", &body).await?.ok() }).await;
    answer["JobID"].as_str().unwrap().to_owned()
}

async fn status(client: &Client, id: &str) -> u16 {
    within("get", client.get(&format!("/orchestrator/jobs/{id}"))).await.status
}

/// Waits until a node forgot a job.
async fn forgotten(client: &Client, id: &str) {
    within("the end of retention", async {
        while client.get(&format!("/orchestrator/jobs/{id}")).await?.status != 404 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    })
    .await;
}

/// The ids that `job list` shows.
async fn listed(net: &Net) -> Vec<String> {
    let jobs = net.shell(0).json(&["job", "list", "--all", "--output", "json"]).await;
    jobs.as_array().unwrap().iter().map(|job| job["ID"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn an_ended_job_is_forgotten_with_its_content_and_the_last_one_is_not_also_after_a_restart() {
    let net = Net::with(2, 1, json!({"retention": {"jobs": 1}}), |_| {}).await;
    let module = net.add(0, guests::works(1, 1, 2)).await;
    let (owner, spec) = (net.client(0), job(&module, 2));
    let first = submit(&owner, "one", &spec).await;
    check_worked(&ended(&owner, &first).await, 2);
    assert_eq!(submit(&owner, "one", &spec).await, first, "it is kept, and so is its token");
    let second = submit(&owner, "two", &spec).await;
    check_worked(&ended(&owner, &second).await, 2);
    forgotten(&owner, &first).await;

    let said = net.shell(0).refused(&["job", "describe", &first], b"").await;
    assert!(said.contains(&format!("job not found: {first}")) && said.contains("forgotten"), "{said}");
    net.shell(0).refused(&["job", "get", &first], b"").await;
    net.shell(0).refused(&["job", "stop", &first], b"").await;
    assert_eq!(status(&net.client(1), &first).await, 404, "its worker says so too");
    assert_eq!(listed(&net).await, [second.as_str()]);
    within("the release of its content", async {
        while !std::fs::read_to_string(&net.node(0).log)?.contains("kept for nobody was released") {
            // Nobody tells when a log grows.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    })
    .await;

    net.kill(0).await;
    net.restart(0).await;
    assert_eq!(status(&owner, &first).await, 404);
    assert_eq!(listed(&net).await, [second.as_str()]);
    net.shell(0).ok(&["job", "get", &second, "--output-dir", "results"]).await;
    assert_eq!(std::fs::read_dir(net.path("results")).unwrap().count(), 2);

    // The token is as new: the same id, and the job runs again.
    assert_eq!(submit(&owner, "one", &spec).await, first);
    check_worked(&ended(&owner, &first).await, 2);
    forgotten(&owner, &second).await;
    net.down().await;
}

#[tokio::test]
async fn a_shorter_retention_holds_for_what_ended_before_the_restart() {
    let net = Net::up(1, 0).await;
    let module = net.add(0, guests::says("", "", 0)).await;
    let owner = net.client(0);
    let id = submit(&owner, "one", &job(&module, 1)).await;
    ended(&owner, &id).await;
    net.kill(0).await;
    let config = net.node(0).data_dir.join("config.yaml");
    let settings = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{settings}\nretention: {{time: 1s}}\n")).unwrap();
    net.restart(0).await;
    forgotten(&owner, &id).await;
    assert!(listed(&net).await.is_empty());
    net.down().await;
}
