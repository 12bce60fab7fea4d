//! Removing what guests left, whatever it looks like.
//!
//! The standard library's removal descends with a descriptor (and a stack frame) for each level, so a tree of
//! some thousand directories in each other, which a guest makes in a moment, is one that it cannot remove. Here
//! every directory is brought up to the top before it is emptied: three descriptors do for any depth.

use std::ffi::{CStr, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, chmodat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use tracing::{debug, warn};

/// Entries that are removed before it counts as endless: whoever still writes into the tree must not keep its
/// remover for ever. No execution may leave a tenth of it.
const ENTRIES_MAX: u64 = 16 << 20;

/// What is set aside has its old name with this and a number behind it.
const ASIDE: &str = ".gone-";

/// Removes a file, or a directory with everything in it, however deep it lies; it need not be there. Follows no
/// link. Blocks.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    Removal { top: open(CWD, path)?, next: 0, seen: 0 }.run()?;
    Ok(unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

/// Leaves an empty directory at `path`. What was there is moved aside at once and removed by and by on a thread
/// of its own; so is what an earlier process did not get to remove. Blocks.
pub fn empty_dir(path: &Path) -> io::Result<()> {
    let old = left_aside(path);
    let free = (0_u64..).map(|number| aside(path, number)).find(|place| !old.contains(place));
    if let Some(place) = &free {
        match fs::rename(path, place) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A mount point cannot be moved, only emptied where it is.
            Err(_) => empty_in_place(path),
        }
    }
    fs::create_dir_all(path)?;
    let all: Vec<PathBuf> = old.into_iter().chain(free).collect();
    let removed = thread::Builder::new().name("removal".into()).spawn(move || {
        for path in all {
            match remove_tree(&path) {
                Ok(()) => debug!(path = %path.display(), "removed what an earlier run left"),
                Err(error) => {
                    warn!(path = %path.display(), %error, "what an earlier run left cannot be removed");
                }
            }
        }
    });
    if let Err(error) = removed {
        warn!(%error, "what an earlier run left is not removed now");
    }
    Ok(())
}

fn empty_in_place(path: &Path) {
    let emptied = open(CWD, path).map_err(io::Error::from);
    let emptied = emptied.and_then(|top| Removal { top, next: 0, seen: 0 }.run());
    if let Err(error) = emptied {
        warn!(path = %path.display(), %error, "what an earlier run left cannot be removed");
    }
}

fn aside(path: &Path, number: u64) -> PathBuf {
    let mut name = path.file_name().unwrap_or(OsStr::new("directory")).to_owned();
    name.push(format!("{ASIDE}{number}"));
    path.with_file_name(name)
}

/// What was moved aside earlier and is still there.
fn left_aside(path: &Path) -> Vec<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Vec::new();
    };
    let prefix = format!("{name}{ASIDE}");
    let ours =
        |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix));
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries.filter(ours).map(|entry| entry.path()).collect()
}

/// A directory that is being emptied.
struct Removal {
    top: OwnedFd,
    /// Numbers the directories that are brought up.
    next: u64,
    seen: u64,
}

impl Removal {
    fn run(mut self) -> io::Result<()> {
        // What is brought up may be missed by the pass that brings it.
        loop {
            let mut any = false;
            for entry in Dir::read_from(&self.top)? {
                let entry = entry?;
                let name = entry.file_name();
                if !is_real(name) {
                    continue;
                }
                any = true;
                self.count()?;
                if !unlinked(self.top.as_fd(), name)? {
                    self.empty(name)?;
                }
            }
            if !any {
                return Ok(());
            }
        }
    }

    /// Removes a directory at the top, after bringing up those in it.
    fn empty(&mut self, name: &CStr) -> io::Result<()> {
        let directory = match open(self.top.as_fd(), name) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        loop {
            for entry in Dir::read_from(&directory)? {
                let entry = entry?;
                if is_real(entry.file_name()) {
                    self.count()?;
                    if !unlinked(directory.as_fd(), entry.file_name())? {
                        self.bring_up(directory.as_fd(), entry.file_name())?;
                    }
                }
            }
            match unlinkat(&self.top, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // The pass missed something.
                Err(Errno::NOTEMPTY | Errno::EXIST) => self.count()?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn bring_up(&mut self, from: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        let mut made_writable = false;
        loop {
            let to = format!(".{}", self.next);
            self.next += 1;
            match renameat(from, name, &self.top, to) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                // Something of that name is there already.
                Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => self.count()?,
                // Who moves a directory changes it.
                Err(Errno::ACCESS) if !made_writable => {
                    make_writable(from, name)?;
                    made_writable = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn count(&mut self) -> io::Result<()> {
        self.seen += 1;
        if self.seen > ENTRIES_MAX {
            return Err(io::Error::other("it does not get empty: something still writes into it"));
        }
        Ok(())
    }
}

fn is_real(name: &CStr) -> bool {
    name != c"." && name != c".."
}

/// Removes what is no directory; whether it was none.
fn unlinked(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::ISDIR) => Ok(false),
        // Some file systems say this of directories.
        Err(Errno::PERM) if is_directory(parent, name) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_directory(parent: BorrowedFd<'_>, name: &CStr) -> bool {
    statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// Opens a directory to be emptied, also one that its owner may not read.
fn open<P: rustix::path::Arg + Copy>(parent: BorrowedFd<'_>, path: P) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(parent, path, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            make_writable(parent, path)?;
            openat(parent, path, flags, Mode::empty())
        }
        other => other,
    }
}

/// For its owner. That it is a directory and no link was seen before; who could exchange it for one in between
/// has this node's own user.
fn make_writable<P: rustix::path::Arg>(parent: BorrowedFd<'_>, path: P) -> Result<(), Errno> {
    chmodat(parent, path, Mode::RWXU, AtFlags::empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Directories in each other, deeper than any path can name.
    fn deep(top: &Path, depth: usize) {
        fs::create_dir_all(top).unwrap();
        let mut current = open(CWD, top).unwrap();
        for _ in 0..depth {
            rustix::fs::mkdirat(&current, "d", Mode::RWXU).unwrap();
            current = open(current.as_fd(), "d").unwrap();
        }
        drop(openat(&current, "f", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap());
    }

    #[test]
    fn a_tree_deeper_than_there_are_descriptors_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        deep(&top, 3_000);
        remove_tree(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn files_links_and_names_that_removal_itself_gives_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), b"stays").unwrap();
        let top = dir.path().join("top");
        for taken in [".0/.1/.0/.2", ".1/x", "a/b/c", "a/.0"] {
            fs::create_dir_all(top.join(taken)).unwrap();
            fs::write(top.join(taken).join("file"), b"goes").unwrap();
        }
        fs::write(top.join(".2"), b"goes").unwrap();
        std::os::unix::fs::symlink(&outside, top.join("a/link")).unwrap();
        fs::set_permissions(top.join("a/b/c"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(top.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        assert!(outside.join("file").exists());
        remove_tree(&top).unwrap();
        remove_tree(&outside.join("file")).unwrap();
        assert!(!outside.join("file").exists());
    }

    #[test]
    fn an_emptied_directory_is_there_at_once_and_what_was_in_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("work");
        deep(&work, 300);
        deep(&dir.path().join("work.gone-0"), 300);
        empty_dir(&work).unwrap();
        assert_eq!(fs::read_dir(&work).unwrap().count(), 0);
        while !left_aside(&work).is_empty() {
            thread::yield_now();
        }
        empty_dir(&work).unwrap();
        assert!(work.is_dir());
    }
}
