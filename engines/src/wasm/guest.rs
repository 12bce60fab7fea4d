//! One guest, in its runner: its view of the world, its limits, and how it ended.

use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;
use wasmtime::{Engine, InstancePre, Linker, ResourceLimiter, Store, Trap, UpdateDeadline};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtxBuilder, WasiView as _};

use super::check::{Functions, WASI};
use super::pipe::{Pipe, Waiting};
use super::serve::{Module, Serving};
use super::share::Share;
use super::socket::Outbox;
use super::transfer;
use super::wire::{Finished, How, Start, shorten};

/// How long between two looks at the files that a guest has removed and still holds open, at least.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Entries of one of a guest's tables, when tables are not from the pool, which has its own limit.
const TABLE_ELEMENTS: usize = 1 << 20;

/// What host functions and limits know of the guest that calls them.
pub(crate) struct GuestState {
    pub(super) wasi: WasiP1Ctx,
    memory: Memory,
    turns: Turns,
}

/// What is decided before a guest's next turn.
struct Turns {
    share: Share,
    /// Processor time that it has taken, up to its last turn.
    spent: Arc<AtomicU64>,
    /// How large the files may be that it has removed and still holds open; without a writable directory there
    /// are none.
    removed_bytes: Option<u64>,
    looked: Instant,
}

/// Everything that a guest may import: WASI preview 1.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<GuestState>> {
    let mut linker = Linker::new(engine);
    p1::add_to_linker_async(&mut linker, |state: &mut GuestState| &mut state.wasi)?;
    transfer::add_to_linker(linker.allow_shadowing(true))?;
    // wasmtime's own turns codes from 126 on into a trap; a guest's code is its own affair.
    linker.func_wrap(WASI, "proc_exit", |code: i32| -> wasmtime::Result<()> { Err(I32Exit(code).into()) })?;
    Ok(linker)
}

/// What a module may import.
pub(crate) fn functions(engine: &Engine) -> wasmtime::Result<Functions> {
    let wasi = WasiCtxBuilder::new().build_p1();
    let memory = Memory { limit: 0, peak: 0, refused: false };
    let turns = Turns::new(0, None);
    Ok(Functions::of(engine, &linker(engine)?, GuestState { wasi, memory, turns }))
}

/// A guest as the rest of the runner sees it; clones are the same guest.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    id: u64,
    began: Instant,
    pipes: [Pipe; 2],
    stop: Arc<Notify>,
}

impl Guest {
    pub fn new(start: &Start, out: Outbox, waiting: Arc<Waiting>) -> Self {
        let pipe = |stream: u8| {
            let cap = start.caps[usize::from(stream)];
            Pipe::new(start.id, stream, cap, out.clone(), Arc::clone(&waiting))
        };
        Guest { id: start.id, began: Instant::now(), pipes: [pipe(0), pipe(1)], stop: Arc::default() }
    }

    /// Asks it to stop. It does at its next turn.
    pub fn stop(&self) {
        self.stop.notify_one();
    }

    pub fn credit(&self, stream: u8, bytes: u64) {
        if let Some(pipe) = self.pipes.get(usize::from(stream)) {
            pipe.credit(bytes);
        }
    }

    pub fn flush(&self) {
        self.pipes.iter().for_each(Pipe::flush);
    }

    /// Its last message, with `more` of standard output.
    pub fn finish(&self, how: How, more: Vec<u8>) -> Finished {
        self.pipes[0].write(&more);
        self.finished(how, Duration::ZERO, 0)
    }

    fn finished(&self, how: How, cpu: Duration, peak_memory_bytes: u64) -> Finished {
        let [(stdout, stdout_lost), (stderr, stderr_lost)] = [self.pipes[0].finish(), self.pipes[1].finish()];
        Finished {
            id: self.id,
            how,
            rest: [stdout, stderr],
            discarded: [stdout_lost, stderr_lost],
            cpu_nanos: nanos(cpu),
            peak_memory_bytes,
            wall_nanos: nanos(self.began.elapsed()),
        }
    }
}

/// Runs a guest to its end, whatever that is.
pub(super) async fn run(
    serving: &Serving,
    guest: &Guest,
    module: Module,
    start: Start,
    directories: Vec<OwnedFd>,
) -> Finished {
    let store = module.and_then(|module| Ok((module, store(serving, guest, &start, directories)?)));
    let (module, mut store) = match store {
        Ok(ready) => ready,
        Err(text) => return guest.finished(How::Failed(shorten(text)), Duration::ZERO, 0),
    };
    let ticking = serving.ticker.enter();
    let spent = Arc::clone(&store.data().turns.spent);
    let ended = {
        let mut call = pin!(metered(call(&module, &mut store, &start.entrypoint), &spent));
        // The guest goes last: it takes turn after turn if it spins, and must not keep the others from
        // theirs.
        tokio::select! {
            biased;
            () = guest.stop.notified() => Err(Failure::Early(How::Stopped)),
            () = passed(start.wall_nanos.map(|wall| guest.began + Duration::from_nanos(wall))) => {
                Err(Failure::Early(How::TimedOut))
            }
            ended = &mut call => ended,
        }
    };
    drop(ticking);
    let memory = &store.data().memory;
    let how = ended.map_or_else(|failure| failure.explain(memory.refused), |()| How::Exited(0));
    guest.finished(how, Duration::from_nanos(spent.load(Ordering::Relaxed)), memory.peak as u64)
}

/// The guest's world: its arguments, environment, streams and directories, and nothing else.
fn store(
    serving: &Serving,
    guest: &Guest,
    start: &Start,
    directories: Vec<OwnedFd>,
) -> Result<Store<GuestState>, String> {
    let mut wasi = WasiCtxBuilder::new();
    // As in Bacalhau, the guest does not learn a name of its own.
    wasi.arg("").args(&start.args).envs(&start.env);
    wasi.stdout(guest.pipes[0].clone()).stderr(guest.pipes[1].clone());
    if directories.len() != start.mounts.len() {
        return Err("directories are missing".into());
    }
    for (mount, directory) in start.mounts.iter().zip(directories) {
        let permissions = if mount.writable { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
        // This thread's own working directory: nothing awaits between the two calls.
        rustix::process::fchdir(&directory)
            .map_err(|error| format!("cannot enter the directory of {}: {error}", mount.target))?;
        wasi.preopened_dir(".", &mount.target, permissions)
            .map_err(|error| format!("cannot open the directory of {}: {error}", mount.target))?;
    }
    let mut wasi = wasi.build_p1();
    wasi.ctx().table.set_max_capacity(serving.shared.handles);
    let limit = usize::try_from(start.memory_bytes).unwrap_or(usize::MAX);
    let memory = Memory { limit, peak: 0, refused: false };
    let writes = start.mounts.iter().any(|mount| mount.writable);
    let turns = Turns::new(start.cpu_milli, writes.then_some(start.output_bytes));
    let mut store = Store::new(&serving.shared.engine, GuestState { wasi, memory, turns });
    store.set_hostcall_fuel(transfer::FUEL_OTHERWISE);
    store.limiter(|state| &mut state.memory);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|mut store| store.data_mut().next_turn());
    Ok(store)
}

impl Turns {
    fn new(cpu_milli: u32, removed_bytes: Option<u64>) -> Self {
        let now = Instant::now();
        Turns { share: Share::new(cpu_milli, now), spent: Arc::default(), removed_bytes, looked: now }
    }
}

impl GuestState {
    /// When a guest goes on whose turn is over; an error if it does not.
    fn next_turn(&mut self) -> wasmtime::Result<UpdateDeadline> {
        let now = Instant::now();
        if let Some(most) = self.turns.removed_bytes
            && now.duration_since(self.turns.looked) >= LOOK_EVERY
        {
            self.turns.looked = now;
            if self.removed_bytes() > most {
                return Err(RemovedTooMuch.into());
            }
        }
        let spent = Duration::from_nanos(self.turns.spent.load(Ordering::Relaxed));
        Ok(match self.turns.share.wait(now, spent) {
            None => UpdateDeadline::Yield(1),
            Some(wait) => UpdateDeadline::YieldCustom(1, Box::pin(tokio::time::sleep(wait))),
        })
    }

    /// How large the files are that are in no directory any more and live on because the guest holds them open.
    /// No look at the directories finds them.
    fn removed_bytes(&mut self) -> u64 {
        let table = self.wasi.ctx().table;
        let files = table.iter_mut().filter_map(|entry| match entry.downcast_ref() {
            Some(Descriptor::File(file)) => file.file.metadata().ok(),
            _ => None,
        });
        files.filter(|file| file.nlink() == 0).fold(0, |sum, file| sum.saturating_add(file.len()))
    }
}

/// See [`GuestState::removed_bytes`].
#[derive(Debug, thiserror::Error)]
#[error("files that were removed and are still open are too large")]
struct RemovedTooMuch;

async fn call(
    module: &InstancePre<GuestState>,
    store: &mut Store<GuestState>,
    entrypoint: &str,
) -> Result<(), Failure> {
    let instance = module.instantiate_async(&mut *store).await.map_err(Failure::Starting)?;
    let function = instance.get_typed_func::<(), ()>(&mut *store, entrypoint).map_err(Failure::Starting)?;
    function.call_async(&mut *store, ()).await.map_err(Failure::Running)
}

/// Why a guest did not return.
enum Failure {
    Early(How),
    Starting(wasmtime::Error),
    Running(wasmtime::Error),
}

impl Failure {
    fn explain(self, memory_refused: bool) -> How {
        let (error, starting) = match self {
            Failure::Early(how) => return how,
            Failure::Starting(error) => (error, true),
            Failure::Running(error) => (error, false),
        };
        if let Some(&I32Exit(code)) = error.downcast_ref() {
            return How::Exited(code);
        }
        if error.is::<RemovedTooMuch>() {
            return How::RemovedTooMuch;
        }
        if memory_refused {
            return How::OutOfMemory;
        }
        if starting && !error.is::<Trap>() {
            return How::Failed(shorten(format!("{error:#}")));
        }
        // The cause first; where it happened is what wasmtime puts around it.
        How::Trapped(shorten(format!("{}\n{error}", error.root_cause())))
    }
}

/// Holds a guest to its memory limit.
struct Memory {
    limit: usize,
    peak: usize,
    refused: bool,
}

impl ResourceLimiter for Memory {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        if desired > self.limit {
            self.refused = true;
            return Ok(false);
        }
        self.peak = self.peak.max(desired);
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS)
    }
}

/// Ready when the moment has passed; never, without one.
async fn passed(moment: Option<Instant>) {
    match moment {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Adds up the processor time that a future takes, in nanoseconds.
async fn metered<T>(future: impl Future<Output = T>, total: &AtomicU64) -> T {
    let mut future = pin!(future);
    poll_fn(|context| {
        let before = thread_time();
        let polled = future.as_mut().poll(context);
        total.fetch_add(nanos(thread_time().saturating_sub(before)), Ordering::Relaxed);
        polled
    })
    .await
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
