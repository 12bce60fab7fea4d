//! The socketpair between a node and a runner child: whole packets, with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Ready;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::sys;
use super::wire::{Encoded, PACKET_BYTES, PACKET_FDS, Packet};

/// The node's end and the child's end.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// One end of the pair under tokio. Both directions may be used at once, each by one task.
#[derive(Debug)]
pub(crate) struct Link(AsyncFd<OwnedFd>);

impl Link {
    /// Takes over an end. Must be called within a tokio runtime.
    pub fn new(end: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&end, true)?;
        Ok(Link(sys::watch(end)?))
    }

    /// Sends a packet, waiting for room.
    ///
    /// Dropping the future sends it whole or not at all.
    pub async fn send(&self, packet: &Packet) -> io::Result<()> {
        loop {
            match send(self.0.get_ref(), packet) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut ready = self.0.writable().await?;
                    // Tried again after registering: room may have come in between.
                    match send(self.0.get_ref(), packet) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            ready.clear_ready_matching(Ready::WRITABLE);
                        }
                        other => return other,
                    }
                }
                other => return other,
            }
        }
    }

    /// Receives a packet into `buffer` and its descriptors into `fds`; its length, or 0 when the other side
    /// is gone.
    ///
    /// Dropping the future loses nothing.
    pub async fn receive(&self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match receive(self.0.get_ref(), buffer, fds) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                other => return other,
            }
        }
    }
}

/// Where messages to the other side go. What bounds their number is said where they are sent: on the node's side
/// how many may wait, on a runner's credit and slots.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    link: Arc<Link>,
    queue: mpsc::UnboundedSender<Encoded>,
    waiting: Arc<AtomicUsize>,
}

/// What an [`Outbox`] holds back, for [`Queue::pump`].
#[derive(Debug)]
pub(crate) struct Queue {
    link: Arc<Link>,
    messages: mpsc::UnboundedReceiver<Encoded>,
    waiting: Arc<AtomicUsize>,
}

/// Both ends of a queue of messages to the other side.
pub(crate) fn outbox(link: &Arc<Link>) -> (Outbox, Queue) {
    let (queue, messages) = mpsc::unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let outbox = Outbox { link: Arc::clone(link), queue, waiting: Arc::clone(&waiting) };
    (outbox, Queue { link: Arc::clone(link), messages, waiting })
}

impl Outbox {
    /// How many messages wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Sends a message, sooner or later, in order. One that comes `alone`, with no other to share a packet
    /// with, goes at once.
    pub fn send(&self, message: Encoded, alone: bool) {
        if alone
            && self.waiting.load(Ordering::Acquire) == 0
            && send_one(self.link.0.get_ref(), &message).is_ok()
        {
            return;
        }
        // Nothing overtakes what waits: that is counted until it is sent.
        self.waiting.fetch_add(1, Ordering::AcqRel);
        // A closed queue means that the other side is gone, which whoever reads from it deals with.
        let _ = self.queue.send(message);
    }
}

/// Messages taken from the queue at once; more than fit a packet, fewer than would delay the first much.
const MESSAGES_AT_ONCE: usize = 256;

impl Queue {
    /// How many messages wait.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Sends what waits, as much as fits in each packet, until no outbox is left. Before sending it lets
    /// others go first `yields` times: what they have to say then shares the packet.
    pub async fn pump(mut self, yields: usize) -> io::Result<()> {
        let mut batch = Vec::with_capacity(MESSAGES_AT_ONCE);
        let mut packet = Packet::default();
        while self.messages.recv_many(&mut batch, MESSAGES_AT_ONCE).await > 0 {
            for _ in 0..yields {
                tokio::task::yield_now().await;
            }
            while batch.len() < MESSAGES_AT_ONCE {
                let Ok(message) = self.messages.try_recv() else { break };
                batch.push(message);
            }
            let count = batch.len();
            for message in batch.drain(..) {
                if let Err(message) = packet.push(message) {
                    self.link.send(&packet).await?;
                    packet.clear();
                    packet.push(message).map_err(|_| io::Error::other("a message does not fit a packet"))?;
                }
            }
            self.link.send(&packet).await?;
            packet.clear();
            self.waiting.fetch_sub(count, Ordering::AcqRel);
        }
        Ok(())
    }
}

/// A buffer that every packet fits.
pub(crate) fn buffer() -> Vec<u8> {
    vec![0; PACKET_BYTES]
}

/// Sends one packet.
pub(crate) fn send(end: impl AsFd, packet: &Packet) -> io::Result<()> {
    send_parts(end, &[IoSlice::new(&packet.bytes)], &packet.fds)
}

/// Sends one message as a packet of its own.
fn send_one(end: impl AsFd, message: &Encoded) -> io::Result<()> {
    send_parts(end, &[IoSlice::new(&message.head()), IoSlice::new(message.body())], message.fds())
}

fn send_parts(end: impl AsFd, parts: &[IoSlice<'_>], fds: &[OwnedFd]) -> io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one packet"));
    }
    sendmsg(end, parts, &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one packet; 0 when the other side is gone. A packet cut short is an error; one whose descriptors this
/// process has no room for is not, and comes with those that there was room for.
pub(crate) fn receive(end: impl AsFd, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let got = match recvmsg(end, &mut [IoSliceMut::new(buffer)], &mut beside, RecvFlags::CMSG_CLOEXEC) {
        Err(rustix::io::Errno::CONNRESET) => return Ok(0),
        other => other?,
    };
    fds.clear();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet was cut short"));
    }
    Ok(got.bytes)
}
