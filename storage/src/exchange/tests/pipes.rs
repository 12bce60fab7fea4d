//! Exchanges in one process, joined by pipes, with content in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;
use cid::multihash::Multihash;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

use crate::block::{self, Block, BlockError, LocalBlocks};
use crate::exchange::frame::{Budget, FrameReader};
use crate::exchange::message::{self, Message};
use crate::exchange::*;
use crate::fetch::{Accepted, FetchError, FetchLimits, Progress, Sink, Want};

/// Codec of the nodes of these tests: the CIDs of their children, one after the other.
pub const NODE: u64 = block::DAG_CBOR;

/// Bytes of a CID in a node.
const CID_BYTES: usize = 36;

type Digest = Multihash<64>;

/// A node: an exchange, and what it holds.
pub struct Node {
    pub exchange: Exchange,
    pub memory: Arc<Memory>,
}

/// Content in memory.
#[derive(Default)]
pub struct Memory {
    blocks: Mutex<BTreeMap<Digest, Bytes>>,
    damaging: bool,
    thinking: bool,
    open: AtomicU64,
    most_open: AtomicU64,
}

impl Memory {
    pub fn with(blocks: &[Block]) -> Memory {
        let memory = Memory::default();
        blocks.iter().for_each(|block| memory.put(block));
        memory
    }

    /// Gives out its blocks with one bit turned.
    pub fn damaging(mut self) -> Memory {
        self.damaging = true;
        self
    }

    /// Says what it wants of a fetch only once nothing else goes on.
    pub fn thinking(mut self) -> Memory {
        self.thinking = true;
        self
    }

    pub fn put(&self, block: &Block) {
        self.blocks.lock().unwrap().insert(*block.cid.hash(), block.data.clone());
    }

    pub fn has(&self, cid: &Cid) -> bool {
        self.get(cid).is_some()
    }

    fn get(&self, cid: &Cid) -> Option<Bytes> {
        self.blocks.lock().unwrap().get(cid.hash()).cloned()
    }

    /// The most bytes of leaves that were handed out and not here at any time.
    pub fn most_at_once(&self) -> u64 {
        self.most_open.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl LocalBlocks for Memory {
    fn block_size(&self, cid: &Cid) -> Result<Option<u32>, BlockError> {
        Ok(self.get(cid).map(|data| data.len() as u32))
    }

    async fn local_block(&self, cid: &Cid) -> Result<Option<Bytes>, BlockError> {
        let Some(data) = self.get(cid) else { return Ok(None) };
        if !self.damaging {
            return Ok(Some(data));
        }
        let mut data = data.to_vec();
        data[0] ^= 1;
        Ok(Some(data.into()))
    }
}

/// Shared, so that a sink can hold on to it.
pub struct Shared(Arc<Memory>);

#[async_trait]
impl LocalBlocks for Shared {
    fn block_size(&self, cid: &Cid) -> Result<Option<u32>, BlockError> {
        self.0.block_size(cid)
    }

    async fn local_block(&self, cid: &Cid) -> Result<Option<Bytes>, BlockError> {
        self.0.local_block(cid).await
    }
}

#[async_trait]
impl Contents for Shared {
    async fn sink(&self, root: Cid, _limits: FetchLimits) -> Result<Arc<dyn Sink>, FetchError> {
        let walk = Walk { ahead: vec![root], ..Walk::default() };
        Ok(Arc::new(MemorySink { root, memory: Arc::clone(&self.0), walk: Mutex::new(walk) }))
    }
}

struct MemorySink {
    root: Cid,
    memory: Arc<Memory>,
    walk: Mutex<Walk>,
}

#[derive(Default)]
struct Walk {
    /// To be looked at, the next one last.
    ahead: Vec<Cid>,
    asked: BTreeSet<Digest>,
    progress: Progress,
}

impl Walk {
    fn enter(&mut self, cid: &Cid, data: &Bytes) {
        self.progress.blocks += 1;
        self.progress.bytes += data.len() as u64;
        if cid.codec() == NODE {
            let children = data.chunks(CID_BYTES).rev().map(|cid| Cid::try_from(cid).unwrap());
            self.ahead.extend(children);
        }
    }
}

impl MemorySink {
    fn look(&self, max_blocks: usize, max_bytes: u64) -> Vec<Want> {
        let mut walk = self.walk.lock().unwrap();
        let (mut wants, mut bytes) = (Vec::new(), 0);
        while wants.len() < max_blocks
            && bytes < max_bytes
            && let Some(cid) = walk.ahead.pop()
        {
            if let Some(data) = self.memory.get(&cid) {
                walk.enter(&cid, &data);
                continue;
            }
            let size_bytes = (cid.codec() == block::RAW).then_some(1 << 20);
            let open = self.memory.open.fetch_add(size_bytes.unwrap_or(0), Ordering::Relaxed);
            self.memory.most_open.fetch_max(open + size_bytes.unwrap_or(0), Ordering::Relaxed);
            bytes += size_bytes.unwrap_or(crate::fetch::UNKNOWN_SIZE_BYTES);
            walk.asked.insert(*cid.hash());
            wants.push(Want { cid, size_bytes });
        }
        wants
    }
}

#[async_trait]
impl Sink for MemorySink {
    fn root(&self) -> Cid {
        self.root
    }

    async fn next_wants(&self, max_blocks: usize, max_bytes: u64) -> Result<Vec<Want>, FetchError> {
        let wants = self.look(max_blocks, max_bytes);
        if self.memory.thinking {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        Ok(wants)
    }

    fn hand_back(&self, cid: &Cid) {
        self.walk.lock().unwrap().ahead.push(*cid);
    }

    async fn accept(&self, cid: Cid, data: Bytes) -> Result<Accepted, FetchError> {
        block::verify(&cid, &data)?;
        self.accept_hashed(cid, data).await
    }

    fn progress(&self) -> Progress {
        let walk = self.walk.lock().unwrap();
        Progress { complete: walk.ahead.is_empty() && walk.asked.is_empty(), ..walk.progress }
    }

    async fn accept_hashed(&self, cid: Cid, data: Bytes) -> Result<Accepted, FetchError> {
        let mut walk = self.walk.lock().unwrap();
        if !walk.asked.remove(cid.hash()) {
            return Ok(Accepted::NotWanted);
        }
        if cid.codec() == block::RAW {
            self.memory.open.fetch_sub(1 << 20, Ordering::Relaxed);
        }
        walk.progress.fetched_bytes += data.len() as u64;
        walk.enter(&cid, &data);
        self.memory.put(&Block { cid, data });
        Ok(Accepted::Stored)
    }

    async fn finish(&self) -> Result<(), FetchError> {
        let complete = self.progress().complete;
        if complete { Ok(()) } else { Err(FetchError::Incomplete(self.root)) }
    }
}

/// Peers by number, and the pipes between them.
#[derive(Clone, Default)]
pub struct Swarm(Arc<Hub>);

#[derive(Default)]
pub struct Hub {
    exchanges: Mutex<BTreeMap<u8, Weak<Inner>>>,
    kubos: Mutex<BTreeMap<u8, tokio::sync::mpsc::UnboundedSender<(u8, DuplexStream)>>>,
    cuts: Mutex<BTreeMap<u8, Arc<AtomicBool>>>,
    providers: Mutex<BTreeMap<Cid, Vec<Peer>>>,
    penalties: Mutex<BTreeMap<Peer, usize>>,
}

/// One peer's view of the swarm.
struct View {
    hub: Weak<Hub>,
    me: u8,
}

impl Deref for Swarm {
    type Target = Hub;

    fn deref(&self) -> &Hub {
        &self.0
    }
}

impl Swarm {
    pub fn new() -> Swarm {
        Swarm::default()
    }

    pub fn start(&self, n: u8, memory: Memory) -> Arc<Node> {
        let memory = Arc::new(memory);
        let exchange = self.start_with(n, Arc::new(Shared(Arc::clone(&memory))));
        Arc::new(Node { exchange, memory })
    }

    /// A peer with other contents.
    pub fn start_with(&self, n: u8, contents: Arc<dyn Contents>) -> Exchange {
        let view = View { hub: Arc::downgrade(&self.0), me: n };
        let exchange = Exchange::start(contents, Arc::new(view), Config::default());
        self.exchanges.lock().unwrap().insert(n, Arc::downgrade(&exchange.inner));
        exchange
    }

    /// Serves blocks on a stream for each, as Kubo does.
    pub fn answer_like_kubo(&self, n: u8, blocks: &[Block]) {
        let (streams, mut incoming) = tokio::sync::mpsc::unbounded_channel();
        self.kubos.lock().unwrap().insert(n, streams);
        let (blocks, hub) = (Memory::with(blocks), Arc::downgrade(&self.0));
        tokio::spawn(async move {
            let Some((asker, stream)) = incoming.recv().await else { return };
            let mut frames = FrameReader::new(stream);
            let budget = Budget::of_peer(Budget::total());
            while let Ok(Some(frame)) = frames.next(&budget, || {}).await {
                for entry in Message::decode(frame).unwrap().entries {
                    let (Some(data), Some(hub)) = (blocks.get(&entry.cid), hub.upgrade()) else { continue };
                    let (mut ours, theirs) = tokio::io::duplex(1 << 20);
                    let block = message::Block::new(&entry.cid, data);
                    let message = Message { blocks: vec![block], ..Message::default() };
                    ours.write_all(&message.encode().concat()).await.unwrap();
                    hub.node(asker).unwrap().inbound(hub.peer(n), Box::pin(theirs));
                }
            }
        });
    }
}

impl Hub {
    pub fn peer(&self, n: u8) -> Peer {
        Peer::new(&[n])
    }

    pub fn provide(&self, cid: Cid, n: u8) {
        self.providers.lock().unwrap().entry(cid).or_default().push(self.peer(n));
    }

    /// Breaks all pipes of a peer, and refuses new ones.
    pub fn cut(&self, n: u8) {
        self.switch(n).store(true, Ordering::Relaxed);
    }

    pub fn penalties(&self, n: u8) -> usize {
        self.penalties.lock().unwrap().get(&self.peer(n)).copied().unwrap_or_default()
    }

    fn switch(&self, n: u8) -> Arc<AtomicBool> {
        Arc::clone(self.cuts.lock().unwrap().entry(n).or_default())
    }

    fn node(&self, n: u8) -> Option<Exchange> {
        let inner = self.exchanges.lock().unwrap().get(&n)?.upgrade()?;
        Some(Exchange { inner })
    }
}

#[async_trait]
impl Network for View {
    async fn open_stream(&self, peer: &Peer, protocol: &'static str) -> io::Result<PeerStream> {
        assert_eq!(protocol, PROTOCOL);
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let hub = self.hub.upgrade().ok_or_else(refused)?;
        let n = peer.as_bytes()[0];
        let (ours, theirs) = tokio::io::duplex(256 << 10);
        if let Some(kubo) = hub.kubos.lock().unwrap().get(&n) {
            kubo.send((self.me, theirs)).map_err(|_| refused())?;
            return Ok(Box::pin(ours));
        }
        let cuts = [hub.switch(n), hub.switch(self.me)];
        if cuts.iter().any(|cut| cut.load(Ordering::Relaxed)) {
            return Err(refused());
        }
        let node = hub.node(n).ok_or_else(refused)?;
        let me = hub.peer(self.me);
        node.peer_connected(me.clone());
        if let Some(own) = hub.node(self.me) {
            own.peer_connected(peer.clone());
        }
        node.inbound(me, Box::pin(Pipe { pipe: theirs, cuts: cuts.clone() }));
        Ok(Box::pin(Pipe { pipe: ours, cuts }))
    }

    fn connected(&self) -> Vec<Peer> {
        Vec::new()
    }

    fn providers(&self, cid: &Cid) -> BoxStream<'static, Peer> {
        let hub = self.hub.upgrade();
        let providers = hub.and_then(|hub| hub.providers.lock().unwrap().get(cid).cloned());
        futures::stream::iter(providers.unwrap_or_default()).boxed()
    }

    fn agent(&self, _peer: &Peer) -> Option<String> {
        Some("cardume/test".into())
    }

    fn penalise(&self, peer: &Peer, _offence: Offence) {
        if let Some(hub) = self.hub.upgrade() {
            *hub.penalties.lock().unwrap().entry(peer.clone()).or_default() += 1;
        }
    }
}

/// A pipe that can be cut.
struct Pipe {
    pipe: DuplexStream,
    cuts: [Arc<AtomicBool>; 2],
}

impl Pipe {
    fn is_cut(&self) -> bool {
        self.cuts.iter().any(|cut| cut.load(Ordering::Relaxed))
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_cut() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.pipe).poll_read(context, out)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_cut() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.pipe).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(context)
    }
}

/// A stream that says what it was told to say, and ends.
pub struct Canned(io::Cursor<Vec<u8>>);

impl Canned {
    pub fn new(bytes: &[u8]) -> Canned {
        Canned(io::Cursor::new(bytes.to_vec()))
    }
}

impl AsyncRead for Canned {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, out)
    }
}

impl AsyncWrite for Canned {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
