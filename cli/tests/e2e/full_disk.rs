//! A disk that takes no more for a while: no file of the node may grow beyond its first bytes, so that no
//! transaction can be written, and then it may again.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};

use super::guests;
use super::jobs::{check_worked, ended, job, submit, until};
use super::net::{Net, PROGRAM, within};

/// A program whose writes beyond a limit fail, as on a full disk, instead of ending it.
fn program(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("cardume");
    std::fs::write(&path, format!("#!/bin/sh\ntrap '' XFSZ\nexec '{PROGRAM}' \"$@\"\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path
}

async fn up(folder: &Path, nodes: usize) -> Net {
    let program = program(folder);
    Net::with(nodes, 1, json!({}), |options| options.program = program).await
}

/// Lets the files of a node grow to so many bytes; as far as before with `None`.
fn limit(net: &Net, index: usize, bytes: Option<u64>) {
    let pid = net.node(index).pid.and_then(|pid| Pid::from_raw(pid.try_into().unwrap()));
    let maximum = getrlimit(Resource::Fsize).maximum;
    let limit = Rlimit { current: bytes.or(maximum), maximum };
    prlimit(pid, Resource::Fsize, limit).unwrap();
}

async fn refused(net: &Net, job: &Value) -> String {
    let refused = within("submit", async {
        match net.client(0).submit(job).await {
            Ok(id) => anyhow::bail!("{id} was accepted, and nothing can be written"),
            Err(error) => Ok(error),
        }
    });
    refused.await.to_string()
}

#[tokio::test]
async fn an_owner_whose_disk_was_full_keeps_what_it_accepted_and_accepts_again() {
    let folder = tempfile::tempdir().unwrap();
    let net = up(folder.path(), 3).await;
    let module = net.add(0, guests::works(2_000, 0, 100)).await;
    let owner = net.client(0);
    let accepted = submit(&owner, &job(&module, 8)).await;
    until(&owner, &accepted, |now| now.running > 0).await;

    limit(&net, 0, Some(4096));
    refused(&net, &job(&module, 1)).await;
    limit(&net, 0, None);

    check_worked(&ended(&owner, &accepted).await, 8);
    let next = submit(&owner, &job(&module, 2)).await;
    check_worked(&ended(&owner, &next).await, 2);
    net.down().await;
}

#[tokio::test]
async fn a_worker_whose_disk_was_full_tells_what_it_lost_and_works_again() {
    let folder = tempfile::tempdir().unwrap();
    let net = up(folder.path(), 2).await;
    let module = net.add(0, guests::works(50, 5_000, 1)).await;
    let owner = net.client(0);
    let lost = submit(&owner, &job(&module, 3)).await;
    until(&owner, &lost, |now| now.completed == 1 && now.running == 2).await;

    // Enough for the log, and too little for any transaction.
    limit(&net, 1, Some(16 << 10));
    let late = submit(&owner, &job(&module, 1)).await;
    within("the failure", async {
        while !std::fs::read_to_string(&net.node(1).log)?.contains("the record could not be written") {
            // Nobody tells when a log grows.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    })
    .await;
    limit(&net, 1, None);

    check_worked(&ended(&owner, &lost).await, 3);
    check_worked(&ended(&owner, &late).await, 1);
    net.down().await;
}
