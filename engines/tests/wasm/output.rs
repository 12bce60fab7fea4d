//! Standard output and error.

use std::sync::Arc;

use engines::{Kept, Limits, Outcome, StopReason, Stream};

use crate::guests;
use crate::support::*;

crate::tests![
    long_output_is_kept_whole_in_a_file,
    output_beyond_the_cap_is_discarded_and_the_guest_goes_on,
    output_is_seen_while_the_guest_runs,
    followers_see_everything_whenever_they_come,
    a_slow_follower_slows_nobody,
];

async fn long_output_is_kept_whole_in_a_file() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::flood(3000));
    task.limits = Limits { stdout_bytes: 8 << 20, ..Limits::default() };
    let ended = within(bench.run(&task)).await;
    assert_eq!(ended.outcome, Outcome::Exited(0));
    assert_eq!((ended.stdout.length, ended.stdout.truncated()), (3000 << 10, false));
    assert!(matches!(&ended.stdout.kept, Kept::File(path) if path.starts_with(&task.work_dir)));
    let bytes = ended.stdout.read(8 << 20).await.unwrap();
    for (index, piece) in bytes.chunks(1024).enumerate() {
        assert!(piece.iter().all(|&byte| byte == b'a' + (index % 26) as u8), "piece {index}");
    }
    assert_eq!(text(&ended.stderr).await, "done\n");
}

async fn output_beyond_the_cap_is_discarded_and_the_guest_goes_on() {
    let bench = Bench::new();
    for cap in [0, 10, 100 << 10] {
        let mut task = bench.task(&guests::flood(20_000));
        task.limits = Limits { stdout_bytes: cap, ..Limits::default() };
        let ended = within(bench.run(&task)).await;
        assert_eq!(ended.outcome, Outcome::Exited(0));
        assert_eq!((ended.stdout.length, ended.stdout.produced), (cap, 20_000 << 10));
        assert!(ended.stdout.truncated());
        assert_eq!(text(&ended.stderr).await, "done\n");
    }
}

async fn output_is_seen_while_the_guest_runs() {
    let bench = Bench::new();
    let running = bench.start(&bench.task(&guests::greet_and_sleep())).await;
    let mut output = running.output();
    let chunk = within(output.next()).await.unwrap().unwrap();
    assert_eq!((chunk.stream, chunk.offset, &chunk.bytes[..]), (Stream::Stdout, 0, &b"hello\n"[..]));
    assert!(running.ended().is_none());
    running.stop(StopReason::Cancelled);
    assert_eq!(within(output.next()).await.unwrap(), None);
    let ended = running.wait().await;
    assert_eq!((&ended.outcome, text(&ended.stdout).await), (&Outcome::Stopped, "hello\n".to_owned()));
}

async fn followers_see_everything_whenever_they_come() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::flood(500));
    task.limits = Limits { stdout_bytes: 1 << 20, ..Limits::default() };
    let running = bench.start(&task).await;
    let early = tokio::spawn(count(running.output()));
    let ended = within(running.wait()).await;
    let late = count(running.output()).await;
    assert_eq!(within(early).await.unwrap(), [500 << 10, 5]);
    assert_eq!(late, [500 << 10, 5]);
    assert_eq!(ended.stdout.length, 500 << 10);
}

async fn count(mut output: engines::OutputReader) -> [u64; 2] {
    let mut counts = [0, 0];
    while let Some(chunk) = output.next().await.unwrap() {
        let count = &mut counts[(chunk.stream == Stream::Stderr) as usize];
        assert_eq!(chunk.offset, *count);
        *count += chunk.bytes.len() as u64;
    }
    counts
}

async fn a_slow_follower_slows_nobody() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::flood(4000));
    task.limits = Limits { stdout_bytes: 8 << 20, ..Limits::default() };
    let running = bench.start(&task).await;
    let mut never_reads = running.output();
    let ended: Arc<_> = within(running.wait()).await;
    assert_eq!(ended.stdout.length, 4000 << 10);
    assert!(never_reads.next().await.unwrap().is_some());
}
