//! Writing content out to ordinary files.
//!
//! Nothing is ever written outside the target: every name is one plain component, every directory is opened
//! relative to the one above it and never through a link, and files are created anew. Symbolic links are written as
//! links, wherever they lead, and never followed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cid::Cid;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::block::Blocks;
use crate::read::tree::{self, Entry, Get, Visit};
use crate::read::{Limits, ReadError};

/// Why content could not be written out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The content could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file or directory could not be written.
    #[error("could not write {path}")]
    Write {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something is there that was not to be overwritten.
    #[error("{0} exists already")]
    Exists(PathBuf),
    /// More bytes than were allowed.
    #[error("the content has more than {0} bytes")]
    TooLarge(u64),
    /// The work was cut short because the runtime stops.
    #[error("the export was cut short")]
    Stopped,
}

/// How content is written out.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExportOptions {
    /// Whether files that exist are replaced. Directories are never replaced, only added to.
    pub overwrite: bool,
    /// How much may be written.
    pub limits: Limits,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exported {
    /// Files and links.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Writes a file or directory to `target`, whose parent must exist.
///
/// Blocks are asked for one after the other; what is next is announced to the source. The work is done on a
/// blocking thread; dropping the future leaves it to finish.
pub async fn export<B: Blocks + Clone + 'static>(
    blocks: &B,
    cid: Cid,
    target: &Path,
    options: ExportOptions,
) -> Result<Exported, ExportError> {
    let (blocks, target) = (blocks.clone(), target.to_owned());
    let runtime = tokio::runtime::Handle::current();
    let work = move || {
        let get = |cid: &Cid| runtime.block_on(blocks.block(cid));
        export_with(cid, &get, &target, &options)
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| ExportError::Stopped)?
}

fn export_with(
    cid: Cid,
    get: &Get<'_>,
    target: &Path,
    options: &ExportOptions,
) -> Result<Exported, ExportError> {
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = target.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| write_error(target)(Errno::INVAL))?;
    // The target's parent is the caller's word; from there on nothing is.
    let open = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, open, Mode::empty()).map_err(write_error(parent))?;
    let mut writer =
        Writer { options, target, name, dirs: vec![(String::new(), parent)], exported: Exported::default() };
    tree::walk(cid, get, &options.limits, &mut |visit: Visit<'_>| writer.visit(&visit))?;
    Ok(writer.exported)
}

struct Writer<'a> {
    options: &'a ExportOptions,
    target: &'a Path,
    name: &'a str,
    /// The open directories from the target's parent down to the last that was made, by path.
    dirs: Vec<(String, OwnedFd)>,
    exported: Exported,
}

impl Writer<'_> {
    fn visit(&mut self, visit: &Visit<'_>) -> Result<(), ExportError> {
        let (above, name) = match visit.path.rsplit_once('/') {
            Some((above, name)) => (format!("{}/{above}", self.name), name),
            None if visit.path.is_empty() => (String::new(), self.name),
            None => (self.name.to_owned(), visit.path),
        };
        // Depth first: the directory in question is the last one or above it.
        while self.dirs.last().is_some_and(|(path, _)| *path != above) {
            self.dirs.pop();
        }
        let shown = if visit.path.is_empty() { self.target.to_owned() } else { self.target.join(visit.path) };
        let (_, dir) = self.dirs.last().ok_or_else(|| write_error(&shown)(Errno::NOENT))?;
        match &visit.entry {
            Entry::Directory => {
                let made = make_dir(dir, name).map_err(write_error(&shown))?;
                let path = if above.is_empty() { name.to_owned() } else { format!("{above}/{name}") };
                self.dirs.push((path, made));
            }
            Entry::Symlink(to) => {
                self.clear(dir, name, &shown)?;
                rustix::fs::symlinkat(to.as_str(), dir, name).map_err(exists_or(&shown))?;
                self.exported.files += 1;
            }
            Entry::File(_) => {
                self.clear(dir, name, &shown)?;
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644));
                let mut file = File::from(file.map_err(exists_or(&shown))?);
                let (exported, limit) = (&mut self.exported, self.options.limits.max_bytes);
                visit.copy_to(&mut |piece| {
                    exported.bytes += piece.len() as u64;
                    if exported.bytes > limit {
                        return Err(ExportError::TooLarge(limit));
                    }
                    let failed = |source| ExportError::Write { path: shown.clone(), source };
                    file.write_all(piece).map_err(failed)
                })?;
                self.exported.files += 1;
            }
        }
        Ok(())
    }

    /// Removes what is to be overwritten, be it a link: what it leads to is left alone.
    fn clear(&self, dir: &OwnedFd, name: &str, shown: &Path) -> Result<(), ExportError> {
        if !self.options.overwrite {
            return Ok(());
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(write_error(shown)(error)),
        }
    }
}

/// Makes a directory, or takes the one that is there; never through a link.
fn make_dir(dir: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn write_error(path: &Path) -> impl Fn(Errno) -> ExportError {
    move |error| ExportError::Write { path: path.to_owned(), source: error.into() }
}

fn exists_or(path: &Path) -> impl Fn(Errno) -> ExportError {
    move |error| match error {
        Errno::EXIST => ExportError::Exists(path.to_owned()),
        error => write_error(path)(error),
    }
}
