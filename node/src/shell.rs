//! The async part around a protocol machine, the same for owner and worker.
//!
//! A shell owns its machine. It waits for the first of stop, timer and input, takes everything else that
//! already waits, lets the machine handle it all, writes what must be durable in one transaction and only
//! then performs the rest, in order. Batches form by themselves under load; a lone input waits for nothing.
//! When the transaction fails nothing is performed: the database is reopened and the machine restored from
//! what it last made durable.

use std::sync::Arc;
use std::time::Duration;

use job::Time;
use storage::records::{Batch, Records, Table};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, trace, warn};

use crate::clock;

/// Inputs and questions waiting for a machine. Senders wait when it is full.
const WAITING: usize = 4096;
/// Inputs handled before one transaction: keeps a batch's answers within a few milliseconds.
const AT_ONCE: usize = 512;
/// How long to wait before a failed transaction's database is opened again; doubles up to [`REOPEN_MOST`].
const REOPEN_FIRST: Duration = Duration::from_millis(100);
const REOPEN_MOST: Duration = Duration::from_secs(5);

/// What is common to the two machines.
pub trait Machine: Send + Sized + 'static {
    /// What happened.
    type Input: Send + std::fmt::Debug + 'static;
    /// What is to be done.
    type Effect: Send + std::fmt::Debug + 'static;

    /// The table of its records.
    const TABLE: Table;
    /// Its name in logs.
    const NAME: &'static str;

    /// Applies one input.
    fn handle(&mut self, now: Time, input: Self::Input, out: &mut Vec<Self::Effect>);
    /// Ends a batch of inputs.
    fn settle(&mut self, now: Time, out: &mut Vec<Self::Effect>);
    /// When it wants a tick.
    fn next_wakeup(&self) -> Option<Time>;
    /// The tick.
    fn tick() -> Self::Input;
    /// Puts what the effect makes durable into the batch; false when it is to be performed instead.
    fn persist(effect: &Self::Effect, batch: &mut Batch) -> bool;
}

/// Performs effects that are not records. Quick: sending enqueues, starting spawns and reports back.
pub trait Perform<M: Machine>: Send + 'static {
    /// Performs the effects of one batch, in order.
    fn perform(&mut self, effects: Vec<M::Effect>);
}

/// A question that reads the machine between two batches.
type Question<M> = Box<dyn FnOnce(&M) + Send>;

enum Work<M: Machine> {
    Input(M::Input),
    Question(Question<M>),
}

/// The way to a machine: cheap to clone.
pub struct Handle<M: Machine> {
    work: mpsc::Sender<Work<M>>,
}

impl<M: Machine> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Handle { work: self.work.clone() }
    }
}

/// The machine's task has ended: the node stops.
#[derive(Debug, thiserror::Error)]
#[error("the node is stopping")]
pub struct Gone;

impl<M: Machine> Handle<M> {
    /// Hands an input over; waits while the queue is full. Dropping the future hands nothing over.
    pub async fn input(&self, input: M::Input) -> Result<(), Gone> {
        self.work.send(Work::Input(input)).await.map_err(|_| Gone)
    }

    /// Hands an input over from code that must not wait; false when the queue is full or gone.
    pub fn try_input(&self, input: M::Input) -> bool {
        self.work.try_send(Work::Input(input)).is_ok()
    }

    /// Reads the machine. Dropping the future forgets the answer.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&M) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        let (answer, answered) = oneshot::channel();
        let question: Question<M> = Box::new(move |machine| {
            // The asker may have gone; that is its right.
            let _ = answer.send(question(machine));
        });
        self.work.send(Work::Question(question)).await.map_err(|_| Gone)?;
        answered.await.map_err(|_| Gone)
    }
}

/// The receiving end, made before the machine so that everything that feeds it can be.
pub struct Queue<M: Machine> {
    work: mpsc::Receiver<Work<M>>,
}

/// A handle and the queue behind it.
pub fn channel<M: Machine>() -> (Handle<M>, Queue<M>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Handle { work: sender }, Queue { work: receiver })
}

/// How a machine comes back from its records: with the effects of its restoration.
pub type Restore<M> =
    Arc<dyn Fn(&Records, Time) -> Result<(M, Vec<<M as Machine>::Effect>), RestoreError> + Send + Sync>;

/// A machine cannot be restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The database cannot be read.
    #[error("the record cannot be read")]
    Records(#[from] storage::records::RecordsError),
    /// The machine does not understand what it finds.
    #[error("the record of the {0} machine is damaged: {1}")]
    Damaged(&'static str, String),
    /// The system gives no randomness.
    #[error("the system gives no randomness: {0}")]
    Randomness(String),
}

/// A machine with everything it needs to run.
pub struct Shell<M: Machine, P> {
    /// Its queue.
    pub queue: Queue<M>,
    /// The database.
    pub records: Records,
    /// How it comes (back) to life.
    pub restore: Restore<M>,
    /// Who performs its effects.
    pub perform: P,
}

impl<M: Machine, P: Perform<M>> Shell<M, P> {
    /// Runs until `cancel`: restores the machine, then turns inputs into effects.
    ///
    /// Returns early only when the machine cannot be restored.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), RestoreError> {
        let mut machine = self.revive(&cancel).await?;
        let mut waiting = Vec::with_capacity(AT_ONCE);
        let mut out = Vec::new();
        loop {
            let wakeup = machine.next_wakeup().map(clock::instant);
            let (mut due, mut stopping) = (false, false);
            tokio::select! {
                biased;
                () = cancel.cancelled() => stopping = true,
                taken = self.queue.work.recv_many(&mut waiting, AT_ONCE) => if taken == 0 { return Ok(()) },
                () = sleep_until(wakeup.unwrap_or_else(Instant::now)), if wakeup.is_some() => due = true,
            }
            // What was handed over before the stop is still handled.
            while stopping && let Ok(work) = self.queue.work.try_recv() {
                waiting.push(work);
            }
            let now = clock::now();
            if due || machine.next_wakeup().is_some_and(|at| at <= now) {
                machine.handle(now, M::tick(), &mut out);
            }
            for work in waiting.drain(..) {
                match work {
                    Work::Input(input) => {
                        trace!(machine = M::NAME, ?input, "handle");
                        machine.handle(now, input, &mut out);
                    }
                    Work::Question(question) => question(&machine),
                }
            }
            machine.settle(now, &mut out);
            let done = if out.is_empty() { Ok(()) } else { self.finish(std::mem::take(&mut out)).await };
            if stopping {
                if let Err(error) = done {
                    warn!(machine = M::NAME, %error, "the last changes could not be written");
                }
                return Ok(());
            }
            if let Err(error) = done {
                error!(machine = M::NAME, %error, "the record could not be written; restoring");
                machine = self.revive(&cancel).await?;
            }
        }
    }

    /// Makes durable what must be, then performs the rest.
    async fn finish(&mut self, mut effects: Vec<M::Effect>) -> Result<(), storage::records::RecordsError> {
        let mut batch = Batch::default();
        effects.retain(|effect| !M::persist(effect, &mut batch));
        if !batch.is_empty() {
            self.records.commit(batch).await?;
        }
        for effect in &effects {
            trace!(machine = M::NAME, ?effect, "perform");
        }
        if !effects.is_empty() {
            self.perform.perform(effects);
        }
        Ok(())
    }

    /// The machine from its records. A database that cannot be written (a full disk) is tried again until
    /// it can, or the node stops; what waits meanwhile waits in its bounded queue.
    async fn revive(&mut self, cancel: &CancellationToken) -> Result<M, RestoreError> {
        let mut pause = REOPEN_FIRST;
        loop {
            let (machine, effects) = (self.restore)(&self.records, clock::now())?;
            let Err(error) = self.finish(effects).await else { return Ok(machine) };
            warn!(machine = M::NAME, %error, "the record cannot be written; trying again");
            tokio::select! {
                () = cancel.cancelled() => return Ok(machine),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(REOPEN_MOST),
            }
            if let Err(error) = self.records.reopen().await {
                warn!(machine = M::NAME, %error, "the record cannot be reopened");
            }
        }
    }
}
