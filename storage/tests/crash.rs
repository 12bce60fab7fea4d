//! kill -9 at any moment: what was acknowledged is there, and index and data agree.
//!
//! The test runs itself as a child that works and says what was acknowledged, and kills it in the middle.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{bytes, options, small_chunks};
use storage::records::{Batch, Records, Table};
use storage::store::{AddOptions, Pin, Settings, Store};
use storage::{Cid, LocalBlocks, unixfs};

/// Where the child works; it does nothing without.
const DIR: &str = "CARDUME_CRASH_DIR";
/// How often the child is killed. More by hand: `CARDUME_KILLS=300 cargo test -p storage --test crash`.
const KILLS: u64 = 12;

#[test]
fn a_killed_store_keeps_what_it_acknowledged() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let kills = std::env::var("CARDUME_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let mut acknowledged = BTreeSet::new();
    for round in 0..kills {
        let mut child = start(home.path(), round);
        let output = BufReader::new(child.stdout.take().expect("is piped"));
        // A number of lines rather than a time, so that a slow machine is killed at the same places.
        let lines = 1 + (round * 7 + 3) % 11;
        let mut seen = 0;
        for line in output.lines() {
            let line = line.expect("the child writes text");
            if let Some(fact) = line.strip_prefix("done ") {
                acknowledged.insert(fact.to_owned());
                seen += 1;
                if seen == lines {
                    child.kill().expect("kills"); // SIGKILL; what else it has written is read and counts
                }
            }
        }
        child.wait().expect("ends");
        assert!(seen >= lines, "round {round}: the child ended by itself after {seen} facts");
        check(home.path(), &acknowledged, round);
    }
}

fn start(home: &Path, round: u64) -> Child {
    let this = std::env::current_exe().expect("is known");
    let mut command = Command::new(this);
    command.args(["--exact", "the_child", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(DIR, home).env("CARDUME_CRASH_ROUND", round.to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts")
}

fn check(home: &Path, acknowledged: &BTreeSet<String>, round: u64) {
    let records = Records::open(home).expect("the state database opens");
    let store = Store::open(&home.join("content"), Settings::default()).expect("the store opens");
    for fact in acknowledged {
        match fact.split_once(' ').expect("is a kind and a name") {
            ("record", key) => {
                assert!(
                    records.get(Table::OWNER, key.as_bytes()).expect("reads").is_some(),
                    "{round}: {fact}"
                );
            }
            ("content", cid) => {
                let cid = Cid::try_from(cid).expect("is a CID");
                assert!(store.block_size(&cid).expect("looks").is_some(), "{round}: {fact}");
                let checkout = store.blocking().checkout(&cid).expect("is whole");
                assert!(checkout.path().exists());
            }
            _ => panic!("{fact}"),
        }
    }
    let verified = store.blocking().verify(false).expect("verifies");
    assert_eq!(verified.damaged, 0, "round {round}: {:?}", verified.named);
    let on_disk: u64 = files(&home.join("content/data")).iter().map(|(_, length)| length).sum();
    let counted = store.usage().expect("counts").bytes;
    assert!(on_disk <= counted, "round {round}: {on_disk} bytes on disk, {counted} are known");
}

fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let entries = std::fs::read_dir(dir).expect("lists").map(|entry| entry.expect("lists"));
    entries.map(|entry| (entry.path(), entry.metadata().expect("is there").len())).collect()
}

/// The child: works until it is killed.
#[test]
#[ignore = "run by the test above"]
fn the_child() {
    let Some(home) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let round: u64 = std::env::var("CARDUME_CRASH_ROUND").expect("is set").parse().expect("is a number");
    let records = Records::open(&home).expect("opens");
    let store = Store::open(&home.join("content"), Settings::default()).expect("opens");
    let say = |fact: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "done {fact}").and_then(|()| out.flush()).expect("the parent listens");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| keep_records(&records, round, &say));
        scope.spawn(|| add_files(&store, round, &say));
        scope.spawn(|| add_trees(&store, round, &say));
        scope.spawn(|| {
            loop {
                store.blocking().collect_garbage().expect("collects");
            }
        });
    });
}

fn keep_records(records: &Records, round: u64, say: &(impl Fn(String) + Sync)) {
    for number in 0_u64.. {
        let key = format!("{round}-{number}");
        let mut batch = Batch::new();
        batch.put(Table::OWNER, key.as_bytes(), bytes(number, 300));
        batch.put(Table::WORKER, "last", key.as_bytes());
        records.commit_blocking(batch).expect("commits");
        // Most of the facts should be about content.
        if number % 16 == 0 {
            say(format!("record {key}"));
        }
    }
}

fn add_files(store: &Store, round: u64, say: &(impl Fn(String) + Sync)) {
    for number in 0.. {
        let content = bytes(round * 1000 + number, 50_000 + 40_000 * (number % 9) as usize);
        let pin = (number % 3 == 0).then(|| "kept".to_owned());
        let options = AddOptions { pin: pin.clone(), ..options(small_chunks()) };
        let added = store.blocking().add_reader(&mut &content[..], None, &options).expect("adds");
        if pin.is_some() {
            say(format!("content {}", added.cid));
        }
    }
}

fn add_trees(store: &Store, round: u64, say: &(impl Fn(String) + Sync)) {
    for number in 0_u64.. {
        let (stdout, shared) = (format!("{round} {number}\n"), bytes(number % 4, 2000));
        let files: [(&str, &[u8]); 3] =
            [("stdout", stdout.as_bytes()), ("exitCode", b"0"), ("outputs/same", &shared)];
        let (root, blocks) = unixfs::small_tree(&files).expect("builds");
        let pins = if number % 2 == 0 { vec![Pin::new(root, "kept")] } else { Vec::new() };
        store.blocking().put_pinned(&blocks, &pins).expect("stores");
        if !pins.is_empty() {
            say(format!("content {root}"));
        }
    }
}
