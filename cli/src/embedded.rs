//! A peer inside this process, for commands that find no node. With `serve`, the only place that starts one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use node::{Config, Node, StartError};
use rustix::fs::inotify;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::client::{Client, Endpoint};
use crate::failure::{Failure, exit};

/// How long another process on the directory may take to serve it, or to leave it: a start takes well under a second,
/// a clean stop up to ten.
const OTHER_DEADLINE: Duration = Duration::from_secs(15);

/// No event says that another process has dropped the directory's lock, so that is looked for this often.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How long the background peer may take to serve.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(30);

/// How long threads of a stopped peer may take to end: they only finish reading or writing a block.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// The code of a start on a data directory that another process has.
const LOCKED: &str = "Locked";

/// Most bytes of what a background peer says that are read: a line, or an error.
const MAX_WORD_BYTES: u64 = 64 << 10;

/// A peer that runs in this process, on threads of its own.
#[derive(Debug)]
pub struct Embedded {
    running: Option<Running>,
    peer: String,
    data_dir: PathBuf,
}

/// Dropped from a thread that drives tasks, a runtime would panic: it is always shut down by name.
struct Running {
    runtime: Runtime,
    node: Node,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

/// What [`Embedded::start`] found.
#[derive(Debug)]
pub enum Started {
    /// The peer runs here.
    Here(Box<Embedded>),
    /// Another process was first and serves the directory.
    Elsewhere(Client),
}

/// A node that took over in the background.
#[derive(Debug)]
pub struct Background {
    /// Its process.
    pub pid: u32,
    /// Where it writes its log.
    pub log: PathBuf,
}

impl Embedded {
    /// Starts a peer on a data directory, or finds the one that another process starts on it at the same time.
    ///
    /// Dropping the future leaves nothing that the process's end does not clean up.
    pub async fn start(data_dir: &Path) -> Result<Started, Failure> {
        let data_dir = absolute(data_dir)?;
        let deadline = Instant::now() + OTHER_DEADLINE;
        loop {
            match start_node(&data_dir).await? {
                Attempt::Runs(running) => {
                    let peer = running.node.ready().peer.to_string();
                    return Ok(Started::Here(Box::new(Embedded { running: Some(running), peer, data_dir })));
                }
                Attempt::Taken(failure) if Instant::now() >= deadline => return Err(failure),
                Attempt::Taken(_) => {
                    if let Some(client) = wait_for_other(&data_dir).await? {
                        return Ok(Started::Elsewhere(client));
                    }
                }
            }
        }
    }

    /// Its id.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Stops it cleanly.
    pub async fn stop(mut self) -> Result<(), Failure> {
        self.end().await
    }

    /// Stops it and starts a background node on the same directory, which goes on with its jobs and ends with them.
    /// `None` when another process has the directory already: it goes on with them just the same.
    pub async fn hand_over(mut self) -> Result<Option<Background>, Failure> {
        self.end().await?;
        let deadline = Instant::now() + OTHER_DEADLINE;
        loop {
            match spawn_background(&self.data_dir).await {
                Ok(background) => return Ok(Some(background)),
                Err(failure) if failure.code != LOCKED || Instant::now() >= deadline => return Err(failure),
                Err(_) => {
                    if wait_for_other(&self.data_dir).await?.is_some() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    async fn end(&mut self) -> Result<(), Failure> {
        let Some(Running { runtime, node }) = self.running.take() else { return Ok(()) };
        let stopped = runtime.spawn(node.stop()).await;
        // Only when its tasks are gone are the files closed that the next process on the directory opens.
        let gone = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(CLOSE_DEADLINE)).await;
        gone.map_err(|error| Failure::refused(format!("the embedded peer did not end: {error}")))?;
        stopped.map_err(|error| Failure::refused(format!("the embedded peer did not stop cleanly: {error}")))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Some(Running { runtime, node }) = self.running.take() {
            // The node's parts belong to its threads; what is durable stays.
            let guard = runtime.enter();
            drop(node);
            drop(guard);
            runtime.shutdown_background();
        }
    }
}

/// The API socket of the node on a data directory.
pub fn api_socket(data_dir: &Path) -> PathBuf {
    node::api_socket(data_dir)
}

/// The peer id of a data directory and its key file; a key is made when there is none.
pub fn identity(data_dir: &Path) -> Result<(String, PathBuf), Failure> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
    made.map_err(|error| {
        Failure::local(format!("cannot make the data directory {}", data_dir.display()), &error)
    })?;
    let (peer, key) = node::identity::peer_id(data_dir, true)
        .map_err(|error| Failure::refused(format!("cannot read this peer's key: {}", chain(&error))))?;
    Ok((peer.to_string(), key))
}

/// A node that could not be started, as a failure.
pub fn start_failure(error: &StartError) -> Failure {
    let code = if matches!(error, StartError::Locked { .. }) { LOCKED } else { "StartError" };
    let failure = Failure::new(exit::REFUSED, code, format!("cannot start the node: {}", chain(error)));
    failure.hint(error.hint().unwrap_or_default())
}

/// An error with its reasons, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let reason = error.to_string();
        if !text.ends_with(&reason) {
            text = format!("{text}: {reason}");
        }
        source = error.source();
    }
    text
}

enum Attempt {
    Runs(Running),
    /// Another process has the directory.
    Taken(Failure),
}

async fn start_node(data_dir: &Path) -> Result<Attempt, Failure> {
    let config = Config::load(data_dir, None).map_err(|error| Failure::refused(chain(&error)))?;
    // Whoever wants this peer finds its socket; the usual port is for nodes that stay.
    let config = Config { api: None, embedded: true, ..config };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local("cannot start threads for the embedded peer", &error))?;
    let started = runtime.spawn(Node::start(config)).await;
    match started {
        Ok(Ok(node)) => Ok(Attempt::Runs(Running { runtime, node })),
        Ok(Err(error)) => {
            runtime.shutdown_background();
            let failure = start_failure(&error);
            if failure.code == LOCKED { Ok(Attempt::Taken(failure)) } else { Err(failure) }
        }
        Err(error) => {
            runtime.shutdown_background();
            Err(Failure::refused(format!("cannot start the embedded peer: {error}")))
        }
    }
}

/// Waits for a change in the directory, a little while at most; a client when its socket is served then.
async fn wait_for_other(data_dir: &Path) -> Result<Option<Client>, Failure> {
    let failed =
        |error: std::io::Error| Failure::local(format!("cannot watch {}", data_dir.display()), &error);
    let connect = || Client::connect(Endpoint::Unix(api_socket(data_dir)));
    let events = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)
        .map_err(|error| failed(error.into()))?;
    // A socket is made, then listened on, then given its mode: the last is when it surely answers.
    let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::ATTRIB | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&events, data_dir, flags).map_err(|error| failed(error.into()))?;
    if let Ok(client) = connect().await {
        return Ok(Some(client));
    }
    // No pipe, but read like one: bytes arrive, and the poller says when.
    let events = pipe::Receiver::from_owned_fd_unchecked(events).map_err(failed)?;
    if let Ok(ready) = tokio::time::timeout(LOOK_AGAIN, events.readable()).await {
        ready.map_err(failed)?;
    }
    Ok(connect().await.ok())
}

/// Starts `serve --until-idle` on a data directory and waits until it serves.
async fn spawn_background(data_dir: &Path) -> Result<Background, Failure> {
    let log = data_dir.join("serve.log");
    let cannot = |error: &std::io::Error| {
        Failure::local("cannot hand the job over to a background peer", error)
            .hint("the job is safe in the data directory: go on with it by `cardume serve`")
    };
    let stderr = open_log(&log).map_err(|error| cannot(&error))?;
    let program = std::env::current_exe().map_err(|error| cannot(&error))?;
    let mut child = tokio::process::Command::new(program)
        .args(["serve", "--until-idle", "--output", "json", "--data-dir"])
        .arg(data_dir)
        .current_dir(data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        // Ctrl-C in this terminal is for this process.
        .process_group(0)
        .spawn()
        .map_err(|error| cannot(&error))?;
    let pid = child.id().unwrap_or_default();
    let stdout = child.stdout.take().ok_or_else(|| cannot(&std::io::ErrorKind::BrokenPipe.into()))?;
    let mut said = String::new();
    let mut reader = BufReader::new(stdout.take(MAX_WORD_BYTES));
    let said = tokio::time::timeout(HAND_OVER_DEADLINE, async {
        reader.read_line(&mut said).await?;
        if !said.contains("\"ready\"") {
            reader.read_to_string(&mut said).await?;
        }
        Ok(said)
    });
    match said.await {
        Ok(Ok(said)) if said.contains("\"ready\"") => Ok(Background { pid, log }),
        Ok(Ok(said)) => Err(not_serving(&said, &log)),
        Ok(Err(error)) => Err(cannot(&error)),
        Err(_) => Err(not_serving("", &log)),
    }
}

/// A background peer that ended, or said nothing: with its own words where it had some.
fn not_serving(said: &str, log: &Path) -> Failure {
    let error = serde_json::from_str::<serde_json::Value>(said).unwrap_or_default();
    let code = crate::values::text(&error, &["error", "code"]);
    let code = if code.is_empty() { "StartError" } else { code };
    let why = crate::values::text(&error, &["error", "message"]);
    let separator = if why.is_empty() { "" } else { ": " };
    let message = format!("the background peer does not serve{separator}{why}; its log is {}", log.display());
    Failure::new(exit::REFUSED, code, message)
        .hint("the job is safe in the data directory: go on with it by `cardume serve`")
}

fn open_log(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::local(format!("cannot use {}", path.display()), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_background_peer_that_fails_is_quoted() {
        let said = r#"{"error": {"code": "Locked", "message": "another process works here", "hint": null}}"#;
        let failure = not_serving(said, Path::new("/d/serve.log"));
        assert_eq!(failure.code, LOCKED);
        assert!(failure.message.contains("serve: another process works here; its log is /d/serve.log"));
        assert_eq!(not_serving("", Path::new("/d/serve.log")).code, "StartError");
    }

    #[test]
    fn errors_are_told_with_their_reasons_and_none_twice() {
        let error = anyhow::Error::new(std::io::Error::other("no room")).context("cannot open it");
        assert_eq!(chain(error.as_ref()), "cannot open it: no room");
    }
}
