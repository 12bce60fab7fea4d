//! The async part around a protocol machine, the same for owner and worker.
//!
//! A shell owns its machine. It waits for the first of stop, timer and input, takes everything else that
//! already waits, lets the machine handle it all, writes what must be durable in one transaction and only
//! then performs the rest, in order, and answers questions. Batches form by themselves under load; a lone input waits
//! for nothing.
//! When the transaction fails nothing is performed: what the machine had begun is ended, the database
//! reopened, the machine restored from what it last made durable, and told again what no record holds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use job::Time;
use storage::records::{Batch, Records, RecordsError, Table};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, trace, warn};

use crate::clock;

/// Inputs and questions waiting for a machine. Senders wait when it is full.
const WAITING: usize = 4096;
/// Inputs handled before one transaction: keeps a batch's answers within a few milliseconds.
const AT_ONCE: usize = 512;
/// How long to wait before a database that still cannot be used is opened once more; doubles up to [`REOPEN_MOST`].
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
    /// Puts what the effect makes durable into the batch; false when it is to be performed, instead or as well.
    fn persist(effect: &Self::Effect, batch: &mut Batch) -> bool;
}

/// Performs effects that are not records. Quick: sending enqueues, starting spawns and reports back.
pub trait Perform<M: Machine>: Send + 'static {
    /// Takes out effects that the transaction itself can carry out, which is not written yet: puts what they are
    /// about into the batch, and answers with what the machine is to be told of them before it is. From then on it
    /// is as if they had been performed, or the transaction fails and nothing has happened.
    fn absorb(&mut self, effects: &mut Vec<M::Effect>, batch: &mut Batch) -> Vec<M::Input> {
        let _ = (effects, batch);
        Vec::new()
    }

    /// Performs the effects of one batch, in order.
    fn perform(&mut self, effects: Vec<M::Effect>);

    /// A transaction failed: these effects are not performed, and the machine that ordered them is gone. Ends
    /// what earlier effects have begun, so that the machine can come back from its records.
    ///
    /// The machine's queue is not read meanwhile: nothing in here may wait for room in it.
    fn failed(&mut self, effects: Vec<M::Effect>) -> impl Future<Output = ()> + Send;

    /// The machine is back from its records: it is told again what they do not hold.
    fn revived(&mut self, machine: &M);
}

/// A question that reads the machine after a batch: what it is told cannot be lost any more.
type Question<M> = Box<dyn FnOnce(&M) + Send>;

enum Work<M: Machine> {
    Input(M::Input),
    Question(Question<M>),
}

/// The way to a machine: cheap to clone.
pub struct Handle<M: Machine> {
    work: mpsc::Sender<Work<M>>,
    own: mpsc::UnboundedSender<M::Input>,
}

impl<M: Machine> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Handle { work: self.work.clone(), own: self.own.clone() }
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

    /// Hands over an input that this node itself must not lose and cannot wait with: what its other machine
    /// says, and the word that it stops. At once.
    ///
    /// This lane has no limit of its own. What is in it answers what the other machine had in hand, and its
    /// limits bound that: a machine that stands still is soon asked nothing more. There is no lease between
    /// the machines of one node, and no reconnect after which they would tell each other again.
    pub fn own_input(&self, input: M::Input) -> Result<(), Gone> {
        self.own.send(input).map_err(|_| Gone)
    }

    /// Reads the machine, after the inputs that were handed over before and only once what these changed is durable.
    /// Dropping the future forgets the answer.
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
    own: mpsc::UnboundedReceiver<M::Input>,
    /// Taken out of `work` while the machine could only be asked, oldest first; at most [`WAITING`].
    held: VecDeque<M::Input>,
}

/// A handle and the queue behind it.
pub fn channel<M: Machine>() -> (Handle<M>, Queue<M>) {
    let (work, works) = mpsc::channel(WAITING);
    let (own, owns) = mpsc::unbounded_channel();
    (Handle { work, own }, Queue { work: works, own: owns, held: VecDeque::new() })
}

impl<M: Machine> Queue<M> {
    /// Waits for work and takes what is there, up to [`AT_ONCE`] of each lane; 0 once nobody can send any more.
    /// Dropping the future loses nothing.
    async fn take(&mut self, into: &mut Vec<Work<M>>) -> usize {
        if !self.held.is_empty() {
            return self.take_waiting(into, AT_ONCE);
        }
        let first = tokio::select! {
            biased;
            Some(input) = self.own.recv() => Some(Work::Input(input)),
            work = self.work.recv() => work,
        };
        let Some(first) = first else { return 0 };
        into.push(first);
        1 + self.take_waiting(into, AT_ONCE)
    }

    /// Takes what is there, up to `most` of each lane.
    fn take_waiting(&mut self, into: &mut Vec<Work<M>>, most: usize) -> usize {
        let before = into.len();
        into.extend(std::iter::from_fn(|| self.own.try_recv().ok()).take(most).map(Work::Input));
        let held = self.held.len().min(most);
        into.extend(self.held.drain(..held).map(Work::Input));
        if self.held.is_empty() {
            into.extend(std::iter::from_fn(|| self.work.try_recv().ok()).take(most - held));
        }
        into.len() - before
    }

    /// Answers questions for so long, from a machine that may not be given inputs; these wait.
    async fn answer(&mut self, machine: Option<M>, pause: Duration) {
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        let Some(machine) = machine else { return over.await };
        loop {
            let work = tokio::select! {
                biased;
                () = &mut over => return,
                Some(work) = self.work.recv(), if self.held.len() < WAITING => work,
            };
            match work {
                Work::Question(question) => question(&machine),
                Work::Input(input) => self.held.push_back(input),
            }
        }
    }
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

/// What became of an attempt to bring a machine back.
enum Revival<M: Machine> {
    /// It is back.
    Back(M),
    /// The database cannot be written; with the machine when it can at least be read.
    NotYet(Failed<M>, Option<M>),
}

/// A transaction that failed, and the effects that are not performed because of it.
struct Failed<M: Machine> {
    error: RecordsError,
    effects: Vec<M::Effect>,
}

impl<M: Machine, P: Perform<M>> Shell<M, P> {
    /// Runs until `cancel`: restores the machine, then turns inputs into effects.
    ///
    /// Returns early only when the machine cannot be restored.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), RestoreError> {
        let Some(mut machine) = self.begin(&cancel).await? else { return Ok(()) };
        let mut waiting = Vec::with_capacity(AT_ONCE);
        let mut asked: Vec<Question<M>> = Vec::new();
        let mut out = Vec::new();
        loop {
            let wakeup = machine.next_wakeup().map(clock::instant);
            let (mut due, mut stopping) = (false, false);
            tokio::select! {
                biased;
                () = cancel.cancelled() => stopping = true,
                taken = self.queue.take(&mut waiting) => if taken == 0 { return Ok(()) },
                () = sleep_until(wakeup.unwrap_or_else(Instant::now)), if wakeup.is_some() => due = true,
            }
            if stopping {
                // What was handed over before the stop is still handled.
                self.queue.take_waiting(&mut waiting, usize::MAX);
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
                    Work::Question(question) => asked.push(question),
                }
            }
            machine.settle(now, &mut out);
            let mut batch = Batch::default();
            loop {
                let answers = self.perform.absorb(&mut out, &mut batch);
                if answers.is_empty() {
                    break;
                }
                for input in answers {
                    trace!(machine = M::NAME, ?input, "handle");
                    machine.handle(now, input, &mut out);
                }
                machine.settle(now, &mut out);
            }
            let done = match out.is_empty() && batch.is_empty() {
                true => Ok(()),
                false => self.finish(std::mem::take(&mut out), batch).await,
            };
            match done {
                Ok(()) => {
                    asked.drain(..).for_each(|question| question(&machine));
                    if stopping {
                        return Ok(());
                    }
                }
                Err(Failed { error, .. }) if stopping => {
                    warn!(machine = M::NAME, %error, "the last changes could not be written");
                    return Ok(());
                }
                Err(failed) => match self.recover(failed, std::mem::take(&mut asked), &cancel).await? {
                    Some(restored) => machine = restored,
                    None => return Ok(()),
                },
            }
        }
    }

    /// The machine at the start of the node; `None` when the node stops before it could be had.
    async fn begin(&mut self, cancel: &CancellationToken) -> Result<Option<M>, RestoreError> {
        let (machine, effects) = (self.restore)(&self.records, clock::now())?;
        match self.finish(effects, Batch::default()).await {
            Ok(()) => Ok(Some(machine)),
            Err(failed) => self.recover(failed, Vec::new(), cancel).await,
        }
    }

    /// Makes durable what must be, with what is in the batch already, then performs the rest.
    async fn finish(&mut self, effects: Vec<M::Effect>, mut batch: Batch) -> Result<(), Failed<M>> {
        let absorbed = !batch.is_empty();
        let mut rest = effects;
        rest.retain(|effect| !M::persist(effect, &mut batch));
        if !batch.is_empty()
            && let Err(error) = self.records.commit(batch).await
        {
            return Err(Failed { error, effects: rest });
        }
        for effect in &rest {
            trace!(machine = M::NAME, ?effect, "perform");
        }
        if absorbed || !rest.is_empty() {
            self.perform.perform(rest);
        }
        Ok(())
    }

    /// The machine from its records after a transaction failed; `None` when the node stops first.
    ///
    /// A database that cannot be used (a full disk, a disk that is gone) is tried again until it can; what
    /// waits meanwhile waits in its bounded queue, and questions, first those that were `asked` before it failed, are
    /// answered as soon as it can be read.
    async fn recover(
        &mut self,
        mut failed: Failed<M>,
        mut asked: Vec<Question<M>>,
        cancel: &CancellationToken,
    ) -> Result<Option<M>, RestoreError> {
        error!(machine = M::NAME, error = %chain(&failed.error), "the record could not be written; restoring");
        let mut pause = REOPEN_FIRST;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(None),
                () = self.perform.failed(failed.effects) => {}
            }
            let (again, machine) = match self.revive().await? {
                Revival::Back(machine) => {
                    info!(machine = M::NAME, "the record can be written again");
                    self.perform.revived(&machine);
                    asked.into_iter().for_each(|question| question(&machine));
                    return Ok(Some(machine));
                }
                Revival::NotYet(again, machine) => (again, machine),
            };
            if let Some(machine) = &machine {
                asked.drain(..).for_each(|question| question(machine));
            }
            failed = again;
            warn!(machine = M::NAME, error = %chain(&failed.error), "the record cannot be used yet; trying again");
            tokio::select! {
                () = cancel.cancelled() => return Ok(None),
                () = self.queue.answer(machine, pause) => pause = (pause * 2).min(REOPEN_MOST),
            }
        }
    }

    /// Reopens the database, without which no read can be relied on, and restores the machine.
    async fn revive(&mut self) -> Result<Revival<M>, RestoreError> {
        let restored = match self.records.reopen().await {
            Ok(()) => (self.restore)(&self.records, clock::now()),
            Err(error) => Err(error.into()),
        };
        let (machine, effects) = match restored {
            Ok(restored) => restored,
            Err(RestoreError::Records(error)) => {
                return Ok(Revival::NotYet(Failed { error, effects: Vec::new() }, None));
            }
            Err(other) => return Err(other),
        };
        Ok(match self.finish(effects, Batch::default()).await {
            Ok(()) => Revival::Back(machine),
            Err(failed) => Revival::NotYet(failed, Some(machine)),
        })
    }
}

/// An error with its causes, in one line.
fn chain(error: &RecordsError) -> String {
    crate::api::error::chain(error)
}

#[cfg(test)]
mod tests;
