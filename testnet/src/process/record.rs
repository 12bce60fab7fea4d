//! The file in the test network's folder that says what was started there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::pid::{Doing, Process};

/// The file's name in the folder.
const FILE: &str = "testnet.json";
/// Held while the file is read and written again.
const LOCK: &str = "testnet.lock";
/// Changes when the file's meaning does.
const SCHEMA: u32 = 1;

/// What was started in a folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    schema: u32,
    pub(crate) swarm: String,
    /// The folder was made for this test network, so that removing it removes nobody else's files.
    pub(crate) own_dir: bool,
    /// Who is starting nodes right now.
    pub(crate) starter: Option<Process>,
    /// The `cardume` binary.
    pub(crate) program: PathBuf,
    pub(crate) nodes: Vec<Node>,
}

/// One node of the record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) peer: String,
    pub(crate) worker: bool,
    /// The URL of its API; empty until its first start.
    pub(crate) api: String,
    /// Where other peers reach it; empty until its first start.
    pub(crate) addresses: Vec<String>,
    pub(crate) process: Option<Process>,
    /// The last signal that was meant to end it.
    pub(crate) ended_by: Option<EndedBy>,
}

/// What ended a node, when it was us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EndedBy {
    Stop,
    Kill,
}

impl Node {
    pub(crate) fn doing(&self) -> Doing {
        self.process.as_ref().map_or(Doing::Gone, Process::doing)
    }

    pub(crate) fn data_dir(&self, dir: &Path) -> PathBuf {
        dir.join(&self.name)
    }

    pub(crate) fn log(&self, dir: &Path) -> PathBuf {
        self.data_dir(dir).join("log")
    }
}

impl Record {
    pub(crate) fn new(swarm: String, own_dir: bool, program: PathBuf) -> io::Result<Self> {
        let starter = Some(Process::own()?);
        Ok(Record { schema: SCHEMA, swarm, own_dir, starter, program, nodes: Vec::new() })
    }

    /// The record of `dir`, or `None` where no test network was ever started.
    pub(crate) fn load(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let record: Record = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} does not describe a test network", path.display()))?;
        if record.schema != SCHEMA {
            bail!("{} was written by another version of cardume", path.display());
        }
        Ok(Some(record))
    }

    /// As [`Record::load`]; no test network is an error.
    pub(crate) fn expect(dir: &Path) -> anyhow::Result<Self> {
        Self::load(dir)?.with_context(|| format!("there is no test network in {}", dir.display()))
    }

    /// Replaces the file in one step: a reader sees the old or the new one.
    pub(crate) fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let write = || -> io::Result<()> {
            let next = dir.join(format!("{FILE}.new"));
            let mut file = File::create(&next)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.write_all(b"\n")?;
            fs::rename(&next, dir.join(FILE))
        };
        write().with_context(|| format!("cannot write {}", dir.join(FILE).display()))
    }

    /// Changes the record of `dir` while no other command does.
    pub(crate) fn update<T>(
        dir: &Path,
        change: impl FnOnce(&mut Record) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let _lock = Lock::take(dir)?;
        let mut record = Record::expect(dir)?;
        let result = change(&mut record)?;
        record.save(dir)?;
        Ok(result)
    }

    pub(crate) fn node(&self, name: &str) -> anyhow::Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| self.unknown(name))
    }

    pub(crate) fn node_mut(&mut self, name: &str) -> anyhow::Result<&mut Node> {
        let unknown = self.unknown(name);
        self.nodes.iter_mut().find(|node| node.name == name).context(unknown)
    }

    fn unknown(&self, name: &str) -> String {
        match (self.nodes.first(), self.nodes.last()) {
            (Some(first), Some(last)) => {
                format!("there is no node {name:?}; the test network has {} to {}", first.name, last.name)
            }
            _ => format!("there is no node {name:?}; the test network has none"),
        }
    }
}

/// Keeps other commands from changing the record of the same folder.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for those that hold it; they hold it for a read and a write of a small file.
    pub(crate) fn take(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(LOCK);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Lock { _file: file })
    }
}

/// Removes the record itself.
pub(crate) fn remove(dir: &Path) -> io::Result<()> {
    for name in [FILE, LOCK] {
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
