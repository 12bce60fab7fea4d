//! Who may speak to the API at all: callers on this machine.
//!
//! A web page in the user's browser can send requests to loopback, and a hostile name server can make its
//! own name resolve there; both give themselves away by the `Host` or `Origin` they send.

use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// Where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// The socket in the data directory: someone who may read that directory.
    Socket,
    /// TCP on loopback.
    Loopback,
    /// Another peer, over its authenticated connection.
    Peer(job::PeerId),
}

impl Caller {
    /// Whether this is the operator or one of the machine's users rather than a peer.
    pub fn is_local(self) -> bool {
        !matches!(self, Caller::Peer(_))
    }
}

/// Refuses foreign `Host` and `Origin` headers of callers on TCP.
pub async fn refuse_foreign(request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>().copied();
    if caller != Some(Caller::Loopback) {
        return next.run(request).await;
    }
    match check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

fn check(headers: &HeaderMap) -> Result<(), ApiError> {
    let one = |name| {
        let mut values = headers.get_all(name).iter();
        (values.next().map(|value| value.to_str().unwrap_or("?").to_owned()), values.next().is_some())
    };
    let host = match one(header::HOST) {
        (Some(host), false) if is_loopback(&host) => host,
        (host, _) => {
            let host = host.unwrap_or_else(|| "none".into());
            return Err(ApiError::forbidden(format!("the API does not answer for the host {host:?}"))
                .hint("use 127.0.0.1, [::1] or localhost"));
        }
    };
    // Another port of this machine is another program's page.
    let is_own = |origin: &str| {
        origin.strip_prefix("http://").is_some_and(|origin| origin.eq_ignore_ascii_case(&host))
    };
    match one(header::ORIGIN) {
        (None, _) => Ok(()),
        (Some(origin), false) if is_own(&origin) => Ok(()),
        (Some(origin), _) => {
            Err(ApiError::forbidden(format!("the API does not answer pages from {origin:?}")))
        }
    }
}

/// Exactly a loopback name, with or without a port.
fn is_loopback(host: &str) -> bool {
    let (name, port) = match host.strip_prefix("[::1]") {
        Some(rest) => ("[::1]", rest.strip_prefix(':').or(rest.is_empty().then_some("0"))),
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, Some("0")),
        },
    };
    let port_is_one = port.is_some_and(|port| port.parse::<u16>().is_ok());
    port_is_one && (name == "[::1]" || name == "127.0.0.1" || name.eq_ignore_ascii_case("localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn loopback_names_pass() {
        for host in ["127.0.0.1", "127.0.0.1:1234", "localhost:80", "LOCALHOST", "[::1]", "[::1]:1234"] {
            assert_eq!(check(&headers(&[(header::HOST, host)])), Ok(()), "{host}");
        }
        let page = headers(&[(header::HOST, "localhost:1"), (header::ORIGIN, "http://localhost:1")]);
        assert_eq!(check(&page), Ok(()));
    }

    #[test]
    fn foreign_hosts_and_origins_are_refused() {
        for host in
            ["example.org", "127.0.0.1.example.org", "127.0.0.1:x", "localhost.", "0.0.0.0", "", "[::1]x"]
        {
            assert!(check(&headers(&[(header::HOST, host)])).is_err(), "{host}");
        }
        assert!(check(&headers(&[])).is_err());
        for origin in [
            "http://example.org",
            "null",
            "https://localhost",
            "http://127.0.0.1.example.org",
            "http://localhost:3000",
            "http://127.0.0.1",
        ] {
            let page = headers(&[(header::HOST, "localhost"), (header::ORIGIN, origin)]);
            assert!(check(&page).is_err(), "{origin}");
        }
        let two = {
            let mut two = headers(&[(header::HOST, "localhost")]);
            two.append(header::HOST, "example.org".parse().unwrap());
            two
        };
        assert!(check(&two).is_err());
    }
}
