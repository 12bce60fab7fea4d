//! `cardume testnet`: a swarm of processes on this machine.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Output;

/// Verbs about test networks.
#[derive(Debug, Subcommand)]
pub enum Testnet {
    /// Start a swarm of nodes and wait until they are one
    #[command(
        long_about = "Starts N nodes as processes on loopback, returns when they are one swarm, and prints their state.",
        after_help = "Example:\n  cardume testnet up --nodes 5 --submit-only 1 --dir /tmp/net --output json"
    )]
    Up {
        /// Nodes in all
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
        nodes: u32,
        /// How many of them run no jobs
        #[arg(long, value_name = "K", default_value_t = 0)]
        submit_only: u32,
        /// Where.
        #[command(flatten)]
        place: Place,
    },
    /// Print the state of the nodes
    Status {
        /// Where.
        #[command(flatten)]
        place: Place,
    },
    /// End all nodes, and everything they started
    Down {
        /// Remove the folder, too
        #[arg(long)]
        purge: bool,
        /// Where.
        #[command(flatten)]
        place: Place,
    },
    /// Kill a node (SIGKILL)
    Kill(Named),
    /// Stop a node cleanly (SIGTERM)
    Stop(Named),
    /// Freeze a node (SIGSTOP)
    Pause(Named),
    /// Let a frozen node go on (SIGCONT)
    Resume(Named),
    /// Start a node again with the same data and wait until it is in the swarm
    Restart(Named),
}

impl Testnet {
    /// Which test network the verb is about.
    pub fn place(&self) -> &Place {
        match self {
            Testnet::Up { place, .. } | Testnet::Status { place } | Testnet::Down { place, .. } => place,
            Testnet::Kill(named)
            | Testnet::Stop(named)
            | Testnet::Pause(named)
            | Testnet::Resume(named)
            | Testnet::Restart(named) => &named.place,
        }
    }

    /// The same, to be changed.
    pub fn place_mut(&mut self) -> &mut Place {
        match self {
            Testnet::Up { place, .. } | Testnet::Status { place } | Testnet::Down { place, .. } => place,
            Testnet::Kill(named)
            | Testnet::Stop(named)
            | Testnet::Pause(named)
            | Testnet::Resume(named)
            | Testnet::Restart(named) => &mut named.place,
        }
    }
}

/// A test network.
#[derive(Debug, Clone, Args)]
pub struct Place {
    /// The test network's folder
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,

    /// Form of the result.
    #[command(flatten)]
    pub output: Output,
}

/// A node of a test network.
#[derive(Debug, Clone, Args)]
pub struct Named {
    /// The node's name, such as n0
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Where.
    #[command(flatten)]
    pub place: Place,
}
