//! HTTP/1.1 over anything that reads and writes: TCP, the socket in the data directory, and streams
//! between peers. One router answers all three; each request carries its [`Caller`].

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Response;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::guard::Caller;

/// How long a client may take to send a request's head: holds no connection for those who send nothing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves one connection until it ends or `cancel`; requests in progress are then finished.
///
/// Dropping the future cuts the connection.
pub async fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    caller: Caller,
    cancel: CancellationToken,
) {
    let router = router.layer(axum::Extension(caller));
    let service = TowerToHyperService::new(router);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    tokio::pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    debug!(?caller, %error, "connection ended");
                }
                return;
            }
            () = cancel.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// A request to another peer could not be made or was not answered.
#[derive(Debug, thiserror::Error)]
#[error("the peer did not answer the request")]
pub struct CallError(#[from] hyper::Error);

/// Sends one request over a fresh stream and gives the answer, whose body streams.
///
/// Dropping the answer's body cuts the stream.
pub async fn call(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Body>,
) -> Result<Response<Incoming>, CallError> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "stream to a peer ended");
        }
    });
    Ok(sender.send_request(request).await?)
}
