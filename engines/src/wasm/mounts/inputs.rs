//! Inputs as guests see them: read-only directories, opened once and shared by all executions with the same
//! inputs.
//!
//! WASI shows directories, not files. A directory is shown as it is; files that share a parent are linked
//! into a directory of their own, which is shown as that parent. With detached mounts a runner can reach
//! nothing but what it was handed, whatever has become of it; without, Landlock confines it to the input
//! root.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, open};

use crate::engine::StartError;
use crate::task::Task;
use crate::wasm::sys;

/// Directories that are kept open for the next execution with the same inputs.
const STAGED_MAX: usize = 64;

/// One directory that a guest is shown.
#[derive(Debug)]
pub(crate) struct Staged {
    directory: OwnedFd,
    /// Made for these files, and removed with this.
    made: Option<PathBuf>,
}

impl Staged {
    /// A descriptor to hand over.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.directory.as_fd().try_clone_to_owned()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(made) = &self.made {
            // What stays is removed when the node starts next.
            let _ = fs::remove_dir_all(made);
        }
    }
}

/// What a directory shows: the identity of what it is or holds. A path alone would not do: what is there
/// may be removed and replaced.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Directory(Identity),
    Files(Vec<(String, Identity)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    device: u64,
    inode: u64,
    size: i64,
    /// Not the time of the last change of its status: linking the file is such a change.
    modified: (i64, i64),
}

impl Identity {
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
    fn of(stat: &Stat) -> Self {
        let modified = (stat.st_mtime as i64, stat.st_mtime_nsec as i64);
        Identity {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            size: stat.st_size as i64,
            modified,
        }
    }
}

/// Shows inputs to guests.
#[derive(Debug)]
pub(crate) struct Inputs {
    root: PathBuf,
    staging: PathBuf,
    next: AtomicU64,
    staged: Mutex<HashMap<Key, (Instant, Arc<Staged>)>>,
}

/// How runners will look at inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    /// Through detached mounts.
    pub detached_mounts: bool,
    /// As a user that only reads what everybody may.
    pub other_user: bool,
}

struct File {
    name: String,
    path: PathBuf,
    stat: Stat,
}

impl Inputs {
    /// Removes what an earlier node staged.
    pub fn open(root: &Path) -> io::Result<Self> {
        let staging = root.join(".staged");
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(&staging)?;
        Ok(Inputs { root: root.to_owned(), staging, next: AtomicU64::new(0), staged: Mutex::default() })
    }

    /// The directories to show, each with its place in the guest. Blocks.
    pub fn stage(&self, task: &Task, view: View) -> Result<Vec<(String, Arc<Staged>)>, StartError> {
        let mut shown = Vec::new();
        let mut files: BTreeMap<String, Vec<File>> = BTreeMap::new();
        for input in &task.inputs {
            let opened = self.look(&input.path)?;
            let (directory, stat) = opened;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let key = Key::Directory(Identity::of(&stat));
                    let staged = self.get_or(key, || self.directory(directory, &stat, view))?;
                    shown.push((input.target.clone(), staged));
                }
                FileType::RegularFile => {
                    let (parent, name) = split(&input.target)?;
                    files.entry(parent).or_default().push(File { name, path: input.path.clone(), stat });
                }
                _ => return Err(StartError::Node(format!("the input {} is no file", input.target))),
            }
        }
        for (parent, files) in files {
            if shown.iter().any(|(target, _)| Path::new(target) == Path::new(&parent))
                || task.outputs.iter().any(|output| Path::new(&output.target) == Path::new(&parent))
            {
                return Err(StartError::Job(format!(
                    "its files in {parent} lie in a directory that is itself a target"
                )));
            }
            let key = files.iter().map(|file| (file.name.clone(), Identity::of(&file.stat))).collect();
            let staged = self.get_or(Key::Files(key), || self.files(&files, view))?;
            shown.push((parent, staged));
        }
        Ok(shown)
    }

    /// Closes what no execution has used for as long as this.
    pub fn sweep(&self, idle: Duration) {
        let dropped: Vec<_> = {
            let mut staged = self.staged();
            let old =
                |(used, one): &(Instant, Arc<Staged>)| used.elapsed() >= idle && Arc::strong_count(one) == 1;
            let keys: Vec<Key> =
                staged.iter().filter(|(_, one)| old(one)).map(|(key, _)| key.clone()).collect();
            keys.iter().filter_map(|key| staged.remove(key)).collect()
        };
        // Removing files takes its time; not under the lock.
        drop(dropped);
    }

    /// Forgets everything: runners look at inputs another way from now on.
    pub fn forget(&self) {
        let dropped = std::mem::take(&mut *self.staged());
        drop(dropped);
    }

    fn look(&self, path: &Path) -> Result<(OwnedFd, Stat), StartError> {
        let fault =
            |why: String| StartError::Node(format!("cannot open the input {}: {why}", path.display()));
        if !path.starts_with(&self.root) {
            return Err(fault("it is not below the input root".into()));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = open(path, flags, Mode::empty()).and_then(|fd| fstat(&fd).map(|stat| (fd, stat)));
        opened.map_err(|error| fault(error.to_string()))
    }

    fn get_or(&self, key: Key, make: impl FnOnce() -> io::Result<Staged>) -> Result<Arc<Staged>, StartError> {
        if let Some((used, staged)) = self.staged().get_mut(&key) {
            *used = Instant::now();
            return Ok(Arc::clone(staged));
        }
        let made = make().map_err(|error| StartError::Node(format!("cannot show an input: {error}")))?;
        let made = Arc::new(made);
        let mut staged = self.staged();
        let evicted = (staged.len() >= STAGED_MAX)
            .then(|| {
                let idle = staged.iter().filter(|(_, (_, one))| Arc::strong_count(one) == 1);
                let oldest = idle.min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
                oldest.and_then(|key| staged.remove(&key))
            })
            .flatten();
        // Where all are in use the new one is not kept: executions, not this map, bound their number.
        if staged.len() < STAGED_MAX {
            staged.insert(key, (Instant::now(), Arc::clone(&made)));
        }
        drop(staged);
        drop(evicted);
        Ok(made)
    }

    fn directory(&self, directory: OwnedFd, stat: &Stat, view: View) -> io::Result<Staged> {
        if view.other_user && stat.st_mode & 0o005 != 0o005 {
            return Err(io::Error::other("runners have a user of their own, who may not read it"));
        }
        Ok(Staged { directory: shown(directory, view)?, made: None })
    }

    fn files(&self, files: &[File], view: View) -> io::Result<Staged> {
        let made = self.staging.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&made)?;
        let staged = self.fill(&made, files, view).and_then(|()| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            shown(open(&made, flags, Mode::empty())?, view)
        });
        match staged {
            Ok(directory) => Ok(Staged { directory, made: Some(made) }),
            Err(error) => {
                let _ = fs::remove_dir_all(&made);
                Err(error)
            }
        }
    }

    fn fill(&self, made: &Path, files: &[File], view: View) -> io::Result<()> {
        for file in files {
            let link = made.join(&file.name);
            let readable = !view.other_user || file.stat.st_mode & 0o004 != 0;
            if !readable || fs::hard_link(&file.path, &link).is_err() {
                fs::copy(&file.path, &link)?;
                fs::set_permissions(&link, Permissions::from_mode(0o444))?;
            }
        }
        fs::set_permissions(made, Permissions::from_mode(0o755))
    }

    fn staged(&self) -> MutexGuard<'_, HashMap<Key, (Instant, Arc<Staged>)>> {
        self.staged.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn shown(directory: OwnedFd, view: View) -> io::Result<OwnedFd> {
    if view.detached_mounts { sys::detached_mount(directory, false) } else { Ok(directory) }
}

/// A file's parent and its name.
fn split(target: &str) -> Result<(String, String), StartError> {
    let path = Path::new(target);
    let parts = path.parent().and_then(Path::to_str).zip(path.file_name().and_then(|name| name.to_str()));
    let (parent, name) =
        parts.ok_or_else(|| StartError::Job(format!("the target {target:?} of a file does not name one")))?;
    Ok((parent.to_owned(), name.to_owned()))
}
