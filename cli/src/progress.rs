//! A job's way, told on stderr: one redrawn line on a terminal, the important lines elsewhere.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::output::status::Line;
use crate::output::{Notes, printable, say_always};
use crate::values::{number, short_id, short_peer, text};

/// With more partitions than this, single ones are only mentioned when they fail.
const FEW_PARTITIONS: i64 = 8;

/// Outside of a terminal, many partitions are counted in this many steps.
const STEPS: i64 = 10;

/// Characters of a line that is drawn over: a longer one would wrap.
const LINE: usize = 100;

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Everything.
    Full,
    /// Only what a person must know: why a job waits, what failed. The job's own output has the terminal.
    Troubles,
    /// Nothing.
    None,
}

/// Tells how a job goes.
#[derive(Debug)]
pub struct Progress {
    line: Line,
    detail: Detail,
    quiet: bool,
    partitions: i64,
    last: String,
    told_reason: String,
    told_step: i64,
    /// Bids and doings that were told: a watch that starts over says them again. As few as a node names.
    told: BTreeSet<String>,
}

/// Lines of bids and doings at the most; a node names fewer bidders, and few partitions.
const TOLD: usize = 256;

impl Progress {
    /// Starts telling.
    pub fn new(notes: Notes, detail: Detail, partitions: i64) -> Self {
        let detail = if notes.is_quiet() { Detail::None } else { detail };
        Progress {
            line: Line::new(notes),
            detail,
            quiet: notes.is_quiet(),
            partitions,
            last: String::new(),
            told_reason: String::new(),
            told_step: 0,
            told: BTreeSet::new(),
        }
    }

    /// Something happened.
    pub fn on_history(&mut self, item: &Value) {
        let message = text(item, &["Event", "Message"]);
        let is_known = message == "Job submitted"; // said when it was
        if message.is_empty() || is_known || self.detail == Detail::None {
            return;
        }
        let is_job_level = text(item, &["Type"]) == "JobLevel";
        let line = if is_job_level { message.to_owned() } else { execution_line(item, message) };
        let is_trouble = is_trouble(item, message);
        let attempt = text(item, &["Event", "Details", "Attempt"]).parse().unwrap_or(1_u32);
        let is_again = attempt > 1 && message.starts_with("Requested execution on");
        let line =
            if is_again { format!("{line} again (attempt {attempt}): its output starts over") } else { line };
        let is_worth_it = match self.detail {
            Detail::Full => is_job_level || is_trouble || self.partitions <= FEW_PARTITIONS,
            Detail::Troubles => is_trouble || is_again,
            Detail::None => false,
        };
        let stays = is_trouble || (is_again && self.detail == Detail::Troubles);
        if stays || (is_worth_it && !self.line.may_draw()) {
            self.tell(&line);
        }
        // The line begins with the job's state anyway.
        if !is_job_level || is_trouble {
            self.last = line;
        }
    }

    /// Somebody offered to run it.
    pub fn on_bid(&mut self, bid: &Value) {
        let slots = number(bid, &["Slots"]);
        let many = if slots == 1 { "" } else { "s" };
        self.detail_line(format!("bid from {}: {slots} slot{many}", short_peer(text(bid, &["NodeID"]))));
    }

    /// An execution is doing something: fetching its inputs, for one.
    pub fn on_execution(&mut self, execution: &Value) {
        let partition = number(execution, &["PartitionIndex"]);
        let place = short_peer(text(execution, &["NodeID"]));
        let doing = text(execution, &["Message"]);
        let line = format!("partition {partition} on {place}: {doing}");
        if self.detail == Detail::Troubles && self.partitions <= FEW_PARTITIONS {
            // Until the job's own output comes.
            return self.line.draw(&one_line(&line));
        }
        // How far it is, is drawn where lines are drawn over, and said once elsewhere.
        let kind: String = doing.chars().filter(|letter| !letter.is_ascii_digit()).collect();
        self.detail_as(line, format!("{partition} {place} {kind}"));
    }

    /// A line for those who want to see everything.
    fn detail_line(&mut self, line: String) {
        self.detail_as(line.clone(), line);
    }

    /// The same, said only if nothing was of this kind.
    fn detail_as(&mut self, line: String, kind: String) {
        if self.detail != Detail::Full {
            return;
        }
        let is_new = self.told.len() < TOLD && self.told.insert(kind);
        if self.line.may_draw() {
            self.line.draw(&one_line(&line));
        } else if is_new {
            self.tell(&line);
        }
        self.last = line;
    }

    /// The job's state changed.
    pub fn on_state(&mut self, state: &Value) {
        let word = text(state, &["State", "StateType"]);
        let reason = text(state, &["State", "Message"]);
        let is_going = is_waiting(word) || word == "Running";
        if self.detail != Detail::None && is_going && !reason.is_empty() && reason != self.told_reason {
            self.told_reason = reason.to_owned();
            self.tell(&format!("{word}: {reason}"));
        }
        let done = number(state, &["Partitions", "Completed"]);
        let total = number(state, &["Partitions", "Total"]);
        if self.detail == Detail::Full && self.line.may_draw() {
            let line = status_line(word, state, &self.last);
            self.line.draw(&line);
        } else if self.detail == Detail::Full && total > FEW_PARTITIONS {
            let step = done * STEPS / total.max(1);
            if step > self.told_step {
                self.told_step = step;
                self.tell(&format!("{done} of {total} partitions done"));
            }
        }
    }

    /// Makes room for the job's own output.
    pub fn clear(&mut self) {
        self.line.clear();
    }

    /// A line that stays.
    pub fn tell(&mut self, text: &str) {
        if !self.quiet {
            self.line.clear();
            say_always(text);
        }
    }
}

fn execution_line(item: &Value, message: &str) -> String {
    let node = text(item, &["Event", "Details", "NodeID"]);
    let execution = short_id(text(item, &["ExecutionID"]));
    let partition = &item["Event"]["Details"]["PartitionIndex"];
    let who = match (partition.as_i64(), partition.as_str()) {
        (Some(index), _) => format!("partition {index}"),
        (None, Some(index)) => format!("partition {index}"),
        (None, None) => execution.to_owned(),
    };
    let place = if node.is_empty() { String::new() } else { format!(" on {}", short_peer(node)) };
    match message {
        "Running" => format!("{who} runs{place}"),
        "Completed successfully" => format!("{who} is done{place}"),
        _ if message.starts_with("Requested execution on") && !node.is_empty() => {
            format!("{who} goes to {}", short_peer(node))
        }
        _ if message.contains(node) => format!("{who}: {message}"),
        _ => format!("{who}{place}: {message}"),
    }
}

fn is_trouble(item: &Value, message: &str) -> bool {
    let lower = message.to_ascii_lowercase();
    let is_error = item["Event"]["Details"]["IsError"].as_str() == Some("true")
        || item["Event"]["Details"]["IsError"] == true;
    is_error || ["fail", "error", "lost", "refused", "timed out"].iter().any(|word| lower.contains(word))
}

fn is_waiting(state: &str) -> bool {
    matches!(state, "Pending" | "Queued")
}

fn status_line(word: &str, state: &Value, last: &str) -> String {
    let count = |key| number(state, &["Partitions", key]);
    let mut parts = vec![word.to_owned()];
    if count("Total") > 1 {
        parts.push(format!("{} of {} done", count("Completed"), count("Total")));
        for (key, what) in [("Running", "running"), ("Queued", "waiting"), ("Failed", "failed")] {
            if count(key) > 0 {
                parts.push(format!("{} {what}", count(key)));
            }
        }
    }
    let mut line = parts.join(", ");
    if !last.is_empty() {
        line = format!("{line} · {last}");
    }
    one_line(&line)
}

/// A line as it can be drawn over.
fn one_line(line: &str) -> String {
    printable(line).replace(['\n', '\t'], " ").chars().take(LINE).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn executions_are_named_by_partition_and_place() {
        let item = json!({"Type": "ExecutionLevel", "ExecutionID": "e-90ab066d-dd7e-83d5-bcd3-799b98a008d1",
            "Event": {"Message": "Running", "Details": {"NodeID": "n1", "PartitionIndex": "3"}}});
        assert_eq!(execution_line(&item, "Running"), "partition 3 runs on n1");
        assert_eq!(execution_line(&item, "Requested execution on n1"), "partition 3 goes to n1");
        assert_eq!(execution_line(&item, "Completed successfully"), "partition 3 is done on n1");
        assert_eq!(execution_line(&item, "Failed: exit code 3"), "partition 3 on n1: Failed: exit code 3");
        let bare = json!({"ExecutionID": "e-90ab066d-dd7e-83d5-bcd3-799b98a008d1"});
        assert_eq!(execution_line(&bare, "Running"), "e-90ab066d runs");
    }

    #[test]
    fn the_status_line_counts_partitions_and_stays_on_one_line() {
        let state =
            json!({"Partitions": {"Total": 10, "Completed": 3, "Running": 4, "Queued": 3, "Failed": 0}});
        assert_eq!(
            status_line("Running", &state, "x\ny"),
            "Running, 3 of 10 done, 4 running, 3 waiting · x y"
        );
        assert!(status_line("Running", &state, &"x".repeat(500)).chars().count() <= 100);
    }

    #[test]
    fn failures_are_troubles() {
        assert!(is_trouble(&json!({}), "Execution failed: exit code 3"));
        assert!(!is_trouble(&json!({}), "Running"));
    }
}
