//! How a command ends: exit codes, and the one error type that people and programs see.

use std::fmt;

/// Exit codes of the contract.
pub mod exit {
    /// The command did its work.
    pub const DONE: u8 = 0;
    /// Wrong usage, or the request was refused.
    pub const REFUSED: u8 = 1;
    /// The job that a run verb waited for ended Failed or Stopped.
    pub const JOB_FAILED: u8 = 2;
    /// `--wait-timeout` ran out; the job goes on.
    pub const WAIT_TIMEOUT: u8 = 3;
    /// No node could be reached.
    pub const UNREACHABLE: u8 = 4;
    /// Ended by Ctrl-C.
    pub const INTERRUPTED: u8 = 130;
}

/// The code of an answer that broke off.
pub const BROKE_OFF: &str = "BrokeOff";

/// What a command answers: its exit code, or why it could not do its work.
pub type Outcome = Result<u8, Failure>;

/// A failed command: what happened, why, what to do next, and the exit code.
///
/// ```
/// let failure = cli::Failure::refused("cannot read job.yaml: no such file").hint("check the path");
/// assert_eq!(failure.exit, 1);
/// assert_eq!(failure.to_string(), "Error: cannot read job.yaml: no such file\nHint: check the path");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The process's exit code.
    pub exit: u8,
    /// A word for programs: the API's codes, or one of the CLI's own.
    pub code: String,
    /// What happened, to what, why. One error a line.
    pub message: String,
    /// What to do next, one hint a line.
    pub hints: Vec<String>,
    /// Nothing is printed: stdout was closed by its reader, or all was said already.
    pub silent: bool,
}

impl Failure {
    /// A failure with its own exit code and code word.
    pub fn new(exit: u8, code: &str, message: impl Into<String>) -> Self {
        Failure { exit, code: code.to_owned(), message: message.into(), hints: Vec::new(), silent: false }
    }

    /// Wrong usage or wrong input: exit code 1.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(exit::REFUSED, "BadRequest", message)
    }

    /// Something on this machine did not work (a file, a disk): exit code 1.
    pub fn local(what: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::new(exit::REFUSED, "LocalError", format!("{what}: {}", reason(error)))
    }

    /// No node could be reached: exit code 4.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(exit::UNREACHABLE, "Unreachable", message)
    }

    /// Ends the command without a word.
    pub fn silent(exit: u8) -> Self {
        Failure { silent: true, ..Self::new(exit, "", "") }
    }

    /// Whether the node went away, rather than answered.
    pub fn is_lost_connection(&self) -> bool {
        self.exit == exit::UNREACHABLE || self.code == BROKE_OFF
    }

    /// Adds what to do next; empty and repeated hints are left out.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        if !hint.is_empty() && !self.hints.contains(&hint) {
            self.hints.push(hint);
        }
        self
    }

    /// The error document for programs.
    pub fn to_json(&self) -> serde_json::Value {
        let hint = if self.hints.is_empty() {
            serde_json::Value::Null
        } else {
            serde_json::Value::String(self.hints.join("\n"))
        };
        serde_json::json!({ "error": { "code": self.code, "message": self.message, "hint": hint } })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.message.lines().filter(|line| !line.trim().is_empty()).map(|line| ("Error", line));
        let hints = self.hints.iter().flat_map(|hint| hint.lines()).map(|line| ("Hint", line));
        for (index, (word, line)) in errors.chain(hints).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{word}: {}", crate::output::printable(line.trim_end()))?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// An I/O error in words people know, without the operating system's number.
pub fn reason(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => "no such file or directory".to_owned(),
        ErrorKind::PermissionDenied => "permission denied".to_owned(),
        ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        ErrorKind::AlreadyExists => "it exists already".to_owned(),
        ErrorKind::StorageFull => "the disk is full".to_owned(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or(&text).to_owned()
        }
    }
}

/// A failed write to stdout: a closed pipe ends the command without a word.
pub fn stdout_failed(error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        return Failure::silent(exit::DONE);
    }
    Failure::local("cannot write to stdout", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_and_hint_has_a_line_of_its_own() {
        let failure = Failure::refused("a is wrong\nb is wrong").hint("fix a").hint("fix a").hint("");
        assert_eq!(failure.to_string(), "Error: a is wrong\nError: b is wrong\nHint: fix a");
    }

    #[test]
    fn escape_sequences_from_elsewhere_are_not_printed() {
        assert_eq!(Failure::refused("bad \u{1b}[31mname").to_string(), "Error: bad \u{fffd}[31mname");
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let closed = stdout_failed(&std::io::ErrorKind::BrokenPipe.into());
        assert!(closed.silent && closed.exit == exit::DONE);
        assert!(!stdout_failed(&std::io::ErrorKind::StorageFull.into()).silent);
    }
}
