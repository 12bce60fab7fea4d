//! The results of several partitions put together into one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

/// Merges the folder `from` into the folder `into`: folders are merged, files with equal names are joined, `from`'s
/// bytes after those that are there. Called with one partition after the other, in their order. `from` is used up.
pub fn merge(from: &Path, into: &Path) -> io::Result<()> {
    fs::create_dir_all(into)?;
    let mut names =
        fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    for name in names {
        merge_entry(&from.join(&name), &into.join(&name))?;
    }
    Ok(())
}

fn merge_entry(from: &Path, into: &Path) -> io::Result<()> {
    let here = fs::symlink_metadata(from)?;
    let there = match fs::symlink_metadata(into) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return fs::rename(from, into),
        Err(error) => return Err(error),
    };
    if here.is_dir() && there.is_dir() {
        merge(from, into)
    } else if here.is_file() && there.is_file() {
        io::copy(&mut File::open(from)?, &mut OpenOptions::new().append(true).open(into)?).map(drop)
    } else if here.is_symlink() && there.is_symlink() && fs::read_link(from)? == fs::read_link(into)? {
        Ok(())
    } else {
        let name = into.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Err(io::Error::other(format!("{name} is of another kind in another partition")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_merge_and_equal_names_are_joined_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("all");
        for partition in ["0", "1"] {
            let from = dir.path().join(partition);
            fs::create_dir_all(from.join("outputs")).unwrap();
            fs::write(from.join("stdout"), format!("out {partition}\n")).unwrap();
            fs::write(from.join("outputs").join(format!("part-{partition}")), partition).unwrap();
            std::os::unix::fs::symlink("stdout", from.join("link")).unwrap();
            merge(&from, &into).unwrap();
        }
        assert_eq!(fs::read_to_string(into.join("stdout")).unwrap(), "out 0\nout 1\n");
        assert_eq!(fs::read_dir(into.join("outputs")).unwrap().count(), 2);
        assert!(into.join("link").is_symlink());
    }

    #[test]
    fn a_file_and_a_folder_of_one_name_cannot_be_merged() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("0/x")).unwrap();
        fs::create_dir_all(dir.path().join("1")).unwrap();
        fs::write(dir.path().join("1/x"), "").unwrap();
        merge(&dir.path().join("0"), &dir.path().join("all")).unwrap();
        let error = merge(&dir.path().join("1"), &dir.path().join("all")).unwrap_err();
        assert!(error.to_string().contains("x is of another kind"));
    }
}
