//! What can go wrong, one enum per family of calls.

use std::{io, path::PathBuf};

use libp2p::Multiaddr;

/// An identity could not be read or created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The key file or its folder could not be read.
    #[error("could not read the key file {path}")]
    Read {
        /// Where the key was expected.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The key file could not be written.
    #[error("could not write the key file {path}")]
    Write {
        /// Where the key was to be kept.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A key file is already there, and a new one was asked for.
    #[error("the key file {path} exists already")]
    Exists {
        /// The file that is there.
        path: PathBuf,
    },
    /// Others than its owner may use the key file.
    #[error("the key file {path} has mode {mode:o}, others may use it: run chmod 600 on it")]
    FileMode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others than its owner may replace the key file.
    #[error(
        "the folder {path} of the key file has mode {mode:o}, others may write to it: run chmod 700 on it"
    )]
    FolderMode {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The content is not an Ed25519 key.
    #[error("the key file {path} is damaged: {reason}")]
    Damaged {
        /// The key file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A name of a swarm, topic, protocol or request is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {kind} name {name:?} is not allowed: {allowed}")]
pub struct NameError {
    /// What was named.
    pub kind: &'static str,
    /// The name as given, cut to 80 characters.
    pub name: String,
    /// What a name must look like.
    pub allowed: &'static str,
}

/// The host could not start, or is no longer there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The network task has ended.
    #[error("the network task has stopped")]
    Stopped,
    /// The network task ended by a bug.
    #[error("the network task panicked: {0}")]
    Panicked(String),
    /// A name in the configuration is not allowed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A setting of the configuration cannot be used.
    #[error("the network setting {setting} cannot be used: {reason}")]
    Setting {
        /// The field's name.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The transports could not be made.
    #[error("could not set up the network transports: {0}")]
    Transport(String),
    /// An address could not be listened on.
    #[error("could not listen on {address}: {reason}")]
    Listen {
        /// The address that was tried.
        address: Multiaddr,
        /// What the system said.
        reason: String,
    },
    /// Every listener closed before it was ready.
    #[error("no listener is left: {0}")]
    NotListening(String),
}

/// A peer could not be dialled.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// No address of the peer is known.
    #[error("no address of the peer is known")]
    NoAddress,
    /// The peer's machine answers, and says that nobody listens at any of its addresses.
    #[error("nobody listens there: {0}")]
    Refused(String),
    /// Every address was tried and failed.
    #[error("could not connect: {0}")]
    Failed(String),
    /// The peer is blocked for its offences.
    #[error("the peer is blocked")]
    Blocked,
    /// The network task has ended.
    #[error("the network task has stopped")]
    Stopped,
}

/// A stream to a peer could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The protocol's name is not allowed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The peer is not connected and could not be dialled.
    #[error("could not reach the peer")]
    Dial(#[from] DialError),
    /// The peer does not speak the protocol.
    #[error("the peer does not speak {0}")]
    Unsupported(String),
    /// The peer did not answer in time.
    #[error("the peer did not open the stream in time")]
    Timeout,
    /// The connection closed while the stream was being opened.
    #[error("the connection closed while the stream was being opened")]
    Disconnected,
    /// Too many streams wait for a place on the connection.
    #[error("too many streams to the peer are waiting to be opened")]
    Busy,
    /// The network task has ended.
    #[error("the network task has stopped")]
    Stopped,
}

/// Streams of a protocol could not be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// The protocol's name is not allowed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Somebody accepts this protocol already.
    #[error("streams of {0} are accepted elsewhere already")]
    Taken(String),
}

/// A frame was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The frame is larger than [`MAX_FRAME_BYTES`](crate::MAX_FRAME_BYTES).
    #[error("the frame of {size} bytes is larger than {max} bytes")]
    TooLarge {
        /// The frame's size.
        size: usize,
        /// The largest allowed.
        max: usize,
    },
    /// The queue of this peer is full: it takes frames slower than they are made.
    #[error("the queue of frames to the peer is full")]
    Full,
    /// The peer is this host itself.
    #[error("a host cannot send frames to itself")]
    Own,
    /// The network task has ended.
    #[error("the network task has stopped")]
    Stopped,
}

/// A request got no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The request's name is not allowed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No stream could be opened.
    #[error("could not send the request")]
    Open(#[from] OpenError),
    /// Request or answer is larger than [`MAX_REQUEST_BYTES`](crate::MAX_REQUEST_BYTES).
    #[error("the {what} of {size} bytes is larger than {max} bytes")]
    TooLarge {
        /// `request` or `answer`.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The largest allowed.
        max: usize,
    },
    /// No answer came in time.
    #[error("the peer did not answer in time")]
    Timeout,
    /// The peer knows no such request, or gave it up.
    #[error("the peer refused the request")]
    Refused,
    /// The peer has too many requests in hand.
    #[error("the peer is too busy for the request")]
    Busy,
    /// The stream broke.
    #[error("the stream of the request broke")]
    Stream(#[source] io::Error),
}

/// A message was not published.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// No connected peer takes this topic. Publish again when one subscribes.
    #[error("no connected peer takes the topic")]
    NoPeers,
    /// The message is larger than the network carries.
    #[error("the message is larger than {0} bytes")]
    TooLarge(usize),
    /// The queues to all peers are full.
    #[error("the queues to all peers are full")]
    Full,
    /// These bytes were published on this topic not long ago.
    #[error("the same message was published before")]
    Duplicate,
    /// The topic is not among the configured ones.
    #[error("the topic {0:?} is not one of this swarm's")]
    UnknownTopic(String),
    /// Anything else; not expected.
    #[error("could not publish: {0}")]
    Other(String),
    /// The network task has ended.
    #[error("the network task has stopped")]
    Stopped,
}

/// A topic could not be used.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// The topic is not among the configured ones.
    #[error("the topic {0:?} is not one of this swarm's")]
    UnknownTopic(String),
    /// The network task has ended.
    #[error("the network task has stopped")]
    Stopped,
}

/// The DHT could not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DhtError {
    /// Keys have 1 to 64 bytes.
    #[error("a DHT key has 1 to {max} bytes, this one {size}")]
    Key {
        /// The key's size.
        size: usize,
        /// The largest allowed.
        max: usize,
    },
    /// This host provides as many keys as it may.
    #[error("no more than {0} keys can be provided")]
    Full(usize),
    /// Too many searches are under way.
    #[error("too many searches are under way")]
    Busy,
    /// The network task has ended.
    #[error("the network task has stopped")]
    Stopped,
}
