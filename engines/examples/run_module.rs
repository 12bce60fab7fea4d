//! Runs a WASI module through the engine, as a job of the node's own user:
//! `cargo run --release -p engines --example run_module -- MODULE.wasm [ARGUMENT]…`.

use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use engines::*;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|mode| mode == "runner") {
        return runner::main();
    }
    match tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| runtime.block_on(run())) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<ExitCode, Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = PathBuf::from(args.next().ok_or("which module?")?);
    let dir = tempfile::tempdir()?;
    let below = |name: &str| dir.path().join(name);
    let engine = WasmEngine::new(Settings::new(&below("inputs"), &below("outputs"), &below("cache")))?;
    let task = Task {
        execution: job::ExecutionId([1; 16]),
        class: TrustClass::Own,
        kind: TaskKind::Wasm {
            module: ModuleSource { cid: job::Cid::default(), path },
            entrypoint: "_start".into(),
            args: args.collect(),
        },
        env: vec![],
        inputs: vec![],
        outputs: vec![],
        limits: Limits { memory_bytes: 4 << 30, ..Limits::default() },
        work_dir: below("work"),
    };
    let began = Instant::now();
    let prepared = engine.prepare(&task).await?;
    eprintln!("prepared in {:?}", began.elapsed());
    let running = engine.start(&task, &prepared).await?;
    let mut output = running.output();
    while let Some(chunk) = output.next().await? {
        match chunk.stream {
            Stream::Stdout => std::io::stdout().write_all(&chunk.bytes)?,
            Stream::Stderr => std::io::stderr().write_all(&chunk.bytes)?,
        }
    }
    let ended = running.wait().await;
    eprintln!("{:?}, {:?}", ended.outcome, ended.usage);
    engine.shutdown().await;
    Ok(if ended.outcome == Outcome::Exited(0) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
