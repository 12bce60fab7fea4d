//! Places in a text.

use std::fmt;

use serde_json::Value;

/// A place in a text, counted from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl Position {
    /// The place just after this beginning of a text.
    pub(crate) fn of(before: &[u8]) -> Self {
        let line = before.iter().filter(|&&byte| byte == b'\n').count();
        let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        // Bytes that continue a character are not counted.
        let column = before[start..].iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
        Position::new(line + 1, column + 1)
    }

    pub(super) fn new(line: usize, column: usize) -> Self {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        Position { line: number(line), column: number(column) }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Where a value is (a map's entry: where its key is), and where its parts are, in their order.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub(super) at: Position,
    pub(super) parts: Vec<Mark>,
}

/// Follows a path as far as it goes.
pub(super) fn find(value: &Value, mark: &Mark, path: &str) -> Option<Position> {
    let (mut value, mut mark, mut rest) = (value, mark, path);
    while let Some((step, after)) = next_step(rest) {
        let part = match (&step, value) {
            (Step::Key(key), Value::Object(map)) => {
                let exact = map.iter().position(|(name, _)| name == key);
                let index = exact.or_else(|| map.keys().position(|name| name.eq_ignore_ascii_case(key)));
                index.and_then(|index| Some((map.values().nth(index)?, mark.parts.get(index)?)))
            }
            (Step::Index(index), Value::Array(list)) => list.get(*index).zip(mark.parts.get(*index)),
            _ => None,
        };
        let Some((found, place)) = part else { break };
        (value, mark, rest) = (found, place, after);
    }
    Some(mark.at)
}

enum Step {
    Key(String),
    Index(usize),
}

/// The first step of `A.B`, `[0].B` or `["a.b"].C`, and what follows it.
fn next_step(path: &str) -> Option<(Step, &str)> {
    let path = path.strip_prefix('.').unwrap_or(path);
    if let Some(inside) = path.strip_prefix('[') {
        if inside.starts_with('"') {
            let mut texts = serde_json::Deserializer::from_str(inside).into_iter::<String>();
            let key = texts.next()?.ok()?;
            let after = inside.get(texts.byte_offset()..)?.strip_prefix(']')?;
            return Some((Step::Key(key), after));
        }
        let (index, after) = inside.split_once(']')?;
        return Some((Step::Index(index.parse().ok()?), after));
    }
    let end = path.find(['.', '[']).unwrap_or(path.len());
    (end > 0).then(|| (Step::Key(path[..end].to_owned()), &path[end..]))
}

/// A path with one more key, quoted where it would not be read back as it is.
pub(crate) fn join_key(path: &str, key: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    if key.is_empty() || !key.chars().all(plain) {
        return format!("{path}[{}]", Value::from(key));
    }
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
