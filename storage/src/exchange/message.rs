//! Bitswap 1.2.0 messages: their types and their protobuf form.
//!
//! Decoding copies no block: [`Block::data`] points into the buffer that was received. Nothing is
//! allocated on a peer's word, every list has a cap, and bytes that are no message are an error.

use bytes::{BufMut, Bytes, BytesMut};
use cid::Cid;

use super::wire::{self, Value, WireError};

/// The longest message, by the protocol: 4 MiB.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The largest block, by the protocol: 2 MiB.
pub const MAX_BLOCK_BYTES: usize = 2 << 20;

/// The most wantlist entries in a message. Kubo keeps 1,024 wants of a peer and sends cancels
/// beside them; four times that is generous and still decodes to well under a megabyte.
pub const MAX_ENTRIES: usize = 4096;

/// The most block presences in a message: one for each want.
pub const MAX_PRESENCES: usize = MAX_ENTRIES;

/// The most blocks in a message. Packed small blocks are useful, a million empty ones are not.
pub const MAX_BLOCKS: usize = 4096;

/// The longest binary CID: version, codec and a multihash of 64 bytes, each number at its longest.
const MAX_CID_BYTES: usize = 100;

/// A segment below this is copied into its neighbour: a write of its own would cost more.
const COALESCE_BYTES: usize = 8 << 10;

/// One Bitswap message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The entries are the whole wantlist of the sender, not a change of it.
    pub full: bool,
    /// What the sender wants, or no longer wants.
    pub entries: Vec<Entry>,
    /// Blocks.
    pub blocks: Vec<Block>,
    /// Answers to wants: has it, has it not.
    pub presences: Vec<Presence>,
    /// How many bytes of blocks the sender still has queued for the receiver.
    pub pending_bytes: i32,
}

/// One entry of a wantlist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The block that is wanted.
    pub cid: Cid,
    /// Higher is served sooner.
    pub priority: i32,
    /// The want is withdrawn.
    pub cancel: bool,
    /// The block itself, or only whether it is there.
    pub kind: WantKind,
    /// The sender asks to be told when the block is not there.
    pub send_dont_have: bool,
}

/// What a want asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantKind {
    /// The block.
    Block,
    /// Only whether it is there.
    Have,
}

/// A block as it travels: its bytes, and how its CID is made of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// All of the CID but the digest.
    pub prefix: Prefix,
    /// The bytes.
    pub data: Bytes,
}

/// A CID without its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// CID version, 0 or 1.
    pub version: u64,
    /// Codec of the bytes.
    pub codec: u64,
    /// Code of the hash function.
    pub hash: u64,
    /// Length of the digest in bytes.
    pub digest_bytes: u64,
}

/// An answer to a want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presence {
    /// The block that was asked for.
    pub cid: Cid,
    /// Whether the sender has it.
    pub have: bool,
}

/// Why bytes are no Bitswap message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("a message of {0} bytes is over the limit of {MAX_MESSAGE_BYTES}")]
    TooLong(u64),
    /// A block longer than [`MAX_BLOCK_BYTES`].
    #[error("a block of {0} bytes is over the limit of {MAX_BLOCK_BYTES}")]
    BlockTooLong(usize),
    /// More of something than a message may hold.
    #[error("more than {limit} {what} in a message")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The cap.
        limit: usize,
    },
    /// Not protobuf.
    #[error("malformed bitswap message: {0}")]
    Malformed(&'static str),
}

impl From<WireError> for MessageError {
    fn from(error: WireError) -> Self {
        MessageError::Malformed(match error {
            WireError::Truncated => "the bytes end inside a field",
            WireError::Overlong => "a number is longer than 64 bits",
            WireError::WireType => "a field has an unknown wire type",
        })
    }
}

impl Message {
    /// Reads a message from its bytes, without the length in front.
    ///
    /// Unknown fields are stepped over. Blocks in the form of Bitswap 1.0 (bytes without a prefix)
    /// count as CIDv0.
    pub fn decode(mut bytes: Bytes) -> Result<Message, MessageError> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(MessageError::TooLong(bytes.len() as u64));
        }
        let mut message = Message::default();
        while let Some((field, value)) = wire::next_field(&mut bytes)? {
            match (field, value) {
                (1, Value::Bytes(bytes)) => message.decode_wantlist(bytes)?,
                (2, Value::Bytes(data)) => message.push_block(Block { prefix: Prefix::V0, data })?,
                (3, Value::Bytes(bytes)) => message.push_block(Block::decode(bytes)?)?,
                (4, Value::Bytes(bytes)) => {
                    bounded(&message.presences, "block presences", MAX_PRESENCES)?;
                    message.presences.push(Presence::decode(bytes)?);
                }
                (5, Value::Number(number)) => message.pending_bytes = number as i32,
                (1..=5, _) => return Err(MessageError::Malformed("a field has the wrong type")),
                _ => {}
            }
        }
        Ok(message)
    }

    fn decode_wantlist(&mut self, mut bytes: Bytes) -> Result<(), MessageError> {
        while let Some((field, value)) = wire::next_field(&mut bytes)? {
            match (field, value) {
                (1, Value::Bytes(bytes)) => {
                    bounded(&self.entries, "wantlist entries", MAX_ENTRIES)?;
                    self.entries.push(Entry::decode(bytes)?);
                }
                (2, Value::Number(number)) => self.full = number != 0,
                (1..=2, _) => return Err(MessageError::Malformed("a field has the wrong type")),
                _ => {}
            }
        }
        Ok(())
    }

    fn push_block(&mut self, block: Block) -> Result<(), MessageError> {
        bounded(&self.blocks, "blocks", MAX_BLOCKS)?;
        if block.data.len() > MAX_BLOCK_BYTES {
            return Err(MessageError::BlockTooLong(block.data.len()));
        }
        self.blocks.push(block);
        Ok(())
    }

    /// Whether there is nothing in it worth sending.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.blocks.is_empty() && self.presences.is_empty() && !self.full
    }

    /// How long [`Message::encode`]'s bytes are in all, without the length in front.
    pub fn encoded_len(&self) -> usize {
        let wantlist = match self.wantlist_len() {
            0 => 0,
            length => wire::bytes_field_len(length),
        };
        let blocks: usize = self.blocks.iter().map(|block| wire::bytes_field_len(block.len())).sum();
        let presences: usize = self.presences.iter().map(|each| wire::bytes_field_len(each.len())).sum();
        let pending = number_len(u64::try_from(self.pending_bytes).unwrap_or(0));
        wantlist + blocks + presences + pending
    }

    fn wantlist_len(&self) -> usize {
        let entries: usize = self.entries.iter().map(|entry| wire::bytes_field_len(entry.len())).sum();
        entries + number_len(u64::from(self.full))
    }

    /// The bytes to send, with the length in front, in order. Large blocks are segments of their
    /// own that share the block's memory; everything else is gathered.
    pub fn encode(&self) -> Vec<Bytes> {
        let mut segments = Segments::default();
        let out = &mut segments.open;
        wire::put_varint(out, self.encoded_len() as u64);
        let wantlist = self.wantlist_len();
        if wantlist > 0 {
            wire::put_bytes_head(out, 1, wantlist);
            for entry in &self.entries {
                entry.encode(out);
            }
            wire::put_number(out, 2, u64::from(self.full));
        }
        for presence in &self.presences {
            presence.encode(out);
        }
        wire::put_number(out, 5, u64::try_from(self.pending_bytes).unwrap_or(0));
        for block in &self.blocks {
            block.encode(&mut segments);
        }
        segments.finish()
    }
}

impl Entry {
    /// A want for the block, to be told when it is not there.
    pub fn want_block(cid: Cid, priority: i32) -> Entry {
        Entry { cid, priority, cancel: false, kind: WantKind::Block, send_dont_have: true }
    }

    /// A question whether the block is there.
    pub fn want_have(cid: Cid, priority: i32) -> Entry {
        Entry { cid, priority, cancel: false, kind: WantKind::Have, send_dont_have: true }
    }

    /// Takes a want back.
    pub fn cancel(cid: Cid) -> Entry {
        Entry { cid, priority: 0, cancel: true, kind: WantKind::Block, send_dont_have: false }
    }

    fn decode(mut bytes: Bytes) -> Result<Entry, MessageError> {
        let mut cid = None;
        let (mut priority, mut cancel, mut send_dont_have) = (0, false, false);
        let mut kind = WantKind::Block;
        while let Some((field, value)) = wire::next_field(&mut bytes)? {
            match (field, value) {
                (1, Value::Bytes(bytes)) => cid = Some(decode_cid(&bytes)?),
                (2, Value::Number(number)) => priority = number as i32,
                (3, Value::Number(number)) => cancel = number != 0,
                (4, Value::Number(0)) => kind = WantKind::Block,
                (4, Value::Number(_)) => kind = WantKind::Have,
                (5, Value::Number(number)) => send_dont_have = number != 0,
                (1..=5, _) => return Err(MessageError::Malformed("a field has the wrong type")),
                _ => {}
            }
        }
        let cid = cid.ok_or(MessageError::Malformed("a wantlist entry names no CID"))?;
        Ok(Entry { cid, priority, cancel, kind, send_dont_have })
    }

    fn len(&self) -> usize {
        wire::bytes_field_len(self.cid.encoded_len())
            + number_len(self.priority as i64 as u64)
            + number_len(u64::from(self.cancel))
            + number_len(self.kind.number())
            + number_len(u64::from(self.send_dont_have))
    }

    fn encode(&self, out: &mut BytesMut) {
        wire::put_bytes_head(out, 1, self.len());
        put_cid(out, &self.cid);
        // Negative numbers take ten bytes, as protobuf's int32 does.
        wire::put_number(out, 2, self.priority as i64 as u64);
        wire::put_number(out, 3, u64::from(self.cancel));
        wire::put_number(out, 4, self.kind.number());
        wire::put_number(out, 5, u64::from(self.send_dont_have));
    }
}

impl WantKind {
    fn number(self) -> u64 {
        match self {
            WantKind::Block => 0,
            WantKind::Have => 1,
        }
    }
}

impl Block {
    /// The block `data` of the name `cid`.
    pub fn new(cid: &Cid, data: Bytes) -> Block {
        Block { prefix: Prefix::of(cid), data }
    }

    fn decode(mut bytes: Bytes) -> Result<Block, MessageError> {
        let (mut prefix, mut data) = (None, Bytes::new());
        while let Some((field, value)) = wire::next_field(&mut bytes)? {
            match (field, value) {
                (1, Value::Bytes(bytes)) => prefix = Some(Prefix::decode(bytes)?),
                (2, Value::Bytes(bytes)) => data = bytes,
                (1..=2, _) => return Err(MessageError::Malformed("a field has the wrong type")),
                _ => {}
            }
        }
        let prefix = prefix.ok_or(MessageError::Malformed("a block has no CID prefix"))?;
        Ok(Block { prefix, data })
    }

    fn len(&self) -> usize {
        wire::bytes_field_len(self.prefix.len()) + data_len(self.data.len())
    }

    fn encode(&self, out: &mut Segments) {
        wire::put_bytes_head(&mut out.open, 3, self.len());
        wire::put_bytes_head(&mut out.open, 1, self.prefix.len());
        self.prefix.encode(&mut out.open);
        if !self.data.is_empty() {
            wire::put_bytes_head(&mut out.open, 2, self.data.len());
            out.push(&self.data);
        }
    }
}

impl Prefix {
    /// The prefix of a CIDv0: dag-pb, SHA-256.
    pub const V0: Prefix = Prefix { version: 0, codec: 0x70, hash: 0x12, digest_bytes: 32 };

    /// The prefix of `cid`.
    pub fn of(cid: &Cid) -> Prefix {
        Prefix {
            version: cid.version().into(),
            codec: cid.codec(),
            hash: cid.hash().code(),
            digest_bytes: u64::from(cid.hash().size()),
        }
    }

    fn numbers(&self) -> [u64; 4] {
        [self.version, self.codec, self.hash, self.digest_bytes]
    }

    fn decode(mut bytes: Bytes) -> Result<Prefix, MessageError> {
        let mut numbers = [0u64; 4];
        for number in &mut numbers {
            *number = wire::take_varint(&mut bytes)?;
        }
        if !bytes.is_empty() {
            return Err(MessageError::Malformed("a CID prefix has bytes left over"));
        }
        let [version, codec, hash, digest_bytes] = numbers;
        Ok(Prefix { version, codec, hash, digest_bytes })
    }

    fn len(&self) -> usize {
        self.numbers().into_iter().map(wire::varint_len).sum()
    }

    fn encode(&self, out: &mut BytesMut) {
        for number in self.numbers() {
            wire::put_varint(out, number);
        }
    }
}

impl Presence {
    fn decode(mut bytes: Bytes) -> Result<Presence, MessageError> {
        let (mut cid, mut have) = (None, true);
        while let Some((field, value)) = wire::next_field(&mut bytes)? {
            match (field, value) {
                (1, Value::Bytes(bytes)) => cid = Some(decode_cid(&bytes)?),
                (2, Value::Number(number)) => have = number == 0,
                (1..=2, _) => return Err(MessageError::Malformed("a field has the wrong type")),
                _ => {}
            }
        }
        let cid = cid.ok_or(MessageError::Malformed("a block presence names no CID"))?;
        Ok(Presence { cid, have })
    }

    fn len(&self) -> usize {
        wire::bytes_field_len(self.cid.encoded_len()) + number_len(u64::from(!self.have))
    }

    fn encode(&self, out: &mut BytesMut) {
        wire::put_bytes_head(out, 4, self.len());
        put_cid(out, &self.cid);
        wire::put_number(out, 2, u64::from(!self.have));
    }
}

/// Gathers small pieces and keeps large ones apart.
#[derive(Default)]
struct Segments {
    open: BytesMut,
    done: Vec<Bytes>,
}

impl Segments {
    fn push(&mut self, data: &Bytes) {
        if data.len() < COALESCE_BYTES {
            return self.open.extend_from_slice(data);
        }
        self.done.push(self.open.split().freeze());
        self.done.push(data.clone());
    }

    fn finish(mut self) -> Vec<Bytes> {
        if !self.open.is_empty() {
            self.done.push(self.open.freeze());
        }
        self.done
    }
}

fn bounded<T>(list: &[T], what: &'static str, limit: usize) -> Result<(), MessageError> {
    if list.len() >= limit { Err(MessageError::TooMany { what, limit }) } else { Ok(()) }
}

fn number_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + wire::varint_len(value) }
}

fn data_len(length: usize) -> usize {
    if length == 0 { 0 } else { wire::bytes_field_len(length) }
}

fn decode_cid(bytes: &[u8]) -> Result<Cid, MessageError> {
    let malformed = MessageError::Malformed("a CID is malformed");
    if bytes.len() > MAX_CID_BYTES {
        return Err(malformed);
    }
    match Cid::try_from(bytes) {
        Ok(cid) if cid.encoded_len() == bytes.len() => Ok(cid),
        _ => Err(malformed),
    }
}

fn put_cid(out: &mut BytesMut, cid: &Cid) {
    wire::put_bytes_head(out, 1, cid.encoded_len());
    cid.write_bytes(out.writer()).expect("writing to memory does not fail");
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
