//! Peers that break rules: a lower score for each offence, and a block after a few.

use std::{collections::HashMap, time::Duration};

use libp2p::PeerId;
use tokio::time::Instant;
use tracing::info;

use super::Task;
use crate::Event;

/// So many offences within [`MEMORY`] block a peer. Gossip scoring alone silences it after the third invalid message too,
/// but forgets: one every few minutes would go on for ever.
const BLOCK_AT: u32 = 3;
/// An offence is forgotten this long after the last one, and so is a block.
const MEMORY: Duration = Duration::from_secs(3600);
/// Peers remembered; the ones that offended longest ago are forgotten beyond.
const MAX_PEERS: usize = 4096;
/// What each offence takes from the gossip score, beside what gossipsub takes for invalid messages.
const SCORE: f64 = -20.0;

#[derive(Default)]
pub(super) struct Offences {
    peers: HashMap<PeerId, Record>,
    blocked: HashMap<PeerId, Instant>,
}

struct Record {
    count: u32,
    last: Instant,
}

impl Offences {
    pub(super) fn is_blocked(&self, peer: &PeerId) -> bool {
        self.blocked.contains_key(peer)
    }

    pub(super) fn next_wakeup(&self) -> Option<Instant> {
        self.blocked.values().min().copied()
    }

    /// Counts one offence; how many are remembered of the peer now.
    fn add(&mut self, peer: PeerId, now: Instant) -> u32 {
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&peer) {
            let oldest = self.peers.iter().min_by_key(|(_, record)| record.last);
            if let Some(oldest) = oldest.map(|(peer, _)| *peer) {
                self.peers.remove(&oldest);
            }
        }
        let record = self.peers.entry(peer).or_insert(Record { count: 0, last: now });
        if record.last + MEMORY < now {
            record.count = 0;
        }
        record.count += 1;
        record.last = now;
        record.count
    }

    /// Blocks a peer; gives the one that is let in again when too many are blocked.
    fn block(&mut self, peer: PeerId, now: Instant) -> Option<PeerId> {
        self.peers.remove(&peer);
        self.blocked.insert(peer, now + MEMORY);
        if self.blocked.len() <= MAX_PEERS {
            return None;
        }
        let oldest = self.blocked.iter().min_by_key(|(_, until)| **until).map(|(peer, _)| *peer)?;
        self.blocked.remove(&oldest);
        Some(oldest)
    }
}

impl Task {
    pub(super) fn penalise(&mut self, peer: PeerId, why: &'static str) {
        if peer == *self.swarm.local_peer_id() || self.offences.is_blocked(&peer) {
            return;
        }
        let now = Instant::now();
        let count = self.offences.add(peer, now);
        info!(%peer, why, count, "offence");
        let behaviour = self.swarm.behaviour_mut();
        behaviour.gossip.inner.set_application_score(&peer, SCORE * f64::from(count));
        if count < BLOCK_AT {
            return;
        }
        behaviour.blocked.block_peer(peer);
        behaviour.dht.0.remove_peer(&peer);
        if let Some(again) = self.offences.block(peer, now) {
            self.swarm.behaviour_mut().blocked.unblock_peer(again);
        }
        self.shared.metrics.peers_blocked.add(1);
        self.emit(Event::Blocked { peer });
    }

    /// For rules that no honest peer breaks: an offence, and the connection is closed.
    pub(super) fn cut(&mut self, peer: PeerId, why: &'static str) {
        self.shared.metrics.peers_cut.add(1);
        self.penalise(peer, why);
        self.disconnect(peer);
    }

    /// Lets peers in again whose time is over.
    pub(super) fn forgive(&mut self, now: Instant) {
        let over = self.offences.blocked.iter().filter(|(_, until)| **until <= now);
        let over: Vec<_> = over.map(|(peer, _)| *peer).collect();
        for peer in over {
            self.offences.blocked.remove(&peer);
            self.swarm.behaviour_mut().blocked.unblock_peer(peer);
        }
    }
}
