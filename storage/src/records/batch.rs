//! A set of changes that are applied together.

use std::collections::BTreeMap;

use super::{RecordsError, Table};

/// The longest key: keys are ids and short paths.
pub const MAX_KEY_BYTES: usize = 4 * 1024;
/// The largest value: the largest record, a job with its spec, is below 1 MiB.
pub const MAX_VALUE_BYTES: usize = 16 * 1024 * 1024;

/// Puts and deletes over several tables, applied in one transaction.
///
/// The order of changes to one table is kept: the last one to a key wins.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub(super) tables: BTreeMap<Table, Vec<Change>>,
    changes: usize,
    bytes: usize,
}

#[derive(Debug, Clone)]
pub(super) enum Change {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeletePrefix(Vec<u8>),
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the value under a key.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.push(table, Change::Put(key.into(), value.into()));
    }

    /// Removes a key, if it is there.
    pub fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.push(table, Change::Delete(key.into()));
    }

    /// Removes every key that starts with `prefix`.
    pub fn delete_prefix(&mut self, table: Table, prefix: impl Into<Vec<u8>>) {
        self.push(table, Change::DeletePrefix(prefix.into()));
    }

    /// Appends the changes of another batch.
    pub fn append(&mut self, other: Batch) {
        self.changes += other.changes;
        self.bytes += other.bytes;
        for (table, mut changes) in other.tables {
            self.tables.entry(table).or_default().append(&mut changes);
        }
    }

    /// How many changes it holds.
    pub fn len(&self) -> usize {
        self.changes
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes == 0
    }

    /// Bytes of all keys and values.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    fn push(&mut self, table: Table, change: Change) {
        self.changes += 1;
        self.bytes += change.size();
        self.tables.entry(table).or_default().push(change);
    }

    /// Refuses what the database could not hold, before others' batches are tied to it.
    pub(super) fn check(&self) -> Result<(), RecordsError> {
        for (table, changes) in &self.tables {
            for change in changes {
                change.check(*table)?;
            }
        }
        Ok(())
    }
}

impl Change {
    fn size(&self) -> usize {
        match self {
            Change::Put(key, value) => key.len() + value.len(),
            Change::Delete(key) | Change::DeletePrefix(key) => key.len(),
        }
    }

    fn check(&self, table: Table) -> Result<(), RecordsError> {
        let (key, value) = match self {
            Change::Put(key, value) => (key, value.len()),
            Change::Delete(key) | Change::DeletePrefix(key) => (key, 0),
        };
        if key.len() > MAX_KEY_BYTES {
            return Err(RecordsError::KeyTooLong { table: table.name(), size: key.len() });
        }
        if value > MAX_VALUE_BYTES {
            return Err(RecordsError::ValueTooLarge { table: table.name(), size: value });
        }
        Ok(())
    }
}
