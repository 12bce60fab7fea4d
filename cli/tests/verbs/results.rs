//! `job get`.

use serde_json::{Value, json};

use crate::fake::{Answer, CID, Cardume, Fake, ID, tar};

/// A node with a job of so many partitions that have results.
fn with_results(count: i64, results: i64, state: &'static str) -> Fake {
    Fake::start(move |asked| {
        if asked.line.contains("/results?job_version=1&") {
            let item = |index: i64| json!({"Type": "ipfs", "Params": {"CID": CID}, "PartitionIndex": index, "ExecutionID": format!("e-{index}")});
            return Answer::Json(200, json!({"Items": (0..results).rev().map(item).collect::<Vec<Value>>()}));
        }
        if asked.line.contains("/orchestrator/jobs/") {
            let job = json!({"ID": ID, "Version": 1, "Count": count, "State": {"StateType": state}});
            return Answer::Json(200, json!({"Job": job}));
        }
        let is_file = asked.line.contains("/stdout?");
        match asked.line.contains("format=stat") {
            true => Answer::Json(200, json!({"Type": if is_file { "file" } else { "directory" }})),
            false if is_file => Answer::Bytes(b"out\n".to_vec()),
            false => Answer::Bytes(tar(&[
                ("stdout", "out\n"),
                ("stderr", ""),
                ("exitCode", "0"),
                ("outputs/r.txt", "r"),
            ])),
        }
    })
}

#[test]
fn one_partition_fills_the_folder_itself() {
    let fake = with_results(1, 1, "Completed");
    let cardume = Cardume::with(&fake);
    let ran = cardume.run(&["job", "get", "hello"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{ran:?}");
    for (file, content) in [("stdout", "out\n"), ("stderr", ""), ("exitCode", "0"), ("outputs/r.txt", "r")] {
        assert_eq!(cardume.read(&format!("job-j-a2bc3985/{file}")), content);
    }
    assert_eq!(
        fake.lines()[..2],
        [
            "GET /orchestrator/jobs/hello".to_owned(),
            format!("GET /orchestrator/jobs/{ID}/results?job_version=1&limit=1000")
        ]
    );
    assert!(cardume.leftovers().is_empty());
}

#[test]
fn several_partitions_have_folders_of_their_own() {
    let fake = with_results(2, 2, "Completed");
    let cardume = Cardume::with(&fake);
    let ran = cardume.run(&["job", "get", ID, "--output-dir", "out", "--output", "json"]);
    assert_eq!((ran.code, ran.json()["Results"][0]["PartitionIndex"].as_i64()), (0, Some(0)), "{ran:?}");
    assert_eq!(
        (cardume.read("out/0/stdout"), cardume.read("out/1/outputs/r.txt")),
        ("out\n".into(), "r".into())
    );
    // A job of one partition that ran out of two keeps the same layout.
    let partial = with_results(2, 1, "Failed");
    let cardume = Cardume::with(&partial);
    let ran = cardume.run(&["job", "get", ID, "--output-dir", "out"]);
    assert_eq!(cardume.read("out/0/stdout"), "out\n");
    assert!(ran.stderr.contains("1 partitions have no result"), "{ran:?}");
}

#[test]
fn merge_joins_the_outputs_only_and_raw_keeps_executions_apart() {
    let fake = with_results(3, 3, "Completed");
    let cardume = Cardume::with(&fake);
    let stdout = format!("{ID}/stdout");
    assert_eq!(cardume.run(&["job", "get", &stdout, "--output-dir", "merged", "--merge"]).code, 0);
    assert_eq!(cardume.read("merged/stdout"), "out\nout\nout\n");
    let ran = cardume.run(&["job", "get", ID, "--output-dir", "all", "--merge"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let why = "cannot merge results as output already exists: outputs/r.txt. Try --raw";
    assert!(ran.stderr.contains(why) && !cardume.dir.path().join("all").exists(), "{ran:?}");
    assert_eq!(cardume.run(&["job", "get", ID, "--output-dir", "raw", "--raw"]).code, 0);
    assert_eq!(cardume.read("raw/e-2/stdout"), "out\n");
}

#[test]
fn one_file_keeps_its_place() {
    let one = with_results(1, 1, "Completed");
    let cardume = Cardume::with(&one);
    assert_eq!(cardume.run(&["job", "get", &format!("{ID}/stdout"), "--output-dir", "."]).code, 0);
    assert_eq!(cardume.read("stdout"), "out\n");
    assert!(one.lines().contains(&format!("GET /content/{CID}/stdout?format=raw")));
    let several = with_results(3, 3, "Completed");
    let cardume = Cardume::with(&several);
    assert_eq!(cardume.run(&["job", "get", &format!("{ID}/1/stdout"), "--output-dir", "out"]).code, 0);
    assert_eq!(cardume.read("out/1/stdout"), "out\n");
    assert!(!cardume.dir.path().join("out/0").exists());
    assert_eq!(cardume.run(&["job", "get", &format!("{ID}/../x")]).code, 1);
}

#[test]
fn results_are_not_overwritten_without_force() {
    let fake = with_results(1, 1, "Completed");
    let cardume = Cardume::with(&fake);
    assert_eq!(cardume.run(&["job", "get", ID, "--output-dir", "out"]).code, 0);
    let ran = cardume.run(&["job", "get", ID, "--output-dir", "out"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("--force"), "{ran:?}");
    assert_eq!(cardume.run(&["job", "get", ID, "--output-dir", "out", "--force"]).code, 0);
}

#[test]
fn a_job_without_results_says_why() {
    for (state, part) in
        [("Running", "no results yet: it is Running"), ("Failed", "no results: it is Failed")]
    {
        let fake = with_results(1, 0, state);
        let cardume = Cardume::with(&fake);
        let ran = cardume.run(&["job", "get", ID]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains(part) && ran.stderr.contains("cardume job logs"), "{ran:?}");
        assert!(!cardume.dir.path().join("job-j-a2bc3985").exists());
    }
}
