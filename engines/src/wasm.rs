//! The WASM engine: guests in sandboxed runner children.
//!
//! ```text
//! node                                          children of the same binary
//! ────────────────────────────────────          ─────────────────────────────────────────
//! WasmEngine ── compile ── cache                compile_child: one module, then gone
//!     │            └── child ═══ sealed memory ═══ sandbox, check
//!     ├── host (one per trust class) ═ socket ═  serve: sandbox, many guests on few threads
//!     │      └── execution (one per start)          └── guest, pipe, ticker
//!     └── mounts ══════ directory descriptors ═══════════╝
//! ```
//!
//! The node decides and keeps; a runner runs and forgets. What a runner says is checked as if it were
//! hostile: it is bounded, ordered and credited, and whoever breaks that is ended with everything that ran
//! in it.

mod cache;
pub(crate) mod check;
mod child;
mod compile;
pub(crate) mod compile_child;
mod config;
mod engine;
mod execution;
mod guest;
mod host;
mod mounts;
mod pipe;
mod sandbox;
pub(crate) mod serve;
mod settings;
mod share;
pub(crate) mod socket;
pub(crate) mod sys;
mod ticker;
mod transfer;
pub(crate) mod wire;

pub use engine::{SetupError, WasmEngine};
pub use settings::{RunnerCommand, SandboxReport, Settings};

fn text(error: &impl std::fmt::Display) -> String {
    error.to_string()
}
