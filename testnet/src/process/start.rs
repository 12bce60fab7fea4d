//! Starting a test network, and one of its nodes again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::try_join_all;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::launch::{Ready, identity, launch, tail};
use super::pid::{Doing, Process};
use super::record::{Lock, Node, Record};
use super::settings::{self, earlier, neighbours};
use super::stop::{end, kill_now, remove_started};
use super::{State, UpOptions, absolute};
use crate::client::Client;

/// A machine of a few cores serves no more nodes than this to any use; it also bounds the record.
const MAX_NODES: usize = 256;
/// Short commands that run side by side: more would only wait for the same cores.
const AT_ONCE: usize = 8;
/// How long nodes may take to become one swarm: seconds, on a machine that is not idle.
const SWARM_LIMIT: Duration = Duration::from_secs(60);
/// Beyond the nodes' own limit: an answer that does not come is an error, not a hang.
const ANSWER_LIMIT: Duration = Duration::from_secs(SWARM_LIMIT.as_secs() + 10);

/// Starts a test network and returns once it is one swarm.
///
/// On an error, and when the future is dropped, everything that it has started is killed and what it has made is
/// removed again; the data of a network that was there before stays.
pub async fn up(options: UpOptions) -> anyhow::Result<State> {
    check(&options)?;
    let claim = Claim::take(&options)?;
    let names: Vec<String> = claim.record.nodes.iter().map(|node| node.name.clone()).collect();
    if claim.made {
        make_keys(&claim.dir, &names, &claim.record.program).await?;
    }
    for (index, name) in names.iter().enumerate() {
        if claim.made {
            let record = Record::expect(&claim.dir)?;
            settings::write(&claim.dir, &record, index, earlier(index), &extra(&options, name))?;
        }
        start(&claim.dir, name).await.with_context(|| format!("{name} cannot be started"))?;
    }
    let record = Record::expect(&claim.dir)?;
    // From now on every node keeps its ports and knows the nodes on both sides.
    for (index, name) in names.iter().enumerate().filter(|_| claim.made) {
        let around = neighbours(index, names.len());
        settings::write(&claim.dir, &record, index, around, &extra(&options, name))?;
    }
    try_join_all((0..names.len()).map(|index| joined(&claim.dir, &record, index))).await?;
    claim.keep()
}

/// Starts a node again with the same data and ports, ending it first if it runs, and returns once it is
/// in the swarm of those that run.
///
/// Dropping the future may leave it ended or running.
pub async fn restart(dir: &Path, name: &str) -> anyhow::Result<State> {
    let dir = absolute(dir)?;
    let record = Record::expect(&dir)?;
    let node = record.node(name)?;
    // Also what a node that was killed has left behind.
    end(node.process.iter()).await.with_context(|| format!("{name} cannot be ended"))?;
    start(&dir, name).await.with_context(|| format!("{name} cannot be started again"))?;
    let record = Record::expect(&dir)?;
    let index = record.nodes.iter().position(|node| node.name == name).context("no such node")?;
    joined(&dir, &record, index).await?;
    Ok(State::of(&dir, &record))
}

fn check(options: &UpOptions) -> anyhow::Result<()> {
    let UpOptions { nodes, submit_only, .. } = options;
    if *nodes == 0 || *nodes > MAX_NODES {
        bail!("a test network has 1 to {MAX_NODES} nodes, not {nodes}");
    }
    if submit_only > nodes {
        bail!("{submit_only} of {nodes} nodes cannot be submit-only");
    }
    if let Some(name) = options.node_settings.keys().find(|name| !names(*nodes).any(|known| known == **name))
    {
        bail!("there are settings for {name:?}, which is none of the {nodes} nodes");
    }
    Ok(())
}

fn names(nodes: usize) -> impl Iterator<Item = String> {
    (0..nodes).map(|index| format!("n{index}"))
}

fn extra(options: &UpOptions, name: &str) -> Map<String, Value> {
    let mut settings = options.settings.clone();
    settings.extend(options.node_settings.get(name).cloned().unwrap_or_default());
    settings
}

/// The right to start nodes in a folder. Dropped before [`Claim::keep`], it undoes the start.
struct Claim {
    dir: PathBuf,
    record: Record,
    /// The network is new; otherwise it lay stopped in the folder.
    made: bool,
    made_dir: bool,
    kept: bool,
}

impl Claim {
    fn take(options: &UpOptions) -> anyhow::Result<Self> {
        let program = options
            .program
            .canonicalize()
            .with_context(|| format!("there is no program {}", options.program.display()))?;
        let cannot = || format!("cannot make {}", options.dir.display());
        let parent = options.dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.map_or(Ok(()), fs::create_dir_all).with_context(cannot)?;
        let made_dir = match fs::create_dir(&options.dir) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error).with_context(cannot),
        };
        let dir = absolute(&options.dir)?;
        let own_dir = made_dir || fs::read_dir(&dir).with_context(cannot)?.next().is_none();
        let _lock = Lock::take(&dir)?;
        let (record, made) = match Record::load(&dir)? {
            Some(record) => (resume(record, options, program)?, false),
            None => (plan(options, own_dir, program)?, true),
        };
        record.save(&dir)?;
        Ok(Claim { dir, record, made, made_dir, kept: false })
    }

    /// The start is done and stays.
    fn keep(mut self) -> anyhow::Result<State> {
        self.kept = true;
        Record::update(&self.dir, |record| {
            record.starter = None;
            Ok(State::of(&self.dir, record))
        })
    }

    fn undo(&self) -> anyhow::Result<()> {
        let record = Record::expect(&self.dir)?;
        kill_now(record.nodes.iter().filter_map(|node| node.process.as_ref()))?;
        if self.made {
            return remove_started(&self.dir, &record, self.made_dir);
        }
        Record::update(&self.dir, |record| {
            record.starter = None;
            Ok(())
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = self.undo() {
            // The error that led here is what the caller gets; this one is about what it leaves behind.
            eprintln!("cannot undo the start in {}: {error:#}", self.dir.display());
        }
    }
}

/// The record of a network that is about to be started for the first time.
fn plan(options: &UpOptions, own_dir: bool, program: PathBuf) -> anyhow::Result<Record> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::from).context("cannot draw the swarm's name")?;
    let swarm = format!("testnet-{:016x}", u64::from_le_bytes(random));
    let mut record = Record::new(swarm, own_dir, program)?;
    record.nodes = names(options.nodes)
        .enumerate()
        .map(|(index, name)| Node {
            name,
            peer: String::new(),
            worker: index >= options.submit_only,
            api: String::new(),
            addresses: Vec::new(),
            process: None,
            ended_by: None,
        })
        .collect();
    Ok(record)
}

/// The record of a network that is started again with its data.
fn resume(mut record: Record, options: &UpOptions, program: PathBuf) -> anyhow::Result<Record> {
    let dir = options.dir.display();
    let running = record.nodes.iter().filter(|node| node.doing() != Doing::Gone).count();
    if running > 0 {
        bail!("a test network of {running} nodes already runs in {dir}; end it with `testnet down`");
    }
    if let Some(starter) = record.starter.as_ref().filter(|starter| starter.doing() != Doing::Gone) {
        bail!("another `testnet up` (pid {}) is at work in {dir}", starter.pid);
    }
    let submit_only = record.nodes.iter().filter(|node| !node.worker).count();
    if (record.nodes.len(), submit_only) != (options.nodes, options.submit_only) {
        bail!(
            "{dir} holds a test network of {} nodes, {submit_only} of them submit-only; start that one or remove it with `testnet down --purge`",
            record.nodes.len()
        );
    }
    if record.nodes.iter().any(|node| node.api.is_empty()) {
        bail!("a start was cut off in {dir}; remove what it left with `testnet down --purge`");
    }
    record.starter = Some(Process::own()?);
    record.program = program;
    Ok(record)
}

/// Makes the data directories and keys: every node must know all others as trusted before it starts.
async fn make_keys(dir: &Path, names: &[String], program: &Path) -> anyhow::Result<()> {
    for name in names {
        let data_dir = dir.join(name);
        fs::create_dir(&data_dir).with_context(|| format!("cannot make {}", data_dir.display()))?;
    }
    let mut peers = BTreeMap::new();
    for some in names.chunks(AT_ONCE) {
        let keys = some.iter().map(|name| async move {
            let peer = identity(program, &dir.join(name)).await;
            peer.map(|peer| (name.clone(), peer)).with_context(|| format!("cannot make the key of {name}"))
        });
        peers.extend(try_join_all(keys).await?);
    }
    Record::update(dir, |record| {
        for node in &mut record.nodes {
            node.peer = peers.get(&node.name).cloned().context("a node without a key")?;
        }
        Ok(())
    })
}

/// Starts a node and waits until it serves. Its process is in the record before it can do anything.
async fn start(dir: &Path, name: &str) -> anyhow::Result<()> {
    let (launch, log) = Record::update(dir, |record| {
        let program = record.program.clone();
        let node = record.node_mut(name)?;
        if node.doing() != Doing::Gone {
            bail!("it already runs");
        }
        let log = node.log(dir);
        let launch = launch(&program, &node.data_dir(dir), &log)?;
        node.process = Some(launch.process.clone());
        node.ended_by = None;
        Ok((launch, log))
    })?;
    let process = launch.process.clone();
    match launch.ready(&log).await {
        Ok(ready) => Record::update(dir, |record| serving(record.node_mut(name)?, ready)),
        Err(error) => {
            kill_now(std::iter::once(&process))?;
            Err(error)
        }
    }
}

fn serving(node: &mut Node, ready: Ready) -> anyhow::Result<()> {
    if ready.peer != node.peer {
        bail!("the node says that it is {}, not {}", ready.peer, node.peer);
    }
    node.api = ready.api.filter(|api| !api.is_empty()).context("the node has no API on TCP")?;
    node.addresses = ready.addrs;
    if node.addresses.is_empty() {
        bail!("the node listens nowhere");
    }
    Ok(())
}

/// Waits until a node is connected to all its neighbours that run, and knows which of them take jobs.
async fn joined(dir: &Path, record: &Record, index: usize) -> anyhow::Result<()> {
    let node = record.nodes.get(index).context("no such node")?;
    let around: Vec<&Node> = neighbours(index, record.nodes.len())
        .filter_map(|other| record.nodes.get(other))
        .filter(|other| other.doing() == Doing::Running)
        .collect();
    let workers = around.iter().filter(|other| other.worker).count();
    let path =
        format!("/agent/swarm?peers={}&subscribed={workers}&within={}", around.len(), SWARM_LIMIT.as_secs());
    let failed = |why: String| {
        let (name, log) = (&node.name, tail(&node.log(dir)));
        format!("{name} did not join its {} neighbours: {why}{log}", around.len())
    };
    let client = Client::new(&node.api)?;
    match timeout(ANSWER_LIMIT, client.get(&path)).await {
        Ok(Ok(answer)) if answer.status == 200 => Ok(()),
        Ok(Ok(answer)) => bail!("{}", failed(answer.text())),
        Ok(Err(error)) => bail!("{}", failed(format!("{error:#}"))),
        Err(_) => bail!("{}", failed("no answer".into())),
    }
}
