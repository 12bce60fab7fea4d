//! `testnet …`.

use crate::args::testnet::Testnet;
use crate::failure::{Failure, Outcome};

/// Runs the verb.
pub async fn run(_verb: &Testnet) -> Outcome {
    Err(Failure::refused("this build has no test networks"))
}
