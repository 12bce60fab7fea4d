use std::path::PathBuf;

use super::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

/// Why the state database could not be used.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RecordsError {
    /// Another process has the file open.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// Written by a newer version of the program.
    #[error("{path} has schema {found}, and this version knows {known} at most: use a newer version")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The newest that is understood.
        known: u32,
    },
    /// Not a database of this kind.
    #[error("{path} is not a {expected} database")]
    WrongKind {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// The file could not be opened or created.
    #[error("could not open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A read failed.
    #[error("could not read {what}")]
    Read {
        /// The table.
        what: &'static str,
        /// Why.
        #[source]
        source: Cause,
    },
    /// A transaction failed: see [`RecordsError::needs_reopen`].
    #[error("could not commit a transaction")]
    Commit(#[source] Cause),
    /// A commit failed earlier and the database was not opened again since.
    #[error("the database is closed after an earlier failure and was not opened again yet")]
    Closed,
    /// A key is too long.
    #[error("a key of {size} bytes for table {table} is longer than {MAX_KEY_BYTES}")]
    KeyTooLong {
        /// The table.
        table: &'static str,
        /// The key's length.
        size: usize,
    },
    /// A value is too large.
    #[error("a value of {size} bytes for table {table} is larger than {MAX_VALUE_BYTES}")]
    ValueTooLarge {
        /// The table.
        table: &'static str,
        /// The value's length.
        size: usize,
    },
    /// The database's thread has ended.
    #[error("the database's thread has stopped")]
    Stopped,
}

/// The database's own error, shared by all batches that failed together.
pub(crate) type Cause = std::sync::Arc<redb::Error>;

impl RecordsError {
    /// Whether commits fail until the database is opened again.
    pub fn needs_reopen(&self) -> bool {
        matches!(self, RecordsError::Commit(_) | RecordsError::Closed)
    }

    /// Whether the disk had no room.
    pub fn is_disk_full(&self) -> bool {
        let source = match self {
            RecordsError::Commit(source)
            | RecordsError::Open { source, .. }
            | RecordsError::Read { source, .. } => source,
            _ => return false,
        };
        matches!(&**source, redb::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull)
    }
}
