//! The one thread that writes: takes whatever waits and commits it as one transaction.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tokio::sync::{mpsc, oneshot};

use super::db::Db;
use super::{Batch, RecordsError};

/// Batches waiting for the thread; committers wait when it is full.
const QUEUE_CAPACITY: usize = 1024;
/// A transaction takes no further batches once it is this large, so that the first of them is not kept waiting.
const GROUP_BYTES: usize = 4 * 1024 * 1024;

type Answer = oneshot::Sender<Result<(), RecordsError>>;

#[derive(Debug)]
enum Command {
    Commit(Batch, Answer),
    Reopen(Answer),
}

/// Handle to the thread, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Writer {
    db: Arc<Db>,
    /// `None` only while it is dropped.
    queue: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(db: Db) -> Result<Self, RecordsError> {
        let db = Arc::new(db);
        let (queue, commands) = mpsc::channel(QUEUE_CAPACITY);
        let shared = Arc::clone(&db);
        let thread = thread::Builder::new()
            .name("records".to_owned())
            .spawn(move || run(&shared, commands))
            .map_err(|error| RecordsError::Commit(Arc::new(redb::Error::Io(error))))?;
        Ok(Writer { db, queue: Some(queue), thread: Some(thread) })
    }

    pub(super) fn db(&self) -> &Db {
        &self.db
    }

    pub(super) async fn commit(&self, batch: Batch) -> Result<(), RecordsError> {
        batch.check()?;
        if batch.is_empty() {
            return Ok(());
        }
        self.ask(|answer| Command::Commit(batch, answer)).await
    }

    pub(super) async fn reopen(&self) -> Result<(), RecordsError> {
        self.ask(Command::Reopen).await
    }

    pub(super) fn commit_blocking(&self, batch: Batch) -> Result<(), RecordsError> {
        batch.check()?;
        if batch.is_empty() {
            return Ok(());
        }
        let (answer, answered) = oneshot::channel();
        let command = Command::Commit(batch, answer);
        self.queue().blocking_send(command).map_err(|_| RecordsError::Stopped)?;
        answered.blocking_recv().map_err(|_| RecordsError::Stopped)?
    }

    async fn ask(&self, command: impl FnOnce(Answer) -> Command) -> Result<(), RecordsError> {
        let (answer, answered) = oneshot::channel();
        self.queue().send(command(answer)).await.map_err(|_| RecordsError::Stopped)?;
        answered.await.map_err(|_| RecordsError::Stopped)?
    }

    fn queue(&self) -> &mpsc::Sender<Command> {
        self.queue.as_ref().expect("the queue is taken only in drop")
    }
}

impl Drop for Writer {
    /// Waits for what is queued, and for the file to be closed.
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(db = ?self.db, "the database's thread panicked");
        }
    }
}

fn run(db: &Db, mut commands: mpsc::Receiver<Command>) {
    while let Some(first) = commands.blocking_recv() {
        let mut next = Some(first);
        while let Some(command) = next.take() {
            next = match command {
                Command::Commit(batch, answer) => commit_group(db, &mut commands, batch, answer),
                Command::Reopen(answer) => {
                    tell(answer, db.reopen());
                    None
                }
            };
        }
    }
}

/// Commits a batch with all that wait behind it; answers with the command that ended the group, if one did.
fn commit_group(
    db: &Db,
    commands: &mut mpsc::Receiver<Command>,
    first: Batch,
    answer: Answer,
) -> Option<Command> {
    let mut group = first;
    let mut answers = vec![answer];
    let mut after = None;
    while group.size_bytes() < GROUP_BYTES && answers.len() < QUEUE_CAPACITY {
        match commands.try_recv() {
            Ok(Command::Commit(batch, answer)) => {
                group.append(batch);
                answers.push(answer);
            }
            Ok(other) => {
                after = Some(other);
                break;
            }
            Err(_) => break,
        }
    }
    let result = db.commit(&group);
    if let Err(error) = &result {
        tracing::error!(?db, changes = group.len(), %error, "a transaction failed");
    }
    for answer in answers {
        tell(answer, result.clone());
    }
    after
}

/// A caller that no longer waits is not an error: its batch is applied all the same.
fn tell(answer: Answer, result: Result<(), RecordsError>) {
    let _ = answer.send(result);
}
