//! A job's output, streamed while the job runs.

use std::collections::{BTreeMap, VecDeque};

use crate::client::frames::{Channel, Decoder, Frame, Lines, MEDIA_TYPE};
use crate::client::{ANSWER_DEADLINE, Client, Stream};
use crate::content::encode;
use crate::failure::Failure;
use crate::output::{write_bytes, write_stderr};

/// Bytes for one of the CLI's own streams.
#[derive(Debug)]
pub struct Chunk {
    channel: Channel,
    bytes: Vec<u8>,
}

impl Chunk {
    /// Writes them.
    pub fn write(&self) -> Result<(), Failure> {
        match self.channel {
            Channel::Out => write_bytes(&self.bytes),
            Channel::Err => {
                write_stderr(&self.bytes);
                Ok(())
            }
        }
    }
}

/// The output of a job, from its beginning.
#[derive(Debug)]
pub struct OutputStream {
    path: String,
    stream: Option<Stream>,
    decoder: Decoder,
    lines: Lines,
    ready: VecDeque<Chunk>,
    state: State,
    /// Bytes that were taken of each partition's streams: at most two entries for each partition.
    taken: Counts,
    /// Bytes of a stream that starts over and that were taken before.
    skip: Counts,
    /// Told once all that came before it was taken.
    failed: Option<Failure>,
}

type Counts = BTreeMap<(Channel, u32), u64>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// More may come.
    Open,
    /// The connection is lost; it starts over when there is another.
    Lost,
    /// It could not be followed from its beginning; after the job's end it can be read as it was stored.
    Postponed,
    /// Nothing will come.
    Closed,
}

impl OutputStream {
    /// A running job's stream, opened when it is first read; `wanted`: whether it is read at all.
    pub fn following(id: &str, wanted: bool, partitions: i64) -> Self {
        let path = format!("/orchestrator/jobs/{}/logs?follow=true", encode(id));
        let state = if wanted { State::Open } else { State::Closed };
        OutputStream { state, ..Self::at(path, partitions != 1) }
    }

    /// The output at a route of the API; `whole`: several partitions write at once.
    pub fn at(path: String, whole: bool) -> Self {
        OutputStream {
            path,
            stream: None,
            decoder: Decoder::default(),
            lines: Lines::new(whole),
            ready: VecDeque::new(),
            state: State::Open,
            taken: Counts::new(),
            skip: Counts::new(),
            failed: None,
        }
    }

    /// Whether more may come.
    pub fn is_open(&self) -> bool {
        self.state == State::Open || !self.ready.is_empty()
    }

    /// The node answers: a stream that was lost starts over, and goes on where it was.
    pub fn node_answers(&mut self) {
        if self.state == State::Lost {
            self.state = State::Open;
        }
    }

    /// The job has ended: output that could not be followed is there now.
    pub fn job_ended(&mut self) {
        if matches!(self.state, State::Lost | State::Postponed) {
            self.state = State::Open;
        }
    }

    /// After a failure: whether it can still be read later, and needs no word to the user.
    pub fn recovers_from(&mut self, failure: &Failure) -> bool {
        self.state = if failure.is_lost_connection() {
            State::Lost
        } else if self.taken.is_empty() {
            State::Postponed
        } else {
            return false;
        };
        self.stream = None;
        self.decoder = Decoder::default();
        self.skip = self.taken.clone();
        true
    }

    /// The next bytes; `None` once it is closed. Dropping the future loses nothing. An error closes the stream.
    pub async fn next(&mut self, client: &Client) -> Result<Option<Chunk>, Failure> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            if let Some(failure) = self.failed.take() {
                self.state = State::Closed;
                return Err(failure);
            }
            if self.state != State::Open {
                return Ok(None);
            }
            if let Err(failure) = self.receive(client).await {
                self.state = State::Closed;
                return Err(failure);
            }
        }
    }

    async fn receive(&mut self, client: &Client) -> Result<(), Failure> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(client.stream(&self.path, MEDIA_TYPE, Some(ANSWER_DEADLINE)).await?),
        };
        let Some(bytes) = stream.next().await? else {
            self.state = State::Closed;
            self.release();
            return self.decoder.finish();
        };
        self.decoder.push(&bytes);
        loop {
            let frame = match self.decoder.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
                Err(failure) => {
                    self.failed = Some(failure);
                    self.release();
                    return Ok(());
                }
            };
            let channel = frame.channel;
            let frame = self.without_taken(frame);
            let bytes = self.lines.take(frame);
            if !bytes.is_empty() {
                self.ready.push_back(Chunk { channel, bytes });
            }
        }
    }

    /// No more comes: unfinished last lines are ready too.
    fn release(&mut self) {
        let rest = self.lines.finish();
        self.ready.extend(rest.into_iter().map(|(channel, bytes)| Chunk { channel, bytes }));
    }

    /// A frame without the bytes that were taken from an earlier stream, counted.
    fn without_taken(&mut self, mut frame: Frame) -> Frame {
        let key = (frame.channel, frame.partition);
        if let Some(left) = self.skip.get_mut(&key) {
            let count = usize::try_from(*left).unwrap_or(usize::MAX).min(frame.bytes.len());
            frame.bytes.drain(..count);
            *left -= count as u64;
        }
        *self.taken.entry(key).or_default() += frame.bytes.len() as u64;
        frame
    }
}
