//! A tar stream as files: only files, folders and symbolic links, and never outside the target.
//!
//! The target is a new folder that nobody else writes to. Symbolic links are made last, so while files are written
//! no link exists that could lead a path elsewhere. A link is made only where it surely stays inside: its target is
//! relative, climbs only at its start, and no further than the target folder. The others are left out and named.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Entry, EntryType};

/// Links are held in memory until the end; archives with more are refused.
const MAX_LINKS: usize = 200_000;

/// How many links that were left out are named: a person reads no more.
const MAX_LEFT_OUT: usize = 20;

/// What was unpacked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The first of the links that lead outside and were not made.
    pub left_out: Vec<String>,
}

/// Writes the entries of an archive into `root`, a new and empty folder. Errors name the entry they are about.
pub fn unpack(archive: impl Read, root: &Path) -> io::Result<Unpacked> {
    let mut done = Unpacked::default();
    let mut links = BTreeMap::new();
    for entry in Archive::new(archive).entries()? {
        let mut entry = entry?;
        let path = inside(&entry.path()?)?;
        match entry.header().entry_type() {
            EntryType::Directory => {
                fs::create_dir_all(root.join(&path)).map_err(|error| at(&path, &error))?;
            }
            EntryType::Regular | EntryType::Continuous => {
                done.bytes += write_file(&mut entry, root, &path)?;
                done.files += 1;
            }
            EntryType::Symlink => {
                let target = entry.link_name()?.ok_or_else(|| refused(&path, "a link without a target"))?;
                if links.len() >= MAX_LINKS {
                    return Err(refused(&path, "too many symbolic links"));
                }
                links.insert(path, target.into_owned());
            }
            EntryType::XGlobalHeader => {}
            EntryType::Link => return Err(refused(&path, "a hard link")),
            EntryType::Char | EntryType::Block => return Err(refused(&path, "a device")),
            EntryType::Fifo => return Err(refused(&path, "a named pipe")),
            other => return Err(refused(&path, &format!("an entry of the kind {other:?}"))),
        }
    }
    for (path, target) in links {
        make_link(root, &path, &target, &mut done)?;
    }
    Ok(done)
}

fn write_file<R: Read>(entry: &mut Entry<'_, R>, root: &Path, path: &Path) -> io::Result<u64> {
    make_parent(root, path)?;
    let mode = entry.header().mode().unwrap_or(0o644);
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(root.join(path))
        .map_err(|error| at(path, &error))?;
    let bytes = io::copy(entry, &mut file)?;
    // Readable by its owner whatever the archive says; never set-uid.
    file.set_permissions(fs::Permissions::from_mode(mode & 0o755 | 0o600))?;
    Ok(bytes)
}

fn make_link(root: &Path, path: &Path, target: &Path, done: &mut Unpacked) -> io::Result<()> {
    if !stays_inside(path, target) {
        if done.left_out.len() < MAX_LEFT_OUT {
            done.left_out.push(format!("{} -> {}", path.display(), target.display()));
        }
        return Ok(());
    }
    make_parent(root, path)?;
    std::os::unix::fs::symlink(target, root.join(path)).map_err(|error| at(path, &error))
}

/// Makes the folders above `path`. None of them may be a link, not even one that was made just now.
fn make_parent(root: &Path, path: &Path) -> io::Result<()> {
    let mut folder = root.to_owned();
    for name in path.parent().into_iter().flat_map(Path::components) {
        folder.push(name);
        match fs::symlink_metadata(&folder) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(refused(path, "an entry below something that is no folder")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(&folder).map_err(|error| at(path, &error))?;
            }
            Err(error) => return Err(at(path, &error)),
        }
    }
    Ok(())
}

/// A path of an archive as names below the target, without `.`; anything that could lead elsewhere is refused.
fn inside(path: &Path) -> io::Result<PathBuf> {
    let mut names = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(refused(path, "a path that leads outside"));
            }
        }
    }
    Ok(names)
}

/// Whether a link at `path` surely leads to a place below the root: relative, `..` only at its start and not beyond
/// the root. Folders above the link are real ones, and every other link follows the same rule, so no chain of links
/// leads outside either.
fn stays_inside(path: &Path, target: &Path) -> bool {
    let depth = path.components().count().saturating_sub(1);
    let climbs = target.components().take_while(|component| *component == Component::ParentDir).count();
    let is_plain = |component| matches!(component, Component::Normal(_) | Component::CurDir);
    climbs <= depth && target.components().skip(climbs).all(is_plain) && !target.as_os_str().is_empty()
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {}", path.display(), crate::failure::reason(error)))
}

fn refused(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the archive holds {what}: {}", path.display()))
}

#[cfg(test)]
mod tests {
    use EntryType::{Directory, Link, Regular, Symlink};
    use tar::{Builder, Header};

    use super::*;

    #[test]
    fn files_folders_and_links_arrive() {
        let (_outer, root, result) = unpacked(&[
            (".", Directory, ""),
            ("./a/b.txt", Regular, "hello"),
            ("empty", Directory, ""),
            ("a/l", Symlink, "../empty"),
            ("dangling", Symlink, "nowhere"),
        ]);
        assert_eq!(result.unwrap(), Unpacked { files: 1, bytes: 5, left_out: vec![] });
        assert_eq!(fs::read_to_string(root.join("a/b.txt")).unwrap(), "hello");
        assert_eq!(fs::metadata(root.join("a/b.txt")).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(fs::read_link(root.join("a/l")).unwrap(), Path::new("../empty"));
        assert!(root.join("empty").is_dir());
    }

    #[test]
    fn nothing_is_written_outside_the_target() {
        for entries in [
            vec![("../x", Regular, "bad")],
            vec![("/tmp/cardume-escape-test", Regular, "bad")],
            vec![("a/../../x", Regular, "bad")],
            vec![("x", Link, "/etc/passwd")],
            vec![("x", EntryType::Char, "")],
            vec![("x", EntryType::Fifo, "")],
            vec![("a", Regular, "file"), ("a/b", Regular, "below a file")],
            vec![("a", Regular, "one"), ("a", Regular, "two")],
        ] {
            let (outer, _root, result) = unpacked(&entries);
            assert!(result.is_err(), "{entries:?}");
            assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 1, "{entries:?}");
        }
        assert!(!Path::new("/tmp/cardume-escape-test").exists());
    }

    #[test]
    fn links_are_not_followed_while_writing() {
        let (outer, root, result) = unpacked(&[
            ("out", Symlink, ".."),
            ("in", Symlink, "real"),
            ("in/x", Regular, "data"),
            ("real", Directory, ""),
        ]);
        // `in/x` made a folder `in` of its own; the link of that name comes too late.
        assert!(result.is_err());
        assert!(!root.join("real/x").exists());
        assert!(!outer.path().join("x").exists());
    }

    #[test]
    fn links_that_lead_outside_are_left_out_and_named() {
        let (_outer, root, result) = unpacked(&[
            ("abs", Symlink, "/etc/passwd"),
            ("up", Symlink, "../x"),
            ("d/up", Symlink, "../../x"),
            ("d/l", Symlink, ".."),
            ("d/m", Symlink, "l/../x"),
            ("d/ok", Symlink, "../d/l"),
        ]);
        let left_out = result.unwrap().left_out;
        assert_eq!(left_out, ["abs -> /etc/passwd", "d/m -> l/../x", "d/up -> ../../x", "up -> ../x"]);
        assert!(root.join("d/ok").is_symlink());
    }

    #[test]
    fn a_folder_and_what_was_packed_of_it_are_the_same() {
        let from = tempfile::tempdir().unwrap();
        let long = "n".repeat(180);
        let deep = Path::new(&long).join(&long);
        fs::create_dir_all(from.path().join(&deep)).unwrap();
        fs::write(from.path().join(&deep).join("f"), vec![7; 100_000]).unwrap();
        let mut bytes = Vec::new();
        crate::tree::pack::pack(from.path(), &mut bytes).unwrap();
        let to = tempfile::tempdir().unwrap();
        let done = unpack(bytes.as_slice(), to.path()).unwrap();
        assert_eq!((done.files, done.bytes), (1, 100_000));
        assert_eq!(fs::read(to.path().join(&deep).join("f")).unwrap(), vec![7; 100_000]);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            failure_persistence: None, cases: 64, ..Default::default()
        })]

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let dir = tempfile::tempdir().unwrap();
            let _ = unpack(bytes.as_slice(), dir.path());
        }
    }

    /// Unpacks entries into `outer/root`.
    fn unpacked(entries: &[(&str, EntryType, &str)]) -> (tempfile::TempDir, PathBuf, io::Result<Unpacked>) {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        fs::create_dir(&root).unwrap();
        let result = unpack(archive(entries).as_slice(), &root);
        (outer, root, result)
    }

    /// An archive of entries as they are, without the checks of a well-behaved writer.
    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
            if is_link {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
            }
            let data: &[u8] = if is_link { b"" } else { content.as_bytes() };
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data).unwrap();
        }
        builder.into_inner().unwrap()
    }
}
