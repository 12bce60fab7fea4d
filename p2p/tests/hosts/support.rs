//! Starting hosts and waiting for their events.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use p2p::{Config, Event, Events, Host, Identity, Multiaddr, PeerId};

/// Only ends tests that hang.
pub const HANG: Duration = Duration::from_secs(120);
pub const TOPIC: &str = "jobs/1/wasm";

pub struct Node {
    pub host: Host,
    pub events: Events,
}

pub fn config(seed: u8) -> Config {
    Config { topics: vec![TOPIC.to_owned()], ..Config::loopback(Identity::from_seed([seed; 32]), "test") }
}

pub async fn start(config: Config) -> Node {
    // RUST_LOG=p2p=debug shows what the hosts do; set once for all tests of the process.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    let (host, events) = Host::start(config).await.unwrap();
    host.wait_until_listening().await.unwrap();
    Node { host, events }
}

/// A node that joins by another one.
pub async fn join(seed: u8, first: &Node) -> Node {
    start(Config { bootstrap: first.host.announce_addrs(), ..config(seed) }).await
}

/// Two nodes, connected.
pub async fn pair() -> (Node, Node) {
    let mut one = start(config(1)).await;
    let mut two = join(2, &one).await;
    one.connected_to(two.peer()).await;
    two.connected_to(one.peer()).await;
    (one, two)
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANG, future).await.expect("the test hangs")
}

impl Node {
    pub fn peer(&self) -> PeerId {
        self.host.peer_id()
    }

    pub fn address(&self) -> Multiaddr {
        self.host.announce_addrs().remove(0)
    }

    /// Reads events until one is what is waited for.
    pub async fn wait<T>(&mut self, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        within(async {
            loop {
                let event = self.events.next().await.expect("the host has stopped");
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        })
        .await
    }

    /// Waits until another node has said who it is and where it listens.
    pub async fn identified(&self, other: PeerId) {
        let known = |peer: &p2p::PeerInfo| peer.peer == other && peer.member;
        within(async {
            while !self.host.peers().await.unwrap().iter().any(known) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// The next frame of another node.
    pub async fn frame(&mut self, from: PeerId) -> bytes::Bytes {
        self.wait(|event| match event {
            Event::Frame { peer, bytes } if peer == from => Some(bytes),
            _ => None,
        })
        .await
    }

    pub async fn connected_to(&mut self, other: PeerId) {
        self.wait(|event| match event {
            Event::Connected { peer } if peer == other => Some(()),
            _ => None,
        })
        .await;
    }

    pub async fn disconnected_from(&mut self, other: PeerId) {
        self.wait(|event| match event {
            Event::Disconnected { peer } if peer == other => Some(()),
            _ => None,
        })
        .await;
    }

    /// Waits until another node takes the topic.
    pub async fn subscribed(&mut self, other: PeerId) {
        self.wait(|event| match event {
            Event::Subscribed { peer, topic } if peer == other && &*topic == TOPIC => Some(()),
            _ => None,
        })
        .await;
    }
}

/// What a [`Relay`] does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It passes everything on.
    Open,
    /// The dialled side is cut off; the dialling side sees an open connection on which nothing moves. As when
    /// the dialled peer went to another network.
    Dead,
    /// Connections end, and new ones too before a byte was passed on.
    Cut,
}

/// A place before a node's own, for connections that end as real ones do.
pub struct Relay {
    pub address: Multiaddr,
    way: watch::Sender<Way>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Relay {
    /// A relay on an address of its own, so that nobody takes the port once it is closed.
    pub async fn before(node: &Node, ip: &str) -> Relay {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address: Multiaddr = format!("/ip4/{ip}/tcp/{port}").parse().unwrap();
        let mut target = node.host.listen_addrs().into_iter().filter_map(|address| {
            let text = address.to_string();
            let (ip, port) = text.strip_prefix("/ip4/")?.split_once("/tcp/")?;
            Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
        });
        let target = target.next().unwrap();
        let (way, seen) = watch::channel(Way::Open);
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(relay(near, target, seen.clone()));
            }
        });
        Relay { address: address.with_p2p(node.peer()).unwrap(), way, accepting }
    }

    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    /// Nobody listens here any more.
    pub async fn close(self) {
        self.accepting.abort();
        let _ = self.accepting.await;
    }
}

async fn relay(mut near: TcpStream, target: SocketAddr, mut way: watch::Receiver<Way>) {
    if *way.borrow() == Way::Cut {
        return;
    }
    let mut far = TcpStream::connect(target).await.unwrap();
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => return,
        changed = way.wait_for(|way| *way != Way::Open) => if changed.is_err() { return },
    }
    drop(far);
    // Ends with the test, or when everything is cut.
    let _ = way.wait_for(|way| *way == Way::Cut).await;
}
