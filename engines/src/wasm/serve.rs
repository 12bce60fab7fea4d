//! A runner that runs guests: the child's side of the socket.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::thread::UnshareFlags;
use wasmtime::{Engine, InstancePre, Linker};

use super::config;
use super::guest::{self, Guest, GuestState};
use super::pipe::Waiting;
use super::sandbox::{self, Roots};
use super::settings::SandboxReport;
use super::socket::{self, Link, Outbox};
use super::sys;
use super::ticker::Ticker;
use super::wire::{self, How, Ready, Serve, Start, ToNode, ToRunner};
use crate::runner::Takeover;

/// Threads for file operations of guests, which block.
const BLOCKING_THREADS: usize = 16;

/// How often sending lets others go first, see [`socket::Queue::pump`].
const YIELDS: usize = 3;

/// A runner in its sandbox, ready to serve.
pub(crate) struct Runner {
    threads: u32,
    shared: Shared,
    ready: Ready,
}

/// What is needed to run guests.
pub(super) struct Shared {
    pub engine: Engine,
    pub linker: Linker<GuestState>,
    /// Open files, directories and polls of one guest together.
    pub handles: usize,
    pub takeover: Option<Takeover>,
}

/// Builds what needs the file system, then goes into the sandbox.
pub(crate) fn prepare(
    setup: &Serve,
    fds: Vec<OwnedFd>,
    takeover: Option<Takeover>,
) -> Result<Runner, String> {
    let (engine, pooled) = config::executor(setup.slots).map_err(text)?;
    let linker = guest::linker(&engine).map_err(text)?;
    let roots = Roots { output: fds.first().map(AsFd::as_fd), input: fds.get(1).map(AsFd::as_fd) };
    let entered = sandbox::enter(&setup.sandbox, &roots)?;
    let report = SandboxReport { pooled_memory: pooled, ..entered.report };
    let handles = guest_handles(entered.open_files, setup.slots);
    let ready = Ready { report, compiler: config::compatibility(&engine) };
    Ok(Runner { threads: setup.threads, shared: Shared { engine, linker, handles, takeover }, ready })
}

/// Descriptors that a runner needs for itself: its sockets, the directories and files of messages that it has just
/// received, loaded modules, and what file operations open for a moment.
const OWN_FILES: u64 = 1024;

/// Open files of one guest that programs do with.
const GUEST_FILES: u64 = 512;

/// Whatever the system allows, a guest may open some.
const GUEST_FILES_LEAST: u64 = 16;

/// How many files a runner with so many slots opens at the most.
pub(super) fn open_files(slots: u32) -> u64 {
    u64::from(slots).saturating_mul(GUEST_FILES).saturating_add(OWN_FILES)
}

/// How many files each guest may open in a runner that may open `files`: all of them together leave what the
/// runner itself needs.
fn guest_handles(files: u64, slots: u32) -> usize {
    let each = files.saturating_sub(OWN_FILES) / u64::from(slots.max(1));
    each.clamp(GUEST_FILES_LEAST, GUEST_FILES) as usize
}

impl Runner {
    /// Serves until the node closes its end.
    pub fn serve(self, end: OwnedFd) -> Result<(), String> {
        let ticker = Ticker::start(self.shared.engine.clone()).map_err(text)?;
        // A spinning guest holds a thread for one epoch per turn; between turns the socket must come first.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(self.threads.max(1) as usize)
            .max_blocking_threads(BLOCKING_THREADS)
            .event_interval(1)
            .global_queue_interval(1)
            .on_thread_start(own_working_directory)
            .enable_io()
            .enable_time()
            .build()
            .map_err(text)?;
        let served = runtime.block_on(async {
            let link = Arc::new(Link::new(end).map_err(text)?);
            let (out, queue) = socket::outbox(&link);
            say(&out, &ToNode::Ready(self.ready), true);
            let serving = Arc::new(Serving {
                shared: self.shared,
                ticker,
                waiting: Arc::default(),
                modules: Mutex::default(),
                guests: Mutex::default(),
                out,
            });
            tokio::spawn(flush(Arc::clone(&serving)));
            let writer = tokio::spawn(queue.pump(YIELDS));
            let reader = tokio::spawn(read(link, serving));
            tokio::select! {
                ended = writer => ended.map_err(text)?.map_err(text),
                ended = reader => ended.map_err(text)?,
            }
        });
        // Guests may still run; they end with the process.
        runtime.shutdown_background();
        served
    }
}

/// wasmtime-wasi opens preopened directories by path only. With a working directory for each thread, `.`
/// can be any open directory.
fn own_working_directory() {
    if let Err(error) = sys::unshare(UnshareFlags::FS) {
        eprintln!("runner: cannot give a thread its own working directory: {error}");
        std::process::exit(1);
    }
}

/// The state of a runner that serves.
pub(super) struct Serving {
    pub shared: Shared,
    pub ticker: Ticker,
    pub waiting: Arc<Waiting>,
    /// The node bounds both maps: it unloads modules, and starts no more guests than it gave slots.
    modules: Mutex<HashMap<u64, Module>>,
    guests: Mutex<HashMap<u64, Guest>>,
    /// Bounded by what the guests, whose number is bounded, have credit for.
    pub out: Outbox,
}

/// A loaded module, or why it could not be loaded.
pub(super) type Module = Result<InstancePre<GuestState>, String>;

impl Serving {
    fn handle(self: &Arc<Self>, message: ToRunner, mut fds: Vec<OwnedFd>) {
        match message {
            ToRunner::Start(start) => self.start(start, fds),
            ToRunner::Load { module } => {
                let loaded = fds
                    .pop()
                    .ok_or_else(|| "its file did not arrive".to_owned())
                    .and_then(|file| self.load(file));
                lock(&self.modules).insert(module, loaded);
            }
            ToRunner::Unload { module } => {
                lock(&self.modules).remove(&module);
            }
            ToRunner::Stop { id } => {
                if let Some(guest) = lock(&self.guests).get(&id) {
                    guest.stop();
                }
            }
            ToRunner::Credit { id, stream, bytes } => {
                if let Some(guest) = lock(&self.guests).get(&id) {
                    guest.credit(stream, bytes);
                }
            }
            ToRunner::Ping { number } => say(&self.out, &ToNode::Pong { number }, true),
        }
    }

    fn load(&self, file: OwnedFd) -> Module {
        let module = sys::load(&self.shared.engine, File::from(file)).map_err(text)?;
        self.shared.linker.instantiate_pre(&module).map_err(text)
    }

    fn start(self: &Arc<Self>, start: Start, directories: Vec<OwnedFd>) {
        let id = start.id;
        let module = lock(&self.modules).get(&start.module).cloned();
        let module = module.unwrap_or_else(|| Err("the module was not loaded".into()));
        let guest = Guest::new(&start, self.out.clone(), Arc::clone(&self.waiting));
        lock(&self.guests).insert(id, guest.clone());
        let serving = Arc::clone(self);
        tokio::spawn(async move {
            let finished = match serving.shared.takeover {
                Some(takeover) => guest.finish(How::Exited(0), takeover(directories)),
                None => guest::run(&serving, &guest, module, start, directories).await,
            };
            let alone = {
                let mut guests = lock(&serving.guests);
                guests.remove(&id);
                guests.is_empty()
            };
            say(&serving.out, &ToNode::Ended(finished), alone);
        });
    }
}

/// Sends a message to the node.
pub(super) fn say(out: &Outbox, message: &ToNode, alone: bool) {
    match wire::encode(message, vec![]) {
        Ok(message) => out.send(message, alone),
        // The parts of a message are bounded so that it fits; without the message the node would wait for
        // ever.
        Err(error) => {
            eprintln!("runner: cannot encode a message: {error}");
            std::process::exit(1);
        }
    }
}

/// Takes in the node's messages until it closes its end.
async fn read(link: Arc<Link>, serving: Arc<Serving>) -> Result<(), String> {
    let mut buffer = socket::buffer();
    let mut fds = Vec::new();
    loop {
        let length = link.receive(&mut buffer, &mut fds).await.map_err(text)?;
        if length == 0 {
            return Ok(());
        }
        // A message whose descriptors did not come fails alone: it must not end everything that runs here.
        wire::decode_each(&buffer[..length], &mut fds, |message, fds| {
            serving.handle(message, fds.unwrap_or_default());
        })
        .map_err(text)?;
    }
}

/// Lets short output of guests that go on running travel.
async fn flush(serving: Arc<Serving>) {
    loop {
        serving.waiting.gathered().await;
        let guests: Vec<Guest> = lock(&serving.guests).values().cloned().collect();
        for guest in guests {
            guest.flush();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_guests_together_cannot_use_up_the_files_of_their_runner() {
        for (slots, files) in [(1, 4096), (64, 20_000), (256, 20_000), (256, 1 << 20), (4096, 1 << 20)] {
            let files = open_files(slots).min(files);
            let handles = guest_handles(files, slots) as u64;
            assert!(handles >= GUEST_FILES_LEAST, "{slots} slots, {files} files");
            assert!(handles * u64::from(slots) + OWN_FILES <= files, "{slots} slots, {files} files");
        }
        assert_eq!(guest_handles(1 << 20, 256), 512, "more is never needed");
    }
}
