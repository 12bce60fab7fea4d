//! `job list`, `executions`, `history` and `versions`.

use serde_json::Value;

use super::route;
use crate::args::job::{EventType, List, Named, Page};
use crate::args::{Global, Output};
use crate::content::encode;
use crate::failure::Outcome;
use crate::output::{Format, Report, Table};
use crate::pages::pages;
use crate::target::{Fallback, Session, interrupted, with_node};
use crate::units::{show_nanos, show_rfc3339};
use crate::values::{desired_state, execution_state, job_state, number, short_id, short_peer, text};

/// `job list`.
pub async fn jobs(global: &Global, flags: &List) -> Outcome {
    // A node gives the newest first by itself.
    let mut path =
        format!("/orchestrator/jobs?namespace={}", encode(flags.namespace.as_deref().unwrap_or("*")));
    if !flags.labels.is_empty() {
        path.push_str(&format!("&labels={}", encode(&flags.labels.join(","))));
    }
    let limit = (!flags.all).then_some(flags.limit);
    print_list(global, &path, limit, &flags.output, jobs_table).await
}

/// `job executions`.
pub async fn executions(global: &Global, job: &Named, page: &Page, output: &Output) -> Outcome {
    let path = route(&job.id, job.namespace.as_deref(), "/executions", "?");
    print_list(global, &path, page_limit(page), output, executions_table).await
}

/// `job history`.
pub async fn history(
    global: &Global,
    job: &Named,
    event_type: EventType,
    execution: Option<&str>,
    page: &Page,
    output: &Output,
) -> Outcome {
    let mut query = format!("?event_type={}", event_type.word());
    if let Some(execution) = execution {
        query.push_str(&format!("&execution_id={}", encode(execution)));
    }
    let path = route(&job.id, job.namespace.as_deref(), "/history", &query);
    print_list(global, &path, page_limit(page), output, history_table).await
}

/// `job versions`.
pub async fn versions(global: &Global, job: &Named, page: &Page, output: &Output) -> Outcome {
    let path = route(&job.id, job.namespace.as_deref(), "/versions", "?");
    print_list(global, &path, page_limit(page), output, versions_table).await
}

fn page_limit(page: &Page) -> Option<u32> {
    (!page.all).then_some(page.limit)
}

async fn print_list(
    global: &Global,
    path: &str,
    limit: Option<u32>,
    output: &Output,
    table: fn(&[Value], Format) -> Table,
) -> Outcome {
    let work = async |session: &Session| {
        let (items, more) = pages(&session.client, path, limit).await?;
        let format = output.format.unwrap_or_default();
        let table = || table(&items, format);
        Report { value: Value::Array(items.clone()), table }.print(format)?;
        if more && format == Format::Table {
            session.notes.say("Hint: there are more; see them with --limit N or --all");
        }
        Ok(())
    };
    with_node(global, Fallback::Record, true, interrupted, work).await
}

/// Ids in full where programs read them.
fn id_of(id: &str, format: Format) -> String {
    if format == Format::Csv { id.to_owned() } else { short_id(id).to_owned() }
}

fn jobs_table(jobs: &[Value], format: Format) -> Table {
    let mut table = Table::new(["CREATED (UTC)", "ID", "NAME", "TYPE", "STATE"]);
    for job in jobs {
        let id = text(job, &["ID"]);
        let name = text(job, &["Name"]);
        table.row([
            show_nanos(number(job, &["CreateTime"])),
            id_of(id, format),
            if name == id { String::new() } else { name.to_owned() },
            text(job, &["Type"]).to_owned(),
            job_state(job).to_owned(),
        ]);
    }
    table
}

/// The executions of a job as a table.
pub fn executions_table(executions: &[Value], format: Format) -> Table {
    let header = [
        "CREATED (UTC)",
        "ID",
        "PARTITION",
        "ATTEMPT",
        "NODE",
        "VERSION",
        "STATE",
        "DESIRED",
        "EXIT",
        "MESSAGE",
    ];
    let mut table = Table::new(header);
    for execution in executions {
        let node = text(execution, &["NodeID"]);
        let state = execution_state(execution);
        let has_exited = matches!(state.as_str(), "Completed" | "Failed");
        let code = number(execution, &["RunOutput", "ExitCode"]).to_string();
        table.row([
            show_nanos(number(execution, &["CreateTime"])),
            id_of(text(execution, &["ID"]), format),
            number(execution, &["PartitionIndex"]).to_string(),
            number(execution, &["Attempt"]).to_string(),
            if format == Format::Csv { node.to_owned() } else { short_peer(node) },
            number(execution, &["JobVersion"]).to_string(),
            state,
            desired_state(execution),
            if has_exited { code } else { String::new() },
            text(execution, &["ComputeState", "Message"]).to_owned(),
        ]);
    }
    table
}

/// The history of a job as a table.
pub fn history_table(history: &[Value], format: Format) -> Table {
    let mut table = Table::new(["TIME (UTC)", "LEVEL", "VERSION", "EXECUTION", "TOPIC", "EVENT"]);
    for item in history {
        table.row([
            show_rfc3339(text(item, &["Time"])),
            text(item, &["Type"]).to_owned(),
            number(item, &["JobVersion"]).to_string(),
            id_of(text(item, &["ExecutionID"]), format),
            text(item, &["Event", "Topic"]).to_owned(),
            text(item, &["Event", "Message"]).to_owned(),
        ]);
    }
    table
}

fn versions_table(versions: &[Value], _: Format) -> Table {
    let mut table = Table::new(["CREATED (UTC)", "VERSION", "STATE"]);
    for job in versions {
        let created = number(job, &["CreateTime"]);
        table.row([show_nanos(created), number(job, &["Version"]).to_string(), job_state(job).to_owned()]);
    }
    table
}
