//! A peer inside this process, for commands that find no node.

use std::path::{Path, PathBuf};

use crate::client::Client;
use crate::failure::Failure;

/// A peer that runs in this process.
#[derive(Debug)]
pub enum Embedded {}

/// What [`Embedded::start`] found.
#[derive(Debug)]
pub enum Started {
    /// The peer runs here.
    Here(Embedded),
    /// Another process was first and serves the directory.
    Elsewhere(Client),
}

/// A node that took over in the background.
#[derive(Debug)]
pub struct Background {
    /// Its process.
    pub pid: u32,
    /// Where it writes its log.
    pub log: PathBuf,
}

impl Embedded {
    /// Starts a peer.
    pub async fn start(_data_dir: &Path) -> Result<Started, Failure> {
        Err(Failure::unreachable("no node could be reached")
            .hint("start one with `cardume serve`, or name one with --api URL"))
    }

    /// Its id.
    pub fn peer(&self) -> &str {
        match *self {}
    }

    /// Stops it.
    pub async fn stop(self) -> Result<(), Failure> {
        match self {}
    }

    /// Hands its jobs to a background node.
    pub async fn hand_over(self) -> Result<Background, Failure> {
        match self {}
    }
}

/// The API socket of the node on a data directory.
pub fn api_socket(data_dir: &Path) -> PathBuf {
    data_dir.join("api.sock")
}

/// The peer id of a data directory and its key file.
pub fn identity(_data_dir: &Path) -> Result<(String, PathBuf), Failure> {
    Err(Failure::refused("this build has no identity"))
}
