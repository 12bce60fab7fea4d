//! A job's output while it runs, and after.

use std::fs;

use tokio::io::{AsyncBufReadExt, BufReader};

use super::guests;
use super::jobs::{job, state, submit};
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
