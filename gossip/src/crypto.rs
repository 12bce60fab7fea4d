//! Signatures over bytes as they were received, each bound to a domain and a swarm.

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use job::PeerId;
use serde::{Deserialize, Serialize};

use crate::codec::{self, Bytes, DecodeError};

/// What a signature is for: one made for one purpose is worth nothing for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Domain {
    /// Announcements of open jobs, by their owner.
    Announcement,
    /// The end of a daemon job, by its owner.
    Tombstone,
    /// Awards, by the owner.
    Award,
    /// Stops, by the owner.
    Stop,
    /// Receipts, by the worker.
    Receipts,
}

impl Domain {
    /// The words in front of what is signed.
    pub fn tag(self) -> &'static [u8] {
        match self {
            Domain::Announcement => b"cardume announcement 1",
            Domain::Tombstone => b"cardume tombstone 1",
            Domain::Award => b"cardume award 1",
            Domain::Stop => b"cardume stop 1",
            Domain::Receipts => b"cardume receipts 1",
        }
    }
}

/// Signs as this node and verifies others, over domain tag, swarm name and payload.
pub trait Crypto: Send + Sync {
    /// Signs a payload as this node.
    fn sign(&self, domain: Domain, payload: &[u8]) -> [u8; 64];

    /// Whether `signature` is the signer's over this payload.
    fn verify(&self, signer: PeerId, domain: Domain, payload: &[u8], signature: &[u8; 64]) -> bool;
}

/// The real one: Ed25519 with strict verification.
///
/// ```
/// use gossip::crypto::{Crypto, Domain, Ed25519};
/// let node = Ed25519::new([7; 32], "public");
/// let signature = node.sign(Domain::Award, b"order");
/// assert!(node.verify(node.peer(), Domain::Award, b"order", &signature));
/// assert!(!node.verify(node.peer(), Domain::Stop, b"order", &signature));
/// ```
pub struct Ed25519 {
    key: SigningKey,
    swarm: String,
}

impl std::fmt::Debug for Ed25519 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ed25519({}, swarm {:?})", self.peer(), self.swarm)
    }
}

impl Ed25519 {
    /// The key pair of a secret seed, in a swarm.
    pub fn new(seed: [u8; 32], swarm: &str) -> Self {
        Ed25519 { key: SigningKey::from_bytes(&seed), swarm: swarm.to_owned() }
    }

    /// Who signs.
    pub fn peer(&self) -> PeerId {
        PeerId(self.key.verifying_key().to_bytes())
    }

    fn message(&self, domain: Domain, payload: &[u8]) -> Vec<u8> {
        let (tag, swarm) = (domain.tag(), self.swarm.as_bytes());
        let mut message = Vec::with_capacity(tag.len() + 8 + swarm.len() + payload.len());
        message.extend_from_slice(tag);
        message.extend_from_slice(&(swarm.len() as u64).to_be_bytes());
        message.extend_from_slice(swarm);
        message.extend_from_slice(payload);
        message
    }
}

impl Crypto for Ed25519 {
    fn sign(&self, domain: Domain, payload: &[u8]) -> [u8; 64] {
        self.key.sign(&self.message(domain, payload)).to_bytes()
    }

    fn verify(&self, signer: PeerId, domain: Domain, payload: &[u8], signature: &[u8; 64]) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&signer.0) else { return false };
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        key.verify_strict(&self.message(domain, payload), &signature).is_ok()
    }
}

/// Bytes and the signature over exactly these bytes: what can be stored, shown and passed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The encoded value.
    #[serde(rename = "p")]
    pub payload: Bytes,
    /// Its signature.
    #[serde(rename = "s", with = "codec::array")]
    pub signature: [u8; 64],
}

/// A value that travels signed.
pub trait Signable: Serialize + serde::de::DeserializeOwned {
    /// What its signatures are for.
    const DOMAIN: Domain;
    /// Largest encoded form.
    const MAX_BYTES: usize;

    /// Checks the bounds of what was decoded.
    fn check(&self) -> Result<(), DecodeError>;
}

impl Signed {
    /// Encodes and signs a value.
    pub fn seal<T: Signable>(value: &T, crypto: &dyn Crypto) -> Self {
        let payload = codec::encode(value);
        let signature = crypto.sign(T::DOMAIN, &payload);
        Signed { payload: payload.into(), signature }
    }

    /// Decodes and checks the value without looking at the signature.
    pub fn read<T: Signable>(&self) -> Result<T, DecodeError> {
        let value: T = codec::decode(&self.payload, T::MAX_BYTES)?;
        value.check()?;
        Ok(value)
    }

    /// Whether the signature is `signer`'s, for values of this type.
    pub fn is_by<T: Signable>(&self, signer: PeerId, crypto: &dyn Crypto) -> bool {
        crypto.verify(signer, T::DOMAIN, &self.payload, &self.signature)
    }

    /// Decodes and checks the value and the signature of `signer`.
    pub fn open<T: Signable>(&self, signer: PeerId, crypto: &dyn Crypto) -> Result<T, DecodeError> {
        let value = self.read()?;
        if self.is_by::<T>(signer, crypto) { Ok(value) } else { Err(DecodeError::Signature) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_one_domain_one_swarm_and_one_payload() {
        let (here, there) = (Ed25519::new([1; 32], "here"), Ed25519::new([1; 32], "there"));
        let other = Ed25519::new([2; 32], "here");
        let signature = here.sign(Domain::Receipts, b"payload");
        assert!(other.verify(here.peer(), Domain::Receipts, b"payload", &signature));
        assert!(!there.verify(here.peer(), Domain::Receipts, b"payload", &signature));
        assert!(!here.verify(other.peer(), Domain::Receipts, b"payload", &signature));
        assert!(!here.verify(here.peer(), Domain::Award, b"payload", &signature));
        assert!(!here.verify(here.peer(), Domain::Receipts, b"payloae", &signature));
    }
}
