//! A set of blocks that may claim too much and never too little, in fixed memory.

use cid::multihash::Multihash;

/// Bits for each block: fewer than one in 2,000 unmarked blocks looks marked, and stays until the next collection.
const BITS_PER_BLOCK: u64 = 16;
/// Bits set for each block.
const PROBES: u64 = 6;
/// What an empty store's filter has, so that blocks which come during a collection fit.
const SPARE_BLOCKS: u64 = 64 * 1024;

/// Eight bytes of a block's hash.
pub(super) fn fingerprint(hash: &Multihash<64>) -> u64 {
    let mut first = [0; 8];
    for (to, from) in first.iter_mut().zip(hash.digest()) {
        *to = *from;
    }
    u64::from_le_bytes(first)
}

/// The set.
#[derive(Debug)]
pub(super) struct Bloom {
    words: Vec<u64>,
}

impl Bloom {
    /// A filter for this many blocks and some that come meanwhile.
    pub(super) fn for_blocks(blocks: u64) -> Self {
        let bits = blocks.saturating_add(SPARE_BLOCKS).saturating_mul(BITS_PER_BLOCK);
        Bloom { words: vec![0; usize::try_from(bits / 64).unwrap_or(usize::MAX / 64)] }
    }

    pub(super) fn insert(&mut self, print: u64) {
        for (word, bit) in self.places(print) {
            if let Some(word) = self.words.get_mut(word) {
                *word |= bit;
            }
        }
    }

    pub(super) fn contains(&self, print: u64) -> bool {
        self.places(print).all(|(word, bit)| self.words.get(word).is_some_and(|word| word & bit != 0))
    }

    fn places(&self, print: u64) -> impl Iterator<Item = (usize, u64)> + use<> {
        let bits = (self.words.len() as u64 * 64).max(1);
        let step = print.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..PROBES).map(move |probe| {
            let place = print.wrapping_add(step.wrapping_mul(probe)) % bits;
            ((place / 64) as usize, 1 << (place % 64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_is_found_and_little_else() {
        let mut bloom = Bloom::for_blocks(100_000);
        let print = |number: u64| number.wrapping_mul(0xd134_2543_de82_ef95).rotate_left(17);
        (0..100_000).for_each(|number| bloom.insert(print(number)));
        assert!((0..100_000).all(|number| bloom.contains(print(number))));
        let wrong = (100_000..200_000).filter(|number| bloom.contains(print(*number))).count();
        assert!(wrong < 500, "{wrong} of 100,000 are claimed wrongly");
    }
}
