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
    /// The data directory whose node may be replaced by another when it goes away.
    shared: Option<PathBuf>,
}

/// How often a command goes on with another node. Each time another command's peer ended just then, which few do.
const REOPENINGS: u32 = 5;

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
            return Ok(Session { client, notes, embedded: None, shared: None });
        }
        let data_dir = data_dir(global)?;
        if let Some(client) = running_node(&data_dir).await {
            return Ok(Session::shared(client, notes, &data_dir, fallback));
        }
        match fallback {
            Fallback::None => Err(no_node()),
            Fallback::Embed => embed(&data_dir, notes).await,
        }
    }

    /// A session with a node that another process runs on the data directory.
    fn shared(client: Client, notes: Notes, data_dir: &Path, fallback: Fallback) -> Session {
        let may_be_embedded = fallback == Fallback::Embed && client.endpoint().is_local_socket();
        let shared = may_be_embedded.then(|| data_dir.to_owned());
        Session { client, notes, embedded: None, shared }
    }

    /// Whether, after this failure, the work can go on with another node on the same data directory: the peer of
    /// another command ends with that command's own work, and may not have heard of ours in time.
    pub fn may_reopen(&self, failure: &Failure) -> bool {
        self.shared.is_some() && failure.is_lost_connection()
    }

    /// Goes on after a failure where another node can; else ends the session with it. `reopened` counts.
    pub async fn recover(self, failure: Failure, reopened: &mut u32) -> Result<Session, Failure> {
        if !self.may_reopen(&failure) || *reopened >= REOPENINGS {
            return Err(self.close_after(failure).await);
        }
        *reopened += 1;
        self.reopen().await
    }

    /// Whether the node stays, so that one that is gone for a moment is worth waiting for.
    pub fn is_lasting(&self) -> bool {
        self.shared.is_none()
    }

    /// Goes on with whoever serves the data directory now, or with a peer in this process.
    async fn reopen(self) -> Result<Session, Failure> {
        let Some(data_dir) = self.shared else { return Err(no_node()) };
        drop(self.client);
        match running_on(&data_dir).await {
            Some(client) => Ok(Session::shared(client, self.notes, &data_dir, Fallback::Embed)),
            None => embed(&data_dir, self.notes).await,
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
        self.notes.say(match embedded.hand_over().await? {
            Some(background) => format!(
                "the job goes on in a background peer (pid {}, log {}); it ends with its jobs",
                background.pid,
                background.log.display()
            ),
            None => "the job goes on in the peer of another command on this data directory".to_owned(),
        });
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
    if let Some(client) = running_on(data_dir).await {
        return Some(client);
    }
    let client = Client::connect(Endpoint::default_tcp()).await.ok()?;
    let asked = tokio::time::timeout(INTRODUCTION_DEADLINE, client.get("/agent/version")).await;
    let version = asked.ok()?.ok()?;
    (version["Product"] == "cardume").then_some(client)
}

async fn running_on(data_dir: &Path) -> Option<Client> {
    Client::connect(Endpoint::Unix(embedded::api_socket(data_dir))).await.ok()
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
            Ok(Session { client, notes, embedded: Some(*embedded), shared: None })
        }
        // Another command was first: it serves the directory's socket.
        embedded::Started::Elsewhere(client) => Ok(Session::shared(client, notes, data_dir, Fallback::Embed)),
    }
}

fn no_node() -> Failure {
    Failure::unreachable(format!(
        "no node could be reached: none on the data directory, none at {}",
        Endpoint::default_tcp()
    ))
    .hint("start one with `cardume serve`, or name one with --api URL")
}
