//! `job logs`.

use crate::args::Global;
use crate::args::job::Logs;
use crate::content::encode;
use crate::failure::{Outcome, exit};
use crate::run::stream::OutputStream;
use crate::target::{Fallback, Session};

/// Runs the verb.
pub async fn run(global: &Global, flags: &Logs) -> Outcome {
    let session = Session::open(global, Fallback::None).await?;
    let one_writer = flags.partition.is_some() || flags.execution_id.is_some();
    let mut output = OutputStream::at(route(flags), !one_writer);
    while let Some(chunk) = output.next(&session.client).await? {
        chunk.write()?;
    }
    Ok(exit::DONE)
}

fn route(flags: &Logs) -> String {
    let mut route = format!("/orchestrator/jobs/{}/logs?follow={}", encode(&flags.id), flags.follow);
    if let Some(tail) = flags.tail {
        route.push_str(&format!("&tail={tail}"));
    }
    if let Some(partition) = flags.partition {
        route.push_str(&format!("&partition={partition}"));
    }
    if let Some(execution) = &flags.execution_id {
        route.push_str(&format!("&execution_id={}", encode(execution)));
    }
    route
}
