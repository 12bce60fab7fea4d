//! The shape of every refusal: Bacalhau's error body, with a hint of what to do next.

use axum::Json;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Most of a refusal's own words that are kept.
const WORDS_BYTES: usize = 4 << 10;

/// A request that is not answered with what it asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// A word that programs hold on to.
    pub code: &'static str,
    /// What happened, to what, why.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// More, for programs.
    pub details: Option<Box<Value>>,
}

impl ApiError {
    /// An error of the given status and code.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        ApiError { status, code, message: message.into(), hint: None, details: None }
    }

    /// 404: what was named is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// 400: the request cannot be understood or is refused for what it says.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 403: the caller may not.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// 409: not in this state.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    /// 503: somebody who is needed is away.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Unavailable", message)
    }

    /// 500: this node's fault. The cause goes into the answer: the caller is its operator.
    pub fn internal(what: &str, cause: &dyn std::error::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", format!("{what}: {}", chain(cause)))
    }

    /// The same error with a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same error with details.
    pub fn details(mut self, details: Value) -> Self {
        self.details = Some(Box::new(details));
        self
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

/// Gives every refusal this API's shape, also those that the framework makes by itself: a method that a route
/// does not have, a body that is too large, a path that is no text.
pub async fn in_shape(request: Request, next: Next) -> Response {
    let answer = next.run(request).await;
    let status = answer.status();
    if !(status.is_client_error() || status.is_server_error()) || is_json(&answer) {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    // A body that cannot be read has nothing to say.
    let words = axum::body::to_bytes(body, WORDS_BYTES).await.unwrap_or_default();
    let words = String::from_utf8_lossy(&words).trim().to_owned();
    let message = match (status, words.is_empty()) {
        (StatusCode::METHOD_NOT_ALLOWED, _) => "this method is not allowed for this path".to_owned(),
        (_, true) => status.canonical_reason().unwrap_or("the request was refused").to_owned(),
        (_, false) => words,
    };
    let mut shaped = ApiError::new(status, word(status), message).into_response();
    if let Some(allowed) = head.headers.remove(header::ALLOW) {
        shaped.headers_mut().insert(header::ALLOW, allowed);
    }
    shaped
}

fn is_json(answer: &Response) -> bool {
    let kind = answer.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
}

/// The word of a status that comes without one.
fn word(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::METHOD_NOT_ALLOWED => "MethodNotAllowed",
        StatusCode::PAYLOAD_TOO_LARGE => "TooLarge",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "UnsupportedMediaType",
        status if status.is_server_error() => "InternalError",
        _ => "BadRequest",
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = json!({
            "Status": self.status.as_u16(),
            "Message": self.message,
            "RequestID": "",
            "Code": self.code,
            "Component": "Cardume",
        });
        if let Some(hint) = self.hint {
            body["Hint"] = hint.into();
        }
        if let Some(details) = self.details {
            body["Details"] = *details;
        }
        (self.status, Json(body)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;

    use super::*;

    /// What a route answers over a connection.
    async fn ask(method: &str, path: &str) -> (u16, Value) {
        let router = Router::new()
            .route("/path/{id}", get(async |path: axum::extract::Path<u32>| path.0.to_string()))
            .route("/json", get(async || ApiError::conflict("busy")))
            .layer(axum::middleware::from_fn(in_shape));
        let (here, there) = tokio::io::duplex(1 << 16);
        let serving = crate::api::wire::serve(
            there,
            router,
            crate::api::guard::Caller::Socket,
            tokio_util::sync::CancellationToken::new(),
        );
        let server = tokio::spawn(serving);
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let answer = crate::api::wire::call(here, request).await.unwrap();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(Body::new(answer.into_body()), 1 << 16).await.unwrap();
        server.abort();
        (status, serde_json::from_slice(&body).unwrap_or_else(|_| body.to_vec().into()))
    }

    #[tokio::test]
    async fn every_refusal_has_the_shape_of_an_error() {
        for (method, path, status, code) in [
            ("DELETE", "/json", 405, "MethodNotAllowed"),
            ("GET", "/path/%ff", 400, "BadRequest"),
            ("GET", "/path/x", 400, "BadRequest"),
            ("GET", "/nowhere", 404, "NotFound"),
            ("GET", "/json", 409, "Conflict"),
        ] {
            let (is, body) = ask(method, path).await;
            assert_eq!(
                (is, &body["Code"], &body["Status"]),
                (status, &json!(code), &json!(status)),
                "{path}"
            );
            assert!(body["Message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        }
        assert_eq!(ask("GET", "/path/7").await, (200, json!(7)));
    }
}
