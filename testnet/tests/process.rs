//! What happens when nodes cannot be started. Whole networks of real nodes are tested with the binary, beside `cli`.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use testnet::process::{self, UpOptions};

#[tokio::test]
async fn a_node_that_does_not_start_is_explained_by_its_log_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let program = script(dir.path(), "echo 'error: no luck today' >&2; exit 3");
    let net = dir.path().join("net");
    let error = process::up(UpOptions::new(&net, program)).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("n0 cannot be started"), "{text}");
    assert!(text.contains("exit status 3") && text.contains("no luck today"), "{text}");
    assert!(!net.exists(), "the folder is left");
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let started = dir.path().join("started");
    rustix::fs::mkfifoat(rustix::fs::CWD, &started, rustix::fs::Mode::RWXU).unwrap();
    let program = script(dir.path(), &format!("echo $$ > {}; exec sleep 1000", started.display()));
    let net = dir.path().join("net");
    let pid = {
        let up = process::up(UpOptions::new(&net, program));
        let pid = tokio::task::spawn_blocking(move || fs::read_to_string(started).unwrap());
        tokio::select! {
            result = up => panic!("ended: {result:?}"),
            pid = pid => pid.unwrap(),
        }
    };
    assert!(!net.exists(), "the folder is left");
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "the node is left");
}

#[tokio::test]
async fn a_folder_without_a_test_network_is_said_to_have_none() {
    let dir = tempfile::tempdir().unwrap();
    for error in [
        process::status(dir.path()).unwrap_err(),
        process::down(dir.path(), true).await.unwrap_err(),
        process::restart(dir.path(), "n0").await.unwrap_err(),
        process::signal(dir.path(), "n0", process::Signal::Kill).await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("there is no test network in"), "{error}");
    }
    assert!(dir.path().exists());
}

#[tokio::test]
async fn impossible_networks_are_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let net = dir.path().join("net");
    let options = |nodes, submit_only| UpOptions { nodes, submit_only, ..UpOptions::new(&net, "/bin/true") };
    for options in [options(0, 0), options(100_000, 0), options(2, 3)] {
        process::up(options).await.unwrap_err();
    }
    process::up(UpOptions::new(&net, "/nowhere/cardume")).await.unwrap_err();
    assert!(!net.exists());
}

/// A program that knows its identity, and of `serve` only this.
fn script(dir: &Path, serve: &str) -> PathBuf {
    let path = dir.join("cardume");
    let text = format!("#!/bin/sh\n[ \"$1\" = id ] && echo '{{\"peer\": \"12D3\"}}' && exit\n{serve}\n");
    // Written by another process: a test that starts one just then would inherit our open file, and a program that
    // is open for writing cannot be started.
    let write = "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
    let status = Command::new("sh").arg("-c").arg(write).arg(&path).arg(text).status().unwrap();
    assert!(status.success());
    path
}
