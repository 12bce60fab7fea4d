//! Following a job by the node's watch stream: its history so far, then what happens, then its end.

use std::time::Duration;

use serde_json::Value;

use crate::client::sse::Decoder;
use crate::client::{ANSWER_DEADLINE, Client, Stream};
use crate::content::encode;
use crate::failure::{Failure, exit};

/// How often a watch that broke off is opened again before the node counts as gone. The pauses grow from
/// [`RETRY_PAUSE`] to twice as much each time: some 15 s in all, longer than a node's restart.
const RETRIES: u32 = 6;

/// The first pause before a watch is opened again.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Something the stream said.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A new history item.
    History(Value),
    /// The job's state and how many partitions are where.
    State(Value),
    /// Somebody offered to run it.
    Bid(Value),
    /// What an execution is doing.
    Execution(Value),
    /// The job has ended; the whole answer of `GET job` with executions.
    End(Value),
}

/// A job that is watched. Nothing is lost when the connection is: the stream starts over, and what was seen is skipped.
#[derive(Debug)]
pub struct Watch {
    id: String,
    stream: Option<Stream>,
    decoder: Decoder,
    seen: i64,
    failures: u32,
}

impl Watch {
    /// Watches a job from its beginning.
    pub fn new(id: &str) -> Self {
        Watch { id: id.to_owned(), stream: None, decoder: Decoder::default(), seen: -1, failures: 0 }
    }

    /// The next event. Dropping the future loses nothing. A node that is gone is waited for if it is `patient`; else
    /// that is an error at once, after which another node may be asked.
    pub async fn next(&mut self, client: &Client, patient: bool) -> Result<Event, Failure> {
        loop {
            while let Some(event) = self.decoder.next() {
                if let Some(event) = self.read(&event.name, &event.data)? {
                    return Ok(event);
                }
            }
            if let Err(failure) = self.receive(client).await {
                self.start_over(failure, patient).await?;
            }
        }
    }

    /// Begins again with a new stream.
    pub fn start_again(&mut self) {
        self.stream = None;
        self.decoder = Decoder::default();
    }

    /// Reads more bytes, from a new stream when there is none.
    async fn receive(&mut self, client: &Client) -> Result<(), Failure> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let path = format!("/orchestrator/jobs/{}/watch", encode(&self.id));
                self.stream.insert(client.stream(&path, "text/event-stream", Some(ANSWER_DEADLINE)).await?)
            }
        };
        match stream.next().await? {
            Some(bytes) => self.decoder.push(&bytes),
            None => Err(Failure::new(
                exit::UNREACHABLE,
                "Unreachable",
                "the node ended the watch before the job ended",
            )),
        }
    }

    /// After a failure: waits a little, so that the next read opens a new stream, unless that is of no use.
    async fn start_over(&mut self, failure: Failure, patient: bool) -> Result<(), Failure> {
        self.start_again();
        if failure.is_lost_connection() && !patient {
            return Err(failure);
        }
        if !failure.is_lost_connection() || self.failures >= RETRIES {
            let hint =
                format!("the job goes on where its owner runs; look with `cardume job describe {}`", self.id);
            return Err(failure.hint(hint));
        }
        let pause = RETRY_PAUSE * 2u32.pow(self.failures);
        self.failures += 1;
        // The node is not there: nothing but time can tell when it is back.
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn read(&mut self, name: &str, data: &str) -> Result<Option<Event>, Failure> {
        let value: Value = match name {
            "history" | "state" | "bid" | "execution" | "end" | "error" => serde_json::from_str(data)
                .map_err(|error| {
                    Failure::new(
                        exit::REFUSED,
                        "InternalError",
                        format!("cannot read an event of the node: {error}"),
                    )
                })?,
            _ => return Ok(None),
        };
        self.failures = 0;
        Ok(match name {
            "error" => {
                let message = crate::values::text(&value, &["Message"]).to_owned();
                return Err(Failure::new(exit::REFUSED, "InternalError", message));
            }
            "history" => {
                let number = value["SeqNum"].as_i64().unwrap_or(i64::MAX);
                if number <= self.seen {
                    return Ok(None);
                }
                self.seen = if number == i64::MAX { self.seen } else { number };
                Some(Event::History(value))
            }
            "state" => Some(Event::State(value)),
            "bid" => Some(Event::Bid(value)),
            "execution" => Some(Event::Execution(value)),
            _ => Some(Event::End(value)),
        })
    }
}
