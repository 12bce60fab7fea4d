//! Starting runner children, and what is left to say when one has ended.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc as threads;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::{ChildStderr, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::settings::RunnerCommand;
use super::socket;
use super::wire::{self, Packet, Setup};

/// How much of the end of what a child wrote to stderr is kept, to say why it ended.
const TAIL_BYTES: usize = 2 << 10;

/// Starts children, all from one thread that lasts as long as this does.
///
/// The system ends a child with the *thread* that started it, so no thread of a pool may: it can end any
/// time. With this one they end when the engine is gone, and when the whole node is.
#[derive(Debug)]
pub(crate) struct Spawner {
    requests: threads::Sender<Request>,
}

struct Request {
    command: Command,
    runtime: Handle,
    answer: oneshot::Sender<io::Result<tokio::process::Child>>,
}

impl Spawner {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let (requests, waiting) = threads::channel::<Request>();
        std::thread::Builder::new().name("runner-parent".into()).spawn(move || {
            for mut request in waiting {
                let _runtime = request.runtime.enter();
                // Whoever asked may be gone; the child is then dropped, and ended by that.
                drop(request.answer.send(request.command.spawn()));
            }
        })?;
        Ok(Spawner { requests })
    }

    /// Starts a child and sends it its setup. `name` is what process lists show.
    pub async fn spawn(
        &self,
        runner: &RunnerCommand,
        name: &str,
        setup: &Setup,
        fds: Vec<OwnedFd>,
    ) -> io::Result<(Child, OwnedFd)> {
        let (ours, theirs) = socket::pair()?;
        let mut packet = Packet::default();
        let message = wire::encode(setup, fds).map_err(io::Error::other)?;
        packet.push(message).map_err(|_| io::Error::other("the setup does not fit a packet"))?;
        socket::send(&ours, &packet)?;
        let mut command = Command::new(&runner.program);
        command.args(&runner.args).arg0(name).env_clear().current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::piped());
        let (answer, answered) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts runners has ended");
        let request = Request { command, runtime: Handle::current(), answer };
        self.requests.send(request).map_err(|_| gone())?;
        let mut process = answered.await.map_err(|_| gone())??;
        let tail = tokio::spawn(tail(process.stderr.take()));
        Ok((Child { process, tail }, ours))
    }
}

/// A child that was started; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Child {
    process: tokio::process::Child,
    tail: JoinHandle<String>,
}

/// How a child ended.
#[derive(Debug)]
pub(crate) struct Exit {
    pub status: Option<ExitStatus>,
    /// The end of what it wrote to stderr.
    pub said: String,
}

impl Child {
    /// Its process id, while it has one.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Lets it end within `grace`, then ends it, and waits until it is gone.
    pub async fn end(mut self, grace: Duration) -> Exit {
        let status = match tokio::time::timeout(grace, self.process.wait()).await {
            Ok(status) => status.ok(),
            Err(_) => {
                // It may have ended just now, which is as well.
                let _ = self.process.start_kill();
                self.process.wait().await.ok()
            }
        };
        // The pipe closes with the process: it had no children that could hold it open.
        Exit { status, said: self.tail.await.unwrap_or_default() }
    }
}

impl Exit {
    /// The signal that ended it, if one did.
    pub fn signal(&self) -> Option<i32> {
        self.status.and_then(|status| status.signal())
    }

    /// The code that it ended with, if it did so by itself.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// For logs and errors: how it ended and what it said last.
    pub fn describe(&self) -> String {
        let how = match self.status {
            None => "ended".to_owned(),
            Some(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => format!("was ended by signal {signal}"),
                (None, Some(code)) => format!("ended with code {code}"),
                (None, None) => "ended".to_owned(),
            },
        };
        if self.said.is_empty() { how } else { format!("{how}: {}", self.said) }
    }
}

/// Reads until the end and keeps the last of it, as text without control characters: who wrote it may be
/// hostile.
async fn tail(stderr: Option<ChildStderr>) -> String {
    let Some(mut stderr) = stderr else { return String::new() };
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..length]);
        let excess = kept.len().saturating_sub(TAIL_BYTES);
        kept.drain(..excess);
    }
    let text = String::from_utf8_lossy(&kept);
    text.trim().chars().map(|one| if one.is_control() { ' ' } else { one }).collect()
}
