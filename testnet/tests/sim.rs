//! The two machines under the simulator.

use std::ops::Range;
use std::sync::Arc;

use gossip::bug::Bug;
use testnet::sim::{Options, Sweep, Tweak, run, sweep};

/// Seeds of every test run; more by `cargo run -p testnet --example sim -- --seeds A..B`.
const SEEDS: Range<u64> = 0..10_000;

#[test]
fn ten_thousand_histories_keep_every_invariant_and_come_to_rest() {
    let result = sweep(SEEDS, &Options::default(), threads(), 3);
    assert_no_failures(&result);
    println!("{} steps, {} virtual hours: {:?}", result.steps, result.seconds / 3600, result.seen);
    // The histories are worth something only when they are full of trouble and of work done all the same.
    let seen = result.seen;
    assert!(seen.completed > 5_000, "{seen:?}");
    assert!(seen.crashes > 10_000 && seen.disk_errors > 1_000 && seen.awarded_again > 5_000, "{seen:?}");
    assert!(seen.lies > 100_000, "{seen:?}");
}

#[test]
fn one_seed_gives_one_history() {
    for seed in 0..40 {
        let (first, again) = (run(seed, &Options::default()), run(seed, &Options::default()));
        assert_eq!((first.hash, first.steps), (again.hash, again.steps), "seed {seed}");
    }
    assert_ne!(run(1, &Options::default()).hash, run(2, &Options::default()).hash);
}

/// Each bug is found within so many seeds, most of them within the first dozens.
const SEEDS_PER_BUG: Range<u64> = 0..3_000;

/// What a bug breaks, by the names of the rules: a seed that fails by another one has found something else.
macro_rules! planted_bug_is_found {
    ($($name:ident: $bug:ident breaks [$($rule:literal),+ $(,)?]),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                breaks(Bug::$bug, &[$($rule),+]);
            }
        )+
    };
}

planted_bug_is_found! {
    a_worker_without_fencing_is_found: NoFencing breaks [
        "no command older than the newest fence or epoch is obeyed",
        "an award answers a message of this start",
        "an award answers a message no older than a lease",
        "a Retry: never partition is started once",
        "what a worker knows to be committed does not start",
    ],
    a_lease_that_runs_from_receipt_is_found: LeaseFromReceipt breaks [
        "an award answers a message of this start",
        "an award answers a message no older than a lease",
        "a Retry: never partition is started once",
        "what a worker knows to be committed does not start",
    ],
    an_award_that_is_not_recorded_is_found: AwardNotRecorded breaks ["an award is on disk before it is sent"],
    a_second_commit_is_found: DoubleCommit breaks ["a partition is committed at most once"],
    a_forgotten_stop_is_found: ForgetStop breaks [
        "every accepted job ends",
        "a job with nothing wrong with it completes",
        "lasting jobs run once the faults end",
        "nothing is left over at the end",
    ],
    an_overcommitted_worker_is_found: Overcommit breaks ["capacity is never exceeded"],
    a_retried_never_partition_is_found: NeverRetried breaks ["a Retry: never partition is started once"],
    an_epoch_that_is_not_recorded_is_found: EpochNotRecorded breaks ["epochs rise"],
    receipts_that_are_not_recorded_are_found: ReceiptsNotRecorded breaks ["a receipt that was sent is not lost"],
    a_commit_before_the_result_is_held_is_found: CommitBeforeHeld breaks ["a committed result is held"],
    an_owner_that_does_not_reconcile_is_found: NoReconcile breaks [
        "a Retry: never partition is started once",
        "every accepted job ends",
        "a job with nothing wrong with it completes",
    ],
    a_forgotten_timeout_is_found: NoTimeout breaks ["nothing runs past its timeout"],
    a_never_execution_that_outlives_its_lease_is_found: NeverOutlivesLease breaks [
        "a Retry: never program ends with its lease",
    ],
    peers_that_are_not_asked_are_found: SilentNotAsked breaks [
        "every accepted job ends",
        "a job with nothing wrong with it completes",
    ],
    an_owner_that_believes_anyone_is_found: BelieveAnyone breaks ["what an honest worker ran is what is committed"],
    a_worker_that_obeys_anyone_is_found: ObeyAnyone breaks ["only a job's owner gives orders about it"],
}

fn breaks(bug: Bug, rules: &[&str]) {
    let result = sweep(SEEDS_PER_BUG, &planted(bug), threads(), 1);
    let found = result.failures.first();
    let found = found.unwrap_or_else(|| panic!("{bug:?} hides from {} seeds", result.seeds));
    println!("{found}");
    let rule = found.failure.as_ref().map_or("", |failure| failure.rule);
    assert!(rules.contains(&rule), "{bug:?} broke {rule:?} in seed {}, not one of {rules:?}", found.seed);
    // Without the bug the same seed keeps every rule.
    assert!(run(found.seed, &Options::default()).failure.is_none());
}

fn planted(bug: Bug) -> Options {
    let tweak: Tweak = Arc::new(move |owner, worker| (owner.bug, worker.bug) = (Some(bug), Some(bug)));
    Options { tweak: Some(tweak), ..Options::default() }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn assert_no_failures(result: &Sweep) {
    let failures: Vec<String> = result.failures.iter().map(ToString::to_string).collect();
    assert!(
        failures.is_empty(),
        "{} of {} seeds failed:\n{}",
        failures.len(),
        result.seeds,
        failures.join("\n")
    );
}
