//! The last lines of what was passed on.

use std::collections::VecDeque;

use bytes::BytesMut;

use super::piece::{Chunk, Stream};

/// Lines that a tail keeps at the most.
const TAIL_LINES: usize = 100_000;
/// Bytes that a tail keeps at the most, whatever the number of lines that was asked for: it is in the memory of
/// the job's owner.
const TAIL_BYTES: usize = 8 << 20;
/// What a line costs beside its bytes.
const LINE_BYTES: usize = 64;

/// Keeps the last lines.
pub struct Tail {
    lines: VecDeque<Line>,
    most: usize,
    bytes: usize,
}

struct Line {
    stream: Stream,
    partition: u32,
    bytes: BytesMut,
}

impl Line {
    fn is_open_for(&self, chunk: &Chunk) -> bool {
        (self.stream, self.partition) == (chunk.stream, chunk.partition)
            && self.bytes.last() != Some(&b'\n')
            && self.bytes.len() < TAIL_BYTES / 4
    }
}

impl Tail {
    /// Keeps this many lines, as far as they fit.
    pub fn new(most: usize) -> Self {
        Tail { lines: VecDeque::new(), most: most.min(TAIL_LINES), bytes: 0 }
    }

    /// Takes the next output.
    pub fn push(&mut self, chunk: &Chunk) {
        for piece in chunk.bytes.split_inclusive(|byte| *byte == b'\n') {
            match self.lines.back_mut().filter(|last| last.is_open_for(chunk)) {
                Some(last) => last.bytes.extend_from_slice(piece),
                None => {
                    let Chunk { stream, partition, .. } = *chunk;
                    self.lines.push_back(Line { stream, partition, bytes: BytesMut::from(piece) });
                    self.bytes += LINE_BYTES;
                }
            }
            self.bytes += piece.len();
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        while self.lines.len() > self.most || (self.bytes > TAIL_BYTES && self.lines.len() > 1) {
            if let Some(first) = self.lines.pop_front() {
                self.bytes -= first.bytes.len() + LINE_BYTES;
            }
        }
    }

    /// What was kept.
    pub fn into_chunks(self) -> impl Iterator<Item = Chunk> {
        self.lines.into_iter().map(|line| Chunk {
            stream: line.stream,
            partition: line.partition,
            bytes: line.bytes.freeze(),
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn chunk(text: &str) -> Chunk {
        Chunk { stream: Stream::Out, partition: 3, bytes: Bytes::copy_from_slice(text.as_bytes()) }
    }

    #[test]
    fn the_last_lines_are_kept_whatever_the_pieces() {
        let mut tail = Tail::new(2);
        for piece in ["one\ntw", "o\nthr", "ee"] {
            tail.push(&chunk(piece));
        }
        let lines: Vec<_> = tail.into_chunks().map(|chunk| chunk.bytes).collect();
        assert_eq!(lines, ["two\n", "three"]);
    }

    #[test]
    fn long_lines_do_not_fill_the_memory() {
        let mut tail = Tail::new(TAIL_LINES);
        for _ in 0..100 {
            tail.push(&chunk(&format!("{}\n", "x".repeat(1 << 20))));
        }
        let kept: Vec<_> = tail.into_chunks().collect();
        let bytes: usize = kept.iter().map(|chunk| chunk.bytes.len()).sum();
        assert!(bytes <= TAIL_BYTES && kept.len() >= 6, "{bytes} bytes in {} lines", kept.len());
    }

    #[test]
    fn a_line_without_an_end_does_not_fill_the_memory_either() {
        let mut tail = Tail::new(1);
        for _ in 0..100 {
            tail.push(&chunk(&"x".repeat(1 << 20)));
        }
        assert!(tail.into_chunks().map(|chunk| chunk.bytes.len()).sum::<usize>() <= TAIL_BYTES);
    }

    #[test]
    fn a_tail_of_nothing_is_nothing() {
        let mut tail = Tail::new(0);
        tail.push(&chunk("one\n"));
        assert_eq!(tail.into_chunks().count(), 0);
    }
}
