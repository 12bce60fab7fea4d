//! [`JobSpec`]: what a user asks for, checked and normalised.
//!
//! Text becomes a spec by [`JobSpec::from_text`] (files) or [`JobSpec::from_api_value`] (API bodies), bytes of a
//! peer by [`JobSpec::from_canonical`]; every one of them hands out only specs that follow all rules, or all
//! that is wrong at once. [`JobSpec::supported`] says what this version cannot run yet.
//!
//! ```
//! let spec = job::JobSpec::from_text(br#"
//! Name: hello
//! Type: batch
//! Tasks:
//!   - Engine:
//!       Type: wasm
//!       Params: {EntryModule: "ipfs://bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"}
//! "#).unwrap();
//! assert_eq!(spec.count, 1);
//! assert_eq!(spec.task.resources.cpu_milli, 500);
//! assert!(spec.supported().is_ok());
//! let bytes = spec.to_canonical();
//! assert_eq!(job::JobSpec::from_canonical(&bytes).unwrap(), spec);
//!
//! let errors = job::JobSpec::from_text(b"Type: bath\nTask: []").unwrap_err();
//! assert!(errors.to_string().contains("did you mean 'batch'?"));
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::constraint::Constraint;
use crate::resources::Resources;
use crate::words::words;

mod api;
mod canonical;
mod engine;
mod error;
mod fields;
mod place;
mod read;
mod source;
mod submit;
mod validate;

pub use canonical::CanonicalError;
pub use error::{MAX_ERRORS, SpecError, SpecErrors};
pub use place::{
    ContentPath, CreateAs, LocalSource, Publisher, S3Encoding, S3Partition, S3Publisher, S3Source, Source,
};
pub use read::Mode;
pub use submit::InlineInput;

/// Most partitions of a batch or service job: each has a record at the owner.
pub const MAX_COUNT: u32 = 100_000;

/// Largest canonical form, once inline inputs are named by CID: it travels inside awards.
pub const MAX_CANONICAL_BYTES: usize = 256 * 1024;

/// Attempts of one partition when the spec does not say.
pub const DEFAULT_ATTEMPTS: u32 = 3;

/// The namespace of a job that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The name of a task that has none.
pub const DEFAULT_TASK_NAME: &str = "main";

/// Where a WASM module goes that was named in place rather than by an input's target.
pub const ENTRY_MODULE_TARGET: &str = "/wasm/entry.wasm";

/// The function of a WASM module that is called when the spec does not say.
pub const DEFAULT_ENTRYPOINT: &str = "_start";

/// A job as its user described it: normalised, valid, and the same on every peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Unique within its namespace; empty means that the job's id is its name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Groups names; `default` when not given.
    pub namespace: String,
    /// How partitions are placed.
    #[serde(rename = "type")]
    pub job_type: JobType,
    /// Higher goes first among one owner's jobs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub priority: i32,
    /// Partitions of a batch or service job; 0 for ops and daemon, which run once on every matching node.
    #[serde(default, skip_serializing_if = "is_default")]
    pub count: u32,
    /// Which nodes may run it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<Constraint>,
    /// Kept for the user, never read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// What `job list --labels` selects by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What to run.
    pub task: Task,
}

/// How the partitions of a job are placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobType {
    /// `count` partitions that run to their end.
    Batch,
    /// Once on every matching node of now.
    Ops,
    /// On every matching node, of now and later.
    Daemon,
    /// `count` partitions that are kept running.
    Service,
}

words!(JobType { Batch = "batch", Ops = "ops", Daemon = "daemon", Service = "service" });

/// What one execution does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// `main` when not given.
    pub name: String,
    /// What runs it.
    pub engine: Engine,
    /// Where its result goes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub publisher: Publisher,
    /// Environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Kept for the user, never read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    /// What it reads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<InputSource>,
    /// What it writes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<ResultPath>,
    /// What it needs.
    pub resources: Resources,
    /// What it may reach.
    #[serde(default, skip_serializing_if = "is_default")]
    pub network: Network,
    /// How long it may take.
    #[serde(default, skip_serializing_if = "is_default")]
    pub timeouts: Timeouts,
    /// What happens when an attempt fails.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retry: RetryPolicy,
    /// Who holds the result.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keep_on: KeepOn,
}

/// What runs a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// A container.
    Docker(DockerEngine),
    /// A WebAssembly module.
    Wasm(WasmEngine),
}

impl Engine {
    /// Every engine's word in specs.
    pub const WORDS: &'static [&'static str] = &["docker", "wasm"];

    /// This engine's word in specs.
    pub fn kind(&self) -> &'static str {
        match self {
            Engine::Docker(_) => "docker",
            Engine::Wasm(_) => "wasm",
        }
    }
}

/// A container image and how to start it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DockerEngine {
    /// The image's name, or `ipfs://CID` of an image archive.
    pub image: String,
    /// Replaces the image's entrypoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Replaces the image's command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<String>,
    /// `NAME=value`; these win over the task's variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<String>,
    /// Absolute; the image's when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
}

/// A module among the task's inputs and how to call it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WasmEngine {
    /// The target of the input that is the module; always one of [`Task::inputs`].
    pub module: String,
    /// The function to call.
    pub entrypoint: String,
    /// Arguments after the program's name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<String>,
    /// Targets of inputs that are modules to link.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub imports: Vec<String>,
}

/// Something a task reads, and where it finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputSource {
    /// Where it comes from.
    pub source: Source,
    /// A name for it, or empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub alias: String,
    /// Where the task finds it.
    pub target: String,
}

/// A folder that a task writes and that becomes part of its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResultPath {
    /// Its name in the result.
    pub name: String,
    /// Its absolute path in the task.
    pub path: String,
}

/// What a task may reach over the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// How far it reaches.
    #[serde(default, rename = "type", skip_serializing_if = "is_default")]
    pub kind: NetworkType,
    /// With [`NetworkType::Http`]: hosts it may reach; a leading dot allows every name below.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
    /// Ports it serves on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMapping>,
}

/// How far a task's network reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NetworkType {
    /// What the engine gives by itself: none for WASM.
    #[default]
    Default,
    /// Nothing.
    None,
    /// The node's own network. Bacalhau's deprecated `Full` is read as this.
    Host,
    /// HTTP to the listed domains.
    #[serde(rename = "HTTP")]
    Http,
    /// A network of its own behind the node.
    Bridge,
}

words!(NetworkType { Default = "Default", None = "None", Host = "Host", Http = "HTTP", Bridge = "Bridge" });

/// A port that a task serves on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    /// Becomes part of an environment variable's name.
    pub name: String,
    /// The node's port; any free one when 0.
    #[serde(default, rename = "static", skip_serializing_if = "is_default")]
    pub fixed: u16,
    /// The task's port; that of the node when 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub target: u16,
    /// The node's address to bind; all when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host_network: String,
}

/// How long things may take, in seconds; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeouts {
    /// One execution.
    #[serde(default, skip_serializing_if = "is_default")]
    pub execution: u64,
    /// Waiting for a worker.
    #[serde(default, skip_serializing_if = "is_default")]
    pub queue: u64,
    /// The whole job.
    #[serde(default, skip_serializing_if = "is_default")]
    pub total: u64,
}

impl Timeouts {
    /// The limit of one execution: its own, else that of the whole job, else none.
    pub fn effective_execution(&self) -> Option<u64> {
        [self.execution, self.total].into_iter().find(|&seconds| seconds > 0)
    }
}

/// What happens when an attempt fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryPolicy {
    /// Whether a partition may be started a second time at all.
    #[serde(default, skip_serializing_if = "is_default")]
    pub policy: Retry,
    /// Most attempts of one partition that failed by themselves, from 1.
    pub max_attempts: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy { policy: Retry::Default, max_attempts: DEFAULT_ATTEMPTS }
    }
}

/// Whether a partition may be started a second time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retry {
    /// Yes: at-least-once execution, exactly-once commit.
    #[default]
    Default,
    /// Never, whatever happens to its worker.
    Never,
}

words!(Retry { Default = "default", Never = "never" });

/// Who must hold a result before its partition is committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepOn {
    /// The owner, or who it names.
    #[default]
    Owner,
    /// The worker alone: the result is gone with it.
    Worker,
}

words!(KeepOn { Owner = "owner", Worker = "worker" });

impl JobSpec {
    /// A job of one task, with every other field at its default.
    ///
    /// What code puts together is checked by [`Self::validate`].
    pub fn new(job_type: JobType, task: Task) -> Self {
        let everywhere = matches!(job_type, JobType::Ops | JobType::Daemon);
        JobSpec {
            name: String::new(),
            namespace: DEFAULT_NAMESPACE.to_owned(),
            job_type,
            priority: 0,
            count: u32::from(!everywhere),
            constraints: Vec::new(),
            meta: BTreeMap::new(),
            labels: BTreeMap::new(),
            task,
        }
    }
}

impl Task {
    /// A task of this engine, with every other field at its default.
    pub fn new(engine: Engine) -> Self {
        Task {
            name: DEFAULT_TASK_NAME.to_owned(),
            engine,
            publisher: Publisher::None,
            env: BTreeMap::new(),
            meta: BTreeMap::new(),
            inputs: Vec::new(),
            results: Vec::new(),
            resources: Resources::TASK_DEFAULT,
            network: Network::default(),
            timeouts: Timeouts::default(),
            retry: RetryPolicy::default(),
            keep_on: KeepOn::Owner,
        }
    }

    /// The input that is the WASM module to run, and its index; `None` for other engines.
    pub fn module_input(&self) -> Option<(usize, &InputSource)> {
        let Engine::Wasm(wasm) = &self.engine else { return None };
        self.inputs.iter().enumerate().find(|(_, input)| input.target == wasm.module)
    }

    /// Whether the input with this target is code to run or link rather than data to read.
    pub fn is_module(&self, target: &str) -> bool {
        match &self.engine {
            Engine::Wasm(wasm) => wasm.module == target || wasm.imports.iter().any(|import| import == target),
            Engine::Docker(_) => false,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
