//! Reading the API's JSON: what the commands need to know of jobs, executions and history items.
//!
//! Everything here takes whatever a node sent and falls back to empty values; nothing panics.

use serde_json::Value;

/// A text inside a value; empty when there is none.
pub fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    path.iter().fold(value, |value, key| &value[*key]).as_str().unwrap_or_default()
}

/// A number inside a value; 0 when there is none.
pub fn number(value: &Value, path: &[&str]) -> i64 {
    path.iter().fold(value, |value, key| &value[*key]).as_i64().unwrap_or_default()
}

/// A list inside a value; empty when there is none.
pub fn list<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    path.iter().fold(value, |value, key| &value[*key]).as_array().map_or(&[], Vec::as_slice)
}

/// A job's state, as its word.
pub fn job_state(job: &Value) -> &str {
    text(job, &["State", "StateType"])
}

/// Whether a job in this state has ended.
pub fn is_terminal(state: &str) -> bool {
    matches!(state, "Completed" | "Failed" | "Stopped")
}

/// Whether a job of this type has no end of its own.
pub fn runs_forever(job: &Value) -> bool {
    matches!(text(job, &["Type"]), "service" | "daemon")
}

/// The short form of a job's or execution's id, as people use it: the prefix and 8 digits.
pub fn short_id(id: &str) -> &str {
    let is_id = id.len() == 38 && (id.starts_with("j-") || id.starts_with("e-"));
    if is_id { id.get(..10).unwrap_or(id) } else { id }
}

/// The end of a peer id: enough to tell peers apart.
pub fn short_peer(id: &str) -> String {
    let count = id.chars().count();
    if count > 20 { format!("…{}", id.chars().skip(count - 8).collect::<String>()) } else { id.to_owned() }
}

/// An execution's state, as its word. Nodes of other makes give only Bacalhau's number.
pub fn execution_state(execution: &Value) -> String {
    state_word(&execution["ComputeState"], &EXECUTION_STATES)
}

/// What an execution should be doing, as its word.
pub fn desired_state(execution: &Value) -> String {
    state_word(&execution["DesiredState"], &["Pending", "Running", "Stopped"])
}

/// Bacalhau's execution states, by their numbers.
const EXECUTION_STATES: [&str; 12] = [
    "Undefined",
    "New",
    "AskForBid",
    "AskForBidAccepted",
    "AskForBidRejected",
    "BidAccepted",
    "Running",
    "Publishing",
    "BidRejected",
    "Completed",
    "Failed",
    "Cancelled",
];

fn state_word(state: &Value, words: &[&str]) -> String {
    if let Some(name) = state["StateName"].as_str().or_else(|| state["StateType"].as_str()) {
        return name.to_owned();
    }
    let index = state["StateType"].as_u64().and_then(|number| usize::try_from(number).ok());
    index.and_then(|index| words.get(index)).copied().unwrap_or("Unknown").to_owned()
}

/// One execution for each partition, in their order: the one that was committed, else the newest attempt.
pub fn deciding_executions(executions: &[Value]) -> Vec<&Value> {
    let mut best: std::collections::BTreeMap<i64, &Value> = std::collections::BTreeMap::new();
    let rank =
        |execution: &Value| (execution_state(execution) == "Completed", number(execution, &["Attempt"]));
    for execution in executions {
        best.entry(number(execution, &["PartitionIndex"]))
            .and_modify(|held| {
                if rank(execution) >= rank(held) {
                    *held = execution;
                }
            })
            .or_insert(execution);
    }
    best.into_values().collect()
}

/// The job's own exit code: of its only partition, or the first that is not 0. `None` when none has exited.
pub fn exit_code(executions: &[Value]) -> Option<i64> {
    let deciding = deciding_executions(executions);
    let codes = deciding.iter().filter(|execution| is_exited(execution));
    let codes: Vec<i64> = codes.map(|execution| number(execution, &["RunOutput", "ExitCode"])).collect();
    codes.iter().copied().find(|code| *code != 0).or_else(|| codes.first().copied())
}

/// Whether an execution's exit code means something.
fn is_exited(execution: &Value) -> bool {
    match execution_state(execution).as_str() {
        "Completed" => true,
        "Failed" => number(execution, &["RunOutput", "ExitCode"]) != 0,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_win_over_numbers_and_unknown_numbers_are_survived() {
        assert_eq!(execution_state(&json!({"ComputeState": {"StateType": 9}})), "Completed");
        assert_eq!(execution_state(&json!({"ComputeState": {"StateType": 9, "StateName": "Lost"}})), "Lost");
        assert_eq!(execution_state(&json!({"ComputeState": {"StateType": 99}})), "Unknown");
        assert_eq!(execution_state(&json!(null)), "Unknown");
    }

    #[test]
    fn the_committed_execution_decides_a_partition() {
        let execution = |partition, attempt, state: &str, code| json!({"PartitionIndex": partition, "Attempt": attempt, "ComputeState": {"StateName": state}, "RunOutput": {"ExitCode": code}});
        let list = [
            execution(1, 1, "Failed", 3),
            execution(0, 1, "Completed", 0),
            execution(0, 2, "Cancelled", 0),
            execution(1, 2, "Failed", 4),
        ];
        let deciding = deciding_executions(&list);
        assert_eq!(deciding.len(), 2);
        assert_eq!(number(deciding[0], &["Attempt"]), 1);
        assert_eq!(exit_code(&list), Some(4));
        assert_eq!(exit_code(&[]), None);
    }

    #[test]
    fn ids_are_shortened_and_names_are_not() {
        assert_eq!(short_id("j-a2bc3985-0490-8e01-998f-cf760481e7da"), "j-a2bc3985");
        assert_eq!(short_id("hello"), "hello");
        assert_eq!(short_peer("12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"), "…eQAJU5SA");
    }
}
