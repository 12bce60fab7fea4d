//! How executions end, and what they are held to.

use std::time::Duration;

use engines::{Limits, Outcome, StopReason};

use crate::guests;
use crate::support::*;

crate::tests![
    a_guest_that_returns_has_exited_with_0,
    exit_codes_come_back_as_they_are,
    arguments_and_environment_reach_the_guest,
    standard_input_is_at_its_end,
    a_trap_is_told_with_its_place,
    endless_recursion_is_a_trap,
    memory_beyond_the_limit_is_refused,
    a_guest_that_fails_without_memory_is_out_of_memory,
    a_spinning_guest_is_timed_out,
    a_sleeping_guest_is_timed_out,
    spinning_and_sleeping_guests_stop_when_asked,
    neighbours_of_spinning_guests_are_served,
    executions_beyond_the_slots_wait_for_one,
    what_was_used_is_told,
    a_guest_takes_no_more_than_its_share_of_a_processor,
];

async fn a_guest_that_returns_has_exited_with_0() {
    let bench = Bench::new();
    let ended = bench.run(&bench.task(&guests::hello())).await;
    assert_eq!(ended.outcome, Outcome::Exited(0));
    assert_eq!(text(&ended.stdout).await, "hello\n");
    assert_eq!(ended.stderr.length, 0);
    assert!(ended.ended >= ended.started);
}

async fn exit_codes_come_back_as_they_are() {
    let bench = Bench::new();
    for code in [0, 1, 7, 126, 255] {
        let ended = bench.run(&bench.task(&guests::exit(code))).await;
        assert_eq!(ended.outcome, Outcome::Exited(code));
    }
}

async fn arguments_and_environment_reach_the_guest() {
    let bench = Bench::new();
    let mut task = with_args(bench.task(&guests::echo_arguments()), &["one", "zwei drei"]);
    task.env = vec![("A".into(), "1".into()), ("PATH_LIKE".into(), "x=y".into())];
    let ended = bench.run(&task).await;
    assert_eq!(text(&ended.stdout).await, "\0one\0zwei drei\0A=1\0PATH_LIKE=x=y\0");
}

async fn standard_input_is_at_its_end() {
    let bench = Bench::new();
    let ended = bench.run(&bench.task(&guests::read_stdin())).await;
    assert_eq!(ended.outcome, Outcome::Exited(40));
}

async fn a_trap_is_told_with_its_place() {
    let bench = Bench::new();
    let ended = bench.run(&bench.task(guests::TRAP)).await;
    let Outcome::Trapped(text) = &ended.outcome else { panic!("{:?}", ended.outcome) };
    assert!(text.contains("unreachable") && text.contains("backtrace"), "{text}");
}

async fn endless_recursion_is_a_trap() {
    let bench = Bench::new();
    let ended = bench.run(&bench.task(guests::RECURSE)).await;
    let Outcome::Trapped(text) = &ended.outcome else { panic!("{:?}", ended.outcome) };
    assert!(text.contains("call stack exhausted"), "{text}");
}

fn with_memory(mib: u64) -> Limits {
    Limits { memory_bytes: mib << 20, ..Limits::default() }
}

async fn memory_beyond_the_limit_is_refused() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::grow_and_count());
    task.limits = with_memory(32);
    let ended = bench.run(&task).await;
    assert_eq!(ended.outcome, Outcome::Exited(31));
    // 31 MiB were granted on top of 128 KiB.
    assert_eq!(ended.usage.peak_memory_bytes, (31 << 20) + (128 << 10));
}

async fn a_guest_that_fails_without_memory_is_out_of_memory() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::grow_and_trap());
    task.limits = with_memory(16);
    assert_eq!(bench.run(&task).await.outcome, Outcome::OutOfMemory);
}

fn with_wall(wall: Duration) -> Limits {
    Limits { wall: Some(wall), ..Limits::default() }
}

async fn a_spinning_guest_is_timed_out() {
    let bench = Bench::new();
    let mut task = bench.task(guests::SPIN);
    task.limits = with_wall(Duration::from_millis(200));
    let ended = within(bench.run(&task)).await;
    assert_eq!(ended.outcome, Outcome::TimedOut);
    assert!(ended.usage.wall >= Duration::from_millis(200));
}

async fn a_sleeping_guest_is_timed_out() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::sleep());
    task.limits = with_wall(Duration::from_millis(100));
    assert_eq!(within(bench.run(&task)).await.outcome, Outcome::TimedOut);
}

async fn spinning_and_sleeping_guests_stop_when_asked() {
    let bench = Bench::new();
    for guest in [guests::SPIN, &guests::sleep()] {
        for (reason, outcome) in
            [(StopReason::Cancelled, Outcome::Stopped), (StopReason::TimedOut, Outcome::TimedOut)]
        {
            let running = bench.start(&bench.task(guest)).await;
            running.stop(reason);
            running.stop(StopReason::DiskFull); // the first reason counts
            assert_eq!(within(running.wait()).await.outcome, outcome);
        }
    }
}

async fn neighbours_of_spinning_guests_are_served() {
    let bench = Bench::with(|settings| settings.threads = 2);
    let mut spinning = Vec::new();
    for _ in 0..4 {
        spinning.push(bench.start(&bench.task(guests::SPIN)).await);
    }
    for _ in 0..20 {
        let ended = within(bench.run(&bench.task(&guests::hello()))).await;
        assert_eq!(ended.outcome, Outcome::Exited(0));
    }
    for running in spinning {
        assert!(running.ended().is_none());
        running.stop(StopReason::Cancelled);
        within(running.wait()).await;
    }
}

async fn executions_beyond_the_slots_wait_for_one() {
    let bench = Bench::with(|settings| settings.slots = 2);
    let first = bench.start(&bench.task(guests::SPIN)).await;
    let second = bench.start(&bench.task(guests::SPIN)).await;
    let task = bench.task(&guests::hello());
    let third = tokio::spawn({
        let (engine, task) = (bench.engine.clone(), task.clone());
        async move {
            use engines::Engine as _;
            let prepared = engine.prepare(&task).await.unwrap();
            engine.start(&task, &prepared).await.unwrap().wait().await
        }
    });
    tokio::task::yield_now().await;
    assert!(!third.is_finished());
    first.stop(StopReason::Cancelled);
    assert_eq!(within(third).await.unwrap().outcome, Outcome::Exited(0));
    second.stop(StopReason::Cancelled);
    within(second.wait()).await;
}

async fn what_was_used_is_told() {
    let bench = Bench::new();
    let mut task = bench.task(guests::SPIN);
    task.limits = with_wall(Duration::from_millis(300));
    let usage = within(bench.run(&task)).await.usage;
    assert!(usage.cpu > Duration::ZERO && usage.cpu <= usage.wall, "{usage:?}");
    assert_eq!(usage.peak_memory_bytes, 64 << 10);
}

async fn a_guest_takes_no_more_than_its_share_of_a_processor() {
    let bench = Bench::new();
    let mut task = bench.task(guests::SPIN);
    task.limits = Limits { cpu_milli: 10, ..with_wall(Duration::from_secs(2)) };
    let usage = within(bench.run(&task)).await.usage;
    // 20 ms are its share, and it may begin 300 ms ahead; without a limit it takes what the machine has.
    assert!(usage.cpu < Duration::from_millis(400), "{usage:?}");
}
