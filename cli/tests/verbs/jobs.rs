//! `job …`, but for its results.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::fake::{Answer, Cardume, Fake, ID, JOB, NODE, Ran, error, frames, job, submitted, watched};

/// A node that takes jobs, which end in a state.
fn running(state: &'static str, code: i64) -> Fake {
    Fake::start(move |asked| match asked.line.split(['?']).next().unwrap() {
        "PUT /orchestrator/jobs" => submitted(),
        line if line.ends_with("/watch") => watched(state, code),
        line if line.ends_with("/logs") => Answer::Bytes(frames(&[(1, 0, "out\n"), (2, 0, "err\n")])),
        _ => Answer::Json(200, job(state, code)),
    })
}

fn with_job(fake: &Fake) -> Cardume {
    let cardume = Cardume::with(fake);
    cardume.write("job.yaml", JOB);
    cardume
}

#[test]
fn run_submits_waits_and_sums_up() {
    let fake = running("Completed", 0);
    let ran = with_job(&fake).run(&["job", "run", "job.yaml"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("State     = Completed") && ran.stdout.contains("Exit code = 0"), "{ran:?}");
    assert!(ran.stderr.contains(&format!("{ID} submitted")), "{ran:?}");
    assert!(ran.stderr.contains("cardume job get j-a2bc3985"), "{ran:?}");
    let body = fake.find("PUT /orchestrator/jobs").json();
    assert_eq!(body["Spec"], JOB);
    assert_eq!(body["IdempotencyToken"].as_str().unwrap().len(), 32);
    assert_eq!(fake.find("GET /orchestrator").accept, "text/event-stream");
}

#[test]
fn a_job_that_fails_or_is_stopped_is_exit_2_with_its_own_code_shown() {
    for state in ["Failed", "Stopped"] {
        let fake = running(state, 3);
        let ran = with_job(&fake).run(&["job", "run", "job.yaml"]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stdout.contains("Exit code = 3"), "{ran:?}");
        assert!(ran.stderr.contains(&format!("Error: job j-a2bc3985 {}", state.to_lowercase())), "{ran:?}");
    }
}

#[test]
fn with_json_stdout_is_one_document() {
    let fake = running("Failed", 3);
    let cardume = with_job(&fake);
    for flag in ["--format", "--output"] {
        let ran = cardume.run(&["job", "run", "job.yaml", "-f", flag, "json"]);
        assert_eq!(ran.code, 2, "{ran:?}");
        let document = ran.json();
        assert_eq!(document["JobID"], ID);
        assert_eq!(document["State"]["StateType"], "Failed");
        assert_eq!(document["ExitCode"], 3);
        assert_eq!(document["Executions"]["Items"][0]["NodeID"], NODE);
    }
}

#[test]
fn id_only_prints_the_id_and_does_not_wait_unless_told() {
    let fake = running("Completed", 0);
    let cardume = with_job(&fake);
    for arguments in [["--id-only", "-q"], ["--wait=false", "-q"], ["--detach", "-q"]] {
        let ran = cardume.run(&["job", "run", "job.yaml", arguments[0], arguments[1]]);
        assert_eq!((ran.code, ran.stdout), (0, format!("{ID}\n")));
    }
    assert!(fake.lines().iter().all(|line| line == "PUT /orchestrator/jobs"), "{:?}", fake.lines());
    let ran = cardume.run(&["job", "run", "job.yaml", "--id-only", "--wait"]);
    assert_eq!((ran.code, ran.stdout, ran.stderr), (0, format!("{ID}\n"), String::new()));
    fake.find("GET /orchestrator/jobs/j-a2bc3985-0490-8e01-998f-cf760481e7da/watch");
}

#[test]
fn force_is_passed_on() {
    let fake = running("Completed", 0);
    let cardume = with_job(&fake);
    cardume.run(&["job", "run", "job.yaml", "--detach"]);
    cardume.run(&["job", "run", "job.yaml", "--detach", "--force"]);
    let forced: Vec<Value> = fake.asked().iter().map(|asked| asked.json()["Force"].clone()).collect();
    assert_eq!(forced, [json!(null), json!(true)]);
}

/// The answer about a job of which more executions are known than one answer holds.
fn cut(state: &str) -> Value {
    let mut answer = job(state, 0);
    answer["Executions"]["NextToken"] = "more".into();
    answer
}

/// All of its executions: the last one failed.
fn whole_list() -> Value {
    let mut items = vec![job("Completed", 0)["Executions"]["Items"][0].clone()];
    let mut failed = job("Failed", 7)["Executions"]["Items"][0].clone();
    failed["PartitionIndex"] = 500.into();
    items.push(failed);
    json!({"Items": items, "NextToken": ""})
}

#[test]
fn executions_that_one_answer_does_not_hold_are_asked_for() {
    let fake = Fake::start(|asked| match asked.line.split('?').next().unwrap() {
        "PUT /orchestrator/jobs" => submitted(),
        line if line.ends_with("/watch") => Answer::Events(vec![("end", cut("Failed"))]),
        line if line.ends_with("/executions") => Answer::Json(200, whole_list()),
        _ => Answer::Json(200, cut("Failed")),
    });
    let cardume = with_job(&fake);
    let ran = cardume.run(&["job", "run", "job.yaml", "--format", "json"]);
    assert_eq!((ran.code, ran.json()["ExitCode"].as_i64()), (2, Some(7)), "{ran:?}");
    assert_eq!(ran.json()["Executions"]["Items"].as_array().unwrap().len(), 2);
    let ran = cardume.run(&["job", "run", "job.yaml"]);
    assert!(ran.stdout.contains("Exit code = 7"), "{ran:?}");
    assert_eq!(
        fake.lines().last().unwrap(),
        &format!("GET /orchestrator/jobs/{ID}/executions?job_version=1&outputs=false&limit=1000")
    );
    let ran = cardume.run(&["job", "describe", ID, "--output", "json"]);
    assert_eq!(ran.json()["Executions"], whole_list());
    assert_eq!(
        fake.lines().last().unwrap(),
        &format!("GET /orchestrator/jobs/{ID}/executions?job_version=1&limit=1000")
    );
}

#[test]
fn progress_says_who_bids_and_what_runs_where() {
    let fake = Fake::start(|asked| match asked.line.as_str() {
        "PUT /orchestrator/jobs" => submitted(),
        _ => Answer::Events(vec![
            ("bid", json!({"NodeID": NODE, "Slots": 4})),
            ("execution", json!({"PartitionIndex": 0, "NodeID": NODE, "Message": "fetching 3 inputs"})),
            (
                "history",
                json!({"SeqNum": 2, "Type": "ExecutionLevel", "ExecutionID": "e-1",
                    "Event": {"Message": "Running", "Details": {"PartitionIndex": "0", "NodeID": NODE}}}),
            ),
            ("end", job("Completed", 0)),
        ]),
    });
    let ran = with_job(&fake).run(&["job", "run", "job.yaml"]);
    for line in [
        "bid from …eQAJU5SA: 4 slots\n",
        "partition 0 on …eQAJU5SA: fetching 3 inputs\n",
        "partition 0 runs on …eQAJU5SA\n",
    ] {
        assert!(ran.stderr.contains(line), "{line}: {ran:?}");
    }
}

#[test]
fn as_csv_every_partition_is_a_row_with_whole_ids() {
    let fake = Fake::start(|asked| {
        let mut end = job("Completed", 0);
        let one = end["Executions"]["Items"][0].clone();
        let all = (0..12).map(|index| {
            let mut one = one.clone();
            one["PartitionIndex"] = index.into();
            one
        });
        end["Executions"]["Items"] = all.collect::<Vec<Value>>().into();
        match asked.line.as_str() {
            "PUT /orchestrator/jobs" => submitted(),
            _ => Answer::Events(vec![("end", end)]),
        }
    });
    let ran = with_job(&fake).run(&["job", "run", "job.yaml", "--format", "csv"]);
    assert_eq!(ran.stdout.lines().count(), 13, "{ran:?}");
    assert!(ran.stdout.contains(NODE), "{ran:?}");
}

#[test]
fn ctrl_c_before_there_is_a_job_is_130_too() {
    // It takes the connection and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let api = format!("http://{}", silent.local_addr().unwrap());
    let cardume = Cardume::alone();
    cardume.write("job.yaml", JOB);
    cardume.write("a.wasm", b"\0asm\x01\0\0\0");
    for arguments in [["job", "run", "job.yaml"], ["wasm", "run", "a.wasm"]] {
        let child = cardume.spawn(&[&arguments[..], &["--api", &api]].concat());
        let connection = silent.accept().unwrap();
        let process = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
        let ran: Ran = child.wait_with_output().unwrap().into();
        assert_eq!(ran.code, 130, "{ran:?}");
        assert!(ran.stderr.contains("before the job was submitted"), "{ran:?}");
        drop(connection);
    }
}

#[test]
fn ctrl_c_while_following_output_says_how_to_come_back() {
    let fake = Fake::start(|_| Answer::Endless(frames(&[(1, 0, "a\n")])));
    let cardume = Cardume::with(&fake);
    let child = cardume.spawn(&["job", "logs", ID, "-f"]);
    fake.wait_for("GET /orchestrator/jobs/");
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    let ran: Ran = child.wait_with_output().unwrap().into();
    assert_eq!(ran.code, 130, "{ran:?}");
    assert!(ran.stderr.contains("cardume job logs j-a2bc3985 -f"), "{ran:?}");
}

#[test]
fn a_node_that_restarts_is_waited_for_and_never_replaced() {
    let cardume = Cardume::alone();
    std::fs::create_dir(cardume.data_dir()).unwrap();
    cardume.write("job.yaml", JOB);
    let first = Fake::start_in(&cardume.data_dir(), |asked| match asked.line.as_str() {
        "PUT /orchestrator/jobs" => submitted(),
        _ => Answer::Endless(b": hello\n\n".to_vec()),
    });
    let child = cardume.spawn(&["job", "run", "job.yaml"]);
    first.wait_for("GET /orchestrator/jobs/");
    drop(first);
    std::fs::remove_file(cardume.data_dir().join("api.sock")).unwrap();
    let second = Fake::start_in(&cardume.data_dir(), |_| watched("Completed", 0));
    let ran: Ran = child.wait_with_output().unwrap().into();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(!ran.stderr.contains("embedded peer"), "{ran:?}");
    assert!(!cardume.data_dir().join("lock").exists(), "it took the directory");
    second.find("GET /orchestrator/jobs/");
}

#[test]
fn follow_streams_the_output_where_it_belongs() {
    let fake = running("Completed", 0);
    let ran = with_job(&fake).run(&["job", "run", "job.yaml", "--follow"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "out\n"), "{ran:?}");
    assert!(
        ran.stderr.contains("err\n") && ran.stderr.contains(&format!("ran on {NODE}, exit code 0")),
        "{ran:?}"
    );
}

#[test]
fn output_that_cannot_be_followed_yet_is_read_at_the_end() {
    let asked_for_logs = AtomicUsize::new(0);
    let fake = Fake::start(move |asked| match asked.line.split('?').next().unwrap() {
        "PUT /orchestrator/jobs" => submitted(),
        line if line.ends_with("/logs") => match asked_for_logs.fetch_add(1, Ordering::SeqCst) {
            0 => error(404, "NotFound", "no executions found"),
            _ => Answer::Bytes(frames(&[(1, 0, "late\n")])),
        },
        _ => watched("Completed", 0),
    });
    let ran = with_job(&fake).run(&["job", "run", "job.yaml", "-f"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "late\n"), "{ran:?}");
}

#[test]
fn when_the_wait_timeout_runs_out_the_exit_code_is_3() {
    let fake = Fake::start(|asked| match asked.line.as_str() {
        "PUT /orchestrator/jobs" => submitted(),
        line if line.ends_with("/watch") => Answer::Endless(b": hello\n\n".to_vec()),
        _ => Answer::Json(200, job("Running", 0)),
    });
    let cardume = with_job(&fake);
    let ran = cardume.run(&["job", "run", "job.yaml", "--wait-timeout", "10ms"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.stderr.contains("goes on") && ran.stderr.contains("cardume job logs j-a2bc3985 -f"),
        "{ran:?}"
    );
    let ran = cardume.run(&["job", "run", "job.yaml", "--wait-timeout", "0.01", "--format", "json"]);
    assert_eq!((ran.code, ran.json()["State"]["StateType"].as_str()), (3, Some("Running")));
}

#[test]
fn ctrl_c_leaves_the_job_and_says_how_to_come_back() {
    let fake = Fake::start(|asked| match asked.line.as_str() {
        "PUT /orchestrator/jobs" => submitted(),
        _ => Answer::Endless(b": hello\n\n".to_vec()),
    });
    let cardume = with_job(&fake);
    let child = cardume.spawn(&["job", "run", "job.yaml"]);
    fake.wait_for("GET /orchestrator/jobs/");
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    let ran: Ran = child.wait_with_output().unwrap().into();
    assert_eq!(ran.code, 130, "{ran:?}");
    assert!(
        ran.stderr.contains("it goes on") && ran.stderr.contains("cardume job stop j-a2bc3985"),
        "{ran:?}"
    );
}

#[test]
fn a_watch_that_breaks_off_is_taken_up_again() {
    let updated = json!({"SeqNum": 1, "Type": "JobLevel", "Event": {"Message": "Job updated"}});
    let watches = AtomicUsize::new(0);
    let fake = Fake::start(move |asked| match asked.line.as_str() {
        "PUT /orchestrator/jobs" => submitted(),
        _ if watches.fetch_add(1, Ordering::SeqCst) == 0 => {
            Answer::Broken(format!("event: history\ndata: {updated}\n\n").into_bytes())
        }
        _ => Answer::Events(vec![("history", updated.clone()), ("end", job("Completed", 0))]),
    });
    let ran = with_job(&fake).run(&["job", "run", "job.yaml"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.stderr.matches("Job updated").count(), 1, "{ran:?}");
}

#[test]
fn what_is_wrong_with_a_file_is_said_before_any_node_is_asked() {
    let fake = running("Completed", 0);
    let cardume = Cardume::with(&fake);
    cardume.write("typo.yaml", JOB.replace("Engine:", "Engin:"));
    cardume.write("empty.yaml", "");
    cardume.write("binary.yaml", [0u8, 1, 2]);
    cardume.write("template.yaml", JOB.replace("hello", "{{.who}}"));
    for (file, part) in [
        ("typo.yaml", "line 4, column"),
        ("empty.yaml", "empty"),
        ("binary.yaml", "binary"),
        ("template.yaml", "who"),
        ("none.yaml", "no such file"),
    ] {
        for verb in ["run", "validate"] {
            let ran = cardume.run(&["job", verb, file]);
            assert_eq!(ran.code, 1, "{file}: {ran:?}");
            assert!(ran.stderr.starts_with("Error: ") && ran.stderr.contains(part), "{file}: {ran:?}");
        }
    }
    assert!(fake.asked().is_empty());
}

#[test]
fn templates_are_filled_from_flags_and_environment() {
    let fake = running("Completed", 0);
    let cardume = Cardume::with(&fake);
    cardume.write("job.yaml", JOB.replace("hello", "{{.who}}-{{.WHERE}}"));
    let ran: Ran = cardume
        .command(&["job", "run", "job.yaml", "-V", "who=me", "-E", "^WH", "--id-only"])
        .env("WHERE", "here")
        .output()
        .unwrap()
        .into();
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(fake.asked()[0].json()["Spec"].as_str().unwrap().starts_with("Name: me-here\n"));
}

#[test]
fn dry_run_and_validate_need_no_node() {
    let cardume = Cardume::alone();
    cardume.write("job.yaml", JOB);
    let ran = cardume.run(&["job", "run", "job.yaml", "--dry-run", "--format", "json"]);
    assert_eq!((ran.code, ran.json()["Tasks"][0]["Name"].as_str()), (0, Some("main")), "{ran:?}");
    let ran = cardume.run(&["job", "run", "job.yaml", "--dry-run"]);
    assert!(ran.stdout.contains("Entrypoint: _start"), "{ran:?}");
    assert_eq!(cardume.run(&["job", "validate", "job.yaml"]).stdout, "OK\n");
}

#[test]
fn a_job_may_come_from_stdin() {
    use std::io::Write;
    let fake = running("Completed", 0);
    let cardume = Cardume::with(&fake);
    let mut command = cardume.command(&["job", "run", "-", "--id-only"]);
    let mut child =
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(JOB.as_bytes()).unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, format!("{ID}\n").into_bytes());
}

#[test]
fn warnings_of_the_node_are_notes() {
    let fake =
        Fake::start(|_| Answer::Json(200, json!({"JobID": ID, "Warnings": ["only one task is supported"]})));
    let cardume = with_job(&fake);
    assert!(cardume.run(&["job", "run", "job.yaml", "--id-only"]).stderr.contains("Warning: only one task"));
    assert_eq!(cardume.run(&["job", "run", "job.yaml", "--id-only", "--quiet"]).stderr, "");
}

#[test]
fn lists_are_asked_page_by_page_and_printed_in_every_form() {
    let fake = Fake::start(|asked| match asked.line.contains("next_token") {
        false if asked.line.contains("limit=1000") => {
            let items: Vec<Value> = (0..1000).map(|_| job("Completed", 0)["Job"].clone()).collect();
            Answer::Json(200, json!({"Items": items, "NextToken": "a+b"}))
        }
        false => Answer::Json(200, json!({"Items": [job("Completed", 0)["Job"]], "NextToken": ""})),
        true => Answer::Json(200, json!({"Items": [job("Running", 0)["Job"]], "NextToken": "more"})),
    });
    let cardume = Cardume::with(&fake);
    let ran = cardume.run(&["job", "list", "--labels", "a=b,!c", "--namespace", "x", "--limit", "7"]);
    assert!(
        ran.stdout.contains("CREATED (UTC)") && ran.stdout.contains("2026-11-22 08:04:18  j-a2bc3985  hello"),
        "{ran:?}"
    );
    assert_eq!(fake.lines()[0], "GET /orchestrator/jobs?namespace=x&labels=a%3Db%2C%21c&limit=7");
    let ran = cardume.run(&["job", "list", "--all", "--output", "json"]);
    assert_eq!(ran.json().as_array().unwrap().len(), 1001);
    assert!(fake.lines().last().unwrap().ends_with("&limit=1000&next_token=a%2Bb"));
    let csv = cardume.run(&["job", "list", "--output", "csv"]).stdout;
    assert_eq!(csv.lines().nth(1).unwrap(), format!("2026-11-22 08:04:18,{ID},hello,batch,Completed"));
    let yaml = cardume.run(&["job", "list", "--output", "yaml"]).stdout;
    assert!(yaml.starts_with(&format!("- ID: {ID}\n")), "{yaml}");
}

#[test]
fn a_jobs_own_lists_have_their_routes() {
    let fake = Fake::start(|_| Answer::Json(200, json!({"Items": [], "NextToken": "always"})));
    let cardume = Cardume::with(&fake);
    for (arguments, line) in [
        (vec!["executions", "a b"], "GET /orchestrator/jobs/a%20b/executions?limit=100"),
        (
            vec!["history", "x", "--event-type", "job"],
            "GET /orchestrator/jobs/x/history?event_type=job&limit=100",
        ),
        (
            vec!["history", "x", "--all", "--execution-id", "e-1"],
            "GET /orchestrator/jobs/x/history?event_type=all&execution_id=e-1&limit=1000",
        ),
        (vec!["versions", "x"], "GET /orchestrator/jobs/x/versions?limit=100"),
        (vec!["versions", "x", "--all"], "GET /orchestrator/jobs/x/versions?limit=1000"),
        (
            vec!["executions", "x", "--namespace", "a b"],
            "GET /orchestrator/jobs/x/executions?namespace=a%20b&limit=100",
        ),
    ] {
        let ran = cardume.run(&[&["job"], arguments.as_slice(), &["--output", "json"]].concat());
        assert_eq!((ran.code, ran.json()), (0, json!([])), "{ran:?}");
        assert_eq!(fake.lines().last().unwrap(), line);
    }
}

#[test]
fn describe_gives_the_whole_answer_or_a_layout() {
    let fake = Fake::start(|_| Answer::Json(200, job("Completed", 0)));
    let cardume = Cardume::with(&fake);
    let ran = cardume.run(&["job", "describe", "hello", "--output", "json"]);
    assert_eq!(ran.json(), job("Completed", 0));
    assert_eq!(fake.lines()[0], "GET /orchestrator/jobs/hello?include=executions,history");
    let ran = cardume.run(&["job", "describe", "hello"]);
    assert!(ran.stdout.contains("Standard Output\nhi\n"), "{ran:?}");
}

#[test]
fn stop_names_its_reason() {
    let fake = Fake::start(|_| Answer::Json(200, json!({"EvaluationID": "x"})));
    let cardume = Cardume::with(&fake);
    let ran = cardume.run(&["job", "stop", ID, "--reason", "enough"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{ran:?}");
    assert_eq!(fake.asked()[0].line, format!("DELETE /orchestrator/jobs/{ID}"));
    assert_eq!(fake.asked()[0].json(), json!({"reason": "enough"}));
    cardume.run(&["job", "stop", "x", "--namespace", "n"]);
    assert_eq!(fake.asked()[1].line, "DELETE /orchestrator/jobs/x?namespace=n");
    let ended = Fake::start(|_| error(409, "Conflict", "cannot stop job in state Completed"));
    let ran = Cardume::with(&ended).run(&["job", "stop", ID]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.starts_with("Error: cannot stop job in state Completed"));
}

#[test]
fn logs_keep_lines_whole_and_streams_apart() {
    let fake = Fake::start(|_| {
        Answer::Bytes(frames(&[(1, 0, "a"), (1, 1, "x\n"), (2, 0, "oops\n"), (1, 0, "b\n"), (1, 1, "end")]))
    });
    let cardume = Cardume::with(&fake);
    let ran = cardume.run(&["job", "logs", "x", "-f", "-t", "20"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "x\nab\nend\n", "oops\n"));
    assert_eq!(fake.lines()[0], "GET /orchestrator/jobs/x/logs?follow=true&tail=20");
    assert_eq!(fake.asked()[0].accept, "application/vnd.cardume.logs");
    let ran = cardume.run(&["job", "logs", "x", "--partition", "1"]);
    assert_eq!(ran.stdout, "ax\nb\nend");
    assert_eq!(fake.lines()[1], "GET /orchestrator/jobs/x/logs?follow=false&partition=1");
}

#[test]
fn logs_that_break_off_are_an_error() {
    let fake = Fake::start(|_| Answer::Broken(frames(&[(1, 0, "a\n")])));
    let ran = Cardume::with(&fake).run(&["job", "logs", "x"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("broke off"), "{ran:?}");
}

#[test]
fn output_that_breaks_off_goes_on_where_it_was() {
    let asked_for_logs = AtomicUsize::new(0);
    let fake = Fake::start(move |asked| match asked.line.split('?').next().unwrap() {
        "PUT /orchestrator/jobs" => submitted(),
        line if line.ends_with("/logs") => match asked_for_logs.fetch_add(1, Ordering::SeqCst) {
            0 => Answer::Broken(frames(&[(1, 0, "one\nt")])),
            _ => Answer::Bytes(frames(&[(1, 0, "one\ntwo\n")])),
        },
        _ => watched("Completed", 0),
    });
    let ran = with_job(&fake).run(&["job", "run", "job.yaml", "-f"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "one\ntwo\n"), "{ran:?}");
}
