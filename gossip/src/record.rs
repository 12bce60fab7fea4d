//! What the machines ask to be kept on disk: opaque keys and values.

use job::JobId;

/// Schema version of all values this crate writes. A value of a newer schema is refused, not guessed at.
pub const SCHEMA: u8 = 1;

/// The kind of a record; part of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Kind {
    /// Owner: the newest epoch (its key names no job).
    Epoch = 0,
    /// Owner: the job version as submitted.
    Job = 1,
    /// Owner: a change of the job's state, or another line of its own history.
    State = 2,
    /// Owner: an award.
    Award = 3,
    /// Owner: executions that ended without a receipt.
    Fate = 4,
    /// Owner: receipts, which prove and make commits.
    Receipts = 5,
    /// Owner: nothing is left to tell any worker about this job version.
    Settled = 6,
    /// Owner: the spec of the job version.
    Spec = 7,
    /// Owner: sequence numbers below this may have been shown.
    Seq = 8,
    /// Worker: an accepted award.
    Accepted = 16,
    /// Worker: executions that were started (only of jobs that must not start twice).
    Started = 17,
    /// Worker: receipts that the owner has not committed.
    Offered = 18,
    /// Worker: the newest epoch of an owner.
    OwnerEpoch = 19,
    /// Worker: results that stay here because the job says so.
    Kept = 20,
}

impl Kind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Kind> {
        use Kind::*;
        [
            Epoch, Job, State, Award, Fate, Receipts, Settled, Spec, Seq, Accepted, Started, Offered,
            OwnerEpoch, Kept,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }
}

/// The key of a record: job id (16 bytes), version (4), kind (1), number (8), so that a scan by the
/// job's id gives all of a job, its versions in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// The job, or zeros for what belongs to the node.
    pub job: JobId,
    /// Its version.
    pub version: u32,
    /// What the record is.
    pub kind: Kind,
    /// Tells records of one kind apart.
    pub number: u64,
}

impl RecordKey {
    /// How long an encoded key is.
    pub const BYTES: usize = 29;

    /// The key as ordered bytes.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.job.0);
        bytes[16..20].copy_from_slice(&self.version.to_be_bytes());
        bytes[20] = self.kind as u8;
        bytes[21..].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    /// Reads a key back; `None` when the bytes are none.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        Some(RecordKey {
            job: JobId(bytes[..16].try_into().ok()?),
            version: u32::from_be_bytes(bytes[16..20].try_into().ok()?),
            kind: Kind::from_number(bytes[20])?,
            number: u64::from_be_bytes(bytes[21..].try_into().ok()?),
        })
    }
}

/// A record to be stored verbatim under its key, replacing what was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where.
    pub key: RecordKey,
    /// What: one byte of schema version, then CBOR.
    pub value: Vec<u8>,
}

/// Why records on disk cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// Written by a newer program.
    #[error("the record {key:?} has schema {found}, this program reads up to {SCHEMA}")]
    Schema {
        /// Which record.
        key: RecordKey,
        /// Its schema.
        found: u8,
    },
    /// Not what was written.
    #[error("the record {key:?} cannot be read")]
    Damaged {
        /// Which record.
        key: RecordKey,
        /// Why.
        #[source]
        source: crate::codec::DecodeError,
    },
}

/// Records are written by this node and may hold a whole spec and a batch of receipts.
const MAX_RECORD_BYTES: usize = 4 << 20;

impl Record {
    pub(crate) fn new<T: serde::Serialize>(key: RecordKey, value: &T) -> Self {
        let mut bytes = vec![SCHEMA];
        bytes.append(&mut crate::codec::encode(value));
        Record { key, value: bytes }
    }

    pub(crate) fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, RestoreError> {
        let key = self.key;
        match self.value.split_first() {
            Some((&SCHEMA, value)) => crate::codec::decode(value, MAX_RECORD_BYTES)
                .map_err(|source| RestoreError::Damaged { key, source }),
            Some((&found, _)) if found > SCHEMA => Err(RestoreError::Schema { key, found }),
            _ => Err(RestoreError::Damaged { key, source: crate::codec::DecodeError::Bounds("schema") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_and_sort_by_job_version_kind_and_number() {
        let key = |version, kind, number| RecordKey { job: JobId([9; 16]), version, kind, number };
        let keys =
            [key(1, Kind::Job, 0), key(1, Kind::Award, 2), key(1, Kind::Award, 300), key(2, Kind::Job, 0)];
        for key in keys {
            assert_eq!(RecordKey::from_bytes(&key.to_bytes()), Some(key));
        }
        assert!(keys.windows(2).all(|pair| pair[0].to_bytes() < pair[1].to_bytes()));
        assert_eq!(RecordKey::from_bytes(&[255; 29]), None);
        assert_eq!(RecordKey::from_bytes(&[0; 28]), None);
    }
}
