//! A small client of a node's HTTP API over TCP, for tests, benchmarks and the start of test networks.
//!
//! It owns connections and nothing else: no retries, no fallback, no opinion on what an answer means. What users
//! run is the command line, which has a client of its own.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use testnet::client::Client;
//! let client = Client::new("http://127.0.0.1:1234")?;
//! let id = client.submit(&serde_json::json!({"Name": "hello", "Type": "batch"})).await?;
//! let end = client.wait_end(&id).await?;
//! assert_eq!(end["Job"]["State"]["StateType"], "Completed");
//! # Ok(()) }
//! ```

mod events;
mod jobs;

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Method, Request, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

pub use events::{Event, Events};

/// Where every route begins.
const PREFIX: &str = "/api/v1";
/// What [`Client::request`] holds in memory at the most; larger bodies are streamed with [`Client::open`].
const ANSWER_BYTES: usize = 512 << 20;

/// A node's API.
#[derive(Debug, Clone)]
pub struct Client {
    address: String,
    host: String,
}

impl Client {
    /// The API at a URL like `http://127.0.0.1:1234`.
    pub fn new(api: &str) -> anyhow::Result<Self> {
        let address =
            api.strip_prefix("http://").with_context(|| format!("{api:?} does not begin with http://"))?;
        let address = address.trim_end_matches('/').to_owned();
        Ok(Client { host: address.clone(), address })
    }

    /// The same API, called by another name in the `Host` header.
    pub fn with_host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    /// `GET` of a path below `/api/v1`.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.request(Method::GET, path, None, Bytes::new()).await
    }

    /// `PUT` of JSON.
    pub async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.request(Method::PUT, path, Some("application/json"), body.to_string().into()).await
    }

    /// `DELETE` with JSON.
    pub async fn delete(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.request(Method::DELETE, path, Some("application/json"), body.to_string().into()).await
    }

    /// `PUT` of bytes.
    pub async fn put_bytes(&self, path: &str, kind: &str, body: Bytes) -> anyhow::Result<Answer> {
        self.request(Method::PUT, path, Some(kind), body).await
    }

    /// One request on a connection of its own, and the whole answer.
    ///
    /// Dropping the future cuts the connection.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        kind: Option<&str>,
        body: Bytes,
    ) -> anyhow::Result<Answer> {
        self.connect().await?.request(method, path, kind, body).await
    }

    /// One `GET` whose answer is read as it comes. `accept` says in which form.
    pub async fn open(&self, path: &str, accept: &str) -> anyhow::Result<Stream> {
        let mut connection = self.connect().await?;
        let request = Request::get(format!("{PREFIX}{path}"))
            .header(header::HOST, &self.host)
            .header(header::ACCEPT, accept)
            .body(Full::default())?;
        let answer = connection.sender.send_request(request).await.with_context(|| format!("GET {path}"))?;
        let (parts, body) = answer.into_parts();
        Ok(Stream { status: parts.status.as_u16(), headers: parts.headers, body, _connection: connection })
    }

    /// One `GET` of a stream of server-sent events.
    pub async fn events(&self, path: &str) -> anyhow::Result<Events> {
        let stream = self.open(path, "text/event-stream").await?;
        if stream.status != 200 {
            let answer = stream.all().await?;
            bail!("GET {path}: {} {}", answer.status, answer.text());
        }
        Ok(Events::new(stream))
    }

    /// A connection that stays open over many requests.
    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let failed = || format!("cannot reach {}", self.address);
        let tcp = TcpStream::connect(&self.address).await.with_context(failed)?;
        tcp.set_nodelay(true).with_context(failed)?;
        let (sender, connection) = handshake(TokioIo::new(tcp)).await.with_context(failed)?;
        let driver = tokio::spawn(async move {
            // What goes wrong here is what the request in progress returns.
            let _ = connection.await;
        });
        Ok(Connection { sender, host: self.host.clone(), driver })
    }
}

/// A connection to a node's API. Dropping it cuts it.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// One request and the whole answer.
    ///
    /// Dropping the future leaves the connection unusable.
    pub async fn request(
        &mut self,
        method: Method,
        path: &str,
        kind: Option<&str>,
        body: Bytes,
    ) -> anyhow::Result<Answer> {
        let failed = format!("{method} {path}");
        let mut request =
            Request::builder().method(method).uri(format!("{PREFIX}{path}")).header(header::HOST, &self.host);
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let request = request.body(Full::new(body))?;
        let exchange = async {
            self.sender.ready().await?;
            let (parts, body) = self.sender.send_request(request).await?.into_parts();
            let body = match Limited::new(body, ANSWER_BYTES).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => return Err(anyhow::Error::from_boxed(error).context("the answer is cut off")),
            };
            Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
        };
        exchange.await.context(failed)
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; `null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The JSON of a good answer; any other is an error with its status and text.
    pub fn ok(&self) -> anyhow::Result<Value> {
        if self.status != 200 {
            bail!("the node answered {}: {}", self.status, self.text());
        }
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {:?}", self.text()))
    }
}

/// An answer that is still coming.
#[derive(Debug)]
pub struct Stream {
    /// The HTTP status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    body: Incoming,
    _connection: Connection,
}

impl Stream {
    /// The next bytes, or `None` at the end. A body that breaks off is an error.
    pub async fn chunk(&mut self) -> anyhow::Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(data) = frame.context("the answer broke off")?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// All that is still to come.
    pub async fn all(mut self) -> anyhow::Result<Answer> {
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() + chunk.len() > ANSWER_BYTES {
                bail!("the answer is larger than {ANSWER_BYTES} bytes");
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status: self.status, headers: self.headers.clone(), body: body.freeze() })
    }
}
