//! The WASM engine from the outside, with real runner children: this binary started again, as the engine
//! does by default.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

#[path = "wasm/guests.rs"]
mod guests;
#[path = "wasm/hostile.rs"]
mod hostile;
#[path = "wasm/limits.rs"]
mod limits;
#[path = "wasm/modules.rs"]
mod modules;
#[path = "wasm/mounts.rs"]
mod mounts;
#[path = "wasm/output.rs"]
mod output;
#[path = "wasm/probes.rs"]
mod probes;
#[path = "wasm/runners.rs"]
mod runners;
#[path = "wasm/support.rs"]
mod support;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("runner") => engines::runner::main(),
        Some("hostile-runner") => engines::runner::main_taken_over(probes::from_inside),
        Some("hostile-compiler") => engines::runner::main_compiler_taken_over(probes::from_inside),
        Some("hostile-control") => probes::without_sandbox(),
        _ => run_tests(),
    }
}

fn run_tests() -> ExitCode {
    let groups = [
        limits::tests(),
        modules::tests(),
        mounts::tests(),
        output::tests(),
        runners::tests(),
        hostile::tests(),
    ];
    let trials: Vec<Trial> = groups.into_iter().flatten().collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
