//! [`WasmEngine`]: which runners there are, and how tasks get into them.

use std::error::Error;
use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::child::Spawner;
use super::compile::{Code, Compiler};
use super::execution::Execution;
use super::host::{Host, HostError};
use super::mounts::check_targets;
use super::mounts::inputs::{Inputs, Staged, View};
use super::mounts::outputs::OutputDirs;
use super::sandbox;
use super::settings::{SandboxReport, Settings};
use super::sys;
use super::wire::{ARGUMENTS_BYTES, Mount, Start};
use crate::engine::{Engine, EngineKind, PrepareError, Prepared, StartError, Support};
use crate::output::OutputLog;
use crate::removal;
use crate::running::{self, Running};
use crate::task::{Task, TaskKind, TrustClass};

/// Runs WASI modules in sandboxed runner children, one per trust class. Clones are the same engine; when
/// the last is dropped, everything that it runs ends.
#[derive(Debug, Clone)]
pub struct WasmEngine(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: Settings,
    spawner: Arc<Spawner>,
    compiler: Compiler,
    /// Names the compiler and its settings, as the first runner said: a node that runs nothing yet need not have
    /// all of a compiler in its memory to find out.
    compiler_name: OnceLock<Arc<str>>,
    inputs: Arc<Inputs>,
    places: [Place; 4],
    /// Whether directories can be handed over as detached mounts; no longer when a runner could not have an
    /// empty root.
    detached_mounts: AtomicBool,
    fit_for_anyone: bool,
    stopped: AtomicBool,
}

/// Where the runner of one class is, while there is one.
#[derive(Debug, Default)]
struct Place {
    host: RwLock<Option<Arc<Host>>>,
    starting: Mutex<()>,
}

/// Why a [`WasmEngine`] could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up {what}")]
pub struct SetupError {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// A runner that is in use, and not ended as idle while it is.
#[derive(Debug)]
pub(super) struct Lease(Arc<Host>);

impl Lease {
    fn new(host: &Arc<Host>) -> Self {
        host.enter();
        Lease(Arc::clone(host))
    }
}

impl Deref for Lease {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl WasmEngine {
    /// Sets up directories and removes what an earlier node left in them. Starts no runner yet.
    pub fn new(settings: Settings) -> Result<Self, SetupError> {
        let failed = |what| move |source| SetupError { what, source };
        std::fs::create_dir_all(&settings.input_root).map_err(failed("the input directory"))?;
        removal::empty_dir(&settings.output_root).map_err(failed("the output directory"))?;
        let inputs = Arc::new(Inputs::open(&settings.input_root).map_err(failed("the input directory"))?);
        let spawner = Arc::new(Spawner::start().map_err(failed("the thread that starts runners"))?);
        let compiler = Compiler::new(&settings, Arc::clone(&spawner))
            .map_err(failed("the cache of compiled modules"))?;
        let detached_mounts = rustix::process::geteuid().is_root()
            && std::fs::File::open(&settings.output_root)
                .and_then(|root| sys::detached_mount(root, true))
                .is_ok();
        Ok(WasmEngine(Arc::new(Shared {
            settings,
            spawner,
            compiler,
            compiler_name: OnceLock::new(),
            inputs,
            places: Default::default(),
            detached_mounts: AtomicBool::new(detached_mounts),
            fit_for_anyone: sandbox::available(),
            stopped: AtomicBool::new(false),
        })))
    }

    /// Which layers of the sandbox a runner on this machine has on; starts one to find out when there is
    /// none.
    ///
    /// Dropping the future leaves a runner that was started to be used or to end as idle.
    pub async fn sandbox(&self) -> Result<SandboxReport, StartError> {
        Ok(self.lease(TrustClass::Own).await?.report.clone())
    }

    /// The process that runs the guests of a class, while there is one: for status displays, and for tests
    /// that end it.
    pub fn runner_process(&self, class: TrustClass) -> Option<u32> {
        self.0.places[class.index()].current().and_then(|host| host.process)
    }

    /// The runner of a class, started if need be.
    async fn lease(&self, class: TrustClass) -> Result<Lease, StartError> {
        let place = &self.0.places[class.index()];
        if let Some(lease) = place.lease() {
            return Ok(lease);
        }
        let _starting = place.starting.lock().await;
        if let Some(lease) = place.lease() {
            return Ok(lease);
        }
        if self.0.stopped.load(Ordering::Acquire) {
            return Err(StartError::Node("the engine is stopping".into()));
        }
        let host = Arc::new(self.start_host(class).await.map_err(|error| StartError::Node(chain(&error)))?);
        let lease = Lease::new(&host);
        self.0.compiler_name.get_or_init(|| Arc::clone(&host.compiler));
        *place.host.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&host));
        let shared = Arc::downgrade(&self.0);
        tokio::spawn(retire(shared, Arc::downgrade(&host), class, self.0.settings.runner_idle));
        Ok(lease)
    }

    async fn start_host(&self, class: TrustClass) -> Result<Host, HostError> {
        let Shared { settings, spawner, .. } = &*self.0;
        let detached_mounts = self.0.detached_mounts.load(Ordering::Acquire);
        match Host::start(settings, spawner, class, detached_mounts).await {
            Err(HostError::Refused(why)) if detached_mounts => {
                tracing::warn!(why, "runners cannot use detached mounts; doing without");
                self.0.detached_mounts.store(false, Ordering::Release);
                self.0.inputs.forget();
                Host::start(settings, spawner, class, false).await
            }
            other => other,
        }
    }

    /// What all runners of this engine take their code from.
    async fn compiler_name(&self, class: TrustClass) -> Result<Arc<str>, StartError> {
        if let Some(name) = self.0.compiler_name.get() {
            return Ok(Arc::clone(name));
        }
        Ok(Arc::clone(&self.lease(class).await?.compiler))
    }

    /// Opens what the guest will see.
    async fn directories(&self, host: &Lease, task: &Task) -> Result<Directories, StartError> {
        if task.inputs.is_empty() && task.outputs.is_empty() {
            return Ok(Directories::default());
        }
        let view =
            View { detached_mounts: host.report.detached_mounts, other_user: host.report.own_uid.is_some() };
        let (inputs, task, host) = (Arc::clone(&self.0.inputs), task.clone(), Lease::new(&host.0));
        let opened = tokio::task::spawn_blocking(move || Directories::open(&inputs, &host, &task, view));
        opened.await.unwrap_or_else(|error| Err(StartError::Node(error.to_string())))
    }
}

/// The directories of one execution.
#[derive(Default)]
struct Directories {
    mounts: Vec<Mount>,
    descriptors: Vec<OwnedFd>,
    staged: Vec<Arc<Staged>>,
    outputs: Option<OutputDirs>,
}

impl Directories {
    fn open(inputs: &Inputs, host: &Host, task: &Task, view: View) -> Result<Self, StartError> {
        let failed = |error: io::Error| StartError::Node(format!("cannot open its directories: {error}"));
        let mut opened = Directories::default();
        for (target, staged) in inputs.stage(task, view)? {
            opened.descriptors.push(staged.descriptor().map_err(failed)?);
            opened.mounts.push(Mount { target, writable: false });
            opened.staged.push(staged);
        }
        if !task.outputs.is_empty() {
            let mut outputs = host.outputs.make(task).map_err(failed)?;
            for (target, descriptor) in outputs.take_descriptors() {
                opened.descriptors.push(descriptor);
                opened.mounts.push(Mount { target, writable: true });
            }
            opened.outputs = Some(outputs);
        }
        Ok(opened)
    }
}

#[async_trait]
impl Engine for WasmEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Wasm
    }

    async fn check(&self, task: &Task) -> Support {
        let TaskKind::Wasm { .. } = &task.kind;
        if task.class == TrustClass::Anyone && !self.0.fit_for_anyone {
            return Support::No(
                "this system lacks Landlock or seccomp, without which it runs no stranger's code".into(),
            );
        }
        Support::Yes
    }

    fn is_cached(&self, task: &Task) -> bool {
        let TaskKind::Wasm { module, entrypoint, .. } = &task.kind;
        let name = self.0.compiler_name.get();
        name.is_some_and(|name| self.0.compiler.has(name, module, entrypoint, task.class))
    }

    async fn prepare(&self, task: &Task) -> Result<Prepared, PrepareError> {
        let TaskKind::Wasm { module, entrypoint, args } = &task.kind;
        check_targets(task).map_err(PrepareError::Job)?;
        check_arguments(args, &task.env).map_err(PrepareError::Job)?;
        let name = self.compiler_name(task.class).await.map_err(no_runner)?;
        let code = self.0.compiler.code(&name, module, entrypoint, task.class).await?;
        if code.memory_minimum > task.limits.memory_bytes {
            return Err(PrepareError::Job(format!(
                "the module begins with {} bytes of memory, and its limit is {}",
                code.memory_minimum, task.limits.memory_bytes
            )));
        }
        let digest = format!("wasmtime-{name}").into();
        Ok(Prepared::new(EngineKind::Wasm, digest, code))
    }

    async fn start(&self, task: &Task, prepared: &Prepared) -> Result<Running, StartError> {
        let code = prepared.held::<Code>().filter(|_| prepared.kind() == EngineKind::Wasm);
        let code = code.ok_or_else(|| StartError::Node("the task was prepared by another engine".into()))?;
        // A runner that ended just now is replaced once; then something is wrong with more than one runner.
        for _ in 0..2 {
            let host = self.lease(task.class).await?;
            let permit = Arc::clone(&host.slots).acquire_owned().await;
            let permit = permit.map_err(|error| StartError::Node(error.to_string()))?;
            let directories = self.directories(&host, task).await?;
            let message = message(task, directories.mounts);
            let begun = host.begin(&code, message, directories.descriptors);
            let Some(begun) = begun.map_err(|error| StartError::Node(error.to_string()))? else { continue };
            let log =
                OutputLog::new(task.work_dir.clone(), [task.limits.stdout_bytes, task.limits.stderr_bytes]);
            let (running, supervisor) = running::channel(task.execution, log);
            let execution = Execution {
                begun,
                supervisor,
                host,
                permit,
                inputs: directories.staged,
                outputs: directories.outputs,
                output_bytes: task.limits.output_bytes,
                wall: task.limits.wall,
            };
            tokio::spawn(execution.supervise());
            return Ok(running);
        }
        Err(StartError::Node("runners end as soon as they are started".into()))
    }

    /// Nothing survives: runners end with the node, and [`WasmEngine::new`] removed what they left.
    async fn reattach(&self, _live: &[Task]) -> Vec<Running> {
        Vec::new()
    }

    async fn shutdown(&self) {
        self.0.stopped.store(true, Ordering::Release);
        for place in &self.0.places {
            // Whoever starts one now has passed the check above, and is waited for here.
            let _starting = place.starting.lock().await;
            let host = place.take();
            if let Some(host) = host {
                host.end("was ended because the node is stopping".into());
                host.gone().await;
            }
        }
    }
}

impl Place {
    fn current(&self) -> Option<Arc<Host>> {
        self.host.read().unwrap_or_else(PoisonError::into_inner).clone().filter(|host| host.alive())
    }

    /// A lease on the runner, if there is one and it is well. Taken under the lock, so that it is not
    /// retired meanwhile.
    fn lease(&self) -> Option<Lease> {
        let host = self.host.read().unwrap_or_else(PoisonError::into_inner);
        host.as_ref().filter(|host| host.alive()).map(Lease::new)
    }

    fn take(&self) -> Option<Arc<Host>> {
        self.host.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Lets go of `host` if nobody has used it for as long as this; how long that still is otherwise.
    fn retire(&self, host: &Arc<Host>, after: Duration) -> Option<Duration> {
        let mut current = self.host.write().unwrap_or_else(PoisonError::into_inner);
        let left = match host.idle() {
            Some(idle) if idle >= after => None,
            Some(idle) => Some(after - idle),
            None => Some(after),
        };
        if left.is_none() && current.as_ref().is_some_and(|current| Arc::ptr_eq(current, host)) {
            *current = None;
        }
        left
    }
}

/// Ends a runner that nobody has used for as long as `after`, and with it what was kept for its executions.
async fn retire(engine: Weak<Shared>, host: Weak<Host>, class: TrustClass, after: Duration) {
    let mut left = after;
    loop {
        tokio::time::sleep(left).await;
        let Some((engine, host)) = engine.upgrade().zip(host.upgrade()) else { return };
        let inputs = Arc::clone(&engine.inputs);
        // Removing what was staged blocks; nothing waits for it.
        tokio::task::spawn_blocking(move || inputs.sweep(after));
        match engine.places[class.index()].retire(&host, after) {
            Some(more) => left = more,
            None => return,
        }
    }
}

/// Without a runner there is nothing to compile for.
fn no_runner(error: StartError) -> PrepareError {
    match error {
        StartError::Job(why) => PrepareError::Job(why),
        StartError::Node(why) => PrepareError::Node(why),
    }
}

fn message(task: &Task, mounts: Vec<Mount>) -> Start {
    let TaskKind::Wasm { entrypoint, args, .. } = &task.kind;
    let wall = task.limits.wall.map(|wall| u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX));
    Start {
        id: 0,
        module: 0,
        entrypoint: entrypoint.clone(),
        args: args.clone(),
        env: task.env.clone(),
        mounts,
        memory_bytes: task.limits.memory_bytes,
        cpu_milli: task.limits.cpu_milli,
        output_bytes: task.limits.output_bytes,
        wall_nanos: wall,
        caps: [task.limits.stdout_bytes, task.limits.stderr_bytes],
    }
}

/// They travel in one message, and WASI ends them with a NUL.
fn check_arguments(args: &[String], env: &[(String, String)]) -> Result<(), String> {
    let pairs = env.iter().flat_map(|(name, value)| [name, value]);
    let total: usize = args.iter().chain(pairs.clone()).map(|text| text.len() + 8).sum();
    if total > ARGUMENTS_BYTES {
        return Err(format!("its arguments and environment take more than {} KiB", ARGUMENTS_BYTES >> 10));
    }
    if args.iter().chain(pairs).any(|text| text.contains('\0')) {
        return Err("an argument or environment variable contains a NUL".into());
    }
    Ok(())
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
