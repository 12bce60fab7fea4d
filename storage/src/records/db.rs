//! The redb file itself: opened with care, read from any thread, written by one caller at a time.

use std::fmt;
use std::fs::{self, File};
use std::ops::{Bound, RangeBounds};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use redb::{
    Builder, Database, DatabaseError, ReadOnlyTable, ReadableDatabase, TableDefinition, TableError,
    WriteTransaction,
};

use super::batch::Change;
use super::{Batch, Page, RecordsError, Settings, Table};

/// A page ends once it holds this much, whatever its limit: a table of large records must not fill memory.
pub const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// Where the database keeps what it must know of itself.
const META: Table = Table("_meta");
const KIND_KEY: &[u8] = b"kind";
const SCHEMA_KEY: &[u8] = b"schema";

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// What a database is for, so that one file is never taken for the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) schema: u32,
}

impl Kind {
    /// The node's state.
    pub(crate) const STATE: Kind = Kind { name: "state", schema: 1 };
    /// The index of the content store.
    pub(crate) const CONTENT: Kind = Kind { name: "content index", schema: 1 };
}

type Opener = Arc<dyn Fn(&Builder, &Path) -> Result<Database, DatabaseError> + Send + Sync>;

/// An open database that can be closed and opened again in place.
pub(crate) struct Db {
    path: PathBuf,
    kind: Kind,
    settings: Settings,
    opener: Opener,
    /// `None` between a failed reopening and the next one.
    open: RwLock<Option<Database>>,
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Db({})", self.path.display())
    }
}

impl Db {
    /// Opens or creates the file.
    pub(crate) fn open(path: &Path, kind: Kind, settings: Settings) -> Result<Self, RecordsError> {
        let missing = !path.try_exists().map_err(|error| open_error(path, error))?;
        if missing {
            create_whole(path, kind, settings)?;
        }
        Self::open_through(path, kind, settings, Arc::new(|builder, path| builder.open(path)))
    }

    /// Opens through `opener`, which tests use to put a faulty disk below.
    pub(crate) fn open_through(
        path: &Path,
        kind: Kind,
        settings: Settings,
        opener: Opener,
    ) -> Result<Self, RecordsError> {
        let database = open_database(path, settings, &opener)?;
        let db = Db { path: path.to_owned(), kind, settings, opener, open: RwLock::new(Some(database)) };
        db.check_kind()?;
        Ok(db)
    }

    /// Closes the file and opens it again.
    pub(crate) fn reopen(&self) -> Result<(), RecordsError> {
        let mut slot = self.open.write().unwrap_or_else(PoisonError::into_inner);
        drop(slot.take()); // releases the file's lock first
        *slot = Some(open_database(&self.path, self.settings, &self.opener)?);
        Ok(())
    }

    pub(crate) fn size_bytes(&self) -> Result<u64, RecordsError> {
        fs::metadata(&self.path).map(|meta| meta.len()).map_err(|error| open_error(&self.path, error))
    }

    /// Applies a batch durably.
    pub(crate) fn commit(&self, batch: &Batch) -> Result<(), RecordsError> {
        let open = self.reader();
        let database = open.as_ref().ok_or(RecordsError::Closed)?;
        write(database, |transaction| apply(transaction, batch))
    }

    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, RecordsError> {
        let found = self.read(table, |rows| Ok(rows.get(key)?.map(|value| value.value().to_vec())))?;
        Ok(found.flatten())
    }

    /// The first row at or after a key that still starts with `prefix`, handed to `take` without a copy.
    pub(crate) fn first_with<T>(
        &self,
        table: Table,
        prefix: &[u8],
        take: impl FnOnce(&[u8], &[u8]) -> T,
    ) -> Result<Option<T>, RecordsError> {
        let found = self.read(table, |rows| {
            let Some(row) = rows.range::<&[u8]>(prefix..)?.next() else { return Ok(None) };
            let (key, value) = row?;
            Ok(key.value().starts_with(prefix).then(|| take(key.value(), value.value())))
        })?;
        Ok(found.flatten())
    }

    pub(crate) fn len(&self, table: Table) -> Result<u64, RecordsError> {
        use redb::ReadableTableMetadata as _;
        Ok(self.read(table, |rows| rows.len())?.unwrap_or(0))
    }

    pub(crate) fn scan<'a>(
        &self,
        table: Table,
        range: impl RangeBounds<&'a [u8]>,
        limit: usize,
    ) -> Result<Page, RecordsError> {
        if is_empty(&range) {
            return Ok(Page::default());
        }
        self.page(table, range, limit, |_| true)
    }

    pub(crate) fn scan_prefix(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Page, RecordsError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.page(table, (start, Bound::Unbounded), limit, |key| key.starts_with(prefix))
    }

    fn page<'a>(
        &self,
        table: Table,
        range: impl RangeBounds<&'a [u8]>,
        limit: usize,
        belongs: impl Fn(&[u8]) -> bool,
    ) -> Result<Page, RecordsError> {
        let page = self.read(table, |rows| {
            let mut page = Page::default();
            let mut bytes = 0;
            for row in rows.range::<&[u8]>(range)? {
                let (key, value) = row?;
                if !belongs(key.value()) {
                    break;
                }
                if page.rows.len() >= limit || bytes >= PAGE_BYTES {
                    page.next = page.rows.last().map(|(key, _)| key.clone());
                    break;
                }
                bytes += key.value().len() + value.value().len();
                page.rows.push((key.value().to_vec(), value.value().to_vec()));
            }
            Ok(page)
        })?;
        Ok(page.unwrap_or_default())
    }

    /// Runs `read` on a table, or answers `None` when there is no such table yet.
    fn read<T>(
        &self,
        table: Table,
        read: impl FnOnce(ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T, redb::StorageError>,
    ) -> Result<Option<T>, RecordsError> {
        let mut open = self.reader();
        if open.is_none() {
            drop(open);
            self.reopen()?; // an earlier attempt failed; the disk may have room by now
            open = self.reader();
        }
        let database = open.as_ref().ok_or(RecordsError::Closed)?;
        let failed = |error: redb::Error| RecordsError::Read { what: table.name(), source: Arc::new(error) };
        let transaction = database.begin_read().map_err(|error| failed(error.into()))?;
        let rows = match transaction.open_table(definition(table)) {
            Ok(rows) => rows,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        };
        read(rows).map(Some).map_err(|error| failed(error.into()))
    }

    fn reader(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_kind(&self) -> Result<(), RecordsError> {
        let wrong = || RecordsError::WrongKind { path: self.path.clone(), expected: self.kind.name };
        if self.get(META, KIND_KEY)?.as_deref() != Some(self.kind.name.as_bytes()) {
            return Err(wrong());
        }
        let schema = self.get(META, SCHEMA_KEY)?.ok_or_else(wrong)?;
        let found = u32::from_be_bytes(schema.try_into().map_err(|_| wrong())?);
        if found > self.kind.schema {
            return Err(RecordsError::Newer { path: self.path.clone(), found, known: self.kind.schema });
        }
        Ok(())
    }
}

/// Creates the file under another name first: redb that is killed while it creates one leaves a file which never
/// opens again.
fn create_whole(path: &Path, kind: Kind, settings: Settings) -> Result<(), RecordsError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("tmp");
    fs::create_dir_all(dir).map_err(|error| open_error(dir, error))?;
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(open_error(&temporary, error));
        }
        _ => {}
    }
    let opener: Opener = Arc::new(|builder, path| builder.create(path));
    let database = open_database(&temporary, settings, &opener)?;
    initialise(&database, kind)?;
    drop(database);
    fs::rename(&temporary, path).map_err(|error| open_error(path, error))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| open_error(dir, error))
}

/// Writes what a new database must hold to be known again.
pub(super) fn initialise(database: &Database, kind: Kind) -> Result<(), RecordsError> {
    let mut batch = Batch::new();
    batch.put(META, KIND_KEY, kind.name);
    batch.put(META, SCHEMA_KEY, kind.schema.to_be_bytes());
    write(database, |transaction| apply(transaction, &batch))
}

/// A damaged file may make redb panic while it is opened: that is an error like another.
fn open_database(path: &Path, settings: Settings, opener: &Opener) -> Result<Database, RecordsError> {
    let mut builder = Builder::new();
    builder.set_cache_size(settings.cache_bytes);
    match catch_unwind(AssertUnwindSafe(|| opener(&builder, path))) {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => Err(RecordsError::InUse(path.to_owned())),
        Ok(Err(error)) => Err(RecordsError::Open { path: path.to_owned(), source: Arc::new(error.into()) }),
        Err(_) => {
            let error = redb::Error::Corrupted("the file is damaged".to_owned());
            Err(RecordsError::Open { path: path.to_owned(), source: Arc::new(error) })
        }
    }
}

fn write(
    database: &Database,
    change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), RecordsError> {
    let failed = |error: redb::Error| RecordsError::Commit(Arc::new(error));
    let mut transaction = database.begin_write().map_err(|error| failed(error.into()))?;
    // Saves the allocator's state with every commit: a restart after a crash takes part of a second instead of
    // reading the whole file. It also commits in two phases, so that no checksum that a peer could aim at decides.
    transaction.set_quick_repair(true);
    change(&transaction).map_err(failed)?;
    transaction.commit().map_err(|error| failed(error.into()))
}

fn apply(transaction: &WriteTransaction, batch: &Batch) -> Result<(), redb::Error> {
    for (table, changes) in &batch.tables {
        let mut rows = transaction.open_table(definition(*table))?;
        for change in changes {
            match change {
                Change::Put(key, value) => drop(rows.insert(key.as_slice(), value.as_slice())?),
                Change::Delete(key) => drop(rows.remove(key.as_slice())?),
                Change::DeletePrefix(prefix) => match prefix_end(prefix) {
                    Some(end) => {
                        rows.retain_in::<&[u8], _>(prefix.as_slice()..end.as_slice(), |_, _| false)?
                    }
                    None => rows.retain_in::<&[u8], _>(prefix.as_slice().., |_, _| false)?,
                },
            }
        }
    }
    Ok(())
}

/// The first key after all that start with `prefix`, or `None` when there can be none.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix.get(..=last)?.to_vec();
    *end.last_mut()? += 1;
    Some(end)
}

/// redb refuses ranges that run backwards by panicking.
fn is_empty<'a>(range: &impl RangeBounds<&'a [u8]>) -> bool {
    match (range.start_bound(), range.end_bound()) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(start), Bound::Included(end)) => start > end,
        (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => {
            start >= end
        }
    }
}

const fn definition(table: Table) -> Definition {
    TableDefinition::new(table.0)
}

fn open_error(path: &Path, error: std::io::Error) -> RecordsError {
    RecordsError::Open { path: path.to_owned(), source: Arc::new(redb::Error::Io(error)) }
}
