//! [`Task`]: one execution as an engine sees it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use job::{Cid, ExecutionId};
use serde::{Deserialize, Serialize};

/// How far the submitter of a task is trusted. It decides which runner a guest shares, and how much
/// compiling it may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TrustClass {
    /// The node's own user.
    Own,
    /// A peer in the node's `trusted` list.
    Trusted,
    /// A member of a private swarm.
    Member,
    /// Anyone on an open swarm.
    Anyone,
}

impl TrustClass {
    /// Every class, most trusted first.
    pub const ALL: [TrustClass; 4] =
        [TrustClass::Own, TrustClass::Trusted, TrustClass::Member, TrustClass::Anyone];

    /// Whether the submitter is one that the node's user does not know.
    pub fn is_stranger(self) -> bool {
        match self {
            TrustClass::Own | TrustClass::Trusted => false,
            TrustClass::Member | TrustClass::Anyone => true,
        }
    }

    /// The class in lower case, as it appears in paths and logs.
    pub fn name(self) -> &'static str {
        match self {
            TrustClass::Own => "own",
            TrustClass::Trusted => "trusted",
            TrustClass::Member => "member",
            TrustClass::Anyone => "anyone",
        }
    }

    /// Its place in [`TrustClass::ALL`].
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for TrustClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One execution: what to run, with what, within which limits.
///
/// Everything named here is already on this machine. Paths are the host's, targets are the guest's.
#[derive(Debug, Clone)]
pub struct Task {
    /// The execution that this is. Engines name what they create after it.
    pub execution: ExecutionId,
    /// How far its submitter is trusted.
    pub class: TrustClass,
    /// What to run.
    pub kind: TaskKind,
    /// Environment variables, in order. Nothing else is in the guest's environment.
    pub env: Vec<(String, String)>,
    /// Files and directories that the guest may read.
    pub inputs: Vec<InputMount>,
    /// Directories that the guest may fill.
    pub outputs: Vec<OutputMount>,
    /// What it may use.
    pub limits: Limits,
    /// A directory for this execution alone, made by the engine when it needs it. Output too long to be
    /// kept in memory lies here as `stdout` and `stderr`; the caller removes it when it no longer needs
    /// them.
    pub work_dir: PathBuf,
}

/// What to run.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum TaskKind {
    /// A WASI preview 1 module.
    Wasm {
        /// Its bytes.
        module: ModuleSource,
        /// The exported function to call, without parameters or results; `_start` for commands.
        entrypoint: String,
        /// The guest's arguments from `argv[1]` on; `argv[0]` is empty, as in Bacalhau.
        args: Vec<String>,
    },
}

/// The bytes of a module, and the name under which what was compiled from them is kept.
#[derive(Debug, Clone)]
pub struct ModuleSource {
    /// The module's CID. The caller has verified that the bytes are these.
    pub cid: Cid,
    /// Where its bytes are.
    pub path: PathBuf,
}

/// One file or directory that the guest may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputMount {
    /// The host's file or directory. It must lie below the engine's input root and never change.
    pub path: PathBuf,
    /// Where the guest finds it. For a file this is the name of the file itself, as in `/in/data.txt`.
    pub target: String,
}

/// One directory that the guest may fill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputMount {
    /// The name that the job gave this result.
    pub name: String,
    /// Where what the guest wrote is when it has ended. Nothing or an empty directory is there before.
    pub path: PathBuf,
    /// Where the guest finds it.
    pub target: String,
}

/// What one execution may use. Every bound is enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Memory of the guest, in bytes.
    pub memory_bytes: u64,
    /// Share of the processors in thousandths of one. A WASM guest that takes more waits until it is due again;
    /// being one thread, it never takes more than 1000.
    pub cpu_milli: u32,
    /// How long it may run, from its start to its end.
    pub wall: Option<Duration>,
    /// How much of its standard output is kept. What is beyond is counted and discarded.
    pub stdout_bytes: u64,
    /// How much of its standard error is kept.
    pub stderr_bytes: u64,
    /// How much it may leave in all of its output directories together, and how much it may have in files that it
    /// removed and still holds open.
    pub output_bytes: u64,
    /// How many processes it may have. A WASM guest is none and cannot start any.
    pub processes: u32,
}

impl Default for Limits {
    /// What a small job gets: 512 MiB, one processor, no wall limit, 16 MiB of each stream, 1 GiB of results.
    fn default() -> Self {
        Limits {
            memory_bytes: 512 << 20,
            cpu_milli: 1000,
            wall: None,
            stdout_bytes: 16 << 20,
            stderr_bytes: 16 << 20,
            output_bytes: 1 << 30,
            processes: 64,
        }
    }
}
