//! YAML text, with places: events of the parser become one value.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};
use serde_json::{Map, Number, Value};

use super::mark::{Mark, Position};
use super::{Budget, TextError};

/// Reads one YAML document and nothing after it.
pub(super) fn read(text: &str, budget: &mut Budget) -> Result<(Value, Mark), TextError> {
    let mut builder = Builder { budget, open: Vec::new(), anchors: BTreeMap::new(), done: None };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            // At the end of the text, the parser's place is beyond it.
            let at = position(error.marker()).min(Position::of(text.as_bytes()));
            match error.info() {
                // The parser has a limit of its own, above ours.
                "recursion limit exceeded" => TextError::TooDeep(at, builder.budget.limits.depth),
                info => TextError::Syntax(at, info.chars().take(200).collect()),
            }
        })?;
        builder.event(event, position(&span.start))?;
    }
    match builder.done {
        Some(node) if !node.value.is_null() => Ok((node.value, node.mark)),
        _ => Err(TextError::Empty),
    }
}

/// The parser counts lines from 1 and columns from 0.
fn position(marker: &Marker) -> Position {
    Position::new(marker.line(), marker.col() + 1)
}

/// A value, and what a repetition of it costs.
#[derive(Debug, Clone)]
struct Node {
    value: Value,
    mark: Mark,
    nodes: usize,
    bytes: usize,
    height: usize,
}

/// A list or map whose end was not seen yet.
struct Open {
    node: Node,
    anchor: usize,
    /// In a map: the key that waits for its value.
    key: Option<(String, Position)>,
}

struct Builder<'a> {
    budget: &'a mut Budget,
    open: Vec<Open>,
    /// Values that aliases may repeat; each was counted when it was kept.
    anchors: BTreeMap<usize, Node>,
    done: Option<Node>,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, at: Position) -> Result<(), TextError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if self.wants_key() {
                    return self.key(text.into_owned(), at);
                }
                self.budget.take(1, text.len(), at)?;
                let bytes = text.len();
                let value = scalar(text.into_owned(), style, tag.as_deref(), at)?;
                let mark = Mark { at, parts: Vec::new() };
                self.add(Node { value, mark, nodes: 1, bytes, height: 0 }, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.start(Value::Array(Vec::new()), anchor, tag.as_deref(), at)
            }
            Event::MappingStart(anchor, tag) => {
                self.start(Value::Object(Map::new()), anchor, tag.as_deref(), at)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => self.add(open.node, open.anchor),
                None => Ok(()),
            },
            Event::Alias(anchor) => self.alias(anchor, at),
            Event::DocumentStart(_) if self.done.is_some() => Err(TextError::Unsupported(
                at,
                "a second document starts here, and only one is read".to_owned(),
            )),
            Event::DocumentStart(_) | Event::DocumentEnd => Ok(()),
            Event::Nothing | Event::StreamStart | Event::StreamEnd => Ok(()),
        }
    }

    fn wants_key(&self) -> bool {
        self.open.last().is_some_and(|open| open.node.value.is_object() && open.key.is_none())
    }

    fn key(&mut self, key: String, at: Position) -> Result<(), TextError> {
        self.budget.take(1, key.len(), at)?;
        let Some(open) = self.open.last_mut() else { return Ok(()) };
        open.node.bytes += key.len();
        open.node.nodes += 1;
        if let Value::Object(map) = &open.node.value
            && map.contains_key(&key)
        {
            let index = map.keys().position(|known| *known == key).unwrap_or_default();
            let first = open.node.mark.parts.get(index).map_or(at, |mark| mark.at);
            return Err(TextError::Duplicate { position: at, key, first });
        }
        open.key = Some((key, at));
        Ok(())
    }

    fn start(
        &mut self,
        value: Value,
        anchor: usize,
        tag: Option<&Tag>,
        at: Position,
    ) -> Result<(), TextError> {
        if self.wants_key() {
            return Err(TextError::Unsupported(at, "a key must be text, not a list or map".to_owned()));
        }
        if let Some(tag) = tag.filter(|tag| !matches!(core_tag(tag), Some("map" | "seq"))) {
            return Err(unknown_tag(tag, at));
        }
        self.budget.check_depth(self.open.len() + 1, at)?;
        self.budget.take(1, 0, at)?;
        let mark = Mark { at, parts: Vec::new() };
        self.open.push(Open { node: Node { value, mark, nodes: 1, bytes: 0, height: 1 }, anchor, key: None });
        Ok(())
    }

    fn alias(&mut self, anchor: usize, at: Position) -> Result<(), TextError> {
        if self.wants_key() {
            return Err(TextError::Unsupported(at, "a key must be text, not an alias".to_owned()));
        }
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(TextError::Unsupported(
                at,
                "this alias repeats the value that it is part of".to_owned(),
            ));
        };
        self.budget.take(node.nodes, node.bytes, at)?;
        self.budget.check_depth(self.open.len() + node.height, at)?;
        let node = node.clone();
        self.add(node, 0)
    }

    /// Puts a whole value where it belongs.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), TextError> {
        if anchor != 0 {
            self.budget.take(node.nodes, node.bytes, node.mark.at)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.done = Some(node);
            return Ok(());
        };
        open.node.nodes += node.nodes;
        open.node.bytes += node.bytes;
        open.node.height = open.node.height.max(node.height + 1);
        let mut mark = node.mark;
        match &mut open.node.value {
            Value::Array(list) => list.push(node.value),
            Value::Object(map) => {
                if let Some((key, at)) = open.key.take() {
                    mark.at = at;
                    map.insert(key, node.value);
                }
            }
            _ => {}
        }
        open.node.mark.parts.push(mark);
        Ok(())
    }
}

/// The name of a tag of YAML's core schema.
fn core_tag(tag: &Tag) -> Option<&str> {
    tag.is_yaml_core_schema().then_some(tag.suffix.as_str())
}

fn unknown_tag(tag: &Tag, at: Position) -> TextError {
    let tag: String = tag.to_string().chars().take(60).collect();
    TextError::Unsupported(at, format!("the tag {tag:?} means nothing here"))
}

fn scalar(text: String, style: ScalarStyle, tag: Option<&Tag>, at: Position) -> Result<Value, TextError> {
    let Some(tag) = tag else {
        return Ok(if style == ScalarStyle::Plain { plain(text) } else { Value::String(text) });
    };
    let value = match core_tag(tag) {
        Some("str") => return Ok(Value::String(text)),
        Some("int" | "float" | "bool" | "null") => plain(text),
        _ => return Err(unknown_tag(tag, at)),
    };
    let fits = match core_tag(tag) {
        Some("int") => value.is_i64() || value.is_u64(),
        Some("float") => value.is_number(),
        Some("bool") => value.is_boolean(),
        _ => value.is_null(),
    };
    if fits {
        Ok(value)
    } else {
        Err(TextError::Unsupported(at, format!("this is no value for the tag {tag}")))
    }
}

/// A scalar without quotes, by YAML 1.2's core schema.
fn plain(text: String) -> Value {
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    number(&text).map_or(Value::String(text), Value::Number)
}

fn number(text: &str) -> Option<Number> {
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return None;
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return digits
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit())
            .then(|| u64::from_str_radix(digits, 16).ok())?
            .map(Number::from);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| u64::from_str_radix(digits, 8).ok())?
            .map(Number::from);
    }
    let whole = text.strip_prefix('+').unwrap_or(text);
    if whole.starts_with('+') {
        return None;
    }
    if let Ok(value) = whole.parse::<u64>() {
        return Some(Number::from(value));
    }
    if let Ok(value) = whole.parse::<i64>() {
        return Some(Number::from(value));
    }
    // Rust also reads `inf` and `nan`, which are no numbers of JSON.
    let is_float =
        whole.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E'));
    is_float.then(|| whole.parse().ok()).flatten().and_then(Number::from_f64)
}
