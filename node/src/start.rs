//! Starting and stopping a node, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engines::{Engine, WasmEngine};
use gossip::crypto::Ed25519;
use gossip::owner::{JobHead, StoredJob};
use job::{PeerId, Resources};
use p2p::{Host, Identity};
use storage::records::{Records, RecordsError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::config::Config;
use crate::content::Content;
use crate::index::{Index, Line};
use crate::lock::{Lock, LockError};
use crate::machines::{self, Who};
use crate::net::{self, Net};
use crate::own::{Desk, OwnerEffects};
use crate::perform::{Bench, WorkerEffects};
use crate::shell::{self, Queue, Shell};
use crate::state::{App, State};
use crate::{api, identity, listen, locate, network, nodes, peers, read, remote, sweep};

/// The port that a node listens on for peers when it is not told and the port is free, TCP and QUIC.
const USUAL_PORT: u16 = 4190;
/// How long a stop waits for executions and connections before it leaves them behind.
const STOP_WITHIN: Duration = Duration::from_secs(6);
/// Open files that a node may come to need: some hundred for each DAG that is fetched, and one for every connection.
const OPEN_FILES: u64 = 64 * 1024;
/// Executions at once at the most, when the operator does not say.
const SLOTS: u32 = 256;

/// What a node tells its program once it serves.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Who it is.
    pub peer: PeerId,
    /// Its API's URL on TCP, if it has one.
    pub api: Option<String>,
    /// Where peers can dial it.
    pub addrs: Vec<String>,
    /// Its swarm.
    pub swarm: String,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another process has the data directory.
    #[error("cannot use the data directory {dir}")]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// Who has it.
        source: LockError,
    },
    /// The data directory cannot be made or used.
    #[error("cannot use {path}")]
    Directory {
        /// What.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The API's address cannot be listened on.
    #[error("the API cannot listen on {addr}")]
    Api {
        /// Where.
        addr: String,
        /// Why.
        source: std::io::Error,
    },
    /// The key cannot be read or made.
    #[error("the node's key cannot be used")]
    Identity(#[from] p2p::IdentityError),
    /// The database.
    #[error("the node's record cannot be opened")]
    Records(#[from] storage::records::RecordsError),
    /// The content store.
    #[error("the content store cannot be opened")]
    Content(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The network.
    #[error("the network cannot be started")]
    Network(#[from] p2p::HostError),
    /// A network address.
    #[error("{0:?} is not a multiaddr such as /ip4/127.0.0.1/tcp/4190")]
    Address(String),
    /// A label that the node gives itself.
    #[error("the label {0} says what the node is, and cannot be given another value")]
    Label(&'static str),
    /// The engine.
    #[error("the WASM engine cannot be started")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl StartError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            StartError::Locked { dir, source: LockError::Io(_) } => Some(format!(
                "make {} a directory that this user may write, or use another --data-dir",
                dir.display()
            )),
            StartError::Locked { dir, .. } => Some(format!(
                "stop that process, talk to it (it serves {}), or use another --data-dir",
                api_socket(dir).display()
            )),
            StartError::Api { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
                Some("another program listens there: choose another port with --api 127.0.0.1:0".into())
            }
            StartError::Label(_) => {
                Some("take it out of --label, CARDUME_LABELS and the configuration".into())
            }
            StartError::Identity(_) => Some(
                "the key file must belong to you with mode 0600; without it the node is another peer".into(),
            ),
            _ => None,
        }
    }
}

/// The API's socket in a data directory.
pub fn api_socket(data_dir: &Path) -> PathBuf {
    data_dir.join("api.sock")
}

/// A running node. Dropping it without [`Node::stop`] cuts everything short; what was durable stays.
pub struct Node {
    app: App,
    ready: Ready,
    shells: TaskTracker,
    shells_cancel: CancellationToken,
    ended: watch::Receiver<bool>,
    engine: Option<Arc<dyn Engine>>,
    _lock: Lock,
}

impl Node {
    /// Starts a node and answers once it serves.
    ///
    /// Dropping the future leaves nothing running but what the process's end cleans up.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        if let Some(own) = OWN_LABELS.iter().find(|own| config.labels.contains_key(**own)) {
            return Err(StartError::Label(own));
        }
        raise_file_limit();
        make_dir(&config.data_dir)?;
        let lock = Lock::take(&config.data_dir)
            .map_err(|source| StartError::Locked { dir: config.data_dir.clone(), source })?;
        let key = Identity::load_or_create(identity::key_file(&config.data_dir))?;
        let listeners = Listeners::bind(&config).await?;
        let records = Records::open(&config.data_dir)?;
        let (host, events) = Host::start(host_config(&config, &key)?).await?;
        host.wait_until_listening().await?;
        Building { config, key, listeners, records, host }.finish(events, lock).await
    }

    /// What it is and where.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    #[cfg(test)]
    pub(crate) fn app(&self) -> &App {
        &self.app
    }

    /// Waits until the node ends by itself: a task of it died, or it was told to live until idle and is.
    pub async fn closed(&self) {
        let mut ended = self.ended.clone();
        // The sender goes with the tasks: that is an end too.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Stops: no new work, executions ended and reported, storage closed, network left.
    pub async fn stop(self) {
        info!("stopping");
        if self.app.worker.own_input(gossip::worker::Input::Leaving).is_err() {
            debug!("the worker machine is gone");
        }
        self.app.cancel.cancel();
        self.app.tracker.close();
        if tokio::time::timeout(STOP_WITHIN, self.app.tracker.wait()).await.is_err() {
            warn!("some executions or connections did not end in time");
        }
        if let Some(engine) = &self.engine {
            engine.shutdown().await;
        }
        // What the executions' ends changed is in the machines' queues; they take it before they stop.
        self.shells_cancel.cancel();
        self.shells.close();
        self.shells.wait().await;
        if let Err(error) = self.app.host.stop().await {
            debug!(%error, "the network ended with an error");
        }
        if let Err(error) = std::fs::remove_file(api_socket(&self.app.config.data_dir)) {
            debug!(%error, "the API socket was not removed");
        }
    }
}

/// Lets the process open more files than the 1024 that many systems start it with.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // `None` says that there is none.
    let Some(current) = limit.current.filter(|current| *current < OPEN_FILES) else { return };
    let more = limit.maximum.map_or(OPEN_FILES, |most| most.min(OPEN_FILES)).max(current);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(more), ..limit }) {
        debug!(%error, "the limit of open files stays as it is");
    }
}

struct Listeners {
    socket: tokio::net::UnixListener,
    tcp: Option<(tokio::net::TcpListener, SocketAddr)>,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, StartError> {
        let path = api_socket(&config.data_dir);
        let socket = listen::socket(&path)
            .map_err(|source| StartError::Api { addr: path.display().to_string(), source })?;
        let tcp = match config.api {
            None => None,
            Some(address) => {
                let failed = |source| StartError::Api { addr: address.to_string(), source };
                let listener = listen::tcp(address).await.map_err(failed)?;
                let bound = listener.local_addr().map_err(failed)?;
                Some((listener, bound))
            }
        };
        Ok(Listeners { socket, tcp })
    }
}

struct Building {
    config: Config,
    key: Identity,
    listeners: Listeners,
    records: Records,
    host: Host,
}

impl Building {
    async fn finish(self, events: p2p::Events, lock: Lock) -> Result<Node, StartError> {
        let Building { config, key, listeners, records, host } = self;
        let me = PeerId(key.public_bytes());
        let (cancel, tracker) = (CancellationToken::new(), TaskTracker::new());
        let content =
            Content::open(&config, me, host.clone(), records.clone()).await.map_err(StartError::Content)?;
        let (owner, owner_queue) = shell::channel();
        let (worker, worker_queue) = shell::channel();
        let capacity = config.worker.then(|| capacity(&config));
        let engine = capacity.as_ref().map(|capacity| engine(&config, &content, capacity)).transpose()?;
        let labels = labels(&config, me);
        let work_dir = config.data_dir.join("work");
        empty_dir(&work_dir)?;
        let bench = Arc::new(Bench {
            content: content.clone(),
            engine: engine.clone().map(|engine| engine as Arc<dyn Engine>),
            contexts: Default::default(),
            live: Default::default(),
            work_dir,
            input_timeout: config.settings.input_timeout,
            worker: worker.clone(),
        });
        let net = Net::new(me, host.clone(), owner.clone(), worker.clone(), tracker.clone());
        let seed = key.secret_bytes();
        let who =
            Who { me, swarm: config.swarm.clone(), crypto: Arc::new(Ed25519::new(*seed, &config.swarm)) };
        let app = Arc::new(State {
            me,
            host: host.clone(),
            owner,
            worker,
            desk: Arc::new(Desk::default()),
            index: Arc::new(Index::default()),
            records,
            content,
            bench,
            capacity,
            labels,
            peers_seen: Arc::default(),
            wasm: engine.clone(),
            sandbox: Default::default(),
            trusted: config.trusted.iter().copied().collect::<BTreeSet<_>>(),
            token_key: token_key(&seed),
            cancel,
            tracker,
            config,
        });
        load_index(&app)?;
        let (shells, shells_cancel, ended) = run_machines(&app, &who, net.clone(), owner_queue, worker_queue);
        app.tracker.spawn(sweep::run(Arc::clone(&app)));
        let (index, until_stopped) = (Arc::clone(&app.index), app.cancel.clone());
        app.tracker.spawn(async move { until_stopped.run_until_cancelled(index.recent.tidy()).await });
        let ready = serve(&app, net, listeners, events).await?;
        info!(peer = %ready.peer, swarm = %ready.swarm, api = ready.api, "serving");
        let engine = engine.map(|engine| engine as Arc<dyn Engine>);
        Ok(Node { app, ready, shells, shells_cancel, ended, engine, _lock: lock })
    }
}

fn run_machines(
    app: &App,
    who: &Who,
    net: Net,
    owner_queue: Queue<gossip::owner::Owner>,
    worker_queue: Queue<gossip::worker::Worker>,
) -> (TaskTracker, CancellationToken, watch::Receiver<bool>) {
    let (shells, cancel) = (TaskTracker::new(), CancellationToken::new());
    let (end, ended) = watch::channel(false);
    let slots = app.config.settings.slots.unwrap_or(SLOTS);
    let owner = Shell {
        queue: owner_queue,
        records: app.records.clone(),
        restore: machines::owner(who, machines::owner_settings(&app.config, nodes::addresses(app))),
        perform: OwnerEffects {
            net: net.clone(),
            content: app.content.clone(),
            staged: Vec::new(),
            desk: Arc::clone(&app.desk),
            index: Arc::clone(&app.index),
            owner: app.owner.clone(),
            tracker: app.tracker.clone(),
            cancel: app.cancel.clone(),
        },
    };
    let settings = machines::worker_settings(&app.config, app.capacity, slots, &app.labels);
    let worker = Shell {
        queue: worker_queue,
        records: app.records.clone(),
        restore: machines::worker(who, settings, Arc::new(app.content.clone())),
        perform: WorkerEffects {
            bench: Arc::clone(&app.bench),
            net,
            stops: Default::default(),
            life: Default::default(),
            tracker: app.tracker.clone(),
            cancel: app.cancel.clone(),
        },
    };
    let owner = shells.spawn(owner.run(cancel.clone()));
    let worker = shells.spawn(worker.run(cancel.clone()));
    watch_over("owner", owner, end.clone());
    watch_over("worker", worker, end.clone());
    if app.config.until_idle {
        app.tracker.spawn(until_idle(Arc::clone(app), end));
    }
    (shells, cancel, ended)
}

/// A machine whose task panicked or cannot be restored ends the node: it must not live on half dead.
fn watch_over(
    name: &'static str,
    task: JoinHandle<Result<(), shell::RestoreError>>,
    end: watch::Sender<bool>,
) {
    tokio::spawn(async move {
        match task.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => error!(machine = name, error = api::error::chain(&error), "cannot go on"),
            Err(error) => error!(machine = name, %error, "died"),
        }
        end.send_replace(true);
    });
}

/// Ends the node once no job of its own is left.
async fn until_idle(app: App, end: watch::Sender<bool>) {
    let mut changes = app.index.changes();
    loop {
        changes.mark_unchanged();
        if app.index.live() == 0 {
            break;
        }
        tokio::select! {
            () = app.cancel.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
    end.send_replace(true);
}

async fn serve(app: &App, net: Net, listeners: Listeners, events: p2p::Events) -> Result<Ready, StartError> {
    let router = api::router(Arc::clone(app));
    let spawn = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| app.tracker.spawn(task);
    let accept = |name: &str| app.host.accept(name).map_err(|error| StartError::Content(Box::new(error)));
    spawn(Box::pin(remote::serve(accept(remote::PROTOCOL)?, router.clone(), app.cancel.clone())));
    let exchange = app.content.exchange().clone();
    spawn(Box::pin(network::accept(accept(network::EXCHANGE)?, exchange, app.cancel.clone())));
    spawn(Box::pin(net.pump(events, Others { app: Arc::clone(app) }, app.cancel.clone())));
    if app.capacity.is_some() {
        for class in [gossip::topic::Class::Wasm] {
            app.host
                .subscribe(net::topic(class))
                .await
                .map_err(|error| StartError::Content(Box::new(error)))?;
        }
    }
    spawn(Box::pin(listen::serve_socket(listeners.socket, router.clone(), app.cancel.clone())));
    let mut api = None;
    if let Some((listener, bound)) = listeners.tcp {
        spawn(Box::pin(listen::serve_tcp(listener, router, app.cancel.clone())));
        api = Some(format!("http://{bound}"));
    }
    Ok(Ready { peer: app.me, api, addrs: nodes::addresses(app), swarm: app.config.swarm.clone() })
}

/// What the rest of the node does about peers.
struct Others {
    app: App,
}

impl net::Also for Others {
    fn connected(&self, peer: p2p::PeerId) {
        self.app.content.exchange().peer_connected(network::exchange_peer(&peer));
        self.changed(peer);
    }

    fn disconnected(&self, peer: p2p::PeerId) {
        self.app.content.exchange().peer_disconnected(network::exchange_peer(&peer));
        self.changed(peer);
    }

    fn changed(&self, peer: p2p::PeerId) {
        if let Some(peer) = peers::from_network(&peer) {
            self.app.peers_seen.note(peer);
        }
    }

    fn request(&self, peer: p2p::PeerId, name: &str, question: bytes::Bytes, reply: p2p::Reply) {
        let Some(from) = peers::from_network(&peer) else { return };
        if name != locate::REQUEST {
            return debug!(%from, name, "a request that is not understood");
        }
        let app = Arc::clone(&self.app);
        self.app.tracker.spawn(async move { reply.send(locate::answer(&app, from, &question).await.into()) });
    }
}

fn engine(config: &Config, content: &Content, capacity: &Resources) -> Result<Arc<WasmEngine>, StartError> {
    let mut settings = engines::Settings::new(
        content.input_root(),
        &config.data_dir.join("guests"),
        &config.data_dir.join("modules"),
    );
    // What the machine admits finds a slot and its memory.
    settings.slots = config.settings.slots.unwrap_or(SLOTS);
    settings.memory_bytes = capacity.memory;
    settings.file_bytes = capacity.disk.max(engines::Limits::default().output_bytes);
    WasmEngine::new(settings).map(Arc::new).map_err(|error| StartError::Engine(Box::new(error)))
}

/// What executions may reserve: what the operator said, else all processors, 80 % of the memory and of the
/// free disk.
fn capacity(config: &Config) -> Resources {
    let machine = engines::resources::detect();
    let settings = &config.settings;
    let most = |bytes: u64| bytes / 10 * 8;
    let disk = || engines::resources::disk_bytes(&config.data_dir).map(most).unwrap_or(0);
    Resources {
        cpu_milli: settings.cpu_milli.unwrap_or(u64::from(machine.cpu_milli)),
        memory: settings.memory_bytes.unwrap_or_else(|| most(machine.memory_bytes)),
        disk: settings.disk_bytes.unwrap_or_else(disk),
        gpu: machine.gpus.len() as u64,
    }
}

/// Labels that constraints rely on.
const OWN_LABELS: [&str; 3] = ["id", "os_type", "os_arch"];

fn labels(config: &Config, me: PeerId) -> BTreeMap<String, String> {
    let arch = if std::env::consts::ARCH == "x86_64" { "amd64" } else { std::env::consts::ARCH };
    let mut labels = BTreeMap::from([
        ("os_type".to_owned(), std::env::consts::OS.to_owned()),
        ("os_arch".to_owned(), arch.to_owned()),
        ("id".to_owned(), me.to_string()),
    ]);
    // A name that its people know it by, unless they gave it another.
    if let Ok(name) = rustix::system::uname().nodename().to_str() {
        labels.insert("name".to_owned(), name.to_owned());
    }
    labels.extend(config.labels.clone());
    labels
}

fn token_key(seed: &[u8; 32]) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    Sha256::new().chain_update(b"cardume access token key 1").chain_update(seed).finalize().into()
}

fn host_config(config: &Config, key: &Identity) -> Result<p2p::Config, StartError> {
    let mut host = p2p::Config::new(key.clone(), config.swarm.clone());
    let parse = |list: &[String]| -> Result<Vec<p2p::Multiaddr>, StartError> {
        list.iter().map(|text| text.parse().map_err(|_| StartError::Address(text.clone()))).collect()
    };
    host.listen = if config.listen.is_empty() { usual_addresses() } else { parse(&config.listen)? };
    host.bootstrap = parse(&config.bootstrap)?;
    host.peer_book = Some(config.data_dir.join("peers.json"));
    host.topics = gossip::topic::Class::ALL.iter().map(|class| net::topic(*class).to_owned()).collect();
    host.local_peers_whitelisted = true;
    Ok(host)
}

/// The usual port where it is free, any other where it is not: two nodes on one machine both start.
fn usual_addresses() -> Vec<p2p::Multiaddr> {
    let free = std::net::TcpListener::bind(("0.0.0.0", USUAL_PORT)).is_ok()
        && std::net::UdpSocket::bind(("0.0.0.0", USUAL_PORT)).is_ok();
    let port = if free { USUAL_PORT } else { 0 };
    [format!("/ip4/0.0.0.0/tcp/{port}"), format!("/ip4/0.0.0.0/udp/{port}/quic-v1")]
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect()
}

fn make_dir(path: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Directory { path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode();
    // It holds the record of all jobs and all content. Runners of other users get their inputs handed over.
    if mode & 0o077 != 0 {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    Ok(())
}

/// Nothing in it survives a restart. What a program left there, however strange, keeps no node from starting.
fn empty_dir(path: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Directory { path: path.to_owned(), source };
    engines::removal::empty_dir(path).map_err(failed)
}

/// The jobs of earlier runs, from their records: of those that ended, only what a list shows is read.
fn load_index(app: &App) -> Result<(), StartError> {
    for version in read::versions_kept(&app.records) {
        match line(&app.records, version?, app.me)? {
            Ok(Some(line)) => app.index.add(line),
            Ok(None) => {}
            Err(error) => warn!(%error, "a job's record cannot be read"),
        }
    }
    debug!(jobs = app.index.list().len(), "jobs of earlier runs");
    Ok(())
}

type ReadLine = Result<Option<Line>, gossip::record::RestoreError>;

fn line(records: &Records, version: read::Kept, me: PeerId) -> Result<ReadLine, RecordsError> {
    let mut head = match JobHead::from_records(version.of_kinds(records, read::HEAD)?) {
        Ok(Some(head)) => head,
        Ok(None) => return Ok(Ok(None)),
        Err(error) => return Ok(Err(error)),
    };
    if !head.summary.state.is_terminal() {
        // Of a job that goes on, where its partitions are is known by all of its records.
        match StoredJob::from_records(version.all(records)?, me) {
            Ok(Some(stored)) => head = stored.reader().head(),
            Ok(None) => {}
            Err(error) => return Ok(Err(error)),
        }
    }
    let labels = read::spec(&head).map(|spec| spec.labels).unwrap_or_default();
    Ok(Ok(Some(Line { summary: head.summary, labels })))
}
