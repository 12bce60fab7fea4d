//! `cardume serve`: a node in the foreground.

use std::path::PathBuf;

use clap::Args;

use super::Output;

/// Run a node in the foreground until it is told to stop
#[derive(Debug, Args)]
#[command(
    long_about = "Runs a node in the foreground until SIGINT or SIGTERM; a second signal ends it at once.\n\n\
        Settings come from DATA_DIR/config.yaml, then CARDUME_* variables, then these flags.\n\n\
        With --output json, exactly one line is printed on stdout once the node serves: {ready, peer, api, addrs, swarm}.",
    after_help = "Examples:\n  \
        cardume serve\n  \
        cardume serve --swarm lab --bootstrap /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW… --label zone=b\n  \
        cardume serve --no-worker --api 127.0.0.1:0 --output json"
)]
pub struct Serve {
    /// Submit and own jobs, but run none for anybody
    #[arg(long)]
    pub no_worker: bool,

    /// The swarm to join
    #[arg(long, value_name = "NAME")]
    pub swarm: Option<String>,

    /// Address of a peer to dial first
    #[arg(long, value_name = "MULTIADDR")]
    pub bootstrap: Vec<String>,

    /// Address to listen on for peers
    #[arg(long, value_name = "MULTIADDR")]
    pub listen: Vec<String>,

    /// Address to serve the API on; port 0 for any free one [default: 127.0.0.1:1234]
    #[arg(long, value_name = "ADDR:PORT", id = "api")]
    pub api: Option<String>,

    /// A label that constraints are matched against
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,

    /// A peer that may see, log and stop this node's jobs
    #[arg(long, value_name = "PEER")]
    pub trust: Vec<String>,

    /// Read settings from this file instead of DATA_DIR/config.yaml
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Own jobs only, no API beside the socket, and the end once they have ended
    #[arg(long, hide = true)]
    pub until_idle: bool,

    /// Form of the line on stdout.
    #[command(flatten)]
    pub output: Output,
}
