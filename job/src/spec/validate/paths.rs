//! Where a task finds its inputs and leaves its results.

use std::collections::BTreeMap;

use crate::inline;
use crate::spec::error::{Sink, shown};
use crate::spec::place::normal_path;
use crate::spec::{Engine, InputSource, Source, Task};

/// Longest path inside a task. All paths of a task travel to its runner in one message.
const MAX_PATH_BYTES: usize = 1024;

/// Longest part of a path: no file system takes longer names.
const MAX_PART_BYTES: usize = 255;

/// Inputs that are no modules, and results, of a WASM guest: each is a folder that is handed to its runner.
const MAX_WASM_FOLDERS: usize = 32;

/// The codec of a CID that can only name a file.
const RAW: u64 = 0x55;

/// Adds what is wrong with the targets of inputs and the paths of results.
pub(super) fn check(task: &Task, sink: &mut Sink) {
    // A module's target may be a mere name; where none is the module, that is what is wrong.
    let has_module = task.module_input().is_some();
    let mut targets = BTreeMap::new();
    for (index, input) in task.inputs.iter().enumerate() {
        let at = format!("Tasks[0].InputSources[{index}].Target");
        let target = &input.target;
        if target.is_empty() {
            sink.add(&at, "input source is missing a target", None);
        } else if targets.contains_key(&normal_path(target)) {
            sink.add(&at, format!("input source with target {} already exists", shown(target)), None);
        } else if let Some(error) = misplaced(target) {
            sink.add(&at, error, None);
        } else if has_module && !target.starts_with('/') && !task.is_module(target) {
            let hint = format!("write {}", shown(&format!("/{target}")));
            let message = format!("the target {} must be an absolute path", shown(target));
            sink.add(&at, message, Some(hint));
        }
        targets.insert(normal_path(target), index);
    }
    let mut results = BTreeMap::new();
    for (index, result) in task.results.iter().enumerate() {
        let at = format!("Tasks[0].ResultPaths[{index}].Path");
        let path = &result.path;
        if path.is_empty() {
            sink.add(&at, "invalid output: missing path", None);
        } else if !path.starts_with('/') {
            sink.add(&at, format!("result path {} must be absolute", shown(path)), None);
        } else if results.contains_key(&normal_path(path)) {
            sink.add(&at, format!("result path {} already exists", shown(path)), None);
        } else if let Some(error) = misplaced(path) {
            sink.add(&at, error, None);
        } else if targets.contains_key(&normal_path(path)) {
            sink.add(&at, format!("result path {} is the target of an input", shown(path)), None);
        }
        results.insert(normal_path(path), index);
    }
    if let Engine::Wasm(_) = task.engine {
        folders(task, &results, sink);
    }
}

/// A guest is shown folders: the files of one folder make it up, so it can be nothing else.
fn folders(task: &Task, results: &BTreeMap<String, usize>, sink: &mut Sink) {
    let mounted: Vec<(usize, &InputSource)> =
        task.inputs.iter().enumerate().filter(|(_, input)| !task.is_module(&input.target)).collect();
    let count = mounted.len() + task.results.len();
    if count > MAX_WASM_FOLDERS {
        let message = format!(
            "{count} inputs and results beside the module, and a WASM task can have at most {MAX_WASM_FOLDERS}"
        );
        let hint = "put files into one folder, add that, and name it by its CID".to_owned();
        sink.add("Tasks[0].InputSources", message, Some(hint));
    }
    for (index, input) in mounted.iter().filter(|(_, input)| is_surely_a_file(&input.source)) {
        let target = normal_path(&input.target);
        let Some((parent, _)) = target.rsplit_once('/').filter(|(parent, _)| !parent.is_empty()) else {
            continue;
        };
        let is_target = mounted.iter().any(|(_, other)| normal_path(&other.target) == parent);
        if is_target || results.contains_key(parent) {
            let what = if is_target { "the target of another input" } else { "a result path" };
            let message = format!("the file {} lies in {}, which is {what}", shown(&target), shown(parent));
            let hint = "give it a folder of its own".to_owned();
            sink.add(&format!("Tasks[0].InputSources[{index}].Target"), message, Some(hint));
        }
    }
}

fn is_surely_a_file(source: &Source) -> bool {
    match source {
        Source::Ipfs(content) => content.path.is_empty() && content.cid.codec() == RAW,
        Source::Inline { url } => inline::decode(url).is_ok_and(|inline| !inline.is_gzip_tar),
        _ => false,
    }
}

/// Why a path cannot be one inside a task.
fn misplaced(path: &str) -> Option<String> {
    let parts = || path.split('/');
    if path.contains('\0') || parts().any(|part| matches!(part, "." | "..")) || parts().all(str::is_empty) {
        return Some(format!(
            "{} is not a path inside the task (no `.` or `..` parts, not the root itself)",
            shown(path)
        ));
    }
    if path.len() > MAX_PATH_BYTES {
        return Some(format!("a path of {} bytes, and at most {MAX_PATH_BYTES} are allowed", path.len()));
    }
    let longest = parts().map(str::len).max().unwrap_or(0);
    (longest > MAX_PART_BYTES).then(|| {
        format!("a path with a part of {longest} bytes, and no file's name is longer than {MAX_PART_BYTES}")
    })
}
