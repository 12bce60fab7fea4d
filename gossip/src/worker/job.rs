//! What the worker has of one job version.

use std::collections::{BTreeMap, BTreeSet};

use ::job::{Cid, PeerId, Time};

use super::execution::{Execution, Stage};
use super::{Part, SpecRef, Submitter};
use crate::message::{Block, Facts, Phase, Receipt};
use crate::range::{Span, spans};

/// How much a new run time counts in the running mean: one part in four.
const SPAN_WEIGHT: u64 = 4;

/// The number of no offer.
pub(super) const UNSEALED: u64 = 0;

/// A job version with executions here.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) owner: PeerId,
    /// What its awards said; nothing after a restart, when only what was lost is left of it.
    pub(super) terms: Option<Terms>,
    pub(super) executions: BTreeMap<Part, Execution>,
    /// Awards, and how many of their executions the owner has not dealt with.
    pub(super) awards: BTreeMap<u64, u32>,
    /// Ended in this batch of inputs, to be sealed together.
    pub(super) pending: Vec<Pending>,
    /// Which offer an ended execution's receipt is in; [`UNSEALED`] until the batch ends.
    pub(super) offered: BTreeMap<Part, u64>,
    /// Ended without a receipt, and the award each is of.
    pub(super) lost: BTreeMap<Part, u64>,
    /// Never started and never will be, and the award each is of.
    pub(super) unstarted: BTreeMap<Part, u64>,
    /// When what is left of it is forgotten although its owner has not heard, wall clock; set while nothing else is.
    pub(super) until: Option<u64>,
    /// Executions that wait for capacity.
    pub(super) queued: u32,
    /// Executions that run, by when they started.
    pub(super) starts: BTreeSet<(Time, Part)>,
    /// Mean run time, once one ended.
    pub(super) span_ms: Option<u64>,
}

/// What the first award of a job version told.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) spec: SpecRef,
    pub(super) facts: Facts,
    pub(super) count: u32,
    /// When the whole job must have ended.
    pub(super) ends: Option<Time>,
    pub(super) keep: bool,
    pub(super) submitter: Submitter,
    pub(super) hints: Vec<PeerId>,
}

/// An execution that ended, until the batch ends.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) receipt: Receipt,
    pub(super) award: u64,
    pub(super) blocks: Vec<Block>,
    pub(super) stored: bool,
    pub(super) engine: String,
    pub(super) inputs: Vec<Cid>,
}

impl Job {
    pub(super) fn new(owner: PeerId, terms: Option<Terms>) -> Self {
        Job {
            owner,
            terms,
            executions: BTreeMap::new(),
            awards: BTreeMap::new(),
            pending: Vec::new(),
            offered: BTreeMap::new(),
            lost: BTreeMap::new(),
            unstarted: BTreeMap::new(),
            until: None,
            queued: 0,
            starts: BTreeSet::new(),
            span_ms: None,
        }
    }

    /// Nothing is left that its owner would have to hear.
    pub(super) fn is_empty(&self) -> bool {
        self.executions.is_empty()
            && self.pending.is_empty()
            && self.offered.is_empty()
            && self.lost.is_empty()
            && self.unstarted.is_empty()
    }

    /// Whether it has this execution, or its receipt.
    pub(super) fn knows(&self, part: Part) -> bool {
        self.executions.contains_key(&part) || self.offered.contains_key(&part)
    }

    pub(super) fn never(&self) -> bool {
        self.terms.as_ref().is_some_and(|terms| terms.facts.never)
    }

    /// Executions that wait, and that run.
    pub(super) fn busy(&self) -> (u32, u32) {
        (self.queued, u32::try_from(self.starts.len()).unwrap_or(u32::MAX))
    }

    pub(super) fn oldest_start(&self) -> Option<Time> {
        self.starts.first().map(|(at, _)| *at)
    }

    pub(super) fn note_span(&mut self, ran_ms: u64) {
        let mean = self.span_ms.unwrap_or(ran_ms);
        self.span_ms = Some((mean * (SPAN_WEIGHT - 1)).saturating_add(ran_ms) / SPAN_WEIGHT);
    }

    pub(super) fn phases(&self) -> impl Iterator<Item = (Part, Phase)> + '_ {
        let ended = self.offered.keys().map(|part| (*part, Phase::Ended));
        self.executions.iter().map(|(part, execution)| (*part, execution.phase())).chain(ended)
    }

    /// Accepted and not ended, or ended with a receipt that the owner has not dealt with.
    pub(super) fn live_spans(&self) -> Vec<Span> {
        let mut parts: BTreeSet<Part> = self.executions.keys().copied().collect();
        parts.extend(self.offered.keys());
        spans(parts)
    }

    /// Started, and not dealt with by the owner: what must not be called unstarted after a crash.
    pub(super) fn started_spans(&self) -> Vec<Span> {
        let started = self.executions.iter().filter(|(_, one)| !matches!(one.stage, Stage::Queued { .. }));
        let mut parts: BTreeSet<Part> = started.map(|(part, _)| *part).collect();
        parts.extend(self.offered.keys());
        parts.extend(self.lost.keys());
        spans(parts)
    }
}
