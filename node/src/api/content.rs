//! Content over HTTP: files and folders in, files, folders and listings out.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use bytes::Bytes;
use futures::StreamExt;
use job::spec::ContentPath;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::error::ApiError;
use super::guard::Caller;
use super::query::{self, Query};
use super::route;
use crate::archive::{self, ArchiveError, Bounds, Pieces};
use crate::content::{AddOptions, Added, FetchFault, Kind};
use crate::state::App;

/// Pieces of a body between the connection and the thread that unpacks it.
const PIECES: usize = 8;
/// Longest that a client may let this node look for content.
const LONGEST: u64 = 3600;
/// Says whether the content is a file or a folder.
const TYPE: &str = "x-cardume-type";

/// The routes; their bodies have no fixed limit, the store's size is theirs.
pub fn router() -> Router<App> {
    Router::new()
        .route("/content", put(add).post(add))
        .route("/content/{cid}", get(root))
        .route("/content/{cid}/{*path}", get(below))
        .layer(DefaultBodyLimit::disable())
}

/// The query of an addition.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct AddQuery {
    cid_version: Option<u8>,
    chunk_size: Option<u64>,
    profile: Option<String>,
    raw_leaves: Option<String>,
    #[serde(deserialize_with = "query::flag")]
    wrap: bool,
    #[serde(deserialize_with = "query::flag")]
    only_hash: bool,
    name: Option<String>,
    path: Option<String>,
}

impl AddQuery {
    fn options(&self) -> Result<AddOptions, ApiError> {
        let raw_leaves = match self.raw_leaves.as_deref() {
            None => None,
            Some(text) => Some(query::boolean(text).ok_or_else(|| {
                ApiError::bad_request(format!("raw-leaves: {text:?} is neither true nor false"))
            })?),
        };
        AddOptions::new(self.profile.as_deref(), self.cid_version, self.chunk_size, raw_leaves)
            .map(|options| options.only_hash(self.only_hash))
            .map_err(ApiError::bad_request)
    }
}

async fn add(
    State(app): State<App>,
    Query(query): Query<AddQuery>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let options = query.options()?;
    let caller = route::caller(&request);
    let kind = request.headers().get(header::CONTENT_TYPE).map(|value| value.as_bytes().to_vec());
    let mut added = match &query.path {
        Some(path) => add_path(&app, caller, path, &options).await?,
        None if kind.as_deref() == Some(b"application/x-tar") => {
            add_tar(&app, request.into_body(), &options).await?
        }
        None => add_file(&app, request.into_body(), &options).await?,
    };
    let name = query.name.clone().or_else(|| {
        let path = query.path.as_deref().map(std::path::Path::new)?;
        Some(path.file_name()?.to_string_lossy().into_owned())
    });
    if query.wrap {
        let name =
            name.clone().ok_or_else(|| ApiError::bad_request("wrap needs the name of the file or folder"))?;
        added = app.content.wrap(&name, &added, &options).await.map_err(failed)?;
    }
    Ok(Json(json!({
        "Cid": added.cid.to_string(),
        "Size": added.size,
        "CumulativeSize": added.total,
        "Name": name.unwrap_or_default(),
    })))
}

/// Only for who may read this node's data directory anyway: the node reads the path with its own rights.
async fn add_path(app: &App, caller: Caller, path: &str, options: &AddOptions) -> Result<Added, ApiError> {
    if caller != Caller::Socket {
        return Err(ApiError::forbidden("a path may be added only over the socket in the data directory")
            .hint("send the content itself in the request's body"));
    }
    let path = std::path::Path::new(path);
    if !path.is_absolute() {
        return Err(ApiError::bad_request("the path must be absolute"));
    }
    app.content.add(path, options).await.map_err(failed)
}

async fn add_file(app: &App, body: Body, options: &AddOptions) -> Result<Added, ApiError> {
    let stream = body.into_data_stream().map(|piece| piece.map_err(std::io::Error::other));
    app.content.add_stream(stream, options).await.map_err(failed)
}

async fn add_tar(app: &App, body: Body, options: &AddOptions) -> Result<Added, ApiError> {
    let (sender, pieces) = mpsc::channel::<std::io::Result<Bytes>>(PIECES);
    let bounds = Bounds { bytes: app.config.settings.storage_bytes, entries: 10_000_000 };
    let feeding = async move {
        let mut stream = body.into_data_stream();
        while let Some(piece) = stream.next().await {
            if sender.send(piece.map_err(std::io::Error::other)).await.is_err() {
                return; // the archive ended before the body
            }
        }
    };
    let adding = archive::add_with(&app.content, bounds, options, move || Pieces::new(pieces));
    let ((), added) = tokio::join!(feeding, adding);
    added.map_err(|error| match error {
        ArchiveError::Content(fault) => failed(fault),
        ArchiveError::Write(error) => ApiError::internal("unpacking the archive", &error),
        other => ApiError::bad_request(super::error::chain(&other)),
    })
}

/// The query of a read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct GetQuery {
    format: Option<String>,
    timeout: Option<u64>,
}

async fn root(
    state: State<App>,
    Path(cid): Path<String>,
    query: Query<GetQuery>,
) -> Result<Response, ApiError> {
    read(&state, &cid, "", &query.0).await
}

async fn below(
    state: State<App>,
    Path((cid, path)): Path<(String, String)>,
    query: Query<GetQuery>,
) -> Result<Response, ApiError> {
    read(&state, &cid, &path, &query.0).await
}

async fn read(app: &App, cid: &str, path: &str, query: &GetQuery) -> Result<Response, ApiError> {
    let cid = job::content::parse_cid(cid).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let what = ContentPath { cid, path: path.trim_matches('/').to_owned() };
    let within = match query.timeout {
        Some(seconds) => Duration::from_secs(seconds.clamp(1, LONGEST)),
        None => app.config.settings.input_timeout,
    };
    match query.format.as_deref() {
        None | Some("" | "raw") => raw(app, &what, within).await,
        Some("tar") => tar(app, &what, within).await,
        Some("ls") => list(app, &what, within).await,
        Some("stat") => stat(app, &what, within).await,
        Some(other) => Err(ApiError::bad_request(format!("format {other:?} is none of raw, tar, ls, stat"))),
    }
}

async fn raw(app: &App, what: &ContentPath, within: Duration) -> Result<Response, ApiError> {
    let stat = app.content.stat(what, within).await.map_err(failed)?;
    if stat.kind == Kind::Directory {
        return Err(ApiError::bad_request(format!("{what} is a directory"))
            .hint("`cardume data ls` lists it, `cardume data get` gets it"));
    }
    let bytes = app.content.cat(what, within).await.map_err(failed)?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, HeaderValue::from(stat.size)),
        (header::HeaderName::from_static(TYPE), HeaderValue::from_static(stat.kind.as_str())),
    ];
    Ok((headers, Body::from_stream(bytes)).into_response())
}

/// A folder as its entries, a file as one entry. It is brought here whole before the first byte goes out.
async fn tar(app: &App, what: &ContentPath, within: Duration) -> Result<Response, ApiError> {
    let stat = app.content.stat(what, within).await.map_err(failed)?;
    let checkout = app.content.checkout(what, &[], within, u64::MAX, None).await.map_err(failed)?;
    let (sender, pieces) = mpsc::channel::<std::io::Result<Bytes>>(PIECES);
    tokio::task::spawn_blocking(move || {
        let mut writer = std::io::BufWriter::with_capacity(256 << 10, Sender(sender.clone()));
        if let Err(error) = archive::pack(&checkout.path, &mut writer) {
            // The client sees the body break: what it has is not whole.
            let _ = sender.blocking_send(Err(error));
        }
    });
    let stream =
        futures::stream::unfold(pieces, |mut pieces| async move { Some((pieces.recv().await?, pieces)) });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar")),
        (header::HeaderName::from_static(TYPE), HeaderValue::from_static(stat.kind.as_str())),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// Writes into a body; runs on a thread that may block.
struct Sender(mpsc::Sender<std::io::Result<Bytes>>);

impl std::io::Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn list(app: &App, what: &ContentPath, within: Duration) -> Result<Response, ApiError> {
    let entries = app.content.list(what, within).await.map_err(failed)?;
    let entries: Vec<Value> = entries
        .iter()
        .map(|entry| {
            json!({"Name": entry.name, "Cid": entry.cid.to_string(), "Size": entry.size, "Type": entry.kind.as_str()})
        })
        .collect();
    Ok(Json(json!({"Entries": entries})).into_response())
}

async fn stat(app: &App, what: &ContentPath, within: Duration) -> Result<Response, ApiError> {
    let stat = app.content.stat(what, within).await.map_err(failed)?;
    Ok(Json(json!({
        "Cid": stat.cid.to_string(),
        "Type": stat.kind.as_str(),
        "Size": stat.size,
        "CumulativeSize": stat.cumulative,
        "Local": stat.local,
        "Target": stat.target,
    }))
    .into_response())
}

fn failed(fault: FetchFault) -> ApiError {
    match fault {
        FetchFault::NotFound(message) => ApiError::not_found(message)
            .hint("is a peer that holds it connected? `cardume node list` shows who is"),
        FetchFault::NoEntry(message) => ApiError::not_found(message),
        FetchFault::Malformed(message) | FetchFault::TooLarge(message) => ApiError::bad_request(message),
        FetchFault::Here(message) => {
            ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
        }
    }
}
