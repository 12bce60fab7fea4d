//! Bugs that can be planted to prove that the simulator finds such bugs. Not in released builds.

/// A plausible mistake in one of the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Bug {
    /// Worker: an award or stop with an old epoch or fence is obeyed.
    NoFencing,
    /// Worker: the lease runs from the moment the award arrives, not from when the worker asked; no award is too old.
    LeaseFromReceipt,
    /// Owner: an award is sent before, and without, being recorded.
    AwardNotRecorded,
    /// Owner: a second valid receipt for a partition is committed too.
    DoubleCommit,
    /// Owner: a stop for a worker that is away is forgotten.
    ForgetStop,
    /// Worker: executions are started while capacity for them is missing.
    Overcommit,
    /// Owner: a `Retry: never` partition is awarded again after its worker fell silent.
    NeverRetried,
    /// Owner: bids from outside the lottery are taken.
    ForeignBids,
    /// Owner: the epoch is used without being recorded, and taken from memory alone.
    EpochNotRecorded,
    /// Worker: receipts are only in memory.
    ReceiptsNotRecorded,
    /// Owner: a partition is committed before its result is held.
    CommitBeforeHeld,
    /// Owner: after a restart it awards again without asking the workers.
    NoReconcile,
    /// Worker: the timeout of an execution is forgotten.
    NoTimeout,
    /// Worker: a `Retry: never` execution runs on after its lease.
    NeverOutlivesLease,
    /// Owner: peers that did not answer announcements are not asked.
    SilentNotAsked,
    /// Owner: a receipt counts whoever sent it.
    BelieveAnyone,
    /// Worker: awards are obeyed whoever gives them.
    ObeyAnyone,
}

impl Bug {
    /// Every bug.
    pub const ALL: [Bug; 17] = [
        Bug::NoFencing,
        Bug::LeaseFromReceipt,
        Bug::AwardNotRecorded,
        Bug::DoubleCommit,
        Bug::ForgetStop,
        Bug::Overcommit,
        Bug::NeverRetried,
        Bug::ForeignBids,
        Bug::EpochNotRecorded,
        Bug::ReceiptsNotRecorded,
        Bug::CommitBeforeHeld,
        Bug::NoReconcile,
        Bug::NoTimeout,
        Bug::NeverOutlivesLease,
        Bug::SilentNotAsked,
        Bug::BelieveAnyone,
        Bug::ObeyAnyone,
    ];
}
