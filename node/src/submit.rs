//! From a spec to an accepted job: what the owner does before its machine hears of it.

pub mod naming;

use std::collections::BTreeMap;
use std::time::Duration;

use gossip::message::{Facts, InputHint};
use gossip::owner::{Input, JobSummary, Keep, NewJob, Refusal};
use job::spec::{Engine, KeepOn, Mode, NetworkType, Publisher, Retry, Source};
use job::state::JobState;
use job::{Cid, JobId, JobSpec};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::debug;

use crate::api::error::ApiError;
use crate::content::{Added, Keeper};
use crate::index::Line;
use crate::own::Submitted;
use crate::read::{missing, stopping};
use crate::state::App;
use crate::{clock, locate};
use naming::{Claim, Naming};

/// How long the machine may take to make a job durable; longer means that the disk does not answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How long a node that stops waits for the machine's last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Shorter jobs are not worth a record in the DHT: their owner's neighbours know them (DESIGN section 3).
const PUBLISH_AFTER: Duration = Duration::from_secs(5);
/// Input CIDs with sizes that an announcement carries.
const HINTS: usize = 4;

/// What a client sends to submit or check a job.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Request {
    /// The spec as JSON.
    #[serde(alias = "job")]
    pub job: Option<Value>,
    /// The spec as YAML or JSON text.
    #[serde(alias = "spec")]
    pub spec: Option<String>,
    /// Two submissions with the same token are one. Bacalhau's SDK spells it with a small letter.
    #[serde(alias = "idempotencyToken")]
    pub idempotency_token: Option<String>,
    /// Submit even when nothing changed since the last version.
    #[serde(alias = "force")]
    pub force: bool,
}

/// A spec that may be submitted.
#[derive(Debug)]
pub struct Checked {
    /// Normalised and valid.
    pub spec: JobSpec,
    /// What was ignored.
    pub warnings: Vec<String>,
}

/// A submitted job.
#[derive(Debug)]
pub struct Accepted {
    /// Its id.
    pub job: JobId,
    /// Its version.
    pub version: u32,
    /// What was ignored.
    pub warnings: Vec<String>,
}

/// Parses, normalises and validates; nothing is changed.
pub fn check(request: &Request) -> Result<Checked, ApiError> {
    let read = match (&request.job, &request.spec) {
        (Some(value), None) => JobSpec::from_api_value(value),
        (None, Some(text)) => job::text::parse(text.as_bytes())
            .map_err(Into::into)
            .and_then(|document| JobSpec::from_document(&document, Mode::File)),
        (None, None) => return Err(ApiError::bad_request("empty/nil job").hint("send {\"Job\": {…}}")),
        (Some(_), Some(_)) => return Err(ApiError::bad_request("both Job and Spec are given: send one")),
    };
    let (spec, warnings) = read.map_err(|errors| invalid(&errors))?;
    spec.supported().map_err(|errors| invalid(&errors))?;
    Ok(Checked { spec, warnings })
}

/// Every error of a spec, one a line; the details have them apart.
fn invalid(errors: &job::spec::SpecErrors) -> ApiError {
    let list: Vec<Value> = errors
        .iter()
        .map(|error| {
            let (line, column) = error.position.map_or((0, 0), |at| (at.line, at.column));
            json!({"path": error.path, "message": error.message, "hint": error.hint, "line": line, "column": column})
        })
        .collect();
    // Bacalhau's details are texts by key.
    let details = json!({"errors": Value::Array(list).to_string()});
    ApiError::bad_request(errors.to_string()).details(details)
}

/// Makes a checked spec a job of this node. When this returns the job is durable.
///
/// Dropping the future forgets the answer; the job may have been accepted.
pub async fn submit(app: &App, request: Request) -> Result<Accepted, ApiError> {
    let Checked { spec, warnings } = check(&request)?;
    let (spec, inputs) = inline_to_content(app, spec).await?;
    let token = token(&request);
    let mut claim = app.index.claims.claim(&spec, token.as_ref()).await;
    let (id, version, nonce) = match naming::decide(app, &spec, token.as_ref(), request.force).await? {
        Naming::Known { id, version } => return Ok(Accepted { job: id, version, warnings }),
        Naming::New { id, version, nonce } => (id, version, nonce),
    };
    claim.makes(id, version);
    let mut roots: Vec<Cid> = inputs.iter().map(|input| input.cid).collect();
    if !roots.is_empty() {
        app.content
            .pin(Keeper::Job(id, version), &roots)
            .await
            .map_err(|error| ApiError::internal("keeping inline inputs", &error))?;
    }
    roots.push(spec.spec_cid());
    let job = match new_job(app, &spec, id, version, nonce).await {
        Ok(job) => job,
        Err(error) => {
            app.content.unpin(Keeper::Job(id, version), &roots).await;
            return Err(error);
        }
    };
    let summary = JobSummary::submitted(&job, clock::now().wall);
    hand_over(app, job, Line { summary, labels: spec.labels }, roots, claim).await?;
    Ok(Accepted { job: id, version, warnings })
}

/// Publishes in the DHT who owns a job that lives long enough for strangers to ask.
async fn publish_owner(app: App, id: JobId) {
    tokio::select! {
        () = app.cancel.cancelled() => return,
        () = tokio::time::sleep(PUBLISH_AFTER) => {}
    }
    if app.index.get(id).is_some_and(|line| !line.summary.state.is_terminal()) {
        locate::provide(&app, id).await;
    }
}

/// Hands a job to the machine and waits until it is durable, or refused. A client that goes away meanwhile
/// changes nothing: its name stays claimed and the lists become right all the same.
async fn hand_over(
    app: &App,
    job: NewJob,
    line: Line,
    roots: Vec<Cid>,
    claim: Claim,
) -> Result<(), ApiError> {
    let (sender, answered) = oneshot::channel();
    let own = App::clone(app);
    app.tracker.spawn(async move {
        let id = job.id;
        let answer = propose(&own, job, line, &roots).await;
        drop(claim);
        let accepted = answer.is_ok();
        if sender.send(answer).is_err() {
            debug!(job = %id, accepted, "the client did not wait for the answer");
        }
        if accepted {
            publish_owner(own, id).await;
        }
    });
    timeout(ANSWER_WITHIN, answered)
        .await
        .map_err(|_| {
            ApiError::unavailable("the job could not be made durable yet: the disk does not answer")
        })?
        .map_err(|_| stopping())?
}

/// `roots`: what is kept for this version; a refusal lets go of it.
async fn propose(app: &App, job: NewJob, line: Line, roots: &[Cid]) -> Result<(), ApiError> {
    let (id, version) = (job.id, job.version);
    // Listed first: the machine tells of its changes from the moment that it has it.
    app.index.propose(line);
    let (token, answered) = app.desk.submit();
    let given = app.owner.input(Input::Submitted { token, job: Box::new(job) }).await;
    let answer = match given {
        Ok(()) => unless_stopped(app, answered).await,
        Err(_) => None,
    };
    match answer {
        Some(Ok(_)) => {
            app.index.accepted(id, version);
            Ok(())
        }
        Some(Err(refusal)) => {
            app.index.refused(id, version);
            // A version that exists may be the same submission, made twice at once: what is its stays.
            if !matches!(refusal, Refusal::VersionExists(_)) {
                app.content.unpin(Keeper::Job(id, version), roots).await;
                naming::not_made(app, id, version).await;
            }
            Err(refused(&refusal))
        }
        // Whether it is durable shows after the next start.
        None => Err(stopping()),
    }
}

/// The machine's answer; `None` when the node ends before there is one.
async fn unless_stopped(app: &App, answered: oneshot::Receiver<Submitted>) -> Option<Submitted> {
    let stopped = async {
        app.cancel.cancelled().await;
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    tokio::select! {
        biased;
        answer = answered => answer.ok(),
        () = stopped => None,
    }
}

fn refused(refusal: &Refusal) -> ApiError {
    match refusal {
        Refusal::TooManyJobs(_) => {
            ApiError::unavailable(refusal.to_string()).hint("wait until some have ended")
        }
        Refusal::VersionExists(_) => ApiError::conflict(refusal.to_string()),
        _ => ApiError::bad_request(refusal.to_string()),
    }
}

/// The bytes of inline inputs become content; the spec names them by CID from now on.
async fn inline_to_content(app: &App, mut spec: JobSpec) -> Result<(JobSpec, Vec<Added>), ApiError> {
    let mut inputs = Vec::new();
    for input in spec.inline_inputs() {
        let added = if input.is_gzip_tar {
            crate::archive::add_gzip(&app.content, input.bytes).await
        } else {
            app.content.add_bytes(input.bytes.into()).await.map_err(Into::into)
        };
        let path = format!("Tasks[0].InputSources[{}].Source.Params.URL", input.index);
        let added = added.map_err(|error| ApiError::bad_request(format!("{path}: {error}")))?;
        spec = spec.with_input_cid(input.index, added.cid);
        inputs.push(added);
    }
    Ok((spec, inputs))
}

/// What the client's token comes down to. Its job's id is derived from it.
pub type Token = [u8; 32];

fn token(request: &Request) -> Option<Token> {
    let token = request.idempotency_token.as_deref().filter(|token| !token.is_empty())?;
    Some(Sha256::digest(token.as_bytes()).into())
}

/// Stops a job; durable when this returns.
pub async fn stop(app: &App, id: JobId, reason: String) -> Result<(), ApiError> {
    use gossip::owner::StopRefusal;
    let (token, answered) = app.desk.stop();
    app.owner.input(Input::StopRequested { token, job: id, reason }).await.map_err(|_| stopping())?;
    let answer = timeout(ANSWER_WITHIN, answered)
        .await
        .map_err(|_| {
            ApiError::unavailable("the stop could not be made durable yet: the disk does not answer")
        })?
        .map_err(|_| stopping())?;
    match answer {
        Ok(()) => Ok(()),
        Err(StopRefusal::Ended(state)) => Err(cannot_stop(state)),
        Err(StopRefusal::Unknown) => match app.index.get(id) {
            Some(line) => Err(cannot_stop(line.summary.state)),
            None => Err(missing(&id.to_string(), None)),
        },
        Err(other) => Err(ApiError::conflict(other.to_string())),
    }
}

fn cannot_stop(state: JobState) -> ApiError {
    ApiError::conflict(format!("cannot stop job in state {state}"))
}

async fn new_job(
    app: &App,
    spec: &JobSpec,
    id: JobId,
    version: u32,
    nonce: Vec<u8>,
) -> Result<NewJob, ApiError> {
    let bytes = spec.to_canonical();
    if bytes.len() > job::spec::MAX_CANONICAL_BYTES {
        let most = job::spec::MAX_CANONICAL_BYTES;
        return Err(ApiError::bad_request(format!("the spec has {} bytes, more than {most}", bytes.len())));
    }
    let spec_cid = spec.spec_cid();
    // Workers fetch a spec that is too large for an award like any other content.
    if bytes.len() > gossip::message::MAX_INLINE_SPEC_BYTES {
        app.content
            .put_pinned(spec_cid, bytes.clone().into(), Keeper::Job(id, version))
            .await
            .map_err(|error| ApiError::internal("the spec could not be stored", &error))?;
    }
    let seconds = |span: u64| (span > 0).then(|| Duration::from_secs(span));
    let timeouts = &spec.task.timeouts;
    Ok(NewJob {
        id,
        version,
        nonce: nonce.into(),
        name: if spec.name.is_empty() { id.to_string() } else { spec.name.clone() },
        namespace: spec.namespace.clone(),
        spec_cid,
        spec: bytes.into(),
        facts: facts(app, spec).await,
        count: spec.count,
        total_timeout: seconds(timeouts.total),
        queue_timeout: seconds(timeouts.queue),
        max_attempts: spec.task.retry.max_attempts,
        keep: keep(spec),
    })
}

/// With the `local` publisher the worker serves the result, as with `KeepOn: worker`.
fn keep(spec: &JobSpec) -> Keep {
    match (&spec.task.publisher, spec.task.keep_on) {
        (Publisher::Local, _) | (_, KeepOn::Worker) => Keep::Worker,
        (_, KeepOn::Owner) => Keep::Owner,
    }
}

async fn facts(app: &App, spec: &JobSpec) -> Facts {
    let task = &spec.task;
    let network = match task.network.kind {
        NetworkType::Default | NetworkType::None => String::new(),
        other => other.as_str().to_lowercase(),
    };
    let mut sources: Vec<String> =
        task.inputs.iter().map(|input| input.source.kind().to_lowercase()).collect();
    sources.sort();
    sources.dedup();
    Facts {
        job_type: spec.job_type,
        engine: task.engine.kind().to_owned(),
        network,
        sources,
        publisher: task.publisher.kind().to_lowercase(),
        resources: task.resources,
        run_ms: task.timeouts.effective_execution().unwrap_or(0).saturating_mul(1000),
        queue_ms: task.timeouts.queue.saturating_mul(1000),
        constraints: spec.constraints.clone(),
        inputs: inputs(app, spec).await,
        module: module(spec),
        priority: spec.priority,
        never: task.retry.policy == Retry::Never,
    }
}

fn module(spec: &JobSpec) -> Option<Cid> {
    let Engine::Wasm(_) = &spec.task.engine else { return None };
    match &spec.task.module_input()?.1.source {
        // A module below a folder's CID has a name of its own only once it is fetched.
        Source::Ipfs(content) if content.path.is_empty() => Some(content.cid),
        _ => None,
    }
}

/// The largest inputs whose sizes are known here: workers that hold them already are preferred.
async fn inputs(app: &App, spec: &JobSpec) -> Vec<InputHint> {
    let mut sizes = BTreeMap::new();
    for input in &spec.task.inputs {
        if let Source::Ipfs(content) = &input.source
            && let Some(size) = app.content.local_size(&content.cid).await
        {
            sizes.insert(content.cid, size);
        }
    }
    let mut hints: Vec<InputHint> = sizes.into_iter().map(|(cid, size)| InputHint { cid, size }).collect();
    hints.sort_by_key(|hint| std::cmp::Reverse(hint.size));
    hints.truncate(HINTS);
    hints
}
