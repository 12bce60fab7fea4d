//! Every message of the swarm protocol and its CBOR form.
//!
//! Announcements travel by gossip; everything else is [`Direct`]. What is proof later is
//! [`Signed`](crate::crypto::Signed); the rest rides on the authenticated connection of its peer. Decoding checks every bound,
//! so that what a machine sees is small and makes sense in itself; whether its sender may say it is
//! the machines' question.
//!
//! ```
//! use gossip::message::{Direct, Pull};
//! let bytes = Direct::Pull(Pull { most: 16 }).encode();
//! assert_eq!(Direct::decode(&bytes), Ok(Direct::Pull(Pull { most: 16 })));
//! assert!(Direct::decode(&bytes[..bytes.len() - 1]).is_err());
//! ```

mod announcement;
mod award;
mod bid;
mod lease;
mod receipt;

use serde::{Deserialize, Serialize};

pub use announcement::{
    Announcement, Announcements, Facts, InputHint, MAX_ANNOUNCED, MAX_ANNOUNCEMENT_BYTES, MAX_INPUTS,
};
pub use award::{
    Award, AwardOrder, MAX_INLINE_SPEC_BYTES, Recall, Recalled, Reply, Stop, StopOrder, Stopped,
};
pub use bid::{Ask, Bid, Closed, Decline, DeclineCode, Pull, Remembered, Stamp};
pub use lease::{Committed, JobAsked, JobLive, JobSpans, Live, Phase, Progress, Reconcile, Renew, RenewAck};
pub use receipt::{
    Block, FaultClass, MAX_GROUPS as MAX_RECEIPT_GROUPS, MAX_INLINE_RESULT_BYTES, Outcome, Receipt,
    ReceiptGroup, Receipts, ResultInfo, SealedGroup, Usage,
};

use crate::codec;
pub use crate::codec::{Bytes, DecodeError, MAX_MESSAGE_BYTES};
pub use crate::range::Span;

/// Most spans in one list of a message: pages carry what is more.
pub const MAX_SPANS: usize = 4096;

/// Most jobs in one message that speaks of several.
pub const MAX_JOBS_PER_MESSAGE: usize = 256;

/// Longest text that explains something to a person; longer ones are cut before they are sent.
pub const MAX_TEXT_BYTES: usize = 1024;

/// A message from one peer to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Direct {
    /// Owner to worker: an announcement for this peer alone; answered by a bid or a decline.
    #[serde(rename = "ask")]
    Ask(Box<Ask>),
    /// Worker to owner: it would run some partitions.
    #[serde(rename = "bid")]
    Bid(Bid),
    /// Worker to owner: it would not, and why.
    #[serde(rename = "dec")]
    Decline(Decline),
    /// Owner to worker: nothing is open there any more.
    #[serde(rename = "clo")]
    Closed(Closed),
    /// Owner to worker: run these.
    #[serde(rename = "awd")]
    Award(Box<Award>),
    /// Worker to owner: which of them it took.
    #[serde(rename = "rep")]
    Reply(Reply),
    /// Owner to worker: give back what has not started.
    #[serde(rename = "rec")]
    Recall(Recall),
    /// Worker to owner: given back.
    #[serde(rename = "rcd")]
    Recalled(Recalled),
    /// Worker to owner: what it runs for this owner.
    #[serde(rename = "ren")]
    Renew(Renew),
    /// Owner to worker: heard.
    #[serde(rename = "rak")]
    RenewAck(RenewAck),
    /// Worker to owner: executions ended.
    #[serde(rename = "rct")]
    Receipts(Receipts),
    /// Owner to worker: these receipts are dealt with.
    #[serde(rename = "com")]
    Committed(Committed),
    /// Owner to worker: end these.
    #[serde(rename = "stp")]
    Stop(Stop),
    /// Worker to owner: it has heard the stop.
    #[serde(rename = "std")]
    Stopped(Stopped),
    /// Owner to worker: which of these are with you?
    #[serde(rename = "rcn")]
    Reconcile(Reconcile),
    /// Worker to owner: the answer; also unasked after a reconnect or restart.
    #[serde(rename = "liv")]
    Live(Live),
    /// Worker to worker: which announcements are open?
    #[serde(rename = "pul")]
    Pull(Pull),
    /// Worker to worker: these, as their owners signed them.
    #[serde(rename = "rem")]
    Remembered(Remembered),
}

impl Direct {
    /// The message as bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads a message and checks its bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let message: Direct = codec::decode(bytes, MAX_MESSAGE_BYTES)?;
        message.check()?;
        Ok(message)
    }

    /// Whether it is for the owner machine; the rest is for the worker machine.
    pub fn is_for_owner(&self) -> bool {
        use Direct::*;
        matches!(
            self,
            Bid(_) | Decline(_) | Reply(_) | Recalled(_) | Renew(_) | Receipts(_) | Stopped(_) | Live(_)
        )
    }

    /// The kind of message, for logs and counters.
    pub fn name(&self) -> &'static str {
        match self {
            Direct::Ask(_) => "ask",
            Direct::Bid(_) => "bid",
            Direct::Decline(_) => "decline",
            Direct::Closed(_) => "closed",
            Direct::Award(_) => "award",
            Direct::Reply(_) => "reply",
            Direct::Recall(_) => "recall",
            Direct::Recalled(_) => "recalled",
            Direct::Renew(_) => "renew",
            Direct::RenewAck(_) => "renew-ack",
            Direct::Receipts(_) => "receipts",
            Direct::Committed(_) => "committed",
            Direct::Stop(_) => "stop",
            Direct::Stopped(_) => "stopped",
            Direct::Reconcile(_) => "reconcile",
            Direct::Live(_) => "live",
            Direct::Pull(_) => "pull",
            Direct::Remembered(_) => "remembered",
        }
    }

    fn check(&self) -> Result<(), DecodeError> {
        match self {
            Direct::Ask(ask) => ask.check(),
            Direct::Decline(decline) => decline.check(),
            Direct::Award(award) => award.check(),
            Direct::Reply(reply) => reply.check(),
            Direct::Recall(Recall { spans, .. })
            | Direct::Recalled(Recalled { spans, .. })
            | Direct::Stopped(Stopped { spans, .. }) => check_spans(spans),
            Direct::Renew(renew) => renew.check(),
            Direct::Receipts(receipts) => receipts.check(),
            Direct::Committed(committed) => committed.check(),
            Direct::Reconcile(reconcile) => reconcile.check(),
            Direct::Live(live) => live.check(),
            Direct::Remembered(remembered) => remembered.check(),
            Direct::Bid(_) | Direct::Closed(_) | Direct::RenewAck(_) | Direct::Stop(_) | Direct::Pull(_) => {
                Ok(())
            }
        }
    }
}

pub(crate) fn check_spans(spans: &[Span]) -> Result<(), DecodeError> {
    codec::within("list of spans", spans.len(), MAX_SPANS)?;
    if !spans.iter().all(|span| span.is_valid(job::spec::MAX_COUNT)) {
        return Err(DecodeError::Bounds("span"));
    }
    if weight_of(spans).1 <= MAX_NAMED_PARTS {
        Ok(())
    } else {
        Err(DecodeError::Bounds("number of partitions"))
    }
}

/// Spans and partitions that the jobs of one message may name in all: what one message can make a peer do.
const MAX_NAMED_SPANS: usize = 16_384;
const MAX_NAMED_PARTS: u64 = 131_072;

/// Checks what several lists of one message name together.
pub(crate) fn check_named<'a>(lists: impl IntoIterator<Item = &'a Vec<Span>>) -> Result<(), DecodeError> {
    let (mut spans, mut parts) = (0, 0u64);
    for list in lists {
        spans += list.len();
        parts += weight_of(list).1;
    }
    codec::within("list of spans", spans, MAX_NAMED_SPANS)?;
    if parts <= MAX_NAMED_PARTS { Ok(()) } else { Err(DecodeError::Bounds("number of partitions")) }
}

/// Divides what is to be said of jobs among messages. One item alone stays within the bounds.
pub(crate) fn pages<T>(items: Vec<T>, weigh: impl Fn(&T) -> (usize, u64)) -> Vec<Vec<T>> {
    let mut pages: Vec<Vec<T>> = Vec::new();
    let (mut spans, mut parts) = (0, 0);
    for item in items {
        let (more_spans, more_parts) = weigh(&item);
        (spans, parts) = (spans + more_spans, parts + more_parts);
        match pages.last_mut() {
            Some(page)
                if page.len() < MAX_JOBS_PER_MESSAGE
                    && spans <= MAX_NAMED_SPANS
                    && parts <= MAX_NAMED_PARTS =>
            {
                page.push(item);
            }
            _ => {
                (spans, parts) = (more_spans, more_parts);
                pages.push(vec![item]);
            }
        }
    }
    pages
}

/// How much a list of spans weighs: how many there are, and how many partitions.
pub(crate) fn weight_of(spans: &[Span]) -> (usize, u64) {
    (spans.len(), spans.iter().map(|span| u64::from(span.count)).sum())
}

/// Cuts a text to [`MAX_TEXT_BYTES`], at a character.
pub(crate) fn cut(text: &str) -> String {
    cut_to(text, MAX_TEXT_BYTES)
}

pub(crate) fn cut_to(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}
