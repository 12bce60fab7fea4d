//! What the owner knows of a job version beyond its ledger: who works on it, who could, what is being tried.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ::job::{PeerId, Time};

use super::ledger::{Ledger, Part};
use super::record::ReceiptsRecord;
use crate::message::{Award, Bid, DeclineCode, Outcome, ReceiptGroup};
use crate::range::RangeSet;

/// Asks and announcements whose bids are still taken.
const MAX_CALLS: usize = 8;

/// Bids in hand of one job.
pub(super) const MAX_BIDS: usize = 256;

/// Peers whose decline is remembered in one sweep.
const MAX_DECLINES: usize = 256;

/// Executions of one worker beyond its slots, at most: about 50 ms of the shortest ones.
const MAX_CREDIT: u64 = 256;

/// An answer within this time says something of the clock of its peer.
const PROMPT: Duration = Duration::from_secs(5);

/// How far ahead a worker is given work: longer than a round trip and two commits.
const HORIZON: Duration = Duration::from_millis(100);

/// A job version that has not settled.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) ledger: Ledger,
    /// Partitions that want an award.
    pub(super) open: RangeSet,
    /// What went wrong with partitions before.
    pub(super) trouble: BTreeMap<u32, Trouble>,
    /// Workers with executions of this job.
    pub(super) shares: BTreeMap<PeerId, Share>,
    /// Bids that were not used up.
    pub(super) bids: BTreeMap<PeerId, InHand>,
    /// Asks and announcements, newest last.
    pub(super) calls: VecDeque<Call>,
    pub(super) round: Round,
    /// Why peers declined in this sweep.
    pub(super) declines: BTreeMap<PeerId, (DeclineCode, String)>,
    /// Peers that said in this sweep that their clock differs from ours, and by how many seconds.
    pub(super) skews: BTreeMap<PeerId, u64>,
    /// Peers that bid in this sweep.
    pub(super) bidders: BTreeSet<PeerId>,
    /// Awards without an answer, and to whom.
    pub(super) unanswered: BTreeMap<u64, (PeerId, Award)>,
    /// Of these, those that are sent again when the batch of inputs ends, if nothing in it settles them.
    pub(super) again: BTreeSet<u64>,
    /// Workers that were sent facts and spec.
    pub(super) told: BTreeSet<PeerId>,
    /// Receipts whose results are being copied here.
    pub(super) batches: BTreeMap<u64, Batch>,
    /// Which batch an execution's receipt is in, and which of it.
    pub(super) holding: BTreeMap<Part, (u64, u32)>,
    /// What workers must still be told to end.
    pub(super) stops: BTreeMap<PeerId, BTreeSet<Part>>,
    /// Since when it has had open partitions and no worker.
    pub(super) waiting_since: Option<Time>,
    /// Since when, of that, nobody matched.
    pub(super) unmatched_since: Option<Time>,
    /// When the search last began, and how often it did since anybody accepted an award.
    pub(super) begun: Option<Time>,
    pub(super) fruitless: u32,
    /// Partitions were opened again since the search last began.
    pub(super) fresh_open: bool,
    /// Everybody was asked since partitions were last opened.
    pub(super) asked_all: bool,
    /// Sweeps that found too few.
    pub(super) sweeps: u32,
    /// Workers that may get more when the batch of inputs ends.
    pub(super) hungry: BTreeSet<PeerId>,
    /// Clients have something new to see.
    pub(super) changed: bool,
    /// Why it fails as a whole, once that is clear.
    pub(super) doom: Option<String>,
}

/// Where the search for workers stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Round {
    /// Nobody is looked for.
    Idle,
    /// This node's own worker was asked.
    Own,
    /// These peers were asked directly and have not answered.
    Asking { left: BTreeSet<PeerId>, cap: u32 },
    /// It was announced; this share of peers may bid.
    Announced { theta: u64, bids: u64, cap: u32, given: Given },
    /// Everybody was asked; it is announced again later.
    Waiting,
}

/// What a round gave, to how many by their weight alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) all: u64,
    pub(super) by_weight: u64,
}

/// An ask or announcement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) seed: u64,
    pub(super) theta: u64,
    pub(super) announced: bool,
    pub(super) at: Time,
}

/// A bid that was not used up.
#[derive(Debug, Clone)]
pub(super) struct InHand {
    pub(super) bid: Bid,
    pub(super) until: Time,
    /// Its place in the lottery depended on its weight.
    pub(super) by_weight: bool,
    /// Its peer was first seen after the announcement.
    pub(super) stranger: bool,
}

/// What is with one worker.
#[derive(Debug, Clone, Default)]
pub(super) struct Share {
    /// How many it runs at once.
    pub(super) slots: u32,
    /// Awarded and not ended.
    pub(super) live: BTreeSet<Part>,
    /// Mean time between ends, in nanoseconds.
    pub(super) gap: Option<u64>,
    /// When the last end, or the first award since it was idle, was.
    pub(super) last: Time,
    /// Given in the open round.
    pub(super) given: u32,
    /// It was asked to give some back and has not answered.
    pub(super) recalled: bool,
    /// It declined for want of room: nothing more until it ends something or bids again.
    pub(super) full: bool,
}

/// A partition that was tried before.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble {
    /// Attempts that failed by themselves.
    pub(super) failures: u32,
    /// Attempts lost with their workers.
    pub(super) lost: u32,
    /// Those workers.
    pub(super) lost_on: BTreeSet<PeerId>,
    /// Sweeps that found nobody else since it failed.
    pub(super) swept: u32,
    /// Workers on which it failed, and how.
    pub(super) failed_on: BTreeMap<PeerId, Outcome>,
}

/// A partition that was lost this many times as often as workers may be lost with it is poison even when they were few:
/// a program may bring down the same node again and again, but a node that is restarted for other reasons is no sign of it.
const LOST_ON_FEW: u32 = 3;

impl Trouble {
    pub(super) fn note_lost(&mut self, worker: PeerId) {
        self.lost = self.lost.saturating_add(1);
        self.lost_on.insert(worker);
    }

    /// The losses in words.
    pub(super) fn losses(&self) -> String {
        match self.lost_on.len() {
            workers if self.lost as usize <= workers => {
                format!("{workers} workers were lost while they ran it")
            }
            1 => format!("{} attempts were lost with one worker", self.lost),
            workers => format!("{} attempts were lost with {workers} workers", self.lost),
        }
    }

    /// Whether too many workers were lost with it, or too few too often.
    pub(super) fn is_poison(&self, limit: u32) -> bool {
        self.lost_on.len() >= limit as usize || self.lost >= limit.saturating_mul(LOST_ON_FEW)
    }
}

/// Receipts whose results are being copied here.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) record: ReceiptsRecord,
    pub(super) group: ReceiptGroup,
    /// Which of them wait.
    pub(super) left: BTreeSet<u32>,
}

impl Job {
    pub(super) fn new(ledger: Ledger) -> Self {
        let open = RangeSet::full(ledger.job.count);
        Job {
            ledger,
            open,
            trouble: BTreeMap::new(),
            shares: BTreeMap::new(),
            bids: BTreeMap::new(),
            calls: VecDeque::new(),
            round: Round::Idle,
            declines: BTreeMap::new(),
            skews: BTreeMap::new(),
            bidders: BTreeSet::new(),
            unanswered: BTreeMap::new(),
            again: BTreeSet::new(),
            told: BTreeSet::new(),
            batches: BTreeMap::new(),
            holding: BTreeMap::new(),
            stops: BTreeMap::new(),
            waiting_since: None,
            unmatched_since: None,
            begun: None,
            fruitless: 0,
            fresh_open: false,
            asked_all: false,
            sweeps: 0,
            hungry: BTreeSet::new(),
            changed: false,
            doom: None,
        }
    }

    pub(super) fn key(&self) -> (::job::JobId, u32) {
        (self.ledger.id, self.ledger.version)
    }

    pub(super) fn ended(&self) -> bool {
        self.ledger.state.is_terminal()
    }

    pub(super) fn open_count(&self) -> u32 {
        u32::try_from(self.open.len()).unwrap_or(u32::MAX)
    }

    /// Bytes of the inputs whose sizes are known.
    pub(super) fn input_bytes(&self) -> u64 {
        self.ledger.job.facts.inputs.iter().fold(0, |sum, input| sum.saturating_add(input.size))
    }

    pub(super) fn never(&self) -> bool {
        self.ledger.job.facts.never
    }

    /// Who offered to run partitions, and how many at once: those with a share, and those with a bid in hand.
    pub(super) fn bidders(&self) -> Vec<(PeerId, u32)> {
        let in_hand = self.bids.iter().map(|(peer, held)| (*peer, held.bid.slots));
        let mut slots: BTreeMap<PeerId, u32> = in_hand.collect();
        for (peer, share) in &self.shares {
            slots.entry(*peer).or_insert(share.slots);
        }
        slots.into_iter().collect()
    }

    /// Whether anybody works on it.
    pub(super) fn is_worked_on(&self) -> bool {
        self.shares.values().any(|share| !share.live.is_empty()) || !self.batches.is_empty()
    }

    pub(super) fn call(&mut self, call: Call) {
        if self.calls.len() >= MAX_CALLS {
            self.calls.pop_front();
        }
        self.calls.push_back(call);
    }

    pub(super) fn called(&self, seed: u64) -> Option<Call> {
        self.calls.iter().find(|call| call.seed == seed).copied()
    }

    pub(super) fn note_decline(&mut self, peer: PeerId, code: DeclineCode, message: String) {
        if self.declines.len() < MAX_DECLINES || self.declines.contains_key(&peer) {
            self.declines.insert(peer, (code, message));
        }
    }

    /// Takes note of how far a peer's clock is from ours, if it says that it is far. Of an answer that was long in coming
    /// nobody can say whether it was the clock.
    pub(super) fn note_skew(&mut self, peer: PeerId, skew_s: i64, waited: Duration) {
        if skew_s != 0 && waited < PROMPT && self.skews.len() < MAX_DECLINES {
            self.skews.insert(peer, skew_s.unsigned_abs());
        }
    }

    /// A new sweep: what peers said before counts no more.
    pub(super) fn forget_answers(&mut self) {
        self.declines.clear();
        self.skews.clear();
        self.bidders.clear();
    }

    /// Whether this worker may be given this partition.
    pub(super) fn suits(&self, worker: PeerId, partition: u32) -> bool {
        self.trouble.get(&partition).is_none_or(|trouble| !trouble.failed_on.contains_key(&worker))
    }

    /// Whether an attempt of this partition was lost with this worker.
    pub(super) fn was_lost_on(&self, worker: PeerId, partition: u32) -> bool {
        self.trouble.get(&partition).is_some_and(|trouble| trouble.lost_on.contains(&worker))
    }

    /// How many executions this worker should have, as things are.
    pub(super) fn target(&self, share: &Share) -> u64 {
        let slots = u64::from(share.slots.max(1));
        let Some(gap) = share.gap else { return slots };
        let ahead = u64::try_from(HORIZON.as_nanos()).unwrap_or(u64::MAX) / gap.max(1);
        let credit = ahead.min(MAX_CREDIT);
        // Towards the end everybody gets a part of the rest, so that all end together.
        let workers =
            self.shares.values().filter(|share| share.gap.is_some() || !share.live.is_empty()).count();
        let live: usize = self.shares.values().map(|share| share.live.len()).sum();
        let rest = self.open.len() + u64::try_from(live).unwrap_or(0);
        let fair = rest.div_ceil(u64::try_from(workers.max(1)).unwrap_or(1));
        (slots + credit).min(fair.max(slots))
    }
}

impl Share {
    /// Takes note that some executions ended now.
    pub(super) fn note_ends(&mut self, now: Time, count: u64) {
        let took = u64::try_from(now.since(self.last).as_nanos()).unwrap_or(u64::MAX) / count.max(1);
        self.gap = Some(self.gap.map_or(took, |gap| (gap / 4).saturating_mul(3).saturating_add(took / 4)));
        self.last = now;
        self.full = false;
        self.recalled = false;
    }
}
