//! Reading values of a document: types are checked, and no key goes unread.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::error::{Sink, shown};
use crate::nearest;
use crate::text::join_key;

/// A value and its path.
#[derive(Debug, Clone)]
pub(super) struct Node<'a> {
    pub(super) value: &'a Value,
    pub(super) path: String,
}

impl<'a> Node<'a> {
    /// The text, or a report that this is none.
    pub(super) fn text(&self, sink: &mut Sink) -> Option<String> {
        let text = self.value.as_str();
        if text.is_none() {
            let hint = match self.value {
                Value::Number(_) | Value::Bool(_) => Some(format!("write it in quotes: \"{}\"", self.value)),
                _ => None,
            };
            sink.add_broken(&self.path, self.wrong_type("string"), hint);
        }
        text.map(str::to_owned)
    }

    /// A text, or a number taken as text: `CPU: 0.5` means `CPU: "0.5"`.
    pub(super) fn amount(&self, sink: &mut Sink) -> Option<String> {
        match self.value {
            Value::Number(number) => Some(number.to_string()),
            _ => self.text(sink),
        }
    }

    /// The integer, also when it is written as `3.0` or `1e3`, as some languages do; one that is too large for
    /// 64 bits is read as the largest.
    pub(super) fn integer(&self, sink: &mut Sink) -> Option<i64> {
        let number = match self.value {
            Value::Number(number) => number
                .as_i64()
                .or_else(|| number.as_u64().map(|_| i64::MAX))
                // The conversion stops at the ends of the range.
                .or_else(|| number.as_f64().filter(|float| float.fract() == 0.0).map(|float| float as i64)),
            _ => None,
        };
        if number.is_none() {
            sink.add_broken(&self.path, self.wrong_type("int"), None);
        }
        number
    }

    /// A boolean, or the text of one.
    pub(super) fn boolean(&self, sink: &mut Sink) -> Option<bool> {
        let found = match self.value {
            Value::Bool(value) => Some(*value),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
            Value::String(text) if text.eq_ignore_ascii_case("false") || text.is_empty() => Some(false),
            _ => None,
        };
        if found.is_none() {
            sink.add_broken(&self.path, self.wrong_type("bool"), None);
        }
        found
    }

    /// The parts of a list, or a report that this is none.
    pub(super) fn list(&self, sink: &mut Sink) -> Vec<Node<'a>> {
        let Value::Array(list) = self.value else {
            sink.add_broken(&self.path, self.wrong_type("list"), None);
            return Vec::new();
        };
        let node = |(index, value)| Node { value, path: format!("{}[{index}]", self.path) };
        list.iter().enumerate().map(node).collect()
    }

    /// A list of texts.
    pub(super) fn texts(&self, sink: &mut Sink) -> Vec<String> {
        // A place is kept for what is no text, so that later indices stay right.
        self.list(sink).iter().map(|node| node.text(sink).unwrap_or_default()).collect()
    }

    /// A map of texts whose keys are the user's own.
    pub(super) fn text_map(&self, sink: &mut Sink) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        for (key, value) in self.map(sink).into_iter().flatten() {
            let node = Node { value, path: join_key(&self.path, key) };
            // Null is no value, as in the rest of a spec.
            if !value.is_null()
                && let Some(text) = node.text(sink)
            {
                texts.insert(key.clone(), text);
            }
        }
        texts
    }

    /// One of an enum's words.
    pub(super) fn word<T: Copy>(
        &self,
        from: fn(&str) -> Option<T>,
        words: &[&str],
        sink: &mut Sink,
    ) -> Option<T> {
        let text = self.text(sink)?;
        let found = from(&text);
        if found.is_none() {
            sink.add_broken(
                &self.path,
                format!("unknown value {}", shown(&text)),
                Some(nearest::hint(&text, words)),
            );
        }
        found
    }

    fn map(&self, sink: &mut Sink) -> Option<&'a Map<String, Value>> {
        let map = self.value.as_object();
        if map.is_none() {
            sink.add_broken(&self.path, self.wrong_type("map"), None);
        }
        map
    }

    fn wrong_type(&self, expected: &str) -> String {
        let found = match self.value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(number) if number.is_f64() => "float",
            Value::Number(_) => "int",
            Value::String(_) => "string",
            Value::Array(_) => "list",
            Value::Object(_) => "map",
        };
        format!("invalid type: '{found}' expected: '{expected}'")
    }
}

/// The fields of a map, which are named without regard to case and must all be asked for.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    path: String,
    is_map: bool,
    left: BTreeMap<String, (&'a str, &'a Value)>,
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The fields of a node, or a report that it is no map.
    pub(super) fn open(node: &Node<'a>, sink: &mut Sink) -> Self {
        let mut left = BTreeMap::new();
        for (key, value) in node.map(sink).into_iter().flatten() {
            let replaced: Option<(&str, &Value)> =
                left.insert(key.to_ascii_lowercase(), (key.as_str(), value));
            if let Some((first, _)) = replaced {
                let message = format!("field given twice, as {} and {}", shown(first), shown(key));
                sink.add(&join_key(&node.path, key), message, Some("remove one of the two".to_owned()));
            }
        }
        Fields { path: node.path.clone(), is_map: node.value.is_object(), left, known: Vec::new() }
    }

    /// Takes a field; null counts as not given.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Node<'a>> {
        self.known.push(name);
        let (_, value) = self.left.remove(&name.to_ascii_lowercase())?;
        (!value.is_null()).then(|| Node { value, path: self.path_of(name) })
    }

    /// Whether there was a map at all; that there was none is reported already.
    pub(super) fn is_map(&self) -> bool {
        self.is_map
    }

    /// The path of a field, given or not.
    pub(super) fn path_of(&self, name: &str) -> String {
        join_key(&self.path, name)
    }

    /// A text field, or empty.
    pub(super) fn text(&mut self, name: &'static str, sink: &mut Sink) -> String {
        self.take(name).and_then(|node| node.text(sink)).unwrap_or_default()
    }

    /// A list of texts, or an empty one.
    pub(super) fn texts(&mut self, name: &'static str, sink: &mut Sink) -> Vec<String> {
        self.take(name).map(|node| node.texts(sink)).unwrap_or_default()
    }

    /// A map of texts, or an empty one.
    pub(super) fn text_map(&mut self, name: &'static str, sink: &mut Sink) -> BTreeMap<String, String> {
        self.take(name).map(|node| node.text_map(sink)).unwrap_or_default()
    }

    /// An integer that fits, or else a report and the default.
    pub(super) fn unsigned<T>(&mut self, name: &'static str, most: T, sink: &mut Sink) -> T
    where
        T: TryFrom<i64> + Default + std::fmt::Display,
    {
        let Some(node) = self.take(name) else { return T::default() };
        let Some(number) = node.integer(sink) else { return T::default() };
        T::try_from(number).unwrap_or_else(|_| {
            sink.add_broken(
                &node.path,
                format!("{number} is out of range"),
                Some(format!("allowed: 0 to {most}")),
            );
            T::default()
        })
    }

    /// Ends the reading: what nobody asked for is unknown.
    pub(super) fn close(self, sink: &mut Sink) {
        let parent = if self.path.is_empty() { "Job" } else { &self.path };
        for (key, _) in self.left.values() {
            let name: String = key.chars().take(60).collect();
            let hint = nearest::hint(key, &self.known);
            sink.add(
                &join_key(&self.path, key),
                format!("unknown field: '{name}' in '{parent}'"),
                Some(hint),
            );
        }
    }

    /// Takes a field that may stand here and means nothing; whether it was given.
    pub(super) fn ignore(&mut self, name: &str) -> bool {
        let given = self.left.remove(&name.to_ascii_lowercase());
        given.is_some_and(|(_, value)| !is_blank(value))
    }
}

/// What a server answers for fields without a value.
fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Object(map) => map.values().all(is_blank),
        _ => false,
    }
}
