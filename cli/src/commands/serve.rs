//! `serve`: a node in the foreground.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use node::{Config, Node, Ready};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::args::Global;
use crate::args::serve::Serve;
use crate::embedded::{chain, start_failure};
use crate::failure::{Failure, Outcome, exit};
use crate::output::{Format, Notes, print, print_document};
use crate::spec::pair;
use crate::target::data_dir;

/// A stop that takes longer than this is cut short: the contract gives ten seconds in all.
const STOP_DEADLINE: Duration = Duration::from_millis(9000);

/// What is logged when nobody says: what a user cares about of ours, and others' troubles.
const DEFAULT_LOG: &str = "warn,cli=info,node=info,gossip=info,storage=info,engines=info,p2p=info,libp2p_mdns=error,netlink_proto=error";

/// Runs the verb.
pub fn run(global: &Global, flags: &Serve) -> Outcome {
    let data_dir = data_dir(global)?;
    let config = config(&data_dir, flags)?;
    start_log()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local("cannot start threads", &error))?;
    let outcome = runtime.block_on(serve(config, flags, Notes::new(global.quiet)));
    runtime.shutdown_timeout(Duration::from_millis(500));
    outcome
}

async fn serve(config: Config, flags: &Serve, notes: Notes) -> Outcome {
    let mut signals = Signals::new(flags.until_idle)?;
    let socket = node::api_socket(&config.data_dir);
    let node = tokio::select! {
        started = Node::start(config) => started.map_err(|error| start_failure(&error))?,
        () = signals.next() => return Ok(exit::DONE),
    };
    announce(node.ready(), &socket, flags, notes)?;
    let told = tokio::select! {
        () = signals.next() => true,
        () = node.closed() => false,
    };
    let stopped = tokio::select! {
        stopped = tokio::time::timeout(STOP_DEADLINE, node.stop()) => stopped.is_ok(),
        () = signals.next() => {
            tracing::warn!("told to stop twice: ending at once");
            return Ok(exit::INTERRUPTED);
        }
    };
    if !stopped {
        tracing::warn!("the node did not stop in time; what is durable stays");
    }
    if told || flags.until_idle {
        Ok(exit::DONE)
    } else {
        Err(Failure::new(exit::REFUSED, "InternalError", "the node ended by itself: a part of it failed")
            .hint("its log above says which; start it again with `cardume serve`"))
    }
}

/// Says that the node serves: a line for programs, a banner for people.
fn announce(ready: &Ready, socket: &Path, flags: &Serve, notes: Notes) -> Result<(), Failure> {
    let peer = ready.peer.to_string();
    notes.say(format!("cardume {} is peer {peer}", env!("CARGO_PKG_VERSION")));
    notes.say(format!("  swarm  {}", ready.swarm));
    if let Some(api) = &ready.api {
        notes.say(format!("  API    {api}"));
    }
    notes.say(format!("  socket {}", socket.display()));
    for address in &ready.addrs {
        notes.say(format!("  peers  {address}"));
    }
    notes.say("ready; Ctrl-C stops it");
    let told =
        json!({ "ready": true, "peer": peer, "api": ready.api, "addrs": ready.addrs, "swarm": ready.swarm });
    match flags.output.format.unwrap_or_default() {
        Format::Json => print(&format!("{told}\n")),
        Format::Yaml => print_document(&told, Format::Yaml),
        Format::Csv | Format::Table => Ok(()),
    }
}

/// Settings of the file and the environment, and the flags over them.
fn config(data_dir: &Path, flags: &Serve) -> Result<Config, Failure> {
    let data_dir = std::path::absolute(data_dir)
        .map_err(|error| Failure::local(format!("cannot use {}", data_dir.display()), &error))?;
    let mut config =
        Config::load(&data_dir, flags.config.as_deref()).map_err(|error| Failure::refused(chain(&error)))?;
    if flags.until_idle {
        config.until_idle = true;
        config.embedded = true;
        config.api = None;
    }
    if flags.no_worker {
        config.worker = false;
    }
    if let Some(swarm) = &flags.swarm {
        config.swarm.clone_from(swarm);
    }
    if !flags.bootstrap.is_empty() {
        config.bootstrap.clone_from(&flags.bootstrap);
    }
    if !flags.listen.is_empty() {
        config.listen.clone_from(&flags.listen);
    }
    if let Some(text) = &flags.api {
        config.api = Some(api_address(text)?);
    }
    for text in &flags.label {
        let (key, value) = pair("--label", text)?;
        config.labels.insert(key, value);
    }
    for text in &flags.trust {
        let peer = text.parse().map_err(|error| Failure::refused(format!("--trust: {error}")))?;
        config.trusted.push(peer);
    }
    Ok(config)
}

/// Reads `ADDR:PORT`; a URL of it and `localhost` are understood, too.
fn api_address(text: &str) -> Result<SocketAddr, Failure> {
    let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let bare =
        bare.strip_prefix("localhost:").map_or_else(|| bare.to_owned(), |port| format!("127.0.0.1:{port}"));
    bare.parse().map_err(|_| {
        Failure::refused(format!("--api {text:?} is not an address to listen on"))
            .hint("write ADDRESS:PORT, such as 127.0.0.1:1234, or 127.0.0.1:0 for any free port")
    })
}

/// Logs to stderr, as `CARDUME_LOG` or `RUST_LOG` say.
fn start_log() -> Result<(), Failure> {
    let variable = |name| std::env::var(name).ok().filter(|text: &String| !text.trim().is_empty());
    let wanted = variable("CARDUME_LOG").or_else(|| variable("RUST_LOG"));
    let filter = EnvFilter::try_new(wanted.as_deref().unwrap_or(DEFAULT_LOG)).map_err(|error| {
        Failure::refused(format!("cannot read the log filter {:?}: {error}", wanted.unwrap_or_default()))
            .hint("CARDUME_LOG takes levels such as info or node=debug,info")
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A line that finds no room on a full disk is lost; complaining of it on the same disk would end the node.
        .log_internal_errors(false)
        .compact()
        .try_init()
        .map_err(|error| Failure::refused(format!("cannot start logging: {error}")))
}

/// The signals that end a node.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Held so that the end of the terminal does not end a node in the background.
    _hang_up: Option<Signal>,
}

impl Signals {
    fn new(background: bool) -> Result<Self, Failure> {
        let open = |kind| signal(kind).map_err(|error| Failure::local("cannot listen for signals", &error));
        Ok(Signals {
            interrupt: open(SignalKind::interrupt())?,
            terminate: open(SignalKind::terminate())?,
            _hang_up: if background { Some(open(SignalKind::hangup())?) } else { None },
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_addresses_may_be_written_as_people_do() {
        for text in ["127.0.0.1:5000", "localhost:5000", "http://127.0.0.1:5000/"] {
            assert_eq!(api_address(text).unwrap().to_string(), "127.0.0.1:5000");
        }
        for text in ["5000", "127.0.0.1", "", "example.org:80"] {
            assert!(api_address(text).is_err(), "{text}");
        }
    }
}
