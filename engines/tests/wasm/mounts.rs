//! Directories of guests.

use std::fs;

use engines::{Engine as _, Excess, Limits, Outcome, PrepareError, StartError};

use crate::guests;
use crate::support::*;

/// Codes that WASI gives guests.
const ENOENT: i32 = 44;
const EPERM: i32 = 63;
const EROFS: i32 = 69;

crate::tests![
    a_file_is_found_under_its_own_name,
    a_directory_is_found_with_everything_below,
    inputs_cannot_be_written,
    inputs_are_shared_between_executions,
    results_are_plain_files_when_the_guest_has_ended,
    what_is_written_at_once_arrives_whole_in_pieces,
    files_can_be_moved_between_directories,
    links_do_not_lead_out,
    a_guest_that_writes_too_much_is_stopped,
    a_guest_that_fills_a_file_that_it_removed_is_stopped,
    directories_deeper_than_any_path_are_a_fault_of_the_guest_and_leave_nothing,
    guests_that_open_all_the_files_they_can_harm_nobody_else,
    stopped_guests_leave_what_they_wrote,
    targets_that_cannot_be_are_the_jobs_fault,
    nothing_is_left_of_executions_but_their_results,
];

async fn a_file_is_found_under_its_own_name() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::cat("data.txt"));
    task.inputs = vec![
        mount(&bench.input("flat/one", b"first"), "/in/data.txt"),
        mount(&bench.input("flat/two", b"second"), "/in/other.txt"),
    ];
    let ended = bench.run(&task).await;
    assert_eq!((&ended.outcome, text(&ended.stdout).await), (&Outcome::Exited(0), "first".to_owned()));
    task.inputs = vec![mount(&bench.input("flat/three", b"third"), "/data.txt")];
    assert_eq!(text(&bench.run(&task).await.stdout).await, "third");
}

async fn a_directory_is_found_with_everything_below() {
    let bench = Bench::new();
    bench.input("tree/sub/deep/file", b"deep");
    let mut task = bench.task(&guests::cat("sub/deep/file"));
    task.inputs = vec![mount(&bench.dir.path().join("inputs/tree"), "/data")];
    let ended = bench.run(&task).await;
    assert_eq!((&ended.outcome, text(&ended.stdout).await), (&Outcome::Exited(0), "deep".to_owned()));
}

async fn inputs_cannot_be_written() {
    let bench = Bench::new();
    let file = bench.input("tree/file", b"as it was");
    let mut task = bench.task(&guests::create(3, "file"));
    for inputs in
        [vec![mount(&bench.dir.path().join("inputs/tree"), "/data")], vec![mount(&file, "/data/file")]]
    {
        task.inputs = inputs;
        let ended = bench.run(&task).await;
        assert!(matches!(ended.outcome, Outcome::Exited(EPERM | EROFS)), "{:?}", ended.outcome);
    }
    assert_eq!(fs::read(file).unwrap(), b"as it was");
}

async fn inputs_are_shared_between_executions() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::cat("x"));
    task.inputs = vec![mount(&bench.input("flat/x", b"x"), "/in/x")];
    for _ in 0..10 {
        assert_eq!(text(&bench.run(&task).await.stdout).await, "x");
    }
    let staged = fs::read_dir(bench.dir.path().join("inputs/.staged")).unwrap().count();
    assert_eq!(staged, 1);
    // Something else under the same path is seen as such.
    fs::remove_file(bench.dir.path().join("inputs/flat/x")).unwrap();
    bench.input("flat/x", b"new");
    assert_eq!(text(&bench.run(&task).await.stdout).await, "new");
}

async fn results_are_plain_files_when_the_guest_has_ended() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::create(4, "made"));
    task.outputs = vec![output(&bench, "first"), output(&bench, "second")];
    assert_eq!(bench.run(&task).await.outcome, Outcome::Exited(0));
    assert_eq!(fs::read(task.outputs[1].path.join("made")).unwrap(), b"hello\n");
    assert_eq!(fs::read_dir(&task.outputs[0].path).unwrap().count(), 0);
    let metadata = fs::metadata(task.outputs[1].path.join("made")).unwrap();
    assert_eq!(
        std::os::unix::fs::MetadataExt::uid(&metadata),
        rustix::process::geteuid().as_raw(),
        "results belong to the node"
    );
}

async fn what_is_written_at_once_arrives_whole_in_pieces() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::write_at_once());
    task.outputs = vec![output(&bench, "out")];
    assert_eq!(bench.run(&task).await.outcome, Outcome::Exited(3));
    assert_eq!(fs::metadata(task.outputs[0].path.join("big")).unwrap().len(), 3 << 20);
}

async fn files_can_be_moved_between_directories() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::rename());
    task.outputs = vec![output(&bench, "out")];
    assert_eq!(bench.run(&task).await.outcome, Outcome::Exited(0));
    assert!(task.outputs[0].path.join("b/y").is_file());
    assert!(!task.outputs[0].path.join("a/x").exists());
}

async fn links_do_not_lead_out() {
    let bench = Bench::new();
    for (target, through) in
        [("/etc", "link/passwd"), ("../../../../../../etc", "link/passwd"), ("..", "link/0")]
    {
        let mut task = bench.task(&guests::escape_by_link(target, through));
        task.outputs = vec![output(&bench, "out")];
        let ended = bench.run(&task).await;
        assert!(matches!(ended.outcome, Outcome::Exited(EPERM | ENOENT)), "{target}: {:?}", ended.outcome);
        fs::remove_dir_all(&task.outputs[0].path).unwrap();
    }
}

async fn a_guest_that_writes_too_much_is_stopped() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::fill_disk());
    task.outputs = vec![output(&bench, "out")];
    task.limits = Limits { output_bytes: 4 << 20, ..Limits::default() };
    let ended = within(bench.run(&task)).await;
    assert_eq!(ended.outcome, Outcome::OutputLimit(Excess::Bytes));
}

async fn a_guest_that_fills_a_file_that_it_removed_is_stopped() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::fill_removed_file());
    task.outputs = vec![output(&bench, "out")];
    task.limits = Limits { output_bytes: 4 << 20, ..Limits::default() };
    let ended = within(bench.run(&task)).await;
    assert_eq!(ended.outcome, Outcome::OutputLimit(Excess::Removed));
}

async fn directories_deeper_than_any_path_are_a_fault_of_the_guest_and_leave_nothing() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::nest(2_500));
    task.outputs = vec![output(&bench, "out")];
    let ended = within(bench.run(&task)).await;
    assert_eq!(ended.outcome, Outcome::OutputLimit(Excess::Depth));
    assert_eq!(fs::read_dir(&task.outputs[0].path).unwrap().count(), 0);
    assert_eq!(fs::read_dir(bench.dir.path().join("outputs/own")).unwrap().count(), 0);
}

async fn guests_that_open_all_the_files_they_can_harm_nobody_else() {
    let bench = Bench::with(|settings| settings.slots = 64);
    let mut hoarding = Vec::new();
    for number in 0..40 {
        let mut task = bench.task(&guests::hoard_files(500));
        task.outputs = vec![output(&bench, &format!("out-{number}"))];
        hoarding.push(bench.start(&task).await);
    }
    for running in &hoarding {
        // Where the system allows few files, it ends instead.
        within(running.output().next()).await.unwrap();
    }
    // A module that the runner does not have yet, and directories: both come as descriptors.
    let mut task = bench.task(&guests::create(3, "made"));
    task.outputs = vec![output(&bench, "last")];
    assert_eq!(within(bench.run(&task)).await.outcome, Outcome::Exited(0));
    for running in hoarding {
        running.stop(engines::StopReason::Cancelled);
        let outcome = within(running.wait()).await.outcome.clone();
        assert!(matches!(outcome, Outcome::Stopped | Outcome::Trapped(_)), "{outcome:?}");
    }
}

async fn stopped_guests_leave_what_they_wrote() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::fill_disk());
    task.outputs = vec![output(&bench, "out")];
    task.limits.output_bytes = u64::MAX;
    task.limits.wall = Some(std::time::Duration::from_millis(50));
    assert_eq!(within(bench.run(&task)).await.outcome, Outcome::TimedOut);
    assert!(task.outputs[0].path.join("big").is_file());
}

async fn targets_that_cannot_be_are_the_jobs_fault() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::hello());
    let file = bench.input("flat/x", b"x");
    task.inputs = vec![mount(&file, "/in/../x")];
    assert!(matches!(bench.engine.prepare(&task).await, Err(PrepareError::Job(_))));
    task.inputs = vec![];
    let prepared = bench.engine.prepare(&task).await.unwrap();
    task.inputs = vec![mount(&bench.dir.path().join("inputs/flat"), "/in"), mount(&file, "/in/x")];
    assert!(matches!(bench.engine.start(&task, &prepared).await, Err(StartError::Job(_))));
    task.inputs = vec![mount(&bench.dir.path().join("elsewhere"), "/in")];
    assert!(matches!(bench.engine.start(&task, &prepared).await, Err(StartError::Node(_))));
}

async fn nothing_is_left_of_executions_but_their_results() {
    let bench = Bench::with(|settings| settings.runner_idle = std::time::Duration::from_millis(50));
    let mut task = bench.task(&guests::create(4, "made"));
    task.inputs = vec![mount(&bench.input("flat/x", b"x"), "/in/x")];
    task.outputs = vec![output(&bench, "out")];
    bench.run(&task).await;
    assert!(!task.work_dir.exists(), "short output needs no files");
    let own = bench.dir.path().join("outputs/own");
    assert_eq!(fs::read_dir(own).unwrap().count(), 0);
    bench.engine.shutdown().await;
    drop(bench.engine);
}
