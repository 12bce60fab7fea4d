//! A disk in memory that fails on request and can lose power, below redb.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use redb::{Builder, Database, StorageBackend};

use super::db::{Db, Kind, initialise};
use super::{RecordsError, Settings};

/// A file that remembers which writes were not yet made durable.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    state: Mutex<State>,
    /// Operations until power is cut; counts down.
    left: AtomicU64,
    /// Fails what needs more room, as a full disk does: what was written before can be written over.
    pub(crate) full: AtomicBool,
    /// Fails every write.
    pub(crate) broken: AtomicBool,
}

#[derive(Debug, Default, Clone)]
struct State {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<Write>,
    /// Bytes before this have room; what is behind was only promised by setting a length.
    allocated: u64,
}

#[derive(Debug, Clone)]
enum Write {
    Bytes(u64, Vec<u8>),
    Length(u64),
}

impl Db {
    /// Opens the database on such a disk, writing a new one if the disk is empty.
    pub(crate) fn on_disk(disk: &Arc<Disk>, kind: Kind) -> Result<Db, RecordsError> {
        let disk = Arc::clone(disk);
        let opener = move |builder: &Builder, _: &Path| -> Result<Database, redb::DatabaseError> {
            let empty = Opening(Arc::clone(&disk)).len()? == 0;
            let database = builder.create_with_backend(Opening(Arc::clone(&disk)))?;
            if empty {
                initialise(&database, kind).map_err(|error| io::Error::other(error.to_string()))?;
            }
            Ok(database)
        };
        Db::open_through(Path::new("in memory"), kind, Settings::default(), Arc::new(opener))
    }
}

/// The sector that a disk writes whole.
const SECTOR: usize = 512;

impl Disk {
    pub(crate) fn new(operations: u64) -> Arc<Self> {
        Arc::new(Disk { left: AtomicU64::new(operations), ..Disk::default() })
    }

    /// What may be found after the power comes back: what was synced, and any part of what was not, in any order.
    pub(crate) fn after_power_cut(&self, random: &mut impl FnMut(u64) -> u64) -> Arc<Self> {
        let state = self.state.lock().expect("no test panics with it").clone();
        let mut image = state.durable;
        let mut writes = state.unsynced;
        for last in (1..writes.len()).rev() {
            writes.swap(last, random(last as u64 + 1) as usize);
        }
        for write in writes {
            match write {
                _ if random(2) == 0 => {}
                Write::Length(len) => image.resize(len as usize, 0),
                Write::Bytes(offset, mut bytes) => {
                    if random(10) < 3 {
                        bytes.truncate(random(bytes.len() as u64 / SECTOR as u64 + 1) as usize * SECTOR);
                    }
                    put(&mut image, offset, &bytes);
                }
            }
        }
        let allocated = image.len() as u64;
        let state = State { durable: image.clone(), current: image, unsynced: Vec::new(), allocated };
        Arc::new(Disk { state: Mutex::new(state), left: AtomicU64::new(u64::MAX), ..Disk::default() })
    }

    pub(crate) fn set_operations(&self, operations: u64) {
        self.left.store(operations, Ordering::SeqCst);
    }

    fn step(&self) -> io::Result<()> {
        let left = self.left.load(Ordering::SeqCst);
        if left == 0 {
            return Err(io::Error::other("no power"));
        }
        self.left.store(left - 1, Ordering::SeqCst);
        Ok(())
    }

    fn room(&self, end: u64) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is broken"));
        }
        let mut state = self.state.lock().expect("no test panics with it");
        if end > state.allocated && self.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.allocated = state.allocated.max(end);
        Ok(())
    }
}

fn put(image: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let offset = offset as usize;
    if image.len() < offset + bytes.len() {
        image.resize(offset + bytes.len(), 0);
    }
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// One opening of a [`Disk`].
#[derive(Debug)]
pub(crate) struct Opening(pub(crate) Arc<Disk>);

impl StorageBackend for Opening {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.state.lock().expect("no test panics with it").current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.state.lock().expect("no test panics with it");
        let offset = offset as usize;
        let found = state.current.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.step()?;
        self.0.room(0)?;
        let mut state = self.0.state.lock().expect("no test panics with it");
        state.current.resize(len as usize, 0);
        state.unsynced.push(Write::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.step()?;
        let mut state = self.0.state.lock().expect("no test panics with it");
        state.durable = state.current.clone();
        state.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.step()?;
        self.0.room(offset + data.len() as u64)?;
        let mut state = self.0.state.lock().expect("no test panics with it");
        put(&mut state.current, offset, data);
        state.unsynced.push(Write::Bytes(offset, data.to_vec()));
        Ok(())
    }
}
