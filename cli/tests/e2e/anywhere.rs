//! Any peer answers for any job.

use super::guests;
use super::jobs::{check_worked, ended, job, submit, until};
use super::net::Net;

#[tokio::test]
async fn a_job_is_described_listed_logged_and_stopped_at_a_node_that_has_nothing_to_do_with_it() {
    // The job can only run on n2; n3 neither owns nor runs it.
    let net = Net::with(4, 1, serde_json::json!({}), |options| {
        let zone = |name: &str| super::net::map(serde_json::json!({"labels": {"zone": name}}));
        options.node_settings = [("n2".into(), zone("here"))].into();
    })
    .await;
    let owner = net.client(0);
    let stranger = net.shell(3);
    let works = net.add(0, guests::works(50, 50, 100)).await;
    let waits = net.add(0, guests::speaks_twice(3_600_000)).await;
    let constraint = serde_json::json!([{"Key": "zone", "Operator": "=", "Values": ["here"]}]);

    let mut quick = job(&works, 2);
    quick["Name"] = "quick".into();
    quick["Constraints"] = constraint.clone();
    let id = submit(&owner, &quick).await;
    ended(&owner, &id).await;
    for name in [id.as_str(), &id[..10], &id[..15], "quick"] {
        let described = stranger.json(&["job", "describe", name, "--output", "json"]).await;
        assert_eq!(described["Job"]["ID"], id.as_str(), "{name}");
        check_worked(&described, 2);
    }
    let logs = stranger.ok(&["job", "logs", &id[..10]]).await;
    assert_eq!(logs.lines().filter(|line| *line == "done").count(), 2, "{logs}");
    let executions = stranger.json(&["job", "executions", &id, "--output", "json"]).await;
    assert_eq!(executions.as_array().unwrap().len(), 2);
    let history = stranger.json(&["job", "history", &id, "--output", "json"]).await;
    assert!(history.as_array().unwrap().len() >= 3, "{history}");

    let mut long = job(&waits, 1);
    long["Constraints"] = constraint;
    let id = submit(&owner, &long).await;
    until(&owner, &id, |now| now.running == 1).await;
    let said = stranger.ok(&["job", "stop", &id[..10], "--reason", "enough"]).await;
    assert!(!said.contains("Error"), "{said}");
    let described = ended(&net.client(3), &id).await;
    assert_eq!(super::jobs::state(&described), "Stopped");
    assert!(super::jobs::message(&described).contains("enough"), "{described}");
    let listed = net.shell(0).json(&["job", "list", "--output", "json"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_job_whose_owner_is_away_is_said_to_be_so() {
    let net = Net::up(3, 1).await;
    let module = net.add(0, guests::speaks_twice(3_600_000)).await;
    let id = submit(&net.client(0), &job(&module, 1)).await;
    until(&net.client(0), &id, |now| now.running == 1).await;
    net.kill(0).await;
    let worker = net.client(1);
    let answer = super::net::within("describe", worker.get(&format!("/orchestrator/jobs/{id}"))).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.json()["Code"], "Unavailable");
    assert!(answer.text().contains(&net.node(0).peer), "{}", answer.text());
}

#[tokio::test]
async fn a_job_that_nobody_knows_is_not_found_anywhere() {
    let net = Net::up(2, 0).await;
    let unknown = "j-00000000-0000-8000-8000-000000000000";
    for verb in ["describe", "logs", "stop", "get", "executions", "history"] {
        let error = net.shell(1).refused(&["job", verb, unknown], b"").await;
        assert!(error.contains(unknown), "{verb}: {error}");
    }
}
