//! A swarm of real processes on this machine, kept in one folder.
//!
//! It owns the processes it has started and the folder's record of them (`testnet.json`). Every node is a
//! `cardume serve` with a data directory of its own inside the folder, listens on loopback only, trusts the other nodes of the folder
//! and survives whoever started it. It never links a node: it starts the binary and talks HTTP.
//!
//! A process is signalled only while it is the very one that was started (id, start time and boot agree), so
//! a stale record can do no harm.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use testnet::process::{self, Signal, UpOptions};
//! let options = UpOptions { nodes: 5, submit_only: 1, ..UpOptions::new("/tmp/net", "/usr/bin/cardume") };
//! let state = process::up(options).await?;
//! process::signal(&state.dir, "n3", Signal::Kill).await?;
//! process::restart(&state.dir, "n3").await?;
//! process::down(&state.dir, true).await?;
//! # Ok(()) }
//! ```

mod launch;
mod pid;
mod record;
mod settings;
mod start;
mod stop;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use pid::Usage;
pub use start::{restart, up};
pub use stop::{Signal, down, kill_all, signal};

use pid::Doing;
use record::{EndedBy, Record};

/// What to start.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// The folder; made if it is not there. A network that lies stopped in it is started again with its data.
    pub dir: PathBuf,
    /// How many nodes.
    pub nodes: usize,
    /// How many of them run no jobs; they come first.
    pub submit_only: usize,
    /// The `cardume` binary.
    pub program: PathBuf,
    /// More keys for every node's `config.yaml`.
    pub settings: Map<String, Value>,
    /// More keys for the `config.yaml` of single nodes, by name.
    pub node_settings: BTreeMap<String, Map<String, Value>>,
}

impl UpOptions {
    /// Three nodes that all run jobs.
    pub fn new(dir: impl Into<PathBuf>, program: impl Into<PathBuf>) -> Self {
        UpOptions {
            dir: dir.into(),
            nodes: 3,
            submit_only: 0,
            program: program.into(),
            settings: Map::new(),
            node_settings: BTreeMap::new(),
        }
    }
}

/// A test network as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its folder, as an absolute path.
    pub dir: PathBuf,
    /// Its nodes, those that run no jobs first.
    pub nodes: Vec<NodeInfo>,
}

/// A node of a test network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// `n0` and so on.
    pub name: String,
    /// Its peer id.
    pub peer: String,
    /// The URL of its API.
    pub api: String,
    /// Whether it runs jobs.
    pub worker: bool,
    /// Its process, while there is one.
    pub pid: Option<u32>,
    /// What the process does.
    pub state: NodeState,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its log file.
    pub log: PathBuf,
}

/// What a node's process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It runs.
    Running,
    /// It is frozen by SIGSTOP.
    Paused,
    /// It was asked to end, and did.
    Stopped,
    /// It was killed.
    Killed,
    /// It ended, and nobody here asked it to.
    Exited,
}

impl State {
    /// The node of that name.
    pub fn node(&self, name: &str) -> anyhow::Result<&NodeInfo> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("there is no node {name:?}"))
    }

    fn of(dir: &Path, record: &Record) -> Self {
        State {
            dir: dir.to_owned(),
            nodes: record.nodes.iter().map(|node| NodeInfo::of(dir, node)).collect(),
        }
    }
}

impl NodeInfo {
    fn of(dir: &Path, node: &record::Node) -> Self {
        let state = match (node.doing(), node.ended_by) {
            (Doing::Running, _) => NodeState::Running,
            (Doing::Paused, _) => NodeState::Paused,
            (Doing::Gone, Some(EndedBy::Stop)) => NodeState::Stopped,
            (Doing::Gone, Some(EndedBy::Kill)) => NodeState::Killed,
            (Doing::Gone, None) => NodeState::Exited,
        };
        let alive = matches!(state, NodeState::Running | NodeState::Paused);
        NodeInfo {
            name: node.name.clone(),
            peer: node.peer.clone(),
            api: node.api.clone(),
            worker: node.worker,
            pid: node.process.as_ref().filter(|_| alive).map(|process| process.pid),
            state,
            data_dir: node.data_dir(dir),
            log: node.log(dir),
        }
    }

    /// Memory and CPU time of its process and of those that it started, while it runs.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let pid = self.pid.with_context(|| format!("{} does not run", self.name))?;
        let process = pid::Process::of(pid)?;
        let mut sum = process.usage()?;
        for member in process.family()? {
            // One that has just ended is counted in nobody's figures.
            let Ok(usage) = member.usage() else { continue };
            sum.resident_bytes += usage.resident_bytes;
            sum.cpu += usage.cpu;
        }
        Ok(sum)
    }
}

/// What runs in a folder.
pub fn status(dir: &Path) -> anyhow::Result<State> {
    let dir = absolute(dir)?;
    Ok(State::of(&dir, &Record::expect(&dir)?))
}

fn absolute(dir: &Path) -> anyhow::Result<PathBuf> {
    // Resolves links, so that two names of one folder are the same one.
    match dir.canonicalize() {
        Ok(dir) => Ok(dir),
        Err(_) => std::path::absolute(dir).with_context(|| format!("{} is no path", dir.display())),
    }
}
