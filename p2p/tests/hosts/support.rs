//! Starting hosts and waiting for their events.

use std::time::Duration;

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
