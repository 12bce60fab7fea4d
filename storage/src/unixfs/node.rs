//! dag-pb: a node is some bytes and links to other nodes.

use bytes::Bytes;
use cid::Cid;

use super::wire::{self, Reader, Value};
use super::{Data, UnixfsError};

/// Links in one node: a block of 2 MiB has room for this many with ordinary CIDs.
pub const MAX_LINKS: usize = 64 * 1024;

const NODE_DATA: u8 = 1;
const NODE_LINK: u8 = 2;
const LINK_HASH: u8 = 1;
const LINK_NAME: u8 = 2;
const LINK_SIZE: u8 = 3;

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// Where it leads to.
    pub links: Vec<Link>,
    /// Its own bytes: a UnixFS message, for files and directories.
    pub data: Option<Bytes>,
}

/// A link to another block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its target.
    pub cid: Cid,
    /// Its name; empty in files.
    pub name: String,
    /// What the linking node says about the size of everything below.
    pub total_bytes: u64,
}

impl Node {
    /// Reads a node. Unknown fields, repeated data and links without a target are refused.
    pub fn decode(block: &Bytes) -> Result<Self, UnixfsError> {
        let mut node = Node::default();
        let mut reader = Reader::new(block);
        while let Some((field, value)) = reader.next()? {
            match (field, value) {
                (1, Value::Bytes(range)) if node.data.is_none() => node.data = Some(block.slice(range)),
                (1, Value::Bytes(_)) => return Err(UnixfsError::Invalid("data twice")),
                (2, Value::Bytes(_)) if node.links.len() >= MAX_LINKS => {
                    return Err(UnixfsError::TooManyLinks);
                }
                (2, Value::Bytes(range)) => node.links.push(Link::decode(&block[range])?),
                _ => return Err(UnixfsError::Invalid("a field that nodes do not have")),
            }
        }
        Ok(node)
    }

    /// Writes a node, links first, as every importer does.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        for link in &self.links {
            link.encode(&mut out);
        }
        if let Some(data) = &self.data {
            wire::put_bytes(&mut out, NODE_DATA, data);
        }
        out
    }

    /// Bytes that [`Node::encode`] writes.
    pub fn encoded_len(&self) -> usize {
        let links: usize = self.links.iter().map(Link::encoded_len).sum();
        links + self.data.as_ref().map_or(0, |data| wire::bytes_len(data.len()))
    }

    /// The UnixFS message inside.
    pub fn unixfs(&self) -> Result<Data, UnixfsError> {
        Data::decode(self.data.as_ref().ok_or(UnixfsError::Invalid("no data"))?)
    }

    /// Bytes of all blocks below and including this node, by its links.
    pub fn total_bytes(&self) -> u64 {
        let below = self.links.iter().map(|link| link.total_bytes);
        below.fold(self.encoded_len() as u64, u64::saturating_add)
    }
}

impl Link {
    fn decode(message: &[u8]) -> Result<Self, UnixfsError> {
        let (mut cid, mut name, mut total_bytes) = (None, None, None);
        let mut reader = Reader::new(message);
        while let Some((field, value)) = reader.next()? {
            match (field, value) {
                (1, Value::Bytes(range)) if cid.is_none() => {
                    let hash = &message[range];
                    cid = Some(Cid::try_from(hash).map_err(|_| UnixfsError::Invalid("a link's CID"))?);
                }
                (2, Value::Bytes(range)) if name.is_none() => {
                    let text = std::str::from_utf8(&message[range]);
                    name = Some(text.map_err(|_| UnixfsError::Invalid("a name that is not UTF-8"))?);
                }
                (3, Value::Varint(size)) if total_bytes.is_none() => total_bytes = Some(size),
                _ => return Err(UnixfsError::Invalid("a field that links do not have, or have once")),
            }
        }
        Ok(Link {
            cid: cid.ok_or(UnixfsError::Invalid("a link without target"))?,
            name: name.unwrap_or_default().to_owned(),
            total_bytes: total_bytes.unwrap_or(0),
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        wire::put_length(out, NODE_LINK, self.message_len());
        wire::put_length(out, LINK_HASH, self.cid.encoded_len());
        self.cid.write_bytes(&mut *out).expect("a vector takes any bytes");
        wire::put_bytes(out, LINK_NAME, self.name.as_bytes());
        wire::put_number(out, LINK_SIZE, self.total_bytes);
    }

    fn message_len(&self) -> usize {
        let hash = wire::bytes_len(self.cid.encoded_len());
        hash + wire::bytes_len(self.name.len()) + 1 + wire::varint_len(self.total_bytes)
    }

    /// Bytes that the link adds to its node.
    pub fn encoded_len(&self) -> usize {
        wire::bytes_len(self.message_len())
    }
}
