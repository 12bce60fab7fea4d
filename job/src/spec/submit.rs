//! From text to a spec that its owner can run.

use cid::Cid;
use serde_json::Value;

use super::error::Sink;
use super::read::{self, Mode};
use super::{ContentPath, Engine, JobSpec, JobType, NetworkType, Publisher, Source, SpecErrors, validate};
use crate::inline;
use crate::text::{self, Document, join_key};

/// Values with this prefix ask for a variable of the worker, which no worker gives away yet.
const FORWARDED: &str = "env:";

/// An input whose bytes are in the spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineInput {
    /// Its index among the task's inputs.
    pub index: usize,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether they are a tar.gz to unpack into a folder rather than one file.
    pub is_gzip_tar: bool,
}

impl JobSpec {
    /// Reads a user's file, YAML or JSON.
    pub fn from_text(bytes: &[u8]) -> Result<Self, SpecErrors> {
        let document = text::parse(bytes)?;
        Self::from_document(&document, Mode::File).map(|(spec, _)| spec)
    }

    /// Reads a document; also gives warnings about what was ignored. Errors carry places in the text.
    pub fn from_document(document: &Document, mode: Mode) -> Result<(Self, Vec<String>), SpecErrors> {
        read_and_check(&document.value, mode, Some(document))
    }

    /// Reads the `Job` of an API body; also gives warnings about what was ignored.
    pub fn from_api_value(value: &Value) -> Result<(Self, Vec<String>), SpecErrors> {
        read_and_check(value, Mode::Api, None)
    }

    /// What of this valid spec this version cannot run yet; the submit path refuses it.
    pub fn supported(&self) -> Result<(), SpecErrors> {
        let mut sink = Sink::default();
        let mut refuse = |path: &str, what: String, instead: &str| {
            sink.add(
                path,
                format!("this version cannot run {what} yet"),
                Some(format!("supported: {instead}")),
            );
        };
        if self.job_type != JobType::Batch {
            refuse("Type", format!("{} jobs", self.job_type), "batch");
        }
        let task = &self.task;
        match &task.engine {
            Engine::Docker(_) => refuse("Tasks[0].Engine.Type", "the docker engine".to_owned(), "wasm"),
            Engine::Wasm(wasm) if !wasm.imports.is_empty() => {
                let path = "Tasks[0].Engine.Params.ImportModules";
                refuse(
                    path,
                    "modules that import other modules".to_owned(),
                    "one module that holds all it needs",
                );
            }
            Engine::Wasm(_) => {}
        }
        for (index, input) in task.inputs.iter().enumerate() {
            if !matches!(input.source, Source::Ipfs(_) | Source::Inline { .. }) {
                let path = format!("Tasks[0].InputSources[{index}].Source.Type");
                refuse(&path, format!("{} sources", input.source.kind()), "ipfs, inline");
            }
        }
        if !matches!(task.publisher, Publisher::None | Publisher::Ipfs | Publisher::Local | Publisher::Noop) {
            refuse(
                "Tasks[0].Publisher.Type",
                format!("the {} publisher", task.publisher.kind()),
                "ipfs, local, noop",
            );
        }
        if !matches!(task.network.kind, NetworkType::Default | NetworkType::None) {
            refuse("Tasks[0].Network.Type", format!("{} networks", task.network.kind), "None");
        }
        for key in task.env.iter().filter(|(_, value)| value.starts_with(FORWARDED)).map(|(key, _)| key) {
            refuse(
                &join_key("Tasks[0].Env", key),
                "with variables of its worker's own".to_owned(),
                "plain values",
            );
        }
        sink.finish((), None).map(|_| ())
    }

    /// The inputs whose bytes are in the spec, for the owner to add as content.
    pub fn inline_inputs(&self) -> Vec<InlineInput> {
        let decode = |(index, input): (usize, &super::InputSource)| {
            let Source::Inline { url } = &input.source else { return None };
            // Broken URLs are not in valid specs.
            let inline = inline::decode(url).ok()?;
            Some(InlineInput { index, bytes: inline.bytes, is_gzip_tar: inline.is_gzip_tar })
        };
        self.task.inputs.iter().enumerate().filter_map(decode).collect()
    }

    /// The same spec with one input named by CID instead of whatever it was. An index that is none changes nothing.
    pub fn with_input_cid(mut self, index: usize, cid: Cid) -> Self {
        if let Some(input) = self.task.inputs.get_mut(index) {
            input.source = Source::Ipfs(ContentPath::root(cid));
        }
        self
    }
}

fn read_and_check(
    value: &Value,
    mode: Mode,
    document: Option<&Document>,
) -> Result<(JobSpec, Vec<String>), SpecErrors> {
    let mut sink = Sink::default();
    let spec = read::job(value, mode, &mut sink);
    if let Some(spec) = &spec {
        let mut checked = Sink::default();
        validate::check(spec, &mut checked);
        sink.merge(checked);
    }
    let (spec, warnings) = sink.finish(spec, document)?;
    let spec = spec.expect("a value that is no map was reported");
    Ok((spec, warnings))
}
