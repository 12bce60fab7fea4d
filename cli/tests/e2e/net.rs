//! A test network that ends with its test.

use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use testnet::client::Client;
use testnet::process::{self, NodeInfo, Signal, State, UpOptions};

use super::shell::Shell;

/// The binary under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_cardume");

/// Networks at once: their nodes share the machine's cores, and deadlines are for hangs, not for queues.
const NETWORKS: usize = 3;

/// What no step of a test exceeds unless something hangs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for a step of a test, and fails it when it hangs.
pub async fn within<T>(what: &str, step: impl Future<Output = anyhow::Result<T>>) -> T {
    match tokio::time::timeout(PATIENCE, step).await {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => panic!("{what}: {error:#}"),
        Err(_) => panic!("{what}: not done after {} s", PATIENCE.as_secs()),
    }
}

/// A running test network.
pub struct Net {
    pub state: State,
    root: tempfile::TempDir,
    _place: Place,
}

impl Net {
    /// `nodes` nodes, the first `submit_only` of which run no jobs.
    pub async fn up(nodes: usize, submit_only: usize) -> Self {
        Self::with(nodes, submit_only, json!({}), |_| {}).await
    }

    /// The same with more settings for every node, and for single ones.
    pub async fn with(
        nodes: usize,
        submit_only: usize,
        settings: Value,
        change: impl FnOnce(&mut UpOptions),
    ) -> Self {
        let place = tokio::task::spawn_blocking(Place::take).await.unwrap();
        let root = tempfile::tempdir().unwrap();
        let mut options = UpOptions {
            nodes,
            submit_only,
            settings: map(settings),
            ..UpOptions::new(root.path().join("net"), PROGRAM)
        };
        change(&mut options);
        let state = within("testnet up", process::up(options)).await;
        Net { state, root, _place: place }
    }

    /// The node of that number.
    pub fn node(&self, index: usize) -> &NodeInfo {
        &self.state.nodes[index]
    }

    /// Its number, from its peer id.
    pub fn index_of(&self, peer: &str) -> usize {
        self.state
            .nodes
            .iter()
            .position(|node| node.peer == peer)
            .unwrap_or_else(|| panic!("no node is {peer}"))
    }

    /// The API of a node.
    pub fn client(&self, index: usize) -> Client {
        Client::new(&self.node(index).api).unwrap()
    }

    /// The command line, talking to a node.
    pub fn shell(&self, index: usize) -> Shell {
        Shell::at(&self.node(index).api, self.root.path())
    }

    /// A place for files of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Adds a file's bytes at a node.
    pub async fn add(&self, index: usize, bytes: impl Into<Bytes>) -> String {
        let client = self.client(index);
        let adding = client.put_bytes("/content", "application/octet-stream", bytes.into());
        let answer = within("add", async { adding.await?.ok() }).await;
        answer["Cid"].as_str().unwrap().to_owned()
    }

    pub async fn signal(&self, index: usize, signal: Signal) -> State {
        let name = &self.node(index).name;
        within("signal", process::signal(&self.state.dir, name, signal)).await
    }

    pub async fn kill(&self, index: usize) {
        self.signal(index, Signal::Kill).await;
    }

    pub async fn restart(&self, index: usize) {
        let name = &self.node(index).name;
        let again = within("restart", process::restart(&self.state.dir, name)).await;
        assert_eq!(again.nodes[index].api, self.node(index).api, "the API has moved");
        assert_eq!(again.nodes[index].peer, self.node(index).peer);
    }

    /// Ends the network cleanly and checks that it is gone.
    pub async fn down(self) {
        let ended = within("testnet down", process::down(&self.state.dir, true)).await;
        assert!(ended.nodes.iter().all(|node| node.pid.is_none()), "{ended:?}");
        assert!(!self.state.dir.exists());
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.state.nodes {
                eprintln!("--- {} {}\n{}", node.name, node.peer, tail(&node.log));
            }
        }
        if let Err(error) = process::kill_all(&self.state.dir) {
            eprintln!("cannot end {}: {error:#}", self.state.dir.display());
        }
    }
}

/// A map, as settings are given.
pub fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("no map: {other}"),
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// The right to run a network; tests wait for one.
pub struct Place;

static FREE: (Mutex<usize>, Condvar) = (Mutex::new(NETWORKS), Condvar::new());

impl Place {
    pub fn take() -> Self {
        let free = FREE.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = FREE.1.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *FREE.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        FREE.1.notify_one();
    }
}
