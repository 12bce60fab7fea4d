//! What the partitions of one job share on one worker: the spec, the inputs on disk, the prepared module.
//! The first execution makes it, the others wait for it or find it there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use engines::{InputMount, Limits, ModuleSource, Prepared, Support, Task, TaskKind};
use gossip::message::FaultClass;
use gossip::worker::Start;
use job::spec::{ContentPath, Engine as EngineSpec, JobSpec, Source};
use job::{Cid, JobId, PeerId};
use tokio::sync::OnceCell;

use super::execution::{Fault, mount, prepare_fault, trust};
use super::{Bench, hints};
use crate::content::{Checkout, FetchFault};

/// Jobs whose context is kept. One context holds paths and a prepared module, a few KiB and a file handle.
const KEPT: usize = 64;

/// The shared part of a job's executions.
pub struct Context {
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

type Cell = Arc<OnceCell<Arc<Context>>>;
type Key = (JobId, u32, engines::TrustClass);

/// The contexts of the jobs that run, the most recently used ones.
#[derive(Default)]
pub struct Contexts {
    cells: Mutex<Cells>,
}

#[derive(Default)]
struct Cells {
    by_job: BTreeMap<Key, (u64, Cell)>,
    clock: u64,
}

impl Contexts {
    /// The context that this execution needs, made when it is not there.
    ///
    /// A failure is not kept: the next execution tries again. Dropping the future leaves the making to the next one that waits.
    pub async fn get(&self, bench: &Bench, order: &Start) -> Result<Arc<Context>, Fault> {
        let cell = self.cell((order.execution.job, order.execution.version, trust(order.submitter)));
        cell.get_or_try_init(|| make(bench, order)).await.cloned()
    }

    fn cell(&self, key: Key) -> Cell {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cells.clock += 1;
        let now = cells.clock;
        if !cells.by_job.contains_key(&key) && cells.by_job.len() >= KEPT {
            let oldest = cells.by_job.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key);
            oldest.map(|key| cells.by_job.remove(&key));
        }
        let entry = cells.by_job.entry(key).or_default();
        entry.0 = now;
        Arc::clone(&entry.1)
    }
}

async fn make(bench: &Bench, order: &Start) -> Result<Arc<Context>, Fault> {
    let hints = hints(order.owner, &order.hints);
    let spec = Arc::new(read_spec(bench, order, &hints).await?);
    if !spec.task.resources.fits(&order.resources) {
        return Err(Fault::new(FaultClass::Job, "the spec asks for more resources than the award reserved"));
    }
    let EngineSpec::Wasm(wasm) = &spec.task.engine else {
        return Err(Fault::new(FaultClass::Node, format!("no engine {} here", spec.task.engine.kind())));
    };
    let wanted = wanted(&spec)?;
    let checkouts = fetch_all(bench, &wanted, &hints).await?;
    let module = wanted
        .iter()
        .position(|input| input.target == wasm.module)
        .ok_or_else(|| Fault::new(FaultClass::Job, "no input is the entry module"))?;
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
    let prepared = prepare(bench, order, &kind, &mounts).await?;
    let inputs = checkouts.iter().map(|checkout| checkout.cid).collect();
    Ok(Arc::new(Context { spec, kind, mounts, prepared, inputs, _checkouts: checkouts }))
}

async fn read_spec(bench: &Bench, order: &Start, hints: &[PeerId]) -> Result<JobSpec, Fault> {
    let bytes = match &order.spec.inline {
        Some(bytes) => bytes::Bytes::copy_from_slice(bytes),
        None => bench
            .content
            .fetch_block(order.spec.cid, hints, bench.input_timeout)
            .await
            .map_err(|error| input_fault("the spec", &order.spec.cid, &error))?,
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

async fn fetch_all(bench: &Bench, wanted: &[Wanted], hints: &[PeerId]) -> Result<Vec<Checkout>, Fault> {
    let fetches = wanted.iter().map(|input| async move {
        bench
            .content
            .checkout(&input.content, hints, bench.input_timeout)
            .await
            .map_err(|error| input_fault(&input.target, &input.content.cid, &error))
    });
    futures::future::try_join_all(fetches).await
}

fn input_fault(what: &str, cid: &Cid, error: &FetchFault) -> Fault {
    let class = match error {
        FetchFault::NotFound(_) => FaultClass::Input,
        FetchFault::Malformed(_) => FaultClass::Job,
        FetchFault::Here(_) => FaultClass::Node,
    };
    Fault::new(class, format!("input {cid} ({what}): {error}"))
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
