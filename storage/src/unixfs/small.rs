//! Small trees built in memory, thousands a second: what an execution leaves behind.

use std::collections::BTreeMap;

use bytes::Bytes;
use cid::Cid;

use super::dir::{DirEntry, directory, is_entry_name};
use super::{FileTree, Leaf, Profile, Root, UnixfsError};
use crate::block::Block;

/// The most that a tree in memory may hold; larger ones are added from disk.
pub const SMALL_TREE_BYTES: usize = 16 * 1024 * 1024;

/// [`small_tree_with`] the default profile.
pub fn small_tree(files: &[(&str, &[u8])]) -> Result<(Cid, Vec<Block>), UnixfsError> {
    small_tree_with(&Profile::default(), files)
}

/// Makes a directory of files given as (path, bytes); a path may lead through directories (`outputs/a.txt`), and one
/// that ends in `/` is an empty directory.
///
/// Answers with the root and all blocks, children before parents, the root last. Pure: nothing is stored.
pub fn small_tree_with(profile: &Profile, files: &[(&str, &[u8])]) -> Result<(Cid, Vec<Block>), UnixfsError> {
    let bytes = files.iter().map(|(_, bytes)| bytes.len()).sum();
    if bytes > SMALL_TREE_BYTES {
        return Err(UnixfsError::TooLarge(bytes));
    }
    let mut root = Dir::default();
    for (path, bytes) in files {
        root.insert(path, bytes)?;
    }
    let mut blocks = Vec::with_capacity(files.len() + 1);
    let top = root.build(profile, &mut |block| blocks.push(block))?;
    Ok((top.cid, blocks))
}

#[derive(Default)]
struct Dir<'a> {
    entries: BTreeMap<&'a str, Entry<'a>>,
}

enum Entry<'a> {
    File(&'a [u8]),
    Dir(Dir<'a>),
}

/// Directories in each other: enough for results, and building them is recursive.
const MAX_DEPTH: usize = 64;

impl<'a> Dir<'a> {
    fn insert(&mut self, path: &'a str, bytes: &'a [u8]) -> Result<(), UnixfsError> {
        let bad = || UnixfsError::Name(path.to_owned());
        let (parents, name) = match path.strip_suffix('/') {
            Some(directory) => (Some(directory), None),
            None => match path.rsplit_once('/') {
                Some((parents, name)) => (Some(parents), Some(name)),
                None => (None, Some(path)),
            },
        };
        let mut dir = self;
        for (depth, parent) in parents.into_iter().flat_map(|parents| parents.split('/')).enumerate() {
            if !is_entry_name(parent) || depth >= MAX_DEPTH {
                return Err(bad());
            }
            let entry = dir.entries.entry(parent).or_insert_with(|| Entry::Dir(Dir::default()));
            dir = match entry {
                Entry::Dir(below) => below,
                Entry::File(_) => return Err(UnixfsError::DuplicateName(path.to_owned())),
            };
        }
        let Some(name) = name else { return Ok(()) };
        if !is_entry_name(name) {
            return Err(bad());
        }
        match dir.entries.insert(name, Entry::File(bytes)) {
            None => Ok(()),
            Some(_) => Err(UnixfsError::DuplicateName(path.to_owned())),
        }
    }

    fn build(self, profile: &Profile, emit: &mut dyn FnMut(Block)) -> Result<Root, UnixfsError> {
        let mut entries = Vec::with_capacity(self.entries.len());
        for (name, entry) in self.entries {
            let root = match entry {
                Entry::File(bytes) => file(profile, bytes, emit),
                Entry::Dir(below) => below.build(profile, emit)?,
            };
            entries.push(DirEntry::new(name, root));
        }
        directory(profile, entries, &mut |block| emit(block))
    }
}

fn file(profile: &Profile, bytes: &[u8], emit: &mut dyn FnMut(Block)) -> Root {
    let mut tree = FileTree::new(*profile);
    for piece in bytes.chunks(profile.chunk_bytes.max(1)) {
        let leaf = Leaf::of(profile, piece);
        emit(leaf.block(profile, Bytes::copy_from_slice(piece)));
        tree.push(leaf, &mut |block| emit(block));
    }
    tree.finish(&mut |block| emit(block))
}
