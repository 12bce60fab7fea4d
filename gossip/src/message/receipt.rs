//! Receipts: what a worker states about executions that ended, many under one signature.

use job::{Cid, JobId, PeerId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Span;
use super::bid::Stamp;
use crate::codec::{self, Bytes, DecodeError, is_default, within};
use crate::crypto::{Crypto, Domain};

/// Largest result that travels inside its receipt's message.
pub const MAX_INLINE_RESULT_BYTES: usize = 64 << 10;

/// Most groups under one signature: a proof for one of them is then at most six hashes.
pub const MAX_GROUPS: usize = 64;

/// Most receipts in one group.
pub const MAX_RECEIPTS: usize = 1024;

/// Most blocks of results in one message.
const MAX_BLOCKS: usize = 8192;

/// Whose fault an execution's end is that has no exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FaultClass {
    /// The program's: a trap, too much memory or output.
    #[serde(rename = "u")]
    User,
    /// The node's: engine away, disk full, crash.
    #[serde(rename = "n")]
    Node,
    /// An input that nobody offers or cannot be read.
    #[serde(rename = "i")]
    Input,
    /// It ran past a timeout.
    #[serde(rename = "t")]
    Timeout,
    /// The job itself: a module that is none, lacks its entry point or has foreign imports.
    #[serde(rename = "j")]
    Job,
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The program ended by itself.
    #[serde(rename = "x")]
    Exit(i32),
    /// It did not.
    #[serde(rename = "f")]
    Fault(FaultClass, String),
}

impl Outcome {
    /// Whether the partition is done.
    pub fn is_success(&self) -> bool {
        *self == Outcome::Exit(0)
    }
}

/// What was published, in the end a folder of stdout, stderr, exitCode and the result paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultInfo {
    /// Its root.
    #[serde(rename = "c", with = "codec::cid")]
    pub cid: Cid,
    /// Its size in bytes.
    #[serde(rename = "z")]
    pub size: u64,
    /// Where else it went, as the publisher says it (an `s3://…` location); empty when nowhere.
    #[serde(rename = "p", default, skip_serializing_if = "String::is_empty")]
    pub published: String,
}

/// What an execution used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in milliseconds.
    #[serde(rename = "c", default, skip_serializing_if = "is_default")]
    pub cpu_ms: u64,
    /// Most memory in bytes.
    #[serde(rename = "m", default, skip_serializing_if = "is_default")]
    pub memory: u64,
    /// Bytes written to its results.
    #[serde(rename = "d", default, skip_serializing_if = "is_default")]
    pub disk: u64,
    /// Bytes that it printed and that were not kept, being more than its worker keeps.
    #[serde(rename = "u", default, skip_serializing_if = "is_default")]
    pub unkept: u64,
}

/// One execution that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// The partition.
    #[serde(rename = "i")]
    pub partition: u32,
    /// The attempt.
    #[serde(rename = "a")]
    pub attempt: u32,
    /// The epoch of the award; with the attempt it is the fence.
    #[serde(rename = "e")]
    pub epoch: u32,
    /// How it ended.
    #[serde(rename = "o")]
    pub outcome: Outcome,
    /// Its result, when it has one.
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultInfo>,
    /// What it used.
    #[serde(rename = "u", default, skip_serializing_if = "is_default")]
    pub usage: Usage,
    /// When it started, wall clock of the worker in milliseconds.
    #[serde(rename = "s")]
    pub started_ms: u64,
    /// How long it took, in milliseconds.
    #[serde(rename = "t", default, skip_serializing_if = "is_default")]
    pub ran_ms: u64,
}

impl Receipt {
    /// Its execution as a span of one.
    pub fn span(&self) -> Span {
        Span::one(self.partition, self.attempt)
    }
}

/// Receipts of one job version by one worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReceiptGroup {
    /// The job.
    #[serde(rename = "j")]
    pub job: JobId,
    /// Its version.
    #[serde(rename = "v")]
    pub version: u32,
    /// Its spec, which names its inputs.
    #[serde(rename = "s", with = "codec::cid")]
    pub spec: Cid,
    /// The worker.
    #[serde(rename = "w")]
    pub worker: PeerId,
    /// The content of inputs that the spec does not name by CID.
    #[serde(rename = "d", default, skip_serializing_if = "Vec::is_empty", with = "codec::cids")]
    pub inputs: Vec<Cid>,
    /// What ran it: engine and version, image digest or module CID.
    #[serde(rename = "g", default, skip_serializing_if = "String::is_empty")]
    pub engine: String,
    /// The executions.
    #[serde(rename = "r")]
    pub receipts: Vec<Receipt>,
}

impl ReceiptGroup {
    fn check(&self) -> Result<(), DecodeError> {
        within("list of receipts", self.receipts.len(), MAX_RECEIPTS)?;
        within("list of inputs", self.inputs.len(), MAX_RECEIPTS)?;
        within("engine digest", self.engine.len(), super::MAX_TEXT_BYTES)?;
        for receipt in &self.receipts {
            if !receipt.span().is_valid(job::spec::MAX_COUNT) {
                return Err(DecodeError::Bounds("attempt"));
            }
            if let Outcome::Fault(_, message) = &receipt.outcome {
                within("fault", message.len(), super::MAX_TEXT_BYTES)?;
            }
            if let Some(result) = &receipt.result {
                within("published location", result.published.len(), super::MAX_TEXT_BYTES)?;
            }
        }
        Ok(())
    }
}

/// One group with the proof that the worker signed it: what the owner keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SealedGroup {
    /// An encoded [`ReceiptGroup`].
    #[serde(rename = "g")]
    pub group: Bytes,
    /// The worker's signature over the root of the message's groups.
    #[serde(rename = "s", with = "codec::array")]
    pub signature: [u8; 64],
    /// Which group of the message it was.
    #[serde(rename = "i", default, skip_serializing_if = "is_default")]
    pub index: u32,
    /// The hashes that lead from this group to the root.
    #[serde(rename = "p", default, skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<Bytes>,
}

impl SealedGroup {
    /// Decodes the group and checks its bounds.
    pub fn read(&self) -> Result<ReceiptGroup, DecodeError> {
        let group: ReceiptGroup = codec::decode(&self.group, codec::MAX_MESSAGE_BYTES)?;
        group.check()?;
        Ok(group)
    }

    /// Whether `worker` signed it.
    pub fn is_by(&self, worker: PeerId, crypto: &dyn Crypto) -> bool {
        self.root().is_some_and(|root| crypto.verify(worker, Domain::Receipts, &root, &self.signature))
    }

    /// What the signature must be over; `None` when the proof does not lead anywhere.
    pub(crate) fn root(&self) -> Option<[u8; 32]> {
        let mut at = self.index;
        let mut hash = leaf(&self.group);
        for sibling in &self.path {
            hash = if at & 1 == 0 { node(&hash, sibling) } else { node(sibling, &hash) };
            at >>= 1;
        }
        (at == 0).then_some(hash)
    }

    /// Signs groups together, each with its own proof.
    pub fn seal(groups: &[ReceiptGroup], crypto: &dyn Crypto) -> Vec<SealedGroup> {
        let encoded: Vec<Bytes> = groups.iter().map(|group| codec::encode(group).into()).collect();
        let mut levels = vec![encoded.iter().map(|group| leaf(group)).collect::<Vec<_>>()];
        while levels.last().is_some_and(|level| level.len() > 1) {
            let above = levels.last().map(|level| parents(level)).unwrap_or_default();
            levels.push(above);
        }
        let root = levels.last().and_then(|level| level.first()).copied().unwrap_or_default();
        let signature = crypto.sign(Domain::Receipts, &root);
        let sealed = |(index, group): (usize, Bytes)| SealedGroup {
            group,
            signature,
            index: u32::try_from(index).unwrap_or(u32::MAX),
            path: path(&levels, index),
        };
        encoded.into_iter().enumerate().map(sealed).collect()
    }
}

/// The siblings on the way from a leaf to the root. A node without a sibling is its own.
fn path(levels: &[Vec<[u8; 32]>], mut index: usize) -> Vec<Bytes> {
    let mut path = Vec::new();
    for level in levels.iter().take_while(|level| level.len() > 1) {
        let sibling = level.get(index ^ 1).or_else(|| level.get(index));
        path.extend(sibling.map(|hash| Bytes::from(&hash[..])));
        index >>= 1;
    }
    path
}

fn parents(level: &[[u8; 32]]) -> Vec<[u8; 32]> {
    level.chunks(2).map(|pair| node(&pair[0], pair.last().unwrap_or(&pair[0]))).collect()
}

fn leaf(bytes: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update([0]).chain_update(bytes).finalize().into()
}

fn node(left: &[u8], right: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// A block of a small result, proven by its CID.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// Its CID.
    #[serde(rename = "c", with = "codec::cid")]
    pub cid: Cid,
    /// Its bytes.
    #[serde(rename = "b")]
    pub bytes: Bytes,
}

/// Executions ended: groups under one signature, with the blocks of small results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipts {
    /// When it was sent: it also asks for more work.
    #[serde(rename = "a")]
    pub stamp: Stamp,
    /// The groups.
    #[serde(rename = "g")]
    pub groups: Vec<SealedGroup>,
    /// Blocks of results.
    #[serde(rename = "b", default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<Block>,
}

impl Receipts {
    pub(crate) fn check(&self) -> Result<(), DecodeError> {
        within("list of receipt groups", self.groups.len(), MAX_GROUPS)?;
        within("list of blocks", self.blocks.len(), MAX_BLOCKS)?;
        self.groups.iter().try_for_each(|group| {
            let hashes = group.path.iter().all(|hash| hash.len() == 32);
            within("receipt proof", if hashes { group.path.len() } else { usize::MAX }, 6)
        })
    }
}
