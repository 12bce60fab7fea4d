//! A job's output, streamed while the job runs.

use std::collections::VecDeque;

use crate::client::frames::{Channel, Decoder, Lines, MEDIA_TYPE};
use crate::client::{Client, Stream};
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
pub struct OutputStream<'a> {
    client: &'a Client,
    path: String,
    stream: Option<Stream>,
    decoder: Decoder,
    lines: Lines,
    ready: VecDeque<Chunk>,
    state: State,
    /// Nothing was given out yet.
    fresh: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// More may come.
    Open,
    /// It could not be followed from its beginning; after the job's end it can be read as it was stored.
    Postponed,
    /// Nothing will come.
    Closed,
}

impl<'a> OutputStream<'a> {
    /// A running job's stream, opened when it is first read; `wanted`: whether it is read at all.
    pub fn following(client: &'a Client, id: &str, wanted: bool, partitions: i64) -> Self {
        let path = format!("/orchestrator/jobs/{}/logs?follow=true", encode(id));
        let state = if wanted { State::Open } else { State::Closed };
        OutputStream { state, ..Self::at(client, path, partitions != 1) }
    }

    /// The output at a route of the API; `whole`: several partitions write at once.
    pub fn at(client: &'a Client, path: String, whole: bool) -> Self {
        OutputStream {
            client,
            path,
            stream: None,
            decoder: Decoder::default(),
            lines: Lines::new(whole),
            ready: VecDeque::new(),
            state: State::Open,
            fresh: true,
        }
    }

    /// Whether more may come.
    pub fn is_open(&self) -> bool {
        self.state == State::Open || !self.ready.is_empty()
    }

    /// The job has ended: output that could not be followed is there now.
    pub fn job_ended(&mut self) {
        self.state = match self.state {
            State::Postponed => State::Open,
            other => other,
        };
    }

    /// Gives up reading along until the job has ended, when nothing was given out yet. Whether that is so.
    pub fn postpone(&mut self) -> bool {
        if !self.fresh {
            return false;
        }
        self.stream = None;
        self.decoder = Decoder::default();
        self.state = State::Postponed;
        true
    }

    /// The next bytes; `None` once it is closed. Dropping the future loses nothing. An error closes the stream.
    pub async fn next(&mut self) -> Result<Option<Chunk>, Failure> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                self.fresh = false;
                return Ok(Some(chunk));
            }
            if self.state != State::Open {
                return Ok(None);
            }
            if let Err(failure) = self.receive().await {
                self.state = State::Closed;
                return Err(failure);
            }
        }
    }

    async fn receive(&mut self) -> Result<(), Failure> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(self.client.stream(&self.path, MEDIA_TYPE).await?),
        };
        let Some(bytes) = stream.next().await? else {
            self.state = State::Closed;
            let rest = self.lines.finish();
            self.ready.extend(rest.into_iter().map(|(channel, bytes)| Chunk { channel, bytes }));
            return self.decoder.finish();
        };
        self.decoder.push(&bytes);
        while let Some(frame) = self.decoder.next()? {
            let channel = frame.channel;
            let bytes = self.lines.take(frame);
            if !bytes.is_empty() {
                self.ready.push_back(Chunk { channel, bytes });
            }
        }
        Ok(())
    }
}
