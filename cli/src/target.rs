//! Which node a command talks to: the one it was told, the one on its data directory, the usual one, or one inside
//! this process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::Global;
use crate::client::{Client, Endpoint, unreachable};
use crate::embedded::{self, Embedded};
use crate::failure::Failure;
use crate::output::{Notes, say_always};

/// How long the process on the usual port may take to say what it is. A Cardume node answers at once.
const INTRODUCTION_DEADLINE: Duration = Duration::from_secs(3);

/// A command's node: a client, and the peer behind it when it runs in this process.
#[derive(Debug)]
pub struct Session {
    /// Talks to the node.
    pub client: Client,
    /// Notes for people.
    pub notes: Notes,
    embedded: Option<Embedded>,
}

/// Whether a command may start a peer in its own process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// It may.
    Embed,
    /// It needs a node that runs.
    None,
}

impl Session {
    /// Finds the node, or starts one when that is allowed.
    pub async fn open(global: &Global, fallback: Fallback) -> Result<Session, Failure> {
        let notes = Notes::new(global.quiet);
        if let Some(url) = explicit_api(global) {
            let endpoint = Endpoint::parse(&url).map_err(Failure::refused)?;
            let client =
                Client::connect(endpoint.clone()).await.map_err(|error| unreachable(&endpoint, &error))?;
            return Ok(Session { client, notes, embedded: None });
        }
        let data_dir = data_dir(global)?;
        if let Some(client) = running_node(&data_dir).await {
            return Ok(Session { client, notes, embedded: None });
        }
        match fallback {
            Fallback::None => Err(no_node()),
            Fallback::Embed => embed(&data_dir, notes).await,
        }
    }

    /// Whether the node lives in this process, and so ends with it.
    pub fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// Ends the session. A peer in this process stops cleanly; jobs that others gave it in the meantime are handed on.
    pub async fn close(self) -> Result<(), Failure> {
        if self.embedded.is_some() && self.has_live_jobs().await {
            return self.leave().await;
        }
        drop(self.client);
        match self.embedded {
            Some(embedded) => embedded.stop().await,
            None => Ok(()),
        }
    }

    /// Ends the session after a failure, which is worth more than one in ending it.
    pub async fn close_after(self, failure: Failure) -> Failure {
        if let Err(other) = self.close().await {
            say_always(other.to_string());
        }
        failure
    }

    /// Ends the session while jobs go on: a peer in this process hands them to a background one and says so.
    pub async fn leave(self) -> Result<(), Failure> {
        let Some(embedded) = self.embedded else { return Ok(()) };
        drop(self.client);
        let background = embedded.hand_over().await?;
        self.notes.say(format!(
            "the job goes on in a background peer (pid {}, log {}); it ends with its jobs",
            background.pid,
            background.log.display()
        ));
        Ok(())
    }

    /// Whether this node owns jobs that have not ended. A node that cannot say is taken to have some.
    async fn has_live_jobs(&self) -> bool {
        let newest = self.client.get("/orchestrator/jobs?limit=100").await;
        let Ok(answer) = newest else { return true };
        let jobs = answer["Items"].as_array().cloned().unwrap_or_default();
        jobs.iter().any(|job| !crate::values::is_terminal(crate::values::job_state(job)))
    }
}

/// The data directory: the flag, `CARDUME_DIR`, or `~/.cardume`.
pub fn data_dir(global: &Global) -> Result<PathBuf, Failure> {
    if let Some(dir) = &global.data_dir {
        return Ok(dir.clone());
    }
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(dir) = variable("CARDUME_DIR") {
        return Ok(dir.into());
    }
    let home = variable("HOME").ok_or_else(|| {
        Failure::refused("no data directory: neither --data-dir, CARDUME_DIR nor HOME is set")
    })?;
    Ok(Path::new(&home).join(".cardume"))
}

/// The node that the user named, which is the only one that may be used.
fn explicit_api(global: &Global) -> Option<String> {
    let variable = || std::env::var("CARDUME_API").ok().filter(|value| !value.trim().is_empty());
    global.api.clone().or_else(variable)
}

/// The node on the data directory, else the one on the usual port if it is a Cardume node.
async fn running_node(data_dir: &Path) -> Option<Client> {
    if let Ok(client) = Client::connect(Endpoint::Unix(embedded::api_socket(data_dir))).await {
        return Some(client);
    }
    let client = Client::connect(Endpoint::default_tcp()).await.ok()?;
    let asked = tokio::time::timeout(INTRODUCTION_DEADLINE, client.get("/agent/version")).await;
    let version = asked.ok()?.ok()?;
    (version["Product"] == "cardume").then_some(client)
}

async fn embed(data_dir: &Path, notes: Notes) -> Result<Session, Failure> {
    match Embedded::start(data_dir).await? {
        embedded::Started::Here(embedded) => {
            let line = format!(
                "no node at {}: running an embedded peer {}",
                Endpoint::default_tcp(),
                embedded.peer()
            );
            notes.say(line);
            let endpoint = Endpoint::Unix(embedded::api_socket(data_dir));
            let client =
                Client::connect(endpoint.clone()).await.map_err(|error| unreachable(&endpoint, &error))?;
            Ok(Session { client, notes, embedded: Some(*embedded) })
        }
        // Another command was first: it serves the directory's socket.
        embedded::Started::Elsewhere(client) => Ok(Session { client, notes, embedded: None }),
    }
}

fn no_node() -> Failure {
    Failure::unreachable(format!(
        "no node could be reached: none on the data directory, none at {}",
        Endpoint::default_tcp()
    ))
    .hint("start one with `cardume serve`, or name one with --api URL")
}
