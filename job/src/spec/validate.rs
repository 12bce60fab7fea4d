//! The rules that every spec follows, wherever it comes from.

use std::collections::BTreeSet;

use super::error::{Sink, shown};
use super::{
    DockerEngine, Engine, JobSpec, JobType, MAX_CANONICAL_BYTES, MAX_COUNT, Retry, S3Partition, S3Source,
    Source, SpecErrors, Task, Timeouts, WasmEngine,
};
use crate::constraint::{Constraint, MAX_CONSTRAINTS, is_label_key, is_label_value};
use crate::inline::{self, MAX_INLINE_BYTES};
use crate::text::join_key;

mod network;
mod paths;

/// Longest name of a job, namespace or task: names become parts of paths and of table columns.
const MAX_NAME_BYTES: usize = 255;

/// Most labels, and most inputs, of one job: both are walked at every listing and placing.
const MAX_ENTRIES: usize = 256;

/// Most bytes of all constraints: they travel in the job's announcement, which gossip keeps below 4 KiB, beside
/// at most 1.5 KiB of everything else.
const MAX_CONSTRAINT_BYTES: usize = 2560;

/// Longest name of a function: longer ones come from no compiler.
const MAX_ENTRYPOINT_BYTES: usize = 1024;

/// Most bytes of arguments and environment of a WASM guest, each text with eight bytes for its place. Runners take
/// 128 KiB; the engine's own variables need the rest.
const MAX_ARGUMENT_BYTES: usize = 126 << 10;

/// What a text among arguments and environment costs beside its bytes.
const ARGUMENT_COST: usize = 8;

/// Most memory of a WASM guest: its addresses have 32 bits.
const MAX_WASM_MEMORY: u64 = 4 << 30;

/// Longest span that a timeout may have: ten years, far from the ends of every clock.
const MAX_TIMEOUT_SECONDS: u64 = 10 * 365 * 24 * 60 * 60;

/// Most attempts of one partition; more only hide a broken job.
const MAX_ATTEMPTS: u32 = 100;

/// Names in a result beside those of its ResultPaths.
const RESULT_FILES: [&str; 3] = ["stdout", "stderr", "exitCode"];

/// Prefixes of the variables that a program is given.
const RESERVED_ENV: [&str; 2] = ["BACALHAU_", "CARDUME_"];

/// Hex digits after `j-` that name a job.
const ID_DIGITS: usize = 8;

impl JobSpec {
    /// Checks the rules over a spec that code put together; what this crate reads is checked already.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut sink = Sink::default();
        check(self, &mut sink);
        sink.finish((), None).map(|_| ())
    }
}

/// Adds everything that is against the rules.
pub(super) fn check(spec: &JobSpec, sink: &mut Sink) {
    name("Name", "job Name", &spec.name, sink);
    if is_short_id(&spec.name) {
        let hint = "choose another: it could be taken for the job whose id begins so".to_owned();
        sink.add("Name", format!("job Name {} has the form of a job's id", shown(&spec.name)), Some(hint));
    }
    name("Namespace", "namespace", &spec.namespace, sink);
    if spec.namespace.is_empty() {
        sink.add("Namespace", "job must be in a namespace", None);
    }
    count(spec, sink);
    constraints(spec, sink);
    labels(spec, sink);
    task(&spec.task, sink);
    size(spec, sink);
}

fn count(spec: &JobSpec, sink: &mut Sink) {
    let (count, kind) = (spec.count, spec.job_type);
    let allowed = match kind {
        JobType::Batch => 1..=MAX_COUNT,
        JobType::Service => 0..=MAX_COUNT,
        JobType::Ops | JobType::Daemon => 0..=0,
    };
    if !allowed.contains(&count) {
        let hint = format!("allowed for {kind} jobs: {} to {}", allowed.start(), allowed.end());
        sink.add("Count", format!("job count {count} is out of range"), Some(hint));
    }
}

fn constraints(spec: &JobSpec, sink: &mut Sink) {
    if spec.constraints.len() > MAX_CONSTRAINTS {
        let message =
            format!("{} constraints, and at most {MAX_CONSTRAINTS} are allowed", spec.constraints.len());
        return sink.add("Constraints", message, None);
    }
    for (index, constraint) in spec.constraints.iter().enumerate() {
        if let Err(error) = constraint.check() {
            let message = format!("constraint {} validation failed: {error}", index + 1);
            sink.add(&format!("Constraints[{index}]"), message, None);
        }
    }
    let cost = |constraint: &Constraint| {
        let values: usize = constraint.values.iter().map(|value| value.len() + 4).sum();
        constraint.key.len() + 16 + values
    };
    let bytes: usize = spec.constraints.iter().map(cost).sum();
    if bytes > MAX_CONSTRAINT_BYTES {
        let message = format!(
            "too large to be announced: {bytes} bytes of constraints, and at most {MAX_CONSTRAINT_BYTES} are allowed"
        );
        sink.add(
            "Constraints",
            message,
            Some("label the nodes so that fewer values say the same".to_owned()),
        );
    }
}

fn labels(spec: &JobSpec, sink: &mut Sink) {
    at_most("Labels", spec.labels.len(), sink);
    const RULE: &str =
        "letters, digits, `-`, `_` and `.`, at most 63, starting and ending with a letter or digit";
    for (key, value) in &spec.labels {
        let path = || join_key("Labels", key);
        if !is_label_key(key) {
            sink.add(&path(), format!("{} cannot be the name of a label", shown(key)), Some(RULE.to_owned()));
        }
        if !is_label_value(value) {
            sink.add(
                &path(),
                format!("{} cannot be the value of a label", shown(value)),
                Some(RULE.to_owned()),
            );
        }
    }
}

fn task(task: &Task, sink: &mut Sink) {
    name("Tasks[0].Name", "task name", &task.name, sink);
    match &task.engine {
        Engine::Docker(engine) => docker(engine, sink),
        Engine::Wasm(engine) => wasm(engine, task, sink),
    }
    for (key, value) in &task.env {
        env(key, value, sink);
    }
    inputs(task, sink);
    results(task, sink);
    paths::check(task, sink);
    publisher(task, sink);
    network::check(&task.network, sink);
    timeouts(&task.timeouts, sink);
    let attempts = task.retry.max_attempts;
    let most = if task.retry.policy == Retry::Never { 1 } else { MAX_ATTEMPTS };
    if !(1..=most).contains(&attempts) {
        let hint = format!("allowed: 1 to {most}");
        sink.add("Tasks[0].Retry.MaxAttempts", format!("{attempts} attempts are out of range"), Some(hint));
    }
}

fn docker(engine: &DockerEngine, sink: &mut Sink) {
    const PATH: &str = "Tasks[0].Engine.Params";
    if engine.image.trim().is_empty() {
        sink.add(&format!("{PATH}.Image"), "invalid docker engine param: 'Image' cannot be empty", None);
    }
    if let Some(folder) = engine.working_directory.as_ref().filter(|folder| !folder.starts_with('/')) {
        let message = format!(
            "invalid docker engine param: 'WorkingDirectory' ({}) must contain absolute path",
            shown(folder)
        );
        sink.add(&format!("{PATH}.WorkingDirectory"), message, None);
    }
    for (index, variable) in engine.environment.iter().enumerate() {
        let path = format!("{PATH}.EnvironmentVariables[{index}]");
        let (name, _) = variable.split_once('=').unwrap_or((variable, ""));
        if name.is_empty() || variable.contains('\0') || !variable.contains('=') {
            let hint = Some("write NAME=value".to_owned());
            sink.add(&path, format!("{} is not an environment variable", shown(variable)), hint);
        } else if let Some(prefix) = reserved(name) {
            let message = format!("environment variable {} cannot start with {prefix}", shown(name));
            sink.add(&path, format!("invalid docker engine param: {message}"), None);
        }
    }
    texts("Entrypoint", &engine.entrypoint, sink);
    texts("Parameters", &engine.parameters, sink);
}

fn wasm(engine: &WasmEngine, task: &Task, sink: &mut Sink) {
    const PATH: &str = "Tasks[0].Engine.Params";
    let path = format!("{PATH}.EntryModule");
    if engine.module.is_empty() {
        let message = "invalid wasm engine entry module. target path cannot be empty";
        let hint = "write the Target of an input source, or ipfs://CID";
        sink.add(&path, message, Some(hint.to_owned()));
    } else {
        module(&path, "entry module", &engine.module, task, sink);
    }
    for (index, import) in engine.imports.iter().enumerate() {
        module(&format!("{PATH}.ImportModules[{index}]"), "import module", import, task, sink);
    }
    let entrypoint = &engine.entrypoint;
    if entrypoint.is_empty() || entrypoint.contains('\0') {
        sink.add(&format!("{PATH}.Entrypoint"), "the entrypoint must be the name of a function", None);
    } else if entrypoint.len() > MAX_ENTRYPOINT_BYTES {
        let message = format!(
            "the entrypoint has {} bytes, and at most {MAX_ENTRYPOINT_BYTES} are allowed",
            entrypoint.len()
        );
        sink.add(&format!("{PATH}.Entrypoint"), message, None);
    }
    texts("Parameters", &engine.parameters, sink);
    arguments(engine, task, sink);
    let memory = task.resources.memory;
    if memory > MAX_WASM_MEMORY {
        let message = format!(
            "{memory} bytes of memory, and a WASM guest can address at most {MAX_WASM_MEMORY} (4gib)"
        );
        sink.add("Tasks[0].Resources.Memory", message, None);
    }
}

fn arguments(engine: &WasmEngine, task: &Task, sink: &mut Sink) {
    let environment = task.env.iter().flat_map(|(name, value)| [name, value]);
    let texts = engine.parameters.iter().chain(environment);
    let bytes: usize = texts.map(|text| text.len() + ARGUMENT_COST).sum();
    if bytes > MAX_ARGUMENT_BYTES {
        let message = format!(
            "{bytes} bytes of arguments and environment, and at most {MAX_ARGUMENT_BYTES} are allowed together"
        );
        let hint = "move large texts into inputs".to_owned();
        sink.add("Tasks[0].Engine.Params.Parameters", message, Some(hint));
    }
}

fn module(path: &str, what: &str, target: &str, task: &Task, sink: &mut Sink) {
    if task.inputs.iter().any(|input| input.target == target) {
        return;
    }
    let targets: Vec<&str> = task.inputs.iter().map(|input| input.target.as_str()).take(8).collect();
    let hint = match targets.as_slice() {
        [] => "there are no input sources; add one, or write ipfs://CID".to_owned(),
        targets => crate::nearest::hint(target, targets),
    };
    sink.add(path, format!("{what} {} is not the target of an input source", shown(target)), Some(hint));
}

fn texts(name: &str, texts: &[String], sink: &mut Sink) {
    for (index, text) in texts.iter().enumerate() {
        if text.contains('\0') {
            sink.add(
                &format!("Tasks[0].Engine.Params.{name}[{index}]"),
                "null characters cannot be passed on",
                None,
            );
        }
    }
}

fn env(key: &str, value: &str, sink: &mut Sink) {
    let shown_key = shown(key);
    let about = format!("environment variable {shown_key}");
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let message = if key.is_empty() {
        "environment variable name cannot be empty".to_owned()
    } else if !key.chars().all(is_part) {
        format!("{about} can only contain letters, numbers, and underscores")
    } else if key.chars().any(|c| c.is_ascii_lowercase()) {
        format!("{about} must be uppercase")
    } else if !key.starts_with(|c: char| c.is_ascii_alphabetic()) {
        format!("{about} must start with a letter")
    } else if let Some(prefix) = reserved(key) {
        format!("{about} cannot start with {prefix}")
    } else if value.is_empty() {
        format!("{about} cannot have empty value")
    } else if value.contains('\0') {
        format!("{about} cannot contain null characters")
    } else {
        return;
    };
    sink.add(&join_key("Tasks[0].Env", key), message, None);
}

/// The reserved prefix that a variable's name has.
fn reserved(name: &str) -> Option<&'static str> {
    RESERVED_ENV
        .into_iter()
        .find(|prefix| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)))
}

/// Whether a name reads as the beginning of a job's id. A whole id is one job's alone, and what jobs without a name are
/// called in answers.
fn is_short_id(name: &str) -> bool {
    let digits = name.strip_prefix("j-").and_then(|rest| rest.get(..ID_DIGITS));
    digits.is_some_and(|digits| digits.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c)))
        && name.parse::<crate::JobId>().is_err()
}

fn inputs(task: &Task, sink: &mut Sink) {
    at_most("Tasks[0].InputSources", task.inputs.len(), sink);
    let mut aliases = BTreeSet::new();
    let mut inline_bytes = 0;
    for (index, input) in task.inputs.iter().enumerate() {
        let path = format!("Tasks[0].InputSources[{index}]");
        if !input.alias.is_empty() && !aliases.insert(&input.alias) {
            let message = format!("input source with alias {} already exists", shown(&input.alias));
            sink.add(&format!("{path}.Alias"), message, None);
        }
        inline_bytes += source(&format!("{path}.Source.Params"), &input.source, sink);
    }
    if inline_bytes > MAX_INLINE_BYTES {
        let message = format!(
            "{inline_bytes} bytes of inline inputs, and at most {MAX_INLINE_BYTES} are allowed together"
        );
        sink.add(
            "Tasks[0].InputSources",
            message,
            Some("add them as content and name them by CID".to_owned()),
        );
    }
}

/// Checks a source; gives the bytes that it holds inline.
fn source(path: &str, source: &Source, sink: &mut Sink) -> usize {
    match source {
        Source::Inline { url } => match inline::decode(url) {
            Ok(inline) => return inline.bytes.len(),
            Err(error) => {
                sink.add(&format!("{path}.URL"), format!("invalid inline storage params: {error}"), None)
            }
        },
        Source::Ipfs(content) => {
            if let Err(error) = content.check() {
                sink.add(&format!("{path}.CID"), format!("invalid ipfs storage params: {error}"), None);
            }
        }
        Source::UrlDownload { url } => network::url(&format!("{path}.URL"), url, sink),
        Source::S3(s3) => self::s3(path, s3, sink),
        Source::Local(local) if !local.path.starts_with('/') => {
            let message = format!("{} must be an absolute path on the worker", shown(&local.path));
            sink.add(&format!("{path}.SourcePath"), message, None);
        }
        Source::Local(_) => {}
    }
    0
}

fn s3(path: &str, s3: &S3Source, sink: &mut Sink) {
    if s3.bucket.trim().is_empty() {
        sink.add(&format!("{path}.Bucket"), "invalid s3 storage params: bucket cannot be empty", None);
    }
    let path = format!("{path}.Partition");
    match &s3.partition {
        S3Partition::Regex { pattern } if pattern.is_empty() => {
            sink.add(&format!("{path}.Pattern"), "regex pattern cannot be empty", None);
        }
        S3Partition::Substring { start, end } if end <= start => {
            sink.add(&format!("{path}.EndIndex"), "end index must be greater than start index", None);
        }
        S3Partition::Date { format } if format.is_empty() => {
            sink.add(&format!("{path}.DateFormat"), "date format cannot be empty", None);
        }
        _ => {}
    }
}

fn results(task: &Task, sink: &mut Sink) {
    at_most("Tasks[0].ResultPaths", task.results.len(), sink);
    let mut names = BTreeSet::new();
    for (index, result) in task.results.iter().enumerate() {
        let at = |field: &str| format!("Tasks[0].ResultPaths[{index}].{field}");
        let name = &result.name;
        if name.is_empty() {
            sink.add(&at("Name"), "invalid output: missing name", None);
        } else if !names.insert(name) {
            sink.add(&at("Name"), format!("result path with name {} already exists", shown(name)), None);
        } else if name.contains(['/', '\0'])
            || matches!(name.as_str(), "." | "..")
            || name.len() > MAX_NAME_BYTES
        {
            sink.add(
                &at("Name"),
                format!("result name {} cannot be the name of a folder", shown(name)),
                None,
            );
        } else if RESULT_FILES.contains(&name.as_str()) {
            sink.add(
                &at("Name"),
                format!("result name {} is the name of a file in every result", shown(name)),
                None,
            );
        }
    }
}

fn publisher(task: &Task, sink: &mut Sink) {
    const PATH: &str = "Tasks[0].Publisher";
    match &task.publisher {
        super::Publisher::None if !task.results.is_empty() => {
            sink.add(&format!("{PATH}.Type"), "publisher must be set if result paths are set", None);
        }
        super::Publisher::S3(s3) => {
            if s3.bucket.trim().is_empty() {
                sink.add(&format!("{PATH}.Params.Bucket"), "invalid s3 params. bucket cannot be empty", None);
            }
            if s3.key.trim().is_empty() {
                sink.add(&format!("{PATH}.Params.Key"), "invalid s3 params. key cannot be empty", None);
            }
        }
        _ => {}
    }
}

fn timeouts(timeouts: &Timeouts, sink: &mut Sink) {
    const PATH: &str = "Tasks[0].Timeouts";
    let Timeouts { execution, queue, total } = *timeouts;
    for (name, seconds) in [("ExecutionTimeout", execution), ("QueueTimeout", queue), ("TotalTimeout", total)]
    {
        if seconds > MAX_TIMEOUT_SECONDS {
            let hint = format!("allowed: up to {MAX_TIMEOUT_SECONDS} (ten years), or 0 for the default");
            sink.add(&format!("{PATH}.{name}"), format!("{seconds}s is out of range"), Some(hint));
        }
    }
    if total > 0 && execution.saturating_add(queue) > total {
        let message = format!(
            "execution timeout {execution}s and queue timeout {queue}s should be less than total timeout {total}s"
        );
        sink.add(&format!("{PATH}.TotalTimeout"), message, None);
    }
}

fn size(spec: &JobSpec, sink: &mut Sink) {
    let mut named = spec.clone();
    for input in &mut named.task.inputs {
        if matches!(input.source, Source::Inline { .. }) {
            input.source = Source::Ipfs(super::ContentPath::root(super::canonical::usual_cid()));
        }
    }
    let bytes = named.to_canonical().len();
    if bytes > MAX_CANONICAL_BYTES {
        let message = format!(
            "too large: {bytes} bytes without inline inputs, and at most {MAX_CANONICAL_BYTES} are allowed"
        );
        sink.add("", message, Some("move large texts into inputs".to_owned()));
    }
}

fn name(path: &str, what: &str, text: &str, sink: &mut Sink) {
    if text.contains('\0') {
        sink.add(path, format!("{what} contains a null character"), None);
    } else if text.chars().any(|c| c.is_control() || turns_text(c)) {
        sink.add(path, format!("{what} {} contains a control character", shown(text)), None);
    } else if text.len() > MAX_NAME_BYTES {
        sink.add(
            path,
            format!("{what} has {} bytes, and at most {MAX_NAME_BYTES} are allowed", text.len()),
            None,
        );
    }
}

/// Characters that change the direction of what is written around them: a name must not disguise a line.
fn turns_text(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn at_most(path: &str, found: usize, sink: &mut Sink) {
    if found > MAX_ENTRIES {
        sink.add(path, format!("{found} entries, and at most {MAX_ENTRIES} are allowed"), None);
    }
}
