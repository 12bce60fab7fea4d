//! How fast the exchange brings a file from one store to another over loopback TCP, beside a plain
//! stream of the same bytes in the same run: `cargo run --release -p storage --example exchange_bench [MIB]`.
//!
//! Both ends are in this process and share its cores. Streams are not encrypted here; what encryption and
//! multiplexing cost is measured where the network is.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cid::Cid;
use futures::StreamExt;
use futures::stream::BoxStream;
use storage::exchange::{Config, Exchange, FetchRequest, Network, Offence, Peer, PeerStream};
use storage::read;
use storage::store::{AddOptions, Settings, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Bytes that are handed to the socket at once in the plain stream.
const PIECE_BYTES: usize = 256 << 10;

/// Fetches of a small file, of which the median is shown.
const SMALL_FETCHES: usize = 101;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mebibytes: usize = std::env::args().nth(1).map_or(Ok(256), |argument| argument.parse())?;
    let dir = tempfile::tempdir()?;
    let bytes = noise(mebibytes << 20);
    let copy = bytes.clone();
    let watch = Watch::start();
    watch.report("plain stream", plain(copy).await?);

    let book = Arc::new(Book::default());
    let server = Node::start(1, &book, &dir.path().join("server")).await?;
    let client = Node::start(2, &book, &dir.path().join("client")).await?;

    let length = bytes.len();
    let large = server.add(&dir.path().join("large"), bytes).await?;
    let watch = Watch::start();
    let reader = client.exchange.reader([Peer::new(&[1])]);
    let mut pieces = read::cat(&reader, large, .., read::Limits::default());
    let mut seen = 0;
    while let Some(piece) = pieces.next().await {
        seen += piece?.len();
    }
    assert_eq!(seen, length);
    watch.report("read through", length);
    let watch = Watch::start();
    client.fetch(large).await?;
    watch.report("fetch to disk", length);

    let (mut kept, mut read) = (Vec::new(), Vec::new());
    for n in 0..SMALL_FETCHES {
        let small = server.add(&dir.path().join("small"), noise(1024 + n)).await?;
        let started = Instant::now();
        client.exchange.get_block(&small, [Peer::new(&[1])]).await?;
        read.push(started.elapsed());
        let started = Instant::now();
        client.fetch(small).await?;
        kept.push(started.elapsed());
    }
    println!("{:>14}: {:?} read, {:?} fetched and durable (medians)", "1 KiB", median(read), median(kept));
    Ok(())
}

fn median(mut spans: Vec<Duration>) -> Duration {
    spans.sort();
    spans[spans.len() / 2]
}

/// Time of the wall and of the processor: the second says more on a machine that does other things.
struct Watch {
    wall: Instant,
    processor: Duration,
}

impl Watch {
    fn start() -> Watch {
        Watch { wall: Instant::now(), processor: processor_time() }
    }

    fn report(&self, what: &str, bytes: usize) {
        let (wall, processor) = (self.wall.elapsed().as_secs_f64(), processor_time() - self.processor);
        let (rate, cost) = (bytes as f64 / 1e6 / wall, processor.as_secs_f64() * 1e9 / bytes as f64);
        println!("{what:>14}: {rate:7.1} MB/s, {cost:.2} processor seconds for a GB");
    }
}

/// What this process has used.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Bytes that no two blocks share.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ length as u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Bytes through a socket into nothing.
async fn plain(bytes: Vec<u8>) -> Result<usize, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut writer = TcpStream::connect(listener.local_addr()?).await?;
    let (mut reader, _) = listener.accept().await?;
    let length = bytes.len();
    let writing = tokio::spawn(async move {
        for piece in bytes.chunks(PIECE_BYTES) {
            writer.write_all(piece).await?;
        }
        writer.shutdown().await
    });
    let mut buffer = vec![0; PIECE_BYTES];
    while reader.read(&mut buffer).await? > 0 {}
    writing.await??;
    Ok(length)
}

struct Node {
    store: Store,
    exchange: Exchange,
}

impl Node {
    async fn start(number: u8, book: &Arc<Book>, dir: &std::path::Path) -> Result<Node, Failure> {
        let store = Store::open(dir, Settings::default())?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        book.lock().insert(Peer::new(&[number]), listener.local_addr()?);
        let network = Arc::new(Tcp { me: number, book: Arc::clone(book), exchange: OnceLock::new() });
        let exchange = Exchange::start(
            Arc::new(store.clone()),
            Arc::clone(&network) as Arc<dyn Network>,
            Config::default(),
        );
        let accepting = exchange.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let Ok(from) = stream.read_u8().await else { continue };
                accepting.peer_connected(Peer::new(&[from]));
                accepting.inbound(Peer::new(&[from]), Box::pin(stream));
            }
        });
        // The network tells the exchange of connections that it made.
        let _ = network.exchange.set(exchange.clone());
        Ok(Node { store, exchange })
    }

    async fn add(&self, path: &std::path::Path, bytes: Vec<u8>) -> Result<Cid, Failure> {
        tokio::fs::write(path, bytes).await?;
        Ok(self.store.add_path(path, AddOptions::default()).await?.cid)
    }

    async fn fetch(&self, root: Cid) -> Result<(), Failure> {
        self.exchange.fetch(FetchRequest::new(root).hints([Peer::new(&[1])])).await?;
        Ok(())
    }
}

/// Where peers listen.
#[derive(Default)]
struct Book(Mutex<BTreeMap<Peer, SocketAddr>>);

impl Book {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Peer, SocketAddr>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A connection for each stream; the first byte says who calls.
struct Tcp {
    me: u8,
    book: Arc<Book>,
    exchange: OnceLock<Exchange>,
}

#[async_trait]
impl Network for Tcp {
    async fn open_stream(&self, peer: &Peer, _protocol: &'static str) -> io::Result<PeerStream> {
        let address = self.book.lock().get(peer).copied();
        let mut stream = TcpStream::connect(address.ok_or(io::ErrorKind::NotFound)?).await?;
        stream.set_nodelay(true)?;
        stream.write_u8(self.me).await?;
        if let Some(exchange) = self.exchange.get() {
            exchange.peer_connected(peer.clone());
        }
        Ok(Box::pin(stream))
    }

    fn connected(&self) -> Vec<Peer> {
        Vec::new()
    }

    fn providers(&self, _cid: &Cid) -> BoxStream<'static, Peer> {
        futures::stream::empty().boxed()
    }

    fn agent(&self, _peer: &Peer) -> Option<String> {
        Some("cardume/bench".into())
    }

    fn penalise(&self, peer: &Peer, offence: Offence) {
        println!("{peer:?}: {offence:?}");
    }
}
