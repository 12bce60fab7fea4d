//! Reading a directory tree through descriptors: no name is ever looked up through a link, so that a tree that
//! somebody else may be changing cannot lead elsewhere.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::StoreError;
use super::super::flat::FLAT_ABOVE_BYTES;
use super::{Adder, in_parallel};
use crate::unixfs::{DirEntry, Leaf, Root};

/// Directories in each other; each holds a descriptor while it is read.
const MAX_DEPTH: u32 = 128;
/// Entries of one directory: their names are sorted in memory.
const MAX_ENTRIES: usize = 4 * 1024 * 1024;
/// Entries that are read and hashed together: at most 8 MiB of small files and as many descriptors of large ones.
const WINDOW: usize = 128;

/// An entry that was opened, and read if it is small.
enum Opened {
    Small(Bytes, Option<Leaf>),
    Large(File, u64),
    Directory(OwnedFd),
    Symlink(String),
}

/// Adds what is at a path. The path itself may lead through links; its last part is not followed.
pub(super) fn add(adder: &mut Adder<'_>, path: &Path) -> Result<Root, StoreError> {
    let opened = open(adder, rustix::fs::CWD, path.as_os_str().as_bytes(), path, &mut Vec::new())?;
    store(adder, opened, path, 0)
}

fn store(adder: &mut Adder<'_>, opened: Opened, path: &Path, depth: u32) -> Result<Root, StoreError> {
    match opened {
        Opened::Small(bytes, leaf) => adder.small(bytes, leaf),
        Opened::Large(file, size) => adder.large(&file, size, path),
        Opened::Symlink(target) => adder.symlink(&target),
        Opened::Directory(dir) => directory(adder, dir, path, depth),
    }
}

fn directory(adder: &mut Adder<'_>, dir: OwnedFd, path: &Path, depth: u32) -> Result<Root, StoreError> {
    if depth >= MAX_DEPTH {
        let at = path.display().to_string();
        return Err(StoreError::TooMany { at, what: "directories in each other", limit: MAX_DEPTH.into() });
    }
    let names = names(adder, &dir, path)?;
    let mut entries = Vec::with_capacity(names.len());
    for window in names.chunks(WINDOW) {
        let work = |index: usize, buffer: &mut Vec<u8>| {
            let name = window.get(index).map_or("", String::as_str);
            open(adder, dir.as_fd(), name.as_bytes(), &path.join(name), buffer)
        };
        let opened = in_parallel(adder.threads, window.len(), work)?;
        for (name, opened) in window.iter().zip(opened) {
            let root = store(adder, opened, &path.join(name), depth + 1)?;
            entries.push(DirEntry::new(name, root));
        }
    }
    adder.directory(entries, path)
}

/// The names in a directory, in the order of their bytes.
fn names(adder: &Adder<'_>, dir: &OwnedFd, path: &Path) -> Result<Vec<String>, StoreError> {
    let failed = |error: Errno| StoreError::io("list", path)(error.into());
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." || (name.starts_with(b".") && !adder.options.include_hidden) {
            continue;
        }
        let name = String::from_utf8(name.to_vec()).map_err(|error| {
            StoreError::FileName(path.join(String::from_utf8_lossy(error.as_bytes()).as_ref()))
        })?;
        if names.len() >= MAX_ENTRIES {
            let at = path.display().to_string();
            return Err(StoreError::TooMany { at, what: "entries", limit: MAX_ENTRIES as u64 });
        }
        names.push(name);
    }
    names.sort_unstable_by(|left, right| left.as_bytes().cmp(right.as_bytes()));
    Ok(names)
}

/// Opens an entry of a directory, and reads and hashes a small file.
fn open(
    adder: &Adder<'_>,
    dir: BorrowedFd<'_>,
    name: &[u8],
    path: &Path,
    buffer: &mut Vec<u8>,
) -> Result<Opened, StoreError> {
    let failed = |error: Errno| StoreError::io("open", path)(error.into());
    let found = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(failed)?;
            let target = target.into_string().map_err(|_| StoreError::FileName(path.to_owned()))?;
            return Ok(Opened::Symlink(target));
        }
        FileType::RegularFile | FileType::Directory => {}
        _ => return Err(StoreError::SpecialFile(path.to_owned())),
    }
    // What was looked at may have been replaced since: a link is refused, a pipe does not block.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(failed)?;
    let meta = rustix::fs::fstat(&opened).map_err(failed)?;
    match FileType::from_raw_mode(meta.st_mode) {
        FileType::Directory => Ok(Opened::Directory(opened)),
        FileType::RegularFile => read(adder, File::from(opened), meta.st_size as u64, path, buffer),
        _ => Err(StoreError::SpecialFile(path.to_owned())),
    }
}

fn read(
    adder: &Adder<'_>,
    file: File,
    size: u64,
    path: &Path,
    buffer: &mut Vec<u8>,
) -> Result<Opened, StoreError> {
    if size > FLAT_ABOVE_BYTES {
        return Ok(Opened::Large(file, size));
    }
    buffer.clear();
    let read = (&file).take(FLAT_ABOVE_BYTES + 1).read_to_end(buffer);
    if read.map_err(StoreError::io("read", path))? as u64 > FLAT_ABOVE_BYTES {
        return Err(StoreError::Changed(path.to_owned()));
    }
    let bytes = Bytes::copy_from_slice(buffer);
    let is_one_leaf = !bytes.is_empty() && bytes.len() <= adder.profile.chunk_bytes;
    let leaf = is_one_leaf.then(|| Leaf::of(&adder.profile, &bytes));
    Ok(Opened::Small(bytes, leaf))
}
