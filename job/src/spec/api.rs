//! The JSON form of a spec, with the field names of Bacalhau's API.

use serde_json::{Map, Value, json};

use super::{
    DockerEngine, Engine, InputSource, JobSpec, Network, Publisher, Retry, RetryPolicy, S3Partition,
    S3Publisher, S3Source, Source, Task, Timeouts, WasmEngine,
};
use crate::resources::{Resources, show_bytes, show_cpu};

impl JobSpec {
    /// The `Job` of API answers, without the fields that the owner adds (ID, State, Version, Revision, CreateTime,
    /// ModifyTime). [`JobSpec::from_api_value`] reads it back as the same spec.
    pub fn to_api_json(&self) -> Value {
        let constraint = |constraint: &crate::constraint::Constraint| json!({"Key": constraint.key, "Operator": constraint.operator.as_str(), "Values": constraint.values});
        json!({
            "Name": self.name,
            "Namespace": self.namespace,
            "Type": self.job_type.as_str(),
            "Priority": self.priority,
            "Count": self.count,
            "Constraints": self.constraints.iter().map(constraint).collect::<Vec<_>>(),
            "Meta": self.meta,
            "Labels": self.labels,
            "Tasks": [task(&self.task)],
        })
    }
}

/// An object of the given pairs, less those whose value says nothing.
fn object<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    let says_something = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Number(number) => number.as_u64() != Some(0),
        Value::Bool(value) => *value,
    };
    let pairs = pairs.into_iter().filter(|(_, value)| says_something(value));
    Value::Object(pairs.map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}

fn task(task: &Task) -> Value {
    let publisher = publisher(&task.publisher);
    let result = |result: &super::ResultPath| json!({"Name": result.name, "Path": result.path});
    let mut value = object([
        ("Name", json!(task.name)),
        ("Engine", engine(&task.engine)),
        ("Publisher", publisher),
        ("Env", json!(task.env)),
        ("Meta", json!(task.meta)),
        ("InputSources", task.inputs.iter().map(input).collect()),
        ("ResultPaths", task.results.iter().map(result).collect()),
        ("Resources", resources(&task.resources)),
        ("Network", network(&task.network)),
    ]);
    // Clients of Bacalhau expect this one even when it is empty.
    value["Timeouts"] = timeouts(&task.timeouts);
    if task.retry != RetryPolicy::default() {
        value["Retry"] = retry(&task.retry);
    }
    if task.keep_on != super::KeepOn::default() {
        value["KeepOn"] = json!(task.keep_on.as_str());
    }
    value
}

fn engine(engine: &Engine) -> Value {
    let params = match engine {
        Engine::Docker(engine) => docker(engine),
        Engine::Wasm(engine) => wasm(engine),
    };
    json!({"Type": engine.kind(), "Params": params})
}

fn docker(engine: &DockerEngine) -> Value {
    object([
        ("Image", json!(engine.image)),
        ("Entrypoint", json!(engine.entrypoint)),
        ("Parameters", json!(engine.parameters)),
        ("EnvironmentVariables", json!(engine.environment)),
        ("WorkingDirectory", json!(engine.working_directory)),
    ])
}

fn wasm(engine: &WasmEngine) -> Value {
    object([
        ("EntryModule", json!(engine.module)),
        ("Entrypoint", json!(engine.entrypoint)),
        ("Parameters", json!(engine.parameters)),
        ("ImportModules", json!(engine.imports)),
    ])
}

fn input(input: &InputSource) -> Value {
    json!({"Source": source(&input.source), "Alias": input.alias, "Target": input.target})
}

fn source(source: &Source) -> Value {
    let params = match source {
        Source::Inline { url } | Source::UrlDownload { url } => json!({"URL": url}),
        Source::Ipfs(content) => json!({"CID": content.to_string()}),
        Source::S3(s3) => self::s3(s3),
        Source::Local(local) => object([
            ("SourcePath", json!(local.path)),
            ("ReadWrite", json!(local.read_write)),
            ("CreateAs", json!(local.create_as.as_str())),
        ]),
    };
    json!({"Type": source.kind(), "Params": params})
}

fn s3(s3: &S3Source) -> Value {
    let kind = ("Type", json!(s3.partition.kind()));
    let partition = match &s3.partition {
        S3Partition::None => Value::Null,
        S3Partition::Object => object([kind]),
        S3Partition::Regex { pattern } => object([kind, ("Pattern", json!(pattern))]),
        S3Partition::Substring { start, end } => {
            object([kind, ("StartIndex", json!(start)), ("EndIndex", json!(end))])
        }
        S3Partition::Date { format } => object([kind, ("DateFormat", json!(format))]),
    };
    object([
        ("Bucket", json!(s3.bucket)),
        ("Key", json!(s3.key)),
        ("Filter", json!(s3.filter)),
        ("Region", json!(s3.region)),
        ("Endpoint", json!(s3.endpoint)),
        ("VersionID", json!(s3.version_id)),
        ("ChecksumSHA256", json!(s3.checksum_sha256)),
        ("Partition", partition),
    ])
}

fn publisher(publisher: &Publisher) -> Value {
    match publisher {
        Publisher::S3(s3) => json!({"Type": publisher.kind(), "Params": s3_publisher(s3)}),
        _ => json!({"Type": publisher.kind()}),
    }
}

fn s3_publisher(s3: &S3Publisher) -> Value {
    object([
        ("Bucket", json!(s3.bucket)),
        ("Key", json!(s3.key)),
        ("Endpoint", json!(s3.endpoint)),
        ("Region", json!(s3.region)),
        ("Encoding", json!(s3.encoding.as_str())),
    ])
}

fn resources(resources: &Resources) -> Value {
    let given = |amount: u64, text: String| if amount == 0 { Value::Null } else { Value::String(text) };
    object([
        ("CPU", given(resources.cpu_milli, show_cpu(resources.cpu_milli))),
        ("Memory", given(resources.memory, show_bytes(resources.memory))),
        ("Disk", given(resources.disk, show_bytes(resources.disk))),
        ("GPU", given(resources.gpu, resources.gpu.to_string())),
    ])
}

fn network(network: &Network) -> Value {
    let port = |port: &super::PortMapping| {
        object([
            ("Name", json!(port.name)),
            ("Static", json!(port.fixed)),
            ("Target", json!(port.target)),
            ("HostNetwork", json!(port.host_network)),
        ])
    };
    object([
        ("Type", json!(network.kind.as_str())),
        ("Domains", json!(network.domains)),
        ("Ports", network.ports.iter().map(port).collect()),
    ])
}

fn timeouts(timeouts: &Timeouts) -> Value {
    object([
        ("ExecutionTimeout", json!(timeouts.execution)),
        ("QueueTimeout", json!(timeouts.queue)),
        ("TotalTimeout", json!(timeouts.total)),
    ])
}

fn retry(retry: &RetryPolicy) -> Value {
    match retry.policy {
        Retry::Never => json!({"Policy": "never"}),
        Retry::Default => json!({"Policy": "default", "MaxAttempts": retry.max_attempts}),
    }
}
