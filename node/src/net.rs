//! The machines' way to the network and back: effects become frames, announcements and verdicts, and
//! what the network reports becomes inputs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use gossip::message::Direct;
use gossip::owner::{self, Owner};
use gossip::topic::Class;
use gossip::worker::{self, Verdict, Worker};
use job::PeerId;
use p2p::{DialError, Event, Events, GossipId, Host, OpenError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use crate::peers;
use crate::shell::Handle;

/// Gossip messages whose verdict is not yet known. The worker machine answers each at once; this is room
/// for a burst of them.
const VERDICTS: usize = 4096;
/// Events taken from the network before the machines are fed again.
const AT_ONCE: usize = 256;

/// On whose behalf a connection is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The owner machine's.
    Owner,
    /// The worker machine's.
    Worker,
}

/// Who else wants to know what the network reports. Quick: the machines wait meanwhile.
pub trait Also: Send + Sync + 'static {
    /// A connection to this peer is there.
    fn connected(&self, peer: p2p::PeerId);
    /// The last connection to this peer is gone.
    fn disconnected(&self, peer: p2p::PeerId);
    /// A peer takes something else than before.
    fn changed(&self, peer: p2p::PeerId);
    /// A peer asks.
    fn request(&self, peer: p2p::PeerId, name: &str, question: Bytes, reply: p2p::Reply);
}

/// Where the effects of both machines go; cheap to clone.
#[derive(Clone)]
pub struct Net {
    me: PeerId,
    host: Host,
    owner: Handle<Owner>,
    worker: Handle<Worker>,
    shared: Arc<Mutex<Shared>>,
    /// A machine is to be told again who is there.
    retell: Arc<Notify>,
    tracker: TaskTracker,
}

#[derive(Default)]
struct Shared {
    watched: BTreeMap<PeerId, BTreeSet<Role>>,
    /// Connected peers and what they take, as the machines have been told. Only [`Net::pump`] changes it, so
    /// that it is never ahead of or behind what is in their queues.
    present: BTreeMap<PeerId, BTreeSet<Class>>,
    /// Machines that came back from their records, which do not say who is connected.
    revived: BTreeSet<Role>,
    verdicts: VecDeque<(u64, GossipId)>,
    next_verdict: u64,
}

impl Net {
    /// The network of one node.
    pub fn new(
        me: PeerId,
        host: Host,
        owner: Handle<Owner>,
        worker: Handle<Worker>,
        tracker: TaskTracker,
    ) -> Self {
        Net { me, host, owner, worker, shared: Arc::default(), retell: Arc::default(), tracker }
    }

    /// Sends a message, or hands it to the other machine when it is for this node. What cannot be sent to a
    /// peer is lost, as on any network, and the machines live with that; between the two nothing is lost.
    pub fn send(&self, to: PeerId, message: Direct) {
        if to == self.me {
            return self.deliver(to, message);
        }
        let name = message.name();
        if let Err(error) = self.host.send(peers::to_network(to), message.encode().into()) {
            debug!(%to, message = name, %error, "not sent");
        }
    }

    fn deliver(&self, from: PeerId, message: Direct) {
        let taken = if message.is_for_owner() {
            self.owner.own_input(owner::Input::Message { from, message })
        } else {
            self.worker.own_input(worker::Input::Message { from, message })
        };
        if taken.is_err() {
            debug!("the other machine has stopped");
        }
    }

    /// Publishes announcements. Without peers nobody hears it: the machine announces again when some come.
    pub fn announce(&self, class: Class, bytes: Vec<u8>) {
        let host = self.host.clone();
        self.tracker.spawn(async move {
            if let Err(error) = host.publish(topic(class), bytes.into()).await {
                debug!(?class, %error, "not announced");
            }
        });
    }

    /// Passes the worker machine's verdict on.
    pub fn verdict(&self, id: u64, relay: PeerId, verdict: Verdict, why: &'static str) {
        let found = {
            let mut shared = self.lock();
            let at = shared.verdicts.iter().position(|(number, _)| *number == id);
            at.and_then(|at| shared.verdicts.remove(at))
        };
        let Some((_, gossip)) = found else { return };
        if verdict != Verdict::Accept {
            debug!(%relay, ?verdict, why, "announcement not passed on");
        }
        let verdict = match verdict {
            Verdict::Accept => p2p::Verdict::Accept,
            Verdict::Reject => p2p::Verdict::Reject,
            Verdict::Ignore => p2p::Verdict::Ignore,
        };
        self.host.verdict(gossip, peers::to_network(relay), verdict);
    }

    /// Watches a connection as long as one of the machines wants it watched.
    pub fn watch(&self, peer: PeerId, live: bool, role: Role) {
        if peer == self.me {
            return;
        }
        let wanted = {
            let mut shared = self.lock();
            let roles = shared.watched.entry(peer).or_default();
            if live {
                roles.insert(role)
            } else {
                roles.remove(&role)
            };
            let wanted = !roles.is_empty();
            if !wanted {
                shared.watched.remove(&peer);
            }
            wanted
        };
        self.host.watch(peers::to_network(peer), wanted);
    }

    /// A machine is gone and comes back from its records: nothing is watched for it until it asks again.
    pub fn forget(&self, role: Role) {
        let mut unwatched = Vec::new();
        self.lock().watched.retain(|peer, roles| {
            if roles.remove(&role) && roles.is_empty() {
                unwatched.push(*peer);
            }
            !roles.is_empty()
        });
        for peer in unwatched {
            self.host.watch(peers::to_network(peer), false);
        }
    }

    /// A machine came back from its records: it is told who is connected and what they take, in order with
    /// what happens meanwhile.
    pub fn retell(&self, role: Role) {
        self.lock().revived.insert(role);
        self.retell.notify_one();
    }

    /// Connects to a peer whose addresses are known, in the background.
    pub fn dial(&self, peer: PeerId, addresses: &[String]) {
        let network = peers::to_network(peer);
        for address in addresses {
            match address.parse::<p2p::Multiaddr>() {
                Ok(address) => self.host.add_address(network, address),
                Err(error) => debug!(%peer, address, %error, "not an address"),
            }
        }
        let net = self.clone();
        self.tracker.spawn(async move {
            // Opening a stream connects, by the addresses just given and those known before.
            let Err(error) = net.host.open_stream(network, crate::remote::PROTOCOL).await else { return };
            debug!(%peer, %error, "not reached");
            // Anything else may be this node's own trouble: then all workers would get backups at once.
            if matches!(error, OpenError::Dial(DialError::Refused(_))) {
                net.feed_owner(owner::Input::Unreachable(peer)).await;
            }
        });
    }

    /// Holds something against a peer.
    pub fn penalise(&self, peer: PeerId, why: &'static str) {
        info!(%peer, why, "a peer misbehaves");
        self.host.penalise(peers::to_network(peer), why);
    }

    /// Turns network events into inputs until the network ends or `cancel`.
    ///
    /// `also` is told of peers that come and go, after the machines, and gets the requests.
    pub async fn pump(self, mut events: Events, also: impl Also, cancel: CancellationToken) {
        let mut batch = Vec::with_capacity(AT_ONCE);
        let mut joined = false;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.retell.notified() => self.retell_due(joined).await,
                taken = events.next_many(&mut batch, AT_ONCE) => if taken == 0 { return },
            }
            for event in batch.drain(..) {
                if matches!(event, Event::Connected { .. }) && !joined {
                    joined = true;
                    self.feed_worker(worker::Input::Joined).await;
                }
                self.note(&event);
                self.one(event, &also).await;
            }
        }
    }

    /// Keeps what a machine must be told again after it came back from its records.
    fn note(&self, event: &Event) {
        let (Event::Connected { peer }
        | Event::Disconnected { peer }
        | Event::Subscribed { peer, .. }
        | Event::Unsubscribed { peer, .. }) = event
        else {
            return;
        };
        let Some(peer) = peers::from_network(peer) else { return };
        let present = &mut self.lock().present;
        match event {
            Event::Connected { .. } => drop(present.entry(peer).or_default()),
            Event::Disconnected { .. } => drop(present.remove(&peer)),
            Event::Subscribed { topic, .. } => {
                if let (Some(takes), Some(class)) = (present.get_mut(&peer), class(topic)) {
                    takes.insert(class);
                }
            }
            Event::Unsubscribed { topic, .. } => {
                if let (Some(takes), Some(class)) = (present.get_mut(&peer), class(topic)) {
                    takes.remove(&class);
                }
            }
            _ => {}
        }
    }

    async fn retell_due(&self, joined: bool) {
        let (revived, present) = {
            let mut shared = self.lock();
            (std::mem::take(&mut shared.revived), shared.present.clone())
        };
        if revived.contains(&Role::Owner) {
            for (peer, takes) in &present {
                self.feed_owner(owner::Input::Connected(*peer)).await;
                for class in takes {
                    self.feed_owner(owner::Input::Subscribed { peer: *peer, class: *class }).await;
                }
            }
            self.feed_owner(owner::Input::Swarm { size: self.host.network_size() }).await;
        }
        if revived.contains(&Role::Worker) {
            for peer in present.keys() {
                self.feed_worker(worker::Input::Connected(*peer)).await;
            }
            if joined {
                self.feed_worker(worker::Input::Joined).await;
            }
        }
    }

    async fn one(&self, event: Event, also: &impl Also) {
        match event {
            Event::Connected { peer } => {
                self.both(peer, owner::Input::Connected, worker::Input::Connected).await;
                also.connected(peer);
            }
            Event::Disconnected { peer } => {
                self.both(peer, owner::Input::Disconnected, worker::Input::Disconnected).await;
                also.disconnected(peer);
            }
            Event::Unreachable { peer } => self.owner_only(peer, owner::Input::Unreachable).await,
            Event::Silent { peer } => self.owner_only(peer, owner::Input::Silent).await,
            Event::Heard { peer } => self.owner_only(peer, owner::Input::Heard).await,
            Event::Frame { peer, bytes } => self.frame(peer, &bytes).await,
            Event::Gossip { id, relay, topic, data } => self.gossip(id, relay, &topic, data.into()).await,
            Event::Subscribed { peer, topic } => {
                if let Some(class) = class(&topic) {
                    self.owner_only(peer, |peer| owner::Input::Subscribed { peer, class }).await;
                }
                self.feed_owner(owner::Input::Swarm { size: self.host.network_size() }).await;
                also.changed(peer);
            }
            Event::Unsubscribed { peer, topic } => {
                if let Some(class) = class(&topic) {
                    self.owner_only(peer, |peer| owner::Input::Unsubscribed { peer, class }).await;
                }
                also.changed(peer);
            }
            Event::Request { peer, name, bytes, reply } => also.request(peer, &name, bytes, reply),
            other => debug!(?other, "nothing to do"),
        }
    }

    async fn frame(&self, peer: p2p::PeerId, bytes: &[u8]) {
        let Some(from) = peers::from_network(&peer) else { return };
        match Direct::decode(bytes) {
            Ok(message) if message.is_for_owner() => {
                self.feed_owner(owner::Input::Message { from, message }).await;
            }
            Ok(message) => self.feed_worker(worker::Input::Message { from, message }).await,
            Err(error) => {
                debug!(%from, %error, "a message that is none");
                self.host.penalise(peer, "malformed message");
            }
        }
    }

    async fn gossip(&self, id: GossipId, relay: p2p::PeerId, topic: &str, bytes: Vec<u8>) {
        let (Some(class), Some(from)) = (class(topic), peers::from_network(&relay)) else {
            return self.host.verdict(id, relay, p2p::Verdict::Ignore);
        };
        let number = {
            let mut shared = self.lock();
            if shared.verdicts.len() >= VERDICTS {
                shared.verdicts.pop_front();
            }
            shared.next_verdict += 1;
            let number = shared.next_verdict;
            shared.verdicts.push_back((number, id));
            number
        };
        self.feed_worker(worker::Input::Announced { id: number, relay: from, class, bytes }).await;
    }

    async fn both(
        &self,
        peer: p2p::PeerId,
        to_owner: impl FnOnce(PeerId) -> owner::Input,
        to_worker: impl FnOnce(PeerId) -> worker::Input,
    ) {
        let Some(peer) = peers::from_network(&peer) else { return };
        self.feed_owner(to_owner(peer)).await;
        self.feed_worker(to_worker(peer)).await;
    }

    async fn owner_only(&self, peer: p2p::PeerId, input: impl FnOnce(PeerId) -> owner::Input) {
        if let Some(peer) = peers::from_network(&peer) {
            self.feed_owner(input(peer)).await;
        }
    }

    /// Waits while the machine is behind: the network's own queues then hold peers back.
    async fn feed_owner(&self, input: owner::Input) {
        if self.owner.input(input).await.is_err() {
            debug!("the owner machine has stopped");
        }
    }

    async fn feed_worker(&self, input: worker::Input) {
        if self.worker.input(input).await.is_err() {
            debug!("the worker machine has stopped");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The short name of a class's topic; the host puts the swarm before it.
pub fn topic(class: Class) -> &'static str {
    match class {
        Class::Wasm => "jobs/1/wasm",
        Class::Docker => "jobs/1/docker",
        Class::Gpu => "jobs/1/gpu",
        Class::Fleet => "fleet/1",
    }
}

fn class(topic_name: &str) -> Option<Class> {
    Class::ALL.into_iter().find(|class| topic(*class) == topic_name)
}
