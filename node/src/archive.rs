//! Folders that travel as tar: into the content store and out of it. An archive is somebody else's
//! data: only files, folders and symlinks are taken, and nothing leaves the folder it is unpacked into.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

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
    /// Larger than it may be.
    #[error("the archive unpacks to more than {0}")]
    TooLarge(String),
    /// What it unpacked to cannot be stored.
    #[error("{0}")]
    Content(#[from] FetchFault),
}

/// Adds what is in a tar.gz.
pub async fn add_gzip(content: &Content, bytes: Vec<u8>) -> Result<Added, ArchiveError> {
    let open = move || flate2::read::GzDecoder::new(std::io::Cursor::new(bytes));
    add_with(content, INLINE, &AddOptions::default(), open).await
}

/// Adds the folder whose entries a tar has. `open` is called on a thread that may block.
pub async fn add_with<R: Read>(
    content: &Content,
    bounds: Bounds,
    options: &AddOptions,
    open: impl FnOnce() -> R + Send + 'static,
) -> Result<Added, ArchiveError> {
    let dir = content.scratch().map_err(ArchiveError::Write)?;
    let target = dir.path().to_owned();
    tokio::task::spawn_blocking(move || unpack(open(), &target, bounds))
        .await
        .map_err(|error| ArchiveError::Read(std::io::Error::other(error)))??;
    Ok(content.add(dir.path(), options).await?)
}

/// Unpacks into an empty folder of ours.
fn unpack(archive: impl Read, target: &Path, bounds: Bounds) -> Result<(), ArchiveError> {
    let mut archive = Archive::new(archive);
    let (mut bytes, mut count) = (0u64, 0u64);
    for entry in archive.entries().map_err(ArchiveError::Read)? {
        let mut entry = entry.map_err(ArchiveError::Read)?;
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
                write_file(&mut entry, &path)?;
            }
            EntryType::Symlink => {
                make_dirs(target, relative.parent().unwrap_or(Path::new("")))?;
                let points_to = entry.link_name().map_err(ArchiveError::Read)?;
                let points_to = points_to.ok_or_else(|| ArchiveError::Kind(name.clone()))?;
                std::os::unix::fs::symlink(points_to, &path).map_err(ArchiveError::Write)?;
            }
            EntryType::XGlobalHeader => {}
            _ => return Err(ArchiveError::Kind(name)),
        }
    }
    Ok(())
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
            Err(error) => return Err(ArchiveError::Write(error)),
        }
    }
    Ok(())
}

fn write_file(from: &mut impl Read, path: &Path) -> Result<(), ArchiveError> {
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(ArchiveError::Write)?;
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
    fn bombs_are_refused() {
        let long = "x".repeat(2000);
        assert!(matches!(unpacked(&[("a", EntryType::Regular, &long)]).1, Err(ArchiveError::TooLarge(_))));
        let names: Vec<String> = (0..20).map(|index| format!("f{index}")).collect();
        let many: Vec<_> = names.iter().map(|name| (name.as_str(), EntryType::Regular, "")).collect();
        assert!(matches!(unpacked(&many).1, Err(ArchiveError::TooLarge(_))));
    }
}
