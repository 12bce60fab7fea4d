//! The states of jobs and executions, with Bacalhau's words and numbers.
//!
//! ```
//! use job::state::{ExecutionState, JobState};
//! assert!(JobState::Running.can_become(JobState::Completed));
//! assert!(!JobState::Completed.can_become(JobState::Failed));
//! assert_eq!(ExecutionState::Completed.number(), 9);
//! ```

use serde::{Deserialize, Serialize};

use crate::words::words;

/// Where a job version stands. A new version of the job starts again at [`JobState::Pending`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum JobState {
    /// Accepted, and no execution awarded yet.
    #[default]
    Pending,
    /// Waits, with a reason, for a worker that can and may run it.
    Queued,
    /// At least one execution was awarded.
    Running,
    /// Every partition is committed.
    Completed,
    /// It cannot complete any more.
    Failed,
    /// Its user stopped it.
    Stopped,
}

words!(JobState {
    Pending = "Pending",
    Queued = "Queued",
    Running = "Running",
    Completed = "Completed",
    Failed = "Failed",
    Stopped = "Stopped",
});

impl JobState {
    /// Whether the job version has ended.
    pub fn is_terminal(self) -> bool {
        matches!(self, JobState::Completed | JobState::Failed | JobState::Stopped)
    }

    /// Whether a job version may go from this state to another one. Staying is no move.
    pub fn can_become(self, next: JobState) -> bool {
        use JobState::*;
        match self {
            Pending => next != Pending,
            // Back to Queued when the only worker was lost and nobody else can run it.
            Queued | Running => next != self && next != Pending,
            Completed | Failed | Stopped => false,
        }
    }
}

/// What the owner knows of one execution. The numbers are Bacalhau's, in its API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum ExecutionState {
    /// Never seen in a record.
    #[default]
    Undefined = 0,
    /// The award is journalled and not yet sent.
    New = 1,
    /// Workers were asked for bids.
    AskForBid = 2,
    /// The worker bid.
    AskForBidAccepted = 3,
    /// The worker declined to bid.
    AskForBidRejected = 4,
    /// The worker accepted the award.
    BidAccepted = 5,
    /// The guest runs.
    Running = 6,
    /// The guest has ended and its result is being published.
    Publishing = 7,
    /// The award was declined or taken back before it started.
    BidRejected = 8,
    /// Its receipt was committed.
    Completed = 9,
    /// It failed, and says why.
    Failed = 10,
    /// It was stopped, or another attempt of its partition was committed.
    Cancelled = 11,
}

words!(ExecutionState {
    Undefined = "Undefined",
    New = "New",
    AskForBid = "AskForBid",
    AskForBidAccepted = "AskForBidAccepted",
    AskForBidRejected = "AskForBidRejected",
    BidAccepted = "BidAccepted",
    Running = "Running",
    Publishing = "Publishing",
    BidRejected = "BidRejected",
    Completed = "Completed",
    Failed = "Failed",
    Cancelled = "Cancelled",
});

impl ExecutionState {
    /// Bacalhau's number for this state.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The state that has this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Whether the execution has ended.
    pub fn is_terminal(self) -> bool {
        use ExecutionState::*;
        matches!(self, AskForBidRejected | BidRejected | Completed | Failed | Cancelled)
    }

    /// Whether an execution may go from this state to another one. Steps may be skipped (a worker
    /// that was away reports only the end), never taken back, and an end is final.
    pub fn can_become(self, next: ExecutionState) -> bool {
        use ExecutionState::*;
        if self.is_terminal() || next <= self {
            return false;
        }
        match next {
            AskForBidRejected => self <= AskForBid,
            // What has started can no longer be declined.
            BidRejected => self < Running,
            _ => true,
        }
    }
}

/// What the owner wants of an execution. The numbers are Bacalhau's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum DesiredState {
    /// Wait for the award.
    #[default]
    Pending = 0,
    /// Run.
    Running = 1,
    /// Be over.
    Stopped = 2,
}

words!(DesiredState { Pending = "Pending", Running = "Running", Stopped = "Stopped" });

impl DesiredState {
    /// Bacalhau's number for this state.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The state that has this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Whether nothing more is wanted of the execution.
    pub fn is_terminal(self) -> bool {
        self == DesiredState::Stopped
    }

    /// Whether the owner may want this next: wishes only go forward.
    pub fn can_become(self, next: DesiredState) -> bool {
        next > self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_words_are_those_of_bacalhau() {
        for (number, word) in ExecutionState::WORDS.iter().enumerate() {
            let number = u8::try_from(number).unwrap();
            let state = ExecutionState::from_number(number).unwrap();
            assert_eq!((state.number(), state.as_str()), (number, *word));
            assert_eq!(ExecutionState::from_word(word), Some(state));
        }
        assert_eq!(ExecutionState::from_number(12), None);
        assert_eq!(ExecutionState::Running.number(), 6);
        assert_eq!(ExecutionState::Cancelled.number(), 11);
        assert_eq!(DesiredState::Stopped.number(), 2);
    }

    #[test]
    fn nothing_leaves_a_terminal_state() {
        for &from in JobState::ALL {
            for &to in JobState::ALL {
                assert!(!(from.is_terminal() && from.can_become(to)), "{from} to {to}");
                assert!(!from.can_become(from));
            }
        }
        for &from in ExecutionState::ALL {
            for &to in ExecutionState::ALL {
                assert!(!(from.is_terminal() && from.can_become(to)), "{from} to {to}");
                assert!(!(from.can_become(to) && to.can_become(from)), "{from} and {to}");
            }
        }
    }

    #[test]
    fn what_has_started_can_end_but_not_be_declined() {
        assert!(ExecutionState::BidAccepted.can_become(ExecutionState::BidRejected));
        assert!(!ExecutionState::Running.can_become(ExecutionState::BidRejected));
        assert!(ExecutionState::Running.can_become(ExecutionState::Cancelled));
        assert!(ExecutionState::New.can_become(ExecutionState::Completed));
    }

    #[test]
    fn a_running_job_may_wait_again() {
        assert!(JobState::Running.can_become(JobState::Queued));
        assert!(!JobState::Running.can_become(JobState::Pending));
    }
}
