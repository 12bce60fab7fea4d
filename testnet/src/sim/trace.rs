//! What happened: a running hash of the whole history, and the last steps in words when somebody wants to read them.

use std::collections::VecDeque;
use std::fmt;

use super::clock::{MILLI, SECOND};
use super::rng::{fold, mix};

/// The history so far.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    /// Lines are written only while this is on: a failing seed is run again with it, since formatting costs more than
    /// simulating.
    on: bool,
    lines: VecDeque<String>,
    /// Lines that are kept; all when printing as they come.
    keep: usize,
    print: bool,
    /// Long names of peers and the short ones they are shown by.
    names: Vec<(String, String)>,
}

impl Trace {
    /// A trace that only hashes.
    pub fn quiet() -> Self {
        Trace { hash: 0, on: false, lines: VecDeque::new(), keep: 0, print: false, names: Vec::new() }
    }

    /// A trace that keeps the last `keep` lines.
    pub fn last(keep: usize) -> Self {
        Trace { on: true, keep, ..Trace::quiet() }
    }

    /// A trace that prints every line to standard output.
    pub fn printing() -> Self {
        Trace { on: true, print: true, ..Trace::quiet() }
    }

    /// Adds a fact to the history's hash.
    pub fn fact(&mut self, number: u64) {
        self.hash = mix(self.hash.rotate_left(7) ^ number);
    }

    /// Adds bytes to the history's hash.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.hash = fold(self.hash, bytes);
    }

    /// The hash of the history.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Shows peers by these names.
    pub fn name(&mut self, long: String, short: String) {
        self.names.push((long, short));
    }

    /// Whether words are wanted: callers format nothing otherwise.
    pub fn on(&self) -> bool {
        self.on
    }

    /// Adds a line in words.
    pub fn say(&mut self, at: u64, words: fmt::Arguments<'_>) {
        if !self.on {
            return;
        }
        let mut line = format!("{:>6}.{:03} {words}", at / SECOND, at % SECOND / MILLI);
        for (long, short) in &self.names {
            if line.contains(long) {
                line = line.replace(long, short);
            }
        }
        if self.print {
            println!("{line}");
            return;
        }
        self.lines.push_back(shortened(line));
        if self.lines.len() > self.keep {
            self.lines.pop_front();
        }
    }

    /// The last lines.
    pub fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}

/// The longest line: a spec printed in full helps nobody.
const LONGEST_LINE: usize = 600;

fn shortened(mut line: String) -> String {
    if line.len() > LONGEST_LINE {
        let mut end = LONGEST_LINE;
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line.push('…');
    }
    line
}
