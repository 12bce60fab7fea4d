//! One wanted block: who wants it, and what which peer was told about it.

use std::time::Duration;

use cid::Cid;
use job::Time;

use super::{SessionId, Wanted};
use crate::exchange::network::Peer;

#[derive(Debug)]
pub(super) struct Want {
    pub cid: Cid,
    pub size_bytes: u64,
    /// Place in the order of all wants.
    pub order: u64,
    /// Who waits for it.
    pub sessions: Vec<SessionId>,
    /// What peers were told, and what came of it. At most `MAX_TOLD`.
    pub told: Vec<(Peer, Told)>,
}

#[derive(Debug, Clone)]
pub(super) enum Told {
    /// Asked for the block.
    Asked { at: Time, expected: Duration, deadline: Time, bytes: u64 },
    /// Asked whether it has the block.
    Probed,
    /// Said that it has it not.
    DontHave,
    /// Was asked and let the deadline pass.
    Silent,
}

impl Want {
    pub fn new(wanted: Wanted, order: u64) -> Want {
        let Wanted { cid, size_bytes } = wanted;
        Want { cid, size_bytes, order, sessions: Vec::new(), told: Vec::new() }
    }

    pub fn told_to(&self, peer: &Peer) -> Option<&Told> {
        self.told.iter().find(|(told, _)| told == peer).map(|(_, how)| how)
    }

    pub fn told_to_mut(&mut self, peer: &Peer) -> Option<&mut Told> {
        self.told.iter_mut().find(|(told, _)| told == peer).map(|(_, how)| how)
    }

    pub fn set_told(&mut self, peer: &Peer, how: Told) {
        match self.told_to_mut(peer) {
            Some(told) => *told = how,
            None => self.told.push((peer.clone(), how)),
        }
    }

    /// How many peers are asked for it right now.
    pub fn asked_count(&self) -> usize {
        self.told.iter().filter(|(_, how)| matches!(how, Told::Asked { .. })).count()
    }
}
