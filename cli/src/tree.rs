//! Files and folders on this machine on their way into content and out of it.

pub mod install;
pub mod merge;
pub mod pack;
pub mod unpack;

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// A new, empty folder beside a target, on the same file system, so that a rename can put it in place. It is removed
/// when this value is dropped.
#[derive(Debug)]
pub struct Staging {
    path: PathBuf,
}

impl Staging {
    /// Makes one beside `target`, whose parents are made when they are missing.
    pub fn beside(target: &Path) -> Result<Staging, Failure> {
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(parent).map_err(|error| {
            Failure::local(format!("cannot make the folder {}", parent.display()), &error)
        })?;
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|error| Failure::refused(format!("cannot draw a random name: {error}")))?;
        let path = parent.join(format!(".cardume-{:016x}", u64::from_ne_bytes(random)));
        std::fs::create_dir(&path)
            .map_err(|error| Failure::local(format!("cannot write in {}", parent.display()), &error))?;
        Ok(Staging { path })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What was put in place is no longer in it; if the rest cannot be removed, there is nobody left to tell.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
