//! The hidden mode in which this binary runs WASM guests.

use std::process::ExitCode;

/// Serves the node that started this process until it goes away. Call it before anything else: the
/// process is sandboxed and must not have started threads.
pub fn main() -> ExitCode {
    engines::runner::main()
}
