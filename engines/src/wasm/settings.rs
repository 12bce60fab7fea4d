//! How a [`WasmEngine`](super::WasmEngine) is set up, and what its sandbox turned out to be.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::resources;
use crate::task::TrustClass;

/// How the WASM engine of a node is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Every input of every task lies below this directory, and the engine may make a directory of its own,
    /// `.staged`, in it. When the node is root its runners are not: files below it must be readable by
    /// others.
    pub input_root: PathBuf,
    /// Where guests write while they run. Must be on the file system of the tasks' output paths, so that
    /// results are moved there and not copied. The engine owns it alone and empties it when it starts.
    pub output_root: PathBuf,
    /// Where compiled modules are kept. The engine owns it alone.
    pub cache_dir: PathBuf,
    /// How much of the disk compiled modules may take.
    pub cache_bytes: u64,
    /// How to start this binary as a runner.
    pub runner: RunnerCommand,
    /// How many executions one runner runs at once; further ones wait.
    pub slots: u32,
    /// On how many threads a runner runs them.
    pub threads: u32,
    /// Memory that all guests of one runner may take together; the caller admits by it. A runner that takes
    /// much more is ended by the system.
    pub memory_bytes: u64,
    /// How long one file may get that a guest writes: the most that any task's results may take.
    pub file_bytes: u64,
    /// Processor time that compiling a module may take, whosoever it is; by default it depends on the class.
    pub compile_cpu: Option<Duration>,
    /// How long a runner that runs nothing is kept for the next execution.
    pub runner_idle: Duration,
    /// How often a runner that runs something is asked whether it still does; one that has not answered
    /// five times in a row is ended.
    pub heartbeat: Duration,
    /// When the node is root, its runners run as users (and groups) with this number and the next three,
    /// one per trust class.
    pub first_uid: u32,
}

/// Beyond what distributions and container managers give out, below the limit of 2³¹.
const FIRST_UID: u32 = 2_011_400_000;

impl Settings {
    /// Settings for this machine with these three directories, and `/proc/self/exe runner` as the runner.
    pub fn new(input_root: &Path, output_root: &Path, cache_dir: &Path) -> Self {
        let machine = resources::detect();
        let cores = machine.cpu_milli.div_ceil(1000);
        Settings {
            input_root: input_root.to_owned(),
            output_root: output_root.to_owned(),
            cache_dir: cache_dir.to_owned(),
            cache_bytes: 4 << 30,
            runner: RunnerCommand::default(),
            slots: (16 * cores).clamp(64, 256),
            // One guest that blocks its thread in the host must not stop the others.
            threads: cores.max(2),
            memory_bytes: machine.memory_bytes,
            file_bytes: 1 << 40,
            compile_cpu: None,
            runner_idle: Duration::from_secs(60),
            heartbeat: Duration::from_secs(2),
            first_uid: FIRST_UID,
        }
    }

    /// The user that runners of a class run as, when the node may choose.
    pub(crate) fn uid(&self, class: TrustClass) -> u32 {
        self.first_uid.saturating_add(class.index() as u32)
    }
}

/// The command that calls [`runner::main`](crate::runner::main).
#[derive(Debug, Clone)]
pub struct RunnerCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

impl Default for RunnerCommand {
    /// The running binary itself, also when its file was replaced meanwhile, with the argument `runner`.
    fn default() -> Self {
        RunnerCommand { program: "/proc/self/exe".into(), args: vec!["runner".into()] }
    }
}

/// Which layers of its sandbox a runner has on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxReport {
    /// Landlock is on: files outside, TCP, abstract sockets and other processes are out of reach.
    pub landlock: bool,
    /// Only the system calls that running guests takes are let through.
    pub seccomp: bool,
    /// Own network (without interfaces), IPC and host name.
    pub namespaces: bool,
    /// An own, empty, read-only file system root.
    pub empty_root: bool,
    /// The user it runs as, when that is not the node's.
    pub own_uid: Option<u32>,
    /// Inputs and outputs are handed over as mounts that nothing above is reachable from.
    pub detached_mounts: bool,
    /// Guests' memories come from a pool; without it (little address space), they work but start slower.
    pub pooled_memory: bool,
}

impl SandboxReport {
    /// Whether guests of anyone may run in it.
    pub fn fit_for_anyone(&self) -> bool {
        self.landlock && self.seccomp
    }
}
