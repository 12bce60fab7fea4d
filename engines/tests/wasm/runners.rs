//! Runner children that end, hang, idle and are replaced.

use std::time::Duration;

use engines::{Engine as _, Outcome, StartError, TrustClass};
use rustix::process::{Pid, Signal, kill_process};

use crate::guests;
use crate::support::*;

crate::tests![
    a_runner_that_is_killed_loses_its_executions_and_is_replaced,
    a_runner_that_hangs_is_ended_and_replaced,
    an_idle_runner_ends,
    classes_have_runners_of_their_own,
    shutdown_ends_everything,
    dropping_the_engine_ends_its_runners,
    a_program_that_is_no_runner_is_the_nodes_fault,
    nothing_survives_a_restart,
];

fn runner(bench: &Bench) -> Pid {
    let process = bench.engine.runner_process(TrustClass::Own).unwrap();
    Pid::from_raw(process.try_into().unwrap()).unwrap()
}

async fn a_runner_that_is_killed_loses_its_executions_and_is_replaced() {
    let bench = Bench::new();
    let running =
        [bench.start(&bench.task(guests::SPIN)).await, bench.start(&bench.task(&guests::sleep())).await];
    let first = runner(&bench);
    kill_process(first, Signal::KILL).unwrap();
    for running in running {
        let ended = within(running.wait()).await;
        let Outcome::Lost(how) = &ended.outcome else { panic!("{:?}", ended.outcome) };
        assert!(how.contains("signal 9"), "{how}");
    }
    assert_eq!(within(bench.run(&bench.task(&guests::hello()))).await.outcome, Outcome::Exited(0));
    assert_ne!(runner(&bench), first);
}

async fn a_runner_that_hangs_is_ended_and_replaced() {
    let bench = Bench::with(|settings| settings.heartbeat = Duration::from_millis(100));
    let running = bench.start(&bench.task(&guests::sleep())).await;
    kill_process(runner(&bench), Signal::STOP).unwrap();
    let ended = within(running.wait()).await;
    let Outcome::Lost(how) = &ended.outcome else { panic!("{:?}", ended.outcome) };
    assert!(how.contains("did not answer"), "{how}");
    // On a loaded machine the next may be found hung, too; in the end one is not.
    for _ in 0..10 {
        if within(bench.run(&bench.task(&guests::hello()))).await.outcome == Outcome::Exited(0) {
            return;
        }
    }
    panic!("no runner answers");
}

async fn an_idle_runner_ends() {
    let bench = Bench::with(|settings| settings.runner_idle = Duration::from_millis(20));
    bench.run(&bench.task(&guests::hello())).await;
    within(async {
        while bench.engine.runner_process(TrustClass::Own).is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(bench.run(&bench.task(&guests::hello())).await.outcome, Outcome::Exited(0));
}

async fn classes_have_runners_of_their_own() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::hello());
    let mut processes = Vec::new();
    for class in TrustClass::ALL {
        task.class = class;
        bench.run(&task).await;
        processes.push(bench.engine.runner_process(class).unwrap());
    }
    processes.sort_unstable();
    processes.dedup();
    assert_eq!(processes.len(), TrustClass::ALL.len());
}

async fn shutdown_ends_everything() {
    let bench = Bench::new();
    let task = bench.task(guests::SPIN);
    let running = bench.start(&task).await;
    let process = runner(&bench);
    within(bench.engine.shutdown()).await;
    assert!(matches!(within(running.wait()).await.outcome, Outcome::Lost(_)));
    assert!(rustix::process::test_kill_process(process).is_err(), "the runner is gone");
    let prepared = bench.engine.prepare(&task).await.unwrap();
    assert!(matches!(bench.engine.start(&task, &prepared).await, Err(StartError::Node(_))));
}

async fn dropping_the_engine_ends_its_runners() {
    let bench = Bench::new();
    let running = bench.start(&bench.task(guests::SPIN)).await;
    drop(bench.engine);
    assert!(matches!(within(running.wait()).await.outcome, Outcome::Lost(_)));
}

async fn a_program_that_is_no_runner_is_the_nodes_fault() {
    let bench = Bench::with(|settings| settings.runner.program = "/bin/false".into());
    assert!(matches!(bench.engine.sandbox().await, Err(StartError::Node(_))));
    let task = bench.task(&guests::hello());
    assert!(matches!(bench.engine.prepare(&task).await, Err(engines::PrepareError::Node(_))));
}

async fn nothing_survives_a_restart() {
    let bench = Bench::new();
    let left = bench.dir.path().join("outputs/own/e-left");
    std::fs::create_dir_all(&left).unwrap();
    bench.engine.shutdown().await;
    let path = |name: &str| bench.dir.path().join(name);
    let settings = engines::Settings::new(&path("inputs"), &path("outputs"), &path("cache"));
    let again = engines::WasmEngine::new(settings).unwrap();
    assert!(!left.exists());
    assert!(again.reattach(&[bench.task(&guests::hello())]).await.is_empty());
}
