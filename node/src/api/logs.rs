//! Output of jobs, as a client wants it framed: Bacalhau's websocket, frames of ours, or plain text.

use axum::Extension;
use axum::body::Body;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{FromRequestParts, Path, Query, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use job::{ExecutionId, JobId};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tracing::debug;

use super::error::ApiError;
use super::guard::Caller;
use super::query::boolean;
use super::route::{self, Resolved};
use crate::locate::Owned;
use crate::logs::{self, Broken, Piece, Pieces, WAITING, Wanted, encode};
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
    partition: Option<String>,
    execution_id: Option<String>,
    job_version: Option<String>,
    format: Option<String>,
}

impl LogQuery {
    fn wanted(&self) -> Result<Wanted, ApiError> {
        Ok(Wanted {
            follow: self.follows()?,
            tail: self.tail()?,
            partition: number("partition", self.partition.as_deref())?,
            execution: self.execution_id.clone().filter(|text| !text.is_empty()),
            version: number("job_version", self.job_version.as_deref())?.filter(|version| *version > 0),
        })
    }

    fn follows(&self) -> Result<bool, ApiError> {
        let Some(text) = self.follow.as_deref().filter(|text| !text.is_empty()) else { return Ok(false) };
        boolean(text).ok_or_else(|| {
            ApiError::bad_request(format!("follow {text:?} is not a boolean")).hint("write true or false")
        })
    }

    /// A number is a count of lines. Bacalhau's clients send `true` for "only what comes from now on".
    fn tail(&self) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.tail.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
        match (text.parse(), boolean(text)) {
            (Ok(lines), _) => Ok(Some(lines)),
            (Err(_), Some(only_new)) => Ok(only_new.then_some(0)),
            (Err(_), None) => Err(ApiError::bad_request(format!("tail {text:?} is not a number of lines"))),
        }
    }
}

fn number(name: &str, text: Option<&str>) -> Result<Option<u32>, ApiError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let number =
        text.parse().map_err(|_| ApiError::bad_request(format!("{name} {text:?} is not a number")))?;
    Ok(Some(number))
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
    let pieces = match open(&app, resolved, wanted, token).await? {
        Opened::Here(pieces) => pieces,
        Opened::Refused(answer) => return Ok(answer),
    };
    if upgrade {
        let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &app)
            .await
            .map_err(|error| ApiError::bad_request(error.body_text()))?;
        return Ok(upgrade.on_upgrade(move |socket| to_websocket(socket, pieces)));
    }
    Ok(if frames { framed(pieces) } else { plain(pieces) })
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
    let follow = query.follows()?;
    let (sender, pieces) = mpsc::channel(WAITING);
    app.tracker.spawn(logs::of_execution(app.clone(), id, follow, sender));
    Ok(framed(pieces))
}

fn accepts_frames(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).is_some_and(|value| value.as_bytes() == FRAMES.as_bytes())
}

/// A job's output, or the answer of an owner that does not give it.
enum Opened {
    Here(mpsc::Receiver<Piece>),
    Refused(Response),
}

/// The job's output: gathered here when this node owns it, else from its owner.
async fn open(
    app: &App,
    resolved: Resolved,
    wanted: Wanted,
    token: Option<header::HeaderValue>,
) -> Result<Opened, ApiError> {
    let (sender, pieces) = mpsc::channel(WAITING);
    if resolved.owner == app.me {
        let version = logs::check(app, resolved.job, &wanted).await?;
        app.tracker.spawn(logs::gather(app.clone(), resolved.job, version, wanted, sender));
        return Ok(Opened::Here(pieces));
    }
    let found = Owned { job: resolved.job, owner: resolved.owner };
    let path = path(resolved.job, &wanted);
    let answer = match remote::ask(&app.host, found.owner, Method::GET, &path, Body::empty(), token).await {
        Ok(answer) => answer,
        Err(error) => return Err(route::owner_away(app, found, &error).await),
    };
    if !answer.status().is_success() {
        return Ok(Opened::Refused(answer.map(Body::new).into_response()));
    }
    app.tracker.spawn(relay(Pieces::of(answer.into_body()), sender));
    Ok(Opened::Here(pieces))
}

fn path(job: JobId, wanted: &Wanted) -> String {
    let mut path = format!("/api/v1/orchestrator/jobs/{job}/logs?format=frames&follow={}", wanted.follow);
    if let Some(lines) = wanted.tail {
        path.push_str(&format!("&tail={lines}"));
    }
    if let Some(partition) = wanted.partition {
        path.push_str(&format!("&partition={partition}"));
    }
    if let Some(version) = wanted.version {
        path.push_str(&format!("&job_version={version}"));
    }
    if let Some(execution) = &wanted.execution {
        let safe = percent_encoding::utf8_percent_encode(execution, percent_encoding::NON_ALPHANUMERIC);
        path.push_str(&format!("&execution_id={safe}"));
    }
    path
}

async fn relay(mut pieces: Pieces, client: mpsc::Sender<Piece>) {
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece,
            () = client.closed() => return,
        };
        let Some(piece) = piece else { return };
        let broken = piece.is_err();
        if client.send(piece).await.is_err() || broken {
            return;
        }
    }
}

fn stream(pieces: mpsc::Receiver<Piece>) -> impl futures::Stream<Item = Piece> {
    futures::stream::unfold(pieces, |mut pieces| async move { Some((pieces.recv().await?, pieces)) })
}

/// A body that breaks off where the output does: a client must not take a part for the whole.
fn body(parts: impl futures::Stream<Item = Result<Bytes, Broken>> + Send + 'static) -> Body {
    Body::from_stream(parts.then(|part| async move {
        if let Err(broken) = &part {
            debug!(%broken, "a client does not get all of the output");
            // What came before is sent while this waits: nothing is sent after an error.
            tokio::task::yield_now().await;
        }
        part
    }))
}

/// Frames say themselves what is missing; only what is cut off breaks the body off.
fn framed(pieces: mpsc::Receiver<Piece>) -> Response {
    let frames = stream(pieces).map(|piece| {
        let mut bytes = BytesMut::new();
        encode(&piece, &mut bytes);
        match piece {
            Err(cut @ Broken::Cut(_)) => Err(cut),
            Ok(_) | Err(Broken::Missing(_)) => Ok(bytes.freeze()),
        }
    });
    ([(header::CONTENT_TYPE, FRAMES)], body(frames)).into_response()
}

fn plain(pieces: mpsc::Receiver<Piece>) -> Response {
    let bytes = stream(pieces).map_ok(|chunk| chunk.bytes);
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body(bytes)).into_response()
}

/// Bacalhau's framing: one text message a line, and a normal close at the end.
async fn to_websocket(mut socket: WebSocket, mut pieces: mpsc::Receiver<Piece>) {
    let code = loop {
        let piece = tokio::select! {
            piece = pieces.recv() => piece,
            message = socket.recv() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
        };
        match piece {
            None => break close_code::NORMAL,
            Some(Ok(chunk)) => {
                for line in chunk.bytes.split_inclusive(|byte| *byte == b'\n') {
                    let line = String::from_utf8_lossy(line);
                    let value = json!({"value": {"Type": chunk.stream as u8, "Line": line}});
                    if socket.send(Message::Text(value.to_string().into())).await.is_err() {
                        return;
                    }
                }
            }
            Some(Err(broken)) => {
                let value = json!({"value": {"Type": 0, "Line": ""}, "error": broken.to_string()});
                if socket.send(Message::Text(value.to_string().into())).await.is_err() {
                    return;
                }
                break close_code::ERROR;
            }
        }
    };
    let close = CloseFrame { code, reason: "".into() };
    if let Err(error) = socket.send(Message::Close(Some(close))).await {
        debug!(%error, "the client left before the end");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Chunk;

    fn query(follow: &str, tail: &str) -> LogQuery {
        LogQuery { follow: Some(follow.to_owned()), tail: Some(tail.to_owned()), ..LogQuery::default() }
    }

    #[test]
    fn booleans_are_read_as_go_and_python_write_them() {
        for yes in ["1", "t", "TRUE", "True", "true"] {
            assert!(query(yes, "").wanted().unwrap().follow, "{yes}");
        }
        assert!(!query("False", "").wanted().unwrap().follow && !query("", "").wanted().unwrap().follow);
        assert!(query("yes", "").wanted().is_err());
    }

    #[test]
    fn a_tail_is_a_number_of_lines_or_only_what_comes() {
        assert_eq!(query("", "1").wanted().unwrap().tail, Some(1));
        assert_eq!(query("", "True").wanted().unwrap().tail, Some(0));
        assert_eq!(query("", "false").wanted().unwrap().tail, None);
        assert!(query("", "-1").wanted().is_err());
    }

    /// Output and what broke it, in a form.
    async fn answered(form: fn(mpsc::Receiver<Piece>) -> Response, broken: Broken) -> Option<Bytes> {
        use http_body_util::BodyExt;
        let (sender, pieces) = mpsc::channel(4);
        let chunk = Chunk { stream: logs::Stream::Out, partition: 0, bytes: "some".into() };
        sender.send(Ok(chunk)).await.unwrap();
        sender.send(Err(broken)).await.unwrap();
        drop(sender);
        form(pieces).into_body().collect().await.ok().map(http_body_util::Collected::to_bytes)
    }

    #[tokio::test]
    async fn a_body_breaks_off_where_the_output_does_unless_it_can_say_so() {
        let missing = || Broken::Missing("the rest is gone".to_owned());
        let cut = || Broken::Cut("the node is stopping".to_owned());
        assert_eq!(answered(plain, missing()).await, None);
        assert_eq!(answered(plain, cut()).await, None);
        assert_eq!(answered(framed, cut()).await, None);
        let framed = answered(framed, missing()).await.unwrap();
        assert!(framed.ends_with(b"the rest is gone"), "{framed:?}");
    }
}
