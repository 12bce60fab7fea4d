//! What goes to stdout (results) and to stderr (everything for people).
//!
//! Text that came from peers is made harmless before a terminal sees it; a job's own output is not touched.

pub mod status;
pub mod table;
pub mod yaml;

use std::io::{IsTerminal, Write};

use serde_json::Value;

use crate::failure::{Failure, stdout_failed};

pub use table::Table;

/// The form of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// One JSON document, with the API's field names.
    Json,
    /// The same as YAML.
    Yaml,
    /// Comma-separated values with a header line.
    Csv,
    /// Aligned columns for people.
    #[default]
    Table,
}

impl Format {
    /// Whether stdout is one document, so that nothing else may be written there.
    pub fn is_document(self) -> bool {
        matches!(self, Format::Json | Format::Yaml)
    }
}

/// A result in the forms it can take: a value for programs, a table for people.
pub struct Report<T: FnOnce() -> Table> {
    /// The value, as the API has it.
    pub value: Value,
    /// Makes the table when it is wanted.
    pub table: T,
}

impl<T: FnOnce() -> Table> Report<T> {
    /// Writes the result to stdout.
    pub fn print(self, format: Format) -> Result<(), Failure> {
        match format {
            Format::Json | Format::Yaml => print_document(&self.value, format),
            Format::Csv => print(&(self.table)().to_csv()),
            Format::Table => print(&(self.table)().to_text()),
        }
    }
}

/// Writes one JSON or YAML document to stdout.
pub fn print_document(value: &Value, format: Format) -> Result<(), Failure> {
    let text = match format {
        Format::Yaml => yaml::to_yaml(value),
        _ => format!("{value:#}\n"),
    };
    print(&text)
}

/// Writes text to stdout at once.
pub fn print(text: &str) -> Result<(), Failure> {
    write_bytes(text.as_bytes())
}

/// Writes bytes to stdout at once.
pub fn write_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| stdout_failed(&error))
}

/// Notes for people on stderr: hints, notices, progress.
#[derive(Debug, Clone, Copy)]
pub struct Notes {
    quiet: bool,
    terminal: bool,
}

impl Notes {
    /// Notes that `--quiet` silences.
    pub fn new(quiet: bool) -> Self {
        Notes { quiet, terminal: std::io::stderr().is_terminal() }
    }

    /// Whether `--quiet` was given.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Whether a status line may be drawn and redrawn.
    pub fn may_draw(&self) -> bool {
        self.terminal && !self.quiet
    }

    /// One line for people, unless `--quiet` was given.
    pub fn say(&self, line: impl AsRef<str>) {
        if !self.quiet {
            say_always(line);
        }
    }
}

/// One line for people, also with `--quiet`. Nobody may be listening on stderr: that is no error.
pub fn say_always(line: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", printable(line.as_ref()));
}

/// Bytes of a job's stderr, as they are. Nobody may be listening: that is no error.
pub fn write_stderr(bytes: &[u8]) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(bytes).and_then(|()| stderr.flush());
}

/// Text from elsewhere without control characters, so that it cannot command a terminal. Line ends and tabs stay.
pub fn printable(text: &str) -> std::borrow::Cow<'_, str> {
    let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(harmful) { text.replace(harmful, "\u{fffd}").into() } else { text.into() }
}
