//! The admission lottery: who may bid, so that the number of bids does not grow with the swarm.
//!
//! All shares are fractions of 2^32, in integers, so that every peer computes the same.
//!
//! ```
//! use gossip::lottery;
//! let job = job::JobId::derive("public", job::PeerId([1; 32]), b"nonce");
//! let draw = lottery::draw(7, job, job::PeerId([2; 32]));
//! assert!(lottery::admits(lottery::ALL, 1, draw));
//! assert!(!lottery::admits(0, 8, draw));
//! ```

use job::{JobId, PeerId};
use sha2::{Digest, Sha256};

/// The share that is everybody.
pub const ALL: u64 = 1 << 32;

/// Swarms below this size need no lottery.
pub const SMALL: u64 = 64;

/// Most partitions that one round looks for: more go in waves.
pub const WAVE: u64 = 64;

/// Bids wanted per partition: one in three is usually won.
const BIDS_PER_PARTITION: u64 = 3;

/// Least bids that a first round aims at, over all peers; also how many declines are sampled.
const LEAST_BIDS: u64 = 32;

/// After a round without any bid the share grows by this factor.
const BLIND_FACTOR: u64 = 16;

/// A peer's number in a job's lottery: the first 32 bits of a hash over seed, job and peer.
pub fn draw(seed: u64, job: JobId, peer: PeerId) -> u32 {
    let hash = Sha256::new()
        .chain_update(b"cardume lottery 1")
        .chain_update(seed.to_be_bytes())
        .chain_update(job.0)
        .chain_update(peer.0)
        .finalize();
    u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
}

/// How much a peer's number counts: 8 with at least half of the input bytes, 3 with the module or image, else 1.
pub fn weight(local_bytes: u64, input_bytes: u64, cached: bool) -> u64 {
    if input_bytes > 0 && local_bytes >= input_bytes.div_ceil(2) {
        8
    } else if cached {
        3
    } else {
        1
    }
}

/// Whether a peer with this number and weight may bid: draw / weight < theta.
pub fn admits(theta: u64, weight: u64, draw: u32) -> bool {
    u128::from(draw) < u128::from(theta) * u128::from(weight)
}

/// The first share of a job with `open` partitions in a swarm of `size` peers, of which `able` of 2^32 bid on such jobs.
pub fn start(open: u64, size: u64, able: u64) -> u64 {
    if size < SMALL {
        return ALL;
    }
    let wanted = BIDS_PER_PARTITION * open.clamp(1, WAVE);
    // 3·c / (N·f), with f a share of 2^32.
    let by_need =
        u128::from(wanted) * u128::from(ALL) * u128::from(ALL) / (u128::from(size) * u128::from(able.max(1)));
    let least = u128::from(LEAST_BIDS) * u128::from(ALL) / u128::from(size);
    u64::try_from(by_need.max(least)).unwrap_or(ALL).min(ALL)
}

/// The share after a round at `theta` that brought `bids` and left `missing` partitions without a worker.
pub fn widen(theta: u64, bids: u64, missing: u64) -> u64 {
    if bids == 0 {
        return theta.max(1).saturating_mul(BLIND_FACTOR).min(ALL);
    }
    // So many able peers are there, as far as this round showed: bids / theta.
    let more = u128::from(BIDS_PER_PARTITION * missing.clamp(1, WAVE)) * u128::from(theta) / u128::from(bids);
    let wider = u128::from(theta) + more.max(u128::from(theta));
    u64::try_from(wider).unwrap_or(ALL).min(ALL)
}

/// The share of peers that were admitted and must decline that say so: about 32 in all.
pub fn decline_share(theta: u64, size: u64) -> u64 {
    let asked = u128::from(size.max(1)) * u128::from(theta.max(1));
    u64::try_from(u128::from(LEAST_BIDS) * u128::from(ALL) * u128::from(ALL) / asked).unwrap_or(ALL).min(ALL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(theta: u64) -> f64 {
        theta as f64 / ALL as f64
    }

    #[test]
    fn a_small_swarm_asks_everybody() {
        assert_eq!(start(1, 63, ALL), ALL);
        assert!(start(1, 64, ALL) < ALL);
        assert_eq!(decline_share(ALL, 10), ALL);
    }

    #[test]
    fn the_first_share_aims_at_three_bids_a_partition_and_at_least_32_peers() {
        assert!((share(start(1, 100_000, ALL)) - 32.0 / 100_000.0).abs() < 1e-6);
        assert!((share(start(50, 100_000, ALL / 10)) - 150.0 / 10_000.0).abs() < 1e-6);
        assert_eq!(start(64, 100, 1), ALL);
        assert_eq!(start(u64::MAX, 100_000, ALL), start(64, 100_000, ALL));
    }

    #[test]
    fn widening_ends_at_everybody() {
        assert_eq!(widen(ALL / 1000, 0, 1), 16 * (ALL / 1000));
        let theta = ALL / 1000;
        assert_eq!(widen(theta, 3, 1), 2 * theta);
        assert_eq!(widen(theta, 1, 4), 13 * theta);
        let mut theta = 1;
        let mut rounds = 0;
        while theta < ALL {
            theta = widen(theta, 0, 1);
            rounds += 1;
        }
        assert_eq!(rounds, 8);
    }

    #[test]
    fn about_32_declines_are_sampled_whatever_the_size() {
        assert_eq!(decline_share(ALL, 3200), ALL / 100);
        assert_eq!(decline_share(ALL / 100, 3200), ALL);
    }

    #[test]
    fn draws_are_even_and_weights_multiply_the_chance() {
        let job = JobId([3; 16]);
        let peers = (0..4000u32).map(|number| {
            let mut peer = [0; 32];
            peer[..4].copy_from_slice(&number.to_be_bytes());
            draw(9, job, PeerId(peer))
        });
        let draws: Vec<u32> = peers.collect();
        let admitted = |weight| draws.iter().filter(|&&draw| admits(ALL / 100, weight, draw)).count();
        assert!((20..=60).contains(&admitted(1)), "{}", admitted(1));
        assert!((250..=390).contains(&admitted(8)), "{}", admitted(8));
    }

    #[test]
    fn weight_follows_what_is_already_there() {
        assert_eq!(weight(50, 100, false), 8);
        assert_eq!(weight(49, 100, true), 3);
        assert_eq!(weight(0, 0, false), 1);
    }

    #[test]
    fn bids_stay_few_at_any_size_and_any_wrong_estimate() {
        for size in [1_000u64, 10_000, 100_000] {
            for estimate in [size / 4, size, size * 4] {
                let job = JobId([5; 16]);
                let able: Vec<PeerId> = (0..size / 10)
                    .map(|number| {
                        let mut peer = [1; 32];
                        peer[..8].copy_from_slice(&number.to_be_bytes());
                        PeerId(peer)
                    })
                    .collect();
                let (mut theta, mut bids, mut rounds) = (start(3, estimate, ALL / 10), 0, 1);
                loop {
                    bids =
                        able.iter().filter(|peer| admits(theta, 1, draw(1, job, **peer))).count().max(bids);
                    if bids >= 3 || theta == ALL {
                        break;
                    }
                    theta = widen(theta, bids as u64, 3 - bids as u64);
                    rounds += 1;
                }
                assert!((3..=80).contains(&bids) && rounds <= 3, "{size} {estimate}: {bids} in {rounds}");
            }
        }
    }
}
