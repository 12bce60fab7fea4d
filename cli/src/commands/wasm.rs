//! `wasm run`: flags as a job, local files as content.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use job::spec::{
    ContentPath, Engine, InputSource, JobSpec, JobType, KeepOn, Network, NetworkType, Publisher, RetryPolicy,
    Source, Task, Timeouts, WasmEngine,
};
use job::uri::{self, InputFrom};
use job::{Cid, Resources, resources};

use crate::args::Global;
use crate::args::data::Shape;
use crate::args::run::{JobFlags, Target, Task as TaskFlags, Wasm, WasmRun};
use crate::commands::job::print_normalised;
use crate::content;
use crate::failure::{Failure, Outcome, exit};
use crate::run::{self, Plan};
use crate::signals::Signals;
use crate::spec::{self, pair};
use crate::target::{Fallback, Session};

/// Where linked modules go that were named in place.
const IMPORT_TARGET: &str = "/wasm/imports/module_";

/// Stands for local content until it has been added: the CID of no bytes.
const PLACEHOLDER: &str = "bafkqaaa";

/// A local file or folder that becomes content of an input.
#[derive(Debug, PartialEq, Eq)]
struct Upload {
    input: usize,
    path: PathBuf,
}

/// A job put together from flags, complete but for the CIDs of local content.
#[derive(Debug)]
struct Draft {
    spec: JobSpec,
    uploads: Vec<Upload>,
}

/// Runs a verb about WebAssembly.
pub async fn run(global: &Global, verb: &Wasm) -> Outcome {
    let Wasm::Run(flags) = verb;
    let mut signals = Signals::new()?;
    let draft = draft(flags)?;
    spec::check(&draft.spec)?;
    let plan = Plan::new(&flags.waiting, true, &draft.spec);
    let dry = flags.waiting.dry_run;
    if dry && draft.uploads.is_empty() {
        print_normalised(&draft.spec.to_api_json(), flags.waiting.format)?;
        return Ok(exit::DONE);
    }
    let session = signals.or(Session::open(global, Fallback::Embed), run::interrupted_before).await?;
    let (session, spec) = uploaded(session, &draft, dry, &mut signals).await?;
    if dry {
        let printed = print_normalised(&spec.to_api_json(), flags.waiting.format);
        session.close().await?;
        return printed.map(|()| exit::DONE);
    }
    run::submit(session, run::body_of(&spec.to_api_json()), plan, signals).await
}

/// Adds local content, with another node on the data directory when one goes away.
async fn uploaded(
    mut session: Session,
    draft: &Draft,
    only_hash: bool,
    signals: &mut Signals,
) -> Result<(Session, JobSpec), Failure> {
    let mut reopened = 0;
    loop {
        match signals.or(upload(&session, draft, only_hash), run::interrupted_before).await {
            Ok(spec) => return Ok((session, spec)),
            Err(failure) => session = session.recover(failure, &mut reopened).await?,
        }
    }
}

/// Adds local content; with `only_hash` its CIDs are computed and nothing is stored.
async fn upload(session: &Session, draft: &Draft, only_hash: bool) -> Result<JobSpec, Failure> {
    let mut spec = draft.spec.clone();
    for upload in &draft.uploads {
        let added =
            content::add(&session.client, session.notes, &upload.path, &Shape::default(), only_hash).await?;
        let cid = content::parse(content::cid_of(&added)?)?.cid;
        spec = spec.with_input_cid(upload.input, cid);
    }
    Ok(spec)
}

fn draft(flags: &WasmRun) -> Result<Draft, Failure> {
    let mut parts = Parts::default();
    for text in &flags.task.input {
        parts.add_input(text)?;
    }
    let module = parts.add_module(&flags.module, job::spec::ENTRY_MODULE_TARGET.to_owned())?;
    let mut imports = Vec::new();
    for (index, text) in flags.import_modules.iter().enumerate() {
        imports.push(parts.add_module(text, format!("{IMPORT_TARGET}{index}.wasm"))?);
    }
    let engine = Engine::Wasm(WasmEngine {
        module,
        entrypoint: flags.entrypoint.clone(),
        parameters: flags.args.clone(),
        imports,
    });
    let spec = job_of(&flags.job, task_of(&flags.task, engine, parts.inputs)?)?;
    Ok(Draft { spec, uploads: parts.uploads })
}

/// The inputs of a job while it is put together.
#[derive(Default)]
struct Parts {
    inputs: Vec<InputSource>,
    uploads: Vec<Upload>,
}

impl Parts {
    fn add_input(&mut self, text: &str) -> Result<(), Failure> {
        let input = uri::input(text).map_err(refused)?;
        let target = target_of(text, &input);
        let source = match input.from {
            InputFrom::Source(source) => source,
            InputFrom::Path(path) => self.local(&path)?,
        };
        self.inputs.push(InputSource { source, alias: String::new(), target });
        Ok(())
    }

    /// A module: the target of an input, content, or a local file. Its target.
    fn add_module(&mut self, text: &str, target: String) -> Result<String, Failure> {
        if self.inputs.iter().any(|input| input.target == text) {
            return Ok(text.to_owned());
        }
        let source = if text.starts_with("ipfs://") {
            Source::Ipfs(content::parse(text)?)
        } else {
            check_module(text)?;
            self.local(text)?
        };
        self.inputs.push(InputSource { source, alias: String::new(), target: target.clone() });
        Ok(target)
    }

    /// A local path as a source, to be added before the job is submitted.
    fn local(&mut self, path: &str) -> Result<Source, Failure> {
        std::fs::metadata(path).map_err(|error| Failure::local(format!("cannot read {path}"), &error))?;
        self.uploads.push(Upload { input: self.inputs.len(), path: path.into() });
        let cid: Cid = content::parse(PLACEHOLDER)?.cid;
        Ok(Source::Ipfs(ContentPath::root(cid)))
    }
}

/// Where an input goes: a local file that names no target keeps its name.
fn target_of(text: &str, input: &uri::Input) -> String {
    let names_target = text.ends_with(&format!(":{}", uri::DEFAULT_TARGET))
        || text.contains("dst=")
        || text.contains("target=");
    match &input.from {
        InputFrom::Path(path)
            if input.target == uri::DEFAULT_TARGET && !names_target && Path::new(path).is_file() =>
        {
            let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
            format!("{}/{name}", uri::DEFAULT_TARGET)
        }
        _ => input.target.clone(),
    }
}

/// Looks at a module's first bytes, so that what is none is refused here.
fn check_module(path: &str) -> Result<(), Failure> {
    let cannot = |error: &std::io::Error| {
        Failure::local(format!("cannot read the module {path}"), error)
            .hint("MODULE is a file, ipfs://CID, or the target of an --input")
    };
    let mut head = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| cannot(&error))?;
    file.take(64).read_to_end(&mut head).map_err(|error| cannot(&error))?;
    job::wasm_header(&head).map_err(|error| Failure::refused(format!("cannot run {path}: {error}")))
}

fn task_of(flags: &TaskFlags, engine: Engine, inputs: Vec<InputSource>) -> Result<Task, Failure> {
    let mut env = BTreeMap::new();
    for text in &flags.env {
        let (name, value) = uri::env(text).map_err(refused)?;
        env.insert(name, value);
    }
    Ok(Task {
        name: flags.task_name.clone(),
        engine,
        publisher: match flags.publisher.as_deref() {
            Some(text) => uri::publisher(text).map_err(refused)?,
            // As in a file: what a job writes goes somewhere, and a CID is the place that every swarm has.
            None if !flags.output.is_empty() => Publisher::Ipfs,
            None => Publisher::None,
        },
        env,
        meta: BTreeMap::new(),
        inputs,
        results: flags
            .output
            .iter()
            .map(|text| uri::output(text))
            .collect::<Result<_, _>>()
            .map_err(refused)?,
        resources: resources_of(flags)?,
        network: network_of(flags)?,
        timeouts: Timeouts {
            execution: flags.timeout.unwrap_or_default().unsigned_abs(),
            queue: flags.queue_timeout.unwrap_or_default().unsigned_abs(),
            total: 0,
        },
        retry: RetryPolicy::default(),
        keep_on: KeepOn::default(),
    })
}

fn resources_of(flags: &TaskFlags) -> Result<Resources, Failure> {
    let read = |flag: &str, text: &Option<String>, parse: fn(&str) -> Option<u64>, default: u64| match text {
        None => Ok(default),
        Some(text) => {
            parse(text).ok_or_else(|| Failure::refused(format!("--{flag}: invalid value {text:?}")))
        }
    };
    let default = Resources::TASK_DEFAULT;
    Ok(Resources {
        cpu_milli: read("cpu", &flags.cpu, resources::parse_cpu, default.cpu_milli)?,
        memory: read("memory", &flags.memory, resources::parse_bytes, default.memory)?,
        disk: read("disk", &flags.disk, resources::parse_bytes, default.disk)?,
        gpu: read("gpu", &flags.gpu, resources::parse_gpu, default.gpu)?,
    })
}

fn network_of(flags: &TaskFlags) -> Result<Network, Failure> {
    let kind = match &flags.network {
        None if flags.domain.is_empty() => NetworkType::Default,
        None => NetworkType::Http,
        Some(word) => NetworkType::from_word(word).ok_or_else(|| {
            let known = NetworkType::WORDS.join(", ");
            Failure::refused(format!("--network: unknown type {word:?} (known: {known})"))
        })?,
    };
    let domains = flags.domain.iter().map(|domain| domain.trim().to_lowercase()).collect();
    Ok(Network { kind, domains, ports: Vec::new() })
}

fn job_of(flags: &JobFlags, task: Task) -> Result<JobSpec, Failure> {
    let mut constraints = Vec::new();
    for text in &flags.constraints {
        let parsed = job::constraint::parse(text);
        constraints
            .extend(parsed.map_err(|error| Failure::refused(format!("--constraints {text:?}: {error}")))?);
    }
    let mut labels = BTreeMap::new();
    for text in &flags.labels {
        let (key, value) = pair("--labels", text)?;
        labels.insert(key, value);
    }
    let job_type = if flags.target == Target::All { JobType::Ops } else { JobType::Batch };
    if job_type == JobType::Ops && flags.count.is_some_and(|count| count > 1) {
        return Err(Failure::refused(
            "--count and --target all exclude each other: the job runs once on every node",
        ));
    }
    Ok(JobSpec {
        name: flags.name.clone().unwrap_or_default(),
        namespace: flags.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        job_type,
        priority: flags.priority.unwrap_or_default(),
        count: if job_type == JobType::Ops { 0 } else { flags.count.unwrap_or(1) },
        constraints,
        meta: BTreeMap::new(),
        labels,
        task,
    })
}

fn refused(error: impl std::fmt::Display) -> Failure {
    Failure::refused(error.to_string())
}
