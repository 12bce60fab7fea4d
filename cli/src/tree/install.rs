//! Puts what has arrived in its place, without overwriting anything unasked.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, exit};

/// Moves `from` (a file or folder in a [`super::Staging`]) to `target`. A folder that exists there takes in the new
/// entries. Files that exist are an error, found before anything is moved, unless `force` allows to replace them.
pub fn install(from: &Path, target: &Path, force: bool) -> Result<(), Failure> {
    let target = resolved(target);
    check(from, &target, force)?;
    place(from, &target).map_err(|error| Failure::local(format!("cannot write {}", target.display()), &error))
}

/// The user's own link to a folder stands for that folder. Links inside it do not.
fn resolved(target: &Path) -> PathBuf {
    let is_link = fs::symlink_metadata(target).is_ok_and(|there| there.is_symlink());
    match fs::canonicalize(target) {
        Ok(folder) if is_link && folder.is_dir() => folder,
        _ => target.to_owned(),
    }
}

/// Fails when something that exists stands in the way.
fn check(from: &Path, target: &Path, force: bool) -> Result<(), Failure> {
    let Some(there) = existing(target)? else { return Ok(()) };
    let here = fs::symlink_metadata(from)
        .map_err(|error| Failure::local(format!("cannot read {}", from.display()), &error))?;
    match (here.is_dir(), there.is_dir()) {
        (true, true) => check_entries(from, target, force),
        (false, false) if force => Ok(()),
        (false, true) => Err(in_the_way(target, "is a folder, and a file would take its place")),
        (true, false) => Err(in_the_way(target, "is no folder, and a folder would take its place")),
        (false, false) => {
            Err(in_the_way(target, "exists already")
                .hint("give another --output-dir, or --force to overwrite"))
        }
    }
}

fn check_entries(from: &Path, target: &Path, force: bool) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::local(format!("cannot read {}", from.display()), &error);
    for entry in fs::read_dir(from).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        check(&from.join(&name), &target.join(&name), force)?;
    }
    Ok(())
}

fn place(from: &Path, target: &Path) -> io::Result<()> {
    let into_folder = fs::symlink_metadata(target).is_ok_and(|there| there.is_dir());
    if !into_folder || !fs::symlink_metadata(from)?.is_dir() {
        return fs::rename(from, target);
    }
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        place(&from.join(&name), &target.join(&name))?;
    }
    Ok(())
}

fn existing(path: &Path) -> Result<Option<Metadata>, Failure> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::local(format!("cannot look at {}", path.display()), &error)),
    }
}

fn in_the_way(path: &Path, why: &str) -> Failure {
    Failure::new(exit::REFUSED, "Conflict", format!("cannot write {}: it {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_exists_takes_in_new_entries() {
        let (from, to) = (tree(&["new/a/x", "new/b"]), tree(&["target/a/y"]));
        install(&from.path().join("new"), &to.path().join("target"), false).unwrap();
        for file in ["a/x", "a/y", "b"] {
            assert!(to.path().join("target").join(file).exists(), "{file}");
        }
    }

    #[test]
    fn nothing_is_moved_when_something_would_be_overwritten() {
        let (from, to) = (tree(&["new/a", "new/b"]), tree(&["target/b"]));
        let failure = install(&from.path().join("new"), &to.path().join("target"), false).unwrap_err();
        assert!(failure.message.contains("target/b"), "{failure}");
        assert_eq!(failure.exit, exit::REFUSED);
        assert!(!to.path().join("target/a").exists());
        assert_eq!(fs::read_to_string(to.path().join("target/b")).unwrap(), "target/b");
        install(&from.path().join("new"), &to.path().join("target"), true).unwrap();
        assert_eq!(fs::read_to_string(to.path().join("target/b")).unwrap(), "new/b");
    }

    #[test]
    fn files_and_folders_never_replace_each_other() {
        let (from, to) = (tree(&["file", "folder/x"]), tree(&["file/x", "folder"]));
        for name in ["file", "folder"] {
            assert!(install(&from.path().join(name), &to.path().join(name), true).is_err());
        }
    }

    #[test]
    fn a_link_to_a_folder_is_that_folder_but_links_inside_are_not_followed() {
        let (from, to) = (tree(&["new/sub/x"]), tree(&["real/y", "other/z"]));
        std::os::unix::fs::symlink("real", to.path().join("link")).unwrap();
        std::os::unix::fs::symlink("../other", to.path().join("real/sub")).unwrap();
        assert!(install(&from.path().join("new"), &to.path().join("link"), true).is_err());
        fs::remove_file(to.path().join("real/sub")).unwrap();
        install(&from.path().join("new"), &to.path().join("link"), false).unwrap();
        assert!(to.path().join("real/sub/x").exists() && to.path().join("link").is_symlink());
    }

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, *file).unwrap();
        }
        dir
    }
}
