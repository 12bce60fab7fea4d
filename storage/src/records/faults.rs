//! A disk in memory that fails on request and can lose power, below redb.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

/// A file that remembers which writes were not yet made durable.
#[derive(Debug, Default)]
pub(super) struct Disk {
    state: Mutex<State>,
    /// Operations until power is cut; counts down.
    left: AtomicU64,
    /// Fails writes and growth as a full disk does.
    pub(super) full: AtomicBool,
}

#[derive(Debug, Default, Clone)]
struct State {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<Write>,
}

#[derive(Debug, Clone)]
enum Write {
    Bytes(u64, Vec<u8>),
    Length(u64),
}

/// The sector that a disk writes whole.
const SECTOR: usize = 512;

impl Disk {
    pub(super) fn new(operations: u64) -> Arc<Self> {
        Arc::new(Disk { left: AtomicU64::new(operations), ..Disk::default() })
    }

    /// What may be found after the power comes back: what was synced, and any part of what was not, in any order.
    pub(super) fn after_power_cut(&self, random: &mut impl FnMut(u64) -> u64) -> Arc<Self> {
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
        let state = State { durable: image.clone(), current: image, unsynced: Vec::new() };
        Arc::new(Disk { state: Mutex::new(state), left: AtomicU64::new(u64::MAX), ..Disk::default() })
    }

    pub(super) fn set_operations(&self, operations: u64) {
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

    fn room(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
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
pub(super) struct Opening(pub(super) Arc<Disk>);

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
        self.0.room()?;
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
        self.0.room()?;
        let mut state = self.0.state.lock().expect("no test panics with it");
        put(&mut state.current, offset, data);
        state.unsynced.push(Write::Bytes(offset, data.to_vec()));
        Ok(())
    }
}
