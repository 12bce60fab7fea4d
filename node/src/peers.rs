//! The two spellings of a peer: the job model's 32-byte key, and the network's id.

use job::PeerId;

/// As the network spells it.
pub fn to_network(peer: PeerId) -> p2p::PeerId {
    p2p::peer_id_from_ed25519(peer.0)
}

/// As the job model spells it; `None` for peers whose key is not Ed25519: they take no part in jobs.
pub fn from_network(peer: &p2p::PeerId) -> Option<PeerId> {
    p2p::ed25519_of(peer).map(PeerId)
}
