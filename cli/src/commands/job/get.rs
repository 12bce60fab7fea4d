//! `job get`: a job's results as files.

use std::path::{Path, PathBuf};

use futures::StreamExt;
use job::spec::ContentPath;
use serde_json::{Value, json};

use super::route;
use crate::args::Global;
use crate::args::job::Get;
use crate::content::{self, encode};
use crate::failure::{Failure, Outcome, exit};
use crate::output::status::Line;
use crate::output::{Format, Notes, Report, Table, say_always};
use crate::pages::pages;
use crate::target::{Fallback, Session, interrupted, with_node};
use crate::tree::{Staging, install, merge};
use crate::values::{is_terminal, job_state, number, short_id, text};

/// One partition's result.
#[derive(Debug)]
struct Found {
    partition: i64,
    execution: String,
    /// Of an execution that did not complete: its last output.
    failed: bool,
    content: ContentPath,
}

/// Runs the verb.
pub async fn run(global: &Global, flags: &Get) -> Outcome {
    let (id, file) = flags.job.split_once('/').unwrap_or((&flags.job, ""));
    let file = file.trim_matches('/');
    if id.is_empty() || file.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(Failure::refused(format!("{:?} is not ID or ID/FILE", flags.job)));
    }
    let work = async |session: &Session| get(session, flags, id, file).await;
    with_node(global, Fallback::Record, true, interrupted, work).await
}

async fn get(session: &Session, flags: &Get, id: &str, file: &str) -> Result<(), Failure> {
    let answer = session.client.get(&route(id, flags.namespace.as_deref(), "", "")).await?;
    let job = &answer["Job"];
    let job_id = text(job, &["ID"]);
    let job_id = if job_id.is_empty() { id } else { job_id };
    let version = number(job, &["Version"]);
    let path = format!("/orchestrator/jobs/{}/results?job_version={version}", encode(job_id));
    let (results, _) = pages(&session.client, &path, None).await?;
    let found = results_of(&results)?;
    if found.is_empty() {
        return Err(no_results(job, job_id));
    }
    let several = number(job, &["Count"]) > 1 || found.len() > 1;
    let target = flags.output_dir.clone().unwrap_or_else(|| format!("job-{}", short_id(job_id)).into());
    let staging = Staging::beside(&target)?;
    let wanted = Wanted { flags, file, several };
    let arrived = fetch_all(session, &wanted, &found, staging.path()).await?;
    install::install(&arrived, &target, flags.force)?;
    report(session, flags, job_id, &found, &target)?;
    warn(session, job, &found);
    Ok(())
}

/// Says what is missing, and what is not a result but the last output of a failure.
fn warn(session: &Session, job: &Value, found: &[Found]) {
    let failed: Vec<String> =
        found.iter().filter(|one| one.failed).map(|one| one.partition.to_string()).collect();
    if !failed.is_empty() {
        let partitions = failed.join(", ");
        session
            .notes
            .say(format!("Warning: failed, so this is only the last output: partition {partitions}"));
    }
    let missing = number(job, &["Count"]) - i64::try_from(found.len()).unwrap_or(i64::MAX);
    if missing > 0 {
        session.notes.say(format!("Warning: {missing} partitions have no result ({})", job_state(job)));
    }
}

/// Results that are fetched at once: they may be with peers that are far away.
const AT_ONCE: usize = 8;

/// What the user asked for.
struct Wanted<'a> {
    flags: &'a Get,
    file: &'a str,
    several: bool,
}

impl Wanted<'_> {
    /// Whether a partition is asked for, and which path of its result. `3/stdout` is `stdout` of partition 3.
    fn path_in(&self, partition: i64) -> Option<&str> {
        let (first, rest) = self.file.split_once('/').unwrap_or((self.file, ""));
        match first.parse::<i64>() {
            Ok(index) if self.several => (index == partition).then_some(rest),
            _ => Some(self.file),
        }
    }

    /// Where a partition's result goes, below the folder that becomes the target.
    fn place_of(&self, found: &Found) -> PathBuf {
        if self.flags.raw {
            found.execution.clone().into()
        } else if self.several {
            found.partition.to_string().into()
        } else {
            PathBuf::new()
        }
    }
}

/// Fetches every result into a folder of its own and puts them together as they are wanted.
async fn fetch_all(
    session: &Session,
    wanted: &Wanted<'_>,
    found: &[Found],
    staging: &Path,
) -> Result<PathBuf, Failure> {
    let whole = staging.join("whole");
    let cannot = |error: &std::io::Error| Failure::local("cannot put the results together", error);
    std::fs::create_dir(&whole).map_err(|error| cannot(&error))?;
    let chosen: Vec<(&Found, &str)> =
        found.iter().filter_map(|found| Some((found, wanted.path_in(found.partition)?))).collect();
    if chosen.is_empty() {
        return Err(Failure::refused(format!("the job has no result {:?}", wanted.file)));
    }
    // Of many, how far each is says less than how many are here.
    let mut line = Line::new(session.notes);
    let notes = if chosen.len() > 1 { Notes::new(true) } else { session.notes };
    let fetches =
        chosen.iter().enumerate().map(|(index, (found, path))| {
            let arrived = staging.join(format!("arrived-{index}"));
            async move {
                fetch_one(session, notes, wanted, found, path, &arrived).await.map(|()| (*found, arrived))
            }
        });
    let mut fetches = futures::stream::iter(fetches).buffered(AT_ONCE);
    let mut done = 0;
    while let Some(fetched) = fetches.next().await {
        let (found, arrived) = fetched?;
        done += 1;
        if chosen.len() > 1 {
            line.draw(&format!("{done} of {} results fetched", chosen.len()));
        }
        let into = if wanted.flags.merge { whole.clone() } else { whole.join(wanted.place_of(found)) };
        merge::merge(&arrived, &into)
            .map_err(|error| cannot(&error).hint("fetch them apart, without --merge, or with --raw"))?;
        std::fs::remove_dir_all(&arrived).map_err(|error| cannot(&error))?;
    }
    Ok(whole)
}

/// Fetches one result, or one path of it, as a folder.
async fn fetch_one(
    session: &Session,
    notes: Notes,
    wanted: &Wanted<'_>,
    found: &Found,
    path: &str,
    into: &Path,
) -> Result<(), Failure> {
    let cannot = |error: &std::io::Error| Failure::local(format!("cannot write {}", into.display()), error);
    let fetch = |content: ContentPath, into: PathBuf| async move {
        let fetched = content::fetch(&session.client, notes, &content, wanted.flags.timeout, &into).await?;
        for link in fetched.left_out {
            say_always(format!("Warning: left out a symbolic link that leads outside: {link}"));
        }
        Ok::<(), Failure>(())
    };
    if path.is_empty() {
        fetch(found.content.clone(), into.to_owned()).await?;
        // A result that is a single file keeps a name of its own.
        if into.is_file() {
            let file = into.with_extension("file");
            let name = found.content.cid.to_string();
            let moved = std::fs::rename(into, &file).and_then(|()| std::fs::create_dir(into));
            moved.and_then(|()| std::fs::rename(&file, into.join(name))).map_err(|error| cannot(&error))?;
        }
        return Ok(());
    }
    let below = into.join(path);
    if let Some(parent) = below.parent() {
        std::fs::create_dir_all(parent).map_err(|error| cannot(&error))?;
    }
    let base = found.content.path.trim_end_matches('/');
    let joined = if base.is_empty() { path.to_owned() } else { format!("{base}/{path}") };
    fetch(ContentPath { cid: found.content.cid, path: joined }, below).await
}

/// The results that can be fetched, in the order of the partitions.
fn results_of(results: &[Value]) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    for item in results {
        let kind = text(item, &["Type"]);
        let cid = text(item, &["Params", "CID"]);
        if kind != "ipfs" {
            return Err(Failure::refused(format!(
                "cannot fetch a result of the type {kind:?}: it was published to {}",
                item["Params"]
            )));
        }
        found.push(Found {
            partition: number(item, &["PartitionIndex"]),
            execution: execution_name(text(item, &["ExecutionID"]), found.len()),
            failed: !matches!(text(item, &["State"]), "" | "Completed"),
            content: content::parse(cid)?,
        });
    }
    found.sort_by_key(|found| found.partition);
    Ok(found)
}

/// An execution's id as a folder's name; what is none is numbered.
fn execution_name(id: &str, index: usize) -> String {
    let is_plain = id.starts_with("e-") && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if is_plain { id.to_owned() } else { format!("result-{index}") }
}

fn no_results(job: &Value, id: &str) -> Failure {
    let id = short_id(id);
    let state = job_state(job);
    let failure = if is_terminal(state) {
        Failure::new(exit::REFUSED, "NotFound", format!("job {id} has no results: it is {state}"))
    } else {
        Failure::new(exit::REFUSED, "Conflict", format!("job {id} has no results yet: it is {state}"))
    };
    failure.hint(format!("see its output with `cardume job logs {id}`"))
}

fn report(session: &Session, flags: &Get, id: &str, found: &[Found], target: &Path) -> Result<(), Failure> {
    let format = flags.output.format.unwrap_or_default();
    let target = target.display().to_string();
    if format == Format::Table {
        session.notes.say(format!("saved the results of {} in {target}", short_id(id)));
        return Ok(());
    }
    let items: Vec<Value> = found
        .iter()
        .map(|one| json!({ "PartitionIndex": one.partition, "ExecutionID": one.execution, "CID": one.content.to_string() }))
        .collect();
    let table = || {
        let mut table = Table::new(["PARTITION", "CID"]);
        for one in found {
            table.row([one.partition.to_string(), one.content.to_string()]);
        }
        table
    };
    Report { value: json!({ "JobID": id, "OutputDir": target, "Results": items }), table }.print(format)
}
