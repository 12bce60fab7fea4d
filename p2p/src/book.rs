//! The peer book: who was met, and where.
//!
//! A cache. Damaged or missing, the host starts with an empty one.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::addresses;

/// Peers in the book; the ones met longest ago make room.
const MAX_PEERS: usize = 1024;
/// The largest file that is read: [`MAX_PEERS`] entries fit several times.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// The form of the file. Other forms are ignored: the book fills again by itself.
const VERSION: u32 = 1;

/// Known peers and their addresses.
#[derive(Debug, Default)]
pub(crate) struct Book {
    peers: BTreeMap<PeerId, Entry>,
    changed: bool,
}

#[derive(Debug, Default)]
struct Entry {
    addresses: Vec<Known>,
    /// Seconds since 1970; 0: only heard of.
    met: u64,
}

#[derive(Debug, Clone)]
struct Known {
    address: Multiaddr,
    /// When it was last dialled with success, in seconds since 1970; 0: never.
    success: u64,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    peers: Vec<FilePeer>,
}

#[derive(Serialize, Deserialize)]
struct FilePeer {
    peer: String,
    met: u64,
    addresses: Vec<FileAddress>,
}

#[derive(Serialize, Deserialize)]
struct FileAddress {
    address: String,
    success: u64,
}

impl Book {
    /// Reads a book; what cannot be read is left out.
    pub(crate) fn load(path: &Path) -> Self {
        match read(path) {
            Ok(file) => Self::from_file(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                warn!(path = %path.display(), %error, "could not read the peer book, starting with an empty one");
                Self::default()
            }
        }
    }

    fn from_file(file: File) -> Self {
        let mut book = Self::default();
        for known in file.peers.into_iter().take(MAX_PEERS) {
            let Ok(peer) = known.peer.parse() else { continue };
            let addresses = known.addresses.into_iter().filter_map(|known| {
                let address = known.address.parse().ok().filter(addresses::is_dialable)?;
                Some(Known { address, success: known.success })
            });
            let addresses = addresses.take(addresses::MAX_PER_PEER).collect();
            book.peers.insert(peer, Entry { addresses, met: known.met });
        }
        book
    }

    /// The content of the file, when it differs from what was last taken.
    pub(crate) fn take_changes(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let peers = self.peers.iter().filter(|(_, entry)| entry.met > 0);
        let peers = peers.map(|(peer, entry)| FilePeer {
            peer: peer.to_string(),
            met: entry.met,
            addresses: entry.addresses.iter().map(Known::to_file).collect(),
        });
        let file = File { version: VERSION, peers: peers.collect() };
        serde_json::to_vec_pretty(&file).ok()
    }

    pub(crate) fn has_changed(&self) -> bool {
        self.changed
    }

    /// Addresses of a peer, best first: those that worked, TCP before QUIC.
    pub(crate) fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let known = self.peers.get(peer).map_or(&[][..], |entry| &entry.addresses);
        let mut known: Vec<_> = known.iter().collect();
        known.sort_by_key(|known| {
            let worked = std::cmp::Reverse(known.success);
            (addresses::is_quic(&known.address), worked, addresses::reach(&known.address))
        });
        known.into_iter().map(|known| known.address.clone()).collect()
    }

    /// Adds an address that somebody told us.
    pub(crate) fn add(&mut self, peer: PeerId, address: Multiaddr) {
        if !addresses::is_dialable(&address) {
            return;
        }
        self.make_room(&peer);
        let entry = self.peers.entry(peer).or_default();
        if entry.addresses.iter().any(|known| known.address == address) {
            return;
        }
        if entry.addresses.len() >= addresses::MAX_PER_PEER {
            entry.forget_worst();
        }
        entry.addresses.push(Known { address, success: 0 });
        self.changed |= entry.met > 0;
    }

    /// Notes that a peer is connected, and by which address when we dialled it.
    pub(crate) fn met(&mut self, peer: PeerId, dialled: Option<Multiaddr>) {
        if let Some(address) = &dialled {
            self.add(peer, address.clone());
        }
        self.make_room(&peer);
        let entry = self.peers.entry(peer).or_default();
        entry.met = now();
        let mut known = entry.addresses.iter_mut();
        if let Some(known) = known.find(|known| Some(&known.address) == dialled.as_ref()) {
            known.success = entry.met;
        }
        self.changed = true;
    }

    /// Notes that an address leads to somebody else.
    pub(crate) fn forget(&mut self, peer: &PeerId, address: &Multiaddr) {
        if let Some(entry) = self.peers.get_mut(peer) {
            entry.addresses.retain(|known| known.address != *address);
            self.changed = true;
        }
    }

    /// Peers to dial, those met last first.
    pub(crate) fn candidates(&self) -> Vec<PeerId> {
        let with_addresses = self.peers.iter().filter(|(_, entry)| !entry.addresses.is_empty());
        let mut peers: Vec<_> = with_addresses.map(|(peer, entry)| (entry.met, *peer)).collect();
        peers.sort_unstable_by(|a, b| b.cmp(a));
        peers.into_iter().map(|(_, peer)| peer).collect()
    }

    fn make_room(&mut self, newcomer: &PeerId) {
        if self.peers.len() < MAX_PEERS || self.peers.contains_key(newcomer) {
            return;
        }
        let oldest = self.peers.iter().min_by_key(|(_, entry)| entry.met).map(|(peer, _)| *peer);
        if let Some(oldest) = oldest {
            self.peers.remove(&oldest);
        }
    }
}

impl Entry {
    fn forget_worst(&mut self) {
        let worst = self.addresses.iter().enumerate().min_by_key(|(_, known)| known.success);
        if let Some((at, _)) = worst {
            self.addresses.remove(at);
        }
    }
}

impl Known {
    fn to_file(&self) -> FileAddress {
        FileAddress { address: self.address.to_string(), success: self.success }
    }
}

fn read(path: &Path) -> io::Result<File> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES).read_to_end(&mut text)?;
    let file: File = serde_json::from_slice(&text)?;
    if file.version != VERSION {
        return Err(io::Error::other(format!("unknown version {}", file.version)));
    }
    Ok(file)
}

/// Replaces the file as a whole.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut draft = PathBuf::from(path);
    draft.as_mut_os_string().push(".tmp");
    let mut file = fs::File::create(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&draft, path)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn a_book_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peers.json");
        let (met, heard) = (PeerId::random(), PeerId::random());
        let mut book = Book::default();
        book.met(met, Some(address(1)));
        book.add(heard, address(2));
        write(&path, &book.take_changes().unwrap()).unwrap();
        assert!(book.take_changes().is_none(), "nothing changed since");
        let read = Book::load(&path);
        assert_eq!(read.addresses(&met), [address(1)]);
        assert!(read.addresses(&heard).is_empty(), "only heard of: not kept");
    }

    #[test]
    fn damaged_books_are_empty_books() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peers.json");
        let odd = r#"{"version":1,"peers":[{"peer":"x","met":1,"addresses":[{"address":"y","success":1}]}]}"#;
        for text in ["", "{", "[]", r#"{"version":9,"peers":[]}"#, odd] {
            fs::write(&path, text).unwrap();
            assert!(Book::load(&path).candidates().is_empty(), "{text}");
        }
    }

    #[test]
    fn addresses_and_peers_are_bounded_and_what_worked_stays() {
        let mut book = Book::default();
        let peer = PeerId::random();
        book.met(peer, Some(address(1)));
        for port in 2..100 {
            book.add(peer, address(port));
        }
        assert_eq!(book.addresses(&peer).len(), addresses::MAX_PER_PEER);
        assert_eq!(book.addresses(&peer)[0], address(1));
        for _ in 0..2 * MAX_PEERS {
            book.add(PeerId::random(), address(7));
        }
        assert_eq!(book.candidates().len(), MAX_PEERS);
        assert_eq!(book.candidates()[0], peer, "met peers outlive those only heard of");
    }
}
