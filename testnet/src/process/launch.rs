//! Starting one node and waiting for its word that it serves.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::fs::{CWD, Mode, mkfifoat};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::pid::Process;

/// A node serves within a second; this bounds a machine that is very busy.
const START_LIMIT: Duration = Duration::from_secs(60);
/// `cardume id` takes milliseconds.
const ID_LIMIT: Duration = Duration::from_secs(60);
/// A ready line is a few hundred bytes.
const LINE_BYTES: u64 = 64 << 10;
/// How much of a log an error shows.
const TAIL_LINES: usize = 15;
/// How much of a log is read for that.
const TAIL_BYTES: u64 = 16 << 10;

/// The line that a node prints once it serves.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Ready {
    pub(crate) peer: String,
    #[serde(default)]
    pub(crate) api: Option<String>,
    #[serde(default)]
    pub(crate) addrs: Vec<String>,
}

/// Makes the key of a data directory, if it has none, and gives the peer id.
///
/// Dropping the future ends the command.
pub(crate) async fn identity(program: &Path, data_dir: &Path) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Id {
        peer: String,
    }
    let mut command = tokio::process::Command::from(command(program, data_dir, "id"));
    let run = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(ID_LIMIT, run)
        .await
        .context("`cardume id` does not end")?
        .with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        bail!("`cardume id` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let id: Id = serde_json::from_slice(&output.stdout).context("`cardume id` gave no JSON")?;
    Ok(id.peer)
}

/// A node that was started and has not said yet that it serves.
pub(crate) struct Launch {
    pub(crate) process: Process,
    said: BufReader<tokio::io::Take<pipe::Receiver>>,
}

/// Starts the node of a data directory in a process group of its own, so that Ctrl-C in the terminal of
/// whoever starts it does not reach it. Dropping the result leaves it running.
pub(crate) fn launch(program: &Path, data_dir: &Path, log: &Path) -> anyhow::Result<Launch> {
    let (reader, writer) = channel(data_dir).context("cannot make a pipe for the node")?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot open {}", log.display()))?;
    let child = command(program, data_dir, "serve")
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    // Not waited for yet, so the id is still the child's, even if it has ended.
    let process = Process::of(child.id()).context("cannot see the node's process")?;
    Ok(Launch { process, said: BufReader::new(reader.take(LINE_BYTES)) })
}

impl Launch {
    /// Waits until the node serves; an error when it ends before, with the end of its log.
    ///
    /// Dropping the future leaves the node running.
    pub(crate) async fn ready(mut self, log: &Path) -> anyhow::Result<Ready> {
        let mut line = String::new();
        let waiting = async {
            tokio::select! {
                biased;
                read = self.said.read_line(&mut line) => read.map(|_| None),
                ended = self.process.ended() => ended.map(Some),
            }
        };
        match timeout(START_LIMIT, waiting).await {
            Err(_) => bail!("does not serve after {} s{}", START_LIMIT.as_secs(), tail(log)),
            Ok(Err(error)) => Err(error).context("cannot wait for the node"),
            Ok(Ok(Some(ended))) => bail!("ended with {ended} before it served{}", tail(log)),
            Ok(Ok(None)) => serde_json::from_str(&line)
                .with_context(|| format!("did not print what is expected but {:?}", line.trim_end())),
        }
    }
}

/// `PROGRAM VERB --data-dir DATA_DIR --output json`, without the caller's own settings.
fn command(program: &Path, data_dir: &Path, verb: &str) -> Command {
    let mut command = Command::new(program);
    command.arg(verb).arg("--data-dir").arg(data_dir).args(["--output", "json"]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARDUME_") {
            command.env_remove(name);
        }
    }
    // The caller's folder could not be removed or unmounted while a node stays in it.
    command.current_dir(data_dir);
    command
}

/// A pipe that does not break when its reader goes away: the node holds both of its ends.
fn channel(data_dir: &Path) -> io::Result<(pipe::Receiver, File)> {
    let path = data_dir.join("ready");
    remove_if_there(&path)?;
    mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR)?;
    let reader = pipe::OpenOptions::new().read_write(true).open_receiver(&path);
    let writer = OpenOptions::new().read(true).write(true).open(&path);
    remove_if_there(&path)?;
    Ok((reader?, writer?))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The last lines of a log, as the end of an error.
pub(crate) fn tail(log: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = match read() {
        Ok(bytes) => bytes,
        Err(error) => return format!("; its log {} cannot be read: {error}", log.display()),
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return format!("; its log {} is empty", log.display());
    }
    let last = lines.iter().skip(lines.len().saturating_sub(TAIL_LINES));
    let shown: String = last.map(|line| format!("\n  {line}")).collect();
    format!("; its log {} ends with:{shown}", log.display())
}
