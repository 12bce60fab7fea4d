//! `job list`, `executions`, `history` and `versions`.

use serde_json::Value;

use crate::args::job::{EventType, List, Page};
use crate::args::{Global, Output};
use crate::client::Client;
use crate::content::encode;
use crate::failure::{Failure, Outcome, exit};
use crate::output::{Format, Report, Table};
use crate::target::{Fallback, Session};
use crate::units::{show_nanos, show_rfc3339};
use crate::values::{desired_state, execution_state, job_state, list, number, short_id, short_peer, text};

/// Items that are asked for at once when all are wanted.
const PAGE: usize = 1000;

/// Most items of one list: they are printed as one document, which is held in memory.
const MAX_ITEMS: usize = 1_000_000;

/// `job list`.
pub async fn jobs(global: &Global, flags: &List) -> Outcome {
    let session = Session::open(global, Fallback::None).await?;
    // A node gives the newest first by itself.
    let mut path =
        format!("/orchestrator/jobs?namespace={}", encode(flags.namespace.as_deref().unwrap_or("*")));
    if !flags.labels.is_empty() {
        path.push_str(&format!("&labels={}", encode(&flags.labels.join(","))));
    }
    let limit = (!flags.all).then_some(flags.limit);
    let (mut items, more) = pages(&session.client, &path, limit).await?;
    items.sort_by_key(|job| std::cmp::Reverse(number(job, &["CreateTime"])));
    let format = flags.output.format.unwrap_or_default();
    let table = || jobs_table(&items, format);
    Report { value: Value::Array(items.clone()), table }.print(format)?;
    if more && format == Format::Table {
        session.notes.say("Hint: there are more; see them with --limit N or --all");
    }
    Ok(exit::DONE)
}

/// `job executions`.
pub async fn executions(global: &Global, id: &str, page: &Page, output: &Output) -> Outcome {
    let path = format!("/orchestrator/jobs/{}/executions?", encode(id));
    print_list(global, &path, page_limit(page), output, executions_table).await
}

/// `job history`.
pub async fn history(
    global: &Global,
    id: &str,
    event_type: EventType,
    execution: Option<&str>,
    page: &Page,
    output: &Output,
) -> Outcome {
    let mut path = format!("/orchestrator/jobs/{}/history?event_type={}", encode(id), event_type.word());
    if let Some(execution) = execution {
        path.push_str(&format!("&execution_id={}", encode(execution)));
    }
    print_list(global, &path, page_limit(page), output, history_table).await
}

/// `job versions`.
pub async fn versions(global: &Global, id: &str, output: &Output) -> Outcome {
    let path = format!("/orchestrator/jobs/{}/versions?", encode(id));
    print_list(global, &path, None, output, versions_table).await
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
    let session = Session::open(global, Fallback::None).await?;
    let (items, more) = pages(&session.client, path, limit).await?;
    let format = output.format.unwrap_or_default();
    let table = || table(&items, format);
    Report { value: Value::Array(items.clone()), table }.print(format)?;
    if more && format == Format::Table {
        session.notes.say("Hint: there are more; see them with --limit N or --all");
    }
    Ok(exit::DONE)
}

/// Items of a list, page after page, and whether there are more than `limit`.
async fn pages(client: &Client, path: &str, limit: Option<u32>) -> Result<(Vec<Value>, bool), Failure> {
    let most = limit.map_or(MAX_ITEMS, |limit| limit as usize);
    let mut items = Vec::new();
    let mut token = String::new();
    loop {
        let wanted = (most - items.len()).min(PAGE);
        let separator = if path.ends_with('?') { "" } else { "&" };
        let mut page = format!("{path}{separator}limit={wanted}");
        if !token.is_empty() {
            page.push_str(&format!("&next_token={}", encode(&token)));
        }
        let answer = client.get(&page).await?;
        let found = list(&answer, &["Items"]);
        let count = found.len();
        items.extend(found.iter().take(wanted).cloned());
        token = text(&answer, &["NextToken"]).to_owned();
        // The history of a job that has not ended always gives a token: a page that is not full is the last.
        let is_last = token.is_empty() || count < wanted;
        if is_last || items.len() >= most {
            return Ok((items, !is_last));
        }
    }
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
        let created = number(job, &["CreateTime"]).max(number(job, &["ModifyTime"]));
        table.row([show_nanos(created), number(job, &["Version"]).to_string(), job_state(job).to_owned()]);
    }
    table
}
