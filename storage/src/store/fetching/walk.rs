//! Which blocks of a DAG come next, which are asked for, and how far it is.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cid::Cid;
use cid::multihash::Multihash;

use super::file::FileFetch;
use crate::block::RAW;
use crate::fetch::{FetchLimits, Progress};

/// Links that wait to be followed. Above the first figure nodes are asked for one at a time, so that no more come
/// than are worked off; at the second (about 80 MB) the DAG is refused.
const MANY_WAITING: usize = 64 * 1024;
const MAX_WAITING: usize = 512 * 1024;
/// Unfinished files and nodes that may become some. Each file holds a descriptor while it is written, and several
/// fetches go on at once; so many requests on their way are enough also where a round trip takes long.
const MAX_UNFINISHED: usize = 256;
/// Links in files that are followed whatever the files' size, and how many bytes there must be for each above that:
/// a node is followed wherever it stands, so that three small blocks could ask for millions of places otherwise.
const SPARE_LINKS: u64 = 128 * 1024;
const BYTES_A_LINK: u64 = 16;

/// A block that is still to be looked at.
#[derive(Debug, Clone)]
pub(super) struct Child {
    pub(super) cid: Cid,
    /// Its size where the node above says it.
    pub(super) block_bytes: Option<u64>,
    pub(super) place: Place,
    depth: u32,
}

/// Where a block belongs.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// Nowhere in particular: it is a root, an entry, or a part of a small file.
    Alone,
    /// In a flat file; it stands for so many bytes of it.
    InFile { file: Arc<FileFetch>, offset: u64, bytes: u64 },
}

impl Child {
    fn is_node(&self) -> bool {
        self.cid.codec() != RAW
    }

    /// Whether it is a node that may turn out to be the root of a large file.
    fn may_be_file(&self) -> bool {
        self.is_node() && matches!(self.place, Place::Alone)
    }

    /// A child of this one.
    pub(super) fn below(&self, cid: Cid, file_bytes: Option<u64>, place: Place) -> Child {
        // A raw leaf is as large as its piece of the file; a node's size is not known.
        let block_bytes = file_bytes.filter(|_| cid.codec() == RAW);
        Child { cid, block_bytes, place, depth: self.depth + 1 }
    }
}

/// The walk.
#[derive(Debug)]
pub(super) struct Walk {
    /// The next one last.
    waiting: Vec<Child>,
    asked: HashMap<Multihash<64>, Child>,
    /// How many of the asked may have children, and how many of these may be the root of a file.
    asked_nodes: usize,
    asked_roots: usize,
    /// Handed out by `next` or `take`, and neither done nor given up.
    in_work: usize,
    /// Nodes outside of files that were seen: a second link to one leads to nothing new.
    seen: HashSet<[u8; 16]>,
    files: Vec<Arc<FileFetch>>,
    links: u64,
    links_in_files: u64,
    /// Bytes of files that are in their place.
    pub(super) file_bytes: u64,
    blocks: u64,
    bytes: u64,
    fetched: u64,
    pub(super) unflushed: u64,
    pub(super) total_bytes: Option<u64>,
}

impl Walk {
    pub(super) fn new(root: Cid) -> Self {
        Walk {
            waiting: vec![Child { cid: root, block_bytes: None, place: Place::Alone, depth: 0 }],
            asked: HashMap::new(),
            asked_nodes: 0,
            asked_roots: 0,
            in_work: 0,
            seen: HashSet::new(),
            files: Vec::new(),
            links: 0,
            links_in_files: 0,
            file_bytes: 0,
            blocks: 0,
            bytes: 0,
            fetched: 0,
            unflushed: 0,
            total_bytes: None,
        }
    }

    /// The next block to look at, or `None` while nothing can be done before one that is asked for arrives.
    pub(super) fn next(&mut self) -> Option<Child> {
        loop {
            let child = self.waiting.last()?;
            let (is_node, may_be_file) = (child.is_node(), child.may_be_file());
            // The same block is asked for once; when it is here, the second place is filled from the first.
            if self.asked.contains_key(child.cid.hash()) {
                return None;
            }
            if is_node && self.asked_nodes > 0 && self.waiting.len() > MANY_WAITING {
                return None;
            }
            if may_be_file && !self.asked.is_empty() && self.unfinished() >= MAX_UNFINISHED {
                return None;
            }
            let child = self.waiting.pop()?;
            if may_be_file && !self.seen.insert(half(&child.cid)) {
                continue;
            }
            self.in_work += 1;
            return Some(child);
        }
    }

    /// Notes that a block, handed out by `next`, is asked for.
    pub(super) fn ask(&mut self, child: Child) {
        self.in_work -= 1;
        self.asked_nodes += usize::from(child.is_node());
        self.asked_roots += usize::from(child.may_be_file());
        self.asked.insert(*child.cid.hash(), child);
    }

    pub(super) fn is_asked(&self, cid: &Cid) -> bool {
        self.asked.contains_key(cid.hash())
    }

    /// Takes a block that was asked for and has arrived.
    pub(super) fn take(&mut self, cid: &Cid) -> Option<Child> {
        let child = self.asked.remove(cid.hash())?;
        self.asked_nodes -= usize::from(child.is_node());
        self.asked_roots -= usize::from(child.may_be_file());
        self.in_work += 1;
        Some(child)
    }

    /// Puts a block that is asked for back to the front.
    pub(super) fn hand_back(&mut self, cid: &Cid) {
        if let Some(child) = self.take(cid) {
            self.give_up(child);
        }
    }

    /// Puts a block, handed out by `next` or `take`, back to the front.
    pub(super) fn give_up(&mut self, child: Child) {
        self.in_work -= 1;
        self.seen.remove(&half(&child.cid));
        self.waiting.push(child);
    }

    /// Notes that a block, handed out by `next` or `take`, is in its place.
    pub(super) fn done(&mut self, bytes: u64, fetched: u64) {
        self.in_work -= 1;
        self.blocks += 1;
        self.bytes += bytes;
        self.fetched += fetched;
        self.unflushed += fetched;
    }

    pub(super) fn known_bytes(&self) -> u64 {
        self.bytes
    }

    /// Notes the children of a node.
    pub(super) fn descend(&mut self, mut below: Vec<Child>, limits: &FetchLimits) -> Result<(), String> {
        self.links = self.links.saturating_add(below.len() as u64);
        if self.links > limits.max_links {
            return Err(format!("more than {} links", limits.max_links));
        }
        let in_files = below.iter().filter(|child| matches!(child.place, Place::InFile { .. })).count();
        self.links_in_files = self.links_in_files.saturating_add(in_files as u64);
        if self.links_in_files > SPARE_LINKS + self.file_bytes / BYTES_A_LINK {
            let bytes = self.file_bytes;
            return Err(format!("{} links in files for {bytes} bytes of them", self.links_in_files));
        }
        if below.first().is_some_and(|child| child.depth > limits.max_depth) {
            return Err(format!("more than {} levels", limits.max_depth));
        }
        if self.waiting.len() + below.len() > MAX_WAITING {
            return Err(format!("more than {MAX_WAITING} links side by side"));
        }
        below.reverse();
        self.waiting.append(&mut below);
        Ok(())
    }

    pub(super) fn add_file(&mut self, file: FileFetch) -> Arc<FileFetch> {
        let file = Arc::new(file);
        self.files.push(Arc::clone(&file));
        file
    }

    /// Files that are written to, and nodes on their way that may become some.
    fn unfinished(&self) -> usize {
        self.asked_roots + self.files.iter().filter(|file| !file.is_whole()).count()
    }

    pub(super) fn files(&self) -> Vec<Arc<FileFetch>> {
        self.files.clone()
    }

    pub(super) fn forget_whole_files(&mut self) {
        self.files.retain(|file| !file.is_kept());
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            blocks: self.blocks,
            bytes: self.bytes,
            fetched_bytes: self.fetched,
            total_bytes: self.total_bytes,
            complete: self.waiting.is_empty() && self.asked.is_empty() && self.in_work == 0,
        }
    }
}

fn half(cid: &Cid) -> [u8; 16] {
    let mut half = [0; 16];
    for (to, from) in half.iter_mut().zip(cid.hash().digest()) {
        *to = *from;
    }
    half
}
