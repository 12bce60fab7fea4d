//! What is wrong with a spec: every error with its path, and all of them at once.

use std::fmt;

use crate::text::{Document, Position, TextError};

/// Most errors that one report lists; a file with more is not read to its end by anybody.
pub const MAX_ERRORS: usize = 50;

/// One thing that is wrong with a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecError {
    /// Where, like `Tasks[0].Resources.CPU`; empty for the spec as a whole.
    pub path: String,
    /// What was found and why it cannot stand.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
    /// Where in the text, when there was one.
    pub position: Option<Position>,
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(position) = self.position {
            write!(f, " ({position})")?;
        }
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a spec, in the order of the file; shown as one line each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpecErrors {
    errors: Vec<SpecError>,
    unlisted: usize,
}

impl SpecErrors {
    /// The errors, at least one and at most [`MAX_ERRORS`].
    pub fn iter(&self) -> impl Iterator<Item = &SpecError> {
        self.errors.iter()
    }

    /// The same errors with their places in the text that the spec was read from, in its order.
    pub fn located_in(mut self, document: &Document) -> Self {
        for error in &mut self.errors {
            error.position = document.position(&error.path);
        }
        self.errors.sort_by_key(|error| error.position);
        self
    }

    /// How many more there are than listed.
    pub fn unlisted(&self) -> usize {
        self.unlisted
    }
}

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        match self.unlisted {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for SpecErrors {}

impl From<TextError> for SpecErrors {
    fn from(error: TextError) -> Self {
        let position = error.position();
        let message = error.message();
        SpecErrors {
            errors: vec![SpecError { path: String::new(), message, hint: error.hint(), position }],
            unlisted: 0,
        }
    }
}

/// Collects errors and warnings while a spec is read and checked.
#[derive(Debug, Default)]
pub(super) struct Sink {
    found: SpecErrors,
    /// Places whose value could not be read and was replaced by a stand-in, so that reading could go on.
    broken: Vec<String>,
    warnings: Vec<String>,
}

impl Sink {
    /// Adds an error.
    pub(super) fn add(&mut self, path: &str, message: impl Into<String>, hint: Option<String>) {
        if self.found.errors.len() == MAX_ERRORS {
            self.found.unlisted += 1;
            return;
        }
        let error = SpecError { path: path.to_owned(), message: message.into(), hint, position: None };
        self.found.errors.push(error);
    }

    /// Adds an error about a value that a stand-in will replace.
    pub(super) fn add_broken(&mut self, path: &str, message: impl Into<String>, hint: Option<String>) {
        if self.broken.len() < MAX_ERRORS {
            self.broken.push(path.to_owned());
        }
        self.add(path, message, hint);
    }

    /// Adds a warning: something was ignored. There are never more than fields that can be ignored.
    pub(super) fn warn(&mut self, message: impl Into<String>) {
        self.warnings.push(message.into());
    }

    /// Adds the errors of checks over the spec that was read: those at, above or below a stand-in say
    /// nothing of what the user wrote and are left out.
    pub(super) fn merge(&mut self, checked: Sink) {
        for error in checked.found.errors {
            let path = &error.path;
            if !self.broken.iter().any(|other| is_below(path, other) || is_below(other, path)) {
                self.add(&error.path, error.message, error.hint);
            }
        }
        self.found.unlisted += checked.found.unlisted;
    }

    /// The value and the warnings, or all errors with their places in the text.
    pub(super) fn finish<T>(
        self,
        value: T,
        document: Option<&Document>,
    ) -> Result<(T, Vec<String>), SpecErrors> {
        if self.found.errors.is_empty() {
            return Ok((value, self.warnings));
        }
        Err(match document {
            Some(document) => self.found.located_in(document),
            None => self.found,
        })
    }
}

/// Whether a path is `other` or below it.
fn is_below(path: &str, other: &str) -> bool {
    path.strip_prefix(other)
        .is_some_and(|rest| other.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Text of a user in a message: quoted, without control characters, and cut when long.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}
