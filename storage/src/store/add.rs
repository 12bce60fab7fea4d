//! Adding files and directories: read once, hashed on all cores, stored once, durable at the end.

mod tree;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use cid::Cid;

use super::flat::{FLAT_ABOVE_BYTES, NewFlat};
use super::index::Changes;
use super::session::Session;
use super::shared::Shared;
use super::{Guard, StoreError, now_secs};
use crate::block::Block;
use crate::unixfs::{self, DirEntry, FileTree, Leaf, Profile, Root};

/// Pieces of a file that are hashed between two looks at the tree, at least and at most: enough that all
/// cores are busy, few enough that what is known of them is small.
const ROUND_PIECES: (u64, u64) = (32, 16 * 1024);
/// The same in bytes, for small chunks.
const ROUND_BYTES: u64 = 32 * 1024 * 1024;
/// Pieces of a stream that are in memory at once, in bytes: two cores' worth of large chunks.
const STREAM_BYTES: usize = 8 * 1024 * 1024;
/// Threads that hash one addition. More than the disk can feed would only take them from others.
const MAX_THREADS: usize = 8;

/// What is told of an addition while it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AddProgress {
    /// Files that are done.
    pub files: u64,
    /// Bytes that are done.
    pub bytes: u64,
}

/// Called now and then, from the thread that adds.
pub type OnProgress = Arc<dyn Fn(AddProgress) + Send + Sync>;

/// How files are added.
#[derive(Clone)]
pub struct AddOptions {
    /// What decides the CID.
    pub profile: Profile,
    /// Puts the file or directory into a directory, under its own name.
    pub wrap: bool,
    /// Computes the CID and stores nothing.
    pub only_hash: bool,
    /// Includes names that begin with a dot.
    pub include_hidden: bool,
    /// Pins the root under this name.
    pub pin: Option<String>,
    /// Where progress is told.
    pub on_progress: Option<OnProgress>,
}

impl Default for AddOptions {
    /// The default profile, hidden files included, not pinned.
    fn default() -> Self {
        AddOptions {
            profile: Profile::default(),
            wrap: false,
            only_hash: false,
            include_hidden: true,
            pin: None,
            on_progress: None,
        }
    }
}

impl fmt::Debug for AddOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AddOptions { profile, wrap, only_hash, pin, .. } = self;
        write!(f, "AddOptions {{ {profile:?}, wrap: {wrap}, only_hash: {only_hash}, pin: {pin:?} }}")
    }
}

/// What was added.
#[derive(Debug, Clone)]
pub struct Added {
    /// Its root.
    pub cid: Cid,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes of all blocks, as links count them.
    pub total_bytes: u64,
    /// How many files it has.
    pub files: u64,
    /// Keeps it from being collected until this is dropped; nothing when only hashes were computed.
    pub guard: Option<Guard>,
}

/// Adds what is at a path.
pub(super) fn add_path(shared: &Arc<Shared>, path: &Path, options: &AddOptions) -> Result<Added, StoreError> {
    let mut adder = Adder::new(shared, options);
    let root = tree::add(&mut adder, path)?;
    let name = path.file_name().and_then(|name| name.to_str());
    adder.finish(root, name)
}

/// Adds one file from a reader.
pub(super) fn add_reader(
    shared: &Arc<Shared>,
    reader: &mut dyn Read,
    name: Option<&str>,
    options: &AddOptions,
) -> Result<Added, StoreError> {
    let mut adder = Adder::new(shared, options);
    let root = adder.stream(reader)?;
    adder.finish(root, name)
}

/// One addition.
struct Adder<'a> {
    options: &'a AddOptions,
    profile: Profile,
    session: Session,
    threads: usize,
    progress: AddProgress,
}

impl<'a> Adder<'a> {
    fn new(shared: &Arc<Shared>, options: &'a AddOptions) -> Self {
        Adder {
            options,
            profile: options.profile.within_limits(),
            session: Session::new(shared, options.only_hash),
            threads: std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS),
            progress: AddProgress::default(),
        }
    }

    /// Wraps, pins and commits.
    fn finish(mut self, mut root: Root, name: Option<&str>) -> Result<Added, StoreError> {
        if self.options.wrap {
            let name = name.unwrap_or("file");
            root = self.directory(vec![DirEntry::new(name, root)], Path::new(name))?;
        }
        let Adder { mut session, options, progress, .. } = self;
        let mut added = Added {
            cid: root.cid,
            bytes: progress.bytes,
            total_bytes: root.total_bytes,
            files: progress.files,
            guard: None,
        };
        if session.is_dry() {
            return Ok(added);
        }
        added.guard = Some(Guard::new(&session.shared, root.cid)?);
        session.touch(&root.cid);
        session.work.batch.put_root(&root.cid, root.total_bytes, now_secs());
        if let Some(name) = &options.pin {
            session.work.batch.put_pin(&root.cid, name);
        }
        session.commit()?;
        Ok(added)
    }

    /// A file whose bytes are in memory; `leaf` is known for one that is a single leaf.
    fn small(&mut self, bytes: Bytes, leaf: Option<Leaf>) -> Result<Root, StoreError> {
        let profile = self.profile;
        let mut blocks = Vec::new();
        let mut tree = FileTree::new(profile);
        let mut rest = bytes.clone();
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(profile.chunk_bytes));
            let leaf = leaf.unwrap_or_else(|| Leaf::of(&profile, &piece));
            blocks.push(leaf.block(&profile, piece));
            tree.push(leaf, &mut |block| blocks.push(block));
        }
        let root = tree.finish(&mut |block| blocks.push(block));
        self.put(&blocks)?;
        self.done(bytes.len() as u64);
        Ok(root)
    }

    /// A large file: pieces are read, hashed and written by several threads, each at its own offset.
    fn large(&mut self, source: &File, size: u64, path: &Path) -> Result<Root, StoreError> {
        let chunk = self.profile.chunk_bytes as u64;
        let pieces = size.div_ceil(chunk);
        let round = (ROUND_BYTES / chunk).clamp(ROUND_PIECES.0, ROUND_PIECES.1);
        let mut flat = self.new_flat()?;
        if let Some(flat) = &mut flat {
            flat.reserve(size)?;
        }
        let mut tree = FileTree::new(self.profile);
        let mut first = 0;
        while first < pieces {
            let count = round.min(pieces - first);
            let work = |index: usize, buffer: &mut Vec<u8>| {
                let offset = (first + index as u64) * chunk;
                buffer.resize(chunk.min(size - offset) as usize, 0);
                source.read_exact_at(buffer, offset).map_err(changed(path))?;
                self.leaf(flat.as_ref(), buffer, offset)
            };
            let leaves = in_parallel(self.threads, count as usize, work)?;
            for (leaf, number) in leaves.into_iter().zip(first..) {
                self.push(flat.as_mut(), &mut tree, leaf, number * chunk)?;
            }
            first += count;
            self.progress.bytes += (count * chunk).min(size - (first - count) * chunk);
            self.tell();
            if let Some(flat) = &mut flat {
                flat.write_out((first * chunk).min(size));
            }
        }
        if source.read_at(&mut [0], size).map_err(StoreError::io("read", path))? != 0 {
            return Err(StoreError::Changed(path.to_owned()));
        }
        self.progress.files += 1;
        self.close(flat, tree)
    }

    /// A file of unknown length.
    fn stream(&mut self, reader: &mut dyn Read) -> Result<Root, StoreError> {
        let chunk = self.profile.chunk_bytes;
        let at_once = (STREAM_BYTES / chunk).max(self.threads) * chunk;
        let mut buffer = Vec::new();
        let mut is_at_end = fill(reader, &mut buffer, FLAT_ABOVE_BYTES as usize + 1)?;
        if buffer.len() as u64 <= FLAT_ABOVE_BYTES {
            return self.small(buffer.into(), None);
        }
        let mut flat = self.new_flat()?;
        let mut tree = FileTree::new(self.profile);
        let mut offset = 0;
        loop {
            if !is_at_end {
                is_at_end = fill(reader, &mut buffer, at_once)?;
            }
            if let Some(flat) = &mut flat {
                flat.reserve(buffer.len() as u64)?;
            }
            let pieces: Vec<&[u8]> = buffer.chunks(chunk).collect();
            let work = |index: usize, _: &mut Vec<u8>| {
                let piece = pieces.get(index).copied().unwrap_or_default();
                self.leaf(flat.as_ref(), piece, offset + (index * chunk) as u64)
            };
            for leaf in in_parallel(self.threads, pieces.len(), work)? {
                self.push(flat.as_mut(), &mut tree, leaf, offset)?;
                offset += leaf.file_bytes;
            }
            self.progress.bytes = offset;
            self.tell();
            buffer.clear();
            if let Some(flat) = &mut flat {
                flat.write_out(offset);
            }
            if is_at_end {
                break;
            }
        }
        self.progress.files += 1;
        self.close(flat, tree)
    }

    fn directory(&mut self, entries: Vec<DirEntry>, path: &Path) -> Result<Root, StoreError> {
        let mut blocks = Vec::new();
        let root = unixfs::directory(&self.profile, entries, &mut |block| blocks.push(block));
        let root = root.map_err(StoreError::unixfs(path.display()))?;
        self.put(&blocks)?;
        Ok(root)
    }

    fn symlink(&mut self, target: &str) -> Result<Root, StoreError> {
        let mut blocks = Vec::new();
        let root = unixfs::symlink(&self.profile, target, &mut |block| blocks.push(block));
        self.put(&blocks)?;
        self.done(0);
        Ok(root)
    }

    fn new_flat(&self) -> Result<Option<NewFlat>, StoreError> {
        if self.session.is_dry() { Ok(None) } else { NewFlat::begin(&self.session.shared).map(Some) }
    }

    /// Hashes a piece and writes it where it belongs.
    fn leaf(&self, flat: Option<&NewFlat>, piece: &[u8], offset: u64) -> Result<Leaf, StoreError> {
        if let Some(flat) = flat {
            let path = || self.session.shared.files.path(flat.file.id);
            flat.file.write_at(piece, offset).map_err(|error| StoreError::io("write", path())(error))?;
        }
        Ok(Leaf::of(&self.profile, piece))
    }

    fn push(
        &mut self,
        flat: Option<&mut NewFlat>,
        tree: &mut FileTree,
        leaf: Leaf,
        offset: u64,
    ) -> Result<(), StoreError> {
        let mut blocks = Vec::new();
        tree.push(leaf, &mut |block| blocks.push(block));
        self.put(&blocks)?;
        match flat {
            Some(flat) => flat.push(&mut self.session, &self.profile, leaf, offset),
            None => Ok(()),
        }
    }

    fn close(&mut self, flat: Option<NewFlat>, tree: FileTree) -> Result<Root, StoreError> {
        let mut blocks = Vec::new();
        let root = tree.finish(&mut |block| blocks.push(block));
        self.put(&blocks)?;
        if let Some(flat) = flat {
            flat.keep(&mut self.session, &self.profile, root.cid)?;
        }
        Ok(root)
    }

    fn put(&mut self, blocks: &[Block]) -> Result<(), StoreError> {
        blocks.iter().try_for_each(|block| self.session.put(block))
    }

    fn done(&mut self, bytes: u64) {
        self.progress.files += 1;
        self.progress.bytes += bytes;
        self.tell();
    }

    fn tell(&self) {
        if let Some(tell) = &self.options.on_progress {
            tell(self.progress);
        }
    }
}

/// Runs `work` for 0..count on several threads, each with a buffer of its own; answers in order, or with the first error.
fn in_parallel<T: Send + Sync>(
    threads: usize,
    count: usize,
    work: impl Fn(usize, &mut Vec<u8>) -> Result<T, StoreError> + Sync,
) -> Result<Vec<T>, StoreError> {
    let next = AtomicUsize::new(0);
    let slots: Vec<OnceLock<Result<T, StoreError>>> = (0..count).map(|_| OnceLock::new()).collect();
    let run = || {
        let mut buffer = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(slot) = slots.get(index) else { break };
            let result = work(index, &mut buffer);
            if result.is_err() {
                next.store(count, Ordering::Relaxed);
            }
            // Each index is given out once.
            let _ = slot.set(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(count) {
            scope.spawn(run);
        }
        run();
    });
    let mut results = Vec::with_capacity(count);
    let mut slots = slots.into_iter().map(OnceLock::into_inner);
    while let Some(Some(result)) = slots.next() {
        results.push(result?);
    }
    match slots.flatten().find_map(Result::err) {
        Some(error) => Err(error),
        None => Ok(results),
    }
}

/// Reads until the buffer holds `wanted` bytes; answers whether the end was reached.
fn fill(reader: &mut dyn Read, buffer: &mut Vec<u8>, wanted: usize) -> Result<bool, StoreError> {
    let missing = wanted.saturating_sub(buffer.len());
    let read = reader.take(missing as u64).read_to_end(buffer);
    let read = read.map_err(StoreError::io("read", "the input"))?;
    Ok(read < missing)
}

/// A file that ends early has changed.
fn changed(path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |error| match error.kind() {
        io::ErrorKind::UnexpectedEof => StoreError::Changed(path.to_owned()),
        _ => StoreError::io("read", PathBuf::from(path))(error),
    }
}
