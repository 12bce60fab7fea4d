//! One runner child as the node sees it: its socket, what runs in it, and whether it is well.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{debug, warn};

use super::child::{Child, Spawner};
use super::compile::Code;
use super::mounts::outputs::OutputRoot;
use super::serve;
use super::settings::{SandboxReport, Settings};
use super::socket::{self, Link, Outbox, Queue};
use super::text;
use super::wire::{self, Encoded, Finished, How, Plan, Ready, Serve, Setup, Start, ToNode, ToRunner};
use crate::output::Stream;
use crate::task::TrustClass;

/// Modules that a runner holds loaded; mapped, they cost address space and no memory of their own.
const LOADED_MAX: usize = 64;

/// Questions that may go unanswered before a runner counts as hung.
const UNANSWERED_MAX: u64 = 5;

/// How long a runner may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How long a runner whose socket closed may take to end by itself.
const GRACE: Duration = Duration::from_secs(2);

/// Memory of the runner itself, beyond its guests'.
const OVERHEAD_BYTES: u64 = 512 << 20;

/// Memory of the runner for each slot, beyond what the guest in it may take: its stack, pages that are kept for the
/// next, output and file contents that are on their way.
const SLOT_BYTES: u64 = 12 << 20;

/// Guests of anyone yield to everything else on the machine.
const NICE_FOR_ANYONE: i32 = 5;

/// Messages that may wait until a runner takes them in, for each slot and beyond. One that listens is owed a few
/// for each execution: to load, to start, to stop, and four times credit for each stream.
const MESSAGES_PER_SLOT: usize = 16;
const MESSAGES_SPARE: usize = 1024;

/// How often sending lets others go first, see [`Queue::pump`].
const YIELDS: usize = 1;

/// What an execution is told of by its runner.
#[derive(Debug)]
pub(super) enum Event {
    Output(Stream, bytes::Bytes),
    Ended(Box<Finished>),
    /// The runner is gone, and how.
    Lost(Arc<str>),
}

/// A runner. Dropping the last handle ends it.
#[derive(Debug)]
pub(super) struct Host {
    pub report: SandboxReport,
    /// Names the compiler whose code it runs.
    pub compiler: Arc<str>,
    pub outputs: OutputRoot,
    /// Executions that may run at once.
    pub slots: Arc<Semaphore>,
    pub process: Option<u32>,
    out: Outbox,
    messages_max: usize,
    users: AtomicUsize,
    used: Mutex<Instant>,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    next: AtomicU64,
    loaded: Mutex<Loaded>,
    /// What runs, by its number; none once the runner is gone. Bounded by the slots.
    executions: Mutex<Option<HashMap<u64, Live>>>,
    /// Why the runner is to be ended.
    end: watch::Sender<Option<String>>,
    gone: watch::Sender<bool>,
}

#[derive(Debug)]
struct Live {
    /// Bounded by credit: more output than was allowed ends the runner.
    events: mpsc::UnboundedSender<Event>,
    owed: [Arc<AtomicU64>; 2],
    module: u64,
}

/// Questions whether a runner is well.
#[derive(Debug, Default)]
struct Pings {
    asked: AtomicU64,
    answered: AtomicU64,
}

#[derive(Debug, Default)]
struct Loaded {
    clock: u64,
    modules: HashMap<u64, u64>,
}

/// Why a runner could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostError {
    #[error("cannot start a runner")]
    Spawn(#[source] io::Error),
    #[error("a runner refused its setup: {0}")]
    Refused(String),
    #[error("a new runner {0}")]
    Ended(String),
    #[error("cannot prepare the directories of a runner")]
    Directories(#[source] io::Error),
}

/// An execution that a runner was told to start.
pub(super) struct Begun {
    pub id: u64,
    pub events: mpsc::UnboundedReceiver<Event>,
    /// Output of each stream that was taken from the socket, and not yet credited.
    pub owed: [Arc<AtomicU64>; 2],
    /// The part of it that is dealt with.
    pub taken: [u64; 2],
}

impl Host {
    /// Starts a runner and waits until it is ready.
    pub async fn start(
        settings: &Settings,
        spawner: &Spawner,
        class: TrustClass,
        detached_mounts: bool,
    ) -> Result<Self, HostError> {
        let mut outputs = OutputRoot::open(&settings.output_root, class, detached_mounts)
            .map_err(HostError::Directories)?;
        let mut fds = vec![outputs.descriptor().map_err(HostError::Directories)?];
        if !detached_mounts {
            let input = std::fs::File::open(&settings.input_root).map_err(HostError::Directories)?;
            fds.push(input.into());
        }
        let setup = Setup::Serve(Box::new(Serve {
            slots: settings.slots,
            threads: settings.threads,
            sandbox: plan(settings, class, detached_mounts),
        }));
        let name = format!("cardume: runner for {class}");
        let (child, end) =
            spawner.spawn(&settings.runner, &name, &setup, fds).await.map_err(HostError::Spawn)?;
        let process = child.id();
        let link = Link::new(end).map_err(HostError::Spawn)?;
        let Ready { report, compiler } = match tokio::time::timeout(READY_WITHIN, ready(&link)).await {
            Ok(Ok(Ok(ready))) => ready,
            Ok(Ok(Err(refused))) => return Err(HostError::Refused(refused)),
            Ok(Err(_)) => return Err(HostError::Ended(child.end(GRACE).await.describe())),
            Err(_) => return Err(HostError::Ended("was not ready in time".into())),
        };
        debug!(%class, ?process, ?report, "started a runner");
        outputs.owned_by(report.own_uid);
        let link = Arc::new(link);
        let (out, queue) = socket::outbox(&link);
        let state = Arc::new(State {
            next: AtomicU64::new(0),
            loaded: Mutex::default(),
            executions: Mutex::new(Some(HashMap::new())),
            end: watch::Sender::new(None),
            gone: watch::Sender::new(false),
        });
        let driver = Driver { class, child, link, out: out.clone(), state: Arc::clone(&state) };
        tokio::spawn(driver.run(queue, settings.heartbeat));
        Ok(Host {
            report,
            compiler: compiler.into(),
            outputs,
            slots: Arc::new(Semaphore::new(settings.slots as usize)),
            process,
            out,
            messages_max: settings.slots as usize * MESSAGES_PER_SLOT + MESSAGES_SPARE,
            users: AtomicUsize::new(0),
            used: Mutex::new(Instant::now()),
            state,
        })
    }

    /// Whether it takes executions.
    pub fn alive(&self) -> bool {
        self.state.end.borrow().is_none() && lock(&self.state.executions).is_some()
    }

    /// Tells the runner to start something. `None` when it is gone.
    pub fn begin(
        &self,
        code: &Code,
        mut start: Start,
        directories: Vec<OwnedFd>,
    ) -> io::Result<Option<Begun>> {
        start.id = self.state.next.fetch_add(1, Ordering::Relaxed);
        start.module = code.id;
        let id = start.id;
        let message = wire::encode(&ToRunner::Start(start), directories).map_err(io::Error::other)?;
        let (events, received) = mpsc::unbounded_channel();
        let owed = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
        let alone = match &mut *lock(&self.state.executions) {
            Some(executions) => {
                executions.insert(id, Live { events, owed: owed.clone(), module: code.id });
                executions.len() == 1
            }
            None => return Ok(None),
        };
        // Under the lock: who finds the module loaded must not overtake the message that loads it.
        let mut loaded = lock(&self.state.loaded);
        if let Err(error) = self.load(&mut loaded, code) {
            if let Some(executions) = &mut *lock(&self.state.executions) {
                executions.remove(&id);
            }
            return Err(error);
        }
        self.send(message, alone);
        drop(loaded);
        Ok(Some(Begun { id, events: received, owed, taken: [0; 2] }))
    }

    fn load(&self, loaded: &mut Loaded, code: &Code) -> io::Result<()> {
        loaded.clock += 1;
        let clock = loaded.clock;
        if let Some(used) = loaded.modules.get_mut(&code.id) {
            *used = clock;
            return Ok(());
        }
        if loaded.modules.len() >= LOADED_MAX {
            let oldest = loaded.modules.iter().min_by_key(|(_, used)| **used).map(|(module, _)| *module);
            if let Some(module) = oldest {
                loaded.modules.remove(&module);
                self.say(&ToRunner::Unload { module }, vec![])?;
            }
        }
        self.say(&ToRunner::Load { module: code.id }, vec![code.file.try_clone()?.into()])?;
        loaded.modules.insert(code.id, clock);
        Ok(())
    }

    /// Asks an execution to stop.
    pub fn stop(&self, id: u64) {
        if let Err(error) = self.say(&ToRunner::Stop { id }, vec![]) {
            self.end(format!("could not be told to stop an execution: {error}"));
        }
    }

    /// Lets an execution send so much more output.
    pub fn credit(&self, id: u64, stream: Stream, bytes: u64) {
        let credit = ToRunner::Credit { id, stream: stream.index() as u8, bytes };
        if let Err(error) = self.say(&credit, vec![]) {
            self.end(format!("could not be given credit: {error}"));
        }
    }

    /// Ends the runner, and everything that runs in it as lost. The first reason counts.
    pub fn end(&self, why: String) {
        self.state.end.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert(why);
            first
        });
    }

    /// Waits until the runner is gone.
    pub async fn gone(&self) {
        let mut gone = self.state.gone.subscribe();
        // The sender lives in the same state as the one asked.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// Someone uses it until [`Host::leave`]: it is not idle.
    pub fn enter(&self) {
        self.users.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes back one [`Host::enter`].
    pub fn leave(&self) {
        *lock(&self.used) = Instant::now();
        self.users.fetch_sub(1, Ordering::AcqRel);
    }

    /// How long nobody has used it, if nobody does.
    pub fn idle(&self) -> Option<Duration> {
        (self.users.load(Ordering::Acquire) == 0).then(|| lock(&self.used).elapsed())
    }

    fn say(&self, message: &ToRunner, fds: Vec<OwnedFd>) -> io::Result<()> {
        self.send(wire::encode(message, fds).map_err(io::Error::other)?, false);
        Ok(())
    }

    /// What a runner does not take in would gather here for ever.
    fn send(&self, message: Encoded, alone: bool) {
        if self.out.waiting() >= self.messages_max {
            return self.end("did not take in what it was told".into());
        }
        self.out.send(message, alone);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end(UNNEEDED.into());
    }
}

fn plan(settings: &Settings, class: TrustClass, detached_mounts: bool) -> Plan {
    Plan {
        parent: std::process::id(),
        uid: rustix::process::geteuid().is_root().then(|| settings.uid(class)),
        detached_mounts,
        for_anyone: class == TrustClass::Anyone,
        data_bytes: settings
            .memory_bytes
            .saturating_add(OVERHEAD_BYTES)
            .saturating_add(u64::from(settings.slots).saturating_mul(SLOT_BYTES)),
        cpu_seconds: None,
        file_bytes: settings.file_bytes,
        memory_files: false,
        open_files: serve::open_files(settings.slots),
        nice: if class == TrustClass::Anyone { NICE_FOR_ANYONE } else { 0 },
    }
}

/// The runner's first message.
async fn ready(link: &Link) -> io::Result<Result<Ready, String>> {
    let mut buffer = socket::buffer();
    let mut fds = Vec::new();
    let length = link.receive(&mut buffer, &mut fds).await?;
    let mut first = None;
    wire::decode(&buffer[..length], &mut fds, |message, _| first = Some(message))
        .map_err(io::Error::other)?;
    match first {
        Some(ToNode::Ready(ready)) => Ok(Ok(ready)),
        Some(ToNode::Refused(why)) => Ok(Err(why)),
        _ => Err(io::Error::other("its first message is another one")),
    }
}

/// Keeps a runner going: takes in what it says, asks whether it is well, and clears up when it is gone.
struct Driver {
    class: TrustClass,
    child: Child,
    link: Arc<Link>,
    out: Outbox,
    state: Arc<State>,
}

impl Driver {
    async fn run(self, queue: Queue, heartbeat: Duration) {
        let Driver { class, child, link, out, state } = self;
        let pings = Pings::default();
        let mut end = state.end.subscribe();
        let why = tokio::select! {
            why = async { end.wait_for(Option::is_some).await.ok().and_then(|why| why.clone()) } => why,
            result = queue.pump(YIELDS) => result.err().map(|error| text(&error)),
            result = read(&link, &state, &pings) => result.err(),
            why = watch_over(&out, &pings, heartbeat) => Some(why),
        };
        // From here on nothing is started in it.
        state.end.send_if_modified(|end| {
            end.get_or_insert_with(|| why.clone().unwrap_or_else(|| "is gone".into()));
            false
        });
        drop(link);
        let needed = state.end.borrow().as_deref() != Some(UNNEEDED);
        let exit = child.end(if why.is_none() { GRACE } else { Duration::ZERO }).await;
        let how: Arc<str> = match &why {
            Some(why) => format!("its runner {why}").into(),
            None => format!("its runner {}", exit.describe()).into(),
        };
        let executions = lock(&state.executions).take().unwrap_or_default();
        if needed && (!executions.is_empty() || why.is_some()) {
            warn!(%class, lost = executions.len(), %how, "a runner is gone");
        }
        for live in executions.into_values() {
            // An execution that no longer listens has ended.
            let _ = live.events.send(Event::Lost(Arc::clone(&how)));
        }
        state.gone.send_replace(true);
    }
}

/// Why a runner ends that is not ended for a fault.
const UNNEEDED: &str = "is no longer needed";

/// Hands what the runner says to the executions. `Ok` when it closed its end, an error when it said what it
/// must not.
async fn read(link: &Link, state: &State, pings: &Pings) -> Result<(), String> {
    let mut buffer = socket::buffer();
    let mut fds = Vec::new();
    loop {
        let length = link.receive(&mut buffer, &mut fds).await.map_err(|error| text(&error))?;
        // No message of a runner that serves comes with descriptors.
        fds.clear();
        if length == 0 {
            return Ok(());
        }
        let mut result = Ok(());
        wire::decode(&buffer[..length], &mut fds, |message: ToNode, _| {
            if result.is_ok() {
                result = state.take_in(message, pings);
            }
        })
        .map_err(|error| format!("said what it must not: {error}"))?;
        result.map_err(|error| format!("said what it must not: {error}"))?;
    }
}

impl State {
    fn take_in(&self, message: ToNode, pings: &Pings) -> Result<(), &'static str> {
        let mut guard = lock(&self.executions);
        let Some(executions) = &mut *guard else { return Ok(()) };
        match message {
            ToNode::Output { id, stream, bytes } => {
                let stream = *Stream::ALL.get(usize::from(stream)).ok_or("there is no such stream")?;
                let Some(live) = executions.get(&id) else { return Ok(()) };
                if bytes.is_empty() {
                    return Err("output that is none");
                }
                let cost = wire::cost(bytes.len());
                let owed = live.owed[stream.index()].fetch_add(cost, Ordering::AcqRel) + cost;
                if owed > wire::CREDIT_BYTES {
                    return Err("more output than it has credit for");
                }
                // An execution that no longer listens has ended.
                let _ = live.events.send(Event::Output(stream, bytes));
            }
            ToNode::Ended(finished) => {
                let Some(live) = executions.remove(&finished.id) else { return Ok(()) };
                drop(guard);
                if let How::Failed(_) = finished.how {
                    // Perhaps its code did not arrive; the next start sends it again.
                    lock(&self.loaded).modules.remove(&live.module);
                }
                let _ = live.events.send(Event::Ended(Box::new(finished)));
            }
            ToNode::Pong { number } => {
                if number > pings.asked.load(Ordering::Acquire) {
                    return Err("it answers what it was not asked");
                }
                pings.answered.fetch_max(number, Ordering::AcqRel);
            }
            ToNode::Ready(_) | ToNode::Refused(_) => return Err("it is ready twice"),
        }
        Ok(())
    }
}

/// Asks regularly whether the runner is well; ready, with the reason, when it has not answered for too long.
async fn watch_over(out: &Outbox, pings: &Pings, heartbeat: Duration) -> String {
    let mut interval = tokio::time::interval(heartbeat);
    // After a sleep of the machine one question is enough.
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let asked = pings.asked.load(Ordering::Acquire);
        if asked.saturating_sub(pings.answered.load(Ordering::Acquire)) >= UNANSWERED_MAX {
            return format!("did not answer for {:?}", heartbeat * UNANSWERED_MAX as u32);
        }
        // An idle runner is asked too: it must be well when the next execution comes.
        let number = asked + 1;
        pings.asked.store(number, Ordering::Release);
        match wire::encode(&ToRunner::Ping { number }, vec![]) {
            Ok(ping) => out.send(ping, false),
            Err(error) => return format!("cannot be asked whether it is well: {error}"),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (State, mpsc::UnboundedReceiver<Event>) {
        let (events, received) = mpsc::unbounded_channel();
        let live = Live { events, owed: Default::default(), module: 3 };
        let state = State {
            next: AtomicU64::new(1),
            loaded: Mutex::default(),
            executions: Mutex::new(Some(HashMap::from([(0, live)]))),
            end: watch::Sender::new(None),
            gone: watch::Sender::new(false),
        };
        (state, received)
    }

    fn output(id: u64, stream: u8, length: usize) -> ToNode {
        ToNode::Output { id, stream, bytes: vec![0; length].into() }
    }

    #[test]
    fn a_runner_that_sends_more_than_it_has_credit_for_is_found_out() {
        let (state, mut events) = state();
        let pings = Pings::default();
        let pieces = wire::CREDIT_BYTES as usize / wire::CHUNK_BYTES;
        for _ in 0..pieces {
            assert_eq!(state.take_in(output(0, 1, wire::CHUNK_BYTES), &pings), Ok(()));
        }
        assert!(state.take_in(output(0, 1, 1), &pings).is_err());
        assert_eq!(state.take_in(output(0, 0, 1), &pings), Ok(()), "the other stream has its own");
        assert_eq!(std::iter::from_fn(|| events.try_recv().ok()).count(), pieces + 1);
    }

    #[test]
    fn credit_bounds_the_number_of_pieces_however_short_they_are() {
        let (state, mut events) = state();
        let pings = Pings::default();
        assert!(state.take_in(output(0, 0, 0), &pings).is_err(), "an empty piece is none");
        let taken = (0..100_000).take_while(|_| state.take_in(output(0, 0, 1), &pings).is_ok()).count();
        assert_eq!(taken as u64, wire::CREDIT_BYTES / wire::cost(1));
        assert_eq!(std::iter::from_fn(|| events.try_recv().ok()).count(), taken);
    }

    #[test]
    fn a_runner_answers_no_question_that_it_was_not_asked() {
        let (state, _events) = state();
        let pings = Pings { asked: 3.into(), answered: 0.into() };
        assert_eq!(state.take_in(ToNode::Pong { number: 3 }, &pings), Ok(()));
        assert_eq!(pings.answered.load(Ordering::Acquire), 3);
        assert!(state.take_in(ToNode::Pong { number: u64::MAX }, &pings).is_err());
        assert_eq!(pings.answered.load(Ordering::Acquire), 3);
    }

    #[test]
    fn code_that_a_runner_could_not_use_is_sent_again() {
        let (state, mut events) = state();
        lock(&state.loaded).modules.insert(3, 1);
        let failed = Finished {
            id: 0,
            how: How::Failed("its file did not arrive".into()),
            rest: Default::default(),
            discarded: [0; 2],
            cpu_nanos: 0,
            peak_memory_bytes: 0,
            wall_nanos: 0,
        };
        assert_eq!(state.take_in(ToNode::Ended(failed), &Pings::default()), Ok(()));
        assert!(lock(&state.loaded).modules.is_empty());
        assert!(matches!(events.try_recv(), Ok(Event::Ended(_))));
    }

    #[test]
    fn what_a_runner_says_of_executions_that_are_not_there_is_nothing() {
        let (state, mut events) = state();
        let pings = Pings::default();
        assert_eq!(state.take_in(output(7, 0, 1), &pings), Ok(()));
        assert!(state.take_in(output(0, 2, 1), &pings).is_err(), "there are two streams");
        assert!(state.take_in(ToNode::Refused(String::new()), &pings).is_err());
        assert!(events.try_recv().is_err());
    }
}
