//! Requests: one question and one answer on a stream of their own.
//!
//! The question is its name (a length byte, then ASCII) and a body; the answer is a status byte and a body. A body is four
//! big-endian bytes of length and its bytes.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::PeerId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};
use tracing::debug;

use crate::{
    Event, Host, Limits, Reply, RequestError, Stream,
    event::Sink,
    names::check_short,
    shared::{Shared, lock},
};

/// The largest question and the largest answer. Larger things are content.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;
/// How long a peer may take to send its question or to take its answer.
const TRANSFER: Duration = Duration::from_secs(10);
/// How long the owner of the host may take for an answer.
const ANSWER: Duration = Duration::from_secs(120);
/// Grown step by step while a body arrives, so that a length alone costs no memory.
const STEP: usize = 64 << 10;

const ANSWERED: u8 = 0;
const REFUSED: u8 = 1;
const BUSY: u8 = 2;

/// Asks one peer.
pub(crate) async fn ask(
    host: &Host,
    peer: PeerId,
    name: &str,
    question: Bytes,
) -> Result<Bytes, RequestError> {
    check_short("request", name)?;
    let size = question.len();
    if size > MAX_REQUEST_BYTES {
        return Err(RequestError::TooLarge { what: "request", size, max: MAX_REQUEST_BYTES });
    }
    let mut stream = host.open_stream(peer, "ask/1").await?;
    // A peer that is too busy answers without reading: its status counts more than our failed write.
    let written = write_question(&mut stream, name, &question).await;
    let mut status = [0; 1];
    match (stream.read_exact(&mut status).await, written) {
        (Ok(()), _) => {}
        (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(RequestError::Stream(error)),
    }
    match status {
        [ANSWERED] => read_body(&mut stream).await.map_err(|error| match error {
            BodyError::TooLarge(size) => {
                RequestError::TooLarge { what: "answer", size, max: MAX_REQUEST_BYTES }
            }
            BodyError::Stream(error) => RequestError::Stream(error),
        }),
        [BUSY] => Err(RequestError::Busy),
        _ => Err(RequestError::Refused),
    }
}

async fn write_question(stream: &mut Stream, name: &str, question: &[u8]) -> io::Result<()> {
    // Names have at most 64 bytes.
    let mut head = vec![name.len() as u8];
    head.extend_from_slice(name.as_bytes());
    write_body(stream, head, question).await
}

async fn write_body(stream: &mut Stream, mut head: Vec<u8>, body: &[u8]) -> io::Result<()> {
    // The length fits: callers have compared it with MAX_REQUEST_BYTES.
    head.extend_from_slice(&(body.len() as u32).to_be_bytes());
    if body.len() <= STEP {
        head.extend_from_slice(body);
        stream.write_all(&head).await?;
    } else {
        stream.write_all(&head).await?;
        stream.write_all(body).await?;
    }
    stream.flush().await
}

enum BodyError {
    TooLarge(usize),
    Stream(io::Error),
}

async fn read_body(stream: &mut Stream) -> Result<Bytes, BodyError> {
    let mut size = [0; 4];
    stream.read_exact(&mut size).await.map_err(BodyError::Stream)?;
    let size = u32::from_be_bytes(size) as usize;
    if size > MAX_REQUEST_BYTES {
        return Err(BodyError::TooLarge(size));
    }
    let mut body = Vec::new();
    while body.len() < size {
        let start = body.len();
        body.resize(size.min(start + STEP), 0);
        stream.read_exact(&mut body[start..]).await.map_err(BodyError::Stream)?;
    }
    Ok(body.into())
}

/// Answers the requests of all peers, a bounded number at a time.
#[derive(Debug)]
pub(crate) struct Server {
    places: Arc<Semaphore>,
    per_peer: usize,
    peers: Arc<Mutex<HashMap<PeerId, usize>>>,
    events: Sink,
    shared: Weak<Shared>,
}

impl Server {
    pub(crate) fn new(limits: &Limits, events: Sink, shared: Weak<Shared>) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.requests)),
            per_peer: limits.requests_per_peer,
            peers: Arc::default(),
            events,
            shared,
        }
    }

    /// Serves one stream in a task of its own.
    pub(crate) fn serve(&self, peer: PeerId, stream: Stream) {
        let Some(shared) = self.shared.upgrade() else { return };
        match self.place(peer) {
            Some(place) => {
                tokio::spawn(serve(peer, stream, self.events.clone(), shared, place));
            }
            None => {
                shared.metrics.requests_busy.add(1);
                tokio::spawn(say(stream, BUSY));
            }
        }
    }

    fn place(&self, peer: PeerId) -> Option<Place> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let mut peers = lock(&self.peers);
        let in_hand = peers.entry(peer).or_default();
        if *in_hand >= self.per_peer {
            return None;
        }
        *in_hand += 1;
        Some(Place { peer, peers: Arc::clone(&self.peers), _permit: permit })
    }
}

/// A place among the requests in hand, given back when dropped.
struct Place {
    peer: PeerId,
    peers: Arc<Mutex<HashMap<PeerId, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = lock(&self.peers);
        if let Some(in_hand) = peers.get_mut(&self.peer) {
            *in_hand -= 1;
            if *in_hand == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

async fn serve(peer: PeerId, mut stream: Stream, events: Sink, shared: Arc<Shared>, _place: Place) {
    let Ok(Some((name, bytes))) = timeout(TRANSFER, read_question(&mut stream)).await else {
        debug!(%peer, "a request could not be read");
        shared.metrics.streams_refused.add(1);
        return;
    };
    let (answer, answered) = oneshot::channel();
    let size = bytes.len();
    events.put_inbound(Event::Request { peer, name, bytes, reply: Reply { answer } }, size).await;
    let mut nothing = [0; 1];
    let answer = tokio::select! {
        answer = timeout(ANSWER, answered) => answer.ok().and_then(Result::ok),
        // The asker writes nothing more: it is gone, or breaks the rules.
        _ = stream.read(&mut nothing) => return,
    };
    match answer.filter(|answer| answer.len() <= MAX_REQUEST_BYTES) {
        Some(answer) => {
            shared.metrics.requests_answered.add(1);
            // The asker sees for itself when the answer does not get through.
            let _ = timeout(TRANSFER, write_answer(stream, &answer)).await;
        }
        None => {
            shared.metrics.requests_refused.add(1);
            say(stream, REFUSED).await;
        }
    }
}

async fn read_question(stream: &mut Stream) -> Option<(String, Bytes)> {
    let mut size = [0; 1];
    stream.read_exact(&mut size).await.ok()?;
    let mut name = vec![0; usize::from(size[0])];
    stream.read_exact(&mut name).await.ok()?;
    let name = String::from_utf8(name).ok()?;
    check_short("request", &name).ok()?;
    Some((name, read_body(stream).await.ok()?))
}

async fn write_answer(mut stream: Stream, answer: &[u8]) -> io::Result<()> {
    write_body(&mut stream, vec![ANSWERED], answer).await?;
    stream.close().await
}

/// Answers with a status alone.
async fn say(mut stream: Stream, status: u8) {
    let said = async {
        stream.write_all(&[status]).await?;
        stream.close().await
    };
    // The asker sees for itself when it does not get through.
    let _ = timeout(TRANSFER, said).await;
}
