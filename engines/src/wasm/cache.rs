//! Compiled modules on disk.
//!
//! Each is two files: the machine code, and beside it what is known of the module with the code's length
//! and hash. The second is written last and read first, so code without it, or that differs from it, does
//! not count. Names come from a hash over everything that the code depends on.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{MemfdFlags, StatVfsMountFlags, fcntl_add_seals, memfd_create, statvfs};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::compile_child::SEALS;

/// Everything that compiled code depends on, hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CodeKey(pub [u8; 32]);

/// What is known of a compiled module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    schema: u32,
    memory_minimum: u64,
    length: u64,
    sha256: [u8; 32],
}

/// The form of [`Meta`]; others are compiled again.
const SCHEMA: u32 = 1;

/// A [`Meta`] is shorter than this.
const META_BYTES: u64 = 1 << 10;

/// A directory of compiled modules, bounded by its size; the longest unused go first.
#[derive(Debug)]
pub(crate) struct Cache {
    dir: PathBuf,
    bytes: u64,
    /// Nothing may be executed from some file systems; code is then copied into memory first.
    mappable: bool,
}

impl Cache {
    /// Opens or makes the directory, and drops what an interrupted write left.
    pub fn open(dir: &Path, bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let mappable = !statvfs(dir)?.f_flag.contains(StatVfsMountFlags::NOEXEC);
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                fs::remove_file(path)?;
            }
        }
        Ok(Cache { dir: dir.to_owned(), bytes, mappable })
    }

    /// Whether there is something under this name. It may yet turn out to be damaged.
    pub fn has(&self, key: CodeKey) -> bool {
        self.path(key, "meta").exists()
    }

    /// The code under this name and its module's memory minimum, if it is there and whole. Blocks.
    pub fn get(&self, key: CodeKey) -> Option<(File, u64)> {
        let (code, memory_minimum) = match self.read(key) {
            Ok(found) => found,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(%error, "a compiled module in the cache is damaged; compiling it again");
                    self.remove(key);
                }
                return None;
            }
        };
        // Its age decides what goes first.
        if let Err(error) = code.set_modified(SystemTime::now()) {
            warn!(%error, "cannot mark a compiled module as used");
        }
        self.mappable(code).map(|code| (code, memory_minimum))
    }

    /// Keeps what `code` holds under this name, and gives back a file to map: the kept one, so that memory
    /// need not hold it, or `code` itself when the disk does not take it. Blocks.
    pub fn put(&self, key: CodeKey, code: File, memory_minimum: u64) -> File {
        let kept = self.write(key, &code, memory_minimum).and_then(|()| {
            self.shrink(key);
            File::open(self.path(key, "cwasm"))
        });
        match kept {
            Ok(kept) if self.mappable => kept,
            Ok(_) => code,
            Err(error) => {
                warn!(%error, "cannot keep a compiled module");
                self.remove(key);
                code
            }
        }
    }

    fn path(&self, key: CodeKey, extension: &str) -> PathBuf {
        let name: String = key.0.iter().map(|byte| format!("{byte:02x}")).collect();
        self.dir.join(format!("{name}.{extension}"))
    }

    fn read(&self, key: CodeKey) -> io::Result<(File, u64)> {
        let mut bytes = Vec::new();
        File::open(self.path(key, "meta"))?.take(META_BYTES).read_to_end(&mut bytes)?;
        let meta: Meta = cbor4ii::serde::from_slice(&bytes).map_err(invalid)?;
        // Runners get this descriptor, so it must not be a writable one.
        let mut code = File::open(self.path(key, "cwasm"))?;
        let found = summary(&mut code, meta.memory_minimum)?;
        if found != meta {
            return Err(invalid("its code is not what was written"));
        }
        Ok((code, meta.memory_minimum))
    }

    fn write(&self, key: CodeKey, code: &File, memory_minimum: u64) -> io::Result<()> {
        let mut code = code.try_clone()?;
        let meta = summary(&mut code, memory_minimum)?;
        code.rewind()?;
        let new = self.path(key, "cwasm.new");
        let mut file = File::create(&new)?;
        io::copy(&mut code, &mut file)?;
        file.sync_data()?;
        fs::rename(&new, self.path(key, "cwasm"))?;
        let new = self.path(key, "meta.new");
        let mut file = File::create(&new)?;
        file.write_all(&cbor4ii::serde::to_vec(Vec::new(), &meta).map_err(invalid)?)?;
        file.sync_data()?;
        fs::rename(&new, self.path(key, "meta"))
    }

    fn remove(&self, key: CodeKey) {
        for extension in ["meta", "cwasm", "meta.new", "cwasm.new"] {
            // What is not there needs no removing, and what cannot be removed is not believed.
            let _ = fs::remove_file(self.path(key, extension));
        }
    }

    /// Removes the longest unused until the rest is within bounds; never what was just put.
    fn shrink(&self, just_put: CodeKey) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut kept: Vec<(SystemTime, u64, PathBuf)> = entries
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "cwasm"))
            .filter_map(|entry| {
                let metadata = entry.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.len(), entry.path()))
            })
            .collect();
        kept.sort();
        let mut total: u64 = kept.iter().map(|(_, length, _)| length).sum();
        let spared = self.path(just_put, "cwasm");
        for (_, length, path) in kept {
            if total <= self.bytes {
                break;
            }
            if path != spared {
                let _ = fs::remove_file(path.with_extension("meta"));
                let _ = fs::remove_file(&path);
                total -= length;
            }
        }
    }

    fn mappable(&self, mut code: File) -> Option<File> {
        if self.mappable {
            return Some(code);
        }
        let mut copy = || -> io::Result<File> {
            let mut memory =
                File::from(memfd_create("compiled", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
            code.rewind()?;
            io::copy(&mut code, &mut memory)?;
            fcntl_add_seals(memory.as_fd(), SEALS)?;
            Ok(memory)
        };
        copy().map_err(|error| warn!(%error, "cannot copy a compiled module into memory")).ok()
    }
}

/// Length and hash of a whole file.
fn summary(code: &mut File, memory_minimum: u64) -> io::Result<Meta> {
    code.rewind()?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut length = 0;
    loop {
        let read = code.read(&mut buffer)?;
        if read == 0 {
            return Ok(Meta { schema: SCHEMA, memory_minimum, length, sha256: hash.finalize().into() });
        }
        hash.update(&buffer[..read]);
        length += read as u64;
    }
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn contents((mut file, minimum): (File, u64)) -> (Vec<u8>, u64) {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        (bytes, minimum)
    }

    #[test]
    fn what_was_put_is_found_again_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let key = CodeKey([1; 32]);
        let cache = Cache::open(dir.path(), 1 << 20).unwrap();
        assert!(cache.get(key).is_none());
        cache.put(key, code(b"machine code"), 7);
        let cache = Cache::open(dir.path(), 1 << 20).unwrap();
        assert!(cache.has(key));
        assert_eq!(contents(cache.get(key).unwrap()), (b"machine code".to_vec(), 7));
    }

    #[test]
    fn damaged_code_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let key = CodeKey([1; 32]);
        let cache = Cache::open(dir.path(), 1 << 20).unwrap();
        cache.put(key, code(b"machine code"), 7);
        fs::write(cache.path(key, "cwasm"), b"machine c0de").unwrap();
        assert!(cache.get(key).is_none());
        assert!(!cache.has(key));
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path(), 25).unwrap();
        let keys = [1, 2, 3].map(|byte| CodeKey([byte; 32]));
        for (age, key) in [(30, keys[0]), (20, keys[1])] {
            cache.put(key, code(&[0; 10]), 0);
            let then = SystemTime::now() - std::time::Duration::from_secs(age);
            File::options().write(true).open(cache.path(key, "cwasm")).unwrap().set_modified(then).unwrap();
        }
        assert!(cache.get(keys[0]).is_some());
        cache.put(keys[2], code(&[0; 10]), 0);
        assert_eq!(keys.map(|key| cache.has(key)), [true, false, true]);
    }
}
