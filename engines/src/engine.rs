//! [`Engine`]: what every way of running a task offers.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::running::Running;
use crate::task::Task;

/// Runs tasks of one kind on this machine.
///
/// A task goes through [`check`](Engine::check), [`prepare`](Engine::prepare) and [`start`](Engine::start);
/// what follows is the [`Running`]'s. The caller admits tasks: an engine enforces each one's limits, but
/// does not decide whether they fit the machine together.
#[async_trait]
pub trait Engine: Send + Sync + fmt::Debug {
    /// Which engine this is.
    fn kind(&self) -> EngineKind;

    /// Whether this node can run the task, from what is known without preparing it.
    async fn check(&self, task: &Task) -> Support;

    /// Whether [`prepare`](Engine::prepare) would have next to nothing to do, as far as the engine knows without
    /// starting anything: a new one may not.
    fn is_cached(&self, task: &Task) -> bool;

    /// Makes everything ready that executions of the same program share: compiles a module, loads an image.
    ///
    /// Callers that prepare the same program at once share the work. Dropping the future forgets the
    /// answer; work that has begun goes on and is kept.
    async fn prepare(&self, task: &Task) -> Result<Prepared, PrepareError>;

    /// Starts the task, which must be the prepared one or another of the same program. Waits while as many
    /// executions run as the engine was given slots.
    ///
    /// Dropping the future before it is ready starts nothing.
    async fn start(&self, task: &Task, prepared: &Prepared) -> Result<Running, StartError>;

    /// Finds, after a restart of the node, those of `live` that still run, and ends everything else that an
    /// earlier node with this engine's settings left behind.
    async fn reattach(&self, live: &[Task]) -> Vec<Running>;

    /// Stops everything that runs and waits until it is gone. Starts nothing afterwards.
    async fn shutdown(&self);
}

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum EngineKind {
    /// WASI modules in runner children.
    Wasm,
    /// Containers.
    Docker,
}

impl EngineKind {
    /// The name that job specs use.
    pub fn name(self) -> &'static str {
        match self {
            EngineKind::Wasm => "wasm",
            EngineKind::Docker => "docker",
        }
    }
}

/// Whether this node can run a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// It can.
    Yes,
    /// It cannot, for this reason.
    No(String),
}

/// What [`Engine::prepare`] made ready; cheap to clone, and ready as long as it is held.
#[derive(Clone)]
pub struct Prepared {
    kind: EngineKind,
    digest: Arc<str>,
    held: Arc<dyn Any + Send + Sync>,
}

impl Prepared {
    /// For engines: wraps what `start` needs again.
    pub fn new(kind: EngineKind, digest: Arc<str>, held: Arc<dyn Any + Send + Sync>) -> Self {
        Prepared { kind, digest, held }
    }

    /// Which engine made it.
    pub fn kind(&self) -> EngineKind {
        self.kind
    }

    /// Names what exactly runs: engine, version and settings, or an image's digest. Receipts carry it.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// For engines: what was wrapped, if it is a `T`.
    pub fn held<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(&self.held).downcast().ok()
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared")
            .field("kind", &self.kind)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

/// Why a task could not be made ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// A fault of the job itself: every node would say the same.
    #[error("{0}")]
    Job(String),
    /// A fault of this node: another may do better.
    #[error("{0}")]
    Node(String),
    /// It would cost more than this node allows the task's trust class.
    #[error("{0}")]
    Limit(String),
}

/// Why a prepared task could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// A fault of the job itself: every node would say the same.
    #[error("{0}")]
    Job(String),
    /// A fault of this node: another may do better.
    #[error("{0}")]
    Node(String),
}
