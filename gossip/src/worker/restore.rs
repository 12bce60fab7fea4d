//! Records of the worker, and its way back from them: what ran is lost, what ended is offered.

use std::collections::{BTreeMap, BTreeSet};

use ::job::{JobId, PeerId, Resources, Time};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::award::honoured;
use super::job::Job;
use super::lease::Owner;
use super::receipt::{Kept, Offer, OfferRecord, part_of, waiting};
use super::{Effect, Identity, JobKey, Part, Settings, Worker};
use crate::crypto::Signed;
use crate::message::{Award, AwardOrder, ReceiptGroup};
use crate::range::{Span, spans};
use crate::record::{Kind, Record, RecordKey, RestoreError};
use crate::rng::Rng;
use crate::timers::Timers;

/// An accepted award as it is recorded.
#[derive(Debug, Serialize, Deserialize)]
struct AcceptedRecord {
    #[serde(rename = "o")]
    owner: PeerId,
    #[serde(rename = "r")]
    spans: Vec<Span>,
    /// The order, which proves that it was asked to.
    #[serde(rename = "a")]
    order: Signed,
}

/// An owner as it is recorded.
#[derive(Debug, Serialize, Deserialize)]
struct OwnerRecord {
    #[serde(rename = "o")]
    owner: PeerId,
    #[serde(rename = "e")]
    epoch: u32,
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    newest: Option<Signed>,
    #[serde(rename = "l")]
    lease_ms: u64,
}

pub(super) fn owner_key(peer: PeerId) -> RecordKey {
    let hash = Sha256::digest(peer.0);
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    RecordKey { job: JobId(id), version: 0, kind: Kind::OwnerEpoch, number: 0 }
}

pub(super) fn owner_record(peer: PeerId, owner: &Owner) -> Record {
    let value = OwnerRecord {
        owner: peer,
        epoch: owner.epoch,
        newest: owner.newest.clone(),
        lease_ms: super::millis(owner.lease),
    };
    Record::new(owner_key(peer), &value)
}

impl Worker {
    /// Records what was accepted, before it is promised.
    pub(super) fn record_award(
        &mut self,
        key: JobKey,
        from: PeerId,
        order: &AwardOrder,
        award: &Award,
        taken: &[Part],
        out: &mut Vec<Effect>,
    ) {
        // Of a repeated award the rest may be taken later: the record then names all of it.
        let mut parts: BTreeSet<Part> = taken.iter().copied().collect();
        if let Some(job) = self.jobs.get(&key) {
            let earlier = job.executions.iter().filter(|(_, one)| one.award == order.id);
            parts.extend(earlier.map(|(part, _)| *part));
        }
        let key = RecordKey { job: key.0, version: key.1, kind: Kind::Accepted, number: order.id };
        let value = AcceptedRecord { owner: from, spans: spans(parts), order: award.order.clone() };
        out.push(Effect::Persist(Record::new(key, &value)));
    }

    /// A worker from its records: nothing of what was accepted before runs any more, and owners are told.
    ///
    /// The shell has ended everything that ran before it calls this.
    pub fn restore(
        settings: Settings,
        identity: Identity,
        records: impl IntoIterator<Item = Record>,
        now: Time,
        out: &mut Vec<Effect>,
    ) -> Result<Self, RestoreError> {
        let mut worker = Worker::empty(settings, identity);
        let mut accepted = Vec::new();
        let mut started: BTreeMap<JobKey, Vec<Span>> = BTreeMap::new();
        for record in records {
            let key = (record.key.job, record.key.version);
            worker.next_number = worker.next_number.max(record.key.number);
            match record.key.kind {
                Kind::Accepted => accepted.push((key, record.key.number, record.read::<AcceptedRecord>()?)),
                Kind::Started => drop(started.insert(key, record.read()?)),
                Kind::Offered => worker.restore_offer(record.key, record.read()?)?,
                Kind::Kept => worker.restore_kept(record.key, record.read()?)?,
                Kind::OwnerEpoch => worker.restore_owner(record.read()?),
                _ => {}
            }
        }
        for (key, number, award) in accepted {
            worker.restore_award(key, number, &award, started.get(&key).map_or(&[], Vec::as_slice));
        }
        worker.come_back(now, out);
        Ok(worker)
    }

    fn empty(settings: Settings, identity: Identity) -> Self {
        let mut rng = Rng::new("worker", identity.seed);
        Worker {
            settings,
            start: rng.draw(),
            rng,
            identity,
            counters: super::Counters::default(),
            leaving: false,
            peers: BTreeSet::new(),
            market: super::market::Market::default(),
            holds: Vec::new(),
            owners: BTreeMap::new(),
            jobs: BTreeMap::new(),
            fences: BTreeMap::new(),
            queue: BTreeSet::new(),
            used: Resources::ZERO,
            running: 0,
            offers: BTreeMap::new(),
            carried: 0,
            kept: BTreeMap::new(),
            kept_bytes: 0,
            timers: Timers::default(),
            next_number: 0,
            ended: BTreeSet::new(),
            marked: BTreeSet::new(),
            reports: BTreeSet::new(),
            freed: false,
        }
    }

    fn restore_offer(&mut self, key: RecordKey, record: OfferRecord) -> Result<(), RestoreError> {
        let group = read_group(key, &record)?;
        let job_key = (key.job, key.version);
        let job = self.jobs.entry(job_key).or_insert_with(|| Job::new(record.owner, None));
        let mut left = BTreeMap::new();
        for receipt in &group.receipts {
            let part = part_of(receipt);
            let award = record.awards.iter().find(|(first, attempt, _)| (*first, *attempt) == part);
            if let Some((_, _, award)) = award {
                left.insert(part, waiting(receipt, *award));
                job.offered.insert(part, key.number);
            }
        }
        let OfferRecord { owner, group, until, keep, blocks, .. } = record;
        self.keep_offer(key.number, Offer { owner, job: job_key, group, left, until, keep, blocks });
        self.owners.entry(owner).or_default();
        Ok(())
    }

    fn restore_kept(&mut self, key: RecordKey, record: OfferRecord) -> Result<(), RestoreError> {
        let group = read_group(key, &record)?;
        let results: Vec<_> = group
            .receipts
            .iter()
            .filter(|one| record.awards.iter().any(|(first, attempt, _)| (*first, *attempt) == part_of(one)))
            .filter_map(|one| one.result.as_ref().map(|result| (part_of(one), result.cid, result.size)))
            .collect();
        self.keep_results(key.number, Kept { job: (key.job, key.version), results, until: record.until });
        Ok(())
    }

    fn restore_owner(&mut self, record: OwnerRecord) {
        let owner = self.owners.entry(record.owner).or_default();
        owner.epoch = record.epoch;
        owner.newest = record.newest;
        owner.lease = honoured(record.lease_ms);
    }

    /// What was accepted and has no receipt was lost if it had started, else it never will.
    fn restore_award(&mut self, key: JobKey, number: u64, record: &AcceptedRecord, started: &[Span]) {
        let job = self.jobs.entry(key).or_insert_with(|| Job::new(record.owner, None));
        self.owners.entry(record.owner).or_default();
        let mut left = 0u32;
        for span in &record.spans {
            for partition in span.partitions() {
                let part = (partition, span.attempt);
                left += 1;
                if job.offered.contains_key(&part) {
                    continue;
                }
                let ran = |span: &Span| span.attempt == part.1 && span.partitions().contains(&partition);
                if started.iter().any(ran) {
                    job.lost.insert(part, number);
                } else {
                    job.unstarted.insert(part, number);
                }
            }
        }
        job.awards.insert(number, left);
    }

    /// Tells or looks for every owner that must hear something.
    fn come_back(&mut self, now: Time, out: &mut Vec<Effect>) {
        let owners: BTreeSet<PeerId> = self.jobs.values().map(|job| job.owner).collect();
        for owner in owners {
            if let Some(state) = self.owners.get_mut(&owner) {
                state.leased_from = now;
            }
            if owner == self.identity.me {
                self.tell_all(now, owner, out);
            } else {
                self.dial(now, owner, out);
                self.watch(owner, out);
            }
        }
        self.expire_offers(now, out);
    }
}

fn read_group(key: RecordKey, record: &OfferRecord) -> Result<ReceiptGroup, RestoreError> {
    record.group.read().map_err(|source| RestoreError::Damaged { key, source })
}
