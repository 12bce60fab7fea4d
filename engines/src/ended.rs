//! [`Ended`]: what an execution left behind.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

/// How an execution ended. A guest that fails is a result like any other, not an error of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It ended by itself with this code; 0 when it returned without one.
    Exited(i32),
    /// It ran longer than it was allowed to.
    TimedOut,
    /// It was asked to stop.
    Stopped,
    /// It was refused memory beyond its limit, and then failed.
    OutOfMemory,
    /// It did what a guest must not do; the text says what, and where.
    Trapped(String),
    /// It wrote more than it was allowed to.
    OutputLimit(Excess),
    /// What ran it went away; the text says how. Nothing is known of how far it came.
    Lost(String),
}

/// What an execution wrote more of than it was allowed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// Bytes in its output directories.
    Bytes,
    /// Bytes in files that it had removed and still held open.
    Removed,
    /// Files and directories.
    Entries,
    /// Directories in each other.
    Depth,
}

/// Files and directories that one execution may leave: more would take longer to publish than to make.
pub const ENTRIES_MAX: u64 = 200_000;

/// How deep its directories may lie in each other.
pub const DEPTH_MAX: usize = 64;

impl Excess {
    /// What it was, and the limit, given how many bytes were allowed.
    pub fn describe(self, bytes: u64) -> String {
        match self {
            Excess::Bytes => format!("its results are larger than {bytes} bytes"),
            Excess::Removed => {
                format!("files that it removed and still held open are larger than {bytes} bytes")
            }
            Excess::Entries => format!("its results are more than {ENTRIES_MAX} files and directories"),
            Excess::Depth => {
                format!("its results lie more than {DEPTH_MAX} directories deep in each other")
            }
        }
    }
}

/// What an execution left behind.
#[derive(Debug, Clone)]
pub struct Ended {
    /// How it ended.
    pub outcome: Outcome,
    /// Its standard output.
    pub stdout: Captured,
    /// Its standard error.
    pub stderr: Captured,
    /// What it used.
    pub usage: Usage,
    /// When it started.
    pub started: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
}

/// What an execution used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time, all threads together.
    pub cpu: Duration,
    /// The most memory that it had at once, in bytes.
    pub peak_memory_bytes: u64,
    /// Time from its start to its end, on a clock that never jumps.
    pub wall: Duration,
}

/// One stream of an execution that has ended.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    /// Where what was kept is.
    pub kept: Kept,
    /// How many bytes were kept.
    pub length: u64,
    /// How many bytes the execution produced.
    pub produced: u64,
}

/// Where the kept part of a stream is.
#[derive(Debug, Clone)]
pub enum Kept {
    /// All of it, here; at most [`INLINE_BYTES`](crate::output::INLINE_BYTES).
    Inline(Bytes),
    /// In this file, below the task's work directory.
    File(PathBuf),
}

impl Default for Kept {
    fn default() -> Self {
        Kept::Inline(Bytes::new())
    }
}

impl Captured {
    /// Whether the execution produced more than was kept.
    pub fn truncated(&self) -> bool {
        self.produced > self.length
    }

    /// Everything that was kept, read from its file if need be; at most `limit` bytes of it.
    ///
    /// Dropping the future leaves nothing behind.
    pub async fn read(&self, limit: usize) -> io::Result<Bytes> {
        match &self.kept {
            Kept::Inline(bytes) => Ok(bytes.slice(..bytes.len().min(limit))),
            Kept::File(path) => {
                use tokio::io::AsyncReadExt as _;
                let mut bytes = Vec::new();
                tokio::fs::File::open(path).await?.take(limit as u64).read_to_end(&mut bytes).await?;
                Ok(bytes.into())
            }
        }
    }
}
