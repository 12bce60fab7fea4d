//! Server-sent events, as the watch route writes them.

use crate::failure::{Failure, exit};

/// The largest event that is read. The last one of a watch carries a job and its first executions with their
/// outputs, which stay far below.
const MAX_EVENT_BYTES: usize = 64 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its name; `message` when the stream gives none.
    pub name: String,
    /// Its text; several `data` lines are joined by line ends.
    pub data: String,
}

/// Cuts a byte stream into events.
///
/// ```
/// let mut decoder = cli::client::sse::Decoder::default();
/// decoder.push(b"event: state\ndata: {}\n").unwrap();
/// assert!(decoder.next().is_none());
/// decoder.push(b"\n").unwrap();
/// assert_eq!(decoder.next().unwrap().name, "state");
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of the buffer whose lines were read.
    read: usize,
    name: String,
    data: Vec<u8>,
}

impl Decoder {
    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.buffer.drain(..self.read);
        self.read = 0;
        if self.buffer.len() + self.data.len() + bytes.len() > MAX_EVENT_BYTES {
            return Err(Failure::new(exit::REFUSED, "InternalError", "an event of the node is too large"));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The next whole event.
    #[allow(clippy::should_implement_trait, reason = "more events may follow after `None`")]
    pub fn next(&mut self) -> Option<Event> {
        while let Some(line) = self.line() {
            if line.is_empty() {
                let name = std::mem::take(&mut self.name);
                let data = std::mem::take(&mut self.data);
                if data.is_empty() {
                    continue; // a comment or a bare name is no event
                }
                let name = if name.is_empty() { "message".to_owned() } else { name };
                let text = data.strip_suffix(b"\n").unwrap_or(&data);
                return Some(Event { name, data: String::from_utf8_lossy(text).into_owned() });
            }
            self.field(&line);
        }
        None
    }

    fn line(&mut self) -> Option<Vec<u8>> {
        let rest = self.buffer.get(self.read..)?;
        let end = rest.iter().position(|&byte| byte == b'\n')?;
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]).to_vec();
        self.read += end + 1;
        Some(line)
    }

    fn field(&mut self, line: &[u8]) {
        let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"event" => self.name = String::from_utf8_lossy(value).into_owned(),
            b"data" => {
                self.data.extend_from_slice(value);
                self.data.push(b'\n');
            }
            _ => {} // comments, ids and retry hints
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(chunks: &[&[u8]]) -> Vec<Event> {
        let mut decoder = Decoder::default();
        let mut events = Vec::new();
        for chunk in chunks {
            decoder.push(chunk).unwrap();
            while let Some(event) = decoder.next() {
                events.push(event);
            }
        }
        events
    }

    #[test]
    fn comments_and_unknown_fields_are_skipped() {
        let events = all(&[b": hello\n\nid: 4\r\nevent: end\r\ndata: a\r\ndata:b\r\n\r\ndata\n\n"]);
        assert_eq!(events.len(), 2);
        assert_eq!((events[0].name.as_str(), events[0].data.as_str()), ("end", "a\nb"));
        assert_eq!((events[1].name.as_str(), events[1].data.as_str()), ("message", ""));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn events_are_the_same_however_the_bytes_are_cut(at in 0usize..60, to in 0usize..60) {
            let text = b"event: history\ndata: {\"a\":1}\n\n: x\n\nevent: state\ndata: y\n\n";
            let (at, to) = (at.min(to).min(text.len()), at.max(to).min(text.len()));
            prop_assert_eq!(all(&[&text[..at], &text[at..to], &text[to..]]), all(&[text]));
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            all(&[&bytes]);
        }
    }
}
