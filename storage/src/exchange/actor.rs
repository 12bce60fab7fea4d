//! The exchange's task: it owns both machines, hands them what comes in and does what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use cid::Cid;
use futures::StreamExt;
use job::Time;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tracing::{debug, trace, warn};

use super::Counters;
use super::client::{self, Arrived, Client, SessionId};
use super::frame::Budget;
use super::message::{Block, Entry, Presence};
use super::network::{Agent, Network, Peer};
use super::outbox::{self, Outbox, Sending, Served};
use super::server::{self, Server};
use crate::block::LocalBlocks;

/// Messages of peers that wait for the task; the streams they come from wait when it is full.
pub(super) const INBOX_CAPACITY: usize = 256;

/// Inputs that are handled between two looks at the other queue.
const INPUTS_AT_ONCE: usize = 64;

/// Wants that are looked up without a thread of their own: each takes microseconds.
const CHECK_HERE: usize = 32;

/// Messages that are read from disk at once: enough to keep a disk busy, without a thread for each.
const READ_AT_ONCE: usize = 8;

/// Messages that are hashed at once, of all peers.
const HASHED_AT_ONCE: usize = 8;

/// Peers that are remembered as unknown before it is looked up which of them are connected. A message may overtake the
/// news of its connection, and it may come after that of its end.
const MAX_STRANGERS: usize = 64;

/// Providers that are taken from one search: a list of them has no end.
const MAX_PROVIDERS: usize = 256;

/// Where messages of peers go.
pub(super) type Inbox = mpsc::Sender<FromPeer>;

/// What came in one message of a peer.
#[derive(Debug)]
pub(super) struct FromPeer {
    pub peer: Peer,
    pub full: bool,
    pub entries: Vec<Entry>,
    pub presences: Vec<Presence>,
    pub blocks: Vec<Arrived>,
}

impl FromPeer {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.presences.is_empty() && self.blocks.is_empty() && !self.full
    }
}

/// What the rest of the node and the exchange's own tasks say. The queue has no cap of its own: it
/// holds what connections, sessions and messages bring, and those are capped.
#[derive(Debug)]
pub(super) enum Command {
    Connected(Peer),
    Disconnected(Peer),
    Open {
        session: SessionId,
        hints: Vec<Peer>,
        give_up_after: std::time::Duration,
        events: mpsc::UnboundedSender<Event>,
    },
    Client(client::Input),
    Server(server::Input),
    Sending {
        peer: Peer,
        how: Sending,
    },
}

/// What a session hears.
#[derive(Debug)]
pub(super) enum Event {
    /// A block that it wants.
    Block(Arrived),
    /// Nobody offers this block; `asked` peers were told of it.
    Nobody { cid: Cid, asked: usize },
}

/// All that is kept of one peer besides the machines' state.
#[derive(Debug)]
pub(super) struct Line {
    pub outbox: Outbox,
    pub budget: Budget,
    /// Something came from it since the machine was last told.
    pub heard: AtomicBool,
}

/// The lines to all peers.
#[derive(Debug)]
pub(super) struct Lines {
    lines: Mutex<BTreeMap<Peer, Arc<Line>>>,
    total: Arc<Semaphore>,
    /// Turns at hashing on another thread.
    pub hashing: Arc<Semaphore>,
}

impl Lines {
    pub fn new() -> Lines {
        Lines {
            lines: Mutex::default(),
            total: Budget::total(),
            hashing: Arc::new(Semaphore::new(HASHED_AT_ONCE)),
        }
    }

    pub fn get(&self, peer: &Peer) -> Arc<Line> {
        let mut lines = self.lock();
        if let Some(line) = lines.get(peer) {
            return Arc::clone(line);
        }
        let budget = Budget::of_peer(Arc::clone(&self.total));
        let line = Arc::new(Line { outbox: Outbox::default(), budget, heard: AtomicBool::new(false) });
        lines.insert(peer.clone(), Arc::clone(&line));
        line
    }

    fn remove(&self, peer: &Peer) {
        self.lock().remove(peer);
    }

    /// Peers that something came from since the last call.
    fn heard(&self) -> Vec<Peer> {
        let lines = self.lock();
        let heard = lines.iter().filter(|(_, line)| line.heard.swap(false, Ordering::Relaxed));
        heard.map(|(peer, _)| peer.clone()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Peer, Arc<Line>>> {
        self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

pub(super) struct Actor {
    client: Client,
    server: Server,
    local: Arc<dyn LocalBlocks>,
    network: Arc<dyn Network>,
    lines: Arc<Lines>,
    counters: Arc<Mutex<Counters>>,
    /// Weak, so that the task ends with the last handle.
    commands: mpsc::WeakUnboundedSender<Command>,
    /// The tasks that send, one for each peer that anything was sent to.
    senders: BTreeMap<Peer, AbortHandle>,
    sessions: BTreeMap<SessionId, SessionState>,
    /// Peers that are connected as far as is known, and others that something came from.
    connected: BTreeSet<Peer>,
    strangers: BTreeSet<Peer>,
    tasks: JoinSet<()>,
    /// Turns at reading blocks for peers.
    reading: Arc<Semaphore>,
    started: Instant,
}

struct SessionState {
    events: mpsc::UnboundedSender<Event>,
    search: Option<AbortHandle>,
}

impl Drop for SessionState {
    fn drop(&mut self) {
        if let Some(search) = &self.search {
            search.abort();
        }
    }
}

impl Actor {
    pub fn new(
        local: Arc<dyn LocalBlocks>,
        network: Arc<dyn Network>,
        lines: Arc<Lines>,
        counters: Arc<Mutex<Counters>>,
        commands: mpsc::WeakUnboundedSender<Command>,
    ) -> Actor {
        Actor {
            client: Client::new(),
            server: Server::new(),
            local,
            network,
            lines,
            counters,
            commands,
            senders: BTreeMap::new(),
            sessions: BTreeMap::new(),
            connected: BTreeSet::new(),
            strangers: BTreeSet::new(),
            tasks: JoinSet::new(),
            reading: Arc::new(Semaphore::new(READ_AT_ONCE)),
            started: Instant::now(),
        }
    }

    /// Runs until the last handle of the exchange is dropped.
    pub async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut inbox: mpsc::Receiver<FromPeer>,
    ) {
        let (mut said, mut came) = (Vec::new(), Vec::new());
        let mut out = Effects::default();
        loop {
            let wakeup = self.client.next_wakeup().map(|at| self.started + at.since(Time::ZERO));
            tokio::select! {
                taken = commands.recv_many(&mut said, INPUTS_AT_ONCE) => if taken == 0 { return },
                _ = inbox.recv_many(&mut came, INPUTS_AT_ONCE) => {}
                () = tokio::time::sleep_until(wakeup.unwrap_or_else(Instant::now)), if wakeup.is_some() => self.tick(&mut out),
                Some(ended) = self.tasks.join_next() => note_panic(ended),
            }
            while let Some(ended) = self.tasks.try_join_next() {
                note_panic(ended);
            }
            let now = self.now();
            said.drain(..).for_each(|command| self.on_command(now, command, &mut out));
            came.drain(..).for_each(|parcel| self.on_parcel(now, parcel, &mut out));
            self.run_effects(&mut out);
            let counters = Counters { client: self.client.counters(), server: self.server.counters() };
            *self.counters.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = counters;
        }
    }

    fn now(&self) -> Time {
        Time::ZERO + self.started.elapsed()
    }

    fn tick(&mut self, out: &mut Effects) {
        let now = self.now();
        for peer in self.lines.heard() {
            if self.client.awaits(&peer) {
                self.client.handle(now, client::Input::Heard(peer), &mut out.client);
            }
        }
        self.client.handle(now, client::Input::Tick, &mut out.client);
    }

    fn on_command(&mut self, now: Time, command: Command, out: &mut Effects) {
        trace!(?command, "handle");
        match command {
            Command::Connected(peer) => {
                self.strangers.remove(&peer);
                self.connected.insert(peer.clone());
                let agent = self.network.agent(&peer).map_or(Agent::Unknown, |name| Agent::from_name(&name));
                self.client.handle(now, client::Input::Connected { peer, agent }, &mut out.client);
            }
            Command::Disconnected(peer) => {
                self.connected.remove(&peer);
                self.hang_up(&peer);
                self.client.handle(now, client::Input::Disconnected(peer.clone()), &mut out.client);
                self.server.handle(server::Input::Gone(peer), &mut out.server);
            }
            Command::Open { session, hints, give_up_after, events } => {
                self.sessions.insert(session, SessionState { events, search: None });
                let opened = client::Input::Opened { session, hints, give_up_after };
                self.client.handle(now, opened, &mut out.client);
            }
            Command::Client(input) => {
                if let client::Input::Closed(session) = &input {
                    self.sessions.remove(session);
                }
                self.client.handle(now, input, &mut out.client);
            }
            Command::Server(input) => self.server.handle(input, &mut out.server),
            Command::Sending { peer, how } => {
                let input = match how {
                    Sending::Sent => return,
                    Sending::Lost => client::Input::Lost(peer),
                    Sending::Unreachable => {
                        self.hang_up(&peer);
                        self.server.handle(server::Input::Gone(peer.clone()), &mut out.server);
                        client::Input::Unreachable(peer)
                    }
                };
                self.client.handle(now, input, &mut out.client);
            }
        }
    }

    fn on_parcel(&mut self, now: Time, parcel: FromPeer, out: &mut Effects) {
        let FromPeer { peer, full, entries, presences, blocks } = parcel;
        self.meet(&peer, out);
        if !blocks.is_empty() || !presences.is_empty() {
            let input = client::Input::Received { peer: peer.clone(), blocks, presences };
            self.client.handle(now, input, &mut out.client);
        }
        if (full || !entries.is_empty()) && self.network.serves(&peer) {
            self.server.handle(server::Input::Wanted { peer, full, entries }, &mut out.server);
        }
    }

    /// Notes that something came from a peer; what is kept of those that have left is dropped now and then.
    fn meet(&mut self, peer: &Peer, out: &mut Effects) {
        if self.connected.contains(peer) || !self.strangers.insert(peer.clone()) {
            return;
        }
        if self.strangers.len() <= MAX_STRANGERS {
            return;
        }
        let connected: BTreeSet<Peer> = self.network.connected().into_iter().collect();
        for peer in std::mem::take(&mut self.strangers) {
            if connected.contains(&peer) {
                continue; // the news of it is on its way
            }
            self.hang_up(&peer);
            self.server.handle(server::Input::Gone(peer), &mut out.server);
        }
    }

    fn run_effects(&mut self, out: &mut Effects) {
        let mut answers = Vec::new();
        // Small lookups are answered on the spot, which may say more.
        while !out.server.is_empty() {
            for effect in out.server.drain(..) {
                if let Some(input) = self.serve(effect) {
                    answers.push(input);
                }
            }
            answers.drain(..).for_each(|input| self.server.handle(input, &mut out.server));
        }
        for effect in out.client.drain(..) {
            self.fetch(effect);
        }
    }

    fn fetch(&mut self, effect: client::Effect) {
        match effect {
            client::Effect::Send { peer, entries } => self.line(&peer).outbox.push_entries(entries),
            client::Effect::Deliver { session, block } => self.tell(session, Event::Block(block)),
            client::Effect::Fail { session, cid, asked } => self.tell(session, Event::Nobody { cid, asked }),
            client::Effect::FindProviders { session, cid } => self.search(session, &cid),
            client::Effect::Penalise { peer, offence } => {
                debug!(?peer, ?offence, "penalise");
                self.network.penalise(&peer, offence);
            }
        }
    }

    fn tell(&self, session: SessionId, event: Event) {
        if let Some(state) = self.sessions.get(&session) {
            // An error says that the session was dropped: its close is on the way.
            let _ = state.events.send(event);
        }
    }

    fn search(&mut self, session: SessionId, cid: &Cid) {
        let Some(state) = self.sessions.get_mut(&session) else { return };
        let mut providers = self.network.providers(cid).take(MAX_PROVIDERS);
        let commands = self.commands.clone();
        let search = async move {
            while let Some(peer) = providers.next().await {
                let Some(commands) = commands.upgrade() else { return };
                let _ = commands.send(Command::Client(client::Input::Provider { session, peer }));
            }
        };
        state.search = Some(self.tasks.spawn(search));
    }

    /// Does what the server says; what is known at once is returned to be handled.
    fn serve(&mut self, effect: server::Effect) -> Option<server::Input> {
        match effect {
            server::Effect::Answer { peer, presences } => {
                self.line(&peer).outbox.push_presences(presences);
                None
            }
            server::Effect::Check { peer, cids } if cids.len() <= CHECK_HERE => {
                let sizes = sizes(&*self.local, cids);
                Some(server::Input::Checked { peer, sizes })
            }
            server::Effect::Check { peer, cids } => {
                let (local, commands) = (Arc::clone(&self.local), self.commands.clone());
                self.tasks.spawn_blocking(move || {
                    let sizes = sizes(&*local, cids);
                    tell(&commands, server::Input::Checked { peer, sizes });
                });
                None
            }
            server::Effect::Serve { peer, cids, bytes } => {
                let (local, line) = (Arc::clone(&self.local), self.line(&peer));
                let reading = Arc::clone(&self.reading);
                self.tasks.spawn(async move {
                    let _turn = reading.acquire_owned().await;
                    let blocks = read_blocks(&*local, cids).await;
                    line.outbox.push_served(Served { blocks, bytes });
                });
                None
            }
        }
    }

    /// The line to a peer, with a task that sends what is put in its outbox.
    fn line(&mut self, peer: &Peer) -> Arc<Line> {
        let line = self.lines.get(peer);
        if !self.senders.contains_key(peer) {
            let sending =
                send_all(Arc::clone(&self.network), peer.clone(), Arc::clone(&line), self.commands.clone());
            self.senders.insert(peer.clone(), self.tasks.spawn(sending));
        }
        line
    }

    /// Drops the stream to a peer and everything that was to be sent to it.
    fn hang_up(&mut self, peer: &Peer) {
        if let Some(sender) = self.senders.remove(peer) {
            sender.abort();
        }
        self.lines.remove(peer);
    }
}

#[derive(Default)]
struct Effects {
    client: Vec<client::Effect>,
    server: Vec<server::Effect>,
}

/// Sends what comes into a peer's outbox, until it is aborted.
async fn send_all(
    network: Arc<dyn Network>,
    peer: Peer,
    line: Arc<Line>,
    commands: mpsc::WeakUnboundedSender<Command>,
) {
    let mut stream = None;
    loop {
        let parcel = line.outbox.next().await;
        let answers = parcel.message.presences.len();
        let how = match parcel.message.is_empty() {
            true => Sending::Sent, // the blocks are gone since they were looked up
            false => outbox::send(&*network, &peer, &mut stream, &parcel.message).await,
        };
        trace!(?peer, ?how, "sent");
        if let Some(bytes) = parcel.served_bytes {
            tell(&commands, server::Input::Sent { peer: peer.clone(), bytes });
        }
        if answers > 0 {
            tell(&commands, server::Input::Answered { peer: peer.clone(), count: answers });
        }
        if how != Sending::Sent
            && let Some(commands) = commands.upgrade()
        {
            let _ = commands.send(Command::Sending { peer: peer.clone(), how });
        }
    }
}

/// Tells the task something for its server; when the task is gone nobody needs to know.
fn tell(commands: &mpsc::WeakUnboundedSender<Command>, input: server::Input) {
    if let Some(commands) = commands.upgrade() {
        let _ = commands.send(Command::Server(input));
    }
}

fn sizes(local: &dyn LocalBlocks, cids: Vec<Cid>) -> Vec<(Cid, Option<u64>)> {
    let size = |cid: &Cid| match local.block_size(cid) {
        Ok(size) => size.map(u64::from),
        Err(error) => {
            warn!(%cid, %error, "a block could not be looked up");
            None
        }
    };
    cids.into_iter().map(|cid| (cid, size(&cid))).collect()
}

async fn read_blocks(local: &dyn LocalBlocks, cids: Vec<Cid>) -> Vec<Block> {
    let mut blocks = Vec::with_capacity(cids.len());
    for cid in &cids {
        match local.local_block(cid).await {
            Ok(data) => blocks.extend(data.map(|data| Block::new(cid, data))),
            Err(error) => warn!(%cid, %error, "a block could not be read"),
        }
    }
    blocks
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a task of the exchange panicked");
    }
}
