//! Randomness from a seed that the caller hands in: one seed gives one history.

use sha2::{Digest, Sha256};

/// A counter hashed with a secret: seeds drawn from it cannot be foreseen by peers.
#[derive(Clone)]
pub(crate) struct Rng {
    key: [u8; 32],
    drawn: u64,
}

impl std::fmt::Debug for Rng {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rng({} drawn)", self.drawn)
    }
}

impl Rng {
    pub(crate) fn new(purpose: &str, seed: [u8; 32]) -> Self {
        let key =
            Sha256::new().chain_update(b"cardume rng 1").chain_update(purpose).chain_update(seed).finalize();
        Rng { key: key.into(), drawn: 0 }
    }

    pub(crate) fn draw(&mut self) -> u64 {
        self.drawn += 1;
        let hash = Sha256::new().chain_update(self.key).chain_update(self.drawn.to_be_bytes()).finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        u64::from_be_bytes(first)
    }

    /// A number below `bound`, or 0 when that is 0. The bias is below 2^-32 for bounds below 2^32.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.draw() % bound }
    }

    /// Takes at most `most` of a list out, whichever.
    pub(crate) fn some_of<T>(&mut self, list: &mut Vec<T>, most: usize) -> Vec<T> {
        let mut some = Vec::new();
        while some.len() < most && !list.is_empty() {
            let index = self.below(list.len() as u64);
            some.push(list.swap_remove(usize::try_from(index).unwrap_or(0)));
        }
        some
    }
}
