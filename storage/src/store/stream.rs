//! Adding from an async stream: the task that reads hands pieces to the thread that adds.

use std::io::{self, Read};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use super::{AddOptions, Added, Store, StoreError};

/// Bytes read at once.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces between the reader and the thread.
const PIECES: usize = 8;

type Piece = io::Result<Bytes>;

pub(super) async fn add(
    store: &Store,
    reader: impl AsyncRead + Send,
    name: Option<&str>,
    options: AddOptions,
) -> Result<Added, StoreError> {
    let (pieces, receiver) = mpsc::channel(PIECES);
    let name = name.map(str::to_owned);
    let adding = store.run(move |store| {
        let mut source = Pieces { receiver, piece: Bytes::new(), ended: false };
        store.add_reader(&mut source, name.as_deref(), &options)
    });
    let (added, ()) = tokio::join!(adding, send(reader, pieces));
    added
}

/// Reads to the end; stops early when the thread has given up.
async fn send(reader: impl AsyncRead + Send, pieces: mpsc::Sender<Option<Piece>>) {
    let mut reader = std::pin::pin!(reader);
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE_BYTES);
        let piece = match reader.read_buf(&mut buffer).await {
            Ok(0) => None,
            Ok(_) => Some(Ok(buffer.split().freeze())),
            Err(error) => Some(Err(error)),
        };
        let is_last = !matches!(piece, Some(Ok(_)));
        if pieces.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

struct Pieces {
    /// `None` is the end; a channel that closes without it was given up.
    receiver: mpsc::Receiver<Option<Piece>>,
    piece: Bytes,
    ended: bool,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Some(piece)) => self.piece = piece?,
                Some(None) => self.ended = true,
                None => return Err(io::Error::other("whoever gave the input has stopped")),
            }
        }
        let length = self.piece.len().min(out.len());
        self.piece.copy_to_slice(&mut out[..length]);
        Ok(length)
    }
}
