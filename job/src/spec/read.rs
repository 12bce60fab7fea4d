//! A document's value as a [`JobSpec`]: types, names and defaults. What cannot be read is reported and
//! replaced by a stand-in, so that one reading finds everything that is wrong.

use std::collections::BTreeMap;

use serde_json::Value;

use super::error::{Sink, shown};
use super::fields::{Fields, Node};
use super::place::normal_path;
use super::{
    DEFAULT_NAMESPACE, DEFAULT_TASK_NAME, JobSpec, JobType, KeepOn, Network, NetworkType, PortMapping,
    Publisher, ResultPath, Retry, RetryPolicy, Task, Timeouts, engine, source,
};
use crate::constraint::{Constraint, MAX_CONSTRAINTS, Operator};
use crate::nearest;
use crate::resources::{Resources, parse_bytes, parse_cpu, parse_gpu};

/// Whose text it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A user's file: fields that only the server sets are errors.
    File,
    /// An API body, often one that a server answered before: such fields are ignored with a warning.
    Api,
}

/// Fields of a job that the server sets.
const SERVER_FIELDS: [&str; 6] = ["ID", "State", "Version", "Revision", "CreateTime", "ModifyTime"];

/// Beginnings of keys of `Meta` that the server sets, Bacalhau's or ours.
const SERVER_META: [&str; 2] = ["bacalhau.org/", "cardume.org/"];

/// Reads a job; `None`, with a report, when the value is not even a map.
pub(super) fn job(value: &Value, mode: Mode, sink: &mut Sink) -> Option<JobSpec> {
    let root = Node { value, path: String::new() };
    if !value.is_object() {
        sink.add(
            "",
            "a job is a map of fields, and this is none",
            Some("start with `Type: batch`".to_owned()),
        );
        return None;
    }
    let mut fields = Fields::open(&root, sink);
    server_fields(&mut fields, mode, sink);
    let job_type = job_type(&mut fields, sink);
    let spec = JobSpec {
        name: fields.text("Name", sink),
        namespace: Some(fields.text("Namespace", sink))
            .filter(|name| !name.is_empty())
            .unwrap_or(DEFAULT_NAMESPACE.to_owned()),
        job_type,
        priority: priority(&mut fields, sink),
        count: count(&mut fields, job_type, sink),
        constraints: constraints(&mut fields, sink),
        meta: job_meta(&mut fields, sink),
        labels: fields.text_map("Labels", sink),
        task: only_task(&mut fields, mode, sink),
    };
    fields.close(sink);
    Some(spec)
}

fn server_fields(fields: &mut Fields<'_>, mode: Mode, sink: &mut Sink) {
    for name in SERVER_FIELDS {
        let given = fields.ignore(name);
        if given && mode == Mode::Api {
            sink.warn(format!("job {name} is ignored when submitting a job"));
        } else if given {
            sink.add(
                name,
                format!("field: '{name}' in 'Job' is not allowed"),
                Some("remove it: the owner sets it".to_owned()),
            );
        }
    }
}

/// Unlike other words, a job's type minds its case, as Bacalhau's does.
fn job_type(fields: &mut Fields<'_>, sink: &mut Sink) -> JobType {
    let allowed = || format!("allowed: {}", JobType::WORDS.join(", "));
    let Some(node) = fields.take("Type") else {
        sink.add_broken("Type", "missing job type", Some(allowed()));
        return JobType::Batch;
    };
    let Some(text) = node.text(sink) else { return JobType::Batch };
    let found = JobType::ALL.iter().copied().find(|kind| kind.as_str() == text);
    found.unwrap_or_else(|| {
        let hint = nearest::hint(&text, JobType::WORDS);
        sink.add_broken(&node.path, format!("invalid job type: {}", shown(&text)), Some(hint));
        JobType::Batch
    })
}

fn priority(fields: &mut Fields<'_>, sink: &mut Sink) -> i32 {
    let Some(node) = fields.take("Priority") else { return 0 };
    let Some(number) = node.integer(sink) else { return 0 };
    i32::try_from(number).unwrap_or_else(|_| {
        sink.add_broken(
            &node.path,
            format!("{number} is out of range"),
            Some("allowed: 32-bit integers".to_owned()),
        );
        0
    })
}

fn count(fields: &mut Fields<'_>, job_type: JobType, sink: &mut Sink) -> u32 {
    let everywhere = matches!(job_type, JobType::Ops | JobType::Daemon);
    let given = fields.take("Count").and_then(|node| Some((node.integer(sink)?, node.path)));
    let Some((number, path)) = given else { return u32::from(!everywhere) };
    if number < 0 {
        sink.add_broken(&path, format!("job count must be >= 0, and is {number}"), None);
    } else if everywhere && number > 1 {
        let message = format!("{job_type} jobs cannot specify count > 1 as they run on all matching nodes");
        sink.add_broken(&path, message, None);
    }
    if everywhere { 0 } else { u32::try_from(number.max(0)).unwrap_or(u32::MAX) }
}

fn constraints(fields: &mut Fields<'_>, sink: &mut Sink) -> Vec<Constraint> {
    let Some(node) = fields.take("Constraints") else { return Vec::new() };
    let mut found = Vec::new();
    let parts = node.list(sink);
    if parts.len() > MAX_CONSTRAINTS {
        let message = format!("{} constraints, and at most {MAX_CONSTRAINTS} are allowed", parts.len());
        sink.add_broken(&node.path, message, None);
        return found;
    }
    for part in parts {
        let mut fields = Fields::open(&part, sink);
        let key = fields.text("Key", sink);
        let operator = operator(&mut fields, sink);
        let values = fields.texts("Values", sink);
        fields.close(sink);
        found.push(Constraint { key, operator, values });
    }
    found
}

fn operator(fields: &mut Fields<'_>, sink: &mut Sink) -> Operator {
    let Some(node) = fields.take("Operator") else {
        let path = fields.path_of("Operator");
        if !fields.is_map() {
            return Operator::Exists;
        }
        sink.add_broken(&path, "missing operator", Some(format!("allowed: {}", Operator::WORDS.join(", "))));
        return Operator::Exists;
    };
    match node.value.as_str() {
        Some("==") => Operator::Equals,
        _ => node.word(Operator::from_word, Operator::WORDS, sink).unwrap_or(Operator::Exists),
    }
}

fn job_meta(fields: &mut Fields<'_>, sink: &mut Sink) -> BTreeMap<String, String> {
    let mut meta = fields.text_map("Meta", sink);
    for prefix in SERVER_META {
        if meta.keys().any(|key| key.starts_with(prefix)) {
            meta.retain(|key, _| !key.starts_with(prefix));
            sink.warn(format!("job meta keys that start with {prefix} are ignored when submitting a job"));
        }
    }
    meta
}

fn only_task(fields: &mut Fields<'_>, mode: Mode, sink: &mut Sink) -> Task {
    let given = fields.take("Tasks");
    // Something that is no list was reported as such.
    let is_missing = given.as_ref().is_none_or(|node| node.value.is_array());
    let nodes = given.map(|node| node.list(sink)).unwrap_or_default();
    if nodes.len() > 1 {
        match mode {
            Mode::File => sink.add("Tasks[1]", "only one task is supported per job", None),
            Mode::Api => sink.warn("only one task is supported per job"),
        }
    }
    match nodes.first() {
        Some(node) => task(node, sink),
        None => {
            if is_missing {
                sink.add_broken("Tasks", "missing job tasks", None);
            }
            Task::new(engine::stand_in())
        }
    }
}

fn task(node: &Node<'_>, sink: &mut Sink) -> Task {
    let mut fields = Fields::open(node, sink);
    if !node.value.is_object() {
        return Task::new(engine::stand_in());
    }
    let mut inputs = source::inputs(&mut fields, sink);
    let engine = engine::read(&mut fields, &mut inputs, sink);
    let results = results(&mut fields, sink);
    let publisher = match source::publisher(&mut fields, sink) {
        // A result without a place to go would be lost; a CID is the place that every swarm has.
        Publisher::None if !results.is_empty() => Publisher::Ipfs,
        publisher => publisher,
    };
    let name = fields.text("Name", sink);
    let task = Task {
        name: if name.is_empty() { DEFAULT_TASK_NAME.to_owned() } else { name },
        engine,
        publisher,
        env: fields.text_map("Env", sink),
        meta: fields.text_map("Meta", sink),
        inputs,
        results,
        resources: resources(&mut fields, sink),
        network: network(&mut fields, sink),
        timeouts: timeouts(&mut fields, sink),
        retry: retry(&mut fields, sink),
        keep_on: fields
            .take("KeepOn")
            .and_then(|node| node.word(KeepOn::from_word, KeepOn::WORDS, sink))
            .unwrap_or_default(),
    };
    fields.close(sink);
    task
}

fn results(fields: &mut Fields<'_>, sink: &mut Sink) -> Vec<ResultPath> {
    let mut found = Vec::new();
    for node in fields.take("ResultPaths").map(|node| node.list(sink)).unwrap_or_default() {
        let mut fields = Fields::open(&node, sink);
        let (name, path) = (fields.text("Name", sink), fields.text("Path", sink));
        found.push(ResultPath { name, path: normal_path(&path) });
        fields.close(sink);
    }
    found
}

fn resources(fields: &mut Fields<'_>, sink: &mut Sink) -> Resources {
    let Some(node) = fields.take("Resources") else { return Resources::TASK_DEFAULT };
    let mut fields = Fields::open(&node, sink);
    let size =
        "a number and a unit: kb, mb, gb, tb (powers of 1000) or kib, mib, gib, tib (of 1024), such as 512mb";
    let found = Resources {
        cpu_milli: amount(&mut fields, "CPU", parse_cpu, "thousandths like 500m, or cores like 0.5", sink),
        memory: amount(&mut fields, "Memory", parse_bytes, size, sink),
        disk: amount(&mut fields, "Disk", parse_bytes, size, sink),
        gpu: amount(&mut fields, "GPU", parse_gpu, "a whole number, such as 1", sink),
    };
    fields.close(sink);
    let default = Resources::TASK_DEFAULT;
    Resources {
        cpu_milli: if found.cpu_milli == 0 { default.cpu_milli } else { found.cpu_milli },
        memory: if found.memory == 0 { default.memory } else { found.memory },
        ..found
    }
}

fn amount(
    fields: &mut Fields<'_>,
    name: &'static str,
    parse: fn(&str) -> Option<u64>,
    allowed: &str,
    sink: &mut Sink,
) -> u64 {
    let Some(node) = fields.take(name) else { return 0 };
    let Some(text) = node.amount(sink).filter(|text| !text.trim().is_empty()) else { return 0 };
    let is_more_than_nothing = text.contains(|c: char| matches!(c, '1'..='9'));
    match parse(&text) {
        Some(0) if is_more_than_nothing => {
            let message = format!("{} is less than the smallest amount there is", shown(&text));
            sink.add_broken(&node.path, message, Some(format!("write {allowed}")));
            0
        }
        Some(amount) => amount,
        None => {
            let what = if name.len() == 3 { name.to_owned() } else { name.to_lowercase() };
            let message = format!("invalid {what} value: {}", shown(&text));
            sink.add_broken(&node.path, message, Some(format!("write {allowed}")));
            0
        }
    }
}

fn network(fields: &mut Fields<'_>, sink: &mut Sink) -> Network {
    let Some(node) = fields.take("Network") else { return Network::default() };
    let mut fields = Fields::open(&node, sink);
    let kind = fields.take("Type").and_then(|node| network_type(&node, sink)).unwrap_or_default();
    let domains = fields.texts("Domains", sink).iter().map(|domain| domain.trim().to_lowercase()).collect();
    let ports = fields.take("Ports").map(|node| node.list(sink)).unwrap_or_default();
    let ports = ports.iter().map(|node| port(node, sink)).collect();
    fields.close(sink);
    Network { kind, domains, ports }
}

fn network_type(node: &Node<'_>, sink: &mut Sink) -> Option<NetworkType> {
    match node.value.as_str() {
        Some("") => None,
        Some(word) if word.eq_ignore_ascii_case("full") => Some(NetworkType::Host),
        Some(word) if NetworkType::from_word(word).is_none() => {
            let hint = nearest::hint(word, NetworkType::WORDS);
            sink.add_broken(&node.path, format!("unknown network type {}", shown(word)), Some(hint));
            None
        }
        _ => node.word(NetworkType::from_word, NetworkType::WORDS, sink),
    }
}

fn port(node: &Node<'_>, sink: &mut Sink) -> PortMapping {
    let mut fields = Fields::open(node, sink);
    let port = PortMapping {
        name: fields.text("Name", sink),
        fixed: fields.unsigned("Static", u16::MAX, sink),
        target: fields.unsigned("Target", u16::MAX, sink),
        host_network: fields.text("HostNetwork", sink),
    };
    fields.close(sink);
    port
}

fn timeouts(fields: &mut Fields<'_>, sink: &mut Sink) -> Timeouts {
    let Some(node) = fields.take("Timeouts") else { return Timeouts::default() };
    let mut fields = Fields::open(&node, sink);
    let timeouts = Timeouts {
        execution: timeout(&mut fields, "ExecutionTimeout", "execution", sink),
        queue: timeout(&mut fields, "QueueTimeout", "queue", sink),
        total: timeout(&mut fields, "TotalTimeout", "total", sink),
    };
    fields.close(sink);
    timeouts
}

fn timeout(fields: &mut Fields<'_>, name: &'static str, what: &str, sink: &mut Sink) -> u64 {
    let Some(node) = fields.take(name) else { return 0 };
    let Some(seconds) = node.integer(sink) else { return 0 };
    u64::try_from(seconds).unwrap_or_else(|_| {
        let hint = Some(
            "write seconds, or 0 for the default (QueueTimeout: the node's; the others: no limit)".to_owned(),
        );
        sink.add_broken(&node.path, format!("invalid {what} timeout value: {seconds}s"), hint);
        0
    })
}

fn retry(fields: &mut Fields<'_>, sink: &mut Sink) -> RetryPolicy {
    let Some(node) = fields.take("Retry") else { return RetryPolicy::default() };
    let mut fields = Fields::open(&node, sink);
    let policy = fields
        .take("Policy")
        .and_then(|node| node.word(Retry::from_word, Retry::WORDS, sink))
        .unwrap_or_default();
    let given = fields.take("MaxAttempts").and_then(|node| node.integer(sink));
    fields.close(sink);
    let max_attempts = match given {
        Some(number) => u32::try_from(number).unwrap_or(if number < 0 { 0 } else { u32::MAX }),
        None => RetryPolicy::default().max_attempts,
    };
    // One that never starts twice has one attempt, whatever it says beside that.
    RetryPolicy {
        policy,
        max_attempts: if policy == Retry::Never && max_attempts > 0 { 1 } else { max_attempts },
    }
}
