//! The WASM engine: guests in sandboxed runner children.

mod settings;

pub use settings::{RunnerCommand, SandboxReport, Settings};
