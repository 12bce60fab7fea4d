//! `job …`.

mod describe;
mod get;
mod lists;
mod logs;

use serde_json::{Value, json};

use crate::args::job::{Job, Named, Run, Validate};
use crate::args::{Global, Output};
use crate::content::encode;
use crate::failure::{Failure, Outcome, exit};
use crate::output::{Format, Notes, Report, Table, print, print_document, yaml};
use crate::run::{self, Plan};
use crate::signals::Signals;
use crate::spec::{self, JobFile};
use crate::target::{Fallback, Session, interrupted, with_node};
use crate::values::{short_id, text};

/// Runs a verb about jobs.
pub async fn run(global: &Global, verb: &Job) -> Outcome {
    match verb {
        Job::Run(flags) => run_file(global, flags).await,
        Job::Validate(flags) => validate(global, flags),
        Job::List(flags) => lists::jobs(global, flags).await,
        Job::Describe { job, output } => describe::run(global, job, output).await,
        Job::Executions { job, page, output } => lists::executions(global, job, page, output).await,
        Job::History { job, event_type, execution_id, page, output } => {
            lists::history(global, job, *event_type, execution_id.as_deref(), page, output).await
        }
        Job::Versions { job, page, output } => lists::versions(global, job, page, output).await,
        Job::Logs(flags) => logs::run(global, flags).await,
        Job::Stop { job, reason, output } => stop(global, job, reason.as_deref(), output).await,
        Job::Get(flags) => get::run(global, flags).await,
    }
}

/// The route of something about a job; `query` begins with `?` where it is not empty.
pub fn route(id: &str, namespace: Option<&str>, part: &str, query: &str) -> String {
    let mut route = format!("/orchestrator/jobs/{}{part}{query}", encode(id));
    if let Some(namespace) = namespace {
        let separator = match route.rsplit_once('?') {
            None => "?",
            Some((_, "")) => "",
            Some(_) => "&",
        };
        route.push_str(&format!("{separator}namespace={}", encode(namespace)));
    }
    route
}

async fn run_file(global: &Global, flags: &Run) -> Outcome {
    let mut signals = Signals::new()?;
    // On a thread of its own: stdin may keep a reader waiting, and Ctrl-C must still be heard.
    let (path, templates) = (flags.file.clone(), flags.templates.clone());
    let reading = tokio::task::spawn_blocking(move || spec::read(&path, &templates));
    let reading = async {
        reading.await.map_err(|error| Failure::refused(format!("reading the job ended badly: {error}")))?
    };
    let file = signals.or(reading, run::interrupted_before).await?;
    spec::supported(&file)?;
    let mut waiting = flags.waiting.clone();
    waiting.format = waiting.format.or(flags.output);
    if waiting.dry_run {
        return dry_run(&file.spec.to_api_json(), waiting.format, &file, Notes::new(global.quiet));
    }
    let plan = Plan::new(&waiting, flags.follow, &file.spec);
    let session = signals.or(Session::open(global, Fallback::Embed), run::interrupted_before).await?;
    run::submit(session, run::body_of_text(&file.text), plan, signals).await
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

async fn stop(global: &Global, job: &Named, reason: Option<&str>, output: &Output) -> Outcome {
    let work = async |session: &Session| {
        let body = json!({ "reason": reason.unwrap_or("stopped by the user") });
        let path = route(&job.id, job.namespace.as_deref(), "", "");
        let answer = session.client.delete(&path, &body).await?;
        match output.format.unwrap_or_default() {
            Format::Table => {
                session.notes.say(format!("{} is being stopped", short_id(&job.id)));
                Ok(())
            }
            format => {
                let table = || Table::pairs([("EvaluationID", text(&answer, &["EvaluationID"]))]);
                Report { value: answer.clone(), table }.print(format)
            }
        }
    };
    with_node(global, Fallback::None, false, interrupted, work).await
}
