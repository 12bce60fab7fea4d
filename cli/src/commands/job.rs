//! `job …`.

mod describe;
mod get;
mod lists;
mod logs;

use serde_json::{Value, json};

use crate::args::job::{Job, Run, Validate};
use crate::args::{Global, Output};
use crate::content::encode;
use crate::failure::{Failure, Outcome, exit};
use crate::output::{Format, Notes, Report, Table, print, print_document, yaml};
use crate::run::{self, Plan};
use crate::spec::{self, JobFile};
use crate::target::{Fallback, Session};
use crate::values::{short_id, text};

/// Runs a verb about jobs.
pub async fn run(global: &Global, verb: &Job) -> Outcome {
    match verb {
        Job::Run(flags) => run_file(global, flags).await,
        Job::Validate(flags) => validate(global, flags),
        Job::List(flags) => lists::jobs(global, flags).await,
        Job::Describe { id, output } => describe::run(global, id, output).await,
        Job::Executions { id, page, output } => lists::executions(global, id, page, output).await,
        Job::History { id, event_type, execution_id, page, output } => {
            lists::history(global, id, *event_type, execution_id.as_deref(), page, output).await
        }
        Job::Versions { id, output } => lists::versions(global, id, output).await,
        Job::Logs(flags) => logs::run(global, flags).await,
        Job::Stop { id, reason, output } => stop(global, id, reason.as_deref(), output).await,
        Job::Get(flags) => get::run(global, flags).await,
    }
}

async fn run_file(global: &Global, flags: &Run) -> Outcome {
    let file = spec::read(&flags.file, &flags.templates)?;
    spec::supported(&file)?;
    let mut waiting = flags.waiting.clone();
    waiting.format = waiting.format.or(flags.output);
    if waiting.dry_run {
        return dry_run(&file.spec.to_api_json(), waiting.format, &file, Notes::new(global.quiet));
    }
    let plan = Plan::new(&waiting, flags.follow, &file.spec);
    let session = Session::open(global, Fallback::Embed).await?;
    run::submit(session, run::body_of_text(&file.text), plan).await
}

fn dry_run(job: &Value, format: Option<Format>, file: &JobFile, notes: Notes) -> Outcome {
    warn(file, notes);
    print_normalised(job, format)?;
    Ok(exit::DONE)
}

/// Prints a normalised job: as YAML for people, who write it so.
pub fn print_normalised(job: &Value, format: Option<Format>) -> Result<(), Failure> {
    match format.unwrap_or_default() {
        Format::Json => print_document(job, Format::Json),
        Format::Yaml | Format::Table | Format::Csv => print(&yaml::to_yaml(job)),
    }
}

fn validate(global: &Global, flags: &Validate) -> Outcome {
    let notes = Notes::new(global.quiet);
    let file = spec::read(&flags.file, &flags.templates)?;
    warn(&file, notes);
    if let Err(failure) = spec::supported(&file) {
        for line in failure.message.lines() {
            notes.say(format!("Warning: {line}"));
        }
    }
    match flags.output.format.unwrap_or_default() {
        Format::Table | Format::Csv => print("OK\n")?,
        format => {
            let value = json!({ "Valid": true, "Warnings": file.warnings, "Job": file.spec.to_api_json() });
            print_document(&value, format)?;
        }
    }
    Ok(exit::DONE)
}

fn warn(file: &JobFile, notes: Notes) {
    for warning in &file.warnings {
        notes.say(format!("Warning: {warning}"));
    }
}

async fn stop(global: &Global, id: &str, reason: Option<&str>, output: &Output) -> Outcome {
    let session = Session::open(global, Fallback::None).await?;
    let body = json!({ "reason": reason.unwrap_or("stopped by the user") });
    let answer = session.client.delete(&format!("/orchestrator/jobs/{}", encode(id)), &body).await?;
    match output.format.unwrap_or_default() {
        Format::Table => session.notes.say(format!("{} is being stopped", short_id(id))),
        format => {
            let table = || Table::pairs([("EvaluationID", text(&answer, &["EvaluationID"]))]);
            Report { value: answer.clone(), table }.print(format)?;
        }
    }
    Ok(exit::DONE)
}
