//! The verbs that run something and wait for it, and the flags they share.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::output::Format;
use crate::units;

/// Verbs about WebAssembly.
#[derive(Debug, Subcommand)]
pub enum Wasm {
    Run(Box<WasmRun>),
}

/// Run a WebAssembly module and stream its output
#[derive(Debug, Args)]
#[command(
    long_about = "Runs a WebAssembly module (WASI preview 1) as a job and streams its output: stdout to stdout, stderr to \
        stderr. Where it ran is said on stderr at the end.\n\n\
        MODULE is a file, ipfs://CID, or the target of an input. What follows `--` are the program's arguments.",
    after_help = "Examples:\n  \
        cardume wasm run hello.wasm\n  \
        cardume wasm run count.wasm -i data/:/data -o outputs:/outputs -- /data --verbose\n  \
        cardume wasm run ipfs://bafy… -i ipfs://bafy…/2026:/inputs --count 8 --detach"
)]
pub struct WasmRun {
    /// The module: a file, ipfs://CID, or the target of an input
    #[arg(value_name = "MODULE")]
    pub module: String,

    /// The program's arguments
    #[arg(value_name = "ARG", last = true, allow_hyphen_values = true)]
    pub args: Vec<String>,

    /// Function of the module to call
    #[arg(long, value_name = "NAME", default_value = "_start", visible_alias = "entry-point")]
    pub entrypoint: String,

    /// Another module to link: a file, ipfs://CID, or the target of an input
    #[arg(long, short = 'I', value_name = "MODULE")]
    pub import_modules: Vec<String>,

    /// What to run with.
    #[command(flatten)]
    pub task: Task,

    /// The job around it.
    #[command(flatten)]
    pub job: JobFlags,

    /// How to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// How to wait for a job.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Waiting")]
pub struct Waiting {
    /// Wait for the job's end [default: true, but false with --id-only]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub wait: Option<bool>,

    /// Stop waiting after this long (10s, 5m, or seconds); the job goes on, and the exit code is 3
    #[arg(long, value_name = "DURATION", value_parser = units::duration, visible_alias = "wait-timeout-secs")]
    pub wait_timeout: Option<Duration>,

    /// Print the job's id alone on stdout, at once; do not wait unless --wait is given
    #[arg(long)]
    pub id_only: bool,

    /// Print the job's id and do not wait
    #[arg(long, short = 'd', conflicts_with = "wait")]
    pub detach: bool,

    /// Check everything, print the normalised job, submit nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Submit a new version of a job that exists even when nothing has changed
    #[arg(long)]
    pub force: bool,

    /// Form of what is printed [default: table]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<Format>,
}

impl Waiting {
    /// Whether the verb waits for the job.
    pub fn waits(&self) -> bool {
        self.wait.unwrap_or(!self.id_only && !self.detach)
    }
}

/// How templates in a job file are filled.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Templates")]
pub struct Templates {
    /// A value for `{{.KEY}}` in the file; wins over the environment
    #[arg(long, short = 'V', value_name = "KEY=VALUE")]
    pub template_vars: Vec<String>,

    /// Also take values from environment variables whose names match this expression (`*` for all)
    #[arg(long, short = 'E', value_name = "REGEX")]
    pub template_envs: Option<String>,

    /// Take the file as it is
    #[arg(long, conflicts_with_all = ["template_vars", "template_envs"])]
    pub no_template: bool,
}

/// What a task runs with.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Task")]
pub struct Task {
    /// Something to read: a local path, ipfs://CID[/PATH], https://… or s3://BUCKET/KEY, and where the program finds it
    #[arg(
        long,
        short = 'i',
        value_name = "SRC[:TARGET]",
        long_help = "Something to read, and where the program finds it.\n\n\
            SRC is a local file or folder (it is added as content), ipfs://CID[/PATH], https://…, or s3://BUCKET/KEY. \
            TARGET is an absolute path; without it, a local file goes to /inputs/<its name>, anything else to /inputs.\n\n\
            The long form src=SRC,dst=TARGET,opt=KEY=VALUE takes options, such as opt=region=eu-west-1 for s3."
    )]
    pub input: Vec<String>,

    /// A folder that the program writes, kept as a result under this name
    #[arg(long, short = 'o', value_name = "NAME:PATH")]
    pub output: Vec<String>,

    /// An environment variable of the program
    #[arg(long, short = 'e', value_name = "KEY=VALUE")]
    pub env: Vec<String>,

    /// Where the result goes: ipfs, local, or s3://BUCKET/KEY[,opt=region=…]
    #[arg(long, short = 'p', value_name = "PUBLISHER")]
    pub publisher: Option<String>,

    /// CPU cores, such as 2 or 500m
    #[arg(long, value_name = "CORES")]
    pub cpu: Option<String>,

    /// Memory, such as 512MiB
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,

    /// Disk, such as 1GiB
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<String>,

    /// GPUs
    #[arg(long, value_name = "N")]
    pub gpu: Option<String>,

    /// Longest time of one execution (10s, 5m, or seconds)
    #[arg(long, value_name = "DURATION", value_parser = units::seconds)]
    pub timeout: Option<i64>,

    /// Longest time to wait for a worker
    #[arg(long, value_name = "DURATION", value_parser = units::seconds)]
    pub queue_timeout: Option<i64>,

    /// Network: none, http, host or bridge
    #[arg(long, value_name = "TYPE")]
    pub network: Option<String>,

    /// A domain that an http network may reach (implies --network http)
    #[arg(long, value_name = "DOMAIN")]
    pub domain: Vec<String>,

    /// Name of the task
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub task_name: String,
}

/// The job around a task.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Job")]
pub struct JobFlags {
    /// Name of the job, unique in its namespace: the same name again is a new version of it
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Namespace of the job
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// Priority: higher goes first
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub priority: Option<i32>,

    /// Partitions to run
    #[arg(long, value_name = "N")]
    pub count: Option<u32>,

    /// Run on any node, or once on all that match
    #[arg(long, value_enum, default_value_t = Target::Any, value_name = "WHERE")]
    pub target: Target,

    /// Which nodes may run it, such as 'region in (eu,us),!old'
    #[arg(long, value_name = "SELECTOR")]
    pub constraints: Vec<String>,

    /// A label of the job
    #[arg(long, short = 'l', value_name = "KEY=VALUE", value_delimiter = ',')]
    pub labels: Vec<String>,
}

/// Where a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// On any nodes, as many partitions as --count says.
    Any,
    /// Once on every node that matches now.
    All,
}
