//! What garbage collection must leave alone: content that is held, and content that is being written.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use cid::Cid;
use cid::multihash::Multihash;

use super::bloom::{Bloom, fingerprint};
use super::files::lock;

/// Blocks that one writer may have in hand while garbage is collected: 64 MiB of fingerprints. A larger addition
/// makes collection wait for its end.
const MAX_IN_HAND: usize = 8 * 1024 * 1024;

/// Everything in use.
#[derive(Debug, Default)]
pub(super) struct Live {
    writers: Mutex<Writers>,
    guards: Mutex<HashMap<Cid, usize>>,
    /// While garbage is collected: every block that must stay.
    collecting: Mutex<Option<Bloom>>,
}

#[derive(Debug, Default)]
struct Writers {
    next: u64,
    in_hand: BTreeMap<u64, Arc<Mutex<InHand>>>,
}

/// The blocks that one writer has written or found, and not yet linked to a root.
#[derive(Debug, Default)]
pub(super) struct InHand {
    fingerprints: Vec<u64>,
    overflowed: bool,
}

/// One writer's registration; ends when it is dropped.
#[derive(Debug)]
pub(super) struct Writer {
    live: Arc<Live>,
    number: u64,
    in_hand: Arc<Mutex<InHand>>,
}

impl Live {
    pub(super) fn writer(self: &Arc<Self>) -> Writer {
        let in_hand = Arc::default();
        let mut writers = lock(&self.writers);
        let number = writers.next;
        writers.next += 1;
        writers.in_hand.insert(number, Arc::clone(&in_hand));
        Writer { live: Arc::clone(self), number, in_hand }
    }

    pub(super) fn hold(&self, cid: Cid) {
        *lock(&self.guards).entry(cid).or_default() += 1;
    }

    pub(super) fn release(&self, cid: &Cid) {
        let mut guards = lock(&self.guards);
        if let Some(count) = guards.get_mut(cid) {
            *count -= 1;
            if *count == 0 {
                guards.remove(cid);
            }
        }
    }

    pub(super) fn guarded(&self) -> Vec<Cid> {
        lock(&self.guards).keys().copied().collect()
    }

    pub(super) fn is_guarded(&self, cid: &Cid) -> bool {
        lock(&self.guards).contains_key(cid)
    }

    /// Begins a collection: from now on, everything that is touched is marked. `false` when some writer has more in
    /// hand than was remembered.
    pub(super) fn begin_collecting(&self, bloom: Bloom) -> bool {
        // First the filter, then what was in hand before it was there: nothing falls between.
        *lock(&self.collecting) = Some(bloom);
        let writers: Vec<_> = lock(&self.writers).in_hand.values().cloned().collect();
        let mut complete = true;
        for writer in writers {
            let in_hand = lock(&writer);
            complete &= !in_hand.overflowed;
            if let Some(bloom) = lock(&self.collecting).as_mut() {
                in_hand.fingerprints.iter().for_each(|print| bloom.insert(*print));
            }
        }
        if !complete {
            self.end_collecting();
        }
        complete
    }

    pub(super) fn end_collecting(&self) {
        lock(&self.collecting).take();
    }

    pub(super) fn is_collecting(&self) -> bool {
        lock(&self.collecting).is_some()
    }

    /// Marks a block for the collection that runs, if one does; answers whether it was not marked before.
    pub(super) fn mark(&self, hash: &Multihash<64>) -> bool {
        let print = fingerprint(hash);
        lock(&self.collecting).as_mut().is_some_and(|bloom| {
            let is_new = !bloom.contains(print);
            bloom.insert(print);
            is_new
        })
    }

    /// Runs `decide` with the marks, while nobody can add one: what it finds unmarked it may remove.
    pub(super) fn with_marks<T>(&self, decide: impl FnOnce(&Bloom) -> T) -> Option<T> {
        lock(&self.collecting).as_ref().map(decide)
    }
}

impl Writer {
    /// Says that this block must stay, whether it is here already or comes now. Call it before looking it up.
    pub(super) fn touch(&self, hash: &Multihash<64>) {
        let print = fingerprint(hash);
        {
            let mut in_hand = lock(&self.in_hand);
            if in_hand.fingerprints.len() < MAX_IN_HAND {
                in_hand.fingerprints.push(print);
            } else {
                in_hand.overflowed = true;
            }
        }
        self.live.mark(hash);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        lock(&self.live.writers).in_hand.remove(&self.number);
    }
}
