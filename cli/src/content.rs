//! Adding and fetching content over the API.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::Method;
use hyper::body::Frame;
use job::spec::ContentPath;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::args::data::Shape;
use crate::client::{Body, Client, Stream, empty};
use crate::failure::{Failure, exit, reason};
use crate::output::Notes;
use crate::output::status::Status;
use crate::tree;

/// Bytes that travel together between a file and the connection.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks that may wait between a file and the connection: enough to keep both busy.
const CHUNKS_WAITING: usize = 4;

/// What an API path may carry as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Text as one part of a path or query.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// The route of content, with its path encoded part by part.
pub fn route(content: &ContentPath, format: &str, timeout: Option<Duration>) -> String {
    let mut route = format!("/content/{}", content.cid);
    for part in content.path.split('/').filter(|part| !part.is_empty()) {
        route.push('/');
        route.push_str(&encode(part));
    }
    route.push_str("?format=");
    route.push_str(format);
    if let Some(timeout) = timeout {
        route.push_str(&format!("&timeout={}", timeout.as_secs_f64().ceil()));
    }
    route
}

/// Reads `CID[/PATH]`.
pub fn parse(text: &str) -> Result<ContentPath, Failure> {
    text.parse().map_err(|error| {
        Failure::refused(format!("cannot use {text:?}: {error}")).hint("name content as CID or CID/path")
    })
}

/// Adds a file or folder; the answer is the node's {Cid, Size, Blocks, Name}.
pub async fn add(
    client: &Client,
    notes: Notes,
    path: &Path,
    shape: &Shape,
    only_hash: bool,
) -> Result<Value, Failure> {
    let cannot = |error: &io::Error| Failure::local(format!("cannot add {}", path.display()), error);
    let name = name_of(path);
    if path == Path::new("-") {
        return send(
            client,
            notes,
            path,
            query(shape, only_hash, None),
            Upload::Reader(Box::new(io::stdin())),
        )
        .await;
    }
    let metadata = std::fs::metadata(path).map_err(|error| cannot(&error))?;
    if !metadata.is_file() && !metadata.is_dir() {
        let why = tree::pack::special(&metadata);
        return Err(Failure::refused(format!("cannot add {}: {why}", path.display()))
            .hint("pipe its content instead: … | cardume data add -"));
    }
    let query = query(shape, only_hash, name.as_deref());
    if client.endpoint().is_local_socket() {
        // The node reads the files itself: nothing is copied through the socket.
        let absolute = std::fs::canonicalize(path).map_err(|error| cannot(&error))?;
        if let Some(text) = absolute.to_str() {
            let route = format!("/content?path={}{query}", encode(text));
            return client.send(Method::PUT, &route, "application/octet-stream", empty(), None).await;
        }
    }
    let upload = if metadata.is_dir() {
        Upload::Folder(path.to_owned())
    } else {
        Upload::Reader(Box::new(File::open(path).map_err(|error| cannot(&error))?))
    };
    send(client, notes, path, query, upload).await
}

/// The CID in the answer to [`add`].
pub fn cid_of(added: &Value) -> Result<&str, Failure> {
    added["Cid"].as_str().ok_or_else(|| Failure::refused("the node's answer names no CID"))
}

/// What [`fetch`] brought.
#[derive(Debug)]
pub struct Fetched {
    /// Links that were not made because they lead outside.
    pub left_out: Vec<String>,
}

/// Fetches content as a file or folder at `into`, where nothing is yet.
pub async fn fetch(
    client: &Client,
    notes: Notes,
    content: &ContentPath,
    timeout: Option<Duration>,
    into: &Path,
) -> Result<Fetched, Failure> {
    let stat = stat(client, content, timeout).await?;
    let size = stat["CumulativeSize"].as_u64().or_else(|| stat["Size"].as_u64());
    let mut status = Status::new(notes, format!("fetching {content}"), size);
    match stat["Type"].as_str() {
        Some("directory") => {
            let mut stream =
                client.stream(&route(content, "tar", timeout), "application/x-tar", None).await?;
            fetch_folder(&mut stream, &mut status, into).await
        }
        Some("file") => {
            let mut stream =
                client.stream(&route(content, "raw", timeout), "application/octet-stream", None).await?;
            fetch_file(&mut stream, &mut status, into).await?;
            Ok(Fetched { left_out: Vec::new() })
        }
        other => {
            let kind = other.unwrap_or("something unknown");
            Err(Failure::refused(format!("cannot write {content} as a file or folder: it is a {kind}")))
        }
    }
}

/// Type and sizes of content.
pub async fn stat(
    client: &Client,
    content: &ContentPath,
    timeout: Option<Duration>,
) -> Result<Value, Failure> {
    client.send(Method::GET, &route(content, "stat", timeout), "application/json", empty(), None).await
}

async fn fetch_file(stream: &mut Stream, status: &mut Status, into: &Path) -> Result<(), Failure> {
    let cannot = |error: &io::Error| Failure::local(format!("cannot write {}", into.display()), error);
    let mut file = File::create_new(into).map_err(|error| cannot(&error))?;
    while let Some(bytes) = stream.next().await? {
        file.write_all(&bytes).map_err(|error| cannot(&error))?;
        status.advance(bytes.len());
    }
    Ok(())
}

async fn fetch_folder(stream: &mut Stream, status: &mut Status, into: &Path) -> Result<Fetched, Failure> {
    let cannot = |error: &io::Error| Failure::local(format!("cannot write {}", into.display()), error);
    std::fs::create_dir(into).map_err(|error| cannot(&error))?;
    let (sender, receiver) = mpsc::channel(CHUNKS_WAITING);
    let root = into.to_owned();
    let unpacking = tokio::task::spawn_blocking(move || {
        let mut reader = ChannelReader { receiver, rest: Bytes::new() };
        let unpacked = tree::unpack::unpack(&mut reader, &root);
        // What follows the archive's end is read, too, so that a stream that breaks off there is noticed.
        unpacked.and_then(|unpacked| io::copy(&mut reader, &mut io::sink()).map(|_| unpacked))
    });
    let streamed = pump(stream, status, sender).await;
    let unpacked =
        unpacking.await.map_err(|error| Failure::refused(format!("unpacking ended badly: {error}")))?;
    streamed?;
    let unpacked = unpacked.map_err(|error| cannot(&error))?;
    Ok(Fetched { left_out: unpacked.left_out })
}

/// Carries a stream to a reader in another thread. A reader that is gone has failed and says why itself.
async fn pump(
    stream: &mut Stream,
    status: &mut Status,
    sender: mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), Failure> {
    loop {
        match stream.next().await {
            Ok(Some(bytes)) => {
                status.advance(bytes.len());
                if sender.send(Ok(bytes)).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => return Ok(()),
            Err(failure) => {
                // The reader must not take the end of the channel for the end of the archive.
                let _ = sender.send(Err(io::ErrorKind::ConnectionAborted.into())).await;
                return Err(failure);
            }
        }
    }
}

/// What is sent to the node.
enum Upload {
    /// A folder, as a tar stream.
    Folder(PathBuf),
    /// One file's bytes.
    Reader(Box<dyn Read + Send>),
}

async fn send(
    client: &Client,
    notes: Notes,
    path: &Path,
    query: String,
    upload: Upload,
) -> Result<Value, Failure> {
    let content_type = match upload {
        Upload::Folder(_) => "application/x-tar",
        Upload::Reader(_) => "application/octet-stream",
    };
    let status = Status::new(notes, format!("adding {}", path.display()), None);
    let (body, failed) = upload_body(upload, status);
    let route = format!("/content?{}", query.trim_start_matches('&'));
    let answer = client.send(Method::PUT, &route, content_type, body, None).await;
    match (answer, failed.await) {
        (Ok(value), _) => Ok(value),
        // The file, not the node, is to blame.
        (Err(_), Ok(error)) => Err(Failure::new(
            exit::REFUSED,
            "LocalError",
            format!("cannot add {}: {}", path.display(), reason(&error)),
        )),
        (Err(failure), Err(_)) => Err(failure),
    }
}

/// A body that a thread writes, and the reason why it could not.
fn upload_body(upload: Upload, status: Status) -> (Body, oneshot::Receiver<io::Error>) {
    let (sender, mut receiver) = mpsc::channel::<io::Result<Bytes>>(CHUNKS_WAITING);
    let (failed, why) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let mut writer = ChannelWriter { sender, buffer: Vec::with_capacity(CHUNK_BYTES), status };
        let written = match upload {
            Upload::Folder(path) => tree::pack::pack(&path, &mut writer),
            Upload::Reader(mut reader) => io::copy(&mut reader, &mut writer).and_then(|_| writer.flush()),
        };
        if let Err(error) = written
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            let _ = failed.send(error);
            let _ = writer.sender.blocking_send(Err(io::ErrorKind::InvalidData.into()));
        }
    });
    let frames = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
    let frames = futures::StreamExt::map(frames, |bytes| bytes.map(Frame::data));
    (StreamBody::new(frames).boxed_unsync(), why)
}

/// Writes into a channel, in chunks.
struct ChannelWriter {
    sender: mpsc::Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
    status: Status,
}

impl Write for ChannelWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > CHUNK_BYTES {
            self.flush()?;
        }
        let most = bytes.len().min(CHUNK_BYTES);
        self.buffer.extend_from_slice(&bytes[..most]);
        Ok(most)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        self.status.advance(chunk.len());
        // The connection is gone; its own error says why.
        self.sender.blocking_send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Reads from a channel.
struct ChannelReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(bytes) => self.rest = bytes?,
            }
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

/// The options of a request, each with `&` before it.
fn query(shape: &Shape, only_hash: bool, name: Option<&str>) -> String {
    let mut query = String::new();
    let mut push = |key: &str, value: String| query.push_str(&format!("&{key}={value}"));
    if let Some(version) = shape.cid_version {
        push("cid-version", version.to_string());
    }
    if let Some(size) = shape.chunk_size {
        push("chunk-size", size.to_string());
    }
    if let Some(profile) = &shape.profile {
        push("profile", encode(profile));
    }
    if let Some(raw) = shape.raw_leaves {
        push("raw-leaves", raw.to_string());
    }
    if shape.wrap {
        push("wrap", "true".to_owned());
    }
    if only_hash {
        push("only-hash", "true".to_owned());
    }
    if let Some(name) = name {
        push("name", encode(name));
    }
    query
}

/// The name that a path ends with, also for `.` and `dir/..`.
fn name_of(path: &Path) -> Option<String> {
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    name(path).or_else(|| name(&std::fs::canonicalize(path).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CID: &str = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";

    #[test]
    fn paths_are_encoded_part_by_part() {
        let content = parse(&format!("ipfs://{CID}/a b/ü?x")).unwrap();
        let expected = format!("/content/{CID}/a%20b/%C3%BC%3Fx?format=raw&timeout=2");
        assert_eq!(route(&content, "raw", Some(Duration::from_millis(1500))), expected);
    }

    #[test]
    fn what_names_no_content_is_refused_before_any_node_is_asked() {
        for text in ["", "bafy", &format!("{CID}/../x"), "https://x"] {
            assert_eq!(parse(text).unwrap_err().exit, exit::REFUSED, "{text}");
        }
    }

    #[test]
    fn options_become_a_query() {
        let shape = Shape {
            wrap: true,
            cid_version: Some(0),
            chunk_size: Some(262_144),
            profile: Some("unixfs-v0-2015".into()),
            raw_leaves: Some(false),
        };
        let expected = "&cid-version=0&chunk-size=262144&profile=unixfs-v0-2015&raw-leaves=false&wrap=true&only-hash=true&name=a%26b";
        assert_eq!(query(&shape, true, Some("a&b")), expected);
        assert_eq!(query(&Shape::default(), false, None), "");
    }
}
