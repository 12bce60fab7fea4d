//! What runs jobs: the [`Engine`] trait, the WASM engine behind it, and what a machine has to offer.
//!
//! This crate owns execution on one machine: checking and preparing a [`Task`], starting it, its limits,
//! its output while it runs and after, stopping it, and leaving nothing behind. It knows no peers, no jobs
//! beyond the [`Task`] it is given, and fetches or publishes nothing: inputs are on disk before an engine
//! sees them, and results are plain files when it is done.
//!
//! WASM guests never share an address space with the node. [`WasmEngine`] runs them in *runner* children,
//! one per [`TrustClass`], each the same binary started again, sandboxed before it sees the first byte of
//! a guest; see [`wasm`]. The binary that a node runs in must therefore call [`runner::main`] when it is
//! started as a runner:
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     if std::env::args_os().nth(1).is_some_and(|mode| mode == "runner") {
//!         return engines::runner::main();
//!     }
//!     // … the node, with an `engines::WasmEngine` in it …
//!     std::process::ExitCode::SUCCESS
//! }
//! ```
//!
//! What a machine offers is read from the system, and honours the limits that were put on this process:
//!
//! ```
//! let machine = engines::resources::detect();
//! assert!(machine.cpu_milli > 0 && machine.memory_bytes > 0);
//! ```

pub mod ended;
pub mod engine;
pub mod output;
pub mod removal;
pub mod resources;
pub mod runner;
pub mod running;
pub mod task;
pub mod wasm;

pub use ended::{Captured, Ended, Excess, Kept, Outcome, Usage};
pub use engine::{Engine, EngineKind, PrepareError, Prepared, StartError, Support};
pub use output::{OutputChunk, OutputReader, Stream};
pub use running::{Running, StopReason};
pub use task::{InputMount, Limits, ModuleSource, OutputMount, Task, TaskKind, TrustClass};
pub use wasm::{RunnerCommand, SandboxReport, Settings, WasmEngine};
