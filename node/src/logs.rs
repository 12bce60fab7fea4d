//! A job's output, gathered: from the workers while its executions run, from their results after.
//!
//! Each partition has one source at a time. What was already passed on of an execution is not passed on
//! again when its stored output takes over; another attempt of the partition begins from its start.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::Method;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt};
use gossip::owner::{ExecutionView, JobView};
use http_body_util::BodyExt;
use job::state::ExecutionState;
use job::{ExecutionId, ExecutionKey, JobId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::debug;

use crate::api::error::ApiError;
use crate::state::App;
use crate::{read, remote};

/// Chunks waiting for a client that reads slowly; sources wait when it is full.
pub const WAITING: usize = 16;
/// A line longer than this is passed on in pieces.
const LINE_BYTES: usize = 64 << 10;
/// Executions that are followed at once for one client.
const FOLLOWED: usize = 64;
/// Largest chunk on the wire between peers.
const CHUNK_BYTES: usize = 1 << 20;

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stream {
    /// Standard output.
    Out = 1,
    /// Standard error.
    Err = 2,
}

impl Stream {
    const ALL: [Stream; 2] = [Stream::Out, Stream::Err];

    fn file(self) -> &'static str {
        match self {
            Stream::Out => "stdout",
            Stream::Err => "stderr",
        }
    }

    /// The stream with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Stream::ALL.into_iter().find(|stream| *stream as u8 == number)
    }
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Which stream.
    pub stream: Stream,
    /// Which partition.
    pub partition: u32,
    /// The bytes.
    pub bytes: Bytes,
}

impl Chunk {
    /// The chunk on the wire: stream, partition, length, bytes.
    pub fn encode(&self, into: &mut BytesMut) {
        into.extend_from_slice(&[self.stream as u8]);
        into.extend_from_slice(&self.partition.to_be_bytes());
        into.extend_from_slice(&u32::try_from(self.bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        into.extend_from_slice(&self.bytes);
    }

    /// Takes one whole chunk off the front; `None` when there is none yet, an error when there never will be.
    pub fn decode(from: &mut BytesMut) -> Result<Option<Self>, BadChunk> {
        let Some(head) = from.first_chunk::<9>().copied() else { return Ok(None) };
        let stream = Stream::from_number(head[0]).ok_or(BadChunk)?;
        let partition = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let length = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) as usize;
        if length > CHUNK_BYTES {
            return Err(BadChunk);
        }
        if from.len() < 9 + length {
            return Ok(None);
        }
        let bytes = from.split_to(9 + length).split_off(9).freeze();
        Ok(Some(Chunk { stream, partition, bytes }))
    }
}

/// Bytes that are no chunk.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("bytes that are no chunk of output")]
pub struct BadChunk;

/// What a client wants to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Go on until the job ends.
    pub follow: bool,
    /// Of what is there, only this many last lines.
    pub tail: Option<usize>,
    /// Only this partition.
    pub partition: Option<u32>,
    /// Only this execution: the beginning of its id.
    pub execution: Option<String>,
}

/// Gathers a job's output into a channel; ends when all was passed on, the client goes away, or the node stops.
pub async fn gather(
    app: App,
    job: JobId,
    wanted: Wanted,
    client: mpsc::Sender<Chunk>,
) -> Result<(), ApiError> {
    let mut changes = app.desk.watch(job);
    let mut progress = Progress::default();
    if let Some(lines) = wanted.tail {
        let (tail, mut kept) = mpsc::channel(WAITING);
        let ring = async {
            let mut ring = Ring::new(lines);
            while let Some(chunk) = kept.recv().await {
                ring.push(chunk);
            }
            ring
        };
        let once = async {
            let done = pass(&app, job, &wanted, false, &mut progress, &tail).await;
            drop(tail);
            done
        };
        let (done, ring) = tokio::join!(once, ring);
        for chunk in ring.into_chunks() {
            if client.send(chunk).await.is_err() {
                return Ok(());
            }
        }
        if done? || !wanted.follow {
            return Ok(());
        }
    }
    loop {
        changes.mark_unchanged();
        if pass(&app, job, &wanted, wanted.follow, &mut progress, &client).await? || !wanted.follow {
            return Ok(());
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            () = client.closed() => return Ok(()),
            () = app.cancel.cancelled() => return Ok(()),
            Some(ended) = progress.followers.join_next() => progress.ended(ended),
        }
    }
}

/// What was passed on so far.
#[derive(Default)]
struct Progress {
    /// Bytes of each execution's streams.
    passed: BTreeMap<(ExecutionKey, Stream), u64>,
    /// Executions whose output is passed on by a follower right now.
    following: BTreeMap<u32, ExecutionKey>,
    /// Partitions whose stored output was passed on.
    finished: BTreeMap<u32, ExecutionKey>,
    followers: JoinSet<(ExecutionKey, [u64; 2])>,
}

impl Progress {
    fn ended(&mut self, ended: Result<(ExecutionKey, [u64; 2]), tokio::task::JoinError>) {
        let Ok((key, passed)) = ended else { return };
        for (stream, bytes) in Stream::ALL.into_iter().zip(passed) {
            self.passed.insert((key, stream), bytes);
        }
        self.following.retain(|_, followed| *followed != key);
    }

    fn passed(&self, key: ExecutionKey) -> [u64; 2] {
        Stream::ALL.map(|stream| self.passed.get(&(key, stream)).copied().unwrap_or(0))
    }
}

/// Passes on what is there now, and begins to follow what runs; true when the job has ended.
async fn pass(
    app: &App,
    job: JobId,
    wanted: &Wanted,
    follow: bool,
    progress: &mut Progress,
    client: &mpsc::Sender<Chunk>,
) -> Result<bool, ApiError> {
    let view = read::view(app, job, None).await?;
    let several = view.summary.count > 1 && wanted.partition.is_none() && wanted.execution.is_none();
    let ended = view.summary.state.is_terminal();
    for (partition, executions) in by_partition(&view, wanted) {
        if let Some(execution) = stored(&executions, ended || wanted.execution.is_some()) {
            if progress.finished.get(&partition) == Some(&execution.key) {
                continue;
            }
            // Its follower has more of it, or ends by itself: the execution has ended.
            while progress.following.get(&partition) == Some(&execution.key) {
                match progress.followers.join_next().await {
                    Some(ended) => progress.ended(ended),
                    None => drop(progress.following.remove(&partition)),
                }
            }
            let passed = progress.passed(execution.key);
            if pass_stored(app, execution, passed, client).await.is_err() {
                return Ok(true);
            }
            progress.finished.insert(partition, execution.key);
        } else if let Some(execution) = running(&executions) {
            if follow && !progress.following.contains_key(&partition) && progress.following.len() < FOLLOWED {
                progress.following.insert(partition, execution.key);
                let source = Source {
                    execution: execution.key,
                    worker: execution.worker,
                    follow,
                    whole_lines: several,
                };
                let passed = progress.passed(execution.key);
                progress.followers.spawn(source.run(app.clone(), passed, client.clone()));
            } else if !follow {
                let source = Source {
                    execution: execution.key,
                    worker: execution.worker,
                    follow,
                    whole_lines: several,
                };
                let ended = source.run(app.clone(), progress.passed(execution.key), client.clone()).await;
                progress.ended(Ok(ended));
            }
        }
    }
    Ok(ended)
}

fn by_partition<'a>(view: &'a JobView, wanted: &Wanted) -> BTreeMap<u32, Vec<&'a ExecutionView>> {
    let mut partitions: BTreeMap<u32, Vec<&ExecutionView>> = BTreeMap::new();
    for execution in &view.executions {
        let this = wanted.partition.is_none_or(|partition| partition == execution.key.partition)
            && wanted.execution.as_deref().is_none_or(|prefix| execution.id.to_string().starts_with(prefix));
        if this {
            partitions.entry(execution.key.partition).or_default().push(execution);
        }
    }
    partitions
}

/// The execution whose stored output stands for its partition: the committed one; of a partition that
/// failed for good, the last one that left something.
fn stored<'a>(executions: &[&'a ExecutionView], ended: bool) -> Option<&'a ExecutionView> {
    let has = |execution: &&&&ExecutionView| execution.result.is_some();
    let completed = executions.iter().find(|execution| execution.state == ExecutionState::Completed);
    let failed = || {
        executions.iter().rev().find(|execution| execution.state == ExecutionState::Failed && has(&execution))
    };
    completed.or_else(|| if ended { failed() } else { None }).copied()
}

fn running<'a>(executions: &[&'a ExecutionView]) -> Option<&'a ExecutionView> {
    executions.iter().find(|execution| execution.state == ExecutionState::Running).copied()
}

/// The client went away.
struct Left;

async fn pass_stored(
    app: &App,
    execution: &ExecutionView,
    passed: [u64; 2],
    client: &mpsc::Sender<Chunk>,
) -> Result<(), Left> {
    let Some(result) = &execution.result else { return Ok(()) };
    for (stream, skip) in Stream::ALL.into_iter().zip(passed) {
        let hints = [execution.worker];
        let mut bytes = match app.content.read(&result.cid, stream.file(), skip, &hints).await {
            Ok(bytes) => bytes,
            Err(error) => {
                debug!(cid = %result.cid, %error, "stored output is not to be had");
                continue;
            }
        };
        while let Some(piece) = bytes.next().await {
            let Ok(bytes) = piece else { break };
            let chunk = Chunk { stream, partition: execution.key.partition, bytes };
            client.send(chunk).await.map_err(|_| Left)?;
        }
    }
    Ok(())
}

/// The output of a running execution, here or at its worker.
struct Source {
    execution: ExecutionKey,
    worker: job::PeerId,
    follow: bool,
    whole_lines: bool,
}

impl Source {
    /// Passes on what comes after `passed`; answers with how much has been passed on in all.
    async fn run(self, app: App, passed: [u64; 2], client: mpsc::Sender<Chunk>) -> (ExecutionKey, [u64; 2]) {
        let key = self.execution;
        let mut out = Passer {
            key,
            skip: passed,
            passed,
            whole_lines: self.whole_lines,
            partial: [BytesMut::new(), BytesMut::new()],
            client,
        };
        let done = if self.worker == app.me {
            local(&app, key.id(), self.follow, &mut out).await
        } else {
            self.remote(&app, &mut out).await
        };
        if done.is_ok() {
            // An unfinished last line is output like any other.
            let _ = out.flush().await;
        }
        (key, out.passed)
    }

    async fn remote(&self, app: &App, out: &mut Passer) -> Result<(), Left> {
        let path = format!("/api/v1/worker/executions/{}/logs?follow={}", self.execution.id(), self.follow);
        let answer = match remote::ask(&app.host, self.worker, Method::GET, &path, Body::empty(), None).await
        {
            Ok(answer) if answer.status().is_success() => answer,
            Ok(answer) => {
                debug!(status = %answer.status(), "the worker has no live output");
                return Ok(());
            }
            Err(error) => {
                debug!(%error, "the worker cannot be asked for output");
                return Ok(());
            }
        };
        let mut body = answer.into_body();
        let mut buffer = BytesMut::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend_from_slice(&data);
            while let Ok(Some(chunk)) = Chunk::decode(&mut buffer) {
                out.pass(chunk.stream, chunk.bytes).await?;
            }
            if buffer.len() > CHUNK_BYTES + 9 {
                break;
            }
        }
        Ok(())
    }
}

/// Passes on the output of an execution of this node.
async fn local(app: &App, id: ExecutionId, follow: bool, out: &mut Passer) -> Result<(), Left> {
    let Some((_, running)) = app.bench.live.find(id) else { return Ok(()) };
    let mut output = running.output();
    loop {
        let next = if follow { Some(output.next().await) } else { output.next().now_or_never() };
        match next {
            Some(Ok(Some(chunk))) => {
                let stream = match chunk.stream {
                    engines::Stream::Stdout => Stream::Out,
                    engines::Stream::Stderr => Stream::Err,
                };
                out.pass(stream, chunk.bytes).await?;
            }
            Some(Err(error)) => {
                debug!(%error, "live output cannot be read");
                return Ok(());
            }
            Some(Ok(None)) | None => return Ok(()),
        }
    }
}

/// Feeds one execution's output to a client: skips what it has, keeps lines whole when several executions
/// are mixed.
struct Passer {
    key: ExecutionKey,
    skip: [u64; 2],
    passed: [u64; 2],
    whole_lines: bool,
    partial: [BytesMut; 2],
    client: mpsc::Sender<Chunk>,
}

impl Passer {
    async fn pass(&mut self, stream: Stream, mut bytes: Bytes) -> Result<(), Left> {
        let at = stream as usize - 1;
        let skip = self.skip[at].min(bytes.len() as u64);
        self.skip[at] -= skip;
        bytes = bytes.split_off(usize::try_from(skip).unwrap_or(bytes.len()));
        if bytes.is_empty() {
            return Ok(());
        }
        if !self.whole_lines {
            return self.send(stream, bytes).await;
        }
        let partial = &mut self.partial[at];
        partial.extend_from_slice(&bytes);
        let whole = match partial.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => partial.split_to(end + 1),
            None if partial.len() > LINE_BYTES => partial.split(),
            None => return Ok(()),
        };
        self.send(stream, whole.freeze()).await
    }

    async fn flush(&mut self) -> Result<(), Left> {
        for stream in Stream::ALL {
            let rest = self.partial[stream as usize - 1].split();
            if !rest.is_empty() {
                self.send(stream, rest.freeze()).await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self, stream: Stream, bytes: Bytes) -> Result<(), Left> {
        self.passed[stream as usize - 1] += bytes.len() as u64;
        let chunk = Chunk { stream, partition: self.key.partition, bytes };
        self.client.send(chunk).await.map_err(|_| Left)
    }
}

/// The output of one execution that runs here, in chunks on the wire, for its owner.
pub async fn of_execution(app: App, id: ExecutionId, follow: bool, client: mpsc::Sender<Chunk>) {
    let Some((key, _)) = app.bench.live.find(id) else { return };
    let mut out =
        Passer { key, skip: [0; 2], passed: [0; 2], whole_lines: false, partial: Default::default(), client };
    if local(&app, id, follow, &mut out).await.is_err() {
        debug!(%id, "nobody listens any more");
    }
}

/// The last lines of what was pushed.
struct Ring {
    lines: std::collections::VecDeque<Chunk>,
    most: usize,
}

/// Lines that a tail keeps at the most.
const TAIL_LINES: usize = 100_000;

impl Ring {
    fn new(most: usize) -> Self {
        Ring { lines: Default::default(), most: most.min(TAIL_LINES) }
    }

    fn push(&mut self, chunk: Chunk) {
        for line in chunk.bytes.split_inclusive(|byte| *byte == b'\n') {
            let open = self.lines.back().is_some_and(|last| {
                last.stream == chunk.stream
                    && last.partition == chunk.partition
                    && last.bytes.last() != Some(&b'\n')
                    && last.bytes.len() < LINE_BYTES
            });
            match self.lines.back_mut().filter(|_| open) {
                Some(last) => last.bytes = [&last.bytes[..], line].concat().into(),
                None => self.lines.push_back(Chunk { bytes: Bytes::copy_from_slice(line), ..chunk }),
            }
            while self.lines.len() > self.most {
                self.lines.pop_front();
            }
        }
    }

    fn into_chunks(self) -> impl Iterator<Item = Chunk> {
        self.lines.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(text: &str) -> Chunk {
        Chunk { stream: Stream::Out, partition: 3, bytes: Bytes::copy_from_slice(text.as_bytes()) }
    }

    #[test]
    fn chunks_read_back_from_any_pieces() {
        let mut wire = BytesMut::new();
        chunk("hello").encode(&mut wire);
        Chunk { stream: Stream::Err, ..chunk("") }.encode(&mut wire);
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        for byte in wire {
            buffer.extend_from_slice(&[byte]);
            found.extend(Chunk::decode(&mut buffer).unwrap());
        }
        assert_eq!(found, [chunk("hello"), Chunk { stream: Stream::Err, ..chunk("") }]);
    }

    #[test]
    fn wrong_and_huge_chunks_are_refused() {
        assert_eq!(Chunk::decode(&mut BytesMut::from(&[9, 0, 0, 0, 0, 0, 0, 0, 0][..])), Err(BadChunk));
        assert_eq!(Chunk::decode(&mut BytesMut::from(&[1, 0, 0, 0, 0, 255, 0, 0, 0][..])), Err(BadChunk));
    }

    #[test]
    fn a_tail_keeps_the_last_lines_whatever_the_pieces() {
        let mut ring = Ring::new(2);
        for piece in ["one\ntw", "o\nthr", "ee"] {
            ring.push(chunk(piece));
        }
        let lines: Vec<_> = ring.into_chunks().map(|chunk| chunk.bytes).collect();
        assert_eq!(lines, ["two\n", "three"]);
    }
}
