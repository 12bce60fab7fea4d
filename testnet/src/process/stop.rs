//! Signals, and the end of a test network.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::{join_all, try_join_all};
use rustix::process::Signal as Number;
use tokio::time::{sleep, timeout};

use super::pid::{Doing, Process};
use super::record::{self, EndedBy, Lock, Record};
use super::{State, absolute};

/// `serve` ends within 10 s of SIGTERM; what does not is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// A killed process ends as soon as its memory is freed.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// SIGSTOP takes effect when the process's threads have all noticed it.
const PAUSE_LIMIT: Duration = Duration::from_secs(30);
/// The kernel tells only a parent when a process is frozen, so others look again after this.
const PAUSE_LOOK: Duration = Duration::from_millis(2);

/// What to do to a node's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGKILL: it ends without knowing.
    Kill,
    /// SIGTERM: it ends cleanly.
    Stop,
    /// SIGSTOP: it stands still.
    Pause,
    /// SIGCONT: it goes on.
    Resume,
}

/// Sends a signal to a node and waits until it has taken effect.
///
/// Dropping the future does not take the signal back.
pub async fn signal(dir: &Path, name: &str, signal: Signal) -> anyhow::Result<State> {
    let dir = absolute(dir)?;
    let process = Record::update(&dir, |record| {
        let node = record.node_mut(name)?;
        if node.doing() == Doing::Gone {
            bail!("{name} does not run");
        }
        match signal {
            Signal::Kill => node.ended_by = Some(EndedBy::Kill),
            Signal::Stop => node.ended_by = Some(EndedBy::Stop),
            Signal::Pause | Signal::Resume => {}
        }
        node.process.clone().with_context(|| format!("{name} does not run"))
    })?;
    let failed = || format!("cannot signal {name} (pid {})", process.pid);
    match signal {
        Signal::Kill => kill(&process).await.with_context(failed)?,
        Signal::Stop => {
            ask(&process).with_context(failed)?;
            if timeout(STOP_LIMIT, process.ended()).await.is_err() {
                bail!("{name} (pid {}) still runs {} s after SIGTERM", process.pid, STOP_LIMIT.as_secs());
            }
        }
        Signal::Pause => pause(&process).await.with_context(failed)?,
        Signal::Resume => drop(process.signal(Number::CONT).with_context(failed)?),
    }
    super::status(&dir)
}

/// Ends every node: cleanly if it can, and surely. `purge` removes the folder too.
///
/// Dropping the future leaves nodes that were asked to end, and may leave some that were not.
pub async fn down(dir: &Path, purge: bool) -> anyhow::Result<State> {
    let dir = absolute(dir)?;
    stop_starter(&Record::expect(&dir)?).await?;
    let record = Record::update(&dir, |record| {
        record.starter = None;
        for node in record.nodes.iter_mut().filter(|node| node.doing() != Doing::Gone) {
            node.ended_by = Some(EndedBy::Stop);
        }
        Ok(record.clone())
    })?;
    end(record.nodes.iter().filter_map(|node| node.process.as_ref())).await?;
    let state = State::of(&dir, &record);
    if purge {
        self::purge(&dir, &record).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(state)
}

/// Kills every process of a test network at once and without ceremony: what a test's guard does when it is
/// dropped. The folder stays.
pub fn kill_all(dir: &Path) -> anyhow::Result<()> {
    let dir = absolute(dir)?;
    let Some(record) = Record::load(&dir)? else { return Ok(()) };
    kill_now(record.nodes.iter().filter_map(|node| node.process.as_ref()))?;
    Ok(())
}

/// Kills nodes and what they have started, and waits on this thread.
pub(crate) fn kill_now<'a>(nodes: impl Iterator<Item = &'a Process>) -> io::Result<()> {
    let mut processes = Vec::new();
    for node in nodes {
        processes.extend(node.family()?);
        processes.push(node.clone());
    }
    for process in &processes {
        process.signal(Number::KILL)?;
    }
    for process in &processes {
        if !process.wait(KILL_LIMIT)? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("pid {} does not end", process.pid)));
        }
    }
    Ok(())
}

/// Asks nodes to end, waits, kills those that do not, and then what they have left: a node ends what it has
/// started, but one that was killed could not.
pub(crate) async fn end(nodes: impl Iterator<Item = &Process>) -> anyhow::Result<()> {
    let nodes: Vec<&Process> = nodes.collect();
    let mut family = Vec::new();
    for node in &nodes {
        family.extend(node.family().context("cannot see what a node has started")?);
    }
    for node in &nodes {
        ask(node).with_context(|| format!("cannot signal pid {}", node.pid))?;
    }
    let waits = nodes.iter().map(|node| timeout(STOP_LIMIT, node.ended()));
    for (node, ended) in nodes.iter().zip(join_all(waits).await) {
        match ended {
            Ok(ended) => drop(ended.with_context(|| format!("cannot wait for pid {}", node.pid))?),
            Err(_) => kill(node).await?,
        }
    }
    try_join_all(family.iter().map(kill)).await.context("cannot end what a node has started")?;
    Ok(())
}

/// A frozen process handles SIGTERM only once it goes on.
fn ask(process: &Process) -> io::Result<()> {
    process.signal(Number::TERM)?;
    process.signal(Number::CONT)?;
    Ok(())
}

async fn kill(process: &Process) -> anyhow::Result<()> {
    process.signal(Number::KILL).with_context(|| format!("cannot kill pid {}", process.pid))?;
    timeout(KILL_LIMIT, process.ended())
        .await
        .with_context(|| format!("pid {} does not end", process.pid))?
        .with_context(|| format!("cannot wait for pid {}", process.pid))?;
    Ok(())
}

async fn pause(process: &Process) -> anyhow::Result<()> {
    process.signal(Number::STOP)?;
    let frozen = async {
        while process.doing() == Doing::Running {
            sleep(PAUSE_LOOK).await;
        }
    };
    timeout(PAUSE_LIMIT, frozen).await.context("it does not stand still")
}

/// Ends an `up` that is still at work, so that it starts no more nodes behind our back.
async fn stop_starter(record: &Record) -> anyhow::Result<()> {
    let Some(starter) = &record.starter else { return Ok(()) };
    if starter.doing() == Doing::Gone || *starter == Process::own()? {
        return Ok(());
    }
    bail!(
        "`testnet up` (pid {}) is still starting this test network; end it or wait until it is done",
        starter.pid
    )
}

/// Removes the folder, or only what is ours when it held other files before.
fn purge(dir: &Path, record: &Record) -> io::Result<()> {
    if record.own_dir {
        return fs::remove_dir_all(dir);
    }
    for node in &record.nodes {
        remove_dir(&node.data_dir(dir))?;
    }
    record::remove(dir)
}

/// Removes what a failed start has made.
pub(crate) fn remove_started(dir: &Path, record: &Record, made_dir: bool) -> anyhow::Result<()> {
    let _lock = Lock::take(dir)?;
    for node in &record.nodes {
        remove_dir(&node.data_dir(dir))?;
    }
    record::remove(dir)?;
    if made_dir {
        fs::remove_dir(dir)?;
    }
    Ok(())
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
