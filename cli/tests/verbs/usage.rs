//! Usage, errors and exit codes that need no job.

use serde_json::json;

use crate::fake::{Answer, Cardume, Fake, error};

#[test]
fn help_and_version_are_no_errors_and_wrong_usage_exits_1() {
    let cardume = Cardume::alone();
    for arguments in [vec!["--help"], vec!["--version"], vec!["version"], vec!["wasm", "run", "--help"]] {
        let ran = cardume.run(&arguments);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{arguments:?}");
        assert!(!ran.stdout.is_empty());
    }
    for arguments in
        [vec![], vec!["job"], vec!["nonsense"], vec!["job", "list", "--limit", "0"], vec!["job", "describe"]]
    {
        let ran = cardume.run(&arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{arguments:?}");
        assert!(!ran.stderr.is_empty());
    }
}

#[test]
fn usage_errors_name_the_mistake_and_the_way_out() {
    let ran = Cardume::alone().run(&["job", "list", "--limt", "3"]);
    assert!(ran.stderr.starts_with("Error: unexpected argument '--limt'"), "{}", ran.stderr);
    assert!(ran.stderr.contains("Hint: a similar argument exists: '--limit'"), "{}", ran.stderr);
    let ran = Cardume::alone().run(&["job", "list", "--limt", "3", "--output", "json"]);
    assert!(ran.json()["error"]["message"].as_str().unwrap().contains("--limt"));
}

#[test]
fn a_node_that_was_named_and_is_not_there_is_exit_4_and_never_replaced() {
    let cardume = Cardume::alone();
    std::fs::create_dir(cardume.data_dir()).unwrap();
    let _fake = Fake::start_in(&cardume.data_dir(), |_| Answer::Json(200, json!({"Items": []})));
    assert_eq!(cardume.run(&["job", "list"]).code, 0);
    cardume.write("job.yaml", crate::fake::JOB);
    for arguments in
        [vec!["job", "list"], vec!["job", "run", "job.yaml"], vec!["data", "cat", crate::fake::CID]]
    {
        let ran: crate::fake::Ran =
            cardume.command(&arguments).args(["--api", "http://127.0.0.1:1"]).output().unwrap().into();
        assert_eq!(ran.code, 4, "{ran:?}");
        assert!(
            ran.stderr.contains("cannot reach a node at http://127.0.0.1:1: connection refused"),
            "{ran:?}"
        );
        assert!(ran.stderr.contains("Hint: "), "{ran:?}");
    }
    let ran: crate::fake::Ran = cardume
        .command(&["job", "list", "--output", "json"])
        .env("CARDUME_API", "http://127.0.0.1:1")
        .output()
        .unwrap()
        .into();
    assert_eq!((ran.code, ran.json()["error"]["code"].as_str()), (4, Some("Unreachable")));
}

#[test]
fn what_was_named_and_is_no_node_is_not_used() {
    let stranger = Fake::start_as(json!({"Product": "other"}), |_| Answer::Json(200, json!({"Items": []})));
    // It takes the connection and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    for (arguments, api) in
        [(["job", "list"], &stranger.url), (["data", "cat"], &stranger.url), (["job", "logs"], &silent)]
    {
        let cardume = Cardume::alone();
        let mut command = cardume.command(&arguments);
        if arguments[1] != "list" {
            command.arg(crate::fake::CID);
        }
        let ran: crate::fake::Ran = command.args(["--api", api]).output().unwrap().into();
        assert_eq!((ran.code, ran.stdout.as_str()), (4, ""), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains(api.as_str()), "{ran:?}");
    }
    assert!(stranger.asked().is_empty(), "{:?}", stranger.lines());
}

#[test]
fn an_access_token_goes_with_every_request() {
    let fake = Fake::start(|_| Answer::Json(200, json!({"Items": []})));
    let cardume = Cardume::with(&fake);
    cardume.run(&["job", "list", "--token", "abc"]);
    cardume.command(&["job", "list"]).env("CARDUME_TOKEN", "def").output().unwrap();
    cardume.run(&["job", "list"]);
    let given: Vec<String> = fake.asked().into_iter().map(|asked| asked.authorization).collect();
    assert_eq!(given, ["Bearer abc", "Bearer def", ""]);
}

#[test]
fn arguments_that_are_no_text_are_usage_errors() {
    use std::os::unix::ffi::OsStrExt;
    let cardume = Cardume::alone();
    let mut command = cardume.command(&["job", "list", "--output", "json", "--limit"]);
    let ran: crate::fake::Ran = command.arg(std::ffi::OsStr::from_bytes(b"\xff")).output().unwrap().into();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(!ran.stderr.contains("panicked") && ran.json()["error"]["code"] == "BadRequest", "{ran:?}");
}

#[test]
fn addresses_that_are_none_are_usage_errors() {
    for api in ["https://127.0.0.1:1", "http://", "ftp://x"] {
        assert_eq!(Cardume::alone().run(&["job", "list", "--api", api]).code, 1, "{api}");
    }
}

#[test]
fn a_refusal_is_shown_with_its_hint_and_exits_1() {
    let fake = Fake::start(|_| error(404, "NotFound", "job not found: j-00000000"));
    let cardume = Cardume::with(&fake);
    let ran = cardume.run(&["job", "describe", "j-00000000"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert_eq!(ran.stderr, "Error: job not found: j-00000000\nHint: do it right\n");
    let ran = cardume.run(&["--output", "json", "job", "describe", "j-00000000"]);
    let expected = json!({"code": "NotFound", "message": "job not found: j-00000000", "hint": "do it right"});
    assert_eq!(ran.json()["error"], expected);
}

#[test]
fn the_socket_of_the_data_directory_is_found_first() {
    let cardume = Cardume::alone();
    std::fs::create_dir(cardume.data_dir()).unwrap();
    let fake = Fake::start_in(&cardume.data_dir(), |_| Answer::Json(200, json!({"Nodes": []})));
    assert_eq!(cardume.run(&["node", "list"]).code, 0);
    assert_eq!(fake.asked()[0].host, "localhost");
}

#[test]
fn completion_scripts_name_the_verbs() {
    let ran = Cardume::alone().run(&["completion", "bash"]);
    assert!(ran.code == 0 && ran.stdout.contains("wasm") && !ran.stdout.contains("runner"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let fake =
        Fake::start(|_| Answer::Json(200, json!({"Items": [crate::fake::job("Completed", 0)["Job"]]})));
    let cardume = Cardume::with(&fake);
    let mut child = cardume.spawn(&["job", "list", "--output", "json"]);
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[test]
fn test_networks_that_are_none_are_refused() {
    let cardume = Cardume::alone();
    for arguments in [
        vec!["status", "--dir", "nowhere"],
        vec!["down", "--dir", "nowhere"],
        vec!["kill", "n0", "--dir", "nowhere"],
        vec!["up", "--nodes", "1", "--submit-only", "2", "--dir", "nowhere"],
        vec!["up", "--nodes", "0", "--dir", "nowhere"],
        vec!["status"],
    ] {
        let ran = cardume.run(&[&["testnet"], arguments.as_slice()].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.starts_with("Error: "), "{arguments:?}: {ran:?}");
    }
    assert!(!cardume.dir.path().join("nowhere").exists());
}
