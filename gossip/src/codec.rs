//! CBOR in and out: short keys, unknown keys ignored, trailing bytes refused, sizes bounded.

use cbor4ii::core::dec::Read as _;
use cbor4ii::core::utils::SliceReader;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Largest direct message, encoded: what a peer can make this node hold in memory at once.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Why bytes are not the message they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// More bytes than any message of this kind may have.
    #[error("message of {size} bytes where at most {limit} are allowed")]
    TooLarge {
        /// How many there are.
        size: usize,
        /// How many may be.
        limit: usize,
    },
    /// Not CBOR, or not of this shape.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// Bytes after the end of the message.
    #[error("{0} bytes after the end of the message")]
    Trailing(usize),
    /// A list or text is longer than its bound, or a value makes no sense.
    #[error("{0} is out of bounds")]
    Bounds(&'static str),
    /// The signature does not belong to these bytes and this signer.
    #[error("the signature is not that of the named signer")]
    Signature,
}

/// Encodes a value. Only values of this crate are encoded, and they always can be.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    cbor4ii::serde::to_vec(Vec::with_capacity(256), value).unwrap_or_default()
}

/// Decodes exactly one value from all of `bytes`.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, DecodeError> {
    if bytes.len() > limit {
        return Err(DecodeError::TooLarge { size: bytes.len(), limit });
    }
    let mut deserializer = cbor4ii::serde::Deserializer::new(SliceReader::new(bytes));
    let value =
        T::deserialize(&mut deserializer).map_err(|error| DecodeError::Malformed(error.to_string()))?;
    let mut rest = deserializer.into_inner();
    match rest.fill(usize::MAX) {
        Ok(rest) if rest.as_ref().is_empty() => Ok(value),
        Ok(rest) => Err(DecodeError::Trailing(rest.as_ref().len())),
        Err(error) => match error {},
    }
}

/// `Ok` when a list or text is within its bound.
pub(crate) fn within(what: &'static str, length: usize, limit: usize) -> Result<(), DecodeError> {
    if length <= limit { Ok(()) } else { Err(DecodeError::Bounds(what)) }
}

/// Bytes that are CBOR byte strings, shared without copying.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub std::sync::Arc<[u8]>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes(bytes.into())
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Bytes(bytes.into())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(BytesVisitor).map(|bytes| Bytes(bytes.into()))
    }
}

struct BytesVisitor;

impl serde::de::Visitor<'_> for BytesVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a byte string")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }
}

/// Arrays of fixed size as byte strings.
pub(crate) mod array {
    use super::*;

    pub(crate) fn serialize<S: Serializer, const N: usize>(
        bytes: &[u8; N],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        deserializer: D,
    ) -> Result<[u8; N], D::Error> {
        let bytes = deserializer.deserialize_bytes(BytesVisitor)?;
        bytes.try_into().map_err(|_| serde::de::Error::custom("a byte string of another length was expected"))
    }
}

/// CIDs as byte strings.
pub(crate) mod cid {
    use super::*;
    use job::Cid;

    pub(crate) fn serialize<S: Serializer>(cid: &Cid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&cid.to_bytes())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cid, D::Error> {
        let bytes = deserializer.deserialize_bytes(BytesVisitor)?;
        Cid::try_from(bytes.as_slice()).map_err(serde::de::Error::custom)
    }
}

/// Optional CIDs: absent, or a byte string.
pub(crate) mod optional_cid {
    use super::*;
    use job::Cid;

    pub(crate) fn serialize<S: Serializer>(cid: &Option<Cid>, serializer: S) -> Result<S::Ok, S::Error> {
        match cid {
            Some(cid) => super::cid::serialize(cid, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cid>, D::Error> {
        #[derive(Deserialize)]
        struct Wrapped(#[serde(with = "super::cid")] Cid);
        Ok(Option::<Wrapped>::deserialize(deserializer)?.map(|wrapped| wrapped.0))
    }
}

/// Lists of CIDs.
pub(crate) mod cids {
    use super::*;
    use job::Cid;

    pub(crate) fn serialize<S: Serializer>(cids: &[Cid], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(cids.iter().map(|cid| Bytes(cid.to_bytes().into())))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Cid>, D::Error> {
        let list = Vec::<Bytes>::deserialize(deserializer)?;
        list.iter().map(|bytes| Cid::try_from(&bytes[..]).map_err(serde::de::Error::custom)).collect()
    }
}

/// Resources as an array of four numbers.
pub(crate) mod resources {
    use super::*;
    use job::Resources;

    pub(crate) fn serialize<S: Serializer>(value: &Resources, serializer: S) -> Result<S::Ok, S::Error> {
        (value.cpu_milli, value.memory, value.disk, value.gpu).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Resources, D::Error> {
        let (cpu_milli, memory, disk, gpu) = Deserialize::deserialize(deserializer)?;
        Ok(Resources { cpu_milli, memory, disk, gpu })
    }
}

/// Whether a field has its default and is left out.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
