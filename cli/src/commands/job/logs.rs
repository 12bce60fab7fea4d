//! `job logs`.

use super::route;
use crate::args::Global;
use crate::args::job::Logs;
use crate::content::encode;
use crate::failure::{Failure, Outcome, exit};
use crate::run::come_back;
use crate::run::stream::OutputStream;
use crate::target::{Fallback, Session, interrupted, with_node};

/// Runs the verb.
pub async fn run(global: &Global, flags: &Logs) -> Outcome {
    let one_writer = flags.partition.is_some() || flags.execution_id.is_some();
    let path = path(flags);
    let work = async |session: &Session| {
        let mut output = OutputStream::at(path.clone(), !one_writer);
        while let Some(chunk) = output.next(&session.client).await? {
            chunk.write()?;
        }
        Ok(())
    };
    let stopped = || match flags.follow {
        true => interrupted_following(&flags.job.id),
        false => interrupted(),
    };
    with_node(global, Fallback::Record, true, stopped, work).await
}

fn interrupted_following(id: &str) -> Failure {
    let message = format!("interrupted while following {id}: the job is not touched by that");
    Failure::new(exit::INTERRUPTED, "Interrupted", message).hint(come_back(id))
}

fn path(flags: &Logs) -> String {
    let mut query = format!("?follow={}", flags.follow);
    if let Some(tail) = flags.tail {
        query.push_str(&format!("&tail={tail}"));
    }
    if let Some(partition) = flags.partition {
        query.push_str(&format!("&partition={partition}"));
    }
    if let Some(execution) = &flags.execution_id {
        query.push_str(&format!("&execution_id={}", encode(execution)));
    }
    route(&flags.job.id, flags.job.namespace.as_deref(), "/logs", &query)
}
