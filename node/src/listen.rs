//! Where the API listens: a socket in the data directory, and TCP on loopback.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use axum::Router;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::api::guard::Caller;
use crate::api::wire;

/// Connections answered at once on each listener: holds local programs that leak connections in check.
const CONNECTIONS: usize = 512;
/// Before the next attempt when the system has no room for another connection.
const NO_ROOM: std::time::Duration = std::time::Duration::from_millis(100);

/// Longest path that a socket's address has room for, on every system that this runs on.
const ADDRESS_BYTES: usize = 100;

/// A socket's path in a form that fits a socket's address, however long the path itself is.
#[derive(Debug)]
pub struct SocketPath {
    path: PathBuf,
    /// The folder that the path goes through; open for as long as the path is used.
    _folder: Option<OwnedFd>,
}

impl SocketPath {
    /// The path as it is where it is short, else by way of its opened folder.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        if path.as_os_str().as_bytes().len() <= ADDRESS_BYTES {
            return Ok(SocketPath { path: path.to_owned(), _folder: None });
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path names no file"));
        };
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let folder = rustix::fs::open(parent, flags, rustix::fs::Mode::empty())?;
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        Ok(SocketPath { path, _folder: Some(folder) })
    }

    /// The path to bind or to connect to.
    pub fn as_path(&self) -> &Path {
        &self.path
    }
}

/// Binds the socket in the data directory, mode 0600. The directory's lock is held, so a file of that
/// name is left from a process that is gone.
pub fn socket(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(SocketPath::of(path)?.as_path())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Binds TCP; only loopback, until there are tokens.
pub async fn tcp(address: SocketAddr) -> std::io::Result<TcpListener> {
    if !address.ip().is_loopback() {
        let why = "the API listens on loopback addresses only (127.0.0.1 or [::1])";
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, why));
    }
    TcpListener::bind(address).await
}

/// Serves the socket until `cancel`.
pub async fn serve_socket(listener: UnixListener, router: Router, cancel: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if connections.len() < CONNECTIONS => {
                connections.spawn(wire::serve(stream, router.clone(), Caller::Socket, cancel.clone()));
            }
            Ok(_) => warn!("too many connections on the API socket; one was closed"),
            Err(error) => no_room(&error).await,
        }
    }
    connections.close();
    connections.wait().await;
}

/// Serves TCP until `cancel`.
pub async fn serve_tcp(listener: TcpListener, router: Router, cancel: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if connections.len() < CONNECTIONS => {
                // Answers are small and awaited: they must not wait for more to send.
                if let Err(error) = stream.set_nodelay(true) {
                    warn!(%error, "TCP_NODELAY");
                }
                connections.spawn(wire::serve(stream, router.clone(), Caller::Loopback, cancel.clone()));
            }
            Ok(_) => warn!("too many connections to the API; one was closed"),
            Err(error) => no_room(&error).await,
        }
    }
    connections.close();
    connections.wait().await;
}

/// Accepting fails when the process has no file descriptors left; trying again at once would spin.
async fn no_room(error: &std::io::Error) {
    warn!(%error, "a connection to the API could not be accepted");
    tokio::time::sleep(NO_ROOM).await;
}
