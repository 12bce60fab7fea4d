//! What a stream of output is made of, and how it lies on the wire between peers.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// Largest chunk on the wire between peers.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Stream, partition and length.
const HEAD_BYTES: usize = 9;
/// In the place of a stream: the bytes say why output is missing.
const MISSING: u8 = 0xff;
/// Longest such text that is passed on.
const TEXT_BYTES: usize = 4 << 10;

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stream {
    /// Standard output.
    Out = 1,
    /// Standard error.
    Err = 2,
}

impl Stream {
    /// Both, in the order of their numbers.
    pub const ALL: [Stream; 2] = [Stream::Out, Stream::Err];

    /// Its place in a pair.
    pub fn index(self) -> usize {
        self as usize - 1
    }

    /// Its file in a result.
    pub fn file(self) -> &'static str {
        match self {
            Stream::Out => "stdout",
            Stream::Err => "stderr",
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        Stream::ALL.into_iter().find(|stream| *stream as u8 == number)
    }
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Which stream.
    pub stream: Stream,
    /// Which partition.
    pub partition: u32,
    /// The bytes.
    pub bytes: Bytes,
}

/// Why a stream of output ends before its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It was cut off; whoever asks again may get it.
    #[error("the output was cut off: {0}")]
    Cut(String),
    /// Some of it cannot be had.
    #[error("{0}")]
    Missing(String),
}

/// What a stream of output is made of. Nothing follows an error.
pub type Piece = Result<Chunk, Broken>;

/// Bytes that are no piece of output.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("bytes that are no chunk of output")]
pub struct BadChunk;

/// A piece on the wire: stream, partition, length, bytes. What was cut off has no form: the body breaks off.
pub fn encode(piece: &Piece, into: &mut BytesMut) {
    let (stream, partition, bytes) = match piece {
        Ok(chunk) => (chunk.stream as u8, chunk.partition, &chunk.bytes[..]),
        Err(Broken::Missing(text)) => (MISSING, 0, &text.as_bytes()[..text.floor_char_boundary(TEXT_BYTES)]),
        Err(Broken::Cut(_)) => return,
    };
    into.extend_from_slice(&[stream]);
    into.extend_from_slice(&partition.to_be_bytes());
    into.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    into.extend_from_slice(bytes);
}

/// Takes one whole piece off the front; `None` when there is none yet, an error when there never will be.
fn decode(from: &mut BytesMut) -> Result<Option<Piece>, BadChunk> {
    let Some(head) = from.first_chunk::<HEAD_BYTES>().copied() else { return Ok(None) };
    let partition = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    let length = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) as usize;
    let stream = Stream::from_number(head[0]);
    let most = if stream.is_some() { CHUNK_BYTES } else { TEXT_BYTES };
    if (stream.is_none() && head[0] != MISSING) || length > most {
        return Err(BadChunk);
    }
    if from.len() < HEAD_BYTES + length {
        return Ok(None);
    }
    let bytes = from.split_to(HEAD_BYTES + length).split_off(HEAD_BYTES).freeze();
    Ok(Some(match stream {
        Some(stream) => Ok(Chunk { stream, partition, bytes }),
        None => Err(Broken::Missing(String::from_utf8_lossy(&bytes).into_owned())),
    }))
}

/// Reads what another node streams. Holds at most one chunk and one frame of the body.
pub struct Pieces {
    body: Incoming,
    buffer: BytesMut,
}

impl Pieces {
    /// The pieces of an answer's body.
    pub fn of(body: Incoming) -> Self {
        Pieces { body, buffer: BytesMut::new() }
    }

    /// The next piece; `None` at a clean end.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Piece> {
        loop {
            match decode(&mut self.buffer) {
                Ok(Some(piece)) => return Some(piece),
                Ok(None) => {}
                Err(error) => return Some(Err(Broken::Cut(format!("the other node sent {error}")))),
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => {
                    return Some(Err(Broken::Cut(format!("the other node broke off: {error}"))));
                }
                None if self.buffer.is_empty() => return None,
                None => return Some(Err(Broken::Cut("the other node ended within a chunk".to_owned()))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(text: &str) -> Chunk {
        Chunk { stream: Stream::Out, partition: 3, bytes: Bytes::copy_from_slice(text.as_bytes()) }
    }

    #[test]
    fn pieces_read_back_however_they_are_cut() {
        let sent: [Piece; 3] = [
            Ok(chunk("hello")),
            Ok(Chunk { stream: Stream::Err, ..chunk("") }),
            Err(Broken::Missing("nobody has it".to_owned())),
        ];
        let mut wire = BytesMut::new();
        sent.iter().for_each(|piece| encode(piece, &mut wire));
        let mut buffer = BytesMut::new();
        let mut found = Vec::new();
        for byte in wire {
            buffer.extend_from_slice(&[byte]);
            found.extend(decode(&mut buffer).unwrap());
        }
        assert_eq!(found, sent);
    }

    #[test]
    fn wrong_and_huge_chunks_are_refused() {
        for head in
            [[9, 0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 255, 0, 0, 0], [255, 0, 0, 0, 0, 0, 1, 0, 0]]
        {
            assert_eq!(decode(&mut BytesMut::from(&head[..])), Err(BadChunk));
        }
    }
}
