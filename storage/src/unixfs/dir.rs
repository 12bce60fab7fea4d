//! Directories and symbolic links.

use bytes::Bytes;
use cid::Cid;

use super::profile::SHARD_ABOVE_BYTES;
use super::{Data, Kind, Link, Node, Profile, Root, ShardRule, UnixfsError, hamt};
use crate::block::Block;

/// An entry of a directory that is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name: neither empty nor `.` nor `..`, without `/` and NUL.
    pub name: String,
    /// What it names.
    pub cid: Cid,
    /// Bytes of all blocks below: [`Root::total_bytes`].
    pub total_bytes: u64,
}

impl DirEntry {
    /// An entry for a finished file or directory.
    pub fn new(name: impl Into<String>, root: Root) -> Self {
        DirEntry { name: name.into(), cid: root.cid, total_bytes: root.total_bytes }
    }
}

/// Whether a name can be an entry of a directory on disk.
pub(crate) fn is_entry_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']) && name.len() <= 255
}

/// Builds a directory; its blocks are handed to `emit`, children before parents.
///
/// It is sharded when it would be larger than 256 KiB. Entries may come in any order.
pub fn directory(
    profile: &Profile,
    mut entries: Vec<DirEntry>,
    emit: &mut impl FnMut(Block),
) -> Result<Root, UnixfsError> {
    entries.sort_unstable_by(|left, right| left.name.as_bytes().cmp(right.name.as_bytes()));
    for entry in &entries {
        if !is_entry_name(&entry.name) {
            return Err(UnixfsError::Name(entry.name.clone()));
        }
    }
    if let Some([twice, _]) = entries.array_windows().find(|[left, right]| left.name == right.name) {
        return Err(UnixfsError::DuplicateName(twice.name.clone()));
    }
    let by_links: usize = entries.iter().map(|entry| entry.name.len() + entry.cid.encoded_len()).sum();
    if profile.shard_rule == ShardRule::Links && by_links > SHARD_ABOVE_BYTES {
        return hamt::build(profile, entries, emit);
    }
    let node = Node {
        links: entries.into_iter().map(Link::from).collect(),
        data: Some(Data::new(Kind::Directory).encode().into()),
    };
    if profile.shard_rule == ShardRule::Block && node.encoded_len() > SHARD_ABOVE_BYTES {
        return hamt::build(profile, node.links.into_iter().map(DirEntry::from).collect(), emit);
    }
    Ok(close(profile, node, emit))
}

/// Builds a symbolic link.
pub fn symlink(profile: &Profile, target: &str, emit: &mut impl FnMut(Block)) -> Root {
    let mut data = Data::new(Kind::Symlink);
    data.data = Bytes::copy_from_slice(target.as_bytes());
    close(profile, Node { links: Vec::new(), data: Some(data.encode().into()) }, emit)
}

fn close(profile: &Profile, node: Node, emit: &mut impl FnMut(Block)) -> Root {
    let total_bytes = node.total_bytes();
    let block = node.encode();
    let cid = profile.node_cid(&block);
    emit(Block { cid, data: block.into() });
    Root { cid, total_bytes, file_bytes: 0 }
}

impl From<DirEntry> for Link {
    fn from(entry: DirEntry) -> Self {
        Link { cid: entry.cid, name: entry.name, total_bytes: entry.total_bytes }
    }
}

impl From<Link> for DirEntry {
    fn from(link: Link) -> Self {
        DirEntry { cid: link.cid, name: link.name, total_bytes: link.total_bytes }
    }
}
