//! JSON text, with places. Texts and numbers are left to `serde_json`; this only finds where they end.

use serde_json::{Map, Value};

use super::mark::{Mark, Position};
use super::{Budget, TextError};

/// Reads one JSON value and nothing after it.
pub(super) fn read(text: &str, budget: &mut Budget) -> Result<(Value, Mark), TextError> {
    let mut reader = Reader { text, at: 0, line: 1, column: 1, counted: 0, budget };
    reader.spaces();
    let read = reader.value(0)?;
    reader.spaces();
    if reader.at < text.len() { Err(reader.error("expected the end of the text")) } else { Ok(read) }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// Line and column of the byte `counted`, which never goes back.
    line: usize,
    column: usize,
    counted: usize,
    budget: &'a mut Budget,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<(Value, Mark), TextError> {
        let at = self.position();
        self.budget.take(1, 0, at)?;
        let (value, parts) = match self.peek() {
            Some(b'{') => self.map(depth + 1)?,
            Some(b'[') => self.list(depth + 1)?,
            Some(b'"') => (Value::String(self.string()?), Vec::new()),
            _ => (self.word()?, Vec::new()),
        };
        Ok((value, Mark { at, parts }))
    }

    fn map(&mut self, depth: usize) -> Result<(Value, Vec<Mark>), TextError> {
        let at = self.position();
        self.budget.check_depth(depth, at)?;
        let (mut map, mut parts) = (Map::new(), Vec::<Mark>::new());
        self.open();
        while !self.close(b'}', map.is_empty())? {
            let at = self.position();
            if self.peek() != Some(b'"') {
                return Err(self.error("expected a key in double quotes"));
            }
            let key = self.string()?;
            self.spaces();
            self.expect(b':', "expected `:` after the key")?;
            if map.contains_key(&key) {
                let index = map.keys().position(|known| *known == key);
                let first = index.and_then(|index| parts.get(index)).map_or(at, |mark| mark.at);
                return Err(TextError::Duplicate { position: at, key, first });
            }
            let (value, mark) = self.value(depth)?;
            map.insert(key, value);
            parts.push(Mark { at, ..mark });
        }
        Ok((Value::Object(map), parts))
    }

    fn list(&mut self, depth: usize) -> Result<(Value, Vec<Mark>), TextError> {
        let at = self.position();
        self.budget.check_depth(depth, at)?;
        let (mut list, mut parts) = (Vec::new(), Vec::new());
        self.open();
        while !self.close(b']', list.is_empty())? {
            let (value, mark) = self.value(depth)?;
            list.push(value);
            parts.push(mark);
        }
        Ok((Value::Array(list), parts))
    }

    fn open(&mut self) {
        self.at += 1;
        self.spaces();
    }

    /// Takes the closing sign, or else what must stand before the next part.
    fn close(&mut self, sign: u8, first: bool) -> Result<bool, TextError> {
        self.spaces();
        if self.peek() == Some(sign) {
            self.at += 1;
            return Ok(true);
        }
        if !first {
            let expected = if sign == b'}' { "expected `,` or `}`" } else { "expected `,` or `]`" };
            self.expect(b',', expected)?;
        }
        Ok(false)
    }

    fn expect(&mut self, sign: u8, message: &str) -> Result<(), TextError> {
        if self.peek() != Some(sign) {
            return Err(self.error(message));
        }
        self.at += 1;
        self.spaces();
        Ok(())
    }

    fn string(&mut self) -> Result<String, TextError> {
        let bytes = self.text.as_bytes();
        let mut end = self.at + 1;
        loop {
            match bytes.get(end) {
                Some(b'"') => break,
                Some(b'\\') => end += 2,
                Some(b'\n') | None => return Err(self.error("the text that starts here has no closing `\"`")),
                Some(_) => end += 1,
            }
        }
        let at = self.position();
        let literal = self.text.get(self.at..=end).unwrap_or_default();
        let string: String =
            serde_json::from_str(literal).map_err(|_| self.error("wrong escape in this text"))?;
        self.budget.take(0, string.len(), at)?;
        self.at = end + 1;
        Ok(string)
    }

    /// A number, `true`, `false` or `null`.
    fn word(&mut self) -> Result<Value, TextError> {
        let rest = &self.text[self.at..];
        let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        let end = rest.find(|c| !part(c)).unwrap_or(rest.len());
        let value = serde_json::from_str(&rest[..end]).map_err(|error: serde_json::Error| {
            // There is no kind of error for it.
            if error.to_string().starts_with("number out of range") {
                return TextError::Syntax(self.position(), "a number that is too large".to_owned());
            }
            self.error("expected a value")
        })?;
        self.at += end;
        Ok(value)
    }

    fn spaces(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn position(&mut self) -> Position {
        for byte in &self.text.as_bytes()[self.counted..self.at] {
            match byte {
                b'\n' => (self.line, self.column) = (self.line + 1, 1),
                // Bytes that continue a character are not counted.
                byte if byte & 0xc0 == 0x80 => {}
                _ => self.column += 1,
            }
        }
        self.counted = self.at;
        Position::new(self.line, self.column)
    }

    fn error(&mut self, message: &str) -> TextError {
        let found = match self.text[self.at..].chars().next() {
            Some(c) => format!(", found {c:?}"),
            None => ", found the end of the text".to_owned(),
        };
        TextError::Syntax(self.position(), format!("{message}{found}"))
    }
}
