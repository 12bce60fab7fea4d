//! Landlock: files, network and other processes.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Roots;

/// The newest interface whose rights are asked for; older kernels give what they have.
const NEWEST: ABI = ABI::V7;

/// Everything that Landlock rules is forbidden, but for the roots. Whether the kernel enforces it.
///
/// Rules name directories by inode, not mounts made later. So when inputs come as detached mounts, made one
/// by one and showing nothing else, reading is not ruled here: the root is empty, and there is nothing to
/// read but what was handed over.
pub(super) fn enter(roots: &Roots<'_>, reading_is_confined: bool) -> Result<bool, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let all = AccessFs::from_all(NEWEST);
    let handled = if reading_is_confined { all & !read } else { all };
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(handled)?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    if let Some(input) = roots.input.filter(|_| !reading_is_confined) {
        ruleset = ruleset.add_rule(PathBeneath::new(input, read))?;
    }
    if let Some(output) = roots.output {
        ruleset = ruleset.add_rule(PathBeneath::new(output, handled & writing()))?;
    }
    Ok(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

/// What a guest may do in its output directories. Devices, sockets and pipes are no results, and nothing is
/// executed. Without `Refer` every rename between directories would be refused.
fn writing() -> BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::MakeSym
        | AccessFs::Refer
        | AccessFs::Truncate
}

/// Whether this kernel has Landlock; restricts nothing.
pub(crate) fn available() -> bool {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Execute)
        .and_then(Ruleset::create);
    ruleset.is_ok()
}
