//! What every run verb does: submit a job, wait for it, stream its output, say how it ended.

mod report;
pub mod stream;

use std::time::Duration;

use serde_json::{Value, json};

use crate::args::run::Waiting;
use crate::content::encode;
use crate::failure::{Failure, Outcome, exit};
use crate::output::{Format, print, print_document, say_always};
use crate::pages::complete;
use crate::progress::{Detail, Progress};
use crate::signals::Signals;
use crate::target::Session;
use crate::values::{job_state, list, number, short_id, text};
use crate::watch::{Event, Watch};
use stream::{Chunk, OutputStream};

/// A span that no process outlives; timers cannot count for ever.
const FOREVER: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// How a run verb goes about its job.
#[derive(Debug)]
pub struct Plan {
    /// The verb's flags.
    pub waiting: Waiting,
    /// Stream the job's output to stdout and stderr.
    pub streams: bool,
    /// Partitions of the job.
    pub partitions: i64,
    /// The job has no end of its own: waiting ends once it runs.
    pub runs_forever: bool,
}

impl Plan {
    /// The plan for a job.
    pub fn new(waiting: &Waiting, streams: bool, spec: &job::JobSpec) -> Self {
        use job::spec::JobType;
        Plan {
            waiting: waiting.clone(),
            streams,
            partitions: i64::from(spec.count),
            runs_forever: matches!(spec.job_type, JobType::Service | JobType::Daemon),
        }
    }

    /// The form of what is printed.
    pub fn format(&self) -> Format {
        self.waiting.format.unwrap_or_default()
    }

    /// Whether the job's output goes to stdout: not when that is one document, or the id alone.
    pub fn streams_output(&self) -> bool {
        self.streams && !self.format().is_document() && !self.waiting.id_only
    }

    fn detail(&self) -> Detail {
        if self.waiting.id_only || self.format().is_document() {
            Detail::None
        } else if self.streams_output() {
            Detail::Troubles
        } else {
            Detail::Full
        }
    }
}

/// The body of a submission.
pub fn body_of(job: &Value) -> Value {
    json!({ "Job": job })
}

/// The body of a submission as text, which the node reads as strictly as the CLI did.
pub fn body_of_text(text: &str) -> Value {
    json!({ "Spec": text })
}

/// Submits a job and does with it what the plan says.
pub async fn submit(session: Session, mut body: Value, plan: Plan, mut signals: Signals) -> Outcome {
    if plan.waiting.force {
        body["Force"] = true.into();
    }
    // With a token, a request that is repeated makes no second job.
    body["IdempotencyToken"] = token()?.into();
    let (session, answer) = put(session, &body, &mut signals).await?;
    for warning in list(&answer, &["Warnings"]) {
        session.notes.say(format!("Warning: {}", warning.as_str().unwrap_or_default()));
    }
    let id = text(&answer, &["JobID"]).to_owned();
    if id.is_empty() {
        return Err(session.close_after(Failure::refused("the node's answer names no job")).await);
    }
    if !plan.waiting.waits() {
        let printed = match plan.format() {
            format if format.is_document() && !plan.waiting.id_only => print_document(&answer, format),
            _ => print(&format!("{id}\n")),
        };
        leave(session, &mut signals).await?;
        return printed.map(|()| exit::DONE);
    }
    if plan.waiting.id_only
        && let Err(failure) = print(&format!("{id}\n"))
    {
        leave(session, &mut signals).await?;
        return Err(failure);
    }
    wait(session, &id, number(&answer, &["JobVersion"]), &plan, signals).await
}

/// Sends the job, to another node on the data directory when one goes away before it has answered.
async fn put(mut session: Session, body: &Value, signals: &mut Signals) -> Result<(Session, Value), Failure> {
    let mut reopened = 0;
    loop {
        let put = session.client.put("/orchestrator/jobs", body);
        match signals.or(put, interrupted_submit).await {
            Ok(answer) => return Ok((session, answer)),
            Err(failure) => session = session.recover(failure, &mut reopened).await?,
        }
    }
}

/// Waits for the job, with another node on the data directory when one goes away.
async fn wait(mut session: Session, id: &str, version: i64, plan: &Plan, mut signals: Signals) -> Outcome {
    let mut following = Following::new(&session, id, plan);
    let mut reopened = 0;
    let end = loop {
        match following.follow_whole(&session, plan, &mut signals).await {
            Err(failure) if session.may_reopen(&failure) => {
                let recovered = session.recover(failure, &mut reopened).await;
                session = recovered.map_err(|failure| failure.hint(come_back(id)))?;
            }
            end => break end,
        }
    };
    drop(following);
    if let Ok(End::Ended(job)) = &end
        && number(job, &["Job", "Version"]) > version
        && version > 0
    {
        let newest = number(job, &["Job", "Version"]);
        signals.or(session.close(), || Failure::silent(exit::INTERRUPTED)).await?;
        let message =
            format!("version {version} of {id} was stopped: version {newest} of the job took its place");
        return Err(Failure::new(exit::JOB_FAILED, "Replaced", message)
            .hint(format!("see how that one ended with `cardume job describe {}`", short_id(id))));
    }
    finish(session, id, plan, end, signals).await
}

/// Why a run verb no longer waits.
#[derive(Debug)]
enum End {
    /// The job has ended; it with its executions.
    Ended(Value),
    /// It is of a kind that runs on, and it runs.
    Running,
    /// `--wait-timeout` ran out.
    Timeout,
    /// Ctrl-C, or another signal to end.
    Interrupted,
    /// Nobody reads stdout any more.
    Closed,
}

/// A job that is followed, over all the nodes that are asked about it.
struct Following {
    progress: Progress,
    output: OutputStream,
    watch: Watch,
    timeout: std::pin::Pin<Box<tokio::time::Sleep>>,
}

impl Following {
    fn new(session: &Session, id: &str, plan: &Plan) -> Self {
        let mut progress = Progress::new(session.notes, plan.detail(), plan.partitions);
        if plan.detail() == Detail::Full {
            progress.tell(&format!("{id} submitted"));
        }
        Following {
            progress,
            output: OutputStream::following(id, plan.streams_output(), plan.partitions),
            watch: Watch::new(id),
            timeout: Box::pin(tokio::time::sleep(plan.waiting.wait_timeout.unwrap_or(FOREVER))),
        }
    }

    /// Follows the job; one that has ended is told with all of its executions.
    async fn follow_whole(
        &mut self,
        session: &Session,
        plan: &Plan,
        signals: &mut Signals,
    ) -> Result<End, Failure> {
        let mut end = self.follow(session, plan, signals).await?;
        if let End::Ended(job) = &mut end {
            let whole = complete(&session.client, job, plan.format().is_document());
            if let Err(failure) = signals.or(whole, || Failure::silent(exit::INTERRUPTED)).await {
                self.watch.start_again();
                return if failure.silent { Ok(End::Interrupted) } else { Err(failure) };
            }
        }
        Ok(end)
    }

    /// Watches the job until there is a reason to stop.
    async fn follow(
        &mut self,
        session: &Session,
        plan: &Plan,
        signals: &mut Signals,
    ) -> Result<End, Failure> {
        loop {
            let event = tokio::select! {
                biased;
                () = signals.next() => return Ok(End::Interrupted),
                () = &mut self.timeout => return Ok(End::Timeout),
                chunk = self.output.next(&session.client), if self.output.is_open() => match chunk {
                    Err(failure) if self.output.recovers_from(&failure) => continue,
                    chunk => match written(chunk, &mut self.progress)? {
                        true => continue,
                        false => return Ok(End::Closed),
                    },
                },
                event = self.watch.next(&session.client, session.is_lasting()) => event?,
            };
            self.output.node_answers();
            match event {
                Event::History(item) => self.progress.on_history(&item),
                Event::Bid(bid) => self.progress.on_bid(&bid),
                Event::Execution(execution) => self.progress.on_execution(&execution),
                Event::State(state) => {
                    self.progress.on_state(&state);
                    let is_running = text(&state, &["State", "StateType"]) == "Running";
                    if is_running && plan.runs_forever && !plan.streams_output() {
                        return Ok(End::Running);
                    }
                }
                Event::End(job) => return self.drain(session, signals, job).await,
            }
        }
    }

    /// Writes what is left of the job's output after its end.
    async fn drain(&mut self, session: &Session, signals: &mut Signals, job: Value) -> Result<End, Failure> {
        self.output.job_ended();
        while self.output.is_open() {
            let chunk = tokio::select! {
                () = signals.next() => return Ok(End::Interrupted),
                chunk = self.output.next(&session.client) => chunk,
            };
            if let Err(failure) = &chunk
                && session.may_reopen(failure)
                && self.output.recovers_from(failure)
            {
                // The peer of another command has ended with the job; the record is still here.
                self.watch.start_again();
                return chunk.map(|_| End::Ended(job));
            }
            if !written(chunk, &mut self.progress)? {
                break;
            }
        }
        Ok(End::Ended(job))
    }
}

/// Writes output; whether anybody still reads it. The job does not depend on that.
fn written(chunk: Result<Option<Chunk>, Failure>, progress: &mut Progress) -> Result<bool, Failure> {
    let chunk = match chunk {
        Ok(Some(chunk)) => chunk,
        Ok(None) => return Ok(true),
        Err(failure) => {
            progress.tell(&format!("Warning: the job's output cannot be followed: {}", failure.message));
            return Ok(true);
        }
    };
    progress.clear();
    match chunk.write() {
        Ok(()) => Ok(true),
        Err(failure) if failure.silent => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Says how it ended and leaves the node as it should be.
async fn finish(
    session: Session,
    id: &str,
    plan: &Plan,
    end: Result<End, Failure>,
    mut signals: Signals,
) -> Outcome {
    let notes = session.notes;
    let end = match end {
        Ok(End::Ended(job)) => {
            let reported = report::ended(&job, plan, notes);
            signals.or(session.close(), || Failure::silent(exit::INTERRUPTED)).await?;
            reported?;
            return Ok(if job_state(&job["Job"]) == "Completed" { exit::DONE } else { exit::JOB_FAILED });
        }
        Ok(end) => end,
        // The job was accepted and must not be lost with this process.
        Err(failure) => {
            leave(session, &mut signals).await?;
            return Err(failure.hint(come_back(id)));
        }
    };
    let wants_document = plan.format().is_document() && !plan.waiting.id_only;
    let now = match end {
        End::Running | End::Timeout if wants_document => whole_job(&session, id).await.ok(),
        _ => None,
    };
    leave(session, &mut signals).await?;
    match end {
        End::Ended(_) | End::Closed => Err(Failure::silent(exit::DONE)),
        End::Running => {
            match &now {
                Some(job) => report::document(job, plan.format())?,
                None if plan.waiting.id_only => {}
                None => print(&format!("{id}\n"))?,
            }
            notes.say(format!("{id} runs; {}", come_back(id)));
            Ok(exit::DONE)
        }
        End::Timeout => {
            let message =
                format!("stopped waiting for {id}: it has not ended within the wait timeout, and goes on");
            let failure = Failure::new(exit::WAIT_TIMEOUT, "WaitTimeout", message).hint(come_back(id));
            let Some(job) = now else { return Err(failure) };
            report::document(&job, plan.format())?;
            say_always(failure.to_string());
            Ok(exit::WAIT_TIMEOUT)
        }
        End::Interrupted => {
            let message = format!("interrupted while waiting for {id}: it goes on");
            Err(Failure::new(exit::INTERRUPTED, "Interrupted", message).hint(come_back(id)))
        }
    }
}

/// Leaves the job to a node that stays; a second signal ends this process at once.
async fn leave(session: Session, signals: &mut Signals) -> Result<(), Failure> {
    tokio::select! {
        left = session.leave() => left,
        () = signals.next() => Err(Failure::silent(exit::INTERRUPTED)),
    }
}

/// How to come back to a job.
pub fn come_back(id: &str) -> String {
    let id = short_id(id);
    format!(
        "follow it with `cardume job logs {id} -f`, look with `cardume job describe {id}`, end it with `cardume job stop {id}`"
    )
}

/// The job with its executions.
async fn whole_job(session: &Session, id: &str) -> Result<Value, Failure> {
    let path = format!("/orchestrator/jobs/{}?include=executions", encode(id));
    let mut job = session.client.get(&path).await?;
    complete(&session.client, &mut job, true).await?;
    Ok(job)
}

fn token() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::refused(format!("cannot draw random bytes: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Ctrl-C before there was a job.
pub fn interrupted_before() -> Failure {
    let message = "interrupted before the job was submitted: there is none";
    Failure::new(exit::INTERRUPTED, "Interrupted", message)
}

fn interrupted_submit() -> Failure {
    let message = "interrupted while the job was submitted: it may have been accepted";
    Failure::new(exit::INTERRUPTED, "Interrupted", message).hint("look with `cardume job list`")
}
