//! Preparing: what is no module, what costs too much, and what is compiled only once.

use std::time::{Duration, Instant};

use engines::{Engine as _, Outcome, PrepareError, Support, TaskKind, TrustClass};

use crate::guests;
use crate::support::*;

crate::tests![
    what_is_no_module_is_the_jobs_fault,
    a_foreign_import_is_named,
    a_missing_entrypoint_is_told_with_those_there_are,
    other_entrypoints_can_be_called,
    a_memory_that_begins_beyond_the_limit_is_the_jobs_fault,
    a_compile_bomb_ends_at_its_limit_and_the_node_goes_on,
    a_module_is_compiled_once_and_found_after_a_restart,
    classes_share_no_compiled_code,
    a_refusal_is_remembered,
    executions_of_different_modules_share_a_runner,
    arguments_that_cannot_travel_are_the_jobs_fault,
    every_class_is_supported_where_the_sandbox_is_whole,
];

fn job_error(result: Result<engines::Prepared, PrepareError>) -> String {
    match result {
        Err(PrepareError::Job(text)) => text,
        other => panic!("{other:?}"),
    }
}

async fn what_is_no_module_is_the_jobs_fault() {
    let bench = Bench::new();
    for bytes in
        [&b"#!/bin/sh\necho hello\n"[..], b"", b"\0asm", b"\0asm\x0d\0\x01\0", b"\0asm\x01\0\0\0\xff"]
    {
        let error = job_error(bench.engine.prepare(&bench.task_of(bytes)).await);
        assert!(error.starts_with("the module cannot run: it "), "{error}");
    }
}

async fn a_foreign_import_is_named() {
    let bench = Bench::new();
    let task = bench.task(r#"(module (import "env" "launch" (func)) (func (export "_start")))"#);
    assert!(job_error(bench.engine.prepare(&task).await).contains("env::launch"));
}

async fn a_missing_entrypoint_is_told_with_those_there_are() {
    let bench = Bench::new();
    let task = bench.task(r#"(module (func (export "main")))"#);
    let error = job_error(bench.engine.prepare(&task).await);
    assert!(error.contains("no function _start; it has main"), "{error}");
}

async fn other_entrypoints_can_be_called() {
    let bench = Bench::new();
    let mut task = bench.task(r#"(module (func (export "main")) (func (export "fail") unreachable))"#);
    for (name, fails) in [("main", false), ("fail", true)] {
        let TaskKind::Wasm { entrypoint, .. } = &mut task.kind else { unreachable!() };
        *entrypoint = name.into();
        assert_eq!(bench.run(&task).await.outcome != Outcome::Exited(0), fails, "{name}");
    }
}

async fn a_memory_that_begins_beyond_the_limit_is_the_jobs_fault() {
    let bench = Bench::new();
    let mut task = bench.task(r#"(module (memory 32) (func (export "_start")))"#);
    task.limits.memory_bytes = 1 << 20;
    assert!(job_error(bench.engine.prepare(&task).await).contains("2097152 bytes of memory"));
    task.limits.memory_bytes = 2 << 20;
    assert_eq!(bench.run(&task).await.outcome, Outcome::Exited(0));
}

/// Functions of many small branches over the same few locals: short to write, dear to compile.
fn compile_bomb(functions: usize, statements: usize) -> Vec<u8> {
    let mut body = vec![1, 4, 0x7e]; // four locals of type i64
    for statement in 0..statements {
        let (a, b) = ((statement % 5) as u8, (statement * 7 % 5) as u8);
        // if a == 0 { b = a * (b + 9) } else { a = b ^ rotl(a, 3) }
        body.extend([0x20, a, 0x50, 0x04, 0x40, 0x20, a, 0x20, b, 0x42, 9, 0x7c, 0x7e, 0x21, b]);
        body.extend([0x05, 0x20, b, 0x20, a, 0x42, 3, 0x89, 0x85, 0x21, a, 0x0b]);
    }
    body.extend([0x20, 0, 0x0b]);
    let sized = |bytes: &[u8]| [leb(bytes.len()), bytes.to_vec()].concat();
    let section = |id: u8, bytes: &[u8]| [vec![id], sized(bytes)].concat();
    let count = leb(functions + 1);
    let types = [2, 0x60, 1, 0x7e, 1, 0x7e, 0x60, 0, 0]; // (i64) -> i64, and () -> ()
    let declared = [count.clone(), vec![0; functions], vec![1]].concat();
    let exports = [&[1][..], &sized(b"_start"), &[0], &leb(functions)].concat();
    let code = [count, sized(&body).repeat(functions), vec![2, 0, 0x0b]].concat();
    let sections = [section(1, &types), section(3, &declared), section(7, &exports), section(10, &code)];
    [b"\0asm\x01\0\0\0".to_vec(), sections.concat()].concat()
}

fn leb(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

async fn a_compile_bomb_ends_at_its_limit_and_the_node_goes_on() {
    let bench = Bench::with(|settings| settings.compile_cpu = Some(Duration::from_secs(5)));
    let mut bomb = bench.task_of(&compile_bomb(24, 40_000));
    bomb.class = TrustClass::Anyone;
    let prepared = tokio::spawn({
        let (engine, bomb) = (bench.engine.clone(), bomb.clone());
        async move { engine.prepare(&bomb).await }
    });
    match within(prepared).await.unwrap() {
        Err(PrepareError::Limit(text)) => assert!(text.contains("compiling the module took"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.run(&bench.task(&guests::hello())).await.outcome, Outcome::Exited(0));
}

async fn a_module_is_compiled_once_and_found_after_a_restart() {
    let bench = Bench::new();
    let task = bench.task(&guests::hello());
    assert!(!bench.engine.is_cached(&task));
    let together: Vec<_> = (0..8)
        .map(|_| {
            let (engine, task) = (bench.engine.clone(), task.clone());
            tokio::spawn(async move { engine.prepare(&task).await.unwrap() })
        })
        .collect();
    for prepared in together {
        let prepared = prepared.await.unwrap();
        assert!(prepared.digest().starts_with("wasmtime-"));
    }
    assert!(bench.engine.is_cached(&task));
    assert_eq!(compiled_files(&bench), 1);
    // Without the module's file nothing could be compiled again.
    let TaskKind::Wasm { module, .. } = &task.kind else { unreachable!() };
    std::fs::remove_file(&module.path).unwrap();
    bench.engine.shutdown().await;
    let path = |name: &str| bench.dir.path().join(name);
    let settings = engines::Settings::new(&path("inputs"), &path("outputs"), &path("cache"));
    let again = Bench { engine: engines::WasmEngine::new(settings).unwrap(), dir: bench.dir };
    again.engine.sandbox().await.unwrap();
    assert!(again.engine.is_cached(&task));
    assert_eq!(text(&again.run(&task).await.stdout).await, "hello\n");
}

fn compiled_files(bench: &Bench) -> usize {
    let files = std::fs::read_dir(bench.dir.path().join("cache")).unwrap();
    files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|end| end == "cwasm")).count()
}

async fn classes_share_no_compiled_code() {
    let bench = Bench::new();
    let mut task = bench.task(&guests::hello());
    for (count, class) in TrustClass::ALL.into_iter().enumerate() {
        task.class = class;
        assert!(!bench.engine.is_cached(&task));
        assert_eq!(bench.run(&task).await.outcome, Outcome::Exited(0), "{class}");
        assert_eq!(compiled_files(&bench), count + 1);
    }
}

async fn a_refusal_is_remembered() {
    let bench = Bench::new();
    let task = bench.task_of(b"no module");
    let first = job_error(bench.engine.prepare(&task).await);
    // Remembered, it needs no file any more.
    let TaskKind::Wasm { module, .. } = &task.kind else { unreachable!() };
    std::fs::remove_file(&module.path).unwrap();
    assert_eq!(job_error(bench.engine.prepare(&task).await), first);
}

async fn executions_of_different_modules_share_a_runner() {
    let bench = Bench::new();
    let began = Instant::now();
    // More than a runner keeps loaded.
    for code in 0..80 {
        let ended = bench.run(&bench.task(&guests::exit(code))).await;
        assert_eq!(ended.outcome, Outcome::Exited(code));
    }
    let process = bench.engine.runner_process(TrustClass::Own);
    assert_eq!(bench.run(&bench.task(&guests::exit(3))).await.outcome, Outcome::Exited(3));
    assert_eq!(bench.engine.runner_process(TrustClass::Own), process);
    eprintln!("80 modules compiled and run in {:?}", began.elapsed());
}

async fn arguments_that_cannot_travel_are_the_jobs_fault() {
    let bench = Bench::new();
    let long = "x".repeat(200_000);
    let task = with_args(bench.task(&guests::hello()), &[&long]);
    assert!(job_error(bench.engine.prepare(&task).await).contains("more than 128 KiB"));
    let task = with_args(bench.task(&guests::hello()), &["a\0b"]);
    assert!(job_error(bench.engine.prepare(&task).await).contains("NUL"));
}

async fn every_class_is_supported_where_the_sandbox_is_whole() {
    let bench = Bench::new();
    let whole = bench.engine.sandbox().await.unwrap().fit_for_anyone();
    let mut task = bench.task(&guests::hello());
    for class in TrustClass::ALL {
        task.class = class;
        let expected = whole || class != TrustClass::Anyone;
        assert_eq!(bench.engine.check(&task).await == Support::Yes, expected, "{class}");
    }
}
