//! Engines and their parameters.

use super::error::{Sink, shown};
use super::fields::{Fields, Node};
use super::place::normal_path;
use super::{DEFAULT_ENTRYPOINT, DockerEngine, ENTRY_MODULE_TARGET, Engine, InputSource, WasmEngine, source};
use crate::nearest;

/// Reads `Engine`. Modules that are named in place become inputs.
pub(super) fn read(fields: &mut Fields<'_>, inputs: &mut Vec<InputSource>, sink: &mut Sink) -> Engine {
    let Some(node) = fields.take("Engine") else {
        let path = fields.path_of("Engine");
        sink.add_broken(&path, "invalid engine: nil spec config", Some("write Type and Params".to_owned()));
        return stand_in();
    };
    let mut fields = Fields::open(&node, sink);
    if !node.value.is_object() {
        return stand_in();
    }
    let kind = kind(&mut fields, sink);
    let params = fields.take("Params");
    fields.close(sink);
    match kind.as_deref() {
        Some("docker") => Engine::Docker(docker(params, &node.path, sink)),
        Some("wasm") => Engine::Wasm(wasm(params, &node.path, inputs, sink)),
        _ => stand_in(),
    }
}

/// An engine that no check objects to.
pub(super) fn stand_in() -> Engine {
    Engine::Docker(DockerEngine { image: "none".to_owned(), ..DockerEngine::default() })
}

fn kind(fields: &mut Fields<'_>, sink: &mut Sink) -> Option<String> {
    let given = fields.take("Type");
    let text = match &given {
        Some(node) => node.text(sink)?,
        None => String::new(),
    };
    let word = text.to_lowercase();
    if Engine::WORDS.contains(&word.as_str()) {
        return Some(word);
    }
    let message = match text.as_str() {
        "" => "invalid engine: missing spec type".to_owned(),
        text => format!("unknown engine {}", shown(text)),
    };
    sink.add_broken(&fields.path_of("Type"), message, Some(nearest::hint(&text, Engine::WORDS)));
    None
}

fn docker(params: Option<Node<'_>>, path: &str, sink: &mut Sink) -> DockerEngine {
    let Some(node) = params else {
        sink.add_broken(&format!("{path}.Params"), "invalid docker engine params. cannot be nil", None);
        return DockerEngine::default();
    };
    let mut fields = Fields::open(&node, sink);
    let engine = DockerEngine {
        image: fields.text("Image", sink),
        entrypoint: fields.texts("Entrypoint", sink),
        parameters: fields.texts("Parameters", sink),
        environment: fields.texts("EnvironmentVariables", sink),
        working_directory: Some(fields.text("WorkingDirectory", sink)).filter(|path| !path.is_empty()),
    };
    fields.close(sink);
    engine
}

fn wasm(params: Option<Node<'_>>, path: &str, inputs: &mut Vec<InputSource>, sink: &mut Sink) -> WasmEngine {
    let Some(node) = params else {
        sink.add_broken(&format!("{path}.Params"), "invalid wasm engine params. cannot be nil", None);
        return WasmEngine::default();
    };
    let mut fields = Fields::open(&node, sink);
    let module = fields.take("EntryModule");
    let module = module.map(|node| module_target(&node, ENTRY_MODULE_TARGET, "entry module", inputs, sink));
    let entrypoint = Some(fields.text("Entrypoint", sink)).filter(|name| !name.is_empty());
    let parameters = fields.texts("Parameters", sink);
    let mut imports = Vec::new();
    for (index, node) in
        fields.take("ImportModules").map(|node| node.list(sink)).unwrap_or_default().iter().enumerate()
    {
        let target = format!("/wasm/imports/module_{index}.wasm");
        imports.push(module_target(node, &target, "import module", inputs, sink));
    }
    fields.close(sink);
    WasmEngine {
        module: module.unwrap_or_default(),
        entrypoint: entrypoint.unwrap_or_else(|| DEFAULT_ENTRYPOINT.to_owned()),
        parameters,
        imports,
    }
}

/// The target of a module, which is named in one of three ways: by the target of an input, as content, or (as
/// old versions of Bacalhau had it) as an input of its own.
fn module_target(
    node: &Node<'_>,
    default_target: &str,
    what: &str,
    inputs: &mut Vec<InputSource>,
    sink: &mut Sink,
) -> String {
    let input = if node.value.is_object() {
        let mut input = source::input(node, true, sink);
        if input.target.is_empty() {
            input.target = default_target.to_owned();
        }
        input
    } else {
        let Some(text) = node.text(sink) else { return String::new() };
        if !text.starts_with("ipfs://") {
            return normal_path(&text);
        }
        match text.parse() {
            Ok(content) => InputSource {
                source: super::Source::Ipfs(content),
                alias: String::new(),
                target: default_target.to_owned(),
            },
            Err(error) => {
                sink.add_broken(&node.path, format!("invalid {what}: {error}"), None);
                return String::new();
            }
        }
    };
    let target = input.target.clone();
    if inputs.iter().any(|other| other.target == target) {
        sink.add_broken(
            &node.path,
            format!("input source with target {} already exists", shown(&target)),
            None,
        );
    } else {
        inputs.push(input);
    }
    target
}
