//! One data directory, one process: an advisory lock on `DATA_DIR/lock` that the kernel drops with its
//! holder, however that ends. The file holds the holder's process id, for error texts only.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// The lock, held while this value lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why the directory could not be locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process works on this directory.
    #[error("another process{} works on this data directory", holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Held {
        /// Its process id, when the file says so.
        holder: Option<u32>,
    },
    /// The file cannot be made or locked.
    #[error("the lock file cannot be opened")]
    Io(#[source] std::io::Error),
}

impl Lock {
    /// Takes the lock, or says who has it.
    pub fn take(data_dir: &Path) -> Result<Self, LockError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(data_dir.join("lock"))
            .map_err(LockError::Io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LockError::Held { holder: read_pid(&mut file) });
            }
            Err(error) => return Err(LockError::Io(error.into())),
        }
        write_pid(&mut file).map_err(LockError::Io)?;
        Ok(Lock { _file: file })
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_locked_once_and_free_again_after_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::take(dir.path()).unwrap();
        match Lock::take(dir.path()) {
            Err(LockError::Held { holder }) => assert_eq!(holder, Some(std::process::id())),
            other => panic!("locked twice: {other:?}"),
        }
        drop(held);
        Lock::take(dir.path()).unwrap();
    }
}
