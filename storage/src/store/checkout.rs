//! Content as files on disk, to be mounted: made once, shared, read-only.
//!
//! Making one may take long and much room, whatever the content's own size: names and small files are copied. So it is
//! charged like content that is stored, ends when its caller is gone, and goes first when room is needed. Checkouts of
//! different content are made side by side.
//!
//! Nothing is synchronised: a checkout is of use until the machine goes down, and its name says since when it is up.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cid::Cid;
use rustix::io::Errno;

use super::files::lock;
use super::index::Container;
use super::shared::Shared;
use super::{Guard, StoreError};
use crate::block::BlockError;
use crate::read::tree::{self, Entry, Visit};
use crate::read::{Limits, ReadError};

/// What a name in a checkout counts as: its entry, and a part of a block of its directory.
const NAME_BYTES: u64 = 512;
/// What file systems round a file up to.
const BLOCK_BYTES: u64 = 4096;
/// Small files of one checkout that are remembered: another entry with the same content is linked to the first.
const MAX_COPIES: usize = 64 * 1024;
/// The longest path below the store that is made: PATH_MAX is 4096, and the store's own path comes before it.
const MAX_PATH: usize = 3072;

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

/// Says to a checkout that is being made that nobody waits for it.
#[derive(Debug, Clone, Default)]
pub(super) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Cancels when it is dropped.
    pub(super) fn on_drop(&self) -> impl Drop + Send + use<> {
        struct Armed(Cancel);
        impl Drop for Armed {
            fn drop(&mut self) {
                self.0.0.store(true, Ordering::Release);
            }
        }
        Armed(self.clone())
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.0.load(Ordering::Acquire) { Err(StoreError::Stopped) } else { Ok(()) }
    }
}

/// The checkouts of a store.
#[derive(Debug)]
pub(super) struct Checkouts {
    known: Mutex<Known>,
    /// One that was being made is made, or will not be.
    made: Condvar,
    /// Since when the machine is up.
    boot: String,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    ready: HashMap<Cid, Ready>,
    making: HashSet<Cid>,
}

#[derive(Debug)]
struct Ready {
    path: PathBuf,
    charged: u64,
}

impl Checkouts {
    pub(super) fn new() -> Self {
        Checkouts { known: Mutex::default(), made: Condvar::new(), boot: boot(), next: 0.into() }
    }

    /// Where it is, if it is made; else it is the caller's to make, and to say how that went.
    fn claim(&self, cid: &Cid) -> Option<PathBuf> {
        let mut known = lock(&self.known);
        loop {
            if let Some(ready) = known.ready.get(cid) {
                return Some(ready.path.clone());
            }
            if known.making.insert(*cid) {
                return None;
            }
            known = self.made.wait(known).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn settle(&self, cid: &Cid, ready: Option<Ready>) {
        let mut known = lock(&self.known);
        known.making.remove(cid);
        known.ready.extend(ready.map(|ready| (*cid, ready)));
        self.made.notify_all();
    }

    fn temporary(&self, root: &Path) -> PathBuf {
        root.join(format!("{}.tmp", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    fn name(&self, cid: &Cid, charged: u64) -> String {
        format!("{cid}.{charged}.{}", self.boot)
    }

    /// What a name says, of one that was made since the machine is up.
    fn read_name(&self, name: &str) -> Option<(Cid, u64)> {
        let mut parts = name.split('.');
        let (cid, charged) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        (parts.next()? == self.boot && parts.next().is_none()).then_some((cid, charged))
    }
}

/// A name for the time since the machine went up. Without one nothing outlives the process.
fn boot() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot: String = boot.chars().filter(char::is_ascii_alphanumeric).collect();
    if boot.is_empty() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        return format!("{:x}x{:x}", now.as_nanos(), std::process::id());
    }
    boot
}

/// Makes content that is here available as a path. What has to be copied for it is within the limits.
pub(super) fn checkout(
    shared: &Arc<Shared>,
    guard: Guard,
    limits: Limits,
    cancel: &Cancel,
) -> Result<Checkout, StoreError> {
    let cid = guard.cid();
    let guard = Arc::new(guard);
    shared.commits.touch(&cid);
    if let Some((id, Container::Flat { .. })) = shared.index.flat(&cid)? {
        return Ok(Checkout { path: shared.files.path(id), guard });
    }
    if let Some(path) = shared.checkouts.claim(&cid) {
        return Ok(Checkout { path, guard });
    }
    let claim = Claim { shared, cid, ready: None };
    let path = claim.make(limits, cancel)?;
    Ok(Checkout { path, guard })
}

/// The right and the duty to make one checkout.
struct Claim<'a> {
    shared: &'a Arc<Shared>,
    cid: Cid,
    ready: Option<Ready>,
}

impl Claim<'_> {
    /// Writes the tree under another name and moves it into place.
    fn make(mut self, limits: Limits, cancel: &Cancel) -> Result<PathBuf, StoreError> {
        let (checkouts, root) = (&self.shared.checkouts, root(self.shared));
        let temporary = checkouts.temporary(&root);
        let made = write_tree(self.shared, self.cid, &temporary, limits, cancel).and_then(|room| {
            let path = root.join(checkouts.name(&self.cid, room.used));
            fs::rename(&temporary, &path).map_err(StoreError::io("rename", &temporary))?;
            Ok((path, room))
        });
        match made {
            Ok((path, room)) => {
                self.ready = Some(Ready { path: path.clone(), charged: room.keep() });
                Ok(path)
            }
            Err(error) => {
                remove_tree(&temporary)?;
                Err(error)
            }
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.shared.checkouts.settle(&self.cid, self.ready.take());
    }
}

/// Finds the checkouts that are of use still, and removes the others. Answers with what they are charged.
pub(super) fn open(shared: &Shared) -> Result<u64, StoreError> {
    let root = root(shared);
    fs::create_dir_all(&root).map_err(StoreError::io("create", &root))?;
    let mut known = lock(&shared.checkouts.known);
    for entry in fs::read_dir(&root).map_err(StoreError::io("list", &root))? {
        let path = entry.map_err(StoreError::io("list", &root))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        match name.and_then(|name| shared.checkouts.read_name(name)) {
            Some((cid, charged)) => drop(known.ready.insert(cid, Ready { path, charged })),
            None => remove_tree(&path)?,
        }
    }
    Ok(known.ready.values().map(|ready| ready.charged).sum())
}

/// Removes checkouts that nobody holds; with `but_marked`, only those of content that collecting garbage did not mark.
pub(super) fn remove_unused(shared: &Shared, but_marked: bool) -> Result<(), StoreError> {
    let root = root(shared);
    let unused: Vec<(PathBuf, u64)> = {
        let mut known = lock(&shared.checkouts.known);
        let is_used = |cid: &Cid| shared.live.is_guarded(cid) || but_marked && is_marked(shared, cid);
        let gone: Vec<Cid> = known.ready.keys().filter(|cid| !is_used(cid)).copied().collect();
        let gone = gone.iter().filter_map(|cid| known.ready.remove(cid));
        // Whoever asks for one now makes it anew, beside the one that is being removed.
        gone.map(|ready| {
            let away = shared.checkouts.temporary(&root);
            let moved = fs::rename(&ready.path, &away);
            (if moved.is_ok() { away } else { ready.path }, ready.charged)
        })
        .collect()
    };
    for (path, charged) in unused {
        remove_tree(&path)?;
        shared.give_room(charged);
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

/// The room that a checkout takes; given back when it is dropped, unless it is kept.
struct Room<'a> {
    shared: &'a Arc<Shared>,
    cid: Cid,
    limit: u64,
    used: u64,
}

impl Room<'_> {
    fn take(&mut self, bytes: u64) -> Result<(), StoreError> {
        let used = self.used.saturating_add(bytes);
        if used > self.limit {
            let (root, what, limit) = (self.cid, "bytes as files on disk", self.limit);
            return Err(ReadError::Limit { root, what, limit }.into());
        }
        self.shared.make_room(bytes)?;
        self.used = used;
        Ok(())
    }

    /// What it comes to.
    fn keep(mut self) -> u64 {
        std::mem::take(&mut self.used)
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.shared.give_room(self.used);
    }
}

fn write_tree<'a>(
    shared: &'a Arc<Shared>,
    cid: Cid,
    target: &Path,
    limits: Limits,
    cancel: &'a Cancel,
) -> Result<Room<'a>, StoreError> {
    let get = |cid: &Cid| {
        let block = shared.get_block(cid).map_err(|error| error.into_block_error(*cid))?;
        block.ok_or(BlockError::NotFound(*cid))
    };
    let room = Room { shared, cid, limit: limits.max_bytes, used: 0 };
    let mut writer = Writer { shared, cancel, room, dirs: Vec::new(), copies: HashMap::new() };
    // What is linked costs nothing, so that the files' own sizes are no measure.
    let limits = Limits { max_bytes: u64::MAX, ..limits };
    tree::walk(cid, &get, &limits, &mut |visit: Visit<'_>| writer.visit(target, visit))?;
    // Last, since nothing can be put into a directory that is read-only.
    for dir in writer.dirs.iter().rev() {
        finish(dir, 0o555)?;
    }
    Ok(writer.room)
}

struct Writer<'a> {
    shared: &'a Arc<Shared>,
    cancel: &'a Cancel,
    room: Room<'a>,
    dirs: Vec<PathBuf>,
    /// Files that were copied, by content.
    copies: HashMap<Cid, PathBuf>,
}

impl Writer<'_> {
    fn visit(&mut self, target: &Path, visit: Visit<'_>) -> Result<(), StoreError> {
        self.cancel.check()?;
        if visit.path.len() > MAX_PATH {
            let (root, what, limit) = (self.room.cid, "bytes in a path", MAX_PATH as u64);
            return Err(ReadError::Limit { root, what, limit }.into());
        }
        // The walk only gives names that are one plain component each, and none twice.
        let path = if visit.path.is_empty() { target.to_owned() } else { target.join(visit.path) };
        self.room.take(NAME_BYTES)?;
        match &visit.entry {
            Entry::Directory => {
                self.room.take(BLOCK_BYTES)?;
                fs::create_dir(&path).map_err(StoreError::io("create", &path))?;
                self.dirs.push(path);
                Ok(())
            }
            Entry::Symlink(to) => {
                std::os::unix::fs::symlink(to, &path).map_err(StoreError::io("create", &path))
            }
            Entry::File(cid) => {
                if self.link(cid, &path)? {
                    return Ok(());
                }
                self.copy(&visit, &path)?;
                if self.copies.len() < MAX_COPIES || self.copies.contains_key(cid) {
                    self.copies.insert(*cid, path);
                }
                Ok(())
            }
        }
    }

    /// Links a file that is on disk already, if there is one and the file system takes another link.
    fn link(&self, cid: &Cid, path: &Path) -> Result<bool, StoreError> {
        let flat = match self.shared.index.flat(cid)? {
            Some((id, Container::Flat { .. })) => Some(self.shared.files.path(id)),
            _ => None,
        };
        // A copy is newer: it is there because the flat file takes no more links.
        let Some(file) = self.copies.get(cid).or(flat.as_ref()) else { return Ok(false) };
        match fs::hard_link(file, path) {
            Ok(()) => Ok(true),
            Err(error) if takes_no_link(&error) => Ok(false),
            Err(error) => Err(StoreError::io("link", path)(error)),
        }
    }

    fn copy(&mut self, visit: &Visit<'_>, path: &Path) -> Result<(), StoreError> {
        let mut file = File::create_new(path).map_err(StoreError::io("create", path))?;
        let mut written = 0_u64;
        visit.copy_to(&mut |piece| {
            self.cancel.check()?;
            let before = written.next_multiple_of(BLOCK_BYTES);
            written += piece.len() as u64;
            self.room.take(written.next_multiple_of(BLOCK_BYTES) - before)?;
            io::Write::write_all(&mut file, piece).map_err(StoreError::io("write", path))
        })?;
        finish(path, 0o444)
    }
}

/// Whether a file has all the links that it can have, or the file system has none.
fn takes_no_link(error: &io::Error) -> bool {
    let all = [Errno::MLINK, Errno::PERM, Errno::NOTSUP, Errno::NOSYS];
    Errno::from_io_error(error).is_some_and(|error| all.contains(&error))
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

#[cfg(test)]
mod tests {
    use super::super::{AddOptions, Blocking, Settings};
    use super::*;

    #[test]
    fn a_checkout_that_nobody_waits_for_ends_and_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = Blocking::open(&dir.path().join("content"), Settings::default()).expect("opens");
        fs::create_dir(dir.path().join("source")).expect("creates");
        fs::write(dir.path().join("source/a"), "a").expect("writes");
        let added = store.add_path(&dir.path().join("source"), &AddOptions::default()).expect("adds");
        let used = store.usage().expect("counts").bytes;
        let cancel = Cancel::default();
        drop(cancel.on_drop());
        let ended = store.checkout_within(&added.cid, store.checkout_limits(), &cancel);
        assert!(matches!(ended, Err(StoreError::Stopped)), "{ended:?}");
        let names = fs::read_dir(dir.path().join("content/checkouts")).expect("lists");
        assert_eq!((names.count(), store.usage().expect("counts").bytes), (0, used));
        let checkout = store.checkout(&added.cid).expect("another may make it");
        assert_eq!(fs::read(checkout.path().join("a")).expect("reads"), b"a");
    }
}
