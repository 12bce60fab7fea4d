//! Sharded directories: a trie over the hashes of names.

use super::{Data, DirEntry, Kind, Link, Node, Profile, Root, UnixfsError};
use crate::block::Block;

/// Places in a shard that we write; others may use fewer or more.
const FANOUT: usize = 256;
/// The hash function's number: murmur3-x64-64.
const MURMUR3_X64_64: u64 = 0x22;
/// The largest fanout that is read.
const MAX_FANOUT: u64 = 1024;
/// Bits of a name's hash.
const HASH_BITS: u32 = 64;

/// Builds the shards of a directory; answers with the top one.
pub(super) fn build(
    profile: &Profile,
    entries: Vec<DirEntry>,
    emit: &mut impl FnMut(Block),
) -> Result<Root, UnixfsError> {
    let mut hashed: Vec<(u64, DirEntry)> =
        entries.into_iter().map(|entry| (murmur3(entry.name.as_bytes()), entry)).collect();
    hashed.sort_unstable_by_key(|(hash, _)| *hash);
    shard(profile, &hashed, 0, emit)
}

/// One shard of entries, sorted by hash, whose hashes agree in the first `depth` bytes.
fn shard(
    profile: &Profile,
    entries: &[(u64, DirEntry)],
    depth: u32,
    emit: &mut impl FnMut(Block),
) -> Result<Root, UnixfsError> {
    let mut bits = [0_u8; FANOUT / 8];
    let mut links = Vec::new();
    let place_of = |hash: u64| (hash >> (HASH_BITS - 8 - 8 * depth)) as usize & (FANOUT - 1);
    for group in entries.chunk_by(|left, right| place_of(left.0) == place_of(right.0)) {
        let [(hash, entry), rest @ ..] = group else { continue };
        let place = place_of(*hash);
        bits[FANOUT / 8 - 1 - place / 8] |= 1 << (place % 8);
        if rest.is_empty() {
            let name = format!("{place:02X}{}", entry.name);
            links.push(Link { cid: entry.cid, name, total_bytes: entry.total_bytes });
            continue;
        }
        if 8 * (depth + 1) >= HASH_BITS {
            return Err(UnixfsError::HashCollision(entry.name.clone()));
        }
        let below = shard(profile, group, depth + 1, emit)?;
        links.push(Link { cid: below.cid, name: format!("{place:02X}"), total_bytes: below.total_bytes });
    }
    let first = bits.iter().position(|byte| *byte != 0).unwrap_or(bits.len());
    let data = Data {
        data: bits[first..].to_vec().into(),
        hash_type: Some(MURMUR3_X64_64),
        fanout: Some(FANOUT as u64),
        ..Data::new(Kind::Shard)
    };
    let node = Node { links, data: Some(data.encode().into()) };
    let total_bytes = node.total_bytes();
    let block = node.encode();
    let cid = profile.node_cid(&block);
    emit(Block { cid, data: block.into() });
    Ok(Root { cid, total_bytes, file_bytes: 0 })
}

/// A shard as it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shard {
    bits: u32,
    prefix: usize,
}

/// What a link in a shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// An entry of this name.
    Entry(&'a str),
    /// A shard one level below.
    Below,
}

impl Shard {
    /// Checks a shard's parameters.
    pub(crate) fn of(data: &Data) -> Result<Self, UnixfsError> {
        let fanout = data.fanout.unwrap_or(FANOUT as u64);
        if data.hash_type != Some(MURMUR3_X64_64) {
            return Err(UnixfsError::Invalid("a shard with an unknown hash function"));
        }
        if !fanout.is_power_of_two() || !(8..=MAX_FANOUT).contains(&fanout) {
            return Err(UnixfsError::Invalid("a shard with an unusable fanout"));
        }
        let prefix = format!("{:X}", fanout - 1).len();
        Ok(Shard { bits: fanout.trailing_zeros(), prefix })
    }

    /// What a link's name says.
    pub(crate) fn place<'a>(&self, name: &'a str) -> Result<Place<'a>, UnixfsError> {
        let bad = UnixfsError::Invalid("a link of a shard without its place");
        let (place, rest) = name.split_at_checked(self.prefix).ok_or(bad.clone())?;
        if !place.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad);
        }
        Ok(if rest.is_empty() { Place::Below } else { Place::Entry(rest) })
    }

    /// What the link to `name`, or to the shard that leads to it, starts with, this many levels deep; `None` below the
    /// last level that a hash can name.
    pub(crate) fn prefix_of(&self, name: &str, depth: u32) -> Option<String> {
        let used = self.bits.checked_mul(depth)?;
        let left = HASH_BITS.checked_sub(used.checked_add(self.bits)?)?;
        let place = murmur3(name.as_bytes()) >> left & ((1 << self.bits) - 1);
        Some(format!("{place:0width$X}", width = self.prefix))
    }
}

/// The first half of murmur3's 128 bit hash for 64 bit machines, seed 0.
fn murmur3(bytes: &[u8]) -> u64 {
    const C1: u64 = 0x87c3_7b91_1142_53d5;
    const C2: u64 = 0x4cf5_ad43_2745_937f;
    let mix1 = |k: u64| k.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2);
    let mix2 = |k: u64| k.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1);
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
    let (mut h1, mut h2) = (0_u64, 0_u64);
    let (blocks, tail) = bytes.as_chunks::<16>();
    for block in blocks {
        let (low, high) = block.split_at(8);
        h1 =
            (h1 ^ mix1(word(low))).rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 = (h2 ^ mix2(word(high)))
            .rotate_left(31)
            .wrapping_add(h1)
            .wrapping_mul(5)
            .wrapping_add(0x3849_5ab5);
    }
    let (low, high) = tail.split_at(tail.len().min(8));
    h1 ^= mix1(word(low));
    h2 ^= mix2(word(high));
    h1 ^= bytes.len() as u64;
    h2 ^= bytes.len() as u64;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    finish(h1).wrapping_add(finish(h2))
}

fn finish(mut k: u64) -> u64 {
    k = (k ^ k >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    k = (k ^ k >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    k ^ k >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur3_gives_its_published_values() {
        assert_eq!(murmur3(b""), 0);
        assert_eq!(murmur3(b"hello"), 0xcbd8_a7b3_41bd_9b02);
        assert_eq!(murmur3(b"hello, world"), 0x342f_ac62_3a5e_bc8e);
        assert_eq!(murmur3(b"The quick brown fox jumps over the lazy dog."), 0xcd99_481f_9ee9_02c9);
    }
}
