//! Folders that travel as tar: into the content store and out of it. An archive is somebody else's
//! data: only files, folders and symlinks are taken, and nothing leaves the folder it is unpacked into.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use bytes::Bytes;
use tar::{Archive, EntryType};

use crate::content::{AddOptions, Added, Content, FetchFault};

/// What an archive may unpack to.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of all files.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

/// Of an inline input: it was at most a few hundred KiB in the spec, so this much is a bomb's work.
const INLINE: Bounds = Bounds { bytes: 64 << 20, entries: 10_000 };
/// Folders in folders.
const DEPTH: usize = 128;
/// Bytes of one entry beside its file's: headers, and names and attributes too long for one, which are read into
/// memory. A path has at most 4 KiB and an attribute 64 KiB.
const ENTRY_BYTES: u64 = 256 << 10;
/// The same of all entries together, beyond a header and the padding for each.
const NAMES_BYTES: u64 = 64 << 20;
/// A header and the padding behind a file, for a name of its own and for the file.
const HEADER_BYTES: u64 = 4 * 512;

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// Not readable as tar.
    #[error("the archive cannot be read")]
    Read(#[source] std::io::Error),
    /// The disk.
    #[error("the archive cannot be unpacked")]
    Write(#[source] std::io::Error),
    /// An entry's name leads out of the archive.
    #[error("the archive's entry {0:?} leads outside")]
    Outside(PathBuf),
    /// An entry that is no file, folder or symlink.
    #[error("the archive's entry {0:?} is neither a file, a folder nor a symlink")]
    Kind(PathBuf),
    /// Two entries of one name.
    #[error("the archive has {0:?} twice")]
    Twice(PathBuf),
    /// A name that no system holds.
    #[error("the archive's entry {0:?} has a name or a target that cannot be used")]
    Name(PathBuf),
    /// Larger than it may be.
    #[error("the archive unpacks to more than {0}")]
    TooLarge(String),
    /// What it unpacked to cannot be stored.
    #[error("{0}")]
    Content(#[from] FetchFault),
}

/// Adds what is in a tar.gz that came with a job. It is kept for the job alone, once that is accepted.
pub async fn add_gzip(content: &Content, bytes: Vec<u8>) -> Result<Added, ArchiveError> {
    let open = move || flate2::read::GzDecoder::new(std::io::Cursor::new(bytes));
    let dir = unpacked(content, INLINE, open).await?;
    Ok(content.add_path(dir.path()).await?)
}

/// Adds the folder whose entries a tar has, for a user. `open` is called on a thread that may block.
pub async fn add_with<R: Read>(
    content: &Content,
    bounds: Bounds,
    options: &AddOptions,
    open: impl FnOnce() -> R + Send + 'static,
) -> Result<Added, ArchiveError> {
    let dir = unpacked(content, bounds, open).await?;
    Ok(content.add(dir.path(), options).await?)
}

async fn unpacked<R: Read>(
    content: &Content,
    bounds: Bounds,
    open: impl FnOnce() -> R + Send + 'static,
) -> Result<tempfile::TempDir, ArchiveError> {
    let dir = content.scratch().map_err(ArchiveError::Write)?;
    let target = dir.path().to_owned();
    tokio::task::spawn_blocking(move || unpack(open(), &target, bounds))
        .await
        .map_err(|error| ArchiveError::Read(std::io::Error::other(error)))??;
    Ok(dir)
}

/// A reader that stops where it is told: what the archive says of an entry's length counts for nothing.
struct Rationed<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Rationed<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.left.get()).unwrap_or(usize::MAX).min(into.len());
        if most == 0 && !into.is_empty() {
            return Err(std::io::Error::other("an entry has more beside its file than any needs"));
        }
        let read = self.inner.read(&mut into[..most])?;
        self.left.set(self.left.get() - read as u64);
        Ok(read)
    }
}

/// Unpacks into an empty folder of ours.
fn unpack(archive: impl Read, target: &Path, bounds: Bounds) -> Result<(), ArchiveError> {
    let left = Rc::new(Cell::new(ENTRY_BYTES));
    let mut archive = Archive::new(Rationed { inner: archive, left: Rc::clone(&left) });
    let (mut bytes, mut count, mut names) = (0u64, 0u64, NAMES_BYTES);
    for entry in archive.entries().map_err(ArchiveError::Read)? {
        let mut entry = entry.map_err(ArchiveError::Read)?;
        names =
            names.saturating_sub((ENTRY_BYTES - left.get().min(ENTRY_BYTES)).saturating_sub(HEADER_BYTES));
        if names == 0 {
            return Err(ArchiveError::TooLarge(format!("{NAMES_BYTES} bytes of names")));
        }
        left.set(ENTRY_BYTES);
        count += 1;
        if count > bounds.entries {
            return Err(ArchiveError::TooLarge(format!("{} entries", bounds.entries)));
        }
        let name = entry.path().map_err(ArchiveError::Read)?.into_owned();
        let Some(relative) = inside(&name)? else { continue };
        let path = target.join(&relative);
        // Symlinks are made last of all, so that no later entry can go through one.
        match entry.header().entry_type() {
            EntryType::Directory => make_dirs(target, &relative)?,
            EntryType::Regular | EntryType::Continuous => {
                make_dirs(target, relative.parent().unwrap_or(Path::new("")))?;
                bytes = bytes.saturating_add(entry.size());
                if bytes > bounds.bytes {
                    return Err(ArchiveError::TooLarge(format!("{} bytes", bounds.bytes)));
                }
                left.set(ENTRY_BYTES.saturating_add(entry.size()));
                write_file(&mut entry, &path, &name)?;
            }
            EntryType::Symlink => {
                make_dirs(target, relative.parent().unwrap_or(Path::new("")))?;
                let points_to = entry.link_name().map_err(ArchiveError::Read)?;
                let points_to = points_to.ok_or_else(|| ArchiveError::Kind(name.clone()))?;
                std::os::unix::fs::symlink(points_to, &path).map_err(unmade(&name))?;
            }
            EntryType::XGlobalHeader => {}
            _ => return Err(ArchiveError::Kind(name)),
        }
    }
    Ok(())
}

/// Why an entry was not made: by its own fault, or the disk's.
fn unmade(name: &Path) -> impl FnOnce(std::io::Error) -> ArchiveError {
    use std::io::ErrorKind;
    let name = name.to_owned();
    move |error| match error.kind() {
        ErrorKind::AlreadyExists | ErrorKind::IsADirectory => ArchiveError::Twice(name),
        // An empty target, a null byte, a component above 255 bytes.
        ErrorKind::NotFound | ErrorKind::InvalidInput | ErrorKind::InvalidFilename => {
            ArchiveError::Name(name)
        }
        _ => ArchiveError::Write(error),
    }
}

/// The entry's path below the target; `None` for the target itself.
fn inside(name: &Path) -> Result<Option<PathBuf>, ArchiveError> {
    let mut path = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            _ => return Err(ArchiveError::Outside(name.to_owned())),
        }
    }
    if path.components().count() > DEPTH {
        return Err(ArchiveError::TooLarge(format!("{DEPTH} levels")));
    }
    Ok((!path.as_os_str().is_empty()).then_some(path))
}

/// Makes the folders of a path below the target, and refuses to go through anything that is not one.
fn make_dirs(target: &Path, relative: &Path) -> Result<(), ArchiveError> {
    let mut path = target.to_owned();
    for part in relative.components() {
        path.push(part);
        match std::fs::create_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let kind = std::fs::symlink_metadata(&path).map_err(ArchiveError::Write)?;
                if !kind.is_dir() {
                    return Err(ArchiveError::Outside(relative.to_owned()));
                }
            }
            Err(error) => return Err(unmade(relative)(error)),
        }
    }
    Ok(())
}

fn write_file(from: &mut impl Read, path: &Path, name: &Path) -> Result<(), ArchiveError> {
    let mut file: File =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(unmade(name))?;
    std::io::copy(from, &mut file).map_err(ArchiveError::Read)?;
    file.flush().map_err(ArchiveError::Write)
}

/// Writes a file, a symlink or a folder's entries as tar; runs on a thread that may block.
pub fn pack(path: &Path, into: impl Write) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(into);
    archive.follow_symlinks(false);
    archive.mode(tar::HeaderMode::Deterministic);
    let kind = std::fs::symlink_metadata(path)?;
    if kind.is_dir() {
        archive.append_dir_all(".", path)?;
    } else {
        archive.append_path_with_name(path, "file")?;
    }
    archive.into_inner()?.flush()
}

/// A body that arrives in pieces, for readers on threads that may block.
pub struct Pieces {
    pieces: tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>,
    now: Bytes,
}

impl Pieces {
    /// Reads what is sent.
    pub fn new(pieces: tokio::sync::mpsc::Receiver<std::io::Result<Bytes>>) -> Self {
        Pieces { pieces, now: Bytes::new() }
    }
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.now.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.now = piece?,
                None => return Ok(0),
            }
        }
        let size = self.now.len().min(into.len());
        into[..size].copy_from_slice(&self.now.split_to(size));
        Ok(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { bytes: 1000, entries: 10 };

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, kind, data) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            let raw = name.as_bytes();
            header.as_gnu_mut().unwrap().name[..raw.len()].copy_from_slice(raw);
            if matches!(kind, EntryType::Symlink | EntryType::Link) {
                header.set_link_name_literal(data).unwrap();
                header.set_size(0);
                header.set_cksum();
                archive.append(&header, std::io::empty()).unwrap();
            } else {
                header.set_size(data.len() as u64);
                header.set_cksum();
                archive.append(&header, data.as_bytes()).unwrap();
            }
        }
        archive.into_inner().unwrap()
    }

    fn unpacked(entries: &[(&str, EntryType, &str)]) -> (tempfile::TempDir, Result<(), ArchiveError>) {
        let dir = tempfile::tempdir().unwrap();
        let done = unpack(&archive(entries)[..], dir.path(), BOUNDS);
        (dir, done)
    }

    #[test]
    fn files_folders_and_symlinks_come_out_as_they_went_in() {
        let entries = [
            ("./", EntryType::Directory, ""),
            ("a/b.txt", EntryType::Regular, "hello"),
            ("empty", EntryType::Directory, ""),
            ("link", EntryType::Symlink, "a/b.txt"),
        ];
        let (dir, done) = unpacked(&entries);
        done.unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("a/b.txt")).unwrap(), "hello");
        assert_eq!(std::fs::read_link(dir.path().join("link")).unwrap(), Path::new("a/b.txt"));
        let mut packed = Vec::new();
        pack(dir.path(), &mut packed).unwrap();
        let again = tempfile::tempdir().unwrap();
        unpack(&packed[..], again.path(), BOUNDS).unwrap();
        assert_eq!(std::fs::read_to_string(again.path().join("link")).unwrap(), "hello");
    }

    #[test]
    fn nothing_leaves_the_folder() {
        let outside = [
            [("../x", EntryType::Regular, "!")].as_slice(),
            &[("/tmp/x", EntryType::Regular, "!")],
            &[("a/../../x", EntryType::Regular, "!")],
            &[("link", EntryType::Symlink, "/tmp"), ("link/x", EntryType::Regular, "!")],
            &[("dir", EntryType::Fifo, "")],
            &[("hard", EntryType::Link, "/etc/passwd")],
            &[("device", EntryType::Char, "")],
        ];
        for entries in outside {
            let (_dir, done) = unpacked(entries);
            assert!(done.is_err(), "{entries:?}");
        }
    }

    #[test]
    fn an_entry_that_comes_twice_is_the_archives_fault() {
        for kind in [EntryType::Regular, EntryType::Symlink] {
            let done = unpacked(&[("a", EntryType::Regular, "one"), ("a", kind, "two")]).1;
            assert!(matches!(done, Err(ArchiveError::Twice(_))), "{done:?}");
        }
        let done = unpacked(&[("a/b", EntryType::Regular, ""), ("a", EntryType::Regular, "")]).1;
        assert!(matches!(done, Err(ArchiveError::Twice(_))), "{done:?}");
        let done = unpacked(&[("link", EntryType::Symlink, "")]).1;
        assert!(matches!(done, Err(ArchiveError::Name(_) | ArchiveError::Kind(_))), "{done:?}");
    }

    #[test]
    fn names_and_attributes_take_no_more_memory_than_a_name_needs() {
        for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(1 << 30);
            header.set_cksum();
            let taken = Rc::new(Cell::new(u64::MAX));
            let endless = Rationed { inner: std::io::repeat(b'a'), left: Rc::clone(&taken) };
            let dir = tempfile::tempdir().unwrap();
            let done = unpack(header.as_bytes()[..].chain(endless), dir.path(), BOUNDS);
            assert!(matches!(done, Err(ArchiveError::Read(_))), "{done:?}");
            assert!(u64::MAX - taken.get() <= ENTRY_BYTES);
        }
        let long = "a/".repeat(100) + "name";
        let dir = tempfile::tempdir().unwrap();
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        archive.append_data(&mut header, &long, &b"hello"[..]).unwrap();
        unpack(&archive.into_inner().unwrap()[..], dir.path(), BOUNDS).unwrap();
        assert_eq!(std::fs::read(dir.path().join(long)).unwrap(), b"hello");
    }

    #[test]
    fn bombs_are_refused() {
        let long = "x".repeat(2000);
        assert!(matches!(unpacked(&[("a", EntryType::Regular, &long)]).1, Err(ArchiveError::TooLarge(_))));
        let names: Vec<String> = (0..20).map(|index| format!("f{index}")).collect();
        let many: Vec<_> = names.iter().map(|name| (name.as_str(), EntryType::Regular, "")).collect();
        assert!(matches!(unpacked(&many).1, Err(ArchiveError::TooLarge(_))));
    }
}
