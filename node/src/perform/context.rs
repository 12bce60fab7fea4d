//! What the partitions of one job share on one worker: the spec, the inputs on disk, the prepared module.
//! The first execution makes it, the others wait for it or find it there.

mod kept;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engines::{InputMount, Limits, ModuleSource, Prepared, Support, Task, TaskKind};
use futures::{StreamExt, TryStreamExt};
use gossip::message::FaultClass;
use gossip::worker::{Start, Submitter};
use job::spec::{ContentPath, Engine as EngineSpec, JobSpec, Source};
use job::{Cid, JobId, PeerId};
use storage::fetch::Progress;
use tokio::sync::watch;
use tokio::time::Instant;

use super::execution::{Fault, mount, prepare_fault, trust};
use super::{Bench, hints};
use crate::content::{Checkout, FetchFault};
use kept::{Held, Kept};

/// Jobs whose context is kept while none of their executions runs. One context holds paths and a prepared module, a
/// few KiB and a file handle.
const KEPT: usize = 64;
/// How long it is kept after the last execution: the next partitions of a job come within a moment, and longer no
/// input should be kept from making room for others.
const KEPT_FOR: Duration = Duration::from_secs(10);
/// Inputs of one job that are brought at once: each may be as large as what is left of the job's room.
const INPUTS_AT_ONCE: usize = 4;
/// What all inputs of a job of somebody who is not trusted may take when it does not ask for more, as a part of the store.
const STRANGERS_SHARE: u64 = 4;

/// A job's shared part, in use by one execution.
pub struct Context {
    held: Held<Key, Parts>,
}

impl Deref for Context {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.held
    }
}

/// The shared part of a job's executions.
pub struct Parts {
    /// The job.
    pub spec: Arc<JobSpec>,
    /// Engine, module, arguments.
    pub kind: TaskKind,
    /// Inputs on disk.
    pub mounts: Vec<InputMount>,
    /// The compiled module.
    pub prepared: Prepared,
    /// Content that was mounted: the receipt names it.
    pub inputs: Vec<Cid>,
    /// Keep the inputs on disk.
    _checkouts: Vec<Checkout>,
}

type Key = (JobId, u32, engines::TrustClass);

/// The contexts of the jobs that run, or did so just now.
pub struct Contexts {
    kept: Kept<Key, Parts>,
    /// What is brought for those that are being made.
    coming: Mutex<BTreeMap<Key, Vec<Coming>>>,
    /// The last failure to make each, and when.
    failed: Mutex<BTreeMap<Key, (Instant, Fault)>>,
}

impl Default for Contexts {
    fn default() -> Self {
        Contexts { kept: Kept::new(KEPT, KEPT_FOR), coming: Mutex::default(), failed: Mutex::default() }
    }
}

impl Contexts {
    /// The context that this execution needs, made when it is not there.
    ///
    /// A failure is that of all who waited for it, so that a missing input costs them its deadline once; who comes later
    /// tries again. Dropping the future leaves the making to the next one that waits.
    pub async fn get(&self, bench: &Bench, order: &Start) -> Result<Arc<Context>, Fault> {
        let key = (order.execution.job, order.execution.version, trust(order.submitter));
        let came = Instant::now();
        let held = self.kept.get(key, || self.make(key, came, bench, order)).await?;
        Ok(Arc::new(Context { held }))
    }

    async fn make(&self, key: Key, came: Instant, bench: &Bench, order: &Start) -> Result<Parts, Fault> {
        if let Some((at, fault)) = self.failures().get(&key)
            && *at >= came
        {
            return Err(fault.clone());
        }
        let made = {
            let _gone = Gone(self, key);
            make(bench, order, &|coming| self.coming().entry(key).or_default().push(coming)).await
        };
        if let Err(fault) = &made {
            let mut failed = self.failures();
            while failed.len() >= KEPT && failed.pop_first().is_some() {}
            failed.insert(key, (Instant::now(), fault.clone()));
        }
        made
    }

    /// What an execution that waits for its context waits for, in words; empty when nothing is on its way.
    pub fn doing(&self, order: &Start) -> String {
        let key = (order.execution.job, order.execution.version, trust(order.submitter));
        let coming = self.coming();
        let on_their_way = coming.get(&key).into_iter().flatten().filter(|coming| !coming.is_done());
        let mut words: Vec<String> = on_their_way.take(INPUTS_AT_ONCE + 1).map(Coming::describe).collect();
        if words.len() > INPUTS_AT_ONCE {
            words.truncate(INPUTS_AT_ONCE);
            words.push("more".to_owned());
        }
        words.join(", ")
    }

    fn coming(&self) -> MutexGuard<'_, BTreeMap<Key, Vec<Coming>>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failures(&self) -> MutexGuard<'_, BTreeMap<Key, (Instant, Fault)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing is on its way for a context any more, however its making ends.
struct Gone<'a>(&'a Contexts, Key);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.coming().remove(&self.1);
    }
}

/// An input on its way.
struct Coming {
    cid: Cid,
    progress: watch::Receiver<Progress>,
}

impl Coming {
    /// The sender goes with the fetch.
    fn is_done(&self) -> bool {
        self.progress.has_changed().is_err()
    }

    fn describe(&self) -> String {
        let progress = *self.progress.borrow();
        match progress.total_bytes {
            Some(total) => {
                format!("fetching {} of {} of {}", shown(progress.bytes.min(total)), shown(total), self.cid)
            }
            None => format!("looking for {}", self.cid),
        }
    }
}

fn shown(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    if bytes < MIB { format!("{bytes} B") } else { format!("{} MiB", bytes / MIB) }
}

async fn make(bench: &Bench, order: &Start, comes: &(dyn Fn(Coming) + Sync)) -> Result<Parts, Fault> {
    let hints = hints(order.owner, &order.hints);
    let spec = Arc::new(read_spec(bench, order, &hints).await?);
    if !spec.task.resources.fits(&order.resources) {
        return Err(Fault::new(FaultClass::Job, "the spec asks for more resources than the award reserved"));
    }
    let EngineSpec::Wasm(wasm) = &spec.task.engine else {
        return Err(Fault::new(FaultClass::Node, format!("no engine {} here", spec.task.engine.kind())));
    };
    let wanted = wanted(&spec)?;
    let checkouts = fetch_all(bench, order, &wanted, &hints, comes).await?;
    let module = wanted
        .iter()
        .position(|input| input.target == wasm.module)
        .ok_or_else(|| Fault::new(FaultClass::Job, "no input is the entry module"))?;
    if checkouts[module].path.is_dir() {
        let message = format!("the module {} is a folder, and no WebAssembly module", wanted[module].content);
        return Err(Fault::new(FaultClass::Job, message));
    }
    let kind = TaskKind::Wasm {
        module: ModuleSource { cid: checkouts[module].cid, path: checkouts[module].path.clone() },
        entrypoint: wasm.entrypoint.clone(),
        args: wasm.parameters.clone(),
    };
    let mounts = wanted
        .iter()
        .zip(&checkouts)
        .filter(|(input, _)| !input.module)
        .map(|(input, checkout)| mount(checkout.path.clone(), &input.target))
        .collect::<Vec<_>>();
    let prepared = prepare(bench, order, &kind, &mounts).await.map_err(|fault| Fault {
        message: format!("module {}: {}", wanted[module].content, fault.message),
        ..fault
    })?;
    let inputs = checkouts.iter().map(|checkout| checkout.cid).collect();
    Ok(Parts { spec, kind, mounts, prepared, inputs, _checkouts: checkouts })
}

async fn read_spec(bench: &Bench, order: &Start, hints: &[PeerId]) -> Result<JobSpec, Fault> {
    let bytes = match &order.spec.inline {
        Some(bytes) => bytes::Bytes::copy_from_slice(bytes),
        None => bench
            .content
            .fetch_block(order.spec.cid, hints, bench.input_timeout)
            .await
            .map_err(|error| input_fault("the spec", &order.spec.cid, FaultClass::Job, &error))?,
    };
    JobSpec::from_canonical(&bytes)
        .map_err(|error| Fault::new(FaultClass::Job, format!("the spec {}: {error}", order.spec.cid)))
}

/// One input to bring.
struct Wanted {
    content: ContentPath,
    target: String,
    module: bool,
}

fn wanted(spec: &JobSpec) -> Result<Vec<Wanted>, Fault> {
    let mut wanted = Vec::new();
    for input in &spec.task.inputs {
        let Source::Ipfs(content) = &input.source else {
            let message = format!("input sources of type {} do not work here", input.source.kind());
            return Err(Fault::new(FaultClass::Node, message));
        };
        let module = spec.task.is_module(&input.target);
        wanted.push(Wanted { content: content.clone(), target: input.target.clone(), module });
    }
    Ok(wanted)
}

async fn fetch_all(
    bench: &Bench,
    order: &Start,
    wanted: &[Wanted],
    hints: &[PeerId],
    comes: &(dyn Fn(Coming) + Sync),
) -> Result<Vec<Checkout>, Fault> {
    let (room, whose) = input_room(order, bench.content.room());
    let left = &AtomicU64::new(room);
    let fetches: Vec<_> = wanted
        .iter()
        .map(|input| async move {
            let fault = |error: FetchFault| input_fault(&input.target, &input.content.cid, whose, &error);
            let most = left.load(Ordering::Acquire);
            let (progress, seen) = watch::channel(Progress::default());
            comes(Coming { cid: input.content.cid, progress: seen });
            let fetched = bench
                .content
                .checkout(&input.content, hints, bench.input_timeout, most, Some(progress))
                .await;
            let checkout = fetched.map_err(fault)?;
            let less = |left: u64| left.checked_sub(checkout.bytes);
            if left.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok() {
                return Ok(checkout);
            }
            let all = format!("with {} bytes of this one, all inputs have more than {room}", checkout.bytes);
            Err(fault(FetchFault::TooLarge(all)))
        })
        .collect();
    futures::stream::iter(fetches).buffered(INPUTS_AT_ONCE).try_collect().await
}

/// How many bytes all inputs of a job may have, and whose fault it is when they have more: this node's, since another
/// one may have more room, but where the job says that it takes more disk than that.
fn input_room(order: &Start, store: u64) -> (u64, FaultClass) {
    let share = match order.submitter {
        Submitter::Own | Submitter::Trusted => store,
        Submitter::Member | Submitter::Anyone => store / STRANGERS_SHARE,
    };
    if order.resources.disk > share {
        return (order.resources.disk, FaultClass::Job);
    }
    (share, FaultClass::Node)
}

fn input_fault(what: &str, cid: &Cid, too_large: FaultClass, error: &FetchFault) -> Fault {
    let (class, hint) = match error {
        FetchFault::NotFound(_) => (FaultClass::Input, ""),
        FetchFault::NoEntry(_) | FetchFault::Malformed(_) => (FaultClass::Job, ""),
        FetchFault::TooLarge(_) => (too_large, " (a job that says so in Resources.Disk may have more)"),
        FetchFault::Here(_) => (FaultClass::Node, ""),
    };
    Fault::new(class, format!("input {cid} ({what}): {error}{hint}"))
}

async fn prepare(
    bench: &Bench,
    order: &Start,
    kind: &TaskKind,
    mounts: &[InputMount],
) -> Result<Prepared, Fault> {
    let task = Task {
        execution: order.id,
        class: trust(order.submitter),
        kind: kind.clone(),
        env: Vec::new(),
        inputs: mounts.to_vec(),
        outputs: Vec::new(),
        limits: Limits { memory_bytes: order.resources.memory, ..Limits::default() },
        work_dir: PathBuf::from(&bench.work_dir).join(order.id.to_string()),
    };
    if let Support::No(reason) = bench.engine()?.check(&task).await {
        return Err(Fault::new(FaultClass::Node, reason));
    }
    bench.engine()?.prepare(&task).await.map_err(|error| prepare_fault(error, task.class))
}
