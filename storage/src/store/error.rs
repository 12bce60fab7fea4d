use std::io;
use std::path::{Path, PathBuf};

use cid::Cid;

use crate::block::BlockError;
use crate::records::RecordsError;
use crate::unixfs::UnixfsError;

/// Why the content store could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file could not be read or written.
    #[error("could not {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The index could not be read or written.
    #[error("the index of the content store could not be used")]
    Index(#[from] RecordsError),
    /// A block is not what it should be.
    #[error("a block was refused")]
    Block(#[from] BlockError),
    /// A node could not be read or built.
    #[error("content {at:?} is not a usable file or directory")]
    Unixfs {
        /// Where: a path or a CID.
        at: String,
        /// What is wrong with it.
        #[source]
        source: UnixfsError,
    },
    /// Content could not be read.
    #[error(transparent)]
    Read(#[from] crate::read::ReadError),
    /// There is no room, even after everything that nobody needs was removed.
    #[error(
        "the content store is full: {wanted} bytes are needed, {used} of {limit} are used and cannot be removed \
         (unpin content or raise the limit)"
    )]
    Full {
        /// Bytes that were to be stored.
        wanted: u64,
        /// Bytes in use.
        used: u64,
        /// The configured limit.
        limit: u64,
    },
    /// A file was not the same at the end of reading as at its start.
    #[error("{0} changed while it was read: add it again once nothing writes to it")]
    Changed(PathBuf),
    /// Neither a file, nor a directory, nor a symbolic link.
    #[error("{0} is a device, socket or pipe, which content cannot hold")]
    SpecialFile(PathBuf),
    /// A name that content cannot hold.
    #[error("the name of {0} is not UTF-8 or is too long")]
    FileName(PathBuf),
    /// Something has more parts than a bound allows.
    #[error("{at} has more than {limit} {what}")]
    TooMany {
        /// Where.
        at: String,
        /// Of what.
        what: &'static str,
        /// How many there may be.
        limit: u64,
    },
    /// Content that must be here is not.
    #[error("{0} is not in the content store")]
    NotFound(Cid),
    /// Garbage collection cannot run beside what is going on.
    #[error("content is being added whose extent is too large to protect: collect garbage when it is done")]
    Busy,
    /// Several changes were committed together and failed together.
    #[error(transparent)]
    Together(std::sync::Arc<StoreError>),
    /// The work was cut short because the runtime stops.
    #[error("the content store's task was cut short")]
    Stopped,
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| StoreError::Io { action, path, source }
    }

    pub(crate) fn unixfs(at: impl std::fmt::Display) -> impl FnOnce(UnixfsError) -> Self {
        move |source| StoreError::Unixfs { at: at.to_string(), source }
    }

    /// The error of a block whose bytes could not be had for this reason.
    pub(crate) fn into_block_error(self, cid: Cid) -> BlockError {
        match self {
            StoreError::Block(error) => error,
            StoreError::NotFound(cid) => BlockError::NotFound(cid),
            error => BlockError::Store(cid, Box::new(error)),
        }
    }

    /// Whether the disk or the store had no room: the same may succeed once there is some.
    pub fn is_full(&self) -> bool {
        match self {
            StoreError::Full { .. } => true,
            StoreError::Together(error) => error.is_full(),
            StoreError::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            StoreError::Index(error) => error.is_disk_full(),
            _ => false,
        }
    }
}
