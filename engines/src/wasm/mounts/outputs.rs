//! What guests write: watched while they run, taken out of their reach and cleaned up when they have ended.
//!
//! A guest writes into `<output root>/<class>/<execution>/<n>`. WASI knows no quota, and Landlock refuses
//! mounts that a runner was not started with, so no file system of limited size can be given to each
//! execution. Instead sizes are measured while the guest runs, and it is stopped when they are beyond the
//! limit: what it can write beyond is what the disk takes between two measurements. Files that it removed and
//! still holds open are in no directory; those its runner counts. At the end each directory is moved to where
//! the task wants it, where the runner no longer reaches it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, fchmod, openat, statat, unlinkat};
use tracing::warn;

use crate::ended::{DEPTH_MAX, ENTRIES_MAX, Excess};
use crate::removal::remove_tree;
use crate::resources::disk_bytes;
use crate::running::StopReason;
use crate::task::{OutputMount, Task, TrustClass};
use crate::wasm::sys;

/// How long between two measurements, at least.
pub(crate) const MEASURE_EVERY: Duration = Duration::from_millis(100);

/// How long between two measurements, at most.
pub(crate) const MEASURE_WITHIN: Duration = Duration::from_secs(2);

/// What executions leave free of the disk, for the node's own records and for everybody else: below it those are
/// stopped that hold some of it.
const FREE_BYTES: u64 = 256 << 20;

/// Who holds less than this of a full disk is not stopped for it.
const SPARED_BYTES: u64 = 1 << 20;

/// Where guests of one class write.
#[derive(Debug)]
pub(crate) struct OutputRoot {
    path: PathBuf,
    /// The same, as runners of the class reach it.
    root: OwnedFd,
    owner: Option<u32>,
}

impl OutputRoot {
    /// Opens the directory of a class, emptied when the node started.
    pub fn open(root: &Path, class: TrustClass, detached_mounts: bool) -> io::Result<Self> {
        let path = root.join(class.name());
        fs::create_dir_all(&path)?;
        // Others pass through; the directories of executions inside are closed to them.
        fs::set_permissions(&path, Permissions::from_mode(0o711))?;
        let directory = directory(rustix::fs::CWD, &path)?;
        let root = if detached_mounts { sys::detached_mount(directory, true)? } else { directory };
        Ok(OutputRoot { path, root, owner: None })
    }

    /// The user that must be able to write.
    pub fn owned_by(&mut self, owner: Option<u32>) {
        self.owner = owner;
    }

    /// A descriptor for the runner's Landlock rules.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.root.as_fd().try_clone_to_owned()
    }

    /// Makes a task's output directories. Blocks.
    pub fn make(&self, task: &Task) -> io::Result<OutputDirs> {
        let name = task.execution.to_string();
        let path = self.path.join(&name);
        // Fails when it is there: an execution runs once at a time.
        DirBuilder::new().mode(0o700).create(&path)?;
        let mut made =
            OutputDirs { path, owned: self.owner.is_some(), outputs: task.outputs.clone(), open: vec![] };
        for (index, output) in task.outputs.iter().enumerate() {
            let path = made.path.join(index.to_string());
            DirBuilder::new().mode(0o700).create(&path)?;
            if let Some(owner) = self.owner {
                std::os::unix::fs::chown(&path, Some(owner), Some(owner))?;
            }
            let below = Path::new(&name).join(index.to_string());
            made.open.push((output.target.clone(), directory(self.root.as_fd(), &below)?));
        }
        Ok(made)
    }
}

/// The output directories of one execution; what is not handed over is removed with this.
#[derive(Debug)]
pub(crate) struct OutputDirs {
    path: PathBuf,
    /// Whether they belong to another user.
    owned: bool,
    outputs: Vec<OutputMount>,
    open: Vec<(String, OwnedFd)>,
}

impl Drop for OutputDirs {
    fn drop(&mut self) {
        // What stays is removed when the node starts next.
        if let Err(error) = remove_tree(&self.path) {
            warn!(path = %self.path.display(), %error, "the directories of an execution cannot be removed");
        }
    }
}

/// What is in a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub bytes: u64,
    pub entries: u64,
    pub too_deep: bool,
}

impl Tally {
    /// Why an execution is to stop that may leave `output_bytes` and has written this, with `free` bytes left on the
    /// disk.
    fn stop(&self, output_bytes: u64, free: u64) -> Option<StopReason> {
        let full = self.bytes > SPARED_BYTES && free < FREE_BYTES;
        let excess = self.excess(output_bytes).map(StopReason::OutputLimit);
        excess.or(full.then_some(StopReason::DiskFull))
    }

    /// What it is too much of for an execution that may leave `output_bytes`.
    pub fn excess(&self, output_bytes: u64) -> Option<Excess> {
        if self.too_deep {
            Some(Excess::Depth)
        } else if self.entries > ENTRIES_MAX {
            Some(Excess::Entries)
        } else {
            (self.bytes > output_bytes).then_some(Excess::Bytes)
        }
    }
}

impl OutputDirs {
    /// The directories' places in the guest, with descriptors to hand over; once.
    pub fn take_descriptors(&mut self) -> Vec<(String, OwnedFd)> {
        std::mem::take(&mut self.open)
    }

    /// What measures them while the guest runs.
    pub fn gauge(&self) -> Gauge {
        Gauge { path: self.path.clone(), count: self.outputs.len() }
    }

    /// Moves every directory to where the task wants it, and leaves nothing there but plain files,
    /// directories and symbolic links that belong to this node's user. Blocks.
    pub fn hand_over(self) -> io::Result<Tally> {
        let mine = (rustix::process::geteuid(), rustix::process::getegid());
        let mut walk =
            Walk { tally: Tally::default(), clean: Some(Clean { owner: self.owned.then_some(mine) }) };
        for (index, output) in self.outputs.iter().enumerate() {
            if let Some(parent) = output.path.parent() {
                fs::create_dir_all(parent)?;
            }
            // Out of the runner's reach first, so that nothing changes behind the cleaning.
            fs::rename(self.path.join(index.to_string()), &output.path)?;
            let directory = directory(rustix::fs::CWD, &output.path)?;
            if let Some((user, group)) = self.owned.then_some(mine) {
                rustix::fs::fchown(readable(&directory)?, Some(user), Some(group))?;
            }
            fs::set_permissions(&output.path, Permissions::from_mode(0o755))?;
            walk.directory(directory, 0)?;
            if walk.tally.too_deep || walk.tally.entries > ENTRIES_MAX {
                // What was not looked at is not handed over.
                remove_tree(&output.path)?;
                fs::create_dir(&output.path)?;
            }
        }
        Ok(walk.tally)
    }
}

/// Measures the output directories of one execution; nothing once they are handed over.
#[derive(Debug, Clone)]
pub(crate) struct Gauge {
    path: PathBuf,
    count: usize,
}

impl Gauge {
    /// Why the guest is to stop, if it is: for what it has written so far, or for want of room. Blocks.
    pub fn look(&self, output_bytes: u64) -> io::Result<Option<StopReason>> {
        Ok(self.measure()?.stop(output_bytes, disk_bytes(&self.path)?))
    }

    fn measure(&self) -> io::Result<Tally> {
        let mut walk = Walk { tally: Tally::default(), clean: None };
        for index in 0..self.count {
            match directory(rustix::fs::CWD, &self.path.join(index.to_string())) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                directory => walk.directory(directory?, 0)?,
            }
        }
        Ok(walk.tally)
    }
}

/// Goes through a tree by descriptors, following no link.
struct Walk {
    tally: Tally,
    clean: Option<Clean>,
}

struct Clean {
    owner: Option<(Uid, Gid)>,
}

impl Walk {
    fn directory(&mut self, directory: OwnedFd, depth: usize) -> io::Result<()> {
        let directory = readable(&directory)?;
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.tally.entries += 1;
            if self.tally.entries > ENTRIES_MAX {
                return Ok(());
            }
            match self.entry(directory.as_fd(), name, depth) {
                // The guest may have removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, parent: BorrowedFd<'_>, name: &std::ffi::CStr, depth: usize) -> io::Result<()> {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::RegularFile {
            self.tally.bytes = self.tally.bytes.saturating_add(stat.st_size.unsigned_abs());
        }
        let too_deep = kind == FileType::Directory && depth + 1 >= DEPTH_MAX;
        self.tally.too_deep |= too_deep;
        if let Some(clean) = &self.clean {
            let offered = matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink);
            if !offered {
                return Ok(unlinkat(parent, name, AtFlags::empty())?);
            }
            clean.entry(parent, name, kind, stat.st_mode)?;
        }
        if kind == FileType::Directory && !too_deep {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            self.directory(openat(parent, name, flags, Mode::empty())?, depth + 1)?;
        }
        Ok(())
    }
}

impl Clean {
    /// Gives an entry to this node's user, readable and without setuid and the like.
    fn entry(
        &self,
        parent: BorrowedFd<'_>,
        name: &std::ffi::CStr,
        kind: FileType,
        mode: u32,
    ) -> io::Result<()> {
        if let Some((user, group)) = self.owner {
            chownat(parent, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let plain = match kind {
            FileType::Directory => mode & 0o777 | 0o700,
            FileType::RegularFile => mode & 0o777 | 0o600,
            _ => return Ok(()),
        };
        if plain != mode & 0o7777 {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            fchmod(openat(parent, name, flags, Mode::empty())?, Mode::from_raw_mode(plain))?;
        }
        Ok(())
    }
}

/// Opens a directory by path, following no link at its end.
fn directory(below: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(below, path, flags, Mode::empty())?)
}

/// The same directory, to be read.
fn readable(directory: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(openat(directory, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn dirs(dir: &Path) -> OutputDirs {
        let path = dir.join("live");
        fs::create_dir_all(path.join("0")).unwrap();
        let output = OutputMount { name: "r".into(), path: dir.join("results/r"), target: "/out".into() };
        OutputDirs { path, owned: false, outputs: vec![output], open: vec![] }
    }

    #[test]
    fn only_plain_files_directories_and_links_are_handed_over() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs(dir.path());
        let live = dirs.path.join("0");
        fs::create_dir(live.join("sub")).unwrap();
        fs::write(live.join("sub/file"), b"12345").unwrap();
        fs::set_permissions(live.join("sub/file"), Permissions::from_mode(0o6755)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", live.join("link")).unwrap();
        let pipe = rustix::fs::mknodat(
            rustix::fs::CWD,
            live.join("pipe"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        );
        pipe.unwrap();
        let tally = dirs.hand_over().unwrap();
        assert_eq!((tally.bytes, tally.entries), (5, 4));
        let results = dir.path().join("results/r");
        assert_eq!(fs::read(results.join("sub/file")).unwrap(), b"12345");
        assert_eq!(fs::metadata(results.join("sub/file")).unwrap().mode() & 0o7777, 0o755);
        assert!(fs::symlink_metadata(results.join("link")).unwrap().is_symlink());
        assert!(!results.join("pipe").exists());
        assert!(!dir.path().join("live").exists());
    }

    #[test]
    fn sizes_counts_and_depths_are_measured() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = dirs(dir.path());
        let live = dirs.path.join("0");
        fs::write(live.join("a"), [0; 100]).unwrap();
        let tally = dirs.gauge().measure().unwrap();
        assert_eq!(tally, Tally { bytes: 100, entries: 1, too_deep: false });
        assert_eq!((tally.excess(100), tally.excess(99)), (None, Some(Excess::Bytes)));
        fs::create_dir_all(live.join("d/".repeat(DEPTH_MAX + 1))).unwrap();
        assert_eq!(
            dirs.gauge().look(1 << 30).unwrap(),
            Some(StopReason::OutputLimit(Excess::Depth)),
            "the size is within its limit"
        );
        let tally = dirs.hand_over().unwrap();
        assert_eq!(tally.excess(1 << 30), Some(Excess::Depth));
        let results = dir.path().join("results/r");
        assert_eq!(fs::read_dir(results).unwrap().count(), 0, "what was not looked at is not handed over");
    }

    #[test]
    fn who_holds_some_of_a_disk_that_is_nearly_full_is_stopped() {
        let holding = |bytes| Tally { bytes, ..Tally::default() };
        assert_eq!(holding(SPARED_BYTES + 1).stop(u64::MAX, FREE_BYTES - 1), Some(StopReason::DiskFull));
        assert_eq!(holding(SPARED_BYTES + 1).stop(u64::MAX, FREE_BYTES), None);
        assert_eq!(holding(SPARED_BYTES).stop(u64::MAX, 0), None, "it would free next to nothing");
        let excess = Some(StopReason::OutputLimit(Excess::Bytes));
        assert_eq!(holding(2 << 20).stop(1 << 20, 0), excess, "its own fault comes first");
    }
}
