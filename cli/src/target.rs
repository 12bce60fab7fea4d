//! Which node a command talks to: the one it was told, the one on its data directory, the usual one, or one inside
//! this process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::Global;
use crate::client::{Client, Endpoint, unreachable};
use crate::embedded::{self, Embedded};
use crate::failure::{Failure, Outcome, exit};
use crate::output::{Notes, say_always};
use crate::signals::Signals;

/// How long a process may take to say what it is. A Cardume node answers at once, also on a machine that is busy.
const INTRODUCTION_DEADLINE: Duration = Duration::from_secs(5);

/// The code of a process that does not say what it is.
const SILENT: &str = "Silent";

/// A command's node: a client, and the peer behind it when it runs in this process.
#[derive(Debug)]
pub struct Session {
    /// Talks to the node.
    pub client: Client,
    /// Notes for people.
    pub notes: Notes,
    embedded: Option<Embedded>,
    /// The data directory whose peer lives in another command, and may be replaced by another when it ends.
    shared: Option<PathBuf>,
}

/// Whether a node is a peer inside another command, which ends with that command's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stay {
    Lasting,
    Passing,
}

/// How often a command goes on with another node. Each time another command's peer ended just then, which few do.
const REOPENINGS: u32 = 5;

/// Whether a command may start a peer in its own process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// It may.
    Embed,
    /// It may where there is a record to read.
    Record,
    /// It needs a node that runs.
    None,
}

impl Session {
    /// Finds the node, or starts one when that is allowed.
    pub async fn open(global: &Global, fallback: Fallback) -> Result<Session, Failure> {
        let notes = Notes::new(global.quiet);
        if let Some(client) = named(global).await? {
            return Ok(Session { client, notes, embedded: None, shared: None });
        }
        let data_dir = data_dir(global)?;
        let session = match running_node(&data_dir).await? {
            Some((client, stay)) => {
                let session = passing(client, stay, notes, &data_dir);
                // Only a command that may start a peer may replace one.
                let shared = session.shared.filter(|_| fallback != Fallback::None);
                Session { shared, ..session }
            }
            None if fallback == Fallback::None => return Err(no_node()),
            None if fallback == Fallback::Record && !has_record(&data_dir) => return Err(no_node()),
            None => embed(&data_dir, notes).await?,
        };
        Ok(session.with_token(token(global)))
    }

    fn with_token(mut self, token: Option<String>) -> Session {
        self.client = self.client.with_token(token);
        self
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
        let token = self.client.token();
        drop(self.client);
        let session = match running_on(&data_dir).await? {
            Some((client, stay)) => passing(client, stay, self.notes, &data_dir),
            None => embed(&data_dir, self.notes).await?,
        };
        Ok(session.with_token(token))
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
                "the job goes on in a background peer (pid {}, log {}), which ends with its jobs; what ran here starts there from the beginning",
                background.pid,
                background.log.display()
            ),
            None => "the job goes on in the peer of another command on this data directory".to_owned(),
        });
        Ok(())
    }

    /// Whether this node owns jobs that have not ended. A node that cannot say is taken to have some.
    async fn has_live_jobs(&self) -> bool {
        let live = self.client.get("/orchestrator/jobs?live=true&limit=1").await;
        live.map_or(true, |answer| !crate::values::list(&answer, &["Items"]).is_empty())
    }
}

/// The node that the user named by `--api` or `CARDUME_API`, if any: no other is used then.
pub async fn named(global: &Global) -> Result<Option<Client>, Failure> {
    let Some(url) = explicit_api(global) else { return Ok(None) };
    let endpoint = Endpoint::parse(&url).map_err(Failure::refused)?;
    let client = Client::connect(endpoint.clone()).await.map_err(|error| unreachable(&endpoint, &error))?;
    introduce(&client).await?;
    Ok(Some(client.with_token(token(global))))
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

/// The access token that the user gave.
fn token(global: &Global) -> Option<String> {
    let variable = || std::env::var("CARDUME_TOKEN").ok();
    global
        .token
        .clone()
        .or_else(variable)
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty())
}

/// Whether a data directory has a record of jobs.
fn has_record(data_dir: &Path) -> bool {
    data_dir.join("state.redb").exists()
}

/// The node on the data directory, else the one on the usual port if it is a Cardume node.
async fn running_node(data_dir: &Path) -> Result<Option<(Client, Stay)>, Failure> {
    if let Some(found) = running_on(data_dir).await? {
        return Ok(Some(found));
    }
    let Ok(client) = Client::connect(Endpoint::default_tcp()).await else { return Ok(None) };
    // Whatever else listens there is left alone.
    Ok(introduce(&client).await.ok().map(|stay| (client, stay)))
}

/// The node on the data directory. One that ends just now is none; one that does not answer is not replaced.
async fn running_on(data_dir: &Path) -> Result<Option<(Client, Stay)>, Failure> {
    let endpoint = Endpoint::Unix(embedded::api_socket(data_dir));
    let Ok(client) = Client::connect(endpoint).await else { return Ok(None) };
    match introduce(&client).await {
        Ok(stay) => Ok(Some((client, stay))),
        Err(failure) if failure.code == SILENT => Err(failure),
        Err(_) => Ok(None),
    }
}

/// Asks a process what it is: only a Cardume node may be talked to.
async fn introduce(client: &Client) -> Result<Stay, Failure> {
    let endpoint = client.endpoint();
    let hint = "name a node with --api URL, or start one with `cardume serve`";
    match tokio::time::timeout(INTRODUCTION_DEADLINE, client.get("/agent/version")).await {
        Ok(Ok(version)) if version["Product"] == "cardume" => {
            Ok(if version["Embedded"] == true { Stay::Passing } else { Stay::Lasting })
        }
        Ok(Err(failure)) if failure.is_lost_connection() => Err(failure),
        Ok(_) => {
            let message = format!("the process at {endpoint} is no Cardume node");
            Err(Failure::unreachable(message).hint(hint))
        }
        Err(_) => {
            let seconds = INTRODUCTION_DEADLINE.as_secs();
            let message = format!("the process at {endpoint} does not answer: it was given {seconds} s");
            Err(Failure::new(exit::UNREACHABLE, SILENT, message).hint(hint))
        }
    }
}

/// A session with a node that another process runs on the data directory.
fn passing(client: Client, stay: Stay, notes: Notes, data_dir: &Path) -> Session {
    let shared = (stay == Stay::Passing).then(|| data_dir.to_owned());
    Session { client, notes, embedded: None, shared }
}

async fn embed(data_dir: &Path, notes: Notes) -> Result<Session, Failure> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match Embedded::start(data_dir).await? {
            embedded::Started::Here(embedded) => return embedded_session(*embedded, data_dir, notes).await,
            // Another command was first: it serves the directory's socket.
            embedded::Started::Elsewhere(client) => match introduce(&client).await {
                Ok(stay) => return Ok(passing(client, stay, notes, data_dir)),
                Err(failure) if failure.code == SILENT || attempts >= REOPENINGS => return Err(failure),
                // It ended just then.
                Err(_) => {}
            },
        }
    }
}

async fn embedded_session(embedded: Embedded, data_dir: &Path, notes: Notes) -> Result<Session, Failure> {
    notes.say(format!(
        "no node at {}: running an embedded peer {}",
        Endpoint::default_tcp(),
        embedded.peer()
    ));
    let endpoint = Endpoint::Unix(embedded::api_socket(data_dir));
    let client = Client::connect(endpoint.clone()).await.map_err(|error| unreachable(&endpoint, &error))?;
    Ok(Session { client, notes, embedded: Some(embedded), shared: None })
}

/// Does something with a node and leaves it as it should be, also at Ctrl-C. With `repeat`, the work is done again with
/// another node when a peer of another command has ended before it answered.
pub async fn with_node(
    global: &Global,
    fallback: Fallback,
    repeat: bool,
    interrupted: impl Fn() -> Failure,
    work: impl AsyncFn(&Session) -> Result<(), Failure>,
) -> Outcome {
    let mut signals = Signals::new()?;
    let mut session = signals.or(Session::open(global, fallback), &interrupted).await?;
    let mut reopened = 0;
    loop {
        match signals.or(work(&session), &interrupted).await {
            Ok(()) => {
                return signals.or(session.close(), &interrupted).await.map(|()| exit::DONE);
            }
            // An answer that broke off may have been written in part; a request that found no node was not.
            Err(failure) if repeat && failure.exit == exit::UNREACHABLE => {
                session = session.recover(failure, &mut reopened).await?;
            }
            Err(failure) => {
                return Err(tokio::select! {
                    failure = session.close_after(failure) => failure,
                    // Told twice: at once.
                    () = signals.next() => Failure::silent(exit::INTERRUPTED),
                });
            }
        }
    }
}

/// A command that was ended by Ctrl-C and had nothing more to say.
pub fn interrupted() -> Failure {
    Failure::silent(exit::INTERRUPTED)
}

fn no_node() -> Failure {
    Failure::unreachable(format!(
        "no node could be reached: none on the data directory, none at {}",
        Endpoint::default_tcp()
    ))
    .hint("start one with `cardume serve`, or name one with --api URL")
}
