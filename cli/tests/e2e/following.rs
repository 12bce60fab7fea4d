//! A job's output while it runs, and after.

use std::fs;

use serde_json::json;
use testnet::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::guests;
use super::jobs::{ended, executions, job, job_with, state, submit};
use super::net::{Net, within};

#[tokio::test]
async fn output_is_followed_live_from_any_node_and_kept_after_the_end() {
    let net = Net::up(3, 1).await;
    let module = net.add(0, guests::speaks_twice(6_000)).await;
    let owner = net.client(0);
    let id = submit(&owner, &job(&module, 1)).await;

    let mut following = net.shell(2).start(&["job", "logs", &id, "--follow"]);
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let first = within("the first line", async { Ok(lines.next_line().await?) }).await;
    assert_eq!(first.as_deref(), Some("first"));
    let now = within("describe", owner.describe(&id)).await;
    assert_eq!(state(&now), "Running", "the first line came only after the end");
    let second = within("the second line", async { Ok(lines.next_line().await?) }).await;
    assert_eq!(second.as_deref(), Some("second"));
    let end = within("the end", async { Ok((lines.next_line().await?, following.wait().await?)) }).await;
    assert_eq!((end.0, end.1.code()), (None, Some(0)));

    assert_eq!(net.shell(1).ok(&["job", "logs", &id]).await, "first\nsecond\n");
    assert_eq!(net.shell(0).ok(&["job", "logs", &id, "--tail", "1"]).await, "second\n");
}

#[tokio::test]
async fn lines_of_several_partitions_stay_whole_and_streams_apart() {
    let net = Net::up(3, 1).await;
    let shell = net.shell(0);
    fs::write(net.path("both.wasm"), guests::says("to stdout\n", "to stderr\n", 0)).unwrap();
    let id = shell.ok(&["wasm", "run", "both.wasm", "--count", "8", "--id-only", "--wait"]).await;
    let said = shell.run(&["job", "logs", id.trim()]).await;
    assert_eq!(said.code, 0);
    assert_eq!(said.stdout, "to stdout\n".repeat(8));
    assert_eq!(said.stderr, "to stderr\n".repeat(8));
    let one = shell.run(&["job", "logs", id.trim(), "--partition", "3"]).await;
    assert_eq!((one.stdout.as_str(), one.stderr.as_str()), ("to stdout\n", "to stderr\n"));
}

#[tokio::test]
async fn last_lines_without_an_end_stay_apart_and_a_single_one_stays_as_it_is() {
    let net = Net::up(3, 1).await;
    let shell = net.shell(0);
    fs::write(net.path("open.wasm"), guests::says("out", "err", 0)).unwrap();
    let id = shell.ok(&["wasm", "run", "open.wasm", "--count", "3", "--id-only", "--wait"]).await;
    let said = shell.run(&["job", "logs", id.trim()]).await;
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("out\nout\nout\n", "err\nerr\nerr\n"));
    let route = format!("/orchestrator/jobs/{}/logs", id.trim());
    let plain = within("plain logs", net.client(1).get(&route)).await;
    assert_eq!(plain.text().matches("out\n").count(), 3, "{}", plain.text());
    assert_eq!(shell.ok(&["job", "logs", id.trim(), "--partition", "1"]).await, "out");
    assert_eq!(shell.ok(&["wasm", "run", "open.wasm"]).await, "out");
}

#[tokio::test]
async fn a_running_jobs_whole_output_is_shown_at_once_however_long() {
    let net = Net::up(3, 1).await;
    let module = net.add(0, guests::speaks_much(60, 100_000)).await;
    let id = submit(&net.client(0), &job(&module, 1)).await;
    let mut following = net.shell(2).start(&["job", "logs", &id, "--follow"]);
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    for _ in 0..60 {
        let line = within("a line", async { Ok(lines.next_line().await?) }).await;
        assert_eq!(line.unwrap().len(), 1023);
    }
    for shell in [net.shell(0), net.shell(1)] {
        assert_eq!(shell.ok(&["job", "logs", &id]).await.len(), 60 << 10);
        assert_eq!(shell.ok(&["job", "logs", &id, "--tail", "2"]).await.len(), 2 << 10);
    }
    let mut tail = net.shell(0).start(&["job", "logs", &id, "--tail", "1", "--follow"]);
    let mut last = BufReader::new(tail.stdout.take().unwrap()).lines();
    within("the last line", async { Ok(last.next_line().await?) }).await;
    net.shell(0).ok(&["job", "stop", &id]).await;
    let more = within("the end", async { Ok(last.next_line().await?) }).await;
    assert_eq!(more, None, "a tail printed more than the last line");
}

#[tokio::test]
async fn who_follows_a_job_goes_on_with_the_backup_of_a_silent_worker() {
    let net = Net::up(3, 1).await;
    let module = net.add(0, guests::speaks_twice(8_000)).await;
    let owner = net.client(0);
    let id = submit(&owner, &job(&module, 1)).await;
    let mut following = net.shell(0).start(&["job", "logs", &id, "--follow"]);
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let first = within("the first line", async { Ok(lines.next_line().await?) }).await;
    assert_eq!(first.as_deref(), Some("first"));
    let described = within("describe", owner.describe(&id)).await;
    let worker = executions(&described)[0]["NodeID"].as_str().unwrap().to_owned();
    net.signal(net.index_of(&worker), Signal::Pause).await;
    let mut rest = Vec::new();
    while let Some(line) = within("a line", async { Ok(lines.next_line().await?) }).await {
        rest.push(line);
    }
    assert_eq!(rest, ["first", "second"]);
    assert_eq!(within("the end", async { Ok(following.wait().await?) }).await.code(), Some(0));
}

#[tokio::test]
async fn output_that_cannot_be_had_is_an_error_and_not_an_empty_answer() {
    let net = Net::with(3, 1, json!({"input-timeout": 2}), |_| {}).await;
    let module = net.add(0, guests::says("kept", "", 0)).await;
    let owner = net.client(0);
    let results = json!([{"Name": "more", "Path": "/more"}]);
    let spec = job_with(&module, 1, json!({"Publisher": {"Type": "local"}, "ResultPaths": results}));
    let id = submit(&owner, &spec).await;
    let described = ended(&owner, &id).await;
    assert_eq!(state(&described), "Completed");
    assert_eq!(net.shell(0).ok(&["job", "logs", &id]).await, "kept");
    let worker = executions(&described)[0]["NodeID"].as_str().unwrap().to_owned();
    net.kill(net.index_of(&worker)).await;
    for asked in (0..3).filter(|index| net.node(*index).peer != worker) {
        let said = net.shell(asked).run(&["job", "logs", &id]).await;
        assert_eq!((said.code, said.stdout.as_str()), (1, ""), "{}", said.stderr);
        assert!(said.stderr.contains("output of partition 0 is missing"), "{}", said.stderr);
    }
    let wrong = net.shell(0).run(&["job", "logs", &id, "--partition", "1"]).await;
    assert!(wrong.code == 1 && wrong.stderr.contains("partition not found: 1"), "{}", wrong.stderr);
    let wrong = net.shell(0).run(&["job", "logs", &id, "--execution-id", "e-none"]).await;
    assert!(wrong.code == 1 && wrong.stderr.contains("execution not found: e-none"), "{}", wrong.stderr);
}
