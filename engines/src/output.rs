//! What an execution writes to its standard streams: kept up to a cap, read by followers while it grows.
//!
//! An [`OutputLog`] holds short output in memory and longer output in files. A reader starts at the first
//! byte whenever it comes, holds one chunk at a time, and never slows the writer.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::ended::{Captured, Kept};

/// How much of a stream is kept in memory; what is longer goes to a file. Most executions write less than
/// this, and then cost no file.
pub const INLINE_BYTES: usize = 32 << 10;

/// How much a reader gets at once.
const CHUNK_BYTES: u64 = 32 << 10;

/// One of an execution's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both, in the order of their numbers.
    pub const ALL: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// The stream's name, and its file's.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputChunk {
    /// Which stream it is of.
    pub stream: Stream,
    /// Where in that stream it begins.
    pub offset: u64,
    /// The bytes; never empty.
    pub bytes: Bytes,
}

/// Both streams of one execution, for the engine that runs it. One task at a time appends to a stream.
#[derive(Debug)]
pub struct OutputLog {
    dir: PathBuf,
    state: Mutex<State>,
    grown: Notify,
}

#[derive(Debug)]
struct State {
    logs: [Log; 2],
    closed: bool,
}

#[derive(Debug)]
struct Log {
    cap: u64,
    kept: u64,
    produced: u64,
    store: Store,
}

#[derive(Debug)]
enum Store {
    Memory(Vec<u8>),
    Closed(Bytes),
    File(Arc<File>),
}

impl OutputLog {
    /// An empty log that keeps at most `caps` bytes of stdout and stderr, in files below `dir` when there
    /// is much.
    pub fn new(dir: PathBuf, caps: [u64; 2]) -> Arc<Self> {
        let logs = caps.map(|cap| Log { cap, kept: 0, produced: 0, store: Store::Memory(Vec::new()) });
        Arc::new(OutputLog { dir, state: Mutex::new(State { logs, closed: false }), grown: Notify::new() })
    }

    /// Appends without waiting, if the stream still fits in memory; otherwise does nothing and says `false`.
    pub fn append_inline(&self, stream: Stream, bytes: &[u8]) -> bool {
        let mut state = self.state();
        let log = &mut state.logs[stream.index()];
        let take = log.room(bytes.len());
        let Store::Memory(held) = &mut log.store else { return false };
        if held.len() + take > INLINE_BYTES {
            return false;
        }
        held.extend_from_slice(&bytes[..take]);
        log.kept += take as u64;
        log.produced += bytes.len() as u64;
        drop(state);
        self.grown.notify_waiters();
        true
    }

    /// Appends, to a file if need be. What is beyond the cap, or cannot be written, is counted and discarded.
    ///
    /// A dropped future may have appended or not.
    pub async fn append(&self, stream: Stream, bytes: Bytes) -> io::Result<()> {
        if self.append_inline(stream, &bytes) {
            return Ok(());
        }
        let (take, kept, store) = {
            let mut state = self.state();
            let log = &mut state.logs[stream.index()];
            log.produced += bytes.len() as u64;
            (log.room(bytes.len()), log.kept, log.writable())
        };
        if take == 0 {
            return Ok(());
        }
        let dir = self.dir.clone();
        let kept_bytes = bytes.slice(..take);
        let file = blocking(move || write(dir, stream, store, &kept_bytes, kept)).await?;
        let mut state = self.state();
        let log = &mut state.logs[stream.index()];
        log.store = Store::File(file);
        log.kept = kept + take as u64;
        drop(state);
        self.grown.notify_waiters();
        Ok(())
    }

    /// Counts bytes that the execution produced and that will not come.
    pub fn count_discarded(&self, stream: Stream, bytes: u64) {
        let mut state = self.state();
        let log = &mut state.logs[stream.index()];
        log.produced = log.produced.saturating_add(bytes);
    }

    /// No more will come: readers end once they have read everything.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for log in &mut state.logs {
            if let Store::Memory(held) = &mut log.store {
                log.store = Store::Closed(Bytes::from(std::mem::take(held)));
            }
        }
        drop(state);
        self.grown.notify_waiters();
    }

    /// What was kept of stdout and of stderr so far.
    pub fn captured(&self) -> (Captured, Captured) {
        let state = self.state();
        let [stdout, stderr] =
            Stream::ALL.map(|stream| state.logs[stream.index()].captured(self.dir.join(stream.name())));
        (stdout, stderr)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The first piece below `ends` that a reader at `offsets` has not read, from memory or as a file to read
    /// it from.
    fn next_piece(&self, offsets: [u64; 2], ends: Option<[u64; 2]>) -> Piece {
        let state = self.state();
        for stream in Stream::ALL {
            let log = &state.logs[stream.index()];
            let offset = offsets[stream.index()];
            let end = ends.map_or(log.kept, |ends| log.kept.min(ends[stream.index()]));
            let length = end.saturating_sub(offset).min(CHUNK_BYTES);
            if length > 0 {
                let range = offset as usize..(offset + length) as usize;
                return match &log.store {
                    Store::Memory(held) => Piece::Here(stream, Bytes::copy_from_slice(&held[range])),
                    Store::Closed(held) => Piece::Here(stream, held.slice(range)),
                    Store::File(file) => Piece::InFile(stream, Arc::clone(file), length as usize),
                };
            }
        }
        // Nothing is ever taken back, so what a bounded reader may read is there from the start.
        if state.closed || ends.is_some() { Piece::End } else { Piece::Later }
    }

    fn lengths(&self) -> [u64; 2] {
        let state = self.state();
        Stream::ALL.map(|stream| state.logs[stream.index()].kept)
    }
}

enum Piece {
    Here(Stream, Bytes),
    InFile(Stream, Arc<File>, usize),
    Later,
    End,
}

impl Log {
    /// How many of `length` more bytes the cap leaves room for.
    fn room(&self, length: usize) -> usize {
        usize::try_from(self.cap.saturating_sub(self.kept)).unwrap_or(usize::MAX).min(length)
    }

    /// What [`write`] continues: the file, or the bytes that a new one begins with.
    fn writable(&self) -> Result<Arc<File>, Vec<u8>> {
        match &self.store {
            Store::File(file) => Ok(Arc::clone(file)),
            Store::Memory(held) => Err(held.clone()),
            Store::Closed(held) => Err(held.to_vec()),
        }
    }

    fn captured(&self, path: PathBuf) -> Captured {
        let kept = match &self.store {
            Store::Memory(held) => Kept::Inline(Bytes::copy_from_slice(held)),
            Store::Closed(held) => Kept::Inline(held.clone()),
            Store::File(_) => Kept::File(path),
        };
        Captured { kept, length: self.kept, produced: self.produced }
    }
}

/// Follows an execution's output; see [`Running::output`](crate::Running::output).
#[derive(Debug)]
pub struct OutputReader {
    log: Arc<OutputLog>,
    offsets: [u64; 2],
    /// Where it ends before the execution does.
    ends: Option<[u64; 2]>,
}

impl OutputReader {
    /// A reader that begins at the first byte of both streams.
    pub fn new(log: Arc<OutputLog>) -> Self {
        OutputReader { log, offsets: [0, 0], ends: None }
    }

    /// The same reader, which ends after what is there now.
    pub fn up_to_now(self) -> Self {
        let ends = Some(self.log.lengths());
        OutputReader { ends, ..self }
    }

    /// The next piece of either stream, or `None` when the execution has ended and all was read.
    ///
    /// Dropping the future loses nothing: the next call gives the same piece.
    pub async fn next(&mut self) -> io::Result<Option<OutputChunk>> {
        let log = Arc::clone(&self.log);
        loop {
            let mut grown = std::pin::pin!(log.grown.notified());
            // Registered before looking, so that what comes in between is not missed.
            grown.as_mut().enable();
            match log.next_piece(self.offsets, self.ends) {
                Piece::Here(stream, bytes) => return Ok(Some(self.chunk(stream, bytes))),
                Piece::InFile(stream, file, length) => {
                    let offset = self.offsets[stream.index()];
                    let bytes = blocking(move || read(&file, offset, length)).await?;
                    return Ok(Some(self.chunk(stream, bytes)));
                }
                Piece::End => return Ok(None),
                Piece::Later => grown.await,
            }
        }
    }

    fn chunk(&mut self, stream: Stream, bytes: Bytes) -> OutputChunk {
        let offset = self.offsets[stream.index()];
        self.offsets[stream.index()] += bytes.len() as u64;
        OutputChunk { stream, offset, bytes }
    }
}

/// Writes `bytes` at `at`, into a new file if there is none yet.
fn write(
    dir: PathBuf,
    stream: Stream,
    store: Result<Arc<File>, Vec<u8>>,
    bytes: &[u8],
    at: u64,
) -> io::Result<Arc<File>> {
    let file = match store {
        Ok(file) => file,
        Err(held) => {
            fs::create_dir_all(&dir)?;
            let mut options = File::options();
            let mut file =
                options.read(true).write(true).create(true).truncate(true).open(dir.join(stream.name()))?;
            file.write_all(&held)?;
            Arc::new(file)
        }
    };
    file.write_all_at(bytes, at)?;
    Ok(file)
}

fn read(file: &File, offset: u64, length: usize) -> io::Result<Bytes> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes.into())
}

/// Runs file I/O where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn short_output_stays_in_memory_and_long_output_moves_to_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        let log = OutputLog::new(work.clone(), [1 << 20, 1 << 20]);
        assert!(log.append_inline(Stream::Stdout, b"short"));
        assert!(!work.exists());
        let long = Bytes::from(vec![7; INLINE_BYTES]);
        assert!(!log.append_inline(Stream::Stdout, &long));
        log.append(Stream::Stdout, long.clone()).await.unwrap();
        log.append(Stream::Stdout, long.clone()).await.unwrap();
        log.close();
        let (stdout, stderr) = log.captured();
        assert_eq!((stdout.length, stderr.length), (5 + 2 * INLINE_BYTES as u64, 0));
        assert!(matches!(&stdout.kept, Kept::File(path) if *path == work.join("stdout")));
        let all = stdout.read(usize::MAX).await.unwrap();
        assert_eq!(all, [b"short", &long[..], &long[..]].concat());
    }

    #[tokio::test]
    async fn what_is_beyond_the_cap_is_counted_and_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let log = OutputLog::new(dir.path().into(), [10, 0]);
        log.append(Stream::Stdout, Bytes::from_static(b"0123456789abc")).await.unwrap();
        log.append(Stream::Stderr, Bytes::from_static(b"x")).await.unwrap();
        log.count_discarded(Stream::Stderr, 4);
        let (stdout, stderr) = log.captured();
        assert_eq!((stdout.length, stdout.produced, stdout.truncated()), (10, 13, true));
        assert_eq!((stderr.length, stderr.produced), (0, 5));
    }

    #[tokio::test]
    async fn readers_see_everything_whenever_they_come() {
        let dir = tempfile::tempdir().unwrap();
        let log = OutputLog::new(dir.path().into(), [1 << 20, 1 << 20]);
        let early = tokio::spawn(read_all(OutputReader::new(Arc::clone(&log))));
        let piece = Bytes::from(vec![1; 20_000]);
        for _ in 0..5 {
            log.append(Stream::Stdout, piece.clone()).await.unwrap();
            log.append(Stream::Stderr, Bytes::from_static(b"e")).await.unwrap();
            tokio::task::yield_now().await;
        }
        log.close();
        assert_eq!(early.await.unwrap(), (100_000, 5));
        assert_eq!(read_all(OutputReader::new(log)).await, (100_000, 5));
    }

    #[tokio::test]
    async fn a_reader_up_to_now_ends_while_the_execution_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let log = OutputLog::new(dir.path().into(), [1 << 20, 1 << 20]);
        let long = Bytes::from(vec![1; 3 * INLINE_BYTES]);
        log.append(Stream::Stdout, long.clone()).await.unwrap();
        log.append(Stream::Stderr, Bytes::from_static(b"e")).await.unwrap();
        let reader = OutputReader::new(Arc::clone(&log)).up_to_now();
        log.append(Stream::Stdout, long.clone()).await.unwrap();
        assert_eq!(read_all(reader).await, (3 * INLINE_BYTES, 1));
    }

    async fn read_all(mut reader: OutputReader) -> (usize, usize) {
        let mut lengths = [0, 0];
        while let Some(chunk) = reader.next().await.unwrap() {
            assert_eq!(chunk.offset, lengths[chunk.stream.index()] as u64);
            lengths[chunk.stream.index()] += chunk.bytes.len();
        }
        (lengths[0], lengths[1])
    }
}
