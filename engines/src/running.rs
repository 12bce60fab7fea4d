//! [`Running`]: an execution that was started, and [`Supervisor`]: the engine's side of it.

use std::sync::Arc;

use job::ExecutionId;
use tokio::sync::watch;

use crate::ended::{Ended, Excess, Outcome, Usage};
use crate::output::{OutputLog, OutputReader};

/// An execution that was started. Clones are the same execution; dropping them all lets it run on.
#[derive(Debug, Clone)]
pub struct Running {
    execution: ExecutionId,
    output: Arc<OutputLog>,
    ended: watch::Receiver<Option<Arc<Ended>>>,
    stop: Arc<watch::Sender<Option<StopReason>>>,
}

/// Why an execution is to stop; it decides the [`Outcome`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The user, the owner or the node no longer wants it: [`Outcome::Stopped`].
    Cancelled,
    /// A deadline that the caller keeps has passed: [`Outcome::TimedOut`].
    TimedOut,
    /// It wrote too much: [`Outcome::OutputLimit`].
    OutputLimit(Excess),
    /// It holds some of a disk that is nearly full: [`Outcome::Lost`], as it is no fault of its own.
    DiskFull,
}

impl StopReason {
    /// How an execution ends that is stopped for this reason.
    pub fn outcome(self) -> Outcome {
        match self {
            StopReason::Cancelled => Outcome::Stopped,
            StopReason::TimedOut => Outcome::TimedOut,
            StopReason::OutputLimit(excess) => Outcome::OutputLimit(excess),
            StopReason::DiskFull => {
                Outcome::Lost("it was stopped because the disk that its results go to is nearly full".into())
            }
        }
    }
}

impl Running {
    /// Which execution this is.
    pub fn execution(&self) -> ExecutionId {
        self.execution
    }

    /// Waits until it has ended; at once, and with the same answer, when it already has.
    ///
    /// Dropping the future changes nothing.
    pub async fn wait(&self) -> Arc<Ended> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(ended)) => Arc::clone(ended),
            // The engine's side went away without a word; whatever ran is gone with it.
            Ok(None) | Err(_) => Arc::new(self.lost("the engine stopped")),
        }
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Arc<Ended>> {
        self.ended.borrow().clone()
    }

    /// Its output from the start, and then on as it is produced until it ends.
    ///
    /// Each reader goes at its own pace and holds no more than one chunk; a slow one slows nobody.
    pub fn output(&self) -> OutputReader {
        OutputReader::new(Arc::clone(&self.output))
    }

    /// Asks it to stop; the first reason counts. [`Running::wait`] tells when it has. Does nothing when it
    /// has ended.
    pub fn stop(&self, reason: StopReason) {
        self.stop.send_if_modified(|asked| {
            let first = asked.is_none();
            asked.get_or_insert(reason);
            first
        });
    }

    fn lost(&self, text: &str) -> Ended {
        let (stdout, stderr) = self.output.captured();
        let now = std::time::SystemTime::now();
        let outcome = Outcome::Lost(text.to_owned());
        Ended { outcome, stdout, stderr, usage: Usage::default(), started: now, ended: now }
    }
}

/// The engine's side of a [`Running`]. Dropped without [`Supervisor::end`], the execution counts as lost.
#[derive(Debug)]
pub struct Supervisor {
    output: Arc<OutputLog>,
    ended: watch::Sender<Option<Arc<Ended>>>,
    stop: watch::Receiver<Option<StopReason>>,
}

/// Both sides of an execution whose output goes to `output`.
pub fn channel(execution: ExecutionId, output: Arc<OutputLog>) -> (Running, Supervisor) {
    let (end, ended) = watch::channel(None);
    let (stop, stopped) = watch::channel(None);
    let running = Running { execution, output: Arc::clone(&output), ended, stop: Arc::new(stop) };
    (running, Supervisor { output, ended: end, stop: stopped })
}

impl Supervisor {
    /// Where the execution's output goes.
    pub fn output(&self) -> &Arc<OutputLog> {
        &self.output
    }

    /// A handle to wait for requests to stop with; it outlives the supervisor.
    pub fn stop_requests(&self) -> StopRequests {
        StopRequests(self.stop.clone())
    }

    /// Why it was asked to stop, if it was.
    pub fn asked_to_stop(&self) -> Option<StopReason> {
        *self.stop.borrow()
    }

    /// Says how it ended, and closes its output.
    pub fn end(self, outcome: Outcome, usage: Usage, started: std::time::SystemTime) {
        self.output.close();
        let (stdout, stderr) = self.output.captured();
        let ended = std::time::SystemTime::now();
        let ended = Ended { outcome, stdout, stderr, usage, started, ended };
        self.ended.send_replace(Some(Arc::new(ended)));
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.output.close();
    }
}

/// Waits for [`Running::stop`].
#[derive(Debug)]
pub struct StopRequests(watch::Receiver<Option<StopReason>>);

impl StopRequests {
    /// The reason given, or `None` when nobody is left who could give one.
    ///
    /// Dropping the future changes nothing.
    pub async fn asked(&mut self) -> Option<StopReason> {
        self.0.wait_for(Option::is_some).await.ok().and_then(|reason| *reason)
    }
}
