//! Measures how fast small guests run through the engine, runner children and all:
//! `cargo run --release -p engines --example hello_rate`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engines::*;

/// Executions of each measurement.
const ROUNDS: usize = 20_000;

/// Executions in flight when many are.
const PIPELINED: usize = 64;

/// Writes `hello` and a newline.
const HELLO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 100) "hello\n")
    (func (export "_start")
        (i32.store (i32.const 0) (i32.const 100))
        (i32.store (i32.const 4) (i32.const 6))
        (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|mode| mode == "runner") {
        return runner::main();
    }
    match tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| runtime.block_on(measure())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name);
    let engine = WasmEngine::new(Settings::new(&path("inputs"), &path("outputs"), &path("cache")))?;
    let task = Arc::new(task(dir.path())?);

    let began = Instant::now();
    let prepared = engine.prepare(&task).await?;
    println!("compile, new child:       {:>9.1?}", began.elapsed());
    let began = Instant::now();
    println!("sandbox:                  {:?}", engine.sandbox().await?);
    println!("runner, start to ready:   {:>9.1?}", began.elapsed());
    println!("runner, idle memory:      {:>6} KiB", resident(&engine).unwrap_or(0));

    for round in 0..2 {
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let began = Instant::now();
            run(&engine, &task, &prepared).await?;
            times.push(began.elapsed());
        }
        if round > 0 {
            times.sort();
            let at = |share: usize| times.get(times.len() * share / 1000).copied().unwrap_or(Duration::ZERO);
            println!("hello, one at a time:     p50 {:?}, p99 {:?}, p99.9 {:?}", at(500), at(990), at(999));
        }
    }
    for _ in 0..3 {
        let began = Instant::now();
        let mut workers = Vec::new();
        for _ in 0..PIPELINED {
            let (engine, task, prepared) = (engine.clone(), Arc::clone(&task), prepared.clone());
            workers.push(tokio::spawn(async move {
                for _ in 0..2 * ROUNDS / PIPELINED {
                    run(&engine, &task, &prepared).await.map_err(|error| error.to_string())?;
                }
                Ok::<(), String>(())
            }));
        }
        for worker in workers {
            worker.await??;
        }
        let rate = (2 * ROUNDS / PIPELINED * PIPELINED) as f64 / began.elapsed().as_secs_f64();
        println!("hello, {PIPELINED} in flight:      {rate:.0}/s");
    }
    println!("runner, memory after:     {:>6} KiB", resident(&engine).unwrap_or(0));
    engine.shutdown().await;
    Ok(())
}

async fn run(
    engine: &WasmEngine,
    task: &Task,
    prepared: &Prepared,
) -> Result<(), Box<dyn std::error::Error>> {
    let ended = engine.start(task, prepared).await?.wait().await;
    match (&ended.outcome, &ended.stdout.kept) {
        (Outcome::Exited(0), Kept::Inline(bytes)) if bytes == "hello\n" => Ok(()),
        _ => Err(format!("{ended:?}").into()),
    }
}

fn task(dir: &Path) -> Result<Task, Box<dyn std::error::Error>> {
    let path = dir.join("hello.wasm");
    std::fs::write(&path, wat::parse_str(HELLO)?)?;
    let module = ModuleSource { cid: job::Cid::default(), path };
    Ok(Task {
        execution: job::ExecutionId([1; 16]),
        class: TrustClass::Own,
        kind: TaskKind::Wasm { module, entrypoint: "_start".into(), args: vec![] },
        env: vec![],
        inputs: vec![],
        outputs: vec![],
        limits: Limits { wall: Some(Duration::from_secs(10)), ..Limits::default() },
        work_dir: dir.join("work"),
    })
}

/// Resident memory of the runner, in KiB.
fn resident(engine: &WasmEngine) -> Option<u64> {
    let process = engine.runner_process(TrustClass::Own)?;
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
