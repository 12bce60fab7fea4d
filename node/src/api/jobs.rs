//! Jobs: submit, list, read, stop.

use std::ops::Range;

use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::{Extension, Json};
use gossip::owner::{ExecutionView, HistoryEvent, HistoryLine, JobHead, JobReader, Level};
use job::JobId;
use job::state::ExecutionState;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::guard::Caller;
use super::page::{self, Page};
use super::query::{self, Query};
use super::route::Resolved;
use crate::index::Line;
use crate::state::App;
use crate::{read, submit, view};

type Answer = Result<Json<Value>, ApiError>;

/// Executions whose output is read for one answer: each costs a few reads of the disk.
const WITH_OUTPUT: usize = 1000;
/// In a second.
const NANOS: u64 = 1_000_000_000;

/// A body that may be anything; what is no JSON gets this API's error instead of the framework's.
pub struct Body(submit::Request);

impl<S: Send + Sync> axum::extract::FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, ApiError> {
        only_json(request.headers())?;
        let bytes = axum::body::Bytes::from_request(request, state)
            .await
            .map_err(|error| ApiError::bad_request(format!("the body cannot be read: {error}")))?;
        if bytes.is_empty() {
            return Err(ApiError::bad_request("empty/nil job").hint("send {\"Job\": {…}}"));
        }
        serde_json::from_slice(&bytes)
            .map(Body)
            .map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))
    }
}

/// A body that is sent as something else than JSON is one that a web page can send anywhere without asking.
fn only_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let kind = kind.to_str().unwrap_or_default();
    let bare = kind.split(';').next().unwrap_or_default().trim();
    if bare.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!("the body is sent as {kind:?}, and this route takes application/json");
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
        .hint("send the header Content-Type: application/json"))
}

/// `PUT /orchestrator/jobs`.
pub async fn submit(State(app): State<App>, Body(request): Body) -> Answer {
    let accepted = submit::submit(&app, request).await?;
    Ok(Json(json!({
        "JobID": accepted.job.to_string(),
        "EvaluationID": format!("{}-{}", accepted.job, accepted.version),
        "JobVersion": accepted.version,
        "AccessToken": app.access_token(accepted.job),
        "Warnings": warnings(&accepted.warnings),
    })))
}

/// `PUT /orchestrator/jobs/validate`.
pub async fn validate(Body(request): Body) -> Answer {
    let checked = submit::check(&request)?;
    Ok(Json(json!({
        "Job": checked.spec.to_api_json(),
        "SpecCID": checked.spec.spec_cid().to_string(),
        "Warnings": warnings(&checked.warnings),
    })))
}

fn warnings(warnings: &[String]) -> Value {
    if warnings.is_empty() { Value::Null } else { json!(warnings) }
}

/// The list's query.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ListQuery {
    namespace: Option<String>,
    limit: Option<usize>,
    next_token: Option<String>,
    order_by: Option<String>,
    #[serde(deserialize_with = "query::flag")]
    reverse: bool,
    /// Only those that have not ended.
    #[serde(deserialize_with = "query::flag")]
    live: bool,
}

/// `GET /orchestrator/jobs`: this node's own jobs, newest first.
pub async fn list(
    State(app): State<App>,
    OriginalUri(uri): OriginalUri,
    Query(query): Query<ListQuery>,
) -> Answer {
    let page = Page::read(query.limit, query.next_token.as_deref(), page::LIMIT)?;
    let wanted = query.namespace.as_deref().filter(|namespace| *namespace != "*");
    let selector = page::selector(&query::all(&uri, "labels"))?;
    let mut lines: Vec<Line> = app
        .index
        .list()
        .into_iter()
        .filter(|line| wanted.is_none_or(|namespace| line.summary.namespace == namespace))
        .filter(|line| job::constraint::matches(&selector, &line.labels))
        .filter(|line| !query.live || !line.summary.state.is_terminal())
        .collect();
    match query.order_by.as_deref() {
        None | Some("created_at" | "create_time") => {}
        Some("modified_at" | "modify_time") => {
            lines.sort_by_key(|line| std::cmp::Reverse(line.summary.modified))
        }
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "order_by {other:?} is neither created_at nor modified_at"
            )));
        }
    }
    if query.reverse {
        lines.reverse();
    }
    let (lines, next) = page.cut(lines);
    let mut items = Vec::with_capacity(lines.len());
    for line in lines {
        match read::head(&app, line.summary.id, Some(line.summary.version)).await {
            Ok(head) => items.push(view::job(&read::spec(&head)?, &head, app.me)),
            // It was forgotten, or not accepted, while the list was made.
            Err(error) if error.code == "NotFound" => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Json(page::list(items, &next)))
}

/// The query of a single job's routes.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub struct JobQuery {
    include: Option<String>,
    job_version: Option<u32>,
    #[serde(deserialize_with = "query::flag")]
    all_job_versions: bool,
    limit: Option<usize>,
    next_token: Option<String>,
    event_type: Option<String>,
    execution_id: Option<String>,
    /// Only what happened from then on, in Unix seconds.
    since: Option<u64>,
    order_by: Option<String>,
    #[serde(deserialize_with = "query::flag")]
    reverse: bool,
    /// Whether executions carry the beginning of their output.
    #[serde(deserialize_with = "query::flag")]
    outputs: bool,
}

impl Default for JobQuery {
    fn default() -> Self {
        JobQuery {
            include: None,
            job_version: None,
            all_job_versions: false,
            limit: None,
            next_token: None,
            event_type: None,
            execution_id: None,
            since: None,
            order_by: None,
            reverse: false,
            outputs: true,
        }
    }
}

/// `GET /orchestrator/jobs/:id`. As in Bacalhau, `limit` means nothing here: what is included is whole, up to what one
/// answer may hold.
pub async fn get(
    State(app): State<App>,
    Extension(Resolved { job, .. }): Extension<Resolved>,
    caller: Option<Extension<Caller>>,
    Query(query): Query<JobQuery>,
) -> Answer {
    let include = Include::read(query.include.as_deref().unwrap_or_default())?;
    let page = Page { offset: 0, limit: page::MOST };
    let whole = read::with(&app, job, version(&query), move |job| Whole::read(&job, include, page)).await?;
    let mut answer = whole.to_json(&app).await?;
    // Other peers may see a job; only its owner's user hands out the right to.
    if caller.is_none_or(|Extension(caller)| caller.is_local()) {
        answer["AccessToken"] = app.access_token(job).into();
    }
    Ok(Json(answer))
}

/// What is asked for beside a job.
#[derive(Debug, Clone, Copy, Default)]
pub struct Include {
    /// Its executions.
    pub executions: bool,
    /// What happened.
    pub history: bool,
}

impl Include {
    fn read(text: &str) -> Result<Self, ApiError> {
        let mut include = Include::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part {
                "executions" => include.executions = true,
                "history" => include.history = true,
                other => {
                    return Err(ApiError::bad_request(format!(
                        "include: {other:?} is neither executions nor history"
                    )));
                }
            }
        }
        Ok(include)
    }
}

/// A job with what was asked for beside it, all as it was at one moment.
#[derive(Debug)]
pub struct Whole {
    head: JobHead,
    page: Page,
    executions: Option<Vec<ExecutionView>>,
    history: Option<Vec<HistoryEvent>>,
}

impl Whole {
    /// Reads it; of lists, this page.
    pub fn read(job: &JobReader<'_>, include: Include, page: Page) -> Self {
        let executions = include.executions.then(|| page.of_executions(job));
        let history = include.history.then(|| {
            let lines = job.history(0).skip(page.offset).take(page.limit.saturating_add(1));
            lines.map(|line| line.event()).collect()
        });
        Whole { head: job.head(), page, executions, history }
    }

    /// The answer; executions have the beginning of their output.
    pub async fn to_json(self, app: &App) -> Result<Value, ApiError> {
        let Whole { head, page, executions, history } = self;
        let mut answer = json!({"Job": view::job(&read::spec(&head)?, &head, app.me)});
        if let Some(executions) = executions {
            let (chosen, next) = page.close(executions);
            answer["Executions"] =
                page::list(with_output(app, &chosen, &head.summary.namespace, true).await, &next);
        }
        if let Some(history) = history {
            let (lines, next) = page.close(history);
            let lines = lines.into_iter().map(|event| view::history(event, &head.summary)).collect();
            answer["History"] = page::list(lines, &next);
        }
        Ok(answer)
    }
}

/// Executions with the beginning of their output. Where that is not read, it is said to be cut short.
async fn with_output(app: &App, executions: &[ExecutionView], namespace: &str, outputs: bool) -> Vec<Value> {
    let mut items = Vec::with_capacity(executions.len());
    for (index, execution) in executions.iter().enumerate() {
        let output = match &execution.result {
            Some(_) if outputs && index < WITH_OUTPUT => read::output(app, execution).await,
            Some(_) => view::Output::unread(),
            None => view::Output::default(),
        };
        items.push(view::execution(execution, namespace, &output));
    }
    items
}

/// The versions that are asked for, oldest first. All of a job's are in one namespace.
async fn wanted_versions(app: &App, job: JobId, query: &JobQuery) -> Result<Vec<JobHead>, ApiError> {
    if query.all_job_versions {
        return read::versions(app, job).await;
    }
    Ok(vec![read::head(app, job, version(query)).await?])
}

/// `GET /orchestrator/jobs/:id/executions`.
pub async fn executions(
    State(app): State<App>,
    Extension(Resolved { job, .. }): Extension<Resolved>,
    Query(query): Query<JobQuery>,
) -> Answer {
    let versions = wanted_versions(&app, job, &query).await?;
    let namespace = versions.first().map(|head| head.summary.namespace.clone()).unwrap_or_default();
    let page = Page::read(query.limit, query.next_token.as_deref(), page::MOST)?;
    let order: Option<fn(&ExecutionView) -> u64> = match query.order_by.as_deref() {
        None => None,
        Some("created_at" | "create_time") => Some(|execution| execution.created),
        Some("modified_at" | "modify_time") => Some(|execution| execution.modified),
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "order_by {other:?} is neither created_at nor modified_at"
            )));
        }
    };
    let as_they_are = order.is_none() && !query.reverse;
    let (chosen, next) = match versions.as_slice() {
        // One page of a long list is read without the rest.
        [one] if as_they_are => {
            let version = Some(one.summary.version);
            page.close(read::with(&app, job, version, move |job| page.of_executions(&job)).await?)
        }
        versions => {
            let mut all = Vec::new();
            for head in versions {
                let version = Some(head.summary.version);
                let read = read::with(&app, job, version, |job| job.executions(0..usize::MAX).collect());
                all.extend::<Vec<_>>(read.await?);
            }
            if let Some(order) = order {
                all.sort_by_key(order);
            }
            if query.reverse {
                all.reverse();
            }
            page.cut(all)
        }
    };
    Ok(Json(page::list(with_output(&app, &chosen, &namespace, query.outputs).await, &next)))
}

/// `GET /orchestrator/jobs/:id/history`. As long as the job has not ended there is a next token, even when
/// there is nothing new: Bacalhau's clients follow a job by it.
pub async fn history(
    State(app): State<App>,
    Extension(Resolved { job, .. }): Extension<Resolved>,
    Query(query): Query<JobQuery>,
) -> Answer {
    let versions = wanted_versions(&app, job, &query).await?;
    let page = Page::read(query.limit, query.next_token.as_deref(), page::LIMIT)?;
    let level = match query.event_type.as_deref() {
        None | Some("all") => None,
        Some("job") => Some(Level::Job),
        Some("execution") => Some(Level::Execution),
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "event_type {other:?} is none of all, job, execution"
            )));
        }
    };
    let asked = Lines { level, execution: query.execution_id, since: query.since.unwrap_or(0) };
    let (mut lines, mut before) = (Vec::new(), 0);
    for head in &versions {
        let (asked, wanted) = (asked.clone(), page.rest(before));
        let read = read::with(&app, job, Some(head.summary.version), move |job| asked.read(&job, wanted));
        let (events, count) = read.await?;
        lines.extend(events.into_iter().map(|event| view::history(event, &head.summary)));
        before += count;
    }
    let mut next = if page.is_followed(before) { page.next() } else { String::new() };
    if next.is_empty() && versions.iter().any(|head| !head.summary.state.is_terminal()) {
        next = page::token(page.limit, before.max(page.offset));
    }
    Ok(Json(page::list(lines, &next)))
}

/// Which lines of a history are asked for.
#[derive(Debug, Clone)]
struct Lines {
    level: Option<Level>,
    /// The beginning of an execution's id.
    execution: Option<String>,
    /// Unix seconds.
    since: u64,
}

impl Lines {
    fn wants(&self, line: &HistoryLine<'_>) -> bool {
        let execution = line.execution();
        let level = if execution.is_some() { Level::Execution } else { Level::Job };
        let is_named =
            |prefix: &String| execution.is_some_and(|key| key.id().to_string().starts_with(prefix));
        line.time() >= self.since.saturating_mul(NANOS)
            && self.level.is_none_or(|wanted| wanted == level)
            && self.execution.as_ref().is_none_or(is_named)
    }

    /// Those of the wanted lines that have these places among them, and how many are wanted at all.
    fn read(&self, job: &JobReader<'_>, places: Range<usize>) -> (Vec<HistoryEvent>, usize) {
        let (mut events, mut count) = (Vec::new(), 0);
        for line in job.history(0).filter(|line| self.wants(line)) {
            if places.contains(&count) {
                events.push(line.event());
            }
            count += 1;
        }
        (events, count)
    }
}

/// `GET /orchestrator/jobs/:id/versions`, oldest first.
pub async fn versions(
    State(app): State<App>,
    Extension(Resolved { job, .. }): Extension<Resolved>,
) -> Answer {
    let mut items = Vec::new();
    for head in read::versions(&app, job).await? {
        items.push(view::job(&read::spec(&head)?, &head, app.me));
    }
    Ok(Json(page::list(items, "")))
}

/// `GET /orchestrator/jobs/:id/results`: one per committed partition, in their order.
pub async fn results(
    State(app): State<App>,
    Extension(Resolved { job, .. }): Extension<Resolved>,
    Query(query): Query<JobQuery>,
) -> Answer {
    let page = Page::read(query.limit, query.next_token.as_deref(), page::MOST)?;
    let read = read::with(&app, job, version(&query), |job| {
        job.executions(0..usize::MAX).filter(is_result).collect::<Vec<_>>()
    });
    let mut chosen = read.await?;
    // A partition that failed for good has its last output as its result: that is what its user needs.
    chosen.sort_by_key(|execution| {
        let completed = execution.state == ExecutionState::Completed;
        (execution.key.partition, !completed, std::cmp::Reverse(execution.key.attempt))
    });
    chosen.dedup_by_key(|execution| execution.key.partition);
    let (chosen, next) = page.cut(chosen);
    let items = chosen
        .into_iter()
        .filter_map(|execution| {
            let result = execution.result.as_ref()?;
            Some(json!({
                "Type": "ipfs",
                "Params": {"CID": result.cid.to_string()},
                "PartitionIndex": execution.key.partition,
                "ExecutionID": execution.id.to_string(),
                "NodeID": execution.worker.to_string(),
                "State": execution.state.as_str(),
            }))
        })
        .collect();
    Ok(Json(page::list(items, &next)))
}

fn is_result(execution: &ExecutionView) -> bool {
    execution.result.is_some()
        && matches!(execution.state, ExecutionState::Completed | ExecutionState::Failed)
}

/// The body of a stop.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct StopQuery {
    reason: Option<String>,
}

/// `DELETE /orchestrator/jobs/:id`, with the reason in the body or the query.
pub async fn stop(
    State(app): State<App>,
    Extension(Resolved { job, .. }): Extension<Resolved>,
    Query(query): Query<StopQuery>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> Answer {
    if !body.is_empty() {
        only_json(&headers)?;
    }
    let in_body = if body.is_empty() {
        StopQuery::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))?
    };
    let reason = in_body.reason.or(query.reason).filter(|reason| !reason.is_empty());
    let reason = reason.unwrap_or_else(|| "job stopped by its user".to_owned());
    submit::stop(&app, job, reason.chars().take(200).collect()).await?;
    Ok(Json(json!({"EvaluationID": job.to_string()})))
}

fn version(query: &JobQuery) -> Option<u32> {
    query.job_version.filter(|version| *version > 0)
}
