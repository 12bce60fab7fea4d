//! The API between peers: the same router that answers on loopback, over streams of the swarm, with the
//! peer as the caller. It is how any peer answers for any job: it asks the owner.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, Response, Uri, header};
use hyper::body::Incoming;
use p2p::Host;
use tokio::task::JoinSet;
use tokio_util::compat::FuturesAsyncReadCompatExt;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::api::guard::Caller;
use crate::api::wire::{self, CallError};
use crate::peers;

/// The protocol's name on the wire, below the swarm's prefix.
pub const PROTOCOL: &str = "api/1";
/// Streams of other peers answered at once; further ones are closed at once.
const STREAMS: usize = 256;
/// How long a peer may take to begin its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A peer could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// No stream to it.
    #[error("the peer {0} cannot be reached")]
    Unreachable(job::PeerId, #[source] Box<p2p::OpenError>),
    /// It did not answer in time.
    #[error("the peer {0} did not answer in time")]
    Silent(job::PeerId),
    /// It broke off.
    #[error("the peer {0} broke off")]
    Broken(job::PeerId, #[source] CallError),
}

/// Answers other peers until `cancel`.
pub async fn serve(mut streams: p2p::Incoming, router: Router, cancel: CancellationToken) {
    let mut serving = JoinSet::new();
    loop {
        let (peer, stream) = tokio::select! {
            () = cancel.cancelled() => break,
            Some(_) = serving.join_next() => continue,
            next = streams.next() => match next { Some(next) => next, None => break },
        };
        let Some(peer) = peers::from_network(&peer) else { continue };
        if serving.len() >= STREAMS {
            debug!(%peer, "too many streams; this one is refused");
            continue;
        }
        let (router, cancel) = (router.clone(), cancel.clone());
        serving.spawn(wire::serve(stream.compat(), router, Caller::Peer(peer), cancel));
    }
    serving.shutdown().await;
}

/// Asks one peer. The answer's body streams; dropping it cuts the stream.
pub async fn ask(
    host: &Host,
    peer: job::PeerId,
    method: Method,
    path_and_query: &str,
    body: Body,
    token: Option<header::HeaderValue>,
) -> Result<Response<Incoming>, RemoteError> {
    let unreachable = |error| RemoteError::Unreachable(peer, Box::new(error));
    let network = peers::to_network(peer);
    let uri: Uri = path_and_query.parse().unwrap_or_default();
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    // HTTP/1.1 demands a host; nobody reads it here.
    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("peer"));
    request.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    if let Some(token) = token {
        request.headers_mut().insert(header::AUTHORIZATION, token);
    }
    let asked = async {
        let stream = host.open_stream(network, PROTOCOL).await.map_err(unreachable)?;
        wire::call(stream.compat(), request).await.map_err(|error| RemoteError::Broken(peer, error))
    };
    tokio::time::timeout(ANSWER_WITHIN, asked).await.map_err(|_| RemoteError::Silent(peer))?
}
