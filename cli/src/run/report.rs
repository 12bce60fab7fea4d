//! How a job ended, for people and programs.

use std::time::Duration;

use serde_json::{Value, json};

use super::Plan;
use crate::failure::Failure;
use crate::output::{Format, Notes, Table, print, print_document, say_always};
use crate::units::show_span;
use crate::values::{
    deciding_executions, execution_state, exit_code, job_state, list, number, short_id, short_peer, text,
};

/// Partitions that are listed one by one: more than fit a screen are counted.
const LISTED: usize = 10;

/// Reports an ended job: the document, or a summary. It goes to stderr where stdout is the job's own output.
pub fn ended(job: &Value, plan: &Plan, notes: Notes) -> Result<(), Failure> {
    let state = job_state(&job["Job"]);
    if plan.format().is_document() && !plan.waiting.id_only {
        document(job, plan.format())?;
    } else if plan.waiting.id_only {
        // The id was all that stdout should have.
    } else if plan.streams_output() {
        notes.say(where_it_ran(job));
    } else if plan.format() == Format::Csv {
        print(&partitions(job, usize::MAX).to_csv())?;
    } else {
        print(&summary(job))?;
    }
    for cut in cut_short(list(job, &["Executions", "Items"])) {
        say_always(format!("Warning: {cut}"));
    }
    if state != "Completed" {
        say_always(format!("Error: {}", why(job)));
    }
    if !plan.streams_output() && !plan.waiting.id_only {
        hints(job, notes);
    }
    Ok(())
}

/// The partitions that printed more than is kept, in words; many of them in one line.
fn cut_short(executions: &[Value]) -> Vec<String> {
    let deciding = deciding_executions(executions);
    let cut: Vec<(i64, i64)> = deciding
        .iter()
        .map(|one| (number(one, &["PartitionIndex"]), number(one, &["Usage", "OutputNotKept"])))
        .filter(|(_, bytes)| *bytes > 0)
        .collect();
    if cut.len() > LISTED {
        return vec![format!(
            "{} partitions printed more than is kept: their output is cut short",
            cut.len()
        )];
    }
    let line = |(partition, bytes)| {
        format!(
            "partition {partition} printed {bytes} bytes more than is kept: its output is cut short (write large \
             output into a result folder)"
        )
    };
    cut.into_iter().map(line).collect()
}

/// The document of a job that was waited for: {JobID, State, ExitCode, Job, Executions}.
pub fn document(job: &Value, format: Format) -> Result<(), Failure> {
    print_document(&to_document(job), format)
}

fn to_document(job: &Value) -> Value {
    let executions = list(job, &["Executions", "Items"]);
    json!({
        "JobID": job["Job"]["ID"],
        "State": job["Job"]["State"],
        "ExitCode": exit_code(executions),
        "Job": job["Job"],
        "Executions": job["Executions"],
    })
}

fn summary(job: &Value) -> String {
    let executions = list(job, &["Executions", "Items"]);
    let pairs = [
        ("Job", text(job, &["Job", "ID"]).to_owned()),
        ("State", job_state(&job["Job"]).to_owned()),
        ("Message", text(job, &["Job", "State", "Message"]).to_owned()),
        ("Exit code", exit_code(executions).map_or_else(String::new, |code| code.to_string())),
        ("Took", took(job)),
    ];
    let mut summary = Table::pairs(pairs).to_assignments();
    if !executions.is_empty() {
        summary.push('\n');
        summary.push_str(&partitions(job, LISTED).to_text());
        let left = deciding_executions(executions).len().saturating_sub(LISTED);
        if left > 0 {
            summary.push_str(&format!("and {left} more\n"));
        }
    }
    summary
}

/// One row for each of the first so many partitions. Where all are wanted programs read them, so ids are whole.
fn partitions(job: &Value, most: usize) -> Table {
    let mut table = Table::new(["PARTITION", "STATE", "EXIT", "NODE", "RESULT"]);
    for execution in deciding_executions(list(job, &["Executions", "Items"])).into_iter().take(most) {
        let node = text(execution, &["NodeID"]);
        table.row([
            number(execution, &["PartitionIndex"]).to_string(),
            execution_state(execution),
            exit_of(execution),
            if most == LISTED { short_peer(node) } else { node.to_owned() },
            text(execution, &["PublishedResult", "Params", "CID"]).to_owned(),
        ]);
    }
    table
}

/// The exit code of an execution that came to one.
fn exit_of(execution: &Value) -> String {
    match execution_state(execution).as_str() {
        "Completed" | "Failed" => number(execution, &["RunOutput", "ExitCode"]).to_string(),
        _ => String::new(),
    }
}

/// One line: which nodes ran it, its exit code, how long it took.
fn where_it_ran(job: &Value) -> String {
    let executions = list(job, &["Executions", "Items"]);
    let mut nodes: Vec<&str> =
        deciding_executions(executions).iter().map(|one| text(one, &["NodeID"])).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let place = match nodes.as_slice() {
        [] => "ran nowhere".to_owned(),
        [only] => format!("ran on {only}"),
        many => format!("ran on {} nodes", many.len()),
    };
    // A fault is no exit.
    let code = exit_code(executions).filter(|code| *code >= 0);
    let code = code.map_or_else(String::new, |code| format!(", exit code {code}"));
    let id = short_id(text(job, &["Job", "ID"]));
    format!("{id} {place}{code}, {} in {}", job_state(&job["Job"]), took(job))
}

/// Why a job did not complete.
fn why(job: &Value) -> String {
    let id = text(job, &["Job", "ID"]);
    let state = job_state(&job["Job"]);
    let message = text(job, &["Job", "State", "Message"]);
    let executions = list(job, &["Executions", "Items"]);
    let deciding = deciding_executions(executions);
    let failed = deciding.iter().find(|one| execution_state(one) == "Failed");
    let reason = match (message, failed) {
        ("", Some(execution)) => text(execution, &["ComputeState", "Message"]),
        (message, _) => message,
    };
    let code = exit_code(executions).filter(|code| *code > 0 && !reason.contains("exit"));
    let code = code.map_or_else(String::new, |code| format!(" (exit code {code})"));
    let separator = if reason.is_empty() { "" } else { ": " };
    format!("job {} {}{separator}{reason}{code}", short_id(id), state.to_lowercase())
}

fn hints(job: &Value, notes: Notes) {
    let id = short_id(text(job, &["Job", "ID"]));
    let executions = list(job, &["Executions", "Items"]);
    let has_result = executions.iter().any(|one| !text(one, &["PublishedResult", "Type"]).is_empty());
    if has_result {
        notes.say(format!("Hint: fetch the results with `cardume job get {id}`"));
    }
    notes.say(format!(
        "Hint: see its output with `cardume job logs {id}`, all about it with `cardume job describe {id}`"
    ));
}

fn took(job: &Value) -> String {
    let nanos = number(job, &["Job", "ModifyTime"]) - number(job, &["Job", "CreateTime"]);
    u64::try_from(nanos).map_or_else(|_| String::new(), |nanos| show_span(Duration::from_nanos(nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(state: &str, message: &str, code: i64) -> Value {
        json!({
            "Job": {"ID": "j-a2bc3985-0490-8e01-998f-cf760481e7da", "State": {"StateType": state, "Message": message},
                    "CreateTime": 1_000_000_000i64, "ModifyTime": 1_012_000_000i64},
            "Executions": {"Items": [{"PartitionIndex": 0, "NodeID": "12D3KooWnode", "ComputeState": {"StateName": state, "Message": "why"},
                    "RunOutput": {"ExitCode": code}, "PublishedResult": {"Type": "ipfs", "Params": {"CID": "bafy"}}}]},
        })
    }

    #[test]
    fn a_summary_names_state_exit_code_and_results() {
        let text = summary(&job("Completed", "", 0));
        for part in ["State     = Completed", "Exit code = 0", "Took      = 12 ms", "bafy"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(
            where_it_ran(&job("Completed", "", 0)),
            "j-a2bc3985 ran on 12D3KooWnode, exit code 0, Completed in 12 ms"
        );
    }

    #[test]
    fn a_failure_says_why() {
        assert_eq!(why(&job("Failed", "", 3)), "job j-a2bc3985 failed: why (exit code 3)");
        assert_eq!(
            why(&job("Failed", "exit code 3 on two nodes", 3)),
            "job j-a2bc3985 failed: exit code 3 on two nodes"
        );
        assert_eq!(why(&json!({"Job": {"ID": "x", "State": {"StateType": "Stopped"}}})), "job x stopped");
    }

    #[test]
    fn output_that_was_not_kept_is_told() {
        let execution = |partition: i64, unkept: i64| {
            json!({"PartitionIndex": partition, "ComputeState": {"StateName": "Completed"},
                "Usage": {"OutputNotKept": unkept}})
        };
        assert!(cut_short(&[execution(0, 0)]).is_empty());
        let told = cut_short(&[execution(0, 0), execution(1, 7)]);
        assert!(told.len() == 1 && told[0].contains("partition 1 printed 7 bytes more"), "{told:?}");
        let many: Vec<Value> = (0..100).map(|partition| execution(partition, 1)).collect();
        assert_eq!(cut_short(&many).len(), 1);
    }

    #[test]
    fn an_execution_that_was_cancelled_shows_no_exit_code() {
        let shown =
            |state| exit_of(&json!({"ComputeState": {"StateName": state}, "RunOutput": {"ExitCode": 0}}));
        assert_eq!((shown("Completed"), shown("Cancelled")), ("0".to_owned(), String::new()));
    }

    #[test]
    fn the_document_keeps_the_api_names() {
        let document = to_document(&job("Failed", "", 3));
        assert_eq!(document["ExitCode"], 3);
        assert_eq!(document["State"]["StateType"], "Failed");
        assert_eq!(document["Executions"]["Items"][0]["NodeID"], "12D3KooWnode");
        assert_eq!(to_document(&json!({}))["ExitCode"], Value::Null);
    }
}
