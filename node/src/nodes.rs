//! What this node knows of itself and of others. Nothing about nodes is ever gossiped: others are asked
//! when somebody wants to know.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use futures::StreamExt;
use http_body_util::{BodyExt, Limited};
use job::PeerId;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api::agent::build;
use crate::clock;
use crate::state::App;
use crate::{peers, remote, view};

/// Peers asked for one answer, and how many at once.
const ASKED: usize = 256;
const AT_ONCE: usize = 32;
/// How long each may take.
const WITHIN: Duration = Duration::from_secs(2);
/// Largest answer taken from a peer.
const ANSWER_BYTES: usize = 64 << 10;
/// Peers remembered after they left.
const REMEMBERED: usize = 1024;

/// When peers were last here, and a bell that rings when that changes.
pub struct Seen {
    last: RwLock<BTreeMap<PeerId, u64>>,
    bell: watch::Sender<u64>,
}

impl Default for Seen {
    fn default() -> Self {
        Seen { last: RwLock::default(), bell: watch::channel(0).0 }
    }
}

impl Seen {
    /// A peer came, went or changed what it takes.
    pub fn note(&self, peer: PeerId) {
        let mut last = self.last.write().unwrap_or_else(PoisonError::into_inner);
        last.insert(peer, clock::now().wall);
        if last.len() > REMEMBERED {
            let oldest = last.iter().min_by_key(|(_, at)| **at).map(|(peer, _)| *peer);
            oldest.map(|peer| last.remove(&peer));
        }
        drop(last);
        self.bell.send_modify(|count| *count += 1);
    }

    /// A peer is none of this swarm's.
    fn forget(&self, peer: PeerId) {
        self.last.write().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }

    /// When a peer was last seen to come or go, wall clock in nanoseconds.
    pub fn last(&self, peer: PeerId) -> Option<u64> {
        self.last.read().unwrap_or_else(PoisonError::into_inner).get(&peer).copied()
    }

    /// Peers that were here.
    pub fn all(&self) -> Vec<(PeerId, u64)> {
        let last = self.last.read().unwrap_or_else(PoisonError::into_inner);
        last.iter().map(|(peer, at)| (*peer, *at)).collect()
    }

    /// Rings when a peer comes, goes or changes what it takes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.bell.subscribe()
    }
}

/// This node's own `NodeInfo`.
pub async fn own(app: &App) -> Value {
    let load = app.worker.ask(|worker| worker.load()).await.unwrap_or_default();
    let compute = match &app.capacity {
        Some(capacity) => {
            let free = capacity.checked_sub(&load.used).unwrap_or_default();
            json!({
                "ExecutionEngines": ["wasm"],
                "Publishers": ["ipfs", "noop"],
                "StorageSources": ["inline", "ipfs"],
                "MaxCapacity": view::resources(capacity),
                "QueueCapacity": {},
                "AvailableCapacity": view::resources(&free),
                "MaxJobRequirements": view::resources(capacity),
                "RunningExecutions": load.running,
                "EnqueuedExecutions": load.queued,
                "address": "",
            })
        }
        None => json!({
            "ExecutionEngines": null,
            "Publishers": null,
            "StorageSources": null,
            "MaxCapacity": {},
            "QueueCapacity": {},
            "AvailableCapacity": {},
            "MaxJobRequirements": {},
            "RunningExecutions": 0,
            "EnqueuedExecutions": 0,
            "address": "",
        }),
    };
    json!({
        "NodeID": app.me.to_string(),
        "NodeType": if app.capacity.is_some() { "Compute" } else { "Requester" },
        "Labels": app.labels,
        "SupportedProtocols": ["cardume/1"],
        "Swarm": app.config.swarm,
        "Addresses": addresses(app),
        "Sandbox": sandbox(app).await,
        "ComputeNodeInfo": compute,
        "BacalhauVersion": build(),
    })
}

/// Which layers of the sandbox are on; the first to ask has a runner started to find out.
async fn sandbox(app: &App) -> Value {
    let Some(engine) = &app.wasm else { return Value::Null };
    let found = app
        .sandbox
        .get_or_try_init(|| async {
            let report = engine.sandbox().await.map_err(|error| error.to_string())?;
            serde_json::to_value(report).map_err(|error| error.to_string())
        })
        .await;
    match found {
        Ok(report) => report.clone(),
        Err(error) => json!({"error": error}),
    }
}

/// Where this node can be dialled, with its id.
pub fn addresses(app: &App) -> Vec<String> {
    app.host.announce_addrs().iter().map(|address| format!("{address}")).collect()
}

/// Bacalhau's `NodeState` of this node and of every peer that is or was here.
pub async fn all(app: &App) -> Vec<Value> {
    let now = clock::now().wall;
    let mut nodes = vec![state(own(app).await, true, now)];
    let connected = members(app).await;
    let asked: Vec<_> = connected.iter().map(|peer| ask(app.clone(), *peer)).collect();
    let answers: Vec<Value> = futures::stream::iter(asked).buffered(AT_ONCE).collect().await;
    for info in answers {
        nodes.push(state(info, true, now));
    }
    for (peer, at) in app.peers_seen.all() {
        if !connected.contains(&peer) && peer != app.me {
            nodes.push(state(unknown(peer), false, at));
        }
    }
    nodes
}

/// Connected peers of this swarm. Those that have not introduced themselves yet may be, and are asked.
async fn members(app: &App) -> Vec<PeerId> {
    let mut members = Vec::new();
    // A network that has stopped has nobody connected.
    for info in app.host.peers().await.unwrap_or_default() {
        let Some(peer) = peers::from_network(&info.peer) else { continue };
        if info.member || info.agent.is_empty() {
            members.push(peer);
        } else {
            app.peers_seen.forget(peer);
        }
    }
    members.truncate(ASKED);
    members
}

/// What a peer says of itself. What it says it is called is replaced by who it is.
async fn ask(app: App, peer: PeerId) -> Value {
    let asked = async {
        let path = "/api/v1/agent/node";
        let answer = remote::ask(&app.host, peer, Method::GET, path, Body::empty(), None).await.ok()?;
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await.ok()?;
        serde_json::from_slice::<Value>(&body.to_bytes()).ok()
    };
    let mut info = match tokio::time::timeout(WITHIN, asked).await {
        Ok(Some(info)) if info.is_object() => info,
        _ => return unknown(peer),
    };
    info["NodeID"] = peer.to_string().into();
    info
}

fn unknown(peer: PeerId) -> Value {
    json!({"NodeID": peer.to_string(), "NodeType": "Unknown", "Labels": {}, "ComputeNodeInfo": null})
}

fn state(info: Value, connected: bool, seen: u64) -> Value {
    let status = if connected { "CONNECTED" } else { "DISCONNECTED" };
    let seen = clock::rfc3339(seen);
    json!({
        "Info": info,
        "Membership": "APPROVED",
        "Connection": status,
        "ConnectionState": {"Status": status, "LastHeartbeat": seen},
    })
}
