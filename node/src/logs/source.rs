//! Where one execution's output comes from: the engine here, its worker, its stored result.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::body::Body;
use axum::http::{Method, StatusCode};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use gossip::owner::ExecutionView;
use job::state::ExecutionState;
use job::{ExecutionId, ExecutionKey, PeerId};
use tokio::sync::mpsc;
use tracing::debug;

use super::piece::{Broken, CHUNK_BYTES, Chunk, Piece, Pieces, Stream};
use crate::api::error::chain;
use crate::remote;
use crate::state::App;

/// A line longer than this is passed on in pieces.
const LINE_BYTES: usize = 64 << 10;

/// How far an execution's output was passed on: its bytes, and whether the last line is unfinished.
#[derive(Debug, Default)]
pub struct Passed {
    bytes: [AtomicU64; 2],
    open: [AtomicBool; 2],
}

impl Passed {
    fn bytes(&self, stream: Stream) -> u64 {
        self.bytes[stream.index()].load(Ordering::Relaxed)
    }

    fn add(&self, stream: Stream, bytes: &[u8]) {
        self.bytes[stream.index()].fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.open[stream.index()].store(bytes.last() != Some(&b'\n'), Ordering::Relaxed);
    }

    /// Whether a stream's last line was unfinished; from now on it counts as finished.
    pub fn close(&self, stream: Stream) -> bool {
        self.open[stream.index()].swap(false, Ordering::Relaxed)
    }
}

/// How a source ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// All was passed on.
    Done,
    /// The execution does not run there any more: its output is on its way to where it is stored.
    Gone,
    /// It could not be read, or not to its end.
    Broke(String),
    /// The client went away.
    Left,
}

/// The client went away.
struct Left;

/// The output of a running execution, here or at its worker.
pub struct Live {
    /// Which.
    pub execution: ExecutionKey,
    /// Who runs it.
    pub worker: PeerId,
    /// Until its end, rather than what is there now.
    pub follow: bool,
    /// Others write too: only whole lines are passed on.
    pub whole_lines: bool,
    /// An unfinished last line is passed on at the end, too.
    pub last_line: bool,
}

impl Live {
    /// Passes on what comes after what was passed on before.
    pub async fn run(self, app: App, passed: Arc<Passed>, client: mpsc::Sender<Piece>) -> End {
        let mut out = Passer::new(self.execution.partition, passed, self.whole_lines, client);
        let end = if self.worker == app.me {
            local(&app, self.execution.id(), self.follow, &mut out).await
        } else {
            self.remote(&app, &mut out).await
        };
        // After a break, what comes next begins with the unfinished line.
        if end == End::Done && self.last_line {
            for stream in Stream::ALL {
                if out.flush(stream).await.is_err() {
                    return End::Left;
                }
            }
        }
        end
    }

    async fn remote(&self, app: &App, out: &mut Passer) -> End {
        let path = format!("/api/v1/worker/executions/{}/logs?follow={}", self.execution.id(), self.follow);
        let answer = match remote::ask(&app.host, self.worker, Method::GET, &path, Body::empty(), None).await
        {
            Ok(answer) => answer,
            Err(error) => return End::Broke(chain(&error)),
        };
        match answer.status() {
            StatusCode::NOT_FOUND => return End::Gone,
            status if !status.is_success() => {
                return End::Broke(format!("the worker {} answered {status}", self.worker));
            }
            _ => {}
        }
        let mut pieces = Pieces::of(answer.into_body());
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(chunk) => {
                    if out.pass(chunk.stream, chunk.bytes).await.is_err() {
                        return End::Left;
                    }
                }
                Err(broken) => return End::Broke(broken.to_string()),
            }
        }
        End::Done
    }
}

/// Passes on the output of an execution of this node.
async fn local(app: &App, id: ExecutionId, follow: bool, out: &mut Passer) -> End {
    let Some((_, running)) = app.bench.live.find(id) else { return End::Gone };
    let mut output = if follow { running.output() } else { running.output().up_to_now() };
    loop {
        match output.next().await {
            Ok(Some(chunk)) => {
                let stream = match chunk.stream {
                    engines::Stream::Stdout => Stream::Out,
                    engines::Stream::Stderr => Stream::Err,
                };
                if out.pass(stream, chunk.bytes).await.is_err() {
                    return End::Left;
                }
            }
            Ok(None) => return End::Done,
            Err(error) => return End::Broke(format!("its output cannot be read: {error}")),
        }
    }
}

/// Passes on the stored output of an execution that ended, from where it was passed on before.
pub async fn stored(
    app: &App,
    execution: &ExecutionView,
    passed: Arc<Passed>,
    whole_lines: bool,
    client: mpsc::Sender<Piece>,
) -> End {
    let Some(result) = &execution.result else { return End::Done };
    for stream in Stream::ALL {
        let mut out =
            Passer::resumed(execution.key.partition, Arc::clone(&passed), whole_lines, client.clone());
        let skip = passed.bytes(stream);
        let unreadable =
            |error: &dyn std::error::Error| End::Broke(format!("{}: {}", stream.file(), chain(error)));
        // Of what completed, the owner has what it will ever have.
        let comes = execution.state == ExecutionState::Failed;
        let hints = [execution.worker];
        let mut bytes = match app.content.read(&result.cid, stream.file(), skip, comes, &hints).await {
            Ok(bytes) => bytes,
            Err(error) => return unreadable(&error),
        };
        while let Some(piece) = bytes.next().await {
            let bytes = match piece {
                Ok(bytes) => bytes,
                Err(error) => return unreadable(&error),
            };
            if out.pass(stream, bytes).await.is_err() {
                return End::Left;
            }
        }
        if out.flush(stream).await.is_err() {
            return End::Left;
        }
    }
    End::Done
}

/// The output of one execution that runs here, for its owner.
pub async fn of_execution(app: App, id: ExecutionId, follow: bool, client: mpsc::Sender<Piece>) {
    let Some((key, _)) = app.bench.live.find(id) else { return };
    let mut out = Passer::new(key.partition, Arc::default(), false, client.clone());
    let end = match local(&app, id, follow, &mut out).await {
        End::Broke(text) => text,
        // It ended between two looks.
        End::Gone => "the execution has just ended".to_owned(),
        End::Done | End::Left => return,
    };
    if client.send(Err(Broken::Missing(end))).await.is_err() {
        debug!(%id, "nobody listens any more");
    }
}

/// Feeds one execution's output to a client: skips what it has, keeps lines whole when several executions
/// are mixed.
struct Passer {
    partition: u32,
    skip: [u64; 2],
    passed: Arc<Passed>,
    whole_lines: bool,
    partial: [BytesMut; 2],
    client: mpsc::Sender<Piece>,
}

impl Passer {
    /// For output that begins at its first byte.
    fn new(partition: u32, passed: Arc<Passed>, whole_lines: bool, client: mpsc::Sender<Piece>) -> Self {
        let skip = Stream::ALL.map(|stream| passed.bytes(stream));
        Passer { partition, skip, passed, whole_lines, partial: Default::default(), client }
    }

    /// For output that begins where it was passed on before.
    fn resumed(partition: u32, passed: Arc<Passed>, whole_lines: bool, client: mpsc::Sender<Piece>) -> Self {
        Passer { skip: [0; 2], ..Self::new(partition, passed, whole_lines, client) }
    }

    async fn pass(&mut self, stream: Stream, mut bytes: Bytes) -> Result<(), Left> {
        let at = stream.index();
        let skip = self.skip[at].min(bytes.len() as u64);
        self.skip[at] -= skip;
        bytes = bytes.split_off(usize::try_from(skip).unwrap_or(bytes.len()));
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

    /// Ends a stream. Where several write, its unfinished last line is ended too: what follows is another's.
    async fn flush(&mut self, stream: Stream) -> Result<(), Left> {
        let rest = self.partial[stream.index()].split();
        self.send(stream, rest.freeze()).await?;
        if self.whole_lines && self.passed.close(stream) {
            let chunk = Chunk { stream, partition: self.partition, bytes: "\n".into() };
            self.client.send(Ok(chunk)).await.map_err(|_| Left)?;
        }
        Ok(())
    }

    async fn send(&mut self, stream: Stream, mut bytes: Bytes) -> Result<(), Left> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(CHUNK_BYTES));
            let chunk = Chunk { stream, partition: self.partition, bytes: piece.clone() };
            self.client.send(Ok(chunk)).await.map_err(|_| Left)?;
            // Counted at once, so that an end of this task loses nothing.
            self.passed.add(stream, &piece);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn passed_on(whole_lines: bool, skip: &[u8], pieces: &[&str]) -> Vec<String> {
        let (client, mut received) = mpsc::channel(64);
        let passed = Arc::new(Passed::default());
        passed.add(Stream::Out, skip);
        let mut out = Passer::new(1, passed, whole_lines, client);
        for piece in pieces {
            assert!(out.pass(Stream::Out, Bytes::copy_from_slice(piece.as_bytes())).await.is_ok());
        }
        assert!(out.flush(Stream::Out).await.is_ok());
        drop(out);
        let mut texts = Vec::new();
        while let Some(Ok(chunk)) = received.recv().await {
            texts.push(String::from_utf8(chunk.bytes.to_vec()).unwrap());
        }
        texts
    }

    #[tokio::test]
    async fn lines_are_kept_whole_where_several_write() {
        assert_eq!(passed_on(true, b"", &["a", "b\nc", "d"]).await, ["ab\n", "cd", "\n"]);
        assert_eq!(passed_on(false, b"", &["a", "b\nc"]).await, ["a", "b\nc"]);
    }

    #[tokio::test]
    async fn what_was_passed_on_before_is_skipped() {
        assert_eq!(passed_on(false, b"abc", &["ab", "cd", "e"]).await, ["d", "e"]);
        assert_eq!(passed_on(true, b"ab\n", &["ab\nc\n"]).await, ["c\n"]);
    }

    #[tokio::test]
    async fn large_pieces_are_cut_to_what_a_chunk_takes() {
        let large = "x".repeat(CHUNK_BYTES + 1);
        let texts = passed_on(false, b"", &[&large]).await;
        assert_eq!(texts.iter().map(String::len).collect::<Vec<_>>(), [CHUNK_BYTES, 1]);
    }

    #[test]
    fn an_unfinished_line_is_closed_once() {
        let passed = Passed::default();
        passed.add(Stream::Out, b"abc");
        passed.add(Stream::Err, b"abc\n");
        assert!(passed.close(Stream::Out) && !passed.close(Stream::Out) && !passed.close(Stream::Err));
        assert_eq!(passed.bytes(Stream::Out), 3);
    }
}
