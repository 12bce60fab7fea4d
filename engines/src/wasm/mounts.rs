//! The directories of executions: which targets make sense, inputs that are shown to guests, outputs that
//! are taken from them.

pub(super) mod inputs;
pub(super) mod outputs;

use std::path::{Component, Path};

use super::wire::MOUNTS_MAX;
use crate::task::Task;

/// Says what is wrong with a task's targets, as far as can be told without looking at the disk. A fault of
/// the job.
pub(super) fn check_targets(task: &Task) -> Result<(), String> {
    if task.inputs.len() + task.outputs.len() > MOUNTS_MAX {
        return Err(format!("it has more than {MOUNTS_MAX} inputs and results"));
    }
    let inputs = task.inputs.iter().map(|input| &input.target);
    let outputs = task.outputs.iter().map(|output| &output.target);
    let mut seen: Vec<&Path> = Vec::new();
    for target in inputs.chain(outputs) {
        let path = Path::new(target);
        let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(plain) || target.contains('\0') {
            return Err(format!("the target {target:?} is not an absolute path without . and .."));
        }
        if seen.contains(&path) {
            return Err(format!("the target {target:?} is there twice"));
        }
        seen.push(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{InputMount, Limits, ModuleSource, TaskKind, TrustClass};

    fn task(targets: &[&str]) -> Task {
        let module = ModuleSource { cid: job::Cid::default(), path: "/nowhere".into() };
        let input = |target: &&str| InputMount { path: "/nowhere".into(), target: (*target).into() };
        Task {
            execution: job::ExecutionId([0; 16]),
            class: TrustClass::Own,
            kind: TaskKind::Wasm { module, entrypoint: "_start".into(), args: vec![] },
            env: vec![],
            inputs: targets.iter().map(input).collect(),
            outputs: vec![],
            limits: Limits::default(),
            work_dir: "/nowhere".into(),
        }
    }

    #[test]
    fn targets_are_absolute_plain_and_different() {
        assert_eq!(check_targets(&task(&["/in/data.txt", "/in/more", "/"])), Ok(()));
        for bad in [&["in"][..], &["/in/../x"], &[""], &["/a", "/a/"], &["/a\0"]] {
            assert!(check_targets(&task(bad)).is_err(), "{bad:?}");
        }
        assert!(check_targets(&task(&["/a"; MOUNTS_MAX + 1])).is_err());
    }
}
