//! One execution, from its start to its end: inputs, engine, limits, results.

use std::sync::Arc;
use std::time::Duration;

use engines::{
    InputMount, Limits, OutputMount, PrepareError, Running, StartError, StopReason, Task, TrustClass,
};
use gossip::message::{FaultClass, Outcome, Phase, Usage};
use gossip::worker::{End, Input, Start, Submitter};
use job::ExecutionKey;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span};

use super::context::Context;
use super::{Bench, Stop, result};
use crate::clock;

/// An execution that lasts this long is reported as running; shorter ones only as ended, which keeps
/// thousands of small ones a second cheap.
const WORTH_A_WORD: Duration = Duration::from_millis(20);

/// How often what it waits for is told anew, while that changes.
const WORTH_ANOTHER_WORD: Duration = Duration::from_secs(1);

/// Why an execution ends without an exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Whose fault.
    pub class: FaultClass,
    /// In words.
    pub message: String,
}

impl Fault {
    /// A fault in words.
    pub fn new(class: FaultClass, message: impl Into<String>) -> Self {
        Fault { class, message: message.into() }
    }
}

/// Runs one execution to its end. Nothing of it runs when this returns.
pub async fn run(bench: &Arc<Bench>, order: Start, stop: &Stop, cancel: &CancellationToken) -> End {
    let span = info_span!("execution", id = %order.id, partition = order.execution.partition);
    let started = clock::now();
    async {
        let ran = attempt(bench, &order, stop, cancel).await;
        let mut end = ran.unwrap_or_else(|fault| {
            debug!(class = ?fault.class, message = %fault.message, "ended with a fault");
            empty_end(fault)
        });
        let now = clock::now();
        end.started_ms = started.wall / 1_000_000;
        end.ran_ms = u64::try_from(now.since(started).as_millis()).unwrap_or(u64::MAX);
        bench.live.ended(order.execution);
        end
    }
    .instrument(span)
    .await
}

fn empty_end(fault: Fault) -> End {
    End {
        outcome: Outcome::Fault(fault.class, fault.message),
        result: None,
        blocks: Vec::new(),
        stored: true,
        usage: Usage::default(),
        started_ms: 0,
        ran_ms: 0,
        engine: String::new(),
        inputs: Vec::new(),
    }
}

fn timed_out(after: Duration) -> Fault {
    Fault::new(FaultClass::Timeout, format!("Execution timed out after {} s", after.as_secs_f64()))
}

async fn attempt(
    bench: &Arc<Bench>,
    order: &Start,
    stop: &Stop,
    cancel: &CancellationToken,
) -> Result<End, Fault> {
    let began = Instant::now();
    let context = tokio::select! {
        context = prepared(bench, order) => context?,
        reason = stop.asked() => return Err(stopped(reason)),
        () = cancel.cancelled() => return Err(Fault::new(FaultClass::Node, "the node stopped")),
        () = tokio::time::sleep(order.timeout) => return Err(timed_out(order.timeout)),
    };
    let task = task(bench, order, &context, order.timeout.saturating_sub(began.elapsed()))?;
    let running = tokio::select! {
        started = bench.engine()?.start(&task, &context.prepared) => started.map_err(start_fault)?,
        reason = stop.asked() => return Err(stopped(reason)),
        () = cancel.cancelled() => return Err(Fault::new(FaultClass::Node, "the node stopped")),
        () = tokio::time::sleep(order.timeout.saturating_sub(began.elapsed())) => {
            return Err(timed_out(order.timeout));
        }
    };
    bench.live.started(order.execution, running.clone());
    // Whatever ends the wait, the engine is waited for: nothing runs on.
    let ended = tokio::select! {
        ended = follow(bench, order, &running) => ended,
        _ = stop.asked() => halt(&running).await,
        () = cancel.cancelled() => halt(&running).await,
    };
    result::collect(bench, order, &context, &task, &ended, stop.reason()).await
}

async fn halt(running: &Running) -> Arc<engines::Ended> {
    running.stop(StopReason::Cancelled);
    running.wait().await
}

/// The context of the job, with a word to the owner when it is not there at once.
async fn prepared(bench: &Arc<Bench>, order: &Start) -> Result<Arc<Context>, Fault> {
    let getting = bench.contexts.get(bench, order);
    tokio::pin!(getting);
    tokio::select! {
        biased;
        context = getting.as_mut() => return context,
        () = tokio::time::sleep(WORTH_A_WORD) => {}
    }
    let mut said = None;
    loop {
        let doing = bench.contexts.doing(order);
        if said.as_ref() != Some(&doing) {
            report(bench, order.execution, Phase::Preparing, &doing, (0, 0));
            said = Some(doing);
        }
        tokio::select! {
            biased;
            context = getting.as_mut() => return context,
            () = tokio::time::sleep(WORTH_ANOTHER_WORD) => {}
        }
    }
}

async fn follow(bench: &Bench, order: &Start, running: &Running) -> Arc<engines::Ended> {
    tokio::select! {
        biased;
        ended = running.wait() => return ended,
        () = tokio::time::sleep(WORTH_A_WORD) => {}
    }
    report(bench, order.execution, Phase::Running, "", (0, 0));
    running.wait().await
}

/// Tells the machine how far an execution is; a machine that is far behind does without. An execution that
/// waited here could not end while the machine waits for its end.
pub(super) fn report(
    bench: &Bench,
    execution: ExecutionKey,
    phase: Phase,
    message: &str,
    logged: (u64, u64),
) {
    let input = Input::Phase { execution, phase, message: message.to_owned(), logged };
    if !bench.worker.try_input(input) {
        debug!(id = %execution.id(), ?phase, "the machine is not told");
    }
}

fn stopped(reason: &str) -> Fault {
    Fault::new(FaultClass::Node, format!("stopped: {reason}"))
}

/// Maps a preparation's failure onto whose fault it is.
///
/// What costs more than this node allows a stranger costs as much on the next: one node that tried is enough.
pub(super) fn prepare_fault(error: PrepareError, class: TrustClass) -> Fault {
    match error {
        PrepareError::Job(message) => Fault::new(FaultClass::Job, message),
        PrepareError::Limit(message) if class.is_stranger() => {
            Fault::new(FaultClass::Job, format!("{message}; a node allows more to those whom it trusts"))
        }
        PrepareError::Node(message) | PrepareError::Limit(message) => Fault::new(FaultClass::Node, message),
    }
}

fn start_fault(error: StartError) -> Fault {
    match error {
        StartError::Job(message) => Fault::new(FaultClass::Job, message),
        StartError::Node(message) => Fault::new(FaultClass::Node, message),
    }
}

/// What a submitter's class means to the engines.
pub(super) fn trust(submitter: Submitter) -> TrustClass {
    match submitter {
        Submitter::Own => TrustClass::Own,
        Submitter::Trusted => TrustClass::Trusted,
        Submitter::Member => TrustClass::Member,
        Submitter::Anyone => TrustClass::Anyone,
    }
}

fn task(bench: &Bench, order: &Start, context: &Context, wall: Duration) -> Result<Task, Fault> {
    let spec = &context.spec;
    let work_dir = bench.work_dir.join(order.id.to_string());
    let mut env: Vec<(String, String)> =
        spec.task.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    env.extend([
        ("BACALHAU_EXECUTION_ID".to_owned(), order.id.to_string()),
        ("BACALHAU_JOB_ID".to_owned(), order.execution.job.to_string()),
        ("BACALHAU_JOB_TYPE".to_owned(), spec.job_type.to_string()),
        ("BACALHAU_PARTITION_INDEX".to_owned(), order.execution.partition.to_string()),
        ("BACALHAU_PARTITION_COUNT".to_owned(), order.partition_count.to_string()),
        ("CARDUME_ATTEMPT".to_owned(), order.execution.attempt.to_string()),
        ("CARDUME_FENCE".to_owned(), order.fence.0.to_string()),
    ]);
    let outputs = spec
        .task
        .results
        .iter()
        .enumerate()
        .map(|(index, result)| OutputMount {
            name: result.name.clone(),
            // Names are the user's; paths on this disk are ours.
            path: work_dir.join(format!("out-{index}")),
            target: result.path.clone(),
        })
        .collect();
    Ok(Task {
        execution: order.id,
        class: trust(order.submitter),
        kind: context.kind.clone(),
        env,
        inputs: context.mounts.clone(),
        outputs,
        limits: limits(order, wall),
        work_dir,
    })
}

fn limits(order: &Start, wall: Duration) -> Limits {
    Limits {
        memory_bytes: order.resources.memory,
        cpu_milli: u32::try_from(order.resources.cpu_milli).unwrap_or(u32::MAX),
        wall: Some(wall),
        output_bytes: if order.resources.disk > 0 {
            order.resources.disk
        } else {
            Limits::default().output_bytes
        },
        ..Limits::default()
    }
}

/// Where the guest finds an input, and what is there.
pub(super) fn mount(path: std::path::PathBuf, target: &str) -> InputMount {
    InputMount { path, target: target.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_dear_for_a_stranger_is_tried_once() {
        let limit = || PrepareError::Limit("compiling the module took too long".into());
        for class in [TrustClass::Anyone, TrustClass::Member] {
            assert_eq!(prepare_fault(limit(), class).class, FaultClass::Job, "{class}");
        }
        for class in [TrustClass::Own, TrustClass::Trusted] {
            assert_eq!(prepare_fault(limit(), class).class, FaultClass::Node, "{class}");
        }
        let node = PrepareError::Node("no child".into());
        assert_eq!(prepare_fault(node, TrustClass::Anyone).class, FaultClass::Node);
    }
}
