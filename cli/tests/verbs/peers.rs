//! Real peers: `serve`, and the one inside a command that finds no node. They listen on loopback only.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::fake::{Cardume, Ran};

/// A module that prints a line.
const HELLO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 8) "\10\00\00\00\06\00\00\00hello\n")
    (func (export "_start") (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 32)))))"#;

/// A module that never ends.
const LOOP: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;

/// A node in a process of its own; killed when the test ends before it.
struct Server {
    child: Child,
    ready: serde_json::Value,
}

impl Server {
    fn start(cardume: &Cardume) -> Server {
        let mut command = cardume.command(&["serve", "--api", "127.0.0.1:0", "--output", "json"]);
        command.env("CARDUME_API", "http://127.0.0.1:1"); // not for servers
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut why = String::new();
            child.stderr.take().unwrap().read_to_string(&mut why).unwrap();
            panic!("it does not serve: {why}");
        }
        Server { child, ready: serde_json::from_str(&line).unwrap() }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where the test got that far.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until no process works on the data directory.
fn wait_until_free(cardume: &Cardume) {
    let lock = std::fs::File::open(cardume.data_dir().join("lock")).unwrap();
    rustix::fs::flock(lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
}

#[test]
fn serve_says_one_line_and_ends_cleanly_when_told() {
    for signal in [Signal::TERM, Signal::INT] {
        let cardume = Cardume::alone();
        let server = Server::start(&cardume);
        assert_eq!(server.ready["ready"], true);
        assert_eq!(server.ready["swarm"], "public");
        assert!(server.ready["addrs"][0].as_str().unwrap().starts_with("/ip4/127.0.0.1/tcp/"));
        let id = cardume.run(&["id"]).stdout;
        assert_eq!(id.trim_end(), server.ready["peer"].as_str().unwrap());
        assert_eq!(cardume.run(&["id", "--output", "json"]).json()["addrs"], server.ready["addrs"]);
        let api = server.ready["api"].as_str().unwrap().to_owned();
        let elsewhere = Cardume::alone();
        assert_eq!(elsewhere.run(&["id", "--api", &api]).stdout, id);
        assert_eq!(elsewhere.run(&["id", "--api", "http://127.0.0.1:1"]).code, 4);
        let ran: Ran =
            cardume.command(&["node", "list", "--output", "csv", "--api", &api]).output().unwrap().into();
        assert!(ran.code == 0 && ran.stdout.contains(id.trim_end()), "{ran:?}");
        server.signal(signal);
        assert_eq!(server.end(), (Some(0), String::new()));
    }
}

#[test]
fn one_directory_has_one_node() {
    let cardume = Cardume::alone();
    let _server = Server::start(&cardume);
    let ran = cardume.run(&["serve", "--api", "127.0.0.1:0"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{ran:?}");
    assert!(ran.stderr.contains("another process"), "{ran:?}");
}

#[test]
fn wrong_settings_are_named() {
    let cardume = Cardume::alone();
    for (arguments, part) in [
        (vec!["--api", "nowhere"], "nowhere"),
        (vec!["--label", "x"], "KEY=VALUE"),
        (vec!["--label", "id=me"], "label id"),
        (vec!["--trust", "nobody"], "nobody"),
        (vec!["--config", "none.yaml"], "none.yaml"),
        (vec!["--listen", "here"], "here"),
    ] {
        let ran = cardume.run(&[&["serve"], arguments.as_slice()].concat());
        assert_eq!(ran.code, 1, "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains("Error: ") && ran.stderr.contains(part), "{arguments:?}: {ran:?}");
    }
}

#[test]
fn without_a_node_a_program_runs_in_a_peer_of_its_own() {
    let cardume = Cardume::alone();
    cardume.write("hello.wasm", wat::parse_str(HELLO).unwrap());
    let ran = cardume.run(&["wasm", "run", "hello.wasm"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "hello\n"), "{ran:?}");
    let notes: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("no node at http://")).collect();
    assert!(notes.len() == 1 && notes[0].contains("running an embedded peer 12D3Koo"), "{ran:?}");
    wait_until_free(&cardume);
    // What it did can be looked at afterwards, without a node.
    let listed = cardume.run(&["job", "list", "--output", "json"]);
    let id = listed.json()[0]["ID"].as_str().unwrap().to_owned();
    assert_eq!(cardume.run(&["job", "logs", &id]).stdout, "hello\n");
    let described = cardume.run(&["job", "describe", &id, "--output", "json"]);
    assert_eq!(described.json()["Job"]["State"]["StateType"], "Completed", "{described:?}");
    wait_until_free(&cardume);
    // Where nothing was ever done there is nothing to look at.
    assert_eq!(Cardume::alone().run(&["job", "list"]).code, 4);
}

#[test]
fn a_data_directory_may_have_a_long_path() {
    let cardume = Cardume::alone();
    cardume.write("a.txt", "aaa");
    let long = cardume.dir.path().join("d".repeat(120)).join("e".repeat(120));
    let run = |arguments: &[&str]| -> Ran {
        cardume.command(arguments).env("CARDUME_DIR", &long).output().unwrap().into()
    };
    let added = run(&["data", "add", "-q", "a.txt"]);
    assert_eq!(added.code, 0, "{added:?}");
    let ran = run(&["data", "cat", added.stdout.trim_end()]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "aaa"), "{ran:?}");
}

#[test]
fn ctrl_c_hands_on_what_other_commands_left_in_the_peer() {
    let cardume = Cardume::alone();
    cardume.write("loop.wasm", wat::parse_str(LOOP).unwrap());
    // It waits for what is to be added, in a peer of its own.
    let mut command = cardume.command(&["data", "add", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut first = command.spawn().unwrap();
    let mut said = BufReader::new(first.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert!(line.contains("running an embedded peer"), "{line}");
    let detached = cardume.run(&["wasm", "run", "loop.wasm", "--detach"]);
    assert_eq!(detached.code, 0, "{detached:?}");
    assert!(!detached.stderr.contains("embedded peer"), "{detached:?}");
    let id = detached.stdout.trim_end();

    kill_process(Pid::from_child(&first), Signal::INT).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(130));
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("the job goes on in a background peer"), "{rest}");
    let stopped = cardume.run(&["job", "stop", id]);
    assert_eq!(stopped.code, 0, "it does not go on: {stopped:?}");
    wait_until_free(&cardume);
}

#[test]
fn without_a_node_content_is_kept_in_the_data_directory() {
    let cardume = Cardume::alone();
    cardume.write("folder/sub/a.txt", "aaa");
    let cid = cardume.run(&["data", "add", "-q", "folder"]).stdout.trim_end().to_owned();
    let ran = cardume.run(&["data", "cat", &format!("{cid}/sub/a.txt")]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "aaa"), "{ran:?}");
    assert_eq!(cardume.run(&["data", "get", &cid, "--output-dir", "copy"]).code, 0);
    assert_eq!(cardume.read("copy/sub/a.txt"), "aaa");
}

#[test]
fn commands_that_start_together_share_one_peer() {
    let cardume = Cardume::alone();
    cardume.write("hello.wasm", wat::parse_str(HELLO).unwrap());
    let children: Vec<Child> = (0..3).map(|_| cardume.spawn(&["wasm", "run", "hello.wasm"])).collect();
    for child in children {
        let ran: Ran = child.wait_with_output().unwrap().into();
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "hello\n"), "{ran:?}");
    }
    wait_until_free(&cardume);
}

#[test]
fn a_detached_job_goes_on_in_a_background_peer_that_ends_with_it() {
    let cardume = Cardume::alone();
    cardume.write("loop.wasm", wat::parse_str(LOOP).unwrap());
    let ran = cardume.run(&["wasm", "run", "loop.wasm", "--detach"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("the job goes on in a background peer"), "{ran:?}");
    let id = ran.stdout.trim_end();
    let described = cardume.run(&["job", "describe", id, "--output", "json"]);
    assert_eq!(described.json()["Job"]["ID"], id, "{described:?}");
    let stopped = cardume.run(&["job", "stop", id]);
    assert_eq!(stopped.code, 0, "{stopped:?}");
    wait_until_free(&cardume);
}
