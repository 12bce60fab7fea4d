//! The `cardume` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A runner is sandboxed and must not have started anything before: this stays first.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == "runner") {
        return node::runner::main();
    }
    cli::main()
}
