//! One line on a terminal that shows how far something is.

use std::io::Write;
use std::time::{Duration, Instant};

use super::{Notes, printable};
use crate::units::show_bytes;

/// Redrawing more often than this only costs.
const REDRAW_EVERY: Duration = Duration::from_millis(100);

/// A counter of bytes, drawn on stderr when that is a terminal and removed when it is dropped.
#[derive(Debug)]
pub struct Status {
    line: Line,
    what: String,
    total: Option<u64>,
    done: u64,
    drawn: Instant,
}

impl Status {
    /// Starts counting. Nothing is drawn before the first pause between two redraws is over.
    pub fn new(notes: Notes, what: String, total: Option<u64>) -> Self {
        Status { line: Line::new(notes), what, total, done: 0, drawn: Instant::now() }
    }

    /// Counts bytes.
    pub fn advance(&mut self, bytes: usize) {
        self.done += bytes as u64;
        if self.drawn.elapsed() < REDRAW_EVERY {
            return;
        }
        self.drawn = Instant::now();
        let done = show_bytes(self.done);
        let text = match self.total {
            Some(total) if total >= self.done => format!("{}: {done} of {}", self.what, show_bytes(total)),
            _ => format!("{}: {done}", self.what),
        };
        self.line.draw(&text);
    }
}

/// A line that is drawn over itself.
#[derive(Debug)]
pub struct Line {
    may_draw: bool,
    drawn: bool,
}

impl Line {
    /// A line that is only drawn on a terminal.
    pub fn new(notes: Notes) -> Self {
        Line { may_draw: notes.may_draw(), drawn: false }
    }

    /// Replaces the line's text. Nobody may be listening on stderr: that is no error.
    pub fn draw(&mut self, text: &str) {
        if self.may_draw {
            self.drawn = true;
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K{}", printable(text));
            let _ = std::io::stderr().flush();
        }
    }

    /// Removes the line, so that something else can be written in its place.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
            let _ = std::io::stderr().flush();
        }
    }

    /// Whether anything can be seen.
    pub fn may_draw(&self) -> bool {
        self.may_draw
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.clear();
    }
}
