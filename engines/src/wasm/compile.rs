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
use super::text;
use super::wire::{self, Compile, Compiled, Plan, Setup};
use crate::engine::PrepareError;
use crate::task::{ModuleSource, TrustClass};

/// Compiled modules whose files are kept open, and runners' handles to them valid.
const OPEN_MODULES: usize = 128;

/// Refusals that are remembered, so that the same bad module is not tried over and over.
const REFUSALS: usize = 256;

/// How long a refusal is remembered; a node's settings may change.
const REFUSAL_TIME: Duration = Duration::from_secs(60);

/// Modules of strangers that may wait to be compiled; each holds its turn for as long as its limits say.
const STRANGERS_WAITING: usize = 64;

/// Compiling yields to guests that run, and compiling for strangers to compiling for the node's user.
const NICE: i32 = 15;
const NICE_FOR_STRANGERS: i32 = 19;

/// Open files of a compile child.
const OPEN_FILES: u64 = 64;

/// How much longer compiled code may be than its module. Known compilers' output grows to 1.2 times its length.
const CODE_GROWTH: u64 = 8;

/// Code of the smallest module, with everything around it.
const CODE_BYTES: u64 = 1 << 20;

/// What a Rust program that panicked ends with.
const PANICKED: i32 = 101;

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
    /// Strangers get what CPython (26 MB of WebAssembly) needs, on a machine some times slower than those of today:
    /// there it takes 9 to 13 seconds of processor time and 300 MB. The largest known program (69 MB) takes 62
    /// seconds and 1.9 GiB.
    fn of(class: TrustClass, cpu: Option<Duration>) -> Self {
        let (module_mib, data_mib, cpu_seconds, wall_seconds) = match class {
            TrustClass::Own | TrustClass::Trusted => (512, 8192, 600, 900),
            TrustClass::Member => (128, 3072, 120, 300),
            TrustClass::Anyone => (32, 1024, 60, 180),
        };
        let cpu_seconds = cpu.map_or(cpu_seconds, |cpu| cpu.as_secs().max(1));
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
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct Parts {
    spawner: Arc<Spawner>,
    runner: RunnerCommand,
    cache: Cache,
    uids: [u32; 4],
    cpu: Option<Duration>,
    /// Each child compiles on all processors, so more at once would only take more memory. But the node's user waits
    /// for no stranger.
    turns: Turns,
}

/// Who compiles next.
#[derive(Debug)]
struct Turns {
    known: Semaphore,
    strangers: Semaphore,
}

impl Turns {
    fn of(&self, class: TrustClass) -> &Semaphore {
        if class.is_stranger() { &self.strangers } else { &self.known }
    }
}

#[derive(Default)]
struct State {
    open: HashMap<CodeKey, (Instant, Arc<Code>)>,
    /// With the class that waits for each.
    flights: HashMap<CodeKey, (TrustClass, Flight)>,
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
        let uids = TrustClass::ALL.map(|class| settings.uid(class));
        let runner = settings.runner.clone();
        let turns = Turns { known: Semaphore::new(1), strangers: Semaphore::new(1) };
        let shared = Arc::new(Parts { spawner, runner, cache, uids, cpu: settings.compile_cpu, turns });
        Ok(Compiler { shared, state: Arc::default() })
    }

    /// Whether the code of this compiler is there already.
    pub fn has(&self, compiler: &str, module: &ModuleSource, entrypoint: &str, class: TrustClass) -> bool {
        let key = key(compiler, module, entrypoint, class);
        lock(&self.state).open.contains_key(&key) || self.shared.cache.has(key)
    }

    /// The code of a module for runners with this compiler, compiled now if need be. Who asks for the same at the
    /// same time waits for the same child.
    pub async fn code(
        &self,
        compiler: &str,
        module: &ModuleSource,
        entrypoint: &str,
        class: TrustClass,
    ) -> Result<Arc<Code>, PrepareError> {
        let key = key(compiler, module, entrypoint, class);
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
            state.check_room(key, class)?;
            let depart = || (class, self.depart(key, module, entrypoint, class));
            state.flights.entry(key).or_insert_with(depart).1.clone()
        };
        flight.await
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

fn key(compiler: &str, module: &ModuleSource, entrypoint: &str, class: TrustClass) -> CodeKey {
    let mut hash = Sha256::new();
    for part in [&module.cid.to_bytes()[..], entrypoint.as_bytes(), class.name().as_bytes()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update(compiler.as_bytes());
    CodeKey(hash.finalize().into())
}

impl State {
    /// Refuses one more module of strangers when too many wait: whoever asked may be gone, the work goes on.
    fn check_room(&self, key: CodeKey, class: TrustClass) -> Result<(), PrepareError> {
        let strangers = || self.flights.values().filter(|(class, _)| class.is_stranger()).count();
        if class.is_stranger() && !self.flights.contains_key(&key) && strangers() >= STRANGERS_WAITING {
            return Err(PrepareError::Node(format!(
                "{STRANGERS_WAITING} modules of strangers wait to be compiled here already"
            )));
        }
        Ok(())
    }

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
        let parts = Arc::clone(self);
        let found = blocking(move || parts.cache.get(key)).await?;
        let (file, memory_minimum) = match found {
            Some(found) => found,
            None => {
                let _turn = self.turns.of(class).acquire().await.map_err(node("cannot compile now"))?;
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
        let limits = Limits::of(class, self.cpu);
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
            file_bytes: length.saturating_mul(CODE_GROWTH).saturating_add(CODE_BYTES),
            memory_files: true,
            open_files: OPEN_FILES,
            nice: if class.is_stranger() { NICE_FOR_STRANGERS } else { NICE },
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
    /// Why a child ended without an answer: mostly because it was made to.
    fn explain(&self, exit: &Exit) -> PrepareError {
        // What Rust says before it aborts for want of memory.
        let no_memory = exit.said.contains("memory allocation of");
        match (exit.signal(), exit.code()) {
            (Some(libc::SIGXCPU), _) => PrepareError::Limit(format!(
                "compiling the module took more than {} s of processor time",
                self.cpu_seconds
            )),
            (Some(libc::SIGABRT), _) if no_memory => PrepareError::Limit(format!(
                "compiling the module took more than {} MiB of memory",
                self.data_bytes >> 20
            )),
            // The system does so when there is no memory for anyone.
            (Some(libc::SIGKILL), _) => PrepareError::Node(
                "the child that compiled the module was ended by the system, perhaps for want of memory"
                    .into(),
            ),
            // The same compiler would do the same with the same module on every node.
            (Some(_), _) | (None, Some(PANICKED)) => PrepareError::Job(format!(
                "the module cannot run: the compiler failed on it and {}",
                exit.describe()
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;

    fn explained(status: i32, said: &str) -> PrepareError {
        let exit = Exit { status: Some(ExitStatus::from_raw(status)), said: said.into() };
        Limits::of(TrustClass::Anyone, None).explain(&exit)
    }

    #[test]
    fn the_end_of_a_child_is_told_for_what_it_was() {
        let memory = explained(libc::SIGABRT, "memory allocation of 4096 bytes failed");
        assert!(matches!(&memory, PrepareError::Limit(text) if text.contains("1024 MiB")), "{memory}");
        let time = explained(libc::SIGXCPU, "");
        assert!(matches!(&time, PrepareError::Limit(text) if text.contains("60 s")), "{time}");
        for (status, said) in [
            (libc::SIGABRT, "thread has overflowed its stack"),
            (libc::SIGSEGV, ""),
            (PANICKED << 8, "panicked at"),
        ] {
            let crash = explained(status, said);
            assert!(matches!(&crash, PrepareError::Job(text) if text.contains("compiler failed")), "{crash}");
        }
        assert!(matches!(explained(libc::SIGKILL, ""), PrepareError::Node(_)));
        assert!(matches!(explained(1 << 8, "runner: no"), PrepareError::Node(_)));
    }

    #[test]
    fn strangers_wait_for_each_other_and_nobody_else_for_them() {
        let turns = Turns { known: Semaphore::new(1), strangers: Semaphore::new(1) };
        let _compiling = turns.of(TrustClass::Anyone).try_acquire().unwrap();
        assert!(turns.of(TrustClass::Member).try_acquire().is_err());
        assert!(turns.of(TrustClass::Own).try_acquire().is_ok());
        assert!(turns.of(TrustClass::Trusted).try_acquire().is_ok());
    }

    #[test]
    fn strangers_cannot_fill_the_queue_without_end() {
        let mut state = State::default();
        let never = || std::future::pending().boxed().shared();
        for number in 0..STRANGERS_WAITING {
            let key = CodeKey([number as u8; 32]);
            assert_eq!(state.check_room(key, TrustClass::Anyone), Ok(()));
            state.flights.insert(key, (TrustClass::Anyone, never()));
        }
        let another = CodeKey([255; 32]);
        assert!(matches!(state.check_room(another, TrustClass::Anyone), Err(PrepareError::Node(_))));
        assert_eq!(state.check_room(CodeKey([0; 32]), TrustClass::Anyone), Ok(()), "it shares the work");
        assert_eq!(state.check_room(another, TrustClass::Own), Ok(()));
    }
}
