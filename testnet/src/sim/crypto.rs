//! A signature scheme that costs nanoseconds: a keyed hash that everybody can compute. Nobody forges in a simulation;
//! what has to show is that signatures are made over the right bytes, for the right purpose, and checked at all.

use gossip::crypto::{Crypto, Domain};
use job::PeerId;

use super::rng::{fold, mix};

/// Signs for one peer and verifies for all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cheap(pub PeerId);

impl Crypto for Cheap {
    fn sign(&self, domain: Domain, payload: &[u8]) -> [u8; 64] {
        signature(self.0, domain, payload)
    }

    fn verify(&self, signer: PeerId, domain: Domain, payload: &[u8], given: &[u8; 64]) -> bool {
        signature(signer, domain, payload) == *given
    }
}

fn signature(signer: PeerId, domain: Domain, payload: &[u8]) -> [u8; 64] {
    let mut hash = fold(fold(fold(0, &signer.0), domain.tag()), payload);
    let mut bytes = [0; 64];
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&hash.to_le_bytes());
        hash = mix(hash.wrapping_add(0x9e37_79b9_7f4a_7c15));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cheap_signature_names_signer_purpose_and_payload() {
        let (one, other) = (PeerId([1; 32]), PeerId([2; 32]));
        let given = Cheap(one).sign(Domain::Award, b"payload");
        assert!(Cheap(other).verify(one, Domain::Award, b"payload", &given));
        assert!(!Cheap(other).verify(other, Domain::Award, b"payload", &given));
        assert!(!Cheap(other).verify(one, Domain::Stop, b"payload", &given));
        assert!(!Cheap(other).verify(one, Domain::Award, b"payloae", &given));
    }
}
