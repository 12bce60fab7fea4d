//! Gathers a job's output from its partitions' sources into one stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use gossip::owner::ExecutionView;
use job::state::{ExecutionState, JobState};
use job::{ExecutionKey, JobId};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use super::piece::{Broken, Chunk, Piece, Stream};
use super::source::{self, End, Live, Passed};
use super::tail::Tail;
use super::{WAITING, Wanted};
use crate::api::error::ApiError;
use crate::read;
use crate::state::App;

/// Executions that are followed at once for one client.
const FOLLOWED: usize = 64;
/// Between attempts to follow an execution whose worker cannot be asked.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How long the follower of an execution that has ended may take for what is left; then its stored output,
/// which is the same, takes over.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long the output of an execution that has just ended may take to come from its worker.
const ON_ITS_WAY: Duration = Duration::from_secs(10);
/// Partitions whose missing output is explained one by one.
const EXPLAINED: usize = 4;

/// Gathers the output of a job version into a channel; ends when all was passed on, the client goes away, or the
/// node stops. What cannot be had is told last.
pub async fn gather(app: App, job: JobId, version: u32, wanted: Wanted, client: mpsc::Sender<Piece>) {
    let mut changes = app.desk.watch(job);
    let mut gatherer = Gatherer {
        app,
        job,
        version,
        wanted,
        client,
        several: false,
        parts: BTreeMap::new(),
        followers: JoinSet::new(),
    };
    let broken = match gatherer.run(&mut changes).await {
        Ok(()) => gatherer.missing().map(Broken::Missing),
        Err(Stop::Left) => None,
        Err(Stop::NodeStops) => Some(Broken::Cut("the node is stopping".to_owned())),
        Err(Stop::Refused(error)) => Some(Broken::Missing(error.message)),
    };
    if let Some(broken) = broken {
        // A client that went away need not know.
        let _ = gatherer.client.send(Err(broken)).await;
    }
}

/// Why gathering ends before all was passed on.
enum Stop {
    /// The client went away.
    Left,
    /// The node stops.
    NodeStops,
    /// The job cannot be read.
    Refused(ApiError),
}

struct Gatherer {
    app: App,
    job: JobId,
    version: u32,
    wanted: Wanted,
    client: mpsc::Sender<Piece>,
    /// Several write, so lines are kept whole.
    several: bool,
    parts: BTreeMap<u32, Part>,
    followers: JoinSet<(ExecutionKey, End)>,
}

/// How far a partition's output was passed on, and from which execution.
struct Part {
    key: ExecutionKey,
    passed: Arc<Passed>,
    follower: Option<AbortHandle>,
    /// When its worker was asked last.
    asked: Option<Instant>,
    /// The last live source's end.
    end: Option<End>,
    /// Its stored output was passed on.
    finished: bool,
    /// Why something of it is missing.
    trouble: Option<String>,
}

impl Part {
    fn new(key: ExecutionKey) -> Self {
        Part {
            key,
            passed: Arc::default(),
            follower: None,
            asked: None,
            end: None,
            finished: false,
            trouble: None,
        }
    }

    /// Whether its worker is asked for its output: not again while it does, nor at once when it failed.
    fn may_follow(&self) -> bool {
        let is_due = self.asked.is_none_or(|asked| asked.elapsed() >= AGAIN_AFTER);
        self.follower.is_none() && self.end != Some(End::Done) && is_due
    }

    fn is_broken(&self) -> bool {
        !self.finished && self.follower.is_none() && matches!(self.end, Some(End::Broke(_) | End::Gone))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(follower) = &self.follower {
            follower.abort();
        }
    }
}

/// What stands for a partition.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Standing<'a> {
    /// Its output is stored and final.
    Stored(&'a ExecutionView),
    /// Its newest attempt runs.
    Running(&'a ExecutionView),
    /// It runs, if at all, on a worker that is silent.
    Silent(&'a ExecutionView),
}

impl Gatherer {
    async fn run(&mut self, changes: &mut watch::Receiver<u64>) -> Result<(), Stop> {
        let ended = match self.wanted.tail {
            Some(lines) => self.tail(lines, changes).await?,
            None if self.wanted.follow => false,
            None => self.look(changes).await?,
        };
        if ended || !self.wanted.follow {
            return self.close_all().await;
        }
        loop {
            changes.mark_unchanged();
            if self.pass(true).await? {
                return self.close_all().await;
            }
            self.wait(changes).await?;
        }
    }

    /// Waits until there may be something new. A follower that ends is no news: its partition's end follows.
    async fn wait(&mut self, changes: &mut watch::Receiver<u64>) -> Result<(), Stop> {
        let mut again = std::pin::pin!(sleep(AGAIN_AFTER));
        loop {
            let broken = self.parts.values().any(Part::is_broken);
            tokio::select! {
                changed = changes.changed() => return changed.map_err(|_| Stop::NodeStops),
                () = self.client.closed() => return Err(Stop::Left),
                () = self.app.cancel.cancelled() => return Err(Stop::NodeStops),
                Some(ended) = self.followers.join_next() => self.ended(ended),
                () = again.as_mut(), if broken => return Ok(()),
            }
        }
    }

    /// The last lines of what is there now.
    async fn tail(&mut self, lines: usize, changes: &mut watch::Receiver<u64>) -> Result<bool, Stop> {
        let (tail, mut kept) = mpsc::channel(WAITING);
        let client = std::mem::replace(&mut self.client, tail);
        let look = async {
            let ended = self.look(changes).await;
            // The channel to the tail ends with this.
            self.client = client;
            ended
        };
        let keep = async {
            let mut tail = Tail::new(lines);
            while let Some(Ok(chunk)) = kept.recv().await {
                tail.push(&chunk);
            }
            tail
        };
        let (ended, tail) = tokio::join!(look, keep);
        for chunk in tail.into_chunks() {
            self.client.send(Ok(chunk)).await.map_err(|_| Stop::Left)?;
        }
        ended
    }

    /// Passes on what is there now; whether the job has ended. What is just on its way from its worker counts.
    async fn look(&mut self, changes: &mut watch::Receiver<u64>) -> Result<bool, Stop> {
        let deadline = Instant::now() + ON_ITS_WAY;
        loop {
            changes.mark_unchanged();
            let ended = self.pass(false).await?;
            let comes = self.parts.values().any(|part| part.is_broken() && part.end == Some(End::Gone));
            if ended || self.wanted.follow || !comes {
                return Ok(ended);
            }
            tokio::select! {
                changed = changes.changed() => changed.map_err(|_| Stop::NodeStops)?,
                () = self.client.closed() => return Err(Stop::Left),
                () = self.app.cancel.cancelled() => return Err(Stop::NodeStops),
                () = sleep_until(deadline) => return Ok(false),
            }
        }
    }

    /// Passes on what is there now, and begins to follow what runs; whether the job has ended.
    async fn pass(&mut self, follow: bool) -> Result<bool, Stop> {
        let wanted = self.wanted.clone();
        let read = read::with(&self.app, self.job, Some(self.version), move |job| {
            let executions = job.executions(0..usize::MAX).filter(|execution| wanted.wants(execution));
            (job.summary(), executions.collect::<Vec<_>>())
        });
        let (summary, executions) = read.await.map_err(Stop::Refused)?;
        let one = self.wanted.partition.is_some() || self.wanted.execution.is_some();
        self.several = summary.count != 1 && !one;
        let state = summary.state;
        for executions in by_partition(&executions).into_values() {
            match standing(&executions, state, self.wanted.execution.is_some()) {
                Some(Standing::Stored(execution)) => self.pass_stored(execution).await?,
                Some(Standing::Running(execution)) if follow => self.follow(execution).await?,
                Some(Standing::Running(execution)) => self.pass_running(execution).await?,
                // Who follows waits for it, or for its backup.
                Some(Standing::Silent(_)) if follow => {}
                Some(Standing::Silent(execution)) => {
                    let message = format!("its worker {} is silent", execution.worker);
                    self.part(execution.key).await?.trouble = Some(message);
                }
                None => {}
            }
        }
        Ok(state.is_terminal())
    }

    /// The partition's record, for this execution. Another attempt begins on a line of its own.
    async fn part(&mut self, key: ExecutionKey) -> Result<&mut Part, Stop> {
        if let Some(other) = self.parts.get(&key.partition).filter(|part| part.key != key) {
            let passed = Arc::clone(&other.passed);
            self.parts.remove(&key.partition);
            self.close(key.partition, &passed).await?;
        }
        Ok(self.parts.entry(key.partition).or_insert_with(|| Part::new(key)))
    }

    async fn pass_stored(&mut self, execution: &ExecutionView) -> Result<(), Stop> {
        let key = execution.key;
        if self.part(key).await?.finished {
            return Ok(());
        }
        // Its follower has more of it, or ends by itself: the execution has ended.
        self.let_end(key).await?;
        let passed = Arc::clone(&self.part(key).await?.passed);
        let end = source::stored(&self.app, execution, passed, self.several, self.client.clone()).await;
        let part = self.part(key).await?;
        part.finished = end == End::Done;
        part.trouble = None;
        match end {
            End::Left => return Err(Stop::Left),
            End::Broke(text) => part.trouble = Some(text),
            End::Done | End::Gone => {}
        }
        Ok(())
    }

    /// Waits for the follower of an execution that has ended.
    async fn let_end(&mut self, key: ExecutionKey) -> Result<(), Stop> {
        let mut enough = std::pin::pin!(sleep(LAST_WORDS));
        while self.part(key).await?.follower.is_some() {
            tokio::select! {
                Some(ended) = self.followers.join_next() => self.ended(ended),
                () = self.client.closed() => return Err(Stop::Left),
                () = enough.as_mut() => {
                    if let Some(follower) = self.part(key).await?.follower.take() {
                        follower.abort();
                    }
                }
            }
        }
        Ok(())
    }

    async fn follow(&mut self, execution: &ExecutionView) -> Result<(), Stop> {
        let following = self.parts.values().filter(|part| part.follower.is_some()).count();
        let (app, client) = (App::clone(&self.app), self.client.clone());
        let live = self.live(execution, true);
        let part = self.part(execution.key).await?;
        if following >= FOLLOWED || !part.may_follow() {
            return Ok(());
        }
        (part.asked, part.end) = (Some(Instant::now()), None);
        let (key, passed) = (execution.key, Arc::clone(&part.passed));
        let follower = self.followers.spawn(async move { (key, live.run(app, passed, client).await) });
        self.part(key).await?.follower = Some(follower);
        Ok(())
    }

    async fn pass_running(&mut self, execution: &ExecutionView) -> Result<(), Stop> {
        let (app, client) = (App::clone(&self.app), self.client.clone());
        let live = self.live(execution, false);
        let passed = Arc::clone(&self.part(execution.key).await?.passed);
        let end = live.run(app, passed, client).await;
        let part = self.part(execution.key).await?;
        match &end {
            End::Left => return Err(Stop::Left),
            End::Broke(text) => part.trouble = Some(text.clone()),
            End::Gone => part.trouble = Some("it has just ended, and its output is not here yet".to_owned()),
            End::Done => part.trouble = None,
        }
        part.end = Some(end);
        Ok(())
    }

    fn live(&self, execution: &ExecutionView, follow: bool) -> Live {
        Live {
            execution: execution.key,
            worker: execution.worker,
            follow,
            whole_lines: self.several,
            // A line that will be followed to its end is not begun before.
            last_line: follow || !self.wanted.follow,
        }
    }

    fn ended(&mut self, ended: Result<(ExecutionKey, End), JoinError>) {
        // One that was told to end, or panicked, is replaced by what is stored.
        let Ok((key, end)) = ended else { return };
        if let Some(part) = self.parts.get_mut(&key.partition).filter(|part| part.key == key) {
            part.follower = None;
            part.end = Some(end);
        }
    }

    /// Ends the unfinished last lines of a partition that nothing follows from.
    async fn close(&self, partition: u32, passed: &Passed) -> Result<(), Stop> {
        for stream in Stream::ALL {
            if passed.close(stream) {
                let chunk = Chunk { stream, partition, bytes: "\n".into() };
                self.client.send(Ok(chunk)).await.map_err(|_| Stop::Left)?;
            }
        }
        Ok(())
    }

    async fn close_all(&self) -> Result<(), Stop> {
        if self.several {
            for (partition, part) in &self.parts {
                self.close(*partition, &part.passed).await?;
            }
        }
        Ok(())
    }

    /// What could not be passed on, and why.
    fn missing(&self) -> Option<String> {
        let troubles = self.parts.values().filter_map(|part| Some((part, part.trouble.as_ref()?)));
        let texts: Vec<String> = troubles
            .map(|(part, why)| {
                format!("output of partition {} is missing ({}): {why}", part.key.partition, part.key.id())
            })
            .collect();
        let more = texts.len().saturating_sub(EXPLAINED);
        let mut text = texts.get(..texts.len().min(EXPLAINED))?.join("; ");
        if more > 0 {
            text.push_str(&format!("; and of {more} more partitions"));
        }
        (!text.is_empty()).then_some(text)
    }
}

fn by_partition(executions: &[ExecutionView]) -> BTreeMap<u32, Vec<&ExecutionView>> {
    let mut partitions: BTreeMap<u32, Vec<&ExecutionView>> = BTreeMap::new();
    for execution in executions {
        partitions.entry(execution.key.partition).or_default().push(execution);
    }
    partitions
}

/// What stands for a partition, of whose attempts these are, in their order: the committed one; of a partition
/// that failed for good, the last one that left something; else the newest that runs and whose worker is heard.
fn standing<'a>(executions: &[&'a ExecutionView], job: JobState, named: bool) -> Option<Standing<'a>> {
    let newest = |state| executions.iter().rev().filter(move |one| one.state == state).copied();
    if let Some(completed) = newest(ExecutionState::Completed).next() {
        return Some(Standing::Stored(completed));
    }
    let is_last = executions.last().is_some_and(|last| last.state == ExecutionState::Failed);
    let failed_for_good = job == JobState::Failed || (job.is_terminal() && is_last);
    if failed_for_good || named {
        let failed = newest(ExecutionState::Failed).find(|execution| execution.result.is_some());
        if let Some(failed) = failed {
            return Some(Standing::Stored(failed));
        }
    }
    let heard = newest(ExecutionState::Running).find(|execution| !execution.unknown).map(Standing::Running);
    heard.or_else(|| newest(ExecutionState::Running).next().map(Standing::Silent))
}

#[cfg(test)]
mod tests {
    use gossip::message::{ResultInfo, Usage};
    use job::state::DesiredState;
    use job::{Cid, PeerId};

    use super::*;

    fn attempt(attempt: u32, state: ExecutionState) -> ExecutionView {
        let key = ExecutionKey { job: JobId([1; 16]), version: 1, partition: 0, attempt };
        let result = state.is_terminal().then(|| ResultInfo {
            cid: Cid::default(),
            size: 1,
            published: String::new(),
        });
        ExecutionView {
            key,
            id: key.id(),
            worker: PeerId([2; 32]),
            desired: DesiredState::Running,
            state,
            message: String::new(),
            unknown: false,
            created: 0,
            modified: 0,
            started: None,
            ended: None,
            exit_code: None,
            fault: None,
            result,
            holders: Vec::new(),
            held: false,
            usage: Usage::default(),
        }
    }

    fn stands(executions: &[ExecutionView], job: JobState) -> Option<(bool, u32)> {
        let executions: Vec<&ExecutionView> = executions.iter().collect();
        match standing(&executions, job, false)? {
            Standing::Stored(execution) => Some((true, execution.key.attempt)),
            Standing::Running(execution) | Standing::Silent(execution) => {
                Some((false, execution.key.attempt))
            }
        }
    }

    #[test]
    fn the_backup_of_a_silent_worker_is_followed_instead() {
        let silent = ExecutionView { unknown: true, ..attempt(1, ExecutionState::Running) };
        let backup = attempt(2, ExecutionState::Running);
        assert_eq!(stands(&[silent.clone(), backup.clone()], JobState::Running), Some((false, 2)));
        let heard_again = attempt(1, ExecutionState::Running);
        let silent_backup = ExecutionView { unknown: true, ..backup };
        assert_eq!(stands(&[heard_again, silent_backup], JobState::Running), Some((false, 1)));
        let alone = [&silent];
        assert!(matches!(standing(&alone, JobState::Running, false), Some(Standing::Silent(_))));
    }

    #[test]
    fn only_the_committed_attempt_is_shown_once_there_is_one() {
        let attempts = [attempt(1, ExecutionState::Failed), attempt(2, ExecutionState::Completed)];
        assert_eq!(stands(&attempts, JobState::Completed), Some((true, 2)));
        let raced = [attempt(1, ExecutionState::Completed), attempt(2, ExecutionState::Cancelled)];
        assert_eq!(stands(&raced, JobState::Completed), Some((true, 1)));
    }

    #[test]
    fn a_failed_attempt_is_shown_only_when_its_partition_failed_for_good() {
        let retried = [attempt(1, ExecutionState::Failed), attempt(2, ExecutionState::Running)];
        assert_eq!(stands(&retried, JobState::Running), Some((false, 2)));
        let failed = [attempt(1, ExecutionState::Failed), attempt(2, ExecutionState::Failed)];
        assert_eq!(stands(&failed, JobState::Failed), Some((true, 2)));
        let stopped = [attempt(1, ExecutionState::Failed), attempt(2, ExecutionState::Cancelled)];
        assert_eq!(stands(&stopped, JobState::Stopped), None);
        assert_eq!(stands(&[attempt(1, ExecutionState::Failed)], JobState::Running), None);
    }
}
