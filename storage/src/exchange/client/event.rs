//! What goes into the client and what comes out of it.

use std::time::Duration;

use bytes::Bytes;
use cid::Cid;

#[cfg(doc)]
use super::Client;
use super::Digest;
use crate::exchange::message::{Entry, Presence};
use crate::exchange::network::{Agent, Offence, Peer};

/// A session, by a number that its opener chose and never uses again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// A block whose bytes were hashed, so that its digest is known to be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// Hash of the bytes.
    pub digest: Digest,
    /// The bytes.
    pub data: Bytes,
}

/// A block that a session asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub cid: Cid,
    /// Its size, or a guess.
    pub size_bytes: u64,
}

/// What the machine is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// A peer is connected, or its program became known.
    Connected {
        /// Which.
        peer: Peer,
        /// What it runs.
        agent: Agent,
    },
    /// The last connection to a peer is gone.
    Disconnected(Peer),
    /// A session begins.
    Opened {
        /// Its number.
        session: SessionId,
        /// Peers that should have its blocks.
        hints: Vec<Peer>,
        /// How long it may stand still before it fails.
        give_up_after: Duration,
    },
    /// More peers that should have a session's blocks.
    Hinted {
        /// The session.
        session: SessionId,
        /// The peers.
        peers: Vec<Peer>,
    },
    /// A session wants blocks, in this order, after those it wanted before.
    Wanted {
        /// The session.
        session: SessionId,
        /// The blocks.
        wants: Vec<Wanted>,
        /// The session knows of no others to ask for now.
        last: bool,
    },
    /// A session no longer wants a block.
    Unwanted {
        /// The session.
        session: SessionId,
        /// The block.
        cid: Cid,
    },
    /// A session is over: what it still wants is cancelled.
    Closed(SessionId),
    /// Routing found a peer that should have a session's blocks.
    Provider {
        /// The session.
        session: SessionId,
        /// The peer.
        peer: Peer,
    },
    /// A message arrived.
    Received {
        /// From whom.
        peer: Peer,
        /// Its blocks, hashed.
        blocks: Vec<Arrived>,
        /// Its answers.
        presences: Vec<Presence>,
    },
    /// A part of a message arrived.
    Heard(Peer),
    /// The stream to a peer broke: what was asked last may not have reached it.
    Lost(Peer),
    /// No stream to a peer could be opened.
    Unreachable(Peer),
    /// Time has come ([`Client::next_wakeup`]).
    Tick,
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send wantlist entries.
    Send {
        /// To whom.
        peer: Peer,
        /// Wants and cancels, in order.
        entries: Vec<Entry>,
    },
    /// Hand a wanted block to its session.
    Deliver {
        /// The session.
        session: SessionId,
        /// The block.
        block: Arrived,
    },
    /// Ask routing who holds a block, until the session closes.
    FindProviders {
        /// The session.
        session: SessionId,
        /// The block.
        cid: Cid,
    },
    /// Tell a session that it stands still: nobody offers this block. The session stays until it is closed.
    Fail {
        /// The session.
        session: SessionId,
        /// The block.
        cid: Cid,
        /// How many peers were asked for it.
        asked: usize,
    },
    /// Take note that a peer misbehaved.
    Penalise {
        /// Who.
        peer: Peer,
        /// What it did.
        offence: Offence,
    },
}

/// What happened, in numbers that only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientCounters {
    /// Blocks that somebody waited for.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that had been asked for but came too late.
    pub duplicates: u64,
    /// Blocks that nobody had asked for, damaged ones among them.
    pub unasked: u64,
    /// Wants that a peer answered with no.
    pub dont_haves: u64,
    /// Asks that no answer came to in time.
    pub timeouts: u64,
}
