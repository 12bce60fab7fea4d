//! A running Cardume node: the async shells around the protocol machines, the work they order, and the
//! HTTP API.
//!
//! It decides nothing that the machines in `gossip` decide, reads no flags, and draws nothing: a program
//! gives it a [`Config`] and gets a [`Node`].
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = node::Config::load(std::path::Path::new("/var/lib/cardume"), None)?;
//! let node = node::Node::start(config).await?;
//! println!("serving as {} at {:?}", node.ready().peer, node.ready().api);
//! node.closed().await;
//! node.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! The program must call [`runner::main`] first of all when it is started as a runner: WASM guests run
//! in children of the same binary.

pub mod api;
mod archive;
mod clock;
pub mod config;
mod content;
pub mod identity;
mod index;
mod listen;
mod locate;
mod lock;
mod logs;
mod machines;
mod net;
mod network;
mod nodes;
mod own;
mod peers;
mod perform;
mod read;
mod remote;
pub mod runner;
mod shell;
mod start;
mod state;
mod submit;
mod sweep;
mod view;

pub use config::{Accept, Config, ConfigError, Settings};
pub use listen::SocketPath;
pub use start::{Node, Ready, StartError, api_socket};
