//! Counters of one host.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows, unless said otherwise.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, by: usize) {
        self.0.fetch_add(by as u64, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, to: usize) {
        self.0.store(to as u64, Ordering::Relaxed);
    }
}

/// What a host counts since its start.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Metrics {
    /// Connections open now (goes up and down).
    pub connections: Counter,
    /// Connections that were established.
    pub connections_opened: Counter,
    /// Connections that were closed.
    pub connections_closed: Counter,
    /// Connections that a limit refused, inbound or outbound.
    pub connections_refused: Counter,
    /// Connections closed because nothing came over them any more.
    pub connections_given_up: Counter,
    /// Connections closed to make room for newcomers.
    pub connections_trimmed: Counter,
    /// Dials that failed.
    pub dials_failed: Counter,
    /// Frames written to a stream.
    pub frames_sent: Counter,
    /// Bytes of those frames.
    pub frame_bytes_sent: Counter,
    /// Times a batch of frames was written and flushed.
    pub frame_flushes: Counter,
    /// Frames received.
    pub frames_received: Counter,
    /// Bytes of those frames.
    pub frame_bytes_received: Counter,
    /// Frames refused because the peer's queue was full.
    pub frames_refused: Counter,
    /// Frames dropped unsent with their connection, or because the peer could not be reached.
    pub frames_dropped: Counter,
    /// Peers cut for breaking the framing or another rule of a stream.
    pub peers_cut: Counter,
    /// Peers blocked for repeated offences.
    pub peers_blocked: Counter,
    /// Streams opened by this host.
    pub streams_opened: Counter,
    /// Streams accepted from peers.
    pub streams_accepted: Counter,
    /// Streams of peers that were reset: nobody accepts the protocol any more, or a rule was broken.
    pub streams_refused: Counter,
    /// Requests answered.
    pub requests_answered: Counter,
    /// Requests refused by the owner of the host.
    pub requests_refused: Counter,
    /// Requests turned away because too many were in hand.
    pub requests_busy: Counter,
    /// Gossip messages received and handed to the owner.
    pub gossip_received: Counter,
    /// Gossip messages published.
    pub gossip_published: Counter,
    /// Messages not published: no peer takes the topic.
    pub gossip_no_peers: Counter,
    /// Messages not published: too large.
    pub gossip_too_large: Counter,
    /// Messages not published: queues of all peers full.
    pub gossip_full: Counter,
    /// Messages not published: the same bytes again.
    pub gossip_duplicate: Counter,
    /// Messages accepted by the owner and passed on.
    pub gossip_accepted: Counter,
    /// Messages rejected by the owner.
    pub gossip_rejected: Counter,
    /// Messages ignored by the owner.
    pub gossip_ignored: Counter,
    /// Messages dropped because the owner reads too slowly.
    pub gossip_overflow: Counter,
    /// Messages that did not reach slow peers.
    pub gossip_slow_peer: Counter,
    /// Verdicts that came after the message was forgotten.
    pub gossip_late_verdicts: Counter,
    /// Notes (verdicts, watches, addresses) dropped because too many waited.
    pub notes_dropped: Counter,
    /// Provider records kept for others.
    pub dht_records_stored: Counter,
    /// Provider records of others refused.
    pub dht_records_refused: Counter,
    /// Watched peers that fell silent.
    pub silences: Counter,
}
