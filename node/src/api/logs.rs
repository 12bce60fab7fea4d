//! Output of jobs, as a client wants it framed: Bacalhau's websocket, frames of ours, or plain text.

use axum::Extension;
use axum::body::Body;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Path, Query, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http_body_util::BodyExt;
use job::{ExecutionId, JobId};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tracing::debug;

use super::error::ApiError;
use super::guard::Caller;
use super::route::{self, Resolved};
use crate::locate::Owned;
use crate::logs::{self, Chunk, WAITING, Wanted};
use crate::remote;
use crate::state::App;

/// The media type of frames: `[stream u8][partition u32][length u32][bytes]`, numbers big endian.
pub const FRAMES: &str = "application/vnd.cardume.logs";

/// The query of a log request.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct LogQuery {
    follow: Option<String>,
    tail: Option<String>,
    partition: Option<u32>,
    execution_id: Option<String>,
    format: Option<String>,
}

impl LogQuery {
    fn wanted(&self) -> Result<Wanted, ApiError> {
        // Bacalhau's clients send `tail=true` for "only what comes from now on"; a number is a count of lines.
        let tail = match self.tail.as_deref() {
            None | Some("" | "false") => None,
            Some("true") => Some(0),
            Some(text) => Some(
                text.parse()
                    .map_err(|_| ApiError::bad_request(format!("tail {text:?} is not a number of lines")))?,
            ),
        };
        let execution = self.execution_id.clone().filter(|text| !text.is_empty());
        Ok(Wanted { follow: self.follows(), tail, partition: self.partition, execution })
    }

    fn follows(&self) -> bool {
        matches!(self.follow.as_deref(), Some("true" | "1"))
    }
}

/// `GET /orchestrator/jobs/:id/logs`.
pub async fn logs(
    State(app): State<App>,
    Extension(resolved): Extension<Resolved>,
    Query(query): Query<LogQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let wanted = query.wanted()?;
    let frames = query.format.as_deref() == Some("frames") || accepts_frames(request.headers());
    let token = request.headers().get(header::AUTHORIZATION).cloned();
    let upgrade = request.headers().contains_key(header::UPGRADE);
    let (mut parts, _) = request.into_parts();
    let chunks = open(&app, resolved, wanted, token).await?;
    if upgrade {
        let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &app)
            .await
            .map_err(|error| ApiError::bad_request(error.body_text()))?;
        return Ok(upgrade.on_upgrade(move |socket| to_websocket(socket, chunks)));
    }
    Ok(if frames { framed(chunks) } else { plain(chunks) })
}

/// `GET /worker/executions/:id/logs`: for the owner of the job, and for this machine's users.
pub async fn of_execution(
    State(app): State<App>,
    Path(id): Path<String>,
    Query(query): Query<LogQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let id: ExecutionId =
        id.parse().map_err(|error: job::id::IdError| ApiError::bad_request(error.to_string()))?;
    let missing = || ApiError::not_found(format!("execution not found here: {id}"));
    let (key, _) = app.bench.live.find(id).ok_or_else(missing)?;
    if let Caller::Peer(peer) = route::caller(&request) {
        let job = key.job;
        let owner = app.worker.ask(move |worker| worker.owner_of(job)).await.ok().flatten();
        if owner != Some(peer) && !app.trusts(peer) {
            return Err(missing());
        }
    }
    let (sender, chunks) = mpsc::channel(WAITING);
    app.tracker.spawn(logs::of_execution(app.clone(), id, query.follows(), sender));
    Ok(framed(chunks))
}

fn accepts_frames(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).is_some_and(|value| value.as_bytes() == FRAMES.as_bytes())
}

/// The job's output: gathered here when this node owns it, else from its owner.
async fn open(
    app: &App,
    resolved: Resolved,
    wanted: Wanted,
    token: Option<header::HeaderValue>,
) -> Result<mpsc::Receiver<Chunk>, ApiError> {
    let (sender, chunks) = mpsc::channel(WAITING);
    if resolved.owner == app.me {
        let (app, job) = (app.clone(), resolved.job);
        app.tracker.clone().spawn(async move {
            if let Err(error) = logs::gather(app, job, wanted, sender).await {
                debug!(%job, message = error.message, "output could not be gathered");
            }
        });
        return Ok(chunks);
    }
    let found = Owned { job: resolved.job, owner: resolved.owner };
    let path = path(resolved.job, &wanted);
    let answer = match remote::ask(&app.host, found.owner, Method::GET, &path, Body::empty(), token).await {
        Ok(answer) => answer,
        Err(error) => return Err(route::owner_away(app, found, &error).await),
    };
    if !answer.status().is_success() {
        let status = answer.status();
        return Err(ApiError::new(status, "Forbidden", format!("the owner of job {} refused", found.job)));
    }
    app.tracker.spawn(relay(answer.into_body(), sender));
    Ok(chunks)
}

fn path(job: JobId, wanted: &Wanted) -> String {
    let mut path = format!("/api/v1/orchestrator/jobs/{job}/logs?format=frames&follow={}", wanted.follow);
    if let Some(lines) = wanted.tail {
        path.push_str(&format!("&tail={lines}"));
    }
    if let Some(partition) = wanted.partition {
        path.push_str(&format!("&partition={partition}"));
    }
    if let Some(execution) = &wanted.execution {
        let safe = percent_encoding::utf8_percent_encode(execution, percent_encoding::NON_ALPHANUMERIC);
        path.push_str(&format!("&execution_id={safe}"));
    }
    path
}

async fn relay(mut body: hyper::body::Incoming, client: mpsc::Sender<Chunk>) {
    let mut buffer = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        buffer.extend_from_slice(&data);
        loop {
            match Chunk::decode(&mut buffer) {
                Ok(Some(chunk)) => {
                    if client.send(chunk).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => return debug!(%error, "the owner sent something else"),
            }
        }
    }
}

fn stream(chunks: mpsc::Receiver<Chunk>) -> impl futures::Stream<Item = Chunk> {
    futures::stream::unfold(chunks, |mut chunks| async move { Some((chunks.recv().await?, chunks)) })
}

fn framed(chunks: mpsc::Receiver<Chunk>) -> Response {
    let frames = stream(chunks).map(|chunk| {
        let mut bytes = BytesMut::with_capacity(9 + chunk.bytes.len());
        chunk.encode(&mut bytes);
        Ok::<Bytes, std::convert::Infallible>(bytes.freeze())
    });
    ([(header::CONTENT_TYPE, FRAMES)], Body::from_stream(frames)).into_response()
}

fn plain(chunks: mpsc::Receiver<Chunk>) -> Response {
    let bytes = stream(chunks).map(|chunk| Ok::<Bytes, std::convert::Infallible>(chunk.bytes));
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(bytes)).into_response()
}

/// Bacalhau's framing: one text message a line, and a normal close at the end.
async fn to_websocket(mut socket: WebSocket, mut chunks: mpsc::Receiver<Chunk>) {
    loop {
        let chunk = tokio::select! {
            chunk = chunks.recv() => chunk,
            message = socket.recv() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
        };
        let Some(chunk) = chunk else { break };
        for line in chunk.bytes.split_inclusive(|byte| *byte == b'\n') {
            let value = json!({"value": {"Type": chunk.stream as u8, "Line": String::from_utf8_lossy(line)}});
            if socket.send(Message::Text(value.to_string().into())).await.is_err() {
                return;
            }
        }
    }
    let close = CloseFrame { code: axum::extract::ws::close_code::NORMAL, reason: "".into() };
    if let Err(error) = socket.send(Message::Close(Some(close))).await {
        debug!(%error, "the client left before the end");
    }
}
