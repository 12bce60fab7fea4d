//! What a node and its runner children say to each other, and how it lies in packets.
//!
//! A packet is one datagram of a socketpair: several messages, each a length, a count of descriptors and a
//! CBOR map, and the descriptors of all of them beside it. Under load many messages share a packet, and its
//! system call.
//!
//! The runner's side may have been taken over by a guest. What it sends is decoded without trust: lengths are
//! checked, and anything that does not decode ends the runner.

use std::os::fd::OwnedFd;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::settings::SandboxReport;

/// The longest packet. The default socket buffer takes 212,960 bytes in one; longer ones are refused.
pub(crate) const PACKET_BYTES: usize = 192 << 10;

/// The most descriptors in one packet; the kernel takes 253.
pub(crate) const PACKET_FDS: usize = 64;

/// Output travels in pieces of at most this size.
pub(crate) const CHUNK_BYTES: usize = 32 << 10;

/// How much of a stream may be on its way before the node has taken it in.
pub(crate) const CREDIT_BYTES: u64 = 256 << 10;

/// What the shortest piece of output counts as: pieces cost memory of their own, so credit bounds their number, too.
const PIECE_BYTES: u64 = 512;

/// How much credit a piece of output of this length takes.
pub(crate) fn cost(length: usize) -> u64 {
    (length as u64).max(PIECE_BYTES)
}

/// Credit is given back in amounts of this size, so that a runner that does not listen is owed few messages.
pub(crate) const CREDIT_STEP: u64 = CREDIT_BYTES / 4;

/// Arguments and environment of one guest; they travel in one message.
pub(crate) const ARGUMENTS_BYTES: usize = 128 << 10;

/// Input and output directories of one guest; their descriptors travel in one packet.
pub(crate) const MOUNTS_MAX: usize = 32;

/// Text of a trap, a refusal or an error.
pub(crate) const TEXT_BYTES: usize = 4 << 10;

/// The first message to a child: what it is to be.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Setup {
    /// Run guests until the socket closes. Comes with the output root, and the input root when inputs are
    /// not detached mounts.
    Serve(Box<Serve>),
    /// Compile one module and exit. Comes with the module's file.
    Compile(Box<Compile>),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Serve {
    pub slots: u32,
    pub threads: u32,
    pub sandbox: Plan,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Compile {
    pub entrypoint: String,
    pub sandbox: Plan,
}

/// Which sandbox a child puts itself into.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The node, which must still be the parent.
    pub parent: u32,
    /// The user to become; only root can.
    pub uid: Option<u32>,
    /// Directories come as detached mounts, so an empty root is required and reading need not be ruled by
    /// Landlock.
    pub detached_mounts: bool,
    /// Guests of anyone will run: refuse without Landlock and seccomp.
    pub for_anyone: bool,
    /// RLIMIT_DATA.
    pub data_bytes: u64,
    /// RLIMIT_CPU.
    pub cpu_seconds: Option<u64>,
    /// RLIMIT_FSIZE.
    pub file_bytes: u64,
    /// It may make files in memory, which no limit counts; compiling hands over its code in one.
    pub memory_files: bool,
    /// RLIMIT_NOFILE.
    pub open_files: u64,
    /// How much to yield to other processes.
    pub nice: i32,
}

/// From the node to a runner that serves.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToRunner {
    /// Comes with the file of compiled code.
    Load {
        module: u64,
    },
    Unload {
        module: u64,
    },
    /// Comes with one directory for each mount.
    Start(Start),
    Stop {
        id: u64,
    },
    Credit {
        id: u64,
        stream: u8,
        bytes: u64,
    },
    Ping {
        number: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub id: u64,
    pub module: u64,
    pub entrypoint: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub memory_bytes: u64,
    pub cpu_milli: u32,
    pub output_bytes: u64,
    pub wall_nanos: Option<u64>,
    /// Caps of stdout and stderr.
    pub caps: [u64; 2],
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub target: String,
    pub writable: bool,
}

/// From a runner that serves to the node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToNode {
    Ready(Ready),
    /// The runner cannot be what it was asked to be.
    Refused(String),
    Output {
        id: u64,
        stream: u8,
        bytes: Bytes,
    },
    Ended(Finished),
    Pong {
        number: u64,
    },
}

/// What a runner is, once it can take executions.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub report: SandboxReport,
    /// Names the compiler whose code it runs.
    pub compiler: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Finished {
    pub id: u64,
    pub how: How,
    /// What is left of stdout and stderr.
    pub rest: [Bytes; 2],
    /// What was beyond the caps and did not travel.
    pub discarded: [u64; 2],
    pub cpu_nanos: u64,
    pub peak_memory_bytes: u64,
    pub wall_nanos: u64,
}

/// How a guest ended, as its runner saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum How {
    Exited(i32),
    TimedOut,
    Stopped,
    OutOfMemory,
    /// Files that it had removed and still held open were larger than its results may be.
    RemovedTooMuch,
    Trapped(String),
    /// The runner could not run it: a fault of the node.
    Failed(String),
}

/// The only message of a child that compiles.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Compiled {
    /// Comes with a sealed memory file.
    Code { memory_minimum: u64 },
    /// The module is not one that can run here; a fault of the job.
    Refused(String),
    /// The child could not do its work: a fault of the node.
    Failed(String),
}

/// Why a packet is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a message of {0} bytes is too long for a packet")]
    TooLong(usize),
    #[error("a packet ends in the middle of a message")]
    Short,
    #[error("a packet lacks the descriptors that its messages name")]
    Descriptors,
    #[error("a message cannot be decoded: {0}")]
    Decode(String),
}

/// Bytes before each message: its length, and how many descriptors are its.
const HEAD_BYTES: usize = 5;

/// A packet being filled.
#[derive(Debug, Default)]
pub(crate) struct Packet {
    pub bytes: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Packet {
    /// Adds a message, or gives it back encoded when it no longer fits; it always fits an empty packet.
    pub fn push(&mut self, message: Encoded) -> Result<(), Encoded> {
        let too_long = self.bytes.len() + HEAD_BYTES + message.bytes.len() > PACKET_BYTES;
        if !self.bytes.is_empty() && (too_long || self.fds.len() + message.fds.len() > PACKET_FDS) {
            return Err(message);
        }
        self.bytes.extend_from_slice(&message.head());
        self.bytes.extend_from_slice(&message.bytes);
        self.fds.extend(message.fds);
        Ok(())
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.fds.clear();
    }
}

/// A message that is known to fit a packet, with its descriptors.
#[derive(Debug)]
pub(crate) struct Encoded {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Encoded {
    /// What comes before its body in a packet.
    pub fn head(&self) -> [u8; HEAD_BYTES] {
        let [a, b, c, d] = (self.bytes.len() as u32).to_le_bytes();
        [a, b, c, d, self.fds.len() as u8]
    }

    pub fn body(&self) -> &[u8] {
        &self.bytes
    }

    pub fn fds(&self) -> &[OwnedFd] {
        &self.fds
    }
}

/// Encodes one message.
pub(crate) fn encode<M: Serialize>(message: &M, fds: Vec<OwnedFd>) -> Result<Encoded, WireError> {
    let bytes = cbor4ii::serde::to_vec(Vec::with_capacity(256), message)
        .map_err(|error| WireError::Decode(error.to_string()))?;
    if bytes.len() + HEAD_BYTES > PACKET_BYTES {
        return Err(WireError::TooLong(bytes.len()));
    }
    if fds.len() > PACKET_FDS {
        return Err(WireError::Descriptors);
    }
    Ok(Encoded { bytes, fds })
}

/// Decodes the messages of a packet, in order, each with its descriptors.
pub(crate) fn decode<M: DeserializeOwned>(
    bytes: &[u8],
    fds: &mut Vec<OwnedFd>,
    mut each: impl FnMut(M, Vec<OwnedFd>),
) -> Result<(), WireError> {
    let mut whole = true;
    decode_each(bytes, fds, |message, fds| match fds {
        Some(fds) if whole => each(message, fds),
        _ => whole = false,
    })?;
    if whole { Ok(()) } else { Err(WireError::Descriptors) }
}

/// Decodes the messages of a packet, in order, each with its descriptors: none when some of them did not come,
/// which is how a process learns that it has no room for more.
pub(crate) fn decode_each<M: DeserializeOwned>(
    mut bytes: &[u8],
    fds: &mut Vec<OwnedFd>,
    mut each: impl FnMut(M, Option<Vec<OwnedFd>>),
) -> Result<(), WireError> {
    let mut fds = fds.drain(..);
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at_checked(HEAD_BYTES).ok_or(WireError::Short)?;
        let (&[a, b, c, d], &[count]) = head.split_first_chunk().ok_or(WireError::Short)? else {
            return Err(WireError::Short);
        };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let (body, rest) = rest.split_at_checked(length).ok_or(WireError::Short)?;
        let own: Vec<OwnedFd> = fds.by_ref().take(usize::from(count)).collect();
        let own = (own.len() == usize::from(count)).then_some(own);
        let message =
            cbor4ii::serde::from_slice(body).map_err(|error| WireError::Decode(error.to_string()))?;
        each(message, own);
        bytes = rest;
    }
    Ok(())
}

/// Cuts a text to what a message carries, at a character's end.
pub(crate) fn shorten(mut text: String) -> String {
    if text.len() > TEXT_BYTES {
        let end = (0..=TEXT_BYTES).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn output(id: u64, bytes: Vec<u8>) -> ToNode {
        ToNode::Output { id, stream: 1, bytes: bytes.into() }
    }

    #[test]
    fn messages_share_a_packet_until_it_is_full() {
        let mut packet = Packet::default();
        let mut pushed = 0;
        while packet.push(encode(&output(pushed, vec![0; CHUNK_BYTES]), vec![]).unwrap()).is_ok() {
            pushed += 1;
        }
        assert_eq!(pushed, 5);
        assert!(packet.bytes.len() <= PACKET_BYTES);
        let mut seen = Vec::new();
        decode(&packet.bytes, &mut Vec::new(), |message: ToNode, _| match message {
            ToNode::Output { id, stream: 1, bytes } if bytes.len() == CHUNK_BYTES => seen.push(id),
            other => panic!("{other:?}"),
        })
        .unwrap();
        assert_eq!(seen, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn descriptors_go_to_the_messages_that_name_them() {
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let mut packet = Packet::default();
        packet.push(encode(&ToRunner::Load { module: 1 }, vec![open()]).unwrap()).unwrap();
        packet.push(encode(&ToRunner::Unload { module: 1 }, vec![]).unwrap()).unwrap();
        packet.push(encode(&ToRunner::Load { module: 2 }, vec![open(), open()]).unwrap()).unwrap();
        let mut counts = Vec::new();
        decode(&packet.bytes, &mut packet.fds, |_: ToRunner, fds| counts.push(fds.len())).unwrap();
        assert_eq!(counts, [1, 0, 2]);
        let missing = decode(&packet.bytes, &mut Vec::new(), |_: ToRunner, _| ());
        assert!(matches!(missing, Err(WireError::Descriptors)));
    }

    #[test]
    fn what_is_too_long_is_refused_before_it_is_sent() {
        let long = encode(&output(1, vec![0; PACKET_BYTES]), vec![]);
        assert!(matches!(long, Err(WireError::TooLong(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn messages_come_back_as_they_were(id: u64, bytes: Vec<u8>, text in ".{0,40}") {
            let mut packet = Packet::default();
            packet.push(encode(&output(id, bytes.clone()), vec![]).unwrap()).unwrap();
            packet.push(encode(&ToNode::Refused(text.clone()), vec![]).unwrap()).unwrap();
            let mut seen = Vec::new();
            decode(&packet.bytes, &mut Vec::new(), |message: ToNode, _| seen.push(message)).unwrap();
            match &seen[..] {
                [ToNode::Output { id: i, bytes: b, .. }, ToNode::Refused(t)] => {
                    prop_assert_eq!((*i, &b[..], t), (id, &bytes[..], &text));
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn bytes_that_are_no_packet_are_an_error_and_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes, &mut Vec::new(), |_: ToNode, _| ());
        }

        #[test]
        fn texts_are_cut_between_characters(text in ".{0,3000}") {
            prop_assert!(shorten(text.repeat(3)).len() <= TEXT_BYTES + '…'.len_utf8());
        }
    }
}
