//! Jobs that go well, and one that fails, from the command to the results on disk.

use std::fs;

use serde_json::json;

use super::guests;
use super::jobs::{completed, ended, job_with, state, submit};
use super::net::Net;

#[tokio::test]
async fn a_job_submitted_where_nothing_runs_runs_elsewhere_and_its_results_outlive_the_worker() {
    let net = Net::up(3, 1).await;
    let shell = net.shell(0);
    fs::write(net.path("hello.wasm"), guests::says("hello\n", "a word aside\n", 0)).unwrap();

    let said = shell.run(&["wasm", "run", "hello.wasm", "--name", "hello"]).await;
    assert_eq!((said.code, said.stdout.as_str()), (0, "hello\n"), "{said:?}");
    assert!(said.stderr.contains("a word aside"), "{said:?}");
    let described = shell.json(&["job", "describe", "hello", "--output", "json"]).await;
    let worker = net.index_of(completed(&described)[&0]["NodeID"].as_str().unwrap());
    assert_ne!(worker, 0, "the submitting node runs nothing");

    net.kill(worker).await;
    let id = described["Job"]["ID"].as_str().unwrap();
    let other = 3 - worker;
    for (index, dir) in [(0, "at-owner"), (other, "at-other")] {
        net.shell(index).ok(&["job", "get", id, "--output-dir", dir]).await;
        let read = |name: &str| fs::read_to_string(net.path(dir).join(name)).unwrap();
        assert_eq!(read("stdout"), "hello\n");
        assert_eq!(read("stderr"), "a word aside\n");
        assert_eq!(read("exitCode").trim(), "0");
    }
    net.down().await;
}

#[tokio::test]
async fn each_partition_knows_its_number_and_has_results_of_its_own() {
    let net = Net::up(3, 1).await;
    let shell = net.shell(0);
    fs::write(net.path("env.wasm"), guests::environment()).unwrap();
    let run = ["wasm", "run", "env.wasm", "--count", "3", "--id-only", "--wait", "-e", "COLOUR=blue"];
    let id = shell.ok(&run).await.trim().to_owned();
    shell.ok(&["job", "get", &id, "--output-dir", "results"]).await;
    for partition in 0..3 {
        let dir = net.path("results").join(partition.to_string());
        let stdout = fs::read_to_string(dir.join("stdout")).unwrap();
        let lines: Vec<&str> = stdout.lines().collect();
        for line in [
            format!("BACALHAU_PARTITION_INDEX={partition}"),
            "BACALHAU_PARTITION_COUNT=3".into(),
            format!("BACALHAU_JOB_ID={id}"),
            "COLOUR=blue".into(),
        ] {
            assert!(lines.contains(&line.as_str()), "no {line} in {stdout}");
        }
        assert_eq!(fs::read_to_string(dir.join("exitCode")).unwrap().trim(), "0");
    }
    let again = shell.refused(&["job", "get", &id, "--output-dir", "results"], b"").await;
    assert!(again.contains("--force") || again.contains("exist"), "{again}");

    shell.ok(&["job", "get", &id, "--output-dir", "merged", "--merge"]).await;
    let merged = fs::read_to_string(net.path("merged").join("stdout")).unwrap();
    assert_eq!(merged.lines().filter(|line| line.starts_with("BACALHAU_PARTITION_INDEX=")).count(), 3);
}

#[tokio::test]
async fn folders_that_a_job_writes_are_among_its_results() {
    let net = Net::up(2, 1).await;
    let shell = net.shell(0);
    fs::write(net.path("write.wasm"), guests::writes_a_file("written")).unwrap();
    let id = shell.ok(&["wasm", "run", "write.wasm", "-o", "things:/outputs", "--id-only", "--wait"]).await;
    let id = id.trim();
    shell.ok(&["job", "get", id, "--output-dir", "results"]).await;
    assert_eq!(fs::read_to_string(net.path("results/things/result.txt")).unwrap(), "written");
    shell.ok(&["job", "get", &format!("{id}/things/result.txt"), "--output-dir", "one"]).await;
    assert_eq!(fs::read_to_string(net.path("one/things/result.txt")).unwrap(), "written");
    assert!(!net.path("one/stdout").exists());
}

#[tokio::test]
async fn a_program_that_exits_with_a_code_fails_the_job_and_says_the_code() {
    let net = Net::up(3, 1).await;
    let shell = net.shell(0);
    fs::write(net.path("exit.wasm"), guests::says("before\n", "", 7)).unwrap();
    let said = shell.run(&["wasm", "run", "exit.wasm", "--name", "seven"]).await;
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.stderr.contains('7'), "the code is not said: {said:?}");
    let described = shell.json(&["job", "describe", "seven", "--output", "json"]).await;
    assert_eq!(state(&described), "Failed");
    assert!(described.to_string().contains(r#""ExitCode":7"#), "{described}");
}

#[tokio::test]
async fn an_input_added_at_one_node_reaches_a_program_on_another() {
    let net = Net::up(2, 1).await;
    // The module itself is an input by CID that only the submitting node has.
    let module = net.add(0, guests::environment()).await;
    let client = net.client(0);
    let job = job_with(&module, 1, json!({"Env": {"SHADE": "green"}}));
    let described = ended(&client, &submit(&client, &job).await).await;
    assert_eq!(state(&described), "Completed", "{described}");
    let stdout = completed(&described)[&0]["RunOutput"]["Stdout"].as_str().unwrap().to_owned();
    assert!(stdout.contains("SHADE=green"), "{stdout}");
}
