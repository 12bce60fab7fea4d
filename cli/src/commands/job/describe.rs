//! `job describe`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::lists::{executions_table, history_table};
use super::route;
use crate::args::job::Named;
use crate::args::{Global, Output};
use crate::failure::Outcome;
use crate::output::{Format, Table, print, print_document, printable};
use crate::pages::complete;
use crate::target::{Fallback, Session, interrupted, with_node};
use crate::units::show_nanos;
use crate::values::{
    deciding_executions, execution_state, job_state, list, number, runs_forever, short_id, short_peer, text,
};

/// Executions whose own history and output are shown: more than fit a screen are left to other verbs.
const SHOWN: usize = 8;

/// Runs the verb.
pub async fn run(global: &Global, job: &Named, output: &Output) -> Outcome {
    let work = async |session: &Session| {
        let path = route(&job.id, job.namespace.as_deref(), "", "?include=executions,history");
        let mut answer = session.client.get(&path).await?;
        complete(&session.client, &mut answer, true).await?;
        match output.format.unwrap_or_default() {
            Format::Table => print(&layout(&answer)),
            Format::Csv => print(&header(&answer).to_csv()),
            format => print_document(&answer, format),
        }
    };
    with_node(global, Fallback::Record, true, interrupted, work).await
}

fn layout(answer: &Value) -> String {
    let executions = list(answer, &["Executions", "Items"]);
    let history = list(answer, &["History", "Items"]);
    let mut text = header(answer).to_assignments();
    section(&mut text, "Summary", &summary(executions).to_assignments());
    let of_job: Vec<Value> = history.iter().filter(|item| item["Type"] == "JobLevel").cloned().collect();
    section(&mut text, "Job History", &history_table(&of_job, Format::Table).to_text());
    if !executions.is_empty() {
        section(&mut text, "Executions", &executions_table(executions, Format::Table).to_text());
        section(&mut text, "Results", &results(executions));
    }
    for execution in executions.iter().take(SHOWN) {
        let id = execution["ID"].as_str().unwrap_or_default();
        let own: Vec<Value> = history.iter().filter(|item| item["ExecutionID"] == id).cloned().collect();
        let title = format!("Execution {} History", short_id(id));
        section(&mut text, &title, &history_table(&own, Format::Table).to_text());
    }
    outputs(&mut text, executions);
    text
}

fn section(text: &mut String, title: &str, body: &str) {
    if !body.is_empty() {
        text.push_str(&format!("\n{}\n{body}", printable(title)));
    }
}

fn header(answer: &Value) -> Table {
    let job = &answer["Job"];
    let field = |key: &str| text(job, &[key]).to_owned();
    let is_counted = runs_forever(job) || field("Type") == "batch";
    let count = if is_counted { number(job, &["Count"]).to_string() } else { String::new() };
    let labels = job["Labels"].as_object().cloned().unwrap_or_default();
    let labels: Vec<String> =
        labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    Table::pairs([
        ("ID", field("ID")),
        ("Name", field("Name")),
        ("Namespace", field("Namespace")),
        ("Type", field("Type")),
        ("State", job_state(job).to_owned()),
        ("Message", text(job, &["State", "Message"]).to_owned()),
        ("Count", count),
        ("Labels", labels.join(", ")),
        ("Created Time", show_nanos(number(job, &["CreateTime"]))),
        ("Modified Time", show_nanos(number(job, &["ModifyTime"]))),
        ("Version", number(job, &["Version"]).to_string()),
        // At its owner only: who is given it may see, follow and stop the job from anywhere.
        ("Access Token", text(answer, &["AccessToken"]).to_owned()),
    ])
}

/// How many executions are in which state.
fn summary(executions: &[Value]) -> Table {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for execution in executions {
        *counts.entry(execution_state(execution)).or_default() += 1;
    }
    Table::pairs(counts.into_iter().map(|(state, count)| (state, count.to_string())))
}

/// Where the results are.
fn results(executions: &[Value]) -> String {
    let mut table = Table::new(["PARTITION", "TYPE", "CID", "HELD BY"]);
    for execution in deciding_executions(executions) {
        let kind = text(execution, &["PublishedResult", "Type"]);
        if kind.is_empty() {
            continue;
        }
        let holders = list(execution, &["ResultHolders"]);
        let holders: Vec<String> = holders.iter().filter_map(Value::as_str).map(short_peer).collect();
        table.row([
            number(execution, &["PartitionIndex"]).to_string(),
            kind.to_owned(),
            text(execution, &["PublishedResult", "Params", "CID"]).to_owned(),
            holders.join(" "),
        ]);
    }
    if table.is_empty() { String::new() } else { table.to_text() }
}

/// The output of the executions that count, as far as the record holds it.
fn outputs(text: &mut String, executions: &[Value]) {
    let deciding = deciding_executions(executions);
    let several = deciding.len() > 1;
    for execution in deciding.into_iter().take(SHOWN) {
        let partition = number(execution, &["PartitionIndex"]);
        let suffix = if several { format!(" of partition {partition}") } else { String::new() };
        for (title, stream, truncated) in [
            ("Standard Output", "Stdout", "StdoutTruncated"),
            ("Standard Error", "stderr", "StderrTruncated"),
        ] {
            let run = &execution["RunOutput"];
            let mut body = printable(run[stream].as_str().unwrap_or_default()).into_owned();
            if body.is_empty() {
                continue;
            }
            if !body.ends_with('\n') {
                body.push('\n');
            }
            if run[truncated] == true {
                body.push_str("... Output truncated\n");
            }
            section(text, &format!("{title}{suffix}"), &body);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_description_has_the_sections_of_bacalhau() {
        let answer = json!({
            "Job": {"ID": "j-a2bc3985-0490-8e01-998f-cf760481e7da", "Name": "hello", "Type": "batch", "Count": 1, "Version": 1,
                "State": {"StateType": "Completed"}, "CreateTime": 1795334658329927566i64},
            "History": {"Items": [
                {"Type": "JobLevel", "JobVersion": 1, "Event": {"Message": "Job submitted", "Topic": "Submission"}, "Time": "2026-11-22T08:04:18.33Z"},
                {"Type": "ExecutionLevel", "ExecutionID": "e-90ab066d-dd7e-83d5-bcd3-799b98a008d1", "Event": {"Message": "Running", "Topic": "Execution"}, "Time": "2026-11-22T08:04:18.37Z"}]},
            "Executions": {"Items": [{"ID": "e-90ab066d-dd7e-83d5-bcd3-799b98a008d1", "NodeID": "n1", "PartitionIndex": 0, "Attempt": 1,
                "ComputeState": {"StateType": 9}, "RunOutput": {"Stdout": "hi\u{1b}[2J", "StdoutTruncated": true, "ExitCode": 0},
                "PublishedResult": {"Type": "ipfs", "Params": {"CID": "bafy"}}}]},
        });
        let text = layout(&answer);
        for part in [
            "State        = Completed",
            "Created Time = 2026-11-22 08:04:18",
            "Summary\nCompleted = 1",
            "Job History",
            "Execution e-90ab066d History",
            "Standard Output\nhi\u{fffd}[2J\n... Output truncated",
            "bafy",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        layout(&json!(null));
    }
}
