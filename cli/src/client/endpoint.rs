//! Where a node's API is.

use std::fmt;
use std::path::PathBuf;

/// The port of a node's API when none is named.
const DEFAULT_PORT: u16 = 1234;

/// An address of a node's API.
///
/// ```
/// use cli::client::Endpoint;
/// assert_eq!(Endpoint::parse("http://127.0.0.1:1234/").unwrap().to_string(), "http://127.0.0.1:1234");
/// assert_eq!(Endpoint::parse("localhost:80").unwrap().to_string(), "http://localhost:80");
/// assert!(Endpoint::parse("https://127.0.0.1").is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Plain HTTP.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A node's unix socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// Reads `http://HOST[:PORT]`, `HOST[:PORT]` or `unix:PATH`.
    pub fn parse(text: &str) -> Result<Endpoint, String> {
        let text = text.trim();
        if let Some(path) = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
            return if path.is_empty() { Err(wrong(text)) } else { Ok(Endpoint::Unix(path.into())) };
        }
        if text.starts_with("https://") {
            return Err(format!("{text:?}: a node's API speaks plain HTTP (http://…)"));
        }
        let rest = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let authority: hyper::http::uri::Authority = rest.parse().map_err(|_| wrong(text))?;
        if rest.contains(['/', '@', '?', '#']) || authority.host().is_empty() || rest.ends_with(':') {
            return Err(wrong(text));
        }
        let port = match authority.port() {
            Some(port) => port.as_str().parse().ok().filter(|port| *port != 0).ok_or_else(|| wrong(text))?,
            None if has_port(rest) => return Err(wrong(text)),
            None => DEFAULT_PORT,
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        // A server listens on every address under this one; a client has to name one.
        let host = if host == "0.0.0.0" { "127.0.0.1" } else { host };
        Ok(Endpoint::Tcp { host: host.to_owned(), port })
    }

    /// Where a node listens when nothing else is said.
    pub fn default_tcp() -> Endpoint {
        Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: DEFAULT_PORT }
    }

    /// The `Host` header.
    pub fn host(&self) -> String {
        match self {
            Endpoint::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Endpoint::Tcp { host, port } => format!("{host}:{port}"),
            Endpoint::Unix(_) => "localhost".to_owned(),
        }
    }

    /// Whether node and CLI surely see the same files.
    pub fn is_local_socket(&self) -> bool {
        matches!(self, Endpoint::Unix(_))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { .. } => write!(f, "http://{}", self.host()),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Whether something that should be a port follows the host.
fn has_port(authority: &str) -> bool {
    let after_brackets = authority.rsplit(']').next().unwrap_or(authority);
    after_brackets.contains(':')
}

fn wrong(text: &str) -> String {
    format!("{text:?} is not the address of a node (such as http://127.0.0.1:1234)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_their_usual_forms() {
        for (text, shown) in [
            ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
            ("127.0.0.1", "http://127.0.0.1:1234"),
            ("http://[::1]:99", "http://[::1]:99"),
            ("http://0.0.0.0:7", "http://127.0.0.1:7"),
            ("unix:/a/api.sock", "unix:/a/api.sock"),
            ("unix:///a/api.sock", "unix:/a/api.sock"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "http://",
            "ftp://x",
            "http://a:b",
            "http://a:99999",
            "http://a:0",
            "http://a/b",
            "unix:",
            "http://u@a",
            "a b",
        ] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }
}
