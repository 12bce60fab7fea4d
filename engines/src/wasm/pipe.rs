//! A guest's standard output or error, on the runner's side.
//!
//! What is short stays here until the guest ends and travels with its result. What is long travels in
//! pieces, as far as the node has given credit; a guest whose output nobody takes in waits. What is beyond
//! the cap is counted and discarded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use super::serve::say;
use super::socket::Outbox;
use super::wire::{CHUNK_BYTES, CREDIT_BYTES, ToNode, cost};

/// How long short output of a running guest waits for more before it travels.
pub(super) const FLUSH_AFTER: Duration = Duration::from_millis(20);

/// One stream of one guest; clones are the same stream.
#[derive(Debug, Clone)]
pub(super) struct Pipe(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: u64,
    stream: u8,
    out: Outbox,
    waiting: Arc<Waiting>,
    state: Mutex<State>,
    credited: Notify,
}

#[derive(Debug)]
struct State {
    held: Vec<u8>,
    /// How much may still be kept.
    room: u64,
    discarded: u64,
    credit: u64,
}

/// Tells that some guest has output that waits to travel.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    any: AtomicBool,
    notify: Notify,
}

impl Waiting {
    fn mark(&self) {
        if !self.any.swap(true, Ordering::AcqRel) {
            self.notify.notify_one();
        }
    }

    /// Waits until there is some, and then for more to gather.
    pub async fn gathered(&self) {
        self.notify.notified().await;
        tokio::time::sleep(FLUSH_AFTER).await;
        self.any.store(false, Ordering::Release);
    }
}

impl Pipe {
    /// An empty stream that keeps at most `cap` bytes.
    pub fn new(id: u64, stream: u8, cap: u64, out: Outbox, waiting: Arc<Waiting>) -> Self {
        let state = State { held: Vec::new(), room: cap, discarded: 0, credit: CREDIT_BYTES };
        let state = Mutex::new(state);
        Pipe(Arc::new(Inner { id, stream, out, waiting, state, credited: Notify::new() }))
    }

    /// Takes in what the guest wrote.
    pub fn write(&self, bytes: &[u8]) {
        let mut state = self.0.state();
        let take = usize::try_from(state.room).unwrap_or(usize::MAX).min(bytes.len());
        state.room -= take as u64;
        state.discarded += (bytes.len() - take) as u64;
        state.held.extend_from_slice(&bytes[..take]);
        self.0.send(&mut state, CHUNK_BYTES);
        if !state.held.is_empty() {
            self.0.waiting.mark();
        }
    }

    /// The node took in so much more.
    pub fn credit(&self, bytes: u64) {
        let mut state = self.0.state();
        state.credit = state.credit.saturating_add(bytes).min(CREDIT_BYTES);
        self.0.send(&mut state, CHUNK_BYTES);
        drop(state);
        self.0.credited.notify_waiters();
    }

    /// Sends what is held, as far as there is credit.
    pub fn flush(&self) {
        let mut state = self.0.state();
        self.0.send(&mut state, 1);
        drop(state);
        self.0.credited.notify_waiters();
    }

    /// What is left when the guest has ended, and how much was discarded.
    pub fn finish(&self) -> (Bytes, u64) {
        let mut state = self.0.state();
        (std::mem::take(&mut state.held).into(), state.discarded)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Sends pieces while at least `least` bytes are held and there is credit. Credit bounds the queue that
    /// they go to.
    fn send(&self, state: &mut State, least: usize) {
        while state.held.len() >= least && state.credit >= cost(least) {
            let length = state.held.len().min(CHUNK_BYTES).min(state.credit as usize);
            let rest = state.held.split_off(length);
            let bytes = std::mem::replace(&mut state.held, rest).into();
            state.credit -= cost(length);
            say(&self.out, &ToNode::Output { id: self.id, stream: self.stream, bytes }, false);
        }
    }

    fn writable(&self) -> bool {
        let state = self.state();
        state.room == 0 || state.held.len() < CHUNK_BYTES
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Pipe {
    async fn ready(&mut self) {
        loop {
            let mut credited = std::pin::pin!(self.0.credited.notified());
            credited.as_mut().enable();
            if self.0.writable() {
                return;
            }
            credited.await;
        }
    }
}

impl OutputStream for Pipe {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        Pipe::write(self, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(if self.0.writable() { CHUNK_BYTES } else { 0 })
    }
}

impl IsTerminal for Pipe {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Pipe {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        // Only newer interfaces than preview 1 ask for this; none is linked.
        Box::new(tokio::io::sink())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::socket::{self, Link, Queue};

    fn pipe(cap: u64) -> (Pipe, Queue) {
        let (end, _) = socket::pair().unwrap();
        let (out, queue) = socket::outbox(&Arc::new(Link::new(end).unwrap()));
        (Pipe::new(1, 0, cap, out, Arc::default()), queue)
    }

    #[tokio::test]
    async fn short_output_waits_for_the_end() {
        let (pipe, sent) = pipe(100);
        pipe.write(b"hello");
        assert_eq!(sent.waiting(), 0);
        assert_eq!(pipe.finish(), (Bytes::from_static(b"hello"), 0));
    }

    #[tokio::test]
    async fn output_beyond_the_cap_is_counted_and_never_waits() {
        let (pipe, _sent) = pipe(3);
        pipe.write(b"hello");
        assert!(pipe.0.writable());
        assert_eq!(pipe.finish(), (Bytes::from_static(b"hel"), 2));
    }

    #[tokio::test]
    async fn without_credit_nothing_travels_and_the_guest_waits() {
        let (mut pipe, sent) = pipe(u64::MAX);
        let piece = vec![0; CHUNK_BYTES];
        let mut accepted = 0;
        while pipe.check_write().unwrap() > 0 {
            pipe.write(&piece);
            accepted += 1;
        }
        assert_eq!(accepted, CREDIT_BYTES as usize / CHUNK_BYTES + 1);
        assert_eq!(sent.waiting(), accepted - 1);
        pipe.credit(CHUNK_BYTES as u64);
        assert_eq!(sent.waiting(), accepted);
        assert_ne!(pipe.check_write().unwrap(), 0);
    }
}
