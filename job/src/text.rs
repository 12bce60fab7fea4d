//! YAML and JSON text as a [`Value`], within limits, and with the place of every value.
//!
//! Nothing here knows what a job is: the node reads its configuration file with it, too. Text is
//! YAML 1.2 (core schema); text that starts like a JSON object is read by the rules of JSON, because YAML
//! readers know neither surrogate pairs in `\u` escapes nor keys above 1024 characters.
//!
//! ```
//! let document = job::text::parse(b"Name: x\nTasks:\n  - Engine: {Type: wasm}\n").unwrap();
//! assert_eq!(document.value["Tasks"][0]["Engine"]["Type"], "wasm");
//! assert_eq!(document.position("Tasks[0].Engine").unwrap().to_string(), "line 3, column 5");
//! assert_eq!(job::text::parse(b"a: [1,").unwrap_err().position().unwrap().line, 1);
//! ```

use std::fmt;

use serde_json::Value;

mod json;
mod mark;
mod yaml;

use mark::Mark;
pub use mark::Position;
pub(crate) use mark::join_key;

/// What is read at most. A limit that is passed is an error that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of text. Also the most that keys and texts may hold together once aliases are filled in, twice.
    pub bytes: usize,
    /// Lists and maps inside one another.
    pub depth: usize,
    /// Keys and values, counted once aliases are filled in.
    pub nodes: usize,
}

impl Limits {
    /// For specs and configuration. A megabyte leaves room for inline inputs; the deepest spec is 9 levels;
    /// the largest sensible one has some thousand values.
    pub const SPEC: Limits = Limits { bytes: 1 << 20, depth: 64, nodes: 50_000 };
}

/// A text's value and where in the text its parts are.
#[derive(Debug, Clone)]
pub struct Document {
    /// The value; keys in the order of the text.
    pub value: Value,
    mark: Mark,
}

impl Document {
    /// Where `Tasks[0].Resources.CPU` is, or else the nearest thing around it. Keys are compared without case;
    /// one with other characters than letters, digits, `_` and `-` is written `["my.key"]`.
    pub fn position(&self, path: &str) -> Option<Position> {
        mark::find(&self.value, &self.mark, path)
    }
}

/// Why text is not a document.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TextError {
    /// Nothing but spaces and comments.
    Empty,
    /// More bytes than [`Limits::bytes`].
    TooLarge {
        /// Bytes found.
        bytes: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not text at all.
    Binary(Position),
    /// Not UTF-8.
    NotUtf8(Position),
    /// Against the rules of YAML or JSON.
    Syntax(Position, String),
    /// A key twice in one map.
    Duplicate {
        /// The second time.
        position: Position,
        /// The key.
        key: String,
        /// The first time.
        first: Position,
    },
    /// Deeper than [`Limits::depth`].
    TooDeep(Position, usize),
    /// More than [`Limits::nodes`] values, or too much text, once aliases are filled in.
    TooMany(Position, &'static str, usize),
    /// Legal in YAML and without a meaning here.
    Unsupported(Position, String),
}

impl TextError {
    /// Where in the text, when the text as a whole is not to blame.
    pub fn position(&self) -> Option<Position> {
        use TextError::*;
        match self {
            Empty | TooLarge { .. } => None,
            Binary(position) | NotUtf8(position) | Syntax(position, _) | TooDeep(position, _) => {
                Some(*position)
            }
            TooMany(position, ..) | Unsupported(position, _) | Duplicate { position, .. } => Some(*position),
        }
    }

    /// What is wrong, without the place.
    pub fn message(&self) -> String {
        match self {
            TextError::Empty => "empty: no content provided".to_owned(),
            // Who read the text may have stopped early, so how much there is nobody knows.
            TextError::TooLarge { limit, .. } => format!("too large: more than {limit} bytes of text"),
            TextError::Binary(_) => "binary: control characters, so this is not YAML or JSON text".to_owned(),
            TextError::NotUtf8(_) => "binary: not UTF-8, so this is not YAML or JSON text".to_owned(),
            TextError::Syntax(_, what) => format!("cannot be read: {what}"),
            TextError::Duplicate { key, first, .. } => {
                format!("key {key:?} is given twice, first at {first}")
            }
            TextError::TooDeep(_, limit) => {
                format!("too deep: lists and maps inside one another more than {limit} levels")
            }
            TextError::TooMany(_, what, limit) => {
                format!("too large: more than {limit} {what} once aliases are filled in")
            }
            TextError::Unsupported(_, what) => what.clone(),
        }
    }

    /// What to do instead.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            TextError::TooLarge { .. } => "add large inputs as content (`data add`) and name them by CID",
            TextError::Duplicate { .. } => "remove one of the two",
            _ => return None,
        };
        Some(text.to_owned())
    }
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())?;
        self.position().map_or(Ok(()), |position| write!(f, " ({position})"))
    }
}

impl std::error::Error for TextError {}

/// Reads one document within [`Limits::SPEC`].
pub fn parse(bytes: &[u8]) -> Result<Document, TextError> {
    parse_within(bytes, &Limits::SPEC)
}

/// Reads one document within other limits.
pub fn parse_within(bytes: &[u8], limits: &Limits) -> Result<Document, TextError> {
    if bytes.len() > limits.bytes {
        return Err(TextError::TooLarge { bytes: bytes.len(), limit: limits.bytes });
    }
    let text = checked_text(bytes)?;
    if text.trim().is_empty() {
        return Err(TextError::Empty);
    }
    let mut budget = Budget::new(limits);
    let (value, mark) =
        if looks_like_json(text) { json::read(text, &mut budget)? } else { yaml::read(text, &mut budget)? };
    Ok(Document { value, mark })
}

/// YAML's printable characters, without a byte order mark.
fn checked_text(bytes: &[u8]) -> Result<&str, TextError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let is_control = |byte: &u8| matches!(byte, 0..=8 | 11 | 12 | 14..=31 | 127);
    let utf8 = std::str::from_utf8(bytes);
    let valid = utf8.map_or_else(|error| error.valid_up_to(), str::len);
    if let Some(at) = bytes[..valid].iter().position(is_control) {
        return Err(TextError::Binary(Position::of(&bytes[..at])));
    }
    utf8.map_err(|error| TextError::NotUtf8(Position::of(&bytes[..error.valid_up_to()])))
}

/// `{` and then `"` or `}`: a JSON object, or a YAML flow map that reads the same.
fn looks_like_json(text: &str) -> bool {
    let inside = text.trim_start().strip_prefix('{').map(str::trim_start);
    inside.is_some_and(|inside| inside.starts_with(['"', '}']))
}

/// What may still be read.
#[derive(Debug)]
struct Budget {
    limits: Limits,
    nodes: usize,
    bytes: usize,
}

impl Budget {
    fn new(limits: &Limits) -> Self {
        Budget { limits: *limits, nodes: 0, bytes: 0 }
    }

    /// Takes values and their bytes of text.
    fn take(&mut self, nodes: usize, bytes: usize, at: Position) -> Result<(), TextError> {
        self.nodes = self.nodes.saturating_add(nodes);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.nodes > self.limits.nodes {
            return Err(TextError::TooMany(at, "values", self.limits.nodes));
        }
        // Twice: what is read, and once more for what aliases repeat.
        let bytes = self.limits.bytes.saturating_mul(2);
        if self.bytes > bytes {
            return Err(TextError::TooMany(at, "bytes of text", bytes));
        }
        Ok(())
    }

    /// Whether lists and maps may be this deep.
    fn check_depth(&self, depth: usize, at: Position) -> Result<(), TextError> {
        if depth > self.limits.depth { Err(TextError::TooDeep(at, self.limits.depth)) } else { Ok(()) }
    }
}
