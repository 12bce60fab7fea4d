//! What is gossiped: small, signed announcements of open jobs.

use job::constraint::Constraint;
use job::spec::JobType;
use job::{Cid, JobId, PeerId, Resources};
use serde::{Deserialize, Serialize};

use crate::codec::{self, Bytes, DecodeError, is_default, within};
use crate::crypto::{Domain, Signable, Signed};
use crate::topic::Class;

/// Largest announcement message on the wire, signature included.
pub const MAX_ANNOUNCEMENT_BYTES: usize = 4096;

/// Most announcements in one message.
pub const MAX_ANNOUNCED: usize = 16;

/// Most input CIDs named in an announcement: the largest ones, which decide locality.
pub const MAX_INPUTS: usize = 4;

/// Most addresses of an owner.
const MAX_ADDRESSES: usize = 3;

/// Longest address, engine, network, source or publisher word, and nonce.
const MAX_WORD_BYTES: usize = 128;

/// Most kinds of input sources and most constraints of one job.
const MAX_WORDS: usize = 16;

/// An input's content and how much there is of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputHint {
    /// The content.
    #[serde(rename = "c", with = "codec::cid")]
    pub cid: Cid,
    /// Its size in bytes.
    #[serde(rename = "z")]
    pub size: u64,
}

/// What a peer must know of a job to say whether it would run it, and what it reserves for it. All of it is
/// also in the spec; a worker whose shell finds that the spec says otherwise ends the execution as a fault of the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Batch, ops, daemon or service.
    #[serde(rename = "t")]
    pub job_type: JobType,
    /// `wasm` or `docker`.
    #[serde(rename = "e")]
    pub engine: String,
    /// The network type, lower case; empty for none.
    #[serde(rename = "w", default, skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// Kinds of input sources, lower case.
    #[serde(rename = "i", default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// The kind of publisher, lower case; empty for none.
    #[serde(rename = "p", default, skip_serializing_if = "String::is_empty")]
    pub publisher: String,
    /// What one execution reserves.
    #[serde(rename = "r", with = "codec::resources")]
    pub resources: Resources,
    /// Longest run of one execution in milliseconds; 0 when the job sets none.
    #[serde(rename = "m", default, skip_serializing_if = "is_default")]
    pub run_ms: u64,
    /// How long the job may wait for a start, in milliseconds; 0 when it sets no limit.
    #[serde(rename = "q", default, skip_serializing_if = "is_default")]
    pub queue_ms: u64,
    /// Conditions on the node's labels.
    #[serde(rename = "k", default, skip_serializing_if = "Vec::is_empty")]
    pub constraints: Vec<Constraint>,
    /// The largest inputs.
    #[serde(rename = "d", default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<InputHint>,
    /// Module or image archive, when it is given by CID.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none", with = "codec::optional_cid")]
    pub module: Option<Cid>,
    /// Larger runs first on a worker.
    #[serde(rename = "y", default, skip_serializing_if = "is_default")]
    pub priority: i32,
    /// `Retry: never`: each partition is started at most once.
    #[serde(rename = "x", default, skip_serializing_if = "is_default")]
    pub never: bool,
}

impl Facts {
    /// A batch job without inputs, publisher, network, limits or constraints.
    pub fn plain(engine: &str, resources: Resources) -> Self {
        Facts {
            job_type: JobType::Batch,
            engine: engine.to_owned(),
            network: String::new(),
            sources: Vec::new(),
            publisher: String::new(),
            resources,
            run_ms: 0,
            queue_ms: 0,
            constraints: Vec::new(),
            inputs: Vec::new(),
            module: None,
            priority: 0,
            never: false,
        }
    }

    /// The class of jobs it belongs to, and so its topic.
    pub fn class(&self) -> Class {
        if self.job_type != JobType::Batch {
            Class::Fleet
        } else if self.resources.gpu > 0 {
            Class::Gpu
        } else if self.engine == "docker" {
            Class::Docker
        } else {
            Class::Wasm
        }
    }

    /// Checks that every list and text is within its bound.
    pub fn check(&self) -> Result<(), DecodeError> {
        within("engine", self.engine.len(), MAX_WORD_BYTES)?;
        within("network", self.network.len(), MAX_WORD_BYTES)?;
        within("publisher", self.publisher.len(), MAX_WORD_BYTES)?;
        within("list of sources", self.sources.len(), MAX_WORDS)?;
        within("list of inputs", self.inputs.len(), MAX_INPUTS)?;
        within("list of constraints", self.constraints.len(), 4 * MAX_WORDS)?;
        // They travel in announcements: what does not fit there comes from no honest owner.
        let text =
            |one: &Constraint| one.key.len() + one.values.iter().map(|value| value.len() + 1).sum::<usize>();
        within("text of constraints", self.constraints.iter().map(text).sum(), MAX_ANNOUNCEMENT_BYTES)?;
        self.sources.iter().try_for_each(|source| within("source", source.len(), MAX_WORD_BYTES))
    }
}

/// One open job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Announcement {
    /// The job.
    #[serde(rename = "j")]
    pub job: JobId,
    /// What its id was derived from.
    #[serde(rename = "n")]
    pub nonce: Bytes,
    /// Its version.
    #[serde(rename = "v")]
    pub version: u32,
    /// Its spec.
    #[serde(rename = "s", with = "codec::cid")]
    pub spec: Cid,
    /// What decides who can run it.
    #[serde(rename = "f")]
    pub facts: Facts,
    /// Partitions that look for a worker.
    #[serde(rename = "o")]
    pub open: u32,
    /// How often it was announced since it was last content.
    #[serde(rename = "r", default, skip_serializing_if = "is_default")]
    pub round: u32,
    /// Which share of peers may bid, in 2^-32: [`lottery::ALL`](crate::lottery::ALL) is everybody.
    #[serde(rename = "h")]
    pub theta: u64,
    /// Which share of those that must decline say so, in 2^-32.
    #[serde(rename = "g")]
    pub decline: u64,
    /// Seeds the lottery; a peer bids at most once per job and seed.
    #[serde(rename = "e")]
    pub seed: u64,
}

impl Announcement {
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        within("nonce", self.nonce.len(), MAX_WORD_BYTES)?;
        within("theta", usize::from(self.theta > crate::lottery::ALL), 0)?;
        self.facts.check()
    }

    /// Whether the job id is the one that this owner derives from this nonce.
    pub fn is_of(&self, owner: PeerId, swarm: &str) -> bool {
        JobId::derive(swarm, owner, &self.nonce) == self.job
    }
}

/// What one gossip message carries: announcements of one owner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Announcements {
    /// Who owns these jobs and signs this.
    #[serde(rename = "o")]
    pub owner: PeerId,
    /// Where it can be reached, multiaddresses as text.
    #[serde(rename = "a", default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// When it was issued, wall clock in nanoseconds; never the same twice. Stops replays, nothing else.
    #[serde(rename = "w")]
    pub issued: u64,
    /// How long it is worth remembering, from its arrival, in milliseconds.
    #[serde(rename = "l")]
    pub ttl_ms: u64,
    /// The jobs.
    #[serde(rename = "j")]
    pub jobs: Vec<Announcement>,
}

impl Signable for Announcements {
    const DOMAIN: Domain = Domain::Announcement;
    const MAX_BYTES: usize = MAX_ANNOUNCEMENT_BYTES;

    fn check(&self) -> Result<(), DecodeError> {
        check_addresses(&self.addresses)?;
        within("list of announcements", self.jobs.len(), MAX_ANNOUNCED)?;
        self.jobs.iter().try_for_each(Announcement::check)
    }
}

impl Announcements {
    /// Signs it into the bytes of one gossip message; `None` when they are too many.
    pub fn seal(&self, crypto: &dyn crate::crypto::Crypto) -> Option<Vec<u8>> {
        let bytes = codec::encode(&Signed::seal(self, crypto));
        (bytes.len() <= MAX_ANNOUNCEMENT_BYTES).then_some(bytes)
    }

    /// Reads the bytes of one gossip message and checks the owner's signature and every job id.
    pub fn open(bytes: &[u8], swarm: &str, crypto: &dyn crate::crypto::Crypto) -> Result<Self, DecodeError> {
        let signed: Signed = codec::decode(bytes, MAX_ANNOUNCEMENT_BYTES)?;
        let value: Announcements = signed.read()?;
        if !value.jobs.iter().all(|job| job.is_of(value.owner, swarm)) {
            return Err(DecodeError::Bounds("job id"));
        }
        if signed.is_by::<Announcements>(value.owner, crypto) {
            Ok(value)
        } else {
            Err(DecodeError::Signature)
        }
    }
}

pub(crate) fn check_addresses(addresses: &[String]) -> Result<(), DecodeError> {
    within("list of addresses", addresses.len(), MAX_ADDRESSES)?;
    addresses.iter().try_for_each(|address| within("address", address.len(), 2 * MAX_WORD_BYTES))
}
