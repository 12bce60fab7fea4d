//! One execution from its start to its end, on the node's side.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::OwnedSemaphorePermit;
use tracing::warn;

use super::engine::Lease;
use super::host::{Begun, Event};
use super::mounts::inputs::Staged;
use super::mounts::outputs::{Gauge, MEASURE_EVERY, MEASURE_WITHIN, OutputDirs};
use super::wire::{self, Finished, How};
use crate::ended::{Excess, Outcome, Usage};
use crate::output::Stream;
use crate::running::{StopReason, Supervisor};

/// How long an execution may go on after its deadline, or after it was asked to stop, before its runner is
/// ended: a runner that was taken over keeps no promises.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Everything that an execution holds while it runs.
pub(super) struct Execution {
    pub begun: Begun,
    pub supervisor: Supervisor,
    pub host: Lease,
    pub permit: OwnedSemaphorePermit,
    pub inputs: Vec<Arc<Staged>>,
    pub outputs: Option<OutputDirs>,
    pub output_bytes: u64,
    pub wall: Option<Duration>,
}

impl Execution {
    /// Sees it to its end, and says how it ended.
    pub async fn supervise(mut self) {
        let (started, began) = (SystemTime::now(), Instant::now());
        let mut stops = self.supervisor.stop_requests();
        let mut last_moment = self.wall.map(|wall| began + wall + STOP_WITHIN);
        let mut reason = None;
        let gauge = self.outputs.as_ref().map(OutputDirs::gauge);
        let mut outgrown = pin!(outgrown(gauge, self.output_bytes));
        let (outcome, usage) = loop {
            let stop = tokio::select! {
                biased;
                event = self.begun.events.recv() => match event {
                    Some(Event::Output(stream, bytes)) => {
                        self.host.take_output(&self.supervisor, &mut self.begun, stream, bytes).await;
                        continue;
                    }
                    Some(Event::Ended(finished)) => break finish(&self.supervisor, *finished, reason).await,
                    Some(Event::Lost(how)) => break lost(&how, reason, began),
                    None => break lost("its runner is gone", reason, began),
                },
                Some(asked) = stops.asked(), if reason.is_none() => asked,
                reason = &mut outgrown, if reason.is_none() => reason,
                () = passed(last_moment) => {
                    // What was asked of the runner, or what it was told from the start, did not happen.
                    reason.get_or_insert(StopReason::TimedOut);
                    last_moment = None;
                    self.host.end("did not stop an execution".into());
                    continue;
                }
            };
            reason = Some(stop);
            last_moment = Some(Instant::now() + STOP_WITHIN);
            self.host.stop(self.begun.id);
        };
        // Its slot is free as soon as the runner is done with it; handing over results is the node's work.
        drop(self.permit);
        drop(self.host);
        drop(self.inputs);
        let outcome = match self.outputs {
            Some(outputs) => hand_over(outputs, self.output_bytes, outcome).await,
            None => outcome,
        };
        self.supervisor.end(outcome, usage, started);
    }
}

impl Lease {
    /// Keeps a piece of output, and lets the guest send as much again.
    async fn take_output(
        &self,
        supervisor: &Supervisor,
        begun: &mut Begun,
        stream: Stream,
        bytes: bytes::Bytes,
    ) {
        let taken = &mut begun.taken[stream.index()];
        *taken += wire::cost(bytes.len());
        keep(supervisor, stream, bytes).await;
        if *taken >= wire::CREDIT_STEP {
            let credit = std::mem::take(taken);
            begun.owed[stream.index()].fetch_sub(credit, Ordering::AcqRel);
            self.credit(begun.id, stream, credit);
        }
    }
}

async fn keep(supervisor: &Supervisor, stream: Stream, bytes: bytes::Bytes) {
    if let Err(error) = supervisor.output().append(stream, bytes).await {
        // Counted as produced and not kept, so it shows as truncated.
        warn!(%error, stream = stream.name(), "cannot keep output");
    }
}

/// The end that the runner reports.
async fn finish(supervisor: &Supervisor, finished: Finished, reason: Option<StopReason>) -> (Outcome, Usage) {
    for (stream, rest) in Stream::ALL.into_iter().zip(finished.rest) {
        if !rest.is_empty() {
            keep(supervisor, stream, rest).await;
        }
        supervisor.output().count_discarded(stream, finished.discarded[stream.index()]);
    }
    let usage = Usage {
        cpu: Duration::from_nanos(finished.cpu_nanos),
        peak_memory_bytes: finished.peak_memory_bytes,
        wall: Duration::from_nanos(finished.wall_nanos),
    };
    let outcome = match finished.how {
        How::Exited(code) => Outcome::Exited(code),
        How::TimedOut => Outcome::TimedOut,
        How::Stopped => reason.unwrap_or(StopReason::Cancelled).outcome(),
        How::OutOfMemory => Outcome::OutOfMemory,
        How::RemovedTooMuch => Outcome::OutputLimit(Excess::Removed),
        How::Trapped(text) => Outcome::Trapped(text),
        How::Failed(text) => Outcome::Lost(format!("its runner could not run it: {text}")),
    };
    (outcome, usage)
}

/// The end of an execution whose runner is gone. Asked to stop, it did stop that way.
fn lost(how: &str, reason: Option<StopReason>, began: Instant) -> (Outcome, Usage) {
    let outcome = reason.map_or_else(|| Outcome::Lost(how.to_owned()), StopReason::outcome);
    (outcome, Usage { wall: began.elapsed(), ..Usage::default() })
}

/// Ready when there is more in the output directories than may be, or than the disk has room for; never, without
/// any.
async fn outgrown(gauge: Option<Gauge>, output_bytes: u64) -> StopReason {
    let Some(gauge) = gauge else { return std::future::pending().await };
    let mut pause = MEASURE_EVERY;
    loop {
        tokio::time::sleep(pause).await;
        let (began, gauge) = (Instant::now(), gauge.clone());
        match blocking(move || gauge.look(output_bytes)).await {
            Ok(Some(reason)) => return reason,
            Ok(None) => {}
            Err(error) => warn!(%error, "cannot measure the output of an execution"),
        }
        // Large trees are measured less often, so that little of the time goes into it.
        pause = (began.elapsed() * 9).clamp(MEASURE_EVERY, MEASURE_WITHIN);
    }
}

async fn hand_over(outputs: OutputDirs, output_bytes: u64, outcome: Outcome) -> Outcome {
    match blocking(move || outputs.hand_over()).await {
        Ok(tally) => match (tally.excess(output_bytes), outcome) {
            (Some(excess), Outcome::Exited(_)) => Outcome::OutputLimit(excess),
            (_, outcome) => outcome,
        },
        Err(error) => Outcome::Lost(format!("its results cannot be handed over: {error}")),
    }
}

/// Ready when the moment has passed; never, without one.
async fn passed(moment: Option<Instant>) {
    match moment {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
