//! Names of things: peers, jobs, executions, fences.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// Why a text is not the id it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// Not of the form `j-` and a UUID.
    #[error("{0:?} is not a job id (expected `j-` and a UUID)")]
    Job(String),
    /// Not of the form `e-` and a UUID.
    #[error("{0:?} is not an execution id (expected `e-` and a UUID)")]
    Execution(String),
    /// Not the text of an Ed25519 peer id.
    #[error("{0:?} is not an Ed25519 peer id (expected 12D3Koo…)")]
    Peer(String),
}

/// The identity of a peer: its Ed25519 public key.
///
/// Its text is libp2p's: base58btc of the identity multihash of the protobuf-encoded key, `12D3Koo…`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 32]);

/// Identity multihash (0x00, 36 bytes) of a protobuf `PublicKey { type: Ed25519, data: 32 bytes }`.
const PEER_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl PeerId {
    /// The peer id's multihash, as libp2p has it on the wire.
    pub fn to_multihash(self) -> Vec<u8> {
        [&PEER_PREFIX[..], &self.0[..]].concat()
    }

    /// Reads a multihash as libp2p has it; `None` for keys of other kinds.
    pub fn from_multihash(bytes: &[u8]) -> Option<Self> {
        bytes.strip_prefix(&PEER_PREFIX)?.try_into().ok().map(PeerId)
    }

    /// The last eight characters: enough for a person to tell peers apart in logs.
    pub fn short(self) -> String {
        let text = self.to_string();
        text[text.len().saturating_sub(8)..].to_owned()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&bs58::encode(self.to_multihash()).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for PeerId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::Peer(text.to_owned());
        // 38 bytes are at most 52 base58 digits; longer text is not decoded (base58 is quadratic).
        if text.len() > 64 {
            return Err(wrong());
        }
        let bytes = bs58::decode(text).into_vec().map_err(|_| wrong())?;
        Self::from_multihash(&bytes).ok_or_else(wrong)
    }
}

/// The name of a job, the same over all its versions: `j-` and a UUID version 8 that its owner derived.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub [u8; 16]);

impl JobId {
    /// Derives the id of a job: the first 122 bits of a hash over domain, swarm, owner and nonce, so that
    /// any peer can check that the owner made it.
    ///
    /// ```
    /// let owner = job::PeerId([7; 32]);
    /// let id = job::JobId::derive("public", owner, b"nonce");
    /// assert!(id.to_string().starts_with("j-"));
    /// assert_eq!(id.to_string().parse(), Ok(id));
    /// ```
    pub fn derive(swarm: &str, owner: PeerId, nonce: &[u8]) -> Self {
        let length = (swarm.len() as u64).to_be_bytes();
        JobId(uuid8(&[b"cardume job 1", &length, swarm.as_bytes(), &owner.0, nonce]))
    }

    /// `j-` and the first eight hex digits.
    pub fn short(self) -> String {
        self.to_string()[..10].to_owned()
    }
}

/// One award of one partition to one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExecutionKey {
    /// The job.
    pub job: JobId,
    /// Its version, from 1.
    pub version: u32,
    /// The partition, from 0.
    pub partition: u32,
    /// Which award of this partition it is, from 1.
    pub attempt: u32,
}

impl ExecutionKey {
    /// The execution's public name, derived so that every peer gives it the same one.
    pub fn id(&self) -> ExecutionId {
        ExecutionId(uuid8(&[
            b"cardume execution 1",
            &self.job.0,
            &self.version.to_be_bytes(),
            &self.partition.to_be_bytes(),
            &self.attempt.to_be_bytes(),
        ]))
    }
}

/// The name of an execution: `e-` and a UUID version 8 derived from its [`ExecutionKey`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecutionId(pub [u8; 16]);

/// The order of an owner's commands: owner epoch in the high 32 bits, attempt in the low ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(pub u64);

impl Fence {
    /// The fence of an attempt under an epoch.
    pub fn new(epoch: u32, attempt: u32) -> Self {
        Fence(u64::from(epoch) << 32 | u64::from(attempt))
    }

    /// The owner epoch.
    pub fn epoch(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The attempt.
    pub fn attempt(self) -> u32 {
        self.0 as u32
    }
}

/// A UUID version 8 from the first bits of the SHA-256 of the parts, one after the other.
fn uuid8(parts: &[&[u8]]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finalize()[..16]);
    id[6] = id[6] & 0x0f | 0x80;
    id[8] = id[8] & 0x3f | 0x80;
    id
}

fn write_uuid(f: &mut fmt::Formatter<'_>, prefix: &str, id: &[u8; 16]) -> fmt::Result {
    f.write_str(prefix)?;
    for (index, byte) in id.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            f.write_str("-")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

fn read_uuid(prefix: &str, text: &str) -> Option<[u8; 16]> {
    let digits = text.strip_prefix(prefix)?;
    if digits.len() != 36 || [8, 13, 18, 23].iter().any(|&at| digits.as_bytes()[at] != b'-') {
        return None;
    }
    let hex: Vec<u8> = digits.bytes().filter(|&byte| byte != b'-').collect();
    let id: [u8; 16] = data_encoding::HEXLOWER_PERMISSIVE.decode(&hex).ok()?.try_into().ok()?;
    (id[6] >> 4 == 8 && id[8] >> 6 == 2).then_some(id)
}

macro_rules! uuid_id {
    ($name:ident, $prefix:literal, $error:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_uuid(f, $prefix, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                read_uuid($prefix, text).map($name).ok_or_else(|| IdError::$error(text.to_owned()))
            }
        }
    };
}

uuid_id!(JobId, "j-", Job);
uuid_id!(ExecutionId, "e-", Execution);

/// Text in formats for people, bytes in binary ones.
macro_rules! id_serde {
    ($name:ident, $size:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "{} bytes or the text of a {}", $size, stringify!($name))
                    }

                    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<$name, E> {
                        bytes.try_into().map($name).map_err(|_| E::invalid_length(bytes.len(), &self))
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(D::Error::custom)
                } else {
                    deserializer.deserialize_bytes(Visitor)
                }
            }
        }
    };
}

id_serde!(PeerId, 32);
id_serde!(JobId, 16);
id_serde!(ExecutionId, 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_ids_read_and_write_libp2p_text() {
        let text = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
        let peer: PeerId = text.parse().unwrap();
        assert_eq!(peer.to_string(), text);
        assert!("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N".parse::<PeerId>().is_err());
    }

    #[test]
    fn job_ids_depend_on_swarm_owner_and_nonce() {
        let owner = PeerId([1; 32]);
        let id = JobId::derive("a", owner, b"b");
        assert_ne!(id, JobId::derive("ab", owner, b""));
        assert_ne!(id, JobId::derive("a", PeerId([2; 32]), b"b"));
        assert_eq!(id, JobId::derive("a", owner, b"b"));
        assert_eq!(id.short().len(), 10);
    }

    #[test]
    fn text_that_is_no_id_is_refused() {
        for text in [
            "",
            "j-",
            "j-1a2b3c4d",
            "e-00000000-0000-8000-8000-000000000000",
            "j-00000000-0000-4000-8000-000000000000",
        ] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
    }

    #[test]
    fn fences_order_by_epoch_then_attempt() {
        assert!(Fence::new(2, 1) > Fence::new(1, 9));
        assert_eq!((Fence::new(7, 3).epoch(), Fence::new(7, 3).attempt()), (7, 3));
    }
}
