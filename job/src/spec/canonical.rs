//! The one binary form of a spec: DAG-CBOR, the same bytes on every peer.

use cid::Cid;
use multihash::Multihash;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{JobSpec, MAX_CANONICAL_BYTES, SpecErrors};

/// Version of the form. A peer that meets another one cannot know what it would leave out.
const FORM: u32 = 1;

/// Multicodec of DAG-CBOR.
const DAG_CBOR: u64 = 0x71;

/// Multihash code of SHA-256.
const SHA2_256: u64 = 0x12;

/// Why bytes are not a spec's canonical form.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CanonicalError {
    /// More bytes than a spec may have.
    #[error("a spec of {0} bytes, and at most {MAX_CANONICAL_BYTES} are read")]
    TooLarge(usize),
    /// Not DAG-CBOR of a spec.
    #[error("decode a spec")]
    Decode(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Written by a version that this one does not know.
    #[error("a spec in form {0}, and this version reads form {FORM}")]
    Form(u32),
    /// Decodable, and not what encoding it gives.
    #[error("a spec that is not in its canonical form")]
    NotCanonical,
    /// Against the rules that every spec follows.
    #[error("an invalid spec")]
    Invalid(#[source] SpecErrors),
}

#[derive(Serialize)]
struct Encoded<'a> {
    form: u32,
    job: &'a JobSpec,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decoded {
    form: u32,
    job: JobSpec,
}

#[derive(Deserialize)]
struct Form {
    form: u32,
}

impl JobSpec {
    /// The canonical form. Above [`MAX_CANONICAL_BYTES`] only while inline inputs are in it.
    pub fn to_canonical(&self) -> Vec<u8> {
        serde_ipld_dagcbor::to_vec(&Encoded { form: FORM, job: self })
            .expect("writing to memory works and a spec holds nothing that DAG-CBOR lacks")
    }

    /// Reads the canonical form, and nothing else: any bytes that a peer sends are refused or are a valid spec
    /// whose [`Self::to_canonical`] gives these bytes again.
    pub fn from_canonical(bytes: &[u8]) -> Result<Self, CanonicalError> {
        if bytes.len() > MAX_CANONICAL_BYTES {
            return Err(CanonicalError::TooLarge(bytes.len()));
        }
        let spec = match serde_ipld_dagcbor::from_slice::<Decoded>(bytes) {
            Ok(decoded) if decoded.form == FORM => decoded.job,
            Ok(decoded) => return Err(CanonicalError::Form(decoded.form)),
            Err(error) => return Err(undecodable(bytes, Box::new(error))),
        };
        spec.validate().map_err(CanonicalError::Invalid)?;
        if spec.to_canonical() != bytes {
            return Err(CanonicalError::NotCanonical);
        }
        Ok(spec)
    }

    /// The CID of the canonical form: version 1, DAG-CBOR, SHA-256.
    pub fn spec_cid(&self) -> Cid {
        sha256_cid(&Sha256::digest(self.to_canonical()))
    }
}

/// A CID of the usual size, to measure with.
pub(super) fn usual_cid() -> Cid {
    sha256_cid(&[0; 32])
}

fn sha256_cid(digest: &[u8]) -> Cid {
    let hash = Multihash::wrap(SHA2_256, digest).expect("32 bytes fit a multihash of 64");
    Cid::new_v1(DAG_CBOR, hash)
}

/// Tells a newer form, which may have other fields, from bytes that are no spec at all.
fn undecodable(bytes: &[u8], error: Box<dyn std::error::Error + Send + Sync>) -> CanonicalError {
    match serde_ipld_dagcbor::from_slice::<Form>(bytes) {
        Ok(Form { form }) if form != FORM => CanonicalError::Form(form),
        _ => CanonicalError::Decode(error),
    }
}
