//! Server-sent events, as far as a node sends them: `event` and `data`.

use anyhow::{Context, bail};
use bytes::BytesMut;
use serde_json::Value;

use super::Stream;

/// One event with all its executions is far smaller; more without an end is no event stream.
const EVENT_BYTES: usize = 64 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Its data, which nodes send as JSON.
    pub data: Value,
}

/// A stream of events.
#[derive(Debug)]
pub struct Events {
    stream: Stream,
    buffer: BytesMut,
}

impl Events {
    pub(super) fn new(stream: Stream) -> Self {
        Events { stream, buffer: BytesMut::new() }
    }

    /// The next event, or `None` when the node has ended the stream.
    pub async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        loop {
            while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block = self.buffer.split_to(end + 2);
                if let Some(event) = parse(&String::from_utf8_lossy(&block))? {
                    return Ok(Some(event));
                }
            }
            let Some(chunk) = self.stream.chunk().await? else { return Ok(None) };
            self.buffer.extend_from_slice(&chunk);
            if self.buffer.len() > EVENT_BYTES {
                bail!("an event of more than {EVENT_BYTES} bytes");
            }
        }
    }
}

/// One block of lines; `None` for a comment, which only keeps the connection alive.
fn parse(block: &str) -> anyhow::Result<Option<Event>> {
    let (mut name, mut data) = (String::from("message"), Vec::new());
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut name),
            "data" => data.push(value),
            _ => {}
        }
    }
    if data.is_empty() {
        return Ok(None);
    }
    let data = serde_json::from_str(&data.join("\n")).with_context(|| format!("event {name} has no JSON"))?;
    Ok(Some(Event { name, data }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_have_a_name_and_data_and_comments_are_skipped() {
        let event = parse("event: state\ndata: {\"a\":\ndata: 1}\nid: 7\n\n").unwrap().unwrap();
        assert_eq!(event, Event { name: "state".into(), data: json!({"a": 1}) });
        assert_eq!(parse(": still here\n\n").unwrap(), None);
        assert!(parse("data: {\n\n").is_err());
    }
}
