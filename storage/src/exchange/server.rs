//! The serving half of Bitswap, as a state machine: which peer gets which block next.
//!
//! A want is looked up, answered at once when the answer is yes or no, and queued when it is the
//! block. Blocks go out in messages of a few hundred kilobytes, the peers take turns, and no peer
//! has more than its share on its way. A want that cannot be served is kept for a while: when the
//! block comes in, the peer gets it without asking again.

use std::collections::{BTreeMap, BTreeSet};

use cid::Cid;

use super::client::Digest;
use super::message::{Entry, Presence, WantKind};
use super::network::Peer;

/// Wants kept of a peer: as many as Kubo keeps.
const MAX_WANTS: usize = 1024;

/// Of these, wants for blocks that are not here: each is looked up again whenever content comes in.
const MAX_WAITING: usize = 256;

/// Answers on their way to a peer that does not read them, after which its wants are dropped.
const MAX_UNSENT_ANSWERS: usize = 4 * MAX_WANTS;

/// Wants of a peer that are being looked up, those it took back meanwhile included.
const MAX_CHECKING: usize = 2 * MAX_WANTS;

/// A message of blocks is closed at this size: large enough to cost nothing, small enough that
/// peers take turns often and an answer in between waits a millisecond.
const MESSAGE_BYTES: u64 = 256 << 10;

/// Nothing is added to a message that would make it longer than this; one block always fits.
const MAX_MESSAGE_BYTES: u64 = 1 << 20;

/// Blocks in one message.
const MAX_MESSAGE_BLOCKS: usize = 512;

/// Bytes of blocks that are being read for, or written to, one peer.
const PEER_BYTES: u64 = 16 << 20;

/// The same for all peers together: what serving costs in memory.
const TOTAL_BYTES: u64 = 64 << 20;

/// A block of at most this size is sent instead of the news that it is here.
const SMALL_BLOCK_BYTES: u64 = 1024;

/// What the machine is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// A peer sent its wantlist, or changes of it.
    Wanted {
        /// Who.
        peer: Peer,
        /// It is the whole list.
        full: bool,
        /// The entries.
        entries: Vec<Entry>,
    },
    /// Blocks were looked up: the size of each that is here.
    Checked {
        /// For whom.
        peer: Peer,
        /// What was found.
        sizes: Vec<(Cid, Option<u64>)>,
    },
    /// A message with blocks was written, or given up.
    Sent {
        /// To whom.
        peer: Peer,
        /// The bytes of its [`Effect::Serve`].
        bytes: u64,
    },
    /// Answers were written, or given up.
    Answered {
        /// To whom.
        peer: Peer,
        /// How many.
        count: usize,
    },
    /// Content came in: what peers wait for may be here now.
    Stored,
    /// A peer is gone, and its wants with it.
    Gone(Peer),
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Look up whether these blocks are here, and answer with [`Input::Checked`].
    Check {
        /// For whom.
        peer: Peer,
        /// The blocks.
        cids: Vec<Cid>,
    },
    /// Send answers; then say [`Input::Answered`].
    Answer {
        /// To whom.
        peer: Peer,
        /// The answers.
        presences: Vec<Presence>,
    },
    /// Read these blocks and send them in one message; then say [`Input::Sent`].
    Serve {
        /// To whom.
        peer: Peer,
        /// The blocks.
        cids: Vec<Cid>,
        /// Their size together, as it was looked up.
        bytes: u64,
    },
}

/// What happened, in numbers that only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerCounters {
    /// Wants that came in.
    pub wants: u64,
    /// Blocks that were sent.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Wants for blocks that are not here.
    pub missing: u64,
    /// Wants that were dropped because the peer had too many.
    pub dropped: u64,
}

/// Decides which peer is sent which block.
#[derive(Debug, Default)]
pub struct Server {
    ledgers: BTreeMap<Peer, Ledger>,
    /// The peer that was served last: the next one is served next.
    last_served: Option<Peer>,
    in_flight: u64,
    next_order: u64,
    counters: ServerCounters,
}

/// What one peer wants.
#[derive(Debug, Default)]
struct Ledger {
    wants: BTreeMap<Digest, Want>,
    /// What is here and to be sent, highest priority first, then first come.
    queue: BTreeSet<Place>,
    /// What is not here.
    waiting: BTreeSet<Digest>,
    in_flight: u64,
    unsent_answers: usize,
    checking: usize,
    /// Content came in while wants were being looked up: the answer may be old.
    recheck: bool,
}

/// Falling priority, then rising order.
type Place = (std::cmp::Reverse<i32>, u64, Digest);

#[derive(Debug)]
struct Want {
    entry: Entry,
    order: u64,
    size_bytes: u64,
}

impl Want {
    fn place(&self) -> Place {
        (std::cmp::Reverse(self.entry.priority), self.order, *self.entry.cid.hash())
    }
}

impl Server {
    /// A machine that knows of no wants.
    pub fn new() -> Server {
        Server::default()
    }

    /// Applies one input and appends what the caller must do about it, in order.
    pub fn handle(&mut self, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Wanted { peer, full, entries } => self.on_wanted(peer, full, entries, out),
            Input::Checked { peer, sizes } => self.on_checked(&peer, sizes, out),
            Input::Sent { peer, bytes } => self.on_sent(&peer, bytes),
            Input::Answered { peer, count } => {
                if let Some(ledger) = self.ledgers.get_mut(&peer) {
                    ledger.unsent_answers = ledger.unsent_answers.saturating_sub(count);
                }
            }
            Input::Stored => self.on_stored(out),
            Input::Gone(peer) => self.on_gone(&peer),
        }
        self.serve(out);
    }

    /// What happened so far.
    pub fn counters(&self) -> ServerCounters {
        self.counters
    }

    /// How many wants are known, of all peers.
    pub fn wants(&self) -> usize {
        self.ledgers.values().map(|ledger| ledger.wants.len()).sum()
    }

    fn on_wanted(&mut self, peer: Peer, full: bool, entries: Vec<Entry>, out: &mut Vec<Effect>) {
        let ledger = self.ledgers.entry(peer.clone()).or_default();
        if full {
            ledger.clear();
        }
        let mut cids = Vec::new();
        for entry in entries {
            ledger.remove(entry.cid.hash());
            if entry.cancel {
                continue;
            }
            self.counters.wants += 1;
            let flooding = ledger.unsent_answers >= MAX_UNSENT_ANSWERS || ledger.checking >= MAX_CHECKING;
            if flooding || !ledger.make_room(entry.priority) {
                self.counters.dropped += 1;
                continue;
            }
            ledger.checking += 1;
            cids.push(entry.cid);
            let order = self.next_order;
            self.next_order += 1;
            ledger.wants.insert(*entry.cid.hash(), Want { entry, order, size_bytes: 0 });
        }
        if !cids.is_empty() {
            out.push(Effect::Check { peer, cids });
        }
    }

    fn on_checked(&mut self, peer: &Peer, sizes: Vec<(Cid, Option<u64>)>, out: &mut Vec<Effect>) {
        let Some(ledger) = self.ledgers.get_mut(peer) else { return };
        ledger.checking = ledger.checking.saturating_sub(sizes.len());
        let mut presences = Vec::new();
        for (cid, size) in sizes {
            let digest = cid.hash();
            let Some(want) = ledger.wants.get_mut(digest) else { continue }; // cancelled meanwhile
            match size {
                None => {
                    self.counters.missing += 1;
                    let known = ledger.waiting.contains(digest);
                    if want.entry.send_dont_have && !known {
                        presences.push(Presence { cid, have: false });
                    }
                    if !known && !ledger.wait_for(*digest) {
                        ledger.wants.remove(digest);
                    }
                }
                Some(size) if want.entry.kind == WantKind::Have && size > SMALL_BLOCK_BYTES => {
                    presences.push(Presence { cid, have: true });
                    ledger.remove(digest);
                }
                Some(size) => {
                    want.size_bytes = size;
                    ledger.waiting.remove(digest);
                    let place = want.place();
                    ledger.queue.insert(place);
                }
            }
        }
        if !presences.is_empty() {
            ledger.unsent_answers += presences.len();
            out.push(Effect::Answer { peer: peer.clone(), presences });
        }
        if ledger.recheck {
            ledger.check_waiting(peer, out);
        }
    }

    fn on_sent(&mut self, peer: &Peer, bytes: u64) {
        if let Some(ledger) = self.ledgers.get_mut(peer) {
            let bytes = bytes.min(ledger.in_flight); // what a former connection had on its way is off the books
            ledger.in_flight -= bytes;
            self.in_flight = self.in_flight.saturating_sub(bytes);
        }
    }

    fn on_stored(&mut self, out: &mut Vec<Effect>) {
        for (peer, ledger) in &mut self.ledgers {
            ledger.check_waiting(peer, out);
        }
    }

    fn on_gone(&mut self, peer: &Peer) {
        if let Some(ledger) = self.ledgers.remove(peer) {
            self.in_flight = self.in_flight.saturating_sub(ledger.in_flight);
        }
    }

    /// Cuts messages for peers in turn, while there is room.
    fn serve(&mut self, out: &mut Vec<Effect>) {
        while self.in_flight < TOTAL_BYTES
            && let Some(peer) = self.next_peer()
            && let Some(ledger) = self.ledgers.get_mut(&peer)
        {
            let (cids, bytes) = ledger.cut_message();
            self.in_flight += bytes;
            self.counters.blocks += cids.len() as u64;
            self.counters.bytes += bytes;
            self.last_served = Some(peer.clone());
            out.push(Effect::Serve { peer, cids, bytes });
        }
    }

    fn next_peer(&self) -> Option<Peer> {
        use std::ops::Bound::{Excluded, Unbounded};
        let ready = |(peer, ledger): (&Peer, &Ledger)| ledger.is_ready().then(|| peer.clone());
        let after = self.last_served.as_ref();
        let rest =
            after.and_then(|last| self.ledgers.range::<Peer, _>((Excluded(last), Unbounded)).find_map(ready));
        rest.or_else(|| self.ledgers.iter().find_map(ready))
    }
}

impl Ledger {
    fn is_ready(&self) -> bool {
        !self.queue.is_empty() && self.in_flight < PEER_BYTES
    }

    fn clear(&mut self) {
        self.wants.clear();
        self.queue.clear();
        self.waiting.clear();
    }

    /// Looks up again what was not here, after what is being looked up now.
    fn check_waiting(&mut self, peer: &Peer, out: &mut Vec<Effect>) {
        self.recheck = self.checking > 0;
        if self.recheck || self.waiting.is_empty() {
            return;
        }
        let wants = self.waiting.iter().filter_map(|digest| self.wants.get(digest));
        let cids: Vec<Cid> = wants.map(|want| want.entry.cid).collect();
        self.checking += cids.len();
        out.push(Effect::Check { peer: peer.clone(), cids });
    }

    fn remove(&mut self, digest: &Digest) {
        if let Some(want) = self.wants.remove(digest) {
            self.queue.remove(&want.place());
            self.waiting.remove(digest);
        }
    }

    /// Makes place for one more want: one that cannot be served goes first, then one of lower
    /// priority; false when there is neither.
    fn make_room(&mut self, priority: i32) -> bool {
        if self.wants.len() < MAX_WANTS {
            return true;
        }
        let victim = self.waiting.first().copied().or_else(|| {
            let (std::cmp::Reverse(lowest), _, digest) = self.queue.last()?;
            (*lowest < priority).then_some(*digest)
        });
        match victim {
            Some(digest) => self.remove(&digest),
            None => return false,
        }
        true
    }

    fn wait_for(&mut self, digest: Digest) -> bool {
        self.waiting.len() < MAX_WAITING && self.waiting.insert(digest)
    }

    fn cut_message(&mut self) -> (Vec<Cid>, u64) {
        let (mut cids, mut bytes) = (Vec::new(), 0);
        while bytes < MESSAGE_BYTES
            && cids.len() < MAX_MESSAGE_BLOCKS
            && let Some((_, _, digest)) = self.queue.first().copied()
        {
            let size = self.wants.get(&digest).map_or(0, |want| want.size_bytes);
            if !cids.is_empty() && bytes + size > MAX_MESSAGE_BYTES {
                break;
            }
            self.queue.pop_first();
            if let Some(want) = self.wants.remove(&digest) {
                cids.push(want.entry.cid);
                bytes += size;
            }
        }
        self.in_flight += bytes;
        (cids, bytes)
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
