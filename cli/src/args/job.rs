//! `cardume job`: jobs.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, ValueEnum};

use super::Output;
use super::run::{Templates, Waiting};
use crate::output::Format;

/// Verbs about jobs. A job is named by its id, its first 8 hex digits (`j-1a2b3c4d`), a longer prefix, or its name.
#[derive(Debug, Subcommand)]
pub enum Job {
    Run(Run),
    Validate(Validate),
    List(List),
    /// Show a job with its history, executions and output
    Describe {
        /// Which job.
        #[command(flatten)]
        job: Named,
        /// Form of the result.
        #[command(flatten)]
        output: Output,
    },
    /// List a job's executions
    Executions {
        /// Which job.
        #[command(flatten)]
        job: Named,
        /// How many.
        #[command(flatten)]
        page: Page,
        /// Form of the result.
        #[command(flatten)]
        output: Output,
    },
    /// List what happened to a job
    History {
        /// Which job.
        #[command(flatten)]
        job: Named,
        /// Which events
        #[arg(long, value_enum, default_value_t = EventType::All, value_name = "TYPE")]
        event_type: EventType,
        /// Only events of this execution
        #[arg(long, value_name = "EXECUTION")]
        execution_id: Option<String>,
        /// How many.
        #[command(flatten)]
        page: Page,
        /// Form of the result.
        #[command(flatten)]
        output: Output,
    },
    /// List a job's versions
    Versions {
        /// Which job.
        #[command(flatten)]
        job: Named,
        /// How many.
        #[command(flatten)]
        page: Page,
        /// Form of the result.
        #[command(flatten)]
        output: Output,
    },
    Logs(Logs),
    /// Stop a job
    #[command(
        long_about = "Stops a job: no execution of it is started again, and those that run are ended. The stop is durable; \
            a worker that cannot be reached now hears of it when it is back.",
        after_help = "Example:\n  cardume job stop j-1a2b3c4d --reason 'wrong input'"
    )]
    Stop {
        /// Which job.
        #[command(flatten)]
        job: Named,
        /// Why, for the job's history
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Form of the result.
        #[command(flatten)]
        output: Output,
    },
    Get(Get),
}

impl Job {
    /// The form of the result, if one was asked for after the verb.
    pub fn format(&self) -> Option<Format> {
        match self {
            Job::Run(run) => run.waiting.format.or(run.output),
            Job::Validate(Validate { output, .. })
            | Job::List(List { output, .. })
            | Job::Get(Get { output, .. })
            | Job::Logs(Logs { output, .. })
            | Job::Describe { output, .. }
            | Job::Executions { output, .. }
            | Job::History { output, .. }
            | Job::Versions { output, .. }
            | Job::Stop { output, .. } => output.format,
        }
    }

    /// Takes over the form that was asked for before the verb, where none was asked for after it.
    pub fn set_root_output(&mut self, root: Option<Format>) {
        let format = match self {
            Job::Run(run) => &mut run.output,
            Job::Validate(Validate { output, .. })
            | Job::List(List { output, .. })
            | Job::Get(Get { output, .. })
            | Job::Logs(Logs { output, .. })
            | Job::Describe { output, .. }
            | Job::Executions { output, .. }
            | Job::History { output, .. }
            | Job::Versions { output, .. }
            | Job::Stop { output, .. } => &mut output.format,
        };
        *format = format.or(root);
    }
}

/// Which job a verb is about.
#[derive(Debug, Clone, Args)]
pub struct Named {
    /// The job: id, prefix of it, or name
    #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    pub id: String,

    /// The namespace of a job that is named [default: all]
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

/// Submit a job from a file and wait for its end
#[derive(Debug, Args)]
#[command(
    long_about = "Submits a job from a YAML or JSON file, shows its progress and waits for its end.\n\n\
        Templates in the file (`{{.name}}`) are filled first, from -V and -E. Everything that is wrong with the file is \
        reported at once, and nothing is submitted then.",
    after_help = "Examples:\n  \
        cardume job run job.yaml\n  \
        cardume job run job.yaml -V region=eu -V date=2026-11-22\n  \
        id=$(cardume job run job.yaml --id-only)\n  \
        cardume job run - --dry-run < job.json"
)]
pub struct Run {
    /// The job's file; `-` reads it from stdin
    #[arg(value_name = "FILE", default_value = "-", hide_default_value = true)]
    pub file: PathBuf,

    /// Stream the job's output while it runs: stdout to stdout, stderr to stderr
    #[arg(long, short = 'f')]
    pub follow: bool,

    /// How templates are filled.
    #[command(flatten)]
    pub templates: Templates,

    /// How to wait.
    #[command(flatten)]
    pub waiting: Waiting,

    /// The same as --format
    #[arg(long = "output", value_enum, value_name = "FORMAT", hide = true, conflicts_with = "format")]
    pub output: Option<Format>,
}

/// Check a job file without submitting it
#[derive(Debug, Args)]
#[command(
    long_about = "Checks a job file by the rules that a node applies, prints OK or everything that is wrong. No node is needed.",
    after_help = "Example:\n  cardume job validate job.yaml"
)]
pub struct Validate {
    /// The job's file; `-` reads it from stdin
    #[arg(value_name = "FILE", default_value = "-", hide_default_value = true)]
    pub file: PathBuf,

    /// How templates are filled.
    #[command(flatten)]
    pub templates: Templates,

    /// Form of the result.
    #[command(flatten)]
    pub output: Output,
}

/// How many items of a list.
#[derive(Debug, Clone, Args)]
pub struct Page {
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,

    /// All of them
    #[arg(long, conflicts_with = "limit")]
    pub all: bool,
}

/// List jobs, newest first
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    cardume job list --limit 50\n  \
    cardume job list --labels 'team=x,stage!=test' --output json")]
pub struct List {
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,

    /// All of them
    #[arg(long, conflicts_with = "limit")]
    pub all: bool,

    /// Only jobs whose labels match, such as 'team=x,stage in (a,b),!old'
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    pub labels: Vec<String>,

    /// Only jobs of this namespace; `*` for all [default: all]
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// Form of the result.
    #[command(flatten)]
    pub output: Output,
}

/// Which events of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EventType {
    /// All of them.
    All,
    /// Those of the job as a whole.
    Job,
    /// Those of single executions.
    Execution,
}

impl EventType {
    /// The API's word.
    pub fn word(self) -> &'static str {
        match self {
            EventType::All => "all",
            EventType::Job => "job",
            EventType::Execution => "execution",
        }
    }
}

/// Print a job's output
#[derive(Debug, Args)]
#[command(
    long_about = "Prints a job's output: its stdout to stdout, its stderr to stderr.\n\n\
        While the job runs, the output comes from the workers; after its end it is the stored output. Without --partition, \
        the output of every partition is printed, in whole lines.",
    after_help = "Examples:\n  \
        cardume job logs j-1a2b3c4d -f\n  \
        cardume job logs j-1a2b3c4d --partition 3 -t 20"
)]
pub struct Logs {
    /// Which job.
    #[command(flatten)]
    pub job: Named,

    /// Go on until the job ends
    #[arg(long, short = 'f')]
    pub follow: bool,

    /// Begin with the last N lines only
    #[arg(long, short = 't', value_name = "N")]
    pub tail: Option<u64>,

    /// Only this partition
    #[arg(long, value_name = "N")]
    pub partition: Option<u32>,

    /// Only this execution
    #[arg(long, short = 'e', value_name = "EXECUTION", conflicts_with = "partition")]
    pub execution_id: Option<String>,

    /// Form of an error; the output is written as it is.
    #[command(flatten)]
    pub output: Output,
}

/// Fetch a job's results
#[derive(Debug, Args)]
#[command(
    long_about = "Fetches a job's results.\n\n\
        DIR gets the files stdout, stderr and exitCode and one folder for each result path, by its name. A job of several \
        partitions gives one such set per partition, in DIR/<partition index>/.\n\n\
        --merge puts the partitions together: folders are merged, and stdout, stderr and exitCode are joined in the order of \
        the partitions. Two other files of one name cannot be: fetch them apart, or with --raw.\n\n\
        Nothing appears in DIR before everything has arrived, and nothing that exists is overwritten without --force.",
    after_help = "Examples:\n  \
        cardume job get j-1a2b3c4d\n  \
        cardume job get j-1a2b3c4d --output-dir results --merge\n  \
        cardume job get j-1a2b3c4d/stdout --output-dir ."
)]
pub struct Get {
    /// The job (id, prefix of it, or name), and one file or folder of its results
    #[arg(value_name = "ID[/FILE]", value_parser = NonEmptyStringValueParser::new())]
    pub job: String,

    /// The namespace of a job that is named [default: all]
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// Where the results go [default: ./job-<short id>]
    #[arg(long, short = 'o', value_name = "DIR")]
    pub output_dir: Option<PathBuf>,

    /// Put the results of all partitions together
    #[arg(long, conflicts_with = "raw")]
    pub merge: bool,

    /// Keep the published form: one folder per execution, named by its id
    #[arg(long)]
    pub raw: bool,

    /// Overwrite files that exist
    #[arg(long)]
    pub force: bool,

    /// Give up when nobody offers a result for this long
    #[arg(long, value_name = "DURATION", value_parser = crate::units::duration)]
    pub timeout: Option<std::time::Duration>,

    /// Form of the result.
    #[command(flatten)]
    pub output: Output,
}
