//! A job's output as the logs route streams it: frames of (stream, partition, bytes).

use std::collections::{BTreeMap, BTreeSet};

use crate::failure::{Failure, exit};

/// What to accept for frames.
pub const MEDIA_TYPE: &str = "application/vnd.cardume.logs";

/// Stream, partition and length.
const HEAD_BYTES: usize = 9;

/// In the place of a stream: the node says why output is missing, and ends.
const MISSING: u8 = 0xff;

/// The largest frame that is read; nodes send far smaller ones.
const MAX_FRAME_BYTES: usize = 16 << 20;

/// A line longer than this is written in parts: nobody reads it as a line.
const MAX_LINE_BYTES: usize = 64 << 10;

/// All unfinished lines together; beyond it they are written as they are.
const MAX_PENDING_BYTES: usize = 8 << 20;

/// Which of a job's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its stream.
    pub channel: Channel,
    /// The partition it is from.
    pub partition: u32,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    read: usize,
}

impl Decoder {
    /// Takes the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, `None` until more bytes come.
    #[allow(clippy::should_implement_trait, reason = "more frames may follow after `None`")]
    pub fn next(&mut self) -> Result<Option<Frame>, Failure> {
        let rest = self.buffer.get(self.read..).unwrap_or_default();
        let Some((head, rest)) = rest.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let [stream, p0, p1, p2, p3, l0, l1, l2, l3] = *head;
        let channel = match stream {
            1 => Some(Channel::Out),
            2 => Some(Channel::Err),
            MISSING => None,
            other => return Err(broken(&format!("stream {other} is unknown"))),
        };
        let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if length > MAX_FRAME_BYTES {
            return Err(broken(&format!("a frame of {length} bytes")));
        }
        let Some(bytes) = rest.get(..length) else { return Ok(None) };
        let Some(channel) = channel else { return Err(missing(bytes)) };
        let frame = Frame { channel, partition: u32::from_be_bytes([p0, p1, p2, p3]), bytes: bytes.to_vec() };
        self.read += HEAD_BYTES + length;
        Ok(Some(frame))
    }

    /// Checks that the stream did not end within a frame.
    pub fn finish(&self) -> Result<(), Failure> {
        if self.buffer.len() > self.read { Err(broken("it ends within a frame")) } else { Ok(()) }
    }
}

/// Keeps the lines of many partitions whole. With one partition, output passes as it comes.
#[derive(Debug)]
pub struct Lines {
    whole: bool,
    writers: BTreeSet<u32>,
    pending: BTreeMap<(Channel, u32), Vec<u8>>,
    pending_bytes: usize,
}

impl Lines {
    /// `whole`: several partitions write at once, so only whole lines may pass.
    pub fn new(whole: bool) -> Self {
        Lines { whole, writers: BTreeSet::new(), pending: BTreeMap::new(), pending_bytes: 0 }
    }

    /// Takes a frame, gives the bytes that may be written now.
    pub fn take(&mut self, frame: Frame) -> Vec<u8> {
        if !self.whole {
            return frame.bytes;
        }
        let key = (frame.channel, frame.partition);
        if self.writers.len() < 2 {
            self.writers.insert(frame.partition);
        }
        let mut line = self.pending.remove(&key).unwrap_or_default();
        self.pending_bytes -= line.len();
        line.extend_from_slice(&frame.bytes);
        let end = line.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let rest = line.split_off(end);
        if rest.is_empty() {
            return line;
        }
        if rest.len() > MAX_LINE_BYTES || self.pending_bytes + rest.len() > MAX_PENDING_BYTES {
            line.extend(rest);
            return line;
        }
        self.pending_bytes += rest.len();
        self.pending.insert(key, rest);
        line
    }

    /// What is left at the end: the last lines, which have no line end. They are given one where several
    /// partitions wrote, so that no two become one.
    pub fn finish(&mut self) -> Vec<(Channel, Vec<u8>)> {
        self.pending_bytes = 0;
        let end: &[u8] = if self.writers.len() > 1 { b"\n" } else { b"" };
        let pending = std::mem::take(&mut self.pending).into_iter();
        pending.map(|((channel, _), bytes)| (channel, [&bytes[..], end].concat())).collect()
    }
}

fn broken(why: &str) -> Failure {
    Failure::new(exit::REFUSED, "InternalError", format!("cannot read the job's output from the node: {why}"))
}

/// The node's own words: not all of the output can be had.
fn missing(text: &[u8]) -> Failure {
    let text = String::from_utf8_lossy(&text[..text.len().min(4096)]).into_owned();
    Failure::new(exit::REFUSED, "NotFound", text).hint("ask again later: what is missing may come back")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(channel: Channel, partition: u32, text: &str) -> Frame {
        Frame { channel, partition, bytes: text.into() }
    }

    fn encode(frame: &Frame) -> Vec<u8> {
        let mut bytes = vec![if frame.channel == Channel::Out { 1 } else { 2 }];
        bytes.extend(frame.partition.to_be_bytes());
        bytes.extend((frame.bytes.len() as u32).to_be_bytes());
        bytes.extend(&frame.bytes);
        bytes
    }

    #[test]
    fn lines_of_several_partitions_stay_whole() {
        let mut lines = Lines::new(true);
        assert_eq!(lines.take(frame(Channel::Out, 0, "a")), b"");
        assert_eq!(lines.take(frame(Channel::Out, 1, "x\ny")), b"x\n");
        assert_eq!(lines.take(frame(Channel::Out, 0, "b\n")), b"ab\n");
        assert_eq!(lines.take(frame(Channel::Err, 0, "e")), b"");
        assert_eq!(lines.finish(), [(Channel::Out, b"y\n".to_vec()), (Channel::Err, b"e\n".to_vec())]);
    }

    #[test]
    fn the_last_line_of_a_single_writer_stays_as_it_is() {
        let mut lines = Lines::new(true);
        assert_eq!(lines.take(frame(Channel::Out, 3, "no line end")), b"");
        assert_eq!(lines.finish(), [(Channel::Out, b"no line end".to_vec())]);
    }

    #[test]
    fn what_the_node_says_of_missing_output_is_the_failure() {
        let mut decoder = Decoder::default();
        decoder.push(&[&[0xff, 0, 0, 0, 0, 0, 0, 0, 6][..], b"gone: "].concat());
        let failure = decoder.next().unwrap_err();
        assert_eq!((failure.exit, failure.message.as_str()), (1, "gone: "));
    }

    #[test]
    fn endless_lines_are_let_through() {
        let mut lines = Lines::new(true);
        let long = "x".repeat(MAX_LINE_BYTES + 1);
        assert_eq!(lines.take(frame(Channel::Out, 0, &long)).len(), long.len());
    }

    #[test]
    fn a_stream_that_is_no_frames_is_refused() {
        let mut decoder = Decoder::default();
        decoder.push(b"hello world");
        assert!(decoder.next().is_err());
        let mut decoder = Decoder::default();
        decoder.push(&[1, 0, 0, 0, 0, 0xff, 0, 0, 0]);
        assert!(decoder.next().is_err());
        let mut decoder = Decoder::default();
        decoder.push(&[1, 0]);
        assert_eq!(decoder.next().unwrap(), None);
        assert!(decoder.finish().is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn frames_are_the_same_however_the_bytes_are_cut(
            texts in proptest::collection::vec(("[a-z\n]{0,20}", 0u32..4, any::<bool>()), 0..8),
            step in 1usize..17,
        ) {
            let frames: Vec<Frame> = texts.iter()
                .map(|(text, partition, out)| frame(if *out { Channel::Out } else { Channel::Err }, *partition, text))
                .collect();
            let bytes: Vec<u8> = frames.iter().flat_map(encode).collect();
            let mut decoder = Decoder::default();
            let mut read = Vec::new();
            for chunk in bytes.chunks(step) {
                decoder.push(chunk);
                while let Some(frame) = decoder.next().unwrap() {
                    read.push(frame);
                }
            }
            prop_assert!(decoder.finish().is_ok());
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn no_byte_of_output_is_lost_or_added(
            texts in proptest::collection::vec(("[a-z\n]{0,20}", 0u32..4), 0..20),
        ) {
            let mut lines = Lines::new(true);
            let mut written: Vec<u8> = Vec::new();
            for (text, partition) in &texts {
                written.extend(lines.take(frame(Channel::Out, *partition, text)));
            }
            written.extend(lines.finish().into_iter().flat_map(|(_, bytes)| bytes));
            let mut sent: Vec<u8> = texts.iter().flat_map(|(text, _)| text.bytes()).collect();
            // Line ends may be added to last lines.
            written.retain(|byte| *byte != b'\n');
            sent.retain(|byte| *byte != b'\n');
            written.sort_unstable();
            sent.sort_unstable();
            prop_assert_eq!(written, sent);
        }
    }
}
