//! Content as files on disk, to be mounted: made once, shared, read-only.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cid::Cid;

use super::files::lock;
use super::index::Container;
use super::shared::Shared;
use super::{Guard, StoreError};
use crate::block::BlockError;
use crate::read::Limits;
use crate::read::tree::{self, Entry, Visit};

/// A read-only path that holds some content. It stays for as long as this lives.
#[derive(Debug, Clone)]
pub struct Checkout {
    path: PathBuf,
    guard: Arc<Guard>,
}

impl Checkout {
    /// The file or directory. Nobody may write to it: it is shared with the store itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is.
    pub fn cid(&self) -> Cid {
        self.guard.cid()
    }
}

/// Makes content that is here available as a path.
pub(super) fn checkout(shared: &Arc<Shared>, guard: Guard) -> Result<Checkout, StoreError> {
    let cid = guard.cid();
    let guard = Arc::new(guard);
    shared.commits.touch(&cid);
    if let Some((id, Container::Flat { .. })) = shared.index.flat(&cid)? {
        return Ok(Checkout { path: shared.files.path(id), guard });
    }
    let path = root(shared).join(cid.to_string());
    let _one_at_a_time = lock(&shared.checkouts);
    if !path.try_exists().map_err(StoreError::io("look at", &path))? {
        materialise(shared, cid, &path)?;
    }
    Ok(Checkout { path, guard })
}

/// Removes what an interrupted checkout left.
pub(super) fn clean(shared: &Shared) -> Result<(), StoreError> {
    let root = root(shared);
    fs::create_dir_all(&root).map_err(StoreError::io("create", &root))?;
    for entry in fs::read_dir(&root).map_err(StoreError::io("list", &root))? {
        let path = entry.map_err(StoreError::io("list", &root))?.path();
        if path.extension().is_some_and(|extension| extension == "tmp") {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

/// Removes checkouts of content that nobody holds and that collecting garbage did not mark.
pub(super) fn remove_unused(shared: &Shared) -> Result<(), StoreError> {
    let root = root(shared);
    let _one_at_a_time = lock(&shared.checkouts);
    for entry in fs::read_dir(&root).map_err(StoreError::io("list", &root))? {
        let path = entry.map_err(StoreError::io("list", &root))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).map(Cid::try_from);
        let is_held =
            matches!(name, Some(Ok(cid)) if shared.live.is_guarded(&cid) || is_marked(shared, &cid));
        if !is_held {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

fn is_marked(shared: &Shared, cid: &Cid) -> bool {
    let print = super::bloom::fingerprint(cid.hash());
    shared.live.with_marks(|bloom| bloom.contains(print)).unwrap_or(true)
}

fn root(shared: &Shared) -> PathBuf {
    shared.dir.join("checkouts")
}

/// Writes the tree under another name, makes it durable and moves it into place.
fn materialise(shared: &Arc<Shared>, cid: Cid, path: &Path) -> Result<(), StoreError> {
    let temporary = path.with_extension("tmp");
    remove_tree(&temporary)?;
    let result = write_tree(shared, cid, &temporary).and_then(|()| {
        let dir = root(shared);
        let handle = File::open(&dir).map_err(StoreError::io("open", &dir))?;
        // One call for all the small files: a restart must not find empty ones under the final name.
        rustix::fs::syncfs(&handle).map_err(|error| StoreError::io("synchronise", &dir)(error.into()))?;
        fs::rename(&temporary, path).map_err(StoreError::io("rename", &temporary))?;
        handle.sync_all().map_err(StoreError::io("synchronise", &dir))
    });
    if result.is_err() {
        remove_tree(&temporary)?;
    }
    result
}

fn write_tree(shared: &Arc<Shared>, cid: Cid, target: &Path) -> Result<(), StoreError> {
    let get = |cid: &Cid| {
        let block = shared.get_block(cid).map_err(|error| error.into_block_error(*cid))?;
        block.ok_or(BlockError::NotFound(*cid))
    };
    let mut writer = Writer { shared, dirs: Vec::new() };
    tree::walk(cid, &get, &Limits::default(), &mut |visit: Visit<'_>| writer.visit(target, visit))?;
    // Last, since nothing can be put into a directory that is read-only.
    for dir in writer.dirs.iter().rev() {
        finish(dir, 0o555)?;
    }
    Ok(())
}

struct Writer<'a> {
    shared: &'a Arc<Shared>,
    dirs: Vec<PathBuf>,
}

impl Writer<'_> {
    fn visit(&mut self, target: &Path, visit: Visit<'_>) -> Result<(), StoreError> {
        // The walk only gives names that are one plain component each.
        let path = if visit.path.is_empty() { target.to_owned() } else { target.join(visit.path) };
        match visit.entry {
            Entry::Directory => {
                fs::create_dir(&path).map_err(StoreError::io("create", &path))?;
                self.dirs.push(path);
                Ok(())
            }
            Entry::Symlink(to) => {
                std::os::unix::fs::symlink(to, &path).map_err(StoreError::io("create", &path))
            }
            Entry::File(cid) => {
                if self.link(&cid, &path)? {
                    return Ok(());
                }
                let mut file = File::create_new(&path).map_err(StoreError::io("create", &path))?;
                visit.copy_to(&mut |piece| {
                    io::Write::write_all(&mut file, piece).map_err(StoreError::io("write", &path))
                })?;
                finish(&path, 0o444)
            }
        }
    }

    /// Links a flat file instead of copying it, if there is one and the file system takes another link.
    fn link(&self, cid: &Cid, path: &Path) -> Result<bool, StoreError> {
        let Some((id, Container::Flat { .. })) = self.shared.index.flat(cid)? else { return Ok(false) };
        Ok(fs::hard_link(self.shared.files.path(id), path).is_ok())
    }
}

fn finish(path: &Path, mode: u32) -> Result<(), StoreError> {
    let fixed = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    let finished = file.set_modified(fixed).and_then(|()| file.set_permissions(Permissions::from_mode(mode)));
    finished.map_err(StoreError::io("finish", path))
}

/// Removes a tree whose directories may be read-only. Links inside are removed, not followed.
fn remove_tree(path: &Path) -> Result<(), StoreError> {
    let meta = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        meta => meta.map_err(StoreError::io("look at", path))?,
    };
    if !meta.is_dir() {
        return fs::remove_file(path).map_err(StoreError::io("remove", path));
    }
    let mut waiting = vec![path.to_owned()];
    while let Some(dir) = waiting.pop() {
        let writable = fs::set_permissions(&dir, Permissions::from_mode(0o755));
        writable.map_err(StoreError::io("remove", &dir))?;
        for entry in fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
            let entry = entry.map_err(StoreError::io("list", &dir))?;
            if entry.file_type().map_err(StoreError::io("look at", entry.path()))?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(path).map_err(StoreError::io("remove", path))
}
