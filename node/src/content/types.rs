//! What goes into and comes out of a node's content.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use cid::Cid;
use job::{ExecutionId, JobId};
use storage::read::EntryKind;
use storage::store::{AddOptions as StoreAdd, Guard, Pin};
use storage::unixfs::{Profile, Root};

/// Why content cannot be had or kept, in words for its user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchFault {
    /// Nobody offers it.
    #[error("{0}")]
    NotFound(String),
    /// There is nothing at that path: no node has it.
    #[error("{0}")]
    NoEntry(String),
    /// It is not what it should be: no node can use it.
    #[error("{0}")]
    Malformed(String),
    /// It is more than is allowed here.
    #[error("{0}")]
    TooLarge(String),
    /// This node cannot keep it.
    #[error("{0}")]
    Here(String),
}

/// Whom content is kept for. Its text names the pins, and begins none of another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keeper {
    /// The user, until they unpin it.
    User,
    /// A job version of this node's, until it is forgotten: its spec, its inputs, the results of all its attempts.
    Job(JobId, u32),
    /// The owner of an execution that ran here, until it has the result.
    Execution(ExecutionId),
}

impl Keeper {
    /// What keeps this content.
    pub fn pin(self, cid: Cid) -> Pin {
        Pin::new(cid, self.to_string())
    }

    /// Whom a pin is for; `None` when it is for nobody that this program knows.
    pub fn of(pin: &Pin) -> Option<Self> {
        if pin.name.is_empty() {
            return Some(Keeper::User);
        }
        if let Some((job, version)) = pin.name.split_once('.') {
            return Some(Keeper::Job(job.parse().ok()?, version.parse().ok()?));
        }
        pin.name.parse().ok().map(Keeper::Execution)
    }
}

impl fmt::Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Keeper::User => Ok(()),
            Keeper::Job(job, version) => write!(f, "{job}.{version}"),
            Keeper::Execution(execution) => write!(f, "{execution}"),
        }
    }
}

/// What was added. It is not collected while this is held; pin it to keep it longer.
#[derive(Debug, Clone)]
pub struct Added {
    /// Its root.
    pub cid: Cid,
    /// Bytes of its files.
    pub size: u64,
    /// Bytes of its blocks, as links count them.
    pub total: u64,
    pub(super) _held: Option<Arc<Guard>>,
}

/// An entry of a directory that is put together.
#[derive(Debug, Clone)]
pub struct Entry {
    pub(super) name: String,
    pub(super) added: Added,
}

impl Entry {
    /// An entry of this name.
    pub fn new(name: &str, added: Added) -> Self {
        Entry { name: name.to_owned(), added }
    }

    pub(super) fn root(&self) -> Root {
        let Added { cid, size, total, .. } = self.added;
        Root { cid, total_bytes: total, file_bytes: size }
    }
}

/// How something is added.
#[derive(Debug, Clone, Default)]
pub struct AddOptions {
    pub(super) profile: Profile,
    pub(super) only_hash: bool,
}

impl AddOptions {
    /// A profile by name, with what differs from it.
    pub fn new(
        profile: Option<&str>,
        cid_version: Option<u8>,
        chunk_size: Option<u64>,
        raw_leaves: Option<bool>,
    ) -> Result<Self, String> {
        let name = match (profile, cid_version) {
            (Some(name), _) => name,
            // As in Kubo: version 0 brings the settings that go with it.
            (None, Some(0)) => "unixfs-v0-2015",
            (None, _) => "unixfs-v1-2025",
        };
        let mut profile = Profile::named(name).ok_or_else(|| {
            format!("profile {name:?} is unknown: there are unixfs-v1-2025 and unixfs-v0-2015")
        })?;
        match cid_version {
            None => {}
            Some(version @ (0 | 1)) => profile.cid_version = version,
            Some(other) => return Err(format!("CID version {other} does not exist: there are 0 and 1")),
        }
        if let Some(bytes) = chunk_size {
            const MOST: u64 = 1 << 20;
            if bytes == 0 || bytes > MOST {
                return Err(format!("chunk size {bytes} is not between 1 and {MOST} bytes"));
            }
            profile.chunk_bytes = usize::try_from(bytes).unwrap_or(MOST as usize);
        }
        if let Some(raw) = raw_leaves {
            profile.raw_leaves = raw;
        }
        Ok(AddOptions { profile, only_hash: false })
    }

    /// Computes the CID and stores nothing.
    pub fn only_hash(mut self, only_hash: bool) -> Self {
        self.only_hash = only_hash;
        self
    }

    pub(super) fn store(&self, pin: Option<String>) -> StoreAdd {
        StoreAdd { profile: self.profile, only_hash: self.only_hash, pin, ..StoreAdd::default() }
    }
}

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

impl Kind {
    /// The word in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::File => "file",
            Kind::Directory => "directory",
            Kind::Symlink => "symlink",
        }
    }
}

impl From<EntryKind> for Kind {
    fn from(kind: EntryKind) -> Self {
        match kind {
            EntryKind::File => Kind::File,
            EntryKind::Directory => Kind::Directory,
            EntryKind::Symlink => Kind::Symlink,
        }
    }
}

/// An entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its content.
    pub cid: Cid,
    /// Bytes of a file; 0 for others.
    pub size: u64,
    /// What it is.
    pub kind: Kind,
}

/// What is known of some content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Its CID.
    pub cid: Cid,
    /// What it is.
    pub kind: Kind,
    /// Bytes of a file; 0 for others.
    pub size: u64,
    /// Bytes of all blocks.
    pub cumulative: u64,
    /// Whether its first block is on this node.
    pub local: bool,
    /// Where a symbolic link leads.
    pub target: Option<String>,
}

/// A read-only path to content; it is not collected while this is held.
#[derive(Debug)]
pub struct Checkout {
    /// The content.
    pub cid: Cid,
    /// Where it is.
    pub path: PathBuf,
    /// Bytes of all its blocks.
    pub bytes: u64,
    pub(super) _checkout: storage::store::Checkout,
}

#[cfg(test)]
mod tests {
    use job::{ExecutionKey, PeerId};

    use super::*;

    #[test]
    fn pins_say_whom_they_are_for() {
        let cid = storage::block::cid_of(storage::block::RAW, b"kept");
        let job = JobId::derive("lab", PeerId([7; 32]), b"nonce");
        let execution = ExecutionKey { job, version: 3, partition: 0, attempt: 1 }.id();
        for keeper in [Keeper::User, Keeper::Job(job, 3), Keeper::Execution(execution)] {
            assert_eq!(Keeper::of(&keeper.pin(cid)), Some(keeper));
        }
        for name in ["j-1", "e-", "j-1.2", &format!("{job}"), &format!("{job}.x")] {
            assert_eq!(Keeper::of(&Pin::new(cid, name)), None, "{name}");
        }
    }
}
