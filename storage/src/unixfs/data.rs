//! The UnixFS message: what a node is, as a file system sees it.

use bytes::Bytes;

use super::UnixfsError;
use super::node::MAX_LINKS;
use super::wire::{self, Reader, Value};

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bytes of a file (an old form of a leaf).
    Raw,
    /// A directory with all entries in one node.
    Directory,
    /// A file, or a part of one.
    File,
    /// Of no use to anybody; read, never written.
    Metadata,
    /// A symbolic link: its data is the target.
    Symlink,
    /// A directory, or a part of one, spread over many nodes.
    Shard,
}

impl Kind {
    fn from_number(number: u64) -> Option<Self> {
        use Kind::*;
        [Raw, Directory, File, Metadata, Symlink, Shard].get(usize::try_from(number).ok()?).copied()
    }
}

/// The message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// What the node is.
    pub kind: Kind,
    /// A leaf's bytes, a symbolic link's target, a shard's bit field.
    pub data: Bytes,
    /// Bytes of the file below this node.
    pub file_bytes: Option<u64>,
    /// Bytes of the file below each link.
    pub block_bytes: Vec<u64>,
    /// A shard's hash function.
    pub hash_type: Option<u64>,
    /// Places in a shard.
    pub fanout: Option<u64>,
    /// Permission bits, if the importer kept them.
    pub mode: Option<u32>,
}

impl Data {
    /// A message of this kind and nothing else.
    pub fn new(kind: Kind) -> Self {
        let (file_bytes, hash_type, fanout, mode) = (None, None, None, None);
        Data { kind, data: Bytes::new(), file_bytes, block_bytes: Vec::new(), hash_type, fanout, mode }
    }

    /// Reads a message. Fields that are not known are skipped.
    pub fn decode(message: &Bytes) -> Result<Self, UnixfsError> {
        let mut kind = None;
        let mut data = Data::new(Kind::Raw);
        let mut reader = Reader::new(message);
        while let Some((field, value)) = reader.next()? {
            match (field, value) {
                (1, Value::Varint(number)) => kind = Kind::from_number(number),
                (2, Value::Bytes(range)) => data.data = message.slice(range),
                (3, Value::Varint(size)) => data.file_bytes = Some(size),
                (4, Value::Varint(size)) => data.push_size(size)?,
                (4, Value::Bytes(range)) => data.push_packed(&message[range])?,
                (5, Value::Varint(hash)) => data.hash_type = Some(hash),
                (6, Value::Varint(fanout)) => data.fanout = Some(fanout),
                (7, Value::Varint(mode)) => data.mode = Some(mode as u32 & 0o7777),
                (1..=7, _) => return Err(UnixfsError::Invalid("a field of another type")),
                _ => {}
            }
        }
        data.kind = kind.ok_or(UnixfsError::Invalid("no kind, or one that is not known"))?;
        Ok(data)
    }

    /// Writes the message as other importers do.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + self.data.len() + self.block_bytes.len() * 4);
        wire::put_number(&mut out, 1, self.kind as u64);
        if !self.data.is_empty() {
            wire::put_bytes(&mut out, 2, &self.data);
        }
        if let Some(size) = self.file_bytes {
            wire::put_number(&mut out, 3, size);
        }
        for size in &self.block_bytes {
            wire::put_number(&mut out, 4, *size);
        }
        if let Some(hash) = self.hash_type {
            wire::put_number(&mut out, 5, hash);
        }
        if let Some(fanout) = self.fanout {
            wire::put_number(&mut out, 6, fanout);
        }
        if let Some(mode) = self.mode {
            wire::put_number(&mut out, 7, u64::from(mode));
        }
        out
    }

    fn push_size(&mut self, size: u64) -> Result<(), UnixfsError> {
        if self.block_bytes.len() >= MAX_LINKS {
            return Err(UnixfsError::TooManyLinks);
        }
        self.block_bytes.push(size);
        Ok(())
    }

    fn push_packed(&mut self, packed: &[u8]) -> Result<(), UnixfsError> {
        let mut reader = Reader::new(packed);
        while !reader.is_at_end() {
            let size = reader.varint()?;
            self.push_size(size)?;
        }
        Ok(())
    }
}
