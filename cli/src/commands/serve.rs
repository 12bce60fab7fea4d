//! `serve`.

use crate::args::Global;
use crate::args::serve::Serve;
use crate::failure::{Failure, Outcome};

/// Runs the verb.
pub fn run(_global: &Global, _flags: &Serve) -> Outcome {
    Err(Failure::refused("this build has no node"))
}
