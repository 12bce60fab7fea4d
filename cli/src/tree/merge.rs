//! The results of several partitions put together into one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

/// The files of a result that all partitions have, and that are joined.
const JOINED: [&str; 3] = ["stdout", "stderr", "exitCode"];

/// Merges the folder `from` into the folder `into`: folders are merged, the output files at their top are joined, `from`'s
/// bytes after those that are there, and no other file may be in both. Called with one partition after the other, in
/// their order. `from` is used up.
pub fn merge(from: &Path, into: &Path) -> io::Result<()> {
    merge_folder(from, into, Path::new(""))
}

/// `below`: where in the result the folders are.
fn merge_folder(from: &Path, into: &Path, below: &Path) -> io::Result<()> {
    fs::create_dir_all(into)?;
    let mut names =
        fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    for name in names {
        merge_entry(&from.join(&name), &into.join(&name), &below.join(&name))?;
    }
    Ok(())
}

fn merge_entry(from: &Path, into: &Path, below: &Path) -> io::Result<()> {
    let here = fs::symlink_metadata(from)?;
    let there = match fs::symlink_metadata(into) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return fs::rename(from, into),
        Err(error) => return Err(error),
    };
    let is_output = JOINED.iter().any(|name| below == Path::new(name));
    if here.is_dir() && there.is_dir() {
        merge_folder(from, into, below)
    } else if is_output && here.is_file() && there.is_file() {
        io::copy(&mut File::open(from)?, &mut OpenOptions::new().append(true).open(into)?).map(drop)
    } else if here.is_symlink() && there.is_symlink() && fs::read_link(from)? == fs::read_link(into)? {
        Ok(())
    } else {
        let path = below.display();
        Err(io::Error::other(format!(
            "cannot merge results as output already exists: {path}. Try --raw to download raw results without merging them"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_merge_and_the_outputs_are_joined_in_order() {
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
    fn nothing_else_of_one_name_is_merged() {
        for (one, other) in
            [("x/y", "x"), ("outputs/r.csv", "outputs/r.csv"), ("outputs/stdout", "outputs/stdout")]
        {
            let dir = tempfile::tempdir().unwrap();
            for (partition, path) in [("0", one), ("1", other)] {
                let path = dir.path().join(partition).join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, partition).unwrap();
            }
            merge(&dir.path().join("0"), &dir.path().join("all")).unwrap();
            let error = merge(&dir.path().join("1"), &dir.path().join("all")).unwrap_err();
            let expected = format!("cannot merge results as output already exists: {other}. Try --raw");
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
    }
}
