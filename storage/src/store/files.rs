//! The containers on disk: segments that grow at their end, and flat files.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use rustix::fs::Advice;

use super::StoreError;
use super::index::{Container, ContainerId, Location};

/// A segment takes no further blocks once it is this long: what collecting garbage rewrites at once.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Containers kept open for reading; a node has 1024 descriptors by default and sockets need most.
const OPEN_FILES: usize = 64;
/// Files synchronised one by one; above this, one call for the whole file system is quicker.
const SYNC_ONE_BY_ONE: usize = 8;

/// A container that is written.
#[derive(Debug)]
pub(super) struct DataFile {
    pub(super) id: ContainerId,
    path: PathBuf,
    /// Its descriptor, until [`DataFile::close`].
    file: Mutex<Option<Arc<File>>>,
    /// Where the next bytes of a segment go.
    end: AtomicU64,
    is_segment: bool,
    /// Its name may not be on disk yet.
    is_new: AtomicBool,
}

impl DataFile {
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let open = lock(&self.file).clone();
        match open {
            Some(file) => file.write_all_at(bytes, offset),
            None => OpenOptions::new().write(true).open(&self.path)?.write_all_at(bytes, offset),
        }
    }

    /// Gives the descriptor back: nothing more will be written. Others follow for single calls.
    pub(super) fn close(&self) {
        lock(&self.file).take();
    }

    fn handle(&self) -> io::Result<Arc<File>> {
        match &*lock(&self.file) {
            Some(file) => Ok(Arc::clone(file)),
            None => File::open(&self.path).map(Arc::new),
        }
    }

    /// Lets the disk begin with a range that was written, without waiting for it.
    ///
    /// Saying that a range is not needed soon is the one safe call that starts its writing out; what is dirty
    /// stays in memory all the same. It is only a hint: whether it worked is not asked.
    pub(super) fn begin_write_out(&self, offset: u64, length: u64) {
        if let (Some(length), Ok(file)) = (NonZeroU64::new(length), self.handle()) {
            let _ = rustix::fs::fadvise(&*file, offset, Some(length), Advice::DontNeed);
        }
    }

    /// The row that says how much of a segment is in use.
    pub(super) fn segment_row(&self) -> Option<Container> {
        self.is_segment.then(|| Container::Segment { length: self.end.load(Ordering::Acquire) })
    }
}

/// All containers of a store.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    dir_handle: File,
    next: AtomicU64,
    readers: Mutex<Readers>,
    segment: Mutex<Option<Arc<DataFile>>>,
    /// Containers that somebody may still write to or has not committed yet.
    writing: Mutex<HashMap<ContainerId, Weak<DataFile>>>,
}

/// Why bytes were not appended, and whether the segment is as long as if nobody had tried.
#[derive(Debug)]
pub(super) struct NotAppended {
    pub(super) error: StoreError,
    pub(super) is_undone: bool,
}

#[derive(Debug, Default)]
struct Readers {
    files: HashMap<ContainerId, (Arc<File>, u64)>,
    clock: u64,
}

impl Files {
    /// Opens the folder and removes what no row of the index knows.
    pub(super) fn open(dir: PathBuf, known: &[(ContainerId, Container)]) -> Result<Self, StoreError> {
        fs::create_dir_all(&dir).map_err(StoreError::io("create", &dir))?;
        let dir_handle = File::open(&dir).map_err(StoreError::io("open", &dir))?;
        let known: HashMap<ContainerId, &Container> = known.iter().map(|(id, what)| (*id, what)).collect();
        let mut next = known.keys().max().map_or(0, |id| id + 1);
        for entry in fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
            let path = entry.map_err(StoreError::io("list", &dir))?.path();
            let id = path.file_name().and_then(|name| ContainerId::from_str_radix(name.to_str()?, 16).ok());
            next = next.max(id.map_or(0, |id| id + 1));
            match id.and_then(|id| known.get(&id)) {
                None => fs::remove_file(&path).map_err(StoreError::io("remove the unfinished", &path))?,
                Some(Container::Segment { length }) => cut(&path, *length)?,
                Some(_) => {}
            }
        }
        let (readers, segment, writing) = Default::default();
        let files = Files { dir, dir_handle, next: AtomicU64::new(next), readers, segment, writing };
        files.continue_segment(&known)?;
        Ok(files)
    }

    /// Where a container is.
    pub(super) fn path(&self, id: ContainerId) -> PathBuf {
        self.dir.join(format!("{id:012x}"))
    }

    /// Makes a new, empty container.
    pub(super) fn create(&self, is_segment: bool) -> Result<Arc<DataFile>, StoreError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.path(id);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(&path);
        let file = file.map_err(StoreError::io("create", &path))?;
        let file = Mutex::new(Some(Arc::new(file)));
        Ok(self.written(DataFile { id, path, file, end: 0.into(), is_segment, is_new: true.into() }))
    }

    /// Opens an unfinished flat file to go on writing.
    pub(super) fn reopen(&self, id: ContainerId) -> Result<Arc<DataFile>, StoreError> {
        self.open_for_writing(id, 0, false)
    }

    /// Makes a flat file what it stays: read-only for everybody, with a fixed time.
    pub(super) fn seal(&self, file: &DataFile, length: u64) -> Result<(), StoreError> {
        let fixed = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let open = lock(&file.file).clone();
        let open = open.map_or_else(|| OpenOptions::new().write(true).open(&file.path).map(Arc::new), Ok);
        let sealed = open.and_then(|file| {
            file.set_len(length)?;
            file.set_modified(fixed)?;
            file.set_permissions(Permissions::from_mode(0o444))
        });
        sealed.map_err(StoreError::io("finish", &file.path))
    }

    /// Appends to the current segment; answers with the segment and the offset.
    pub(super) fn append(&self, bytes: &[u8]) -> Result<(Arc<DataFile>, u64), NotAppended> {
        let length = bytes.len() as u64;
        let (segment, offset) =
            self.reserve(length).map_err(|error| NotAppended { error, is_undone: true })?;
        match segment.write_at(bytes, offset) {
            Ok(()) => Ok((segment, offset)),
            Err(error) => {
                let error = StoreError::io("write", self.path(segment.id))(error);
                let (from, to) = (offset + length, offset);
                // Where others have appended behind it, the gap stays a part of the segment.
                let undone = segment.end.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
                Err(NotAppended { error, is_undone: undone.is_ok() })
            }
        }
    }

    fn reserve(&self, length: u64) -> Result<(Arc<DataFile>, u64), StoreError> {
        let mut current = lock(&self.segment);
        let room = |segment: &Arc<DataFile>| segment.end.load(Ordering::Acquire) < SEGMENT_BYTES;
        let segment = match current.take().filter(room) {
            Some(segment) => segment,
            None => self.create(true)?,
        };
        let offset = segment.end.fetch_add(length, Ordering::AcqRel);
        *current = Some(Arc::clone(&segment));
        Ok((segment, offset))
    }

    /// Lets the next block begin a new segment, so that the current one can be collected like any other.
    pub(super) fn end_segment(&self) {
        lock(&self.segment).take();
    }

    /// The containers to which somebody writes, or has written without a commit. To others nothing can be added
    /// any more, except that an unfinished flat file may be opened again.
    pub(super) fn in_writing(&self) -> HashSet<ContainerId> {
        let mut writing = lock(&self.writing);
        writing.retain(|_, file| file.strong_count() > 0);
        writing.keys().copied().collect()
    }

    /// Makes everything durable that was written to these containers, names included.
    ///
    /// After a failure the kernel may have dropped what was written, so that nothing is appended to them any more.
    pub(super) fn sync(&self, files: &[Arc<DataFile>]) -> Result<(), StoreError> {
        let result = self.sync_files(files);
        if result.is_err() {
            lock(&self.segment).take();
        }
        result
    }

    fn sync_files(&self, files: &[Arc<DataFile>]) -> Result<(), StoreError> {
        let failed = || StoreError::io("synchronise", &self.dir);
        let new: Vec<_> = files.iter().filter(|file| file.is_new.load(Ordering::Acquire)).collect();
        if files.len() > SYNC_ONE_BY_ONE {
            rustix::fs::syncfs(&self.dir_handle).map_err(|error| failed()(error.into()))?;
        } else {
            for file in files {
                file.handle().and_then(|file| file.sync_data()).map_err(failed())?;
            }
            if !new.is_empty() {
                self.dir_handle.sync_all().map_err(failed())?;
            }
        }
        new.iter().for_each(|file| file.is_new.store(false, Ordering::Release));
        Ok(())
    }

    /// The bytes at a location, or `None` when they are not there (any more).
    pub(super) fn read(&self, location: &Location) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(file) = self.reader(location.container)? else { return Ok(None) };
        let mut bytes = vec![0; location.length as usize];
        match file.read_exact_at(&mut bytes, location.offset) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(StoreError::io("read", self.path(location.container))(error)),
        }
    }

    /// A container opened for reading, or `None` when it is gone.
    pub(super) fn reader(&self, id: ContainerId) -> Result<Option<Arc<File>>, StoreError> {
        if let Some(file) = lock(&self.readers).get(id) {
            return Ok(Some(file));
        }
        let path = self.path(id);
        match File::open(&path) {
            Ok(file) => Ok(Some(lock(&self.readers).insert(id, file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("open", &path)(error)),
        }
    }

    /// Removes a container that no row knows any more. Whoever reads it now can finish.
    pub(super) fn remove(&self, id: ContainerId) -> Result<(), StoreError> {
        lock(&self.readers).files.remove(&id);
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    fn continue_segment(&self, known: &HashMap<ContainerId, &Container>) -> Result<(), StoreError> {
        let segments = known.iter().filter_map(|(id, what)| match what {
            Container::Segment { length } if *length < SEGMENT_BYTES => Some((*id, *length)),
            _ => None,
        });
        let Some((id, length)) = segments.max() else { return Ok(()) };
        let writable = fs::metadata(self.path(id)).is_ok_and(|meta| !meta.permissions().readonly());
        if writable {
            *lock(&self.segment) = Some(self.open_for_writing(id, length, true)?);
        }
        Ok(())
    }

    fn open_for_writing(
        &self,
        id: ContainerId,
        end: u64,
        is_segment: bool,
    ) -> Result<Arc<DataFile>, StoreError> {
        let path = self.path(id);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(StoreError::io("open", &path))?;
        let file = Mutex::new(Some(Arc::new(file)));
        Ok(self.written(DataFile { id, path, file, end: end.into(), is_segment, is_new: false.into() }))
    }

    fn written(&self, file: DataFile) -> Arc<DataFile> {
        let file = Arc::new(file);
        let mut writing = lock(&self.writing);
        writing.retain(|_, other| other.strong_count() > 0);
        writing.insert(file.id, Arc::downgrade(&file));
        file
    }
}

impl Readers {
    fn get(&mut self, id: ContainerId) -> Option<Arc<File>> {
        self.clock += 1;
        let (file, used) = self.files.get_mut(&id)?;
        *used = self.clock;
        Some(Arc::clone(file))
    }

    fn insert(&mut self, id: ContainerId, file: File) -> Arc<File> {
        if self.files.len() >= OPEN_FILES {
            let oldest = self.files.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id);
            oldest.and_then(|oldest| self.files.remove(&oldest));
        }
        let file = Arc::new(file);
        self.clock += 1;
        self.files.insert(id, (Arc::clone(&file), self.clock));
        file
    }
}

/// Cuts off what was appended and never committed.
fn cut(path: &Path, length: u64) -> Result<(), StoreError> {
    let meta = fs::metadata(path).map_err(StoreError::io("look at", path))?;
    // A file that became a bag of blocks is read-only and never longer than its row says.
    if meta.len() <= length {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(path);
    file.and_then(|file| file.set_len(length)).map_err(StoreError::io("shorten", path))
}

/// No code panics while it holds one of these locks; if it did, what they guard is still whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_appended_leaves_no_gap_but_where_others_came_behind_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let files = Files::open(dir.path().join("data"), &[]).expect("opens");
        let full = OpenOptions::new().write(true).open("/dev/full").expect("a disk without room");
        let file = Mutex::new(Some(Arc::new(full)));
        let (path, end) = (files.path(7), AtomicU64::new(100));
        let segment = Arc::new(DataFile { id: 7, path, file, end, is_segment: true, is_new: true.into() });
        *lock(&files.segment) = Some(Arc::clone(&segment));
        let failed = files.append(&[1; 50]).expect_err("has no room");
        assert!(failed.is_undone && failed.error.is_full(), "{failed:?}");
        assert_eq!(segment.segment_row(), Some(Container::Segment { length: 100 }));
    }
}
