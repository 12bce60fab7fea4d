//! What an execution leaves: one directory with `stdout`, `stderr`, `exitCode` and a folder per result
//! path, as content. A small one travels inside the receipt, and until its owner has it the receipt's record is
//! where it is kept: it never becomes content of this node.

use std::path::Path;

use bytes::Bytes;
use engines::{Captured, Ended, Kept, Outcome as EngineOutcome, Task};
use gossip::message::{Block, FaultClass, MAX_INLINE_RESULT_BYTES, Outcome, Phase, ResultInfo, Usage};
use gossip::worker::{End, Start};
use tracing::warn;

use super::Bench;
use super::context::Context;
use super::execution::{Fault, report};
use crate::content::{Added, Entry, FetchFault};

/// The end of an execution, with its result published.
pub async fn collect(
    bench: &Bench,
    order: &Start,
    context: &Context,
    task: &Task,
    ended: &Ended,
    stopped: Option<&str>,
) -> Result<End, Fault> {
    let outcome = outcome(ended, task, stopped);
    let exit_code = match outcome {
        Outcome::Exit(code) => code,
        // As a shell shows a program that was ended from outside.
        Outcome::Fault(..) => 137,
    };
    let published = publish(bench, order, task, ended, exit_code).await;
    remove_work_dir(&task.work_dir).await;
    let (result, blocks, stored) = match (published, &outcome) {
        (Ok(published), _) => (Some(published.result), published.blocks, published.stored),
        (Err(error), Outcome::Exit(0)) => {
            return Err(Fault::new(FaultClass::Node, format!("the result could not be published: {error}")));
        }
        (Err(error), _) => {
            warn!(%error, "the output of a failed execution could not be published");
            (None, Vec::new(), true)
        }
    };
    Ok(End {
        outcome,
        result,
        blocks,
        stored,
        usage: Usage { cpu_ms: millis(ended.usage.cpu), memory: ended.usage.peak_memory_bytes, disk: 0 },
        started_ms: 0,
        ran_ms: 0,
        engine: context.prepared.digest().to_owned(),
        inputs: context.inputs.clone(),
    })
}

fn millis(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn outcome(ended: &Ended, task: &Task, stopped: Option<&str>) -> Outcome {
    let fault = |class, message: String| Outcome::Fault(class, message);
    match &ended.outcome {
        EngineOutcome::Exited(code) => Outcome::Exit(*code),
        EngineOutcome::TimedOut => {
            let limit = task.limits.wall.unwrap_or_default().as_secs_f64();
            fault(FaultClass::Timeout, format!("Execution timed out after {limit:.0} s"))
        }
        EngineOutcome::Stopped => {
            fault(FaultClass::Node, format!("stopped: {}", stopped.unwrap_or("the node stopped")))
        }
        EngineOutcome::OutOfMemory => fault(
            FaultClass::User,
            format!("memory limit exceeded: it was refused more than {} bytes", task.limits.memory_bytes),
        ),
        EngineOutcome::Trapped(text) => fault(FaultClass::User, format!("the program trapped: {text}")),
        EngineOutcome::OutputLimit(excess) => fault(
            FaultClass::User,
            format!("disk limit exceeded: {}", excess.describe(task.limits.output_bytes)),
        ),
        EngineOutcome::Lost(text) => fault(FaultClass::Node, format!("lost: {text}")),
    }
}

/// A result, and all of its blocks when it is small.
struct Published {
    result: ResultInfo,
    blocks: Vec<Block>,
    /// It is in this node's content; else the receipt carries all there is.
    stored: bool,
}

impl Published {
    fn new(added: &Added, blocks: Vec<storage::Block>, stored: bool) -> Self {
        let result = ResultInfo { cid: added.cid, size: added.size, published: String::new() };
        let blocks =
            blocks.into_iter().map(|block| Block { cid: block.cid, bytes: block.data.to_vec().into() });
        Published { result, blocks: blocks.collect(), stored }
    }
}

async fn publish(
    bench: &Bench,
    order: &Start,
    task: &Task,
    ended: &Ended,
    exit_code: i32,
) -> Result<Published, FetchFault> {
    let code = Bytes::from(exit_code.to_string());
    if order.inline
        && task.outputs.is_empty()
        && let (Kept::Inline(stdout), Kept::Inline(stderr)) = (&ended.stdout.kept, &ended.stderr.kept)
        && stdout.len() + stderr.len() < MAX_INLINE_RESULT_BYTES / 2
    {
        let files = [("exitCode", &code[..]), ("stderr", &stderr[..]), ("stdout", &stdout[..])];
        let (added, blocks) = crate::content::small_tree(&files)?;
        return Ok(Published::new(&added, blocks, false));
    }
    report(bench, order.execution, Phase::Publishing, (ended.stdout.length, ended.stderr.length));
    publish_large(bench, order, task, ended, code).await
}

async fn publish_large(
    bench: &Bench,
    order: &Start,
    task: &Task,
    ended: &Ended,
    code: Bytes,
) -> Result<Published, FetchFault> {
    let content = &bench.content;
    let mut entries = vec![
        Entry::new("exitCode", content.add_bytes(code).await?),
        Entry::new("stdout", add_stream(bench, &ended.stdout).await?),
        Entry::new("stderr", add_stream(bench, &ended.stderr).await?),
    ];
    for output in &task.outputs {
        // A guest that wrote nothing still has its folder in the result.
        tokio::fs::create_dir_all(&output.path)
            .await
            .map_err(|error| FetchFault::Here(format!("{}: {error}", output.name)))?;
        entries.push(Entry::new(&output.name, content.add_path(&output.path).await?));
    }
    let added = content.add_result(order.execution, &entries).await?;
    let blocks = content.blocks_of(added.cid, MAX_INLINE_RESULT_BYTES).await?;
    Ok(Published::new(&added, blocks.unwrap_or_default(), true))
}

async fn add_stream(bench: &Bench, stream: &Captured) -> Result<Added, FetchFault> {
    match &stream.kept {
        Kept::Inline(bytes) => bench.content.add_bytes(bytes.clone()).await,
        Kept::File(path) => bench.content.add_path(path).await,
    }
}

async fn remove_work_dir(dir: &Path) {
    // Most leave none, and a look is cheaper than a thread.
    if matches!(dir.symlink_metadata(), Err(error) if error.kind() == std::io::ErrorKind::NotFound) {
        return;
    }
    let path = dir.to_owned();
    let removed = tokio::task::spawn_blocking(move || engines::removal::remove_tree(&path)).await;
    // The next start of the node empties the directory above.
    if let Err(error) = removed.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        warn!(dir = %dir.display(), %error, "a work directory could not be removed");
    }
}
