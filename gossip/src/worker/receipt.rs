//! Receipts: sealed in batches, recorded before they are sent, offered until the owner has dealt with them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::job::{Cid, ExecutionKey, PeerId, Time};
use serde::{Deserialize, Serialize};

use super::job::{Job, Pending};
use super::{Effect, JobKey, Part, Timer, Worker, execution_key};
use crate::bug::Bug;
use crate::message::{
    Block, Committed, Direct, MAX_RECEIPT_GROUPS, Receipt, ReceiptGroup, Receipts, SealedGroup,
};
use crate::record::{Kind, Record, RecordKey};

/// Bytes of receipts and blocks in one message: leaves room below the largest message for its frame.
const MAX_BATCH_BYTES: usize = 640 << 10;

/// What a receipt without texts takes at most, encoded.
const RECEIPT_BYTES: usize = 256;

/// What a block takes beside its bytes: never less, so that a message full of tiny ones stays within its limit.
const BLOCK_BYTES: usize = 96;

/// Bytes of results that wait in memory and in receipts' records only; beyond, results are stored as content first.
pub(super) const MAX_CARRIED_BYTES: usize = 32 << 20;

/// Receipts in one group.
const MAX_GROUP: usize = 1024;

/// First and longest wait before receipts that nobody answered are offered again.
const OFFER_FIRST: Duration = Duration::from_secs(5);
const OFFER_LONGEST: Duration = Duration::from_secs(300);

/// Receipts of one job version that wait for its owner.
#[derive(Debug, Clone)]
pub(super) struct Offer {
    pub(super) owner: PeerId,
    pub(super) job: JobKey,
    pub(super) group: SealedGroup,
    pub(super) left: BTreeMap<Part, Waiting>,
    /// Wall clock.
    pub(super) until: u64,
    pub(super) keep: bool,
    /// Results that are nowhere else, until the owner has them.
    pub(super) blocks: Vec<Block>,
}

/// What hangs on one receipt.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    pub(super) award: u64,
    pub(super) result: Option<Cid>,
    pub(super) size: u64,
}

/// Results that stay here because the job says so.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) job: JobKey,
    pub(super) results: Vec<(Part, Cid, u64)>,
    /// Wall clock.
    pub(super) until: u64,
}

/// An offer as it is recorded.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OfferRecord {
    #[serde(rename = "o")]
    pub(super) owner: PeerId,
    #[serde(rename = "g")]
    pub(super) group: SealedGroup,
    /// Partition, attempt and award.
    #[serde(rename = "a")]
    pub(super) awards: Vec<(u32, u32, u64)>,
    #[serde(rename = "u")]
    pub(super) until: u64,
    #[serde(rename = "k")]
    pub(super) keep: bool,
    #[serde(rename = "b", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) blocks: Vec<Block>,
}

impl Kept {
    /// Bytes of its results.
    fn bytes(&self) -> u64 {
        self.results.iter().map(|(_, _, size)| *size).fold(0, u64::saturating_add)
    }

    /// What it has the results of.
    pub(super) fn executions(&self) -> impl Iterator<Item = ExecutionKey> + '_ {
        self.results.iter().map(|(part, _, _)| execution_key(self.job, *part))
    }
}

impl Offer {
    /// Bytes of results and receipts that wait.
    fn bytes(&self) -> u64 {
        let sizes = self.left.values().map(|waiting| waiting.size.saturating_add(RECEIPT_BYTES as u64));
        sizes.fold(0, u64::saturating_add)
    }

    pub(super) fn left(&self) -> usize {
        self.left.len()
    }

    /// Bytes of memory that it carries results in.
    fn carried_bytes(&self) -> usize {
        self.blocks.iter().map(block_bytes).sum()
    }

    /// Bytes that it takes in a message.
    fn message_bytes(&self) -> usize {
        self.group.group.len() + self.carried_bytes()
    }
}

/// A message in the making.
#[derive(Default)]
struct Batch {
    groups: Vec<Draft>,
    blocks: BTreeMap<Cid, Block>,
    bytes: usize,
}

/// Receipts of one job version that will be sealed together.
struct Draft {
    job: JobKey,
    group: ReceiptGroup,
    left: BTreeMap<Part, Waiting>,
    keep: bool,
    /// Blocks that are nowhere else; equal ones count once.
    carried: BTreeMap<Cid, Block>,
}

impl Worker {
    /// Seals what ended in this batch of inputs, records it and offers it.
    pub(super) fn offer_ended(&mut self, now: Time, out: &mut Vec<Effect>) {
        let mut batches: BTreeMap<PeerId, Vec<Batch>> = BTreeMap::new();
        let me = self.identity.me;
        for key in std::mem::take(&mut self.ended) {
            let Some(job) = self.jobs.get_mut(&key) else { continue };
            let batches = batches.entry(job.owner).or_default();
            for pending in std::mem::take(&mut job.pending) {
                pack(batches, key, job, me, pending);
            }
        }
        for (owner, batches) in batches {
            for batch in batches {
                self.seal(now, owner, batch, out);
            }
            self.timers.set_earlier(Timer::Offer(owner), now + OFFER_FIRST);
        }
    }

    fn seal(&mut self, now: Time, owner: PeerId, batch: Batch, out: &mut Vec<Effect>) {
        let plain: Vec<ReceiptGroup> = batch.groups.iter().map(|draft| draft.group.clone()).collect();
        let sealed = SealedGroup::seal(&plain, self.identity.crypto.as_ref());
        let until = (now + self.settings.retention).wall;
        for (draft, group) in batch.groups.into_iter().zip(&sealed) {
            let number = self.number();
            let Draft { job, left, keep, carried, .. } = draft;
            if let Some(job) = self.jobs.get_mut(&job) {
                job.offered.extend(left.keys().map(|part| (*part, number)));
            }
            let blocks = carried.into_values().collect();
            let offer = Offer { owner, job, group: group.clone(), left, until, keep, blocks };
            if !self.has_bug(|bug| bug == Bug::ReceiptsNotRecorded) {
                out.push(Effect::Persist(offer_record(number, &offer)));
            }
            self.keep_offer(number, offer);
        }
        self.timers.set_earlier(Timer::Retention, now + self.settings.retention);
        self.bound_retention(out);
        let receipts =
            Receipts { stamp: self.stamp(now), groups: sealed, blocks: batch.blocks.into_values().collect() };
        if self.is_connected(owner) {
            out.push(Effect::Send { to: owner, message: Direct::Receipts(receipts) });
        }
    }

    pub(super) fn keep_offer(&mut self, number: u64, offer: Offer) {
        self.carried += offer.carried_bytes();
        self.offers.insert(number, offer);
    }

    pub(super) fn keep_results(&mut self, number: u64, kept: Kept) {
        self.kept_bytes = self.kept_bytes.saturating_add(kept.bytes());
        self.kept.insert(number, kept);
    }

    fn remove_offer(&mut self, number: u64) -> Option<Offer> {
        let offer = self.offers.remove(&number)?;
        self.carried -= offer.carried_bytes();
        Some(offer)
    }

    /// Offers all receipts of an owner again, with the results that are nowhere else; the others are fetched from here.
    pub(super) fn offer_again(&mut self, now: Time, to: PeerId, out: &mut Vec<Effect>) {
        if self.offers.values().all(|offer| offer.owner != to) {
            return;
        }
        let owner = self.owners.entry(to).or_default();
        let wait = OFFER_FIRST.saturating_mul(1 << owner.offers.min(10)).min(OFFER_LONGEST);
        owner.offers = owner.offers.saturating_add(1);
        self.timers.set(Timer::Offer(to), now + wait);
        if !self.is_connected(to) {
            return;
        }
        let stamp = self.stamp(now);
        let offers: Vec<&Offer> = self.offers.values().filter(|offer| offer.owner == to).collect();
        for offers in messages(&offers) {
            let groups = offers.iter().map(|offer| offer.group.clone()).collect();
            let blocks: BTreeMap<Cid, &Block> =
                offers.iter().flat_map(|offer| &offer.blocks).map(|block| (block.cid, block)).collect();
            let blocks = blocks.into_values().cloned().collect();
            let receipts = Receipts { stamp, groups, blocks };
            out.push(Effect::Send { to, message: Direct::Receipts(receipts) });
        }
    }

    /// The owner has dealt with executions: receipts, losses and refusals need not be told any more.
    pub(super) fn on_committed(
        &mut self,
        now: Time,
        from: PeerId,
        committed: Committed,
        out: &mut Vec<Effect>,
    ) {
        let mut done = BTreeSet::new();
        for spans in committed.jobs {
            let key = (spans.job, spans.version);
            if self.jobs.get(&key).is_none_or(|job| job.owner != from) {
                continue;
            }
            for span in spans.spans {
                self.settle_span(key, span.first, span.end(), span.attempt, &mut done, out);
            }
            self.forget_empty(key, out);
        }
        for number in done {
            self.close_offer(now, number, out);
        }
        if let Some(owner) = self.owners.get_mut(&from) {
            owner.offers = 0;
        }
        if self.offers.values().all(|offer| offer.owner != from) {
            self.timers.clear(Timer::Offer(from));
        }
        self.watch(from, out);
    }

    fn settle_span(
        &mut self,
        key: JobKey,
        first: u32,
        end: u32,
        attempt: u32,
        done: &mut BTreeSet<u64>,
        out: &mut Vec<Effect>,
    ) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let mut awards = Vec::new();
        for gone in [
            take_range(&mut job.lost, first, end, attempt),
            take_range(&mut job.unstarted, first, end, attempt),
        ] {
            awards.extend(gone.into_iter().map(|(_, award)| award));
        }
        for (part, number) in take_range(&mut job.offered, first, end, attempt) {
            if let Some(offer) = self.offers.get_mut(&number) {
                if let Some(waiting) = offer.left.get(&part) {
                    awards.push(waiting.award);
                }
                if !offer.keep {
                    let waiting = offer.left.remove(&part);
                    let result = waiting.and_then(|waiting| waiting.result);
                    out.push(Effect::Release { execution: execution_key(key, part), result });
                }
                done.insert(number);
            }
        }
        if !awards.is_empty() {
            self.marked.insert(key);
        }
        for award in awards {
            self.settle_award(key, award, out);
        }
    }

    /// An offer may be done: nothing is left of it, or only results that stay here.
    fn close_offer(&mut self, now: Time, number: u64, out: &mut Vec<Effect>) {
        let Some(offer) = self.offers.get(&number) else { return };
        let waits = self
            .jobs
            .get(&offer.job)
            .is_some_and(|job| offer.left.keys().any(|part| job.offered.get(part) == Some(&number)));
        if waits {
            return;
        }
        let Some(offer) = self.remove_offer(number) else { return };
        let key = RecordKey { job: offer.job.0, version: offer.job.1, kind: Kind::Offered, number };
        out.push(Effect::Forget(key));
        let results: Vec<(Part, Cid, u64)> = offer
            .left
            .iter()
            .filter_map(|(part, waiting)| Some((*part, waiting.result?, waiting.size)))
            .collect();
        if offer.keep && !results.is_empty() {
            let until = (now + self.settings.retention).wall;
            out.push(Effect::Persist(Record::new(
                RecordKey { kind: Kind::Kept, ..key },
                &OfferRecord {
                    owner: offer.owner,
                    group: offer.group,
                    awards: offer.left.keys().map(|part| (part.0, part.1, 0)).collect(),
                    until,
                    keep: true,
                    blocks: Vec::new(),
                },
            )));
            self.keep_results(number, Kept { job: offer.job, results, until });
        }
    }

    /// One execution of an award is dealt with; with the last one its record goes.
    pub(super) fn settle_award(&mut self, key: JobKey, award: u64, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let Some(left) = job.awards.get_mut(&award) else { return };
        *left = left.saturating_sub(1);
        if *left == 0 {
            job.awards.remove(&award);
            let key = RecordKey { job: key.0, version: key.1, kind: Kind::Accepted, number: award };
            out.push(Effect::Forget(key));
        }
    }

    /// A job version of which nothing is left here is forgotten.
    pub(super) fn forget_empty(&mut self, key: JobKey, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get(&key) else { return };
        if !job.is_empty() {
            return;
        }
        let owner = job.owner;
        for award in job.awards.keys() {
            out.push(Effect::Forget(RecordKey {
                job: key.0,
                version: key.1,
                kind: Kind::Accepted,
                number: *award,
            }));
        }
        self.jobs.remove(&key);
        self.marked.insert(key);
        self.watch(owner, out);
    }

    /// Receipts and results whose time is over.
    pub(super) fn expire_offers(&mut self, now: Time, out: &mut Vec<Effect>) {
        let over: Vec<u64> = self
            .offers
            .iter()
            .filter(|(_, offer)| offer.until <= now.wall)
            .map(|(number, _)| *number)
            .collect();
        for number in over {
            self.drop_offer(number, out);
        }
        let over: Vec<u64> =
            self.kept.iter().filter(|(_, kept)| kept.until <= now.wall).map(|(number, _)| *number).collect();
        for number in over {
            self.drop_kept(number, out);
        }
        self.expire_losses(now, out);
        let next = self
            .offers
            .values()
            .map(|offer| offer.until)
            .chain(self.kept.values().map(|kept| kept.until))
            .chain(self.jobs.values().filter_map(|job| job.until))
            .min();
        if let Some(next) = next {
            self.timers.set(Timer::Retention, now.at_wall(next).max(now + Duration::from_secs(1)));
        }
    }

    /// Forgets what was lost or never started of owners that did not come back for so long.
    fn expire_losses(&mut self, now: Time, out: &mut Vec<Effect>) {
        let until = (now + self.settings.retention).wall;
        let mut over = Vec::new();
        for (key, job) in &mut self.jobs {
            let only_losses = job.executions.is_empty() && job.pending.is_empty() && job.offered.is_empty();
            match job.until {
                _ if !only_losses => job.until = None,
                None => job.until = Some(until),
                Some(until) if until <= now.wall => over.push(*key),
                Some(_) => {}
            }
        }
        for key in over {
            let Some(job) = self.jobs.get_mut(&key) else { continue };
            job.lost.clear();
            job.unstarted.clear();
            self.forget_empty(key, out);
        }
    }

    /// Drops the oldest results, those that stay because their jobs say so among them, while there are more bytes than may wait.
    fn bound_retention(&mut self, out: &mut Vec<Effect>) {
        let mut offered = self.offers.values().map(Offer::bytes).fold(0, u64::saturating_add);
        while offered.saturating_add(self.kept_bytes) > self.settings.retained_bytes {
            let kept = self.kept.first_key_value().map(|(number, _)| *number);
            let offer = self.offers.first_key_value().map(|(number, offer)| (*number, offer.bytes()));
            match (kept, offer) {
                (Some(kept), Some((number, _))) if kept < number => self.drop_kept(kept, out),
                (_, Some((number, bytes))) if self.offers.len() > 1 => {
                    offered = offered.saturating_sub(bytes);
                    self.drop_offer(number, out);
                }
                _ => return,
            }
        }
    }

    fn drop_offer(&mut self, number: u64, out: &mut Vec<Effect>) {
        let Some(offer) = self.remove_offer(number) else { return };
        let key = offer.job;
        out.push(Effect::Forget(RecordKey { job: key.0, version: key.1, kind: Kind::Offered, number }));
        for (part, waiting) in offer.left {
            if let Some(job) = self.jobs.get_mut(&key) {
                job.offered.remove(&part);
            }
            self.settle_award(key, waiting.award, out);
            out.push(Effect::Release { execution: execution_key(key, part), result: waiting.result });
        }
        self.marked.insert(key);
        self.forget_empty(key, out);
    }

    fn drop_kept(&mut self, number: u64, out: &mut Vec<Effect>) {
        let Some(kept) = self.kept.remove(&number) else { return };
        self.kept_bytes = self.kept_bytes.saturating_sub(kept.bytes());
        let key = kept.job;
        out.push(Effect::Forget(RecordKey { job: key.0, version: key.1, kind: Kind::Kept, number }));
        for (part, result, _) in kept.results {
            out.push(Effect::Release { execution: execution_key(key, part), result: Some(result) });
        }
    }
}

/// Puts a receipt into the last batch of its owner, or begins another when that is full.
fn pack(batches: &mut Vec<Batch>, key: JobKey, job: &Job, me: PeerId, pending: Pending) {
    let Some(terms) = &job.terms else { return };
    let text = match &pending.receipt.outcome {
        crate::message::Outcome::Exit(_) => 0,
        crate::message::Outcome::Fault(_, message) => message.len(),
    };
    let blocks: usize = pending.blocks.iter().map(block_bytes).sum();
    let published = pending.receipt.result.as_ref().map_or(0, |result| result.published.len());
    let bytes = RECEIPT_BYTES + text + published + blocks;
    let full =
        |batch: &Batch| batch.bytes + bytes > MAX_BATCH_BYTES || batch.groups.len() >= MAX_RECEIPT_GROUPS;
    if batches.last().is_none_or(full) {
        batches.push(Batch::default());
    }
    let Some(batch) = batches.last_mut() else { return };
    batch.bytes += bytes;
    let fits = |group: &ReceiptGroup| {
        group.engine == pending.engine && group.inputs == pending.inputs && group.receipts.len() < MAX_GROUP
    };
    if !batch.groups.last().is_some_and(|draft| draft.job == key && fits(&draft.group)) {
        let group = ReceiptGroup {
            job: key.0,
            version: key.1,
            spec: terms.spec.cid,
            worker: me,
            inputs: pending.inputs,
            engine: pending.engine,
            receipts: Vec::new(),
        };
        let (left, carried) = (BTreeMap::new(), BTreeMap::new());
        batch.groups.push(Draft { job: key, group, left, keep: terms.keep, carried });
    }
    let Some(draft) = batch.groups.last_mut() else { return };
    draft.left.insert(part_of(&pending.receipt), waiting(&pending.receipt, pending.award));
    draft.group.receipts.push(pending.receipt);
    if !pending.stored {
        draft.carried.extend(pending.blocks.iter().map(|block| (block.cid, block.clone())));
    }
    batch.blocks.extend(pending.blocks.into_iter().map(|block| (block.cid, block)));
}

/// Splits offers into messages, each within what one may hold.
fn messages<'a>(offers: &'a [&'a Offer]) -> Vec<&'a [&'a Offer]> {
    let (mut messages, mut first, mut bytes) = (Vec::new(), 0, 0);
    for (index, offer) in offers.iter().enumerate() {
        let size = offer.message_bytes();
        if index > first && (bytes + size > MAX_BATCH_BYTES || index - first >= MAX_RECEIPT_GROUPS) {
            messages.extend(offers.get(first..index));
            (first, bytes) = (index, 0);
        }
        bytes += size;
    }
    messages.extend(offers.get(first..));
    messages
}

/// Bytes of a block in a message and in memory, with its CID and frame.
fn block_bytes(block: &Block) -> usize {
    block.bytes.len() + BLOCK_BYTES
}

pub(super) fn part_of(receipt: &Receipt) -> Part {
    (receipt.partition, receipt.attempt)
}

pub(super) fn waiting(receipt: &Receipt, award: u64) -> Waiting {
    let result = receipt.result.as_ref();
    Waiting { award, result: result.map(|result| result.cid), size: result.map_or(0, |result| result.size) }
}

/// Takes the entries of one attempt within a range of partitions out of a map.
fn take_range(map: &mut BTreeMap<Part, u64>, first: u32, end: u32, attempt: u32) -> Vec<(Part, u64)> {
    let found = map.range((first, 0)..(end, 0)).filter(|(part, _)| part.1 == attempt);
    let found: Vec<(Part, u64)> = found.map(|(part, value)| (*part, *value)).collect();
    for (part, _) in &found {
        map.remove(part);
    }
    found
}

fn offer_record(number: u64, offer: &Offer) -> Record {
    let key = RecordKey { job: offer.job.0, version: offer.job.1, kind: Kind::Offered, number };
    let awards = offer.left.iter().map(|(part, waiting)| (part.0, part.1, waiting.award)).collect();
    let (group, blocks) = (offer.group.clone(), offer.blocks.clone());
    let Offer { owner, until, keep, .. } = *offer;
    Record::new(key, &OfferRecord { owner, group, awards, until, keep, blocks })
}
