//! Files as balanced trees, built while their leaves come in.

use bytes::Bytes;
use cid::Cid;
use sha2::{Digest, Sha256};

use super::wire;
use super::{Data, Kind, Link, Node, Profile, Root};
use crate::block::Block;

/// A leaf: a piece of a file and the CID of the block that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Its block's CID.
    pub cid: Cid,
    /// Bytes of the file in it.
    pub file_bytes: u64,
    /// Bytes of its block.
    pub block_bytes: u64,
}

impl Leaf {
    /// Hashes a piece of a file without copying it.
    pub fn of(profile: &Profile, piece: &[u8]) -> Self {
        if profile.raw_leaves {
            let cid = profile.leaf_cid(&Sha256::digest(piece).into());
            return Leaf { cid, file_bytes: piece.len() as u64, block_bytes: piece.len() as u64 };
        }
        let frame = LeafFrame::of(Kind::File, piece.len());
        let hash = Sha256::new().chain_update(&frame.before).chain_update(piece).chain_update(&frame.after);
        Leaf {
            cid: profile.leaf_cid(&hash.finalize().into()),
            file_bytes: piece.len() as u64,
            block_bytes: frame.block_len(piece.len()) as u64,
        }
    }

    /// The block of this leaf.
    pub fn block(&self, profile: &Profile, piece: Bytes) -> Block {
        let data = if profile.raw_leaves {
            piece
        } else {
            LeafFrame::of(Kind::File, piece.len()).around(&piece).into()
        };
        Block { cid: self.cid, data }
    }
}

/// The bytes around a piece of a file in a leaf that is not raw. They follow from the piece's length alone, so that
/// such leaves need not be stored beside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafFrame {
    /// What stands before the piece.
    pub before: Vec<u8>,
    /// What stands behind it.
    pub after: Vec<u8>,
}

impl LeafFrame {
    /// The frame around a piece of this length.
    pub fn of(kind: Kind, length: usize) -> Self {
        let mut after = Vec::with_capacity(12);
        wire::put_number(&mut after, 3, length as u64);
        let mut head = Vec::with_capacity(16);
        wire::put_number(&mut head, 1, kind as u64);
        if length > 0 {
            wire::put_length(&mut head, 2, length);
        }
        let mut before = Vec::with_capacity(32);
        wire::put_length(&mut before, 1, head.len() + length + after.len());
        before.append(&mut head);
        LeafFrame { before, after }
    }

    /// The block around a piece.
    pub fn around(&self, piece: &[u8]) -> Vec<u8> {
        [&self.before, piece, &self.after].concat()
    }

    /// Bytes of the block around a piece of this length.
    pub fn block_len(&self, length: usize) -> usize {
        self.before.len() + length + self.after.len()
    }
}

/// Grows a file's tree from its leaves, in order. Holds at most `width` links for each level.
#[derive(Debug)]
pub struct FileTree {
    profile: Profile,
    /// Links that have no parent yet: leaves first.
    levels: Vec<Vec<Root>>,
}

impl FileTree {
    /// A tree without leaves.
    pub fn new(profile: Profile) -> Self {
        FileTree { profile, levels: vec![Vec::new()] }
    }

    /// Appends a leaf; nodes that are complete are handed to `emit`.
    pub fn push(&mut self, leaf: Leaf, emit: &mut impl FnMut(Block)) {
        let Leaf { cid, file_bytes, block_bytes } = leaf;
        self.add(0, Root { cid, file_bytes, total_bytes: block_bytes }, emit);
    }

    /// Closes the tree. A file without leaves is one empty leaf.
    pub fn finish(mut self, emit: &mut impl FnMut(Block)) -> Root {
        if self.levels.iter().all(Vec::is_empty) {
            let leaf = Leaf::of(&self.profile, b"");
            emit(leaf.block(&self.profile, Bytes::new()));
            self.push(leaf, emit);
        }
        let mut level = 0;
        loop {
            let is_top = level + 1 == self.levels.len();
            if let (true, [root]) = (is_top, self.levels[level].as_slice()) {
                return *root;
            }
            self.close(level, emit);
            level += 1;
        }
    }

    fn add(&mut self, level: usize, child: Root, emit: &mut impl FnMut(Block)) {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        // Only when one more comes, so that a full top level stays the root's.
        if self.levels[level].len() == self.profile.width {
            self.close(level, emit);
        }
        self.levels[level].push(child);
    }

    /// Makes a node of what a level holds.
    fn close(&mut self, level: usize, emit: &mut impl FnMut(Block)) {
        let children = std::mem::take(&mut self.levels[level]);
        let mut data = Data::new(Kind::File);
        data.block_bytes = children.iter().map(|child| child.file_bytes).collect();
        let file_bytes = data.block_bytes.iter().sum();
        data.file_bytes = Some(file_bytes);
        let link = |child: Root| Link { cid: child.cid, name: String::new(), total_bytes: child.total_bytes };
        let links = children.into_iter().map(link).collect();
        let node = Node { links, data: Some(data.encode().into()) };
        let total_bytes = node.total_bytes();
        let block = node.encode();
        let cid = self.profile.node_cid(&block);
        emit(Block { cid, data: block.into() });
        self.add(level + 1, Root { cid, total_bytes, file_bytes }, emit);
    }
}
