//! What all parts of a running node share.

use std::collections::BTreeSet;
use std::sync::Arc;

use gossip::owner::Owner;
use gossip::worker::Worker;
use job::PeerId;
use p2p::Host;
use storage::records::Records;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::content::Content;
use crate::index::Index;
use crate::own::Desk;
use crate::perform::Bench;
use crate::shell::Handle;

/// A running node, for the API and everything else that serves it.
pub struct State {
    /// This node.
    pub me: PeerId,
    /// What it was told.
    pub config: Config,
    /// Its network.
    pub host: Host,
    /// Its machines.
    pub owner: Handle<Owner>,
    /// Its machines.
    pub worker: Handle<Worker>,
    /// Clients that wait, and watchers.
    pub desk: Arc<Desk>,
    /// Its jobs in one line each.
    pub index: Arc<Index>,
    /// Its database.
    pub records: Records,
    /// Files and blocks.
    pub content: Content,
    /// What runs here.
    pub bench: Arc<Bench>,
    /// What it offers to executions; `None` when it runs none.
    pub capacity: Option<job::Resources>,
    /// Labels that constraints are matched against.
    pub labels: std::collections::BTreeMap<String, String>,
    /// When peers were last here.
    pub peers_seen: Arc<crate::nodes::Seen>,
    /// Runs WASM; `None` when it runs nothing.
    pub wasm: Option<Arc<engines::WasmEngine>>,
    /// How guests are walled in, once somebody asked.
    pub sandbox: tokio::sync::OnceCell<serde_json::Value>,
    /// Peers that may see its jobs.
    pub trusted: BTreeSet<PeerId>,
    /// Secret from which access tokens of jobs are derived.
    pub token_key: [u8; 32],
    /// Ends with the node.
    pub cancel: CancellationToken,
    /// Counts what runs in the background.
    pub tracker: TaskTracker,
}

/// Shared by all requests.
pub type App = Arc<State>;

impl State {
    /// Whether a peer may see, log and stop this node's jobs.
    pub fn trusts(&self, peer: PeerId) -> bool {
        peer == self.me || self.trusted.contains(&peer)
    }

    /// The token whose holder may see, log and stop a job.
    pub fn access_token(&self, job: job::JobId) -> String {
        use sha2::{Digest, Sha256};
        let hash = Sha256::new()
            .chain_update(b"cardume access token 1")
            .chain_update(self.token_key)
            .chain_update(job.0)
            .finalize();
        data_encoding::HEXLOWER.encode(&hash)
    }
}
