//! The HTTP client: one kept-alive HTTP/1.1 connection to a node, over loopback TCP or its unix socket.
//!
//! It knows the API's error shape and its streams; it never decides which node to use (that is `target`).

pub mod endpoint;
pub mod frames;
pub mod sse;

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::failure::{BROKE_OFF, Failure, exit, reason};

pub use endpoint::Endpoint;

/// A request's body.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Where every route lives.
const PREFIX: &str = "/api/v1";

/// How long a node may take to accept a connection: it is on this machine or near it.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a node may take to begin its answer to a small request. It may have to ask the owner of a job far away.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(90);

/// The largest JSON answer that is read: a page of executions with their outputs stays far below.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// A node, as the commands talk to it. Requests follow each other on one connection; a stream takes the
/// connection with it, and the next request opens another.
#[derive(Debug)]
pub struct Client {
    endpoint: Endpoint,
    token: Option<String>,
    idle: RefCell<Option<SendRequest<Body>>>,
}

/// A streamed answer. Dropping it closes its connection.
#[derive(Debug)]
pub struct Stream {
    /// Status and headers.
    pub head: hyper::http::response::Parts,
    body: Incoming,
    /// Keeps the connection's request half alive while the answer is read.
    _sender: SendRequest<Body>,
}

impl Client {
    /// Connects, so that a node that is not there is noticed before anything else is done.
    pub async fn connect(endpoint: Endpoint) -> io::Result<Client> {
        let sender = open(&endpoint).await?;
        Ok(Client { endpoint, token: None, idle: RefCell::new(Some(sender)) })
    }

    /// The same with an access token, which its requests carry.
    pub fn with_token(mut self, token: Option<String>) -> Self {
        self.token = token;
        self
    }

    /// The access token.
    pub fn token(&self) -> Option<String> {
        self.token.clone()
    }

    /// The node's address.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// `GET path` as JSON.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.json(Method::GET, path, None).await
    }

    /// `PUT path` with a JSON body, answered in JSON.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(Method::PUT, path, Some(body)).await
    }

    /// `DELETE path` with a JSON body, answered in JSON.
    pub async fn delete(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(Method::DELETE, path, Some(body)).await
    }

    /// One request with any body, answered in JSON. `deadline` bounds the whole exchange; `None`: as long as it takes.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Body,
        deadline: Option<Duration>,
    ) -> Result<Value, Failure> {
        let request = self.request(method, path, &[(CONTENT_TYPE, content_type)], body)?;
        let exchange = async {
            let (sender, response) = self.exchange(request).await?;
            self.read_json(sender, response).await
        };
        match deadline {
            None => exchange.await,
            Some(deadline) => tokio::time::timeout(deadline, exchange)
                .await
                .unwrap_or_else(|_| Err(self.too_slow(deadline))),
        }
    }

    /// `GET path` as a stream, with the given `Accept`. An answer that is an error is read and returned as one.
    /// `deadline` bounds the wait for its beginning; `None`: as long as it takes.
    pub async fn stream(
        &self,
        path: &str,
        accept: &str,
        deadline: Option<Duration>,
    ) -> Result<Stream, Failure> {
        let request = self.request(Method::GET, path, &[(ACCEPT, accept)], empty())?;
        let exchange = self.exchange(request);
        let (sender, response) = match deadline {
            None => exchange.await?,
            Some(deadline) => tokio::time::timeout(deadline, exchange)
                .await
                .unwrap_or_else(|_| Err(self.too_slow(deadline)))?,
        };
        if !response.status().is_success() {
            return Err(match self.read_json(sender, response).await {
                Err(failure) => failure,
                Ok(_) => self.broken("the answer is neither a success nor an error"),
            });
        }
        let (head, body) = response.into_parts();
        Ok(Stream { head, body, _sender: sender })
    }

    async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let body = body.map_or_else(empty, |value| full(value.to_string()));
        self.send(method, path, "application/json", body, Some(ANSWER_DEADLINE)).await
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(hyper::header::HeaderName, &str)],
        body: Body,
    ) -> Result<Request<Body>, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header(HOST, self.endpoint.host());
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        request
            .body(body)
            .map_err(|error| Failure::refused(format!("cannot ask the node for {path}: {error}")))
    }

    /// Sends a request and waits for the head of the answer.
    async fn exchange(
        &self,
        request: Request<Body>,
    ) -> Result<(SendRequest<Body>, Response<Incoming>), Failure> {
        let mut sender = self.sender().await?;
        let response = sender.send_request(request).await.map_err(|error| self.lost(&error))?;
        Ok((sender, response))
    }

    /// The kept connection if the node has not closed it, else a new one.
    async fn sender(&self) -> Result<SendRequest<Body>, Failure> {
        let kept = self.idle.borrow_mut().take();
        if let Some(mut sender) = kept
            && !sender.is_closed()
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        open(&self.endpoint).await.map_err(|error| unreachable(&self.endpoint, &error))
    }

    async fn read_json(
        &self,
        sender: SendRequest<Body>,
        response: Response<Incoming>,
    ) -> Result<Value, Failure> {
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let bytes = body.map_err(|error| self.broken(&error.to_string()))?.to_bytes();
        self.idle.replace(Some(sender));
        let value = serde_json::from_slice(&bytes);
        if !status.is_success() {
            return Err(api_failure(status, value.ok().as_ref(), &bytes));
        }
        value.map_err(|error| self.broken(&format!("the answer is not JSON: {error}")))
    }

    /// The connection ended in the middle of a request.
    fn lost(&self, error: &hyper::Error) -> Failure {
        let message = format!("lost the connection to the node at {}: {}", self.endpoint, cause(error));
        Failure::unreachable(message).hint("look at the node's log, then try again")
    }

    fn broken(&self, why: &str) -> Failure {
        Failure::unreachable(format!("cannot read the answer of the node at {}: {why}", self.endpoint))
    }

    fn too_slow(&self, deadline: Duration) -> Failure {
        let message = format!("the node at {} gave no answer within {} s", self.endpoint, deadline.as_secs());
        Failure::unreachable(message).hint("look at the node's log, then try again")
    }
}

impl Stream {
    /// The next bytes; `None` at the end. An answer that breaks off is an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => {
                    let message = format!("the node's answer broke off: {}", cause(&error));
                    return Err(Failure::new(exit::REFUSED, BROKE_OFF, message).hint("try again"));
                }
            }
        }
    }

    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    /// `Content-Length`, when the node said it.
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }
}

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(never).boxed_unsync()
}

/// A body that is at hand.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(never).boxed_unsync()
}

/// The node at an address could not be reached.
pub fn unreachable(endpoint: &Endpoint, error: &io::Error) -> Failure {
    Failure::unreachable(format!("cannot reach a node at {endpoint}: {}", reason(error)))
        .hint("start one with `cardume serve`, or name another with --api URL")
}

async fn open(endpoint: &Endpoint) -> io::Result<SendRequest<Body>> {
    let connecting = async {
        match endpoint {
            Endpoint::Tcp { host, port, .. } => {
                let stream = tokio::net::TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                speak(TokioIo::new(stream)).await
            }
            Endpoint::Unix(path) => {
                let short = node::SocketPath::of(path)?;
                speak(TokioIo::new(tokio::net::UnixStream::connect(short.as_path()).await?)).await
            }
        }
    };
    let connected = tokio::time::timeout(CONNECT_DEADLINE, connecting).await;
    connected
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it does not accept the connection")))
}

async fn speak<S>(stream: S) -> io::Result<SendRequest<Body>>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(stream).await.map_err(io::Error::other)?;
    // Its end shows in the requests that it carries.
    tokio::spawn(connection);
    Ok(sender)
}

/// The API's error as ours.
fn api_failure(status: StatusCode, value: Option<&Value>, bytes: &[u8]) -> Failure {
    let text = |key: &str| value.and_then(|value| value[key].as_str()).filter(|text| !text.is_empty());
    let plain = || String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).trim().to_owned();
    let message = text("Message").map_or_else(plain, str::to_owned);
    let message = if message.is_empty() { format!("the node answered {status}") } else { message };
    let code = text("Code").map_or_else(|| status.as_u16().to_string(), str::to_owned);
    let failure = Failure::new(exit::REFUSED, &code, message).hint(text("Hint").unwrap_or_default());
    match value.map(|value| away(&value["Details"])) {
        Some(what) => failure.hint(what),
        None => failure,
    }
}

/// What a node knows itself of a job whose owner it cannot ask; empty for other errors.
fn away(details: &Value) -> String {
    let text = |key: &str| details[key].as_str().filter(|text| !text.is_empty());
    let Some(owner) = text("Owner") else { return String::new() };
    let seen =
        text("LastSeen").map_or("not seen by this node".to_owned(), |seen| format!("last seen {seen}"));
    let here = text("Executions").map_or("none of its executions".to_owned(), str::to_owned);
    format!("its owner is {owner}, {seen}; this node has {here}")
}

/// The innermost reason: hyper's own words say little.
fn cause(error: &hyper::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    match innermost.downcast_ref::<io::Error>() {
        Some(error) => reason(error),
        None => innermost.to_string(),
    }
}

fn never(impossible: Infallible) -> io::Error {
    match impossible {}
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_known_of_an_owner_that_is_away_is_told() {
        let away = json!({"Message": "away", "Details": {"Owner": "12D3x", "LastSeen": "", "Executions": "e-1 Running"}});
        let failure = api_failure(StatusCode::SERVICE_UNAVAILABLE, Some(&away), b"");
        assert_eq!(failure.hints, ["its owner is 12D3x, not seen by this node; this node has e-1 Running"]);
    }

    #[test]
    fn api_errors_keep_message_code_and_hint() {
        let body =
            json!({"Status": 404, "Message": "job not found: j-0", "Code": "NotFound", "Hint": "look"});
        let failure = api_failure(StatusCode::NOT_FOUND, Some(&body), b"");
        assert_eq!(failure.to_string(), "Error: job not found: j-0\nHint: look");
        assert_eq!((failure.exit, failure.code.as_str()), (1, "NotFound"));
    }

    #[test]
    fn answers_without_the_error_shape_still_say_something() {
        assert_eq!(api_failure(StatusCode::BAD_GATEWAY, None, b"proxy\n").message, "proxy");
        assert_eq!(
            api_failure(StatusCode::BAD_GATEWAY, None, b"").message,
            "the node answered 502 Bad Gateway"
        );
    }
}
