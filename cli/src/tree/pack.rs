//! A folder as a tar stream: sorted, symbolic links kept, special files refused by name.

use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

/// Deeper folders are refused: each level holds a listing in memory, and no sane tree comes near.
const MAX_DEPTH: usize = 256;

/// Writes the content of `root` (not `root` itself) as a tar archive. Errors name the file they are about.
pub fn pack(root: &Path, out: impl Write) -> io::Result<()> {
    let mut builder = Builder::new(out);
    pack_folder(&mut builder, root, Path::new(""), 0)?;
    builder.into_inner()?.flush()
}

fn pack_folder<W: Write>(
    builder: &mut Builder<W>,
    root: &Path,
    below: &Path,
    depth: usize,
) -> io::Result<()> {
    let folder = root.join(below);
    if depth > MAX_DEPTH {
        return Err(about(&folder, "it is nested too deeply"));
    }
    let mut names = Vec::new();
    for entry in folder.read_dir().map_err(|error| at(&folder, &error))? {
        names.push(entry.map_err(|error| at(&folder, &error))?.file_name());
    }
    names.sort();
    for name in names {
        pack_entry(builder, root, &below.join(name), depth)?;
    }
    Ok(())
}

fn pack_entry<W: Write>(builder: &mut Builder<W>, root: &Path, below: &Path, depth: usize) -> io::Result<()> {
    let path = root.join(below);
    if below.to_str().is_none() {
        return Err(about(&path, "its name is not UTF-8"));
    }
    let metadata = path.symlink_metadata().map_err(|error| at(&path, &error))?;
    let kind = metadata.file_type();
    let mut header = Header::new_gnu();
    header.set_mode(metadata.permissions().mode() & 0o777);
    header.set_size(0);
    if kind.is_dir() {
        header.set_entry_type(EntryType::Directory);
        builder.append_data(&mut header, below, io::empty())?;
        pack_folder(builder, root, below, depth + 1)
    } else if kind.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        let target: PathBuf = path.read_link().map_err(|error| at(&path, &error))?;
        builder.append_link(&mut header, below, target).map_err(|error| at(&path, &error))
    } else if kind.is_file() {
        header.set_entry_type(EntryType::Regular);
        pack_file(builder, header, &path, below, &metadata)
    } else {
        Err(about(&path, special(&metadata)))
    }
}

fn pack_file<W: Write>(
    builder: &mut Builder<W>,
    mut header: Header,
    path: &Path,
    below: &Path,
    metadata: &Metadata,
) -> io::Result<()> {
    let file = File::open(path).map_err(|error| at(path, &error))?;
    header.set_size(metadata.len());
    builder.append_data(&mut header, below, Exactly { file, left: metadata.len(), path })
}

/// Reads as many bytes as were announced; a file that became shorter meanwhile is an error, growth is not seen.
struct Exactly<'a> {
    file: File,
    left: u64,
    path: &'a Path,
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.file.read(&mut buffer[..most]).map_err(|error| at(self.path, &error))?;
        if count == 0 {
            return Err(about(self.path, "it became shorter while it was read"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// What a file is that is neither file, folder nor link.
pub fn special(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_socket() {
        "it is a socket, and only files, folders and symbolic links can be added"
    } else if kind.is_fifo() {
        "it is a named pipe, and only files, folders and symbolic links can be added"
    } else {
        "it is a device, and only files, folders and symbolic links can be added"
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    about(path, &crate::failure::reason(error))
}

fn about(path: &Path, why: &str) -> io::Error {
    io::Error::other(format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_sorted_and_links_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        std::fs::write(dir.path().join("b/z"), "z").unwrap();
        std::fs::write(dir.path().join("a"), "aa").unwrap();
        std::os::unix::fs::symlink("../elsewhere", dir.path().join("c")).unwrap();
        let mut bytes = Vec::new();
        pack(dir.path(), &mut bytes).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            (path.trim_end_matches('/').to_owned(), entry.header().entry_type(), entry.size())
        });
        let expected = [
            ("a", EntryType::Regular, 2),
            ("b", EntryType::Directory, 0),
            ("b/z", EntryType::Regular, 1),
            ("c", EntryType::Symlink, 0),
        ];
        let expected = expected.map(|(name, kind, size)| (name.to_owned(), kind, size));
        assert_eq!(entries.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn special_files_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("s.sock")).unwrap();
        let error = pack(dir.path(), io::sink()).unwrap_err().to_string();
        assert!(error.contains("s.sock: it is a socket"), "{error}");
    }
}
