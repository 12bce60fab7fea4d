//! Compiling modules: once for each module, entrypoint and trust class, in a child of its own, and kept.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use rustix::fs::fcntl_get_seals;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tracing::debug;

use super::cache::{Cache, CodeKey};
use super::child::{Exit, Spawner};
use super::compile_child::SEALS;
use super::settings::{RunnerCommand, Settings};
use super::socket::{self, Link};
use super::wire::{self, Compile, Compiled, Plan, Setup};
use super::{config, text};
use crate::engine::PrepareError;
use crate::task::{ModuleSource, TrustClass};

/// Compiled modules whose files are kept open, and runners' handles to them valid.
const OPEN_MODULES: usize = 128;

/// Refusals that are remembered, so that the same bad module is not tried over and over.
const REFUSALS: usize = 256;

/// How long a refusal is remembered; a node's settings may change.
const REFUSAL_TIME: Duration = Duration::from_secs(60);

/// Compiling yields to guests that run.
const NICE: i32 = 15;

/// Open files of a compile child.
const OPEN_FILES: u64 = 64;

/// A child that has answered needs no longer than this to end.
const GRACE: Duration = Duration::from_secs(1);

/// What compiling one module may cost.
#[derive(Debug, Clone, Copy)]
struct Limits {
    module_bytes: u64,
    data_bytes: u64,
    cpu_seconds: u64,
    wall: Duration,
}

impl Limits {
    /// Strangers get what a module of some megabytes needs. The largest known program (69 MB of
    /// WebAssembly) takes 62 seconds of processor time and 1.9 GiB.
    fn of(class: TrustClass) -> Self {
        let (module_mib, data_mib, cpu_seconds, wall_seconds) = match class {
            TrustClass::Own | TrustClass::Trusted => (512, 8192, 600, 900),
            TrustClass::Member => (128, 3072, 120, 300),
            TrustClass::Anyone => (32, 1024, 10, 60),
        };
        Limits {
            module_bytes: module_mib << 20,
            data_bytes: data_mib << 20,
            cpu_seconds,
            wall: Duration::from_secs(wall_seconds),
        }
    }
}

/// Code that runners can load.
#[derive(Debug)]
pub(crate) struct Code {
    /// Its name towards runners; never given twice.
    pub id: u64,
    pub file: File,
    pub memory_minimum: u64,
}

type Flight = Shared<BoxFuture<'static, Result<Arc<Code>, PrepareError>>>;

/// Compiles, and remembers what it compiled.
#[derive(Debug)]
pub(crate) struct Compiler {
    shared: Arc<Parts>,
    /// Names compiler and settings.
    pub engine: Arc<str>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct Parts {
    spawner: Arc<Spawner>,
    runner: RunnerCommand,
    cache: Cache,
    uids: [u32; 4],
    /// Each child compiles on all processors, so more at once would only take more memory.
    turn: Semaphore,
}

#[derive(Default)]
struct State {
    open: HashMap<CodeKey, (Instant, Arc<Code>)>,
    flights: HashMap<CodeKey, Flight>,
    refusals: HashMap<CodeKey, (Instant, PrepareError)>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("open", &self.open.len()).finish_non_exhaustive()
    }
}

impl Compiler {
    pub fn new(settings: &Settings, spawner: Arc<Spawner>) -> io::Result<Self> {
        let cache = Cache::open(&settings.cache_dir, settings.cache_bytes)?;
        let engine = config::compatibility(&config::compiler().map_err(io::Error::other)?).into();
        let uids = TrustClass::ALL.map(|class| settings.uid(class));
        let runner = settings.runner.clone();
        let shared = Arc::new(Parts { spawner, runner, cache, uids, turn: Semaphore::new(1) });
        Ok(Compiler { shared, engine, state: Arc::default() })
    }

    /// Whether the code is there already.
    pub fn has(&self, module: &ModuleSource, entrypoint: &str, class: TrustClass) -> bool {
        let key = self.key(module, entrypoint, class);
        lock(&self.state).open.contains_key(&key) || self.shared.cache.has(key)
    }

    /// The code of a module, compiled now if need be. Who asks for the same at the same time waits for the
    /// same child.
    pub async fn code(
        &self,
        module: &ModuleSource,
        entrypoint: &str,
        class: TrustClass,
    ) -> Result<Arc<Code>, PrepareError> {
        let key = self.key(module, entrypoint, class);
        let flight = {
            let mut state = lock(&self.state);
            if let Some((used, code)) = state.open.get_mut(&key) {
                *used = Instant::now();
                return Ok(Arc::clone(code));
            }
            if let Some((_, refusal)) = state.refusals.get(&key).filter(|(at, _)| at.elapsed() < REFUSAL_TIME)
            {
                return Err(refusal.clone());
            }
            let state = &mut *state;
            state.flights.entry(key).or_insert_with(|| self.depart(key, module, entrypoint, class)).clone()
        };
        flight.await
    }

    fn key(&self, module: &ModuleSource, entrypoint: &str, class: TrustClass) -> CodeKey {
        let mut hash = Sha256::new();
        for part in [&module.cid.to_bytes()[..], entrypoint.as_bytes(), class.name().as_bytes()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.update(self.engine.as_bytes());
        CodeKey(hash.finalize().into())
    }

    /// Begins work that goes on whoever waits for it.
    fn depart(&self, key: CodeKey, module: &ModuleSource, entrypoint: &str, class: TrustClass) -> Flight {
        let parts = Arc::clone(&self.shared);
        let state = Arc::clone(&self.state);
        let (path, entrypoint) = (module.path.clone(), entrypoint.to_owned());
        let work = tokio::spawn(async move {
            let result = parts.produce(key, &path, entrypoint, class).await.map(Arc::new);
            let mut state = lock(&state);
            state.flights.remove(&key);
            state.remember(key, &result);
            result
        });
        let landed = async move {
            work.await
                .unwrap_or_else(|error| Err(PrepareError::Node(format!("compiling broke off: {error}"))))
        };
        landed.boxed().shared()
    }
}

impl State {
    fn remember(&mut self, key: CodeKey, result: &Result<Arc<Code>, PrepareError>) {
        let now = Instant::now();
        match result {
            Ok(code) => {
                make_room(&mut self.open, OPEN_MODULES);
                self.open.insert(key, (now, Arc::clone(code)));
            }
            Err(PrepareError::Node(_)) => {}
            Err(refusal) => {
                make_room(&mut self.refusals, REFUSALS);
                self.refusals.insert(key, (now, refusal.clone()));
            }
        }
    }
}

/// Drops the oldest when there are `most`.
fn make_room<K: Copy + Eq + Hash, V>(map: &mut HashMap<K, (Instant, V)>, most: usize) {
    while map.len() >= most {
        let oldest = map.iter().min_by_key(|(_, (at, _))| *at).map(|(key, _)| *key);
        match oldest {
            Some(key) => map.remove(&key),
            None => return,
        };
    }
}

impl Parts {
    async fn produce(
        self: &Arc<Self>,
        key: CodeKey,
        path: &Path,
        entrypoint: String,
        class: TrustClass,
    ) -> Result<Code, PrepareError> {
        let _turn = self.turn.acquire().await.map_err(node("cannot compile now"))?;
        let parts = Arc::clone(self);
        let found = blocking(move || parts.cache.get(key)).await?;
        let (file, memory_minimum) = match found {
            Some(found) => found,
            None => {
                let began = Instant::now();
                let (code, memory_minimum) = self.compile(path, entrypoint, class).await?;
                debug!(%class, elapsed = ?began.elapsed(), "compiled a module");
                let parts = Arc::clone(self);
                let file = blocking(move || parts.cache.put(key, code, memory_minimum)).await?;
                (file, memory_minimum)
            }
        };
        Ok(Code { id: next_id(), file, memory_minimum })
    }

    /// Lets a child compile.
    async fn compile(
        &self,
        path: &Path,
        entrypoint: String,
        class: TrustClass,
    ) -> Result<(File, u64), PrepareError> {
        let limits = Limits::of(class);
        let module = File::open(path).map_err(node("cannot open the module"))?;
        let length = module.metadata().map_err(node("cannot open the module"))?.len();
        if length > limits.module_bytes {
            let most = limits.module_bytes >> 20;
            return Err(PrepareError::Limit(format!(
                "the module has {length} bytes; at most {most} MiB are allowed"
            )));
        }
        let sandbox = Plan {
            parent: std::process::id(),
            uid: rustix::process::geteuid().is_root().then(|| self.uids[class.index()]),
            detached_mounts: false,
            for_anyone: class == TrustClass::Anyone,
            data_bytes: limits.data_bytes,
            cpu_seconds: Some(limits.cpu_seconds),
            open_files: OPEN_FILES,
            nice: NICE,
        };
        let setup = Setup::Compile(Box::new(Compile { entrypoint, sandbox }));
        let name = format!("cardume: compiling for {class}");
        let (child, end) = self
            .spawner
            .spawn(&self.runner, &name, &setup, vec![module.into()])
            .await
            .map_err(node("cannot start a child that compiles"))?;
        let answer = tokio::time::timeout(limits.wall, answer(end)).await;
        // One that has not answered in time, or that goes on after it has, is ended.
        let exit = child.end(if answer.is_ok() { GRACE } else { Duration::ZERO }).await;
        match answer {
            Ok(Ok(Some((Compiled::Code { memory_minimum }, fds)))) => Ok((verified(fds)?, memory_minimum)),
            Ok(Ok(Some((Compiled::Refused(why), _)))) => {
                Err(PrepareError::Job(format!("the module cannot run: {why}")))
            }
            Ok(Ok(Some((Compiled::Failed(why), _)))) => {
                Err(PrepareError::Node(format!("cannot compile the module: {why}")))
            }
            Ok(Ok(None)) => Err(limits.explain(&exit)),
            Ok(Err(error)) => Err(node("cannot compile the module")(error)),
            Err(_) => {
                let seconds = limits.wall.as_secs();
                Err(PrepareError::Limit(format!("compiling the module took longer than {seconds} s")))
            }
        }
    }
}

impl Limits {
    /// Why a child ended without an answer: almost always because it was made to.
    fn explain(&self, exit: &Exit) -> PrepareError {
        match exit.signal() {
            Some(libc::SIGXCPU) => PrepareError::Limit(format!(
                "compiling the module took more than {} s of processor time",
                self.cpu_seconds
            )),
            // What the allocator does when there is no more, and what the system does when there is none
            // for anyone.
            Some(libc::SIGABRT | libc::SIGKILL | libc::SIGSEGV) => PrepareError::Limit(format!(
                "compiling the module took more than {} MiB of memory",
                self.data_bytes >> 20
            )),
            _ => PrepareError::Node(format!("the child that compiled the module {}", exit.describe())),
        }
    }
}

/// What the child has to say, or `None` when it ended without a word.
async fn answer(end: OwnedFd) -> io::Result<Option<(Compiled, Vec<OwnedFd>)>> {
    let link = Link::new(end)?;
    let mut buffer = socket::buffer();
    let mut fds = Vec::new();
    let length = link.receive(&mut buffer, &mut fds).await?;
    let mut answer = None;
    wire::decode(&buffer[..length], &mut fds, |message, fds| answer = Some((message, fds)))
        .map_err(io::Error::other)?;
    Ok(answer)
}

/// Code counts only when its sender can no longer change it.
fn verified(mut fds: Vec<OwnedFd>) -> Result<File, PrepareError> {
    let file = fds.pop().ok_or_else(|| PrepareError::Node("compiling gave no code".into()))?;
    let seals = fcntl_get_seals(&file).map_err(node("cannot check compiled code"))?;
    if !seals.contains(SEALS) {
        return Err(PrepareError::Node("compiled code is not sealed".into()));
    }
    Ok(File::from(file))
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn node<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> PrepareError {
    move |error| PrepareError::Node(format!("{what}: {}", text(&error)))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, PrepareError> {
    tokio::task::spawn_blocking(work).await.map_err(node("cannot use the cache of compiled modules"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
