//! Jobs: submit, list, read, stop.

use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::{Extension, Json};
use gossip::owner::{ExecutionView, JobView, Level};
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
        let view = read::head(&app, line.summary.id, Some(line.summary.version)).await?;
        items.push(view::job(&read::spec(&view)?, &view.summary, view.revision, app.me));
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
    let view = read::view(&app, job, version(&query)).await?;
    let include = query.include.as_deref().unwrap_or_default();
    let mut answer = whole(&app, &view, include, Page { offset: 0, limit: page::MOST }).await?;
    // Other peers may see a job; only its owner's user hands out the right to.
    if caller.is_none_or(|Extension(caller)| caller.is_local()) {
        answer["AccessToken"] = app.access_token(job).into();
    }
    Ok(Json(answer))
}

/// A job with what was asked for beside it.
pub async fn whole(app: &App, view: &JobView, include: &str, page: Page) -> Whole {
    let mut answer = json!({"Job": view::job(&read::spec(view)?, &view.summary, view.revision, app.me)});
    for part in include.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part {
            "executions" => {
                let (chosen, next) = page.cut(view.executions.iter().collect());
                let chosen: Vec<_> = chosen.into_iter().map(|execution| (view, execution)).collect();
                answer["Executions"] = page::list(with_output(app, &chosen, true).await, &next);
            }
            "history" => {
                let (lines, next) = page.cut(view.history.iter().collect());
                let lines = lines.into_iter().map(|event| view::history(event, &view.summary)).collect();
                answer["History"] = page::list(lines, &next);
            }
            other => {
                return Err(ApiError::bad_request(format!(
                    "include: {other:?} is neither executions nor history"
                )));
            }
        }
    }
    Ok(answer)
}

/// A value or a refusal.
pub type Whole = Result<Value, ApiError>;

/// Executions with the beginning of their output. Where that is not read, it is said to be cut short.
async fn with_output(app: &App, executions: &[(&JobView, &ExecutionView)], outputs: bool) -> Vec<Value> {
    let mut items = Vec::with_capacity(executions.len());
    for (index, (view, execution)) in executions.iter().enumerate() {
        let output = match &execution.result {
            Some(_) if outputs && index < WITH_OUTPUT => read::output(app, execution).await,
            Some(_) => view::Output::unread(),
            None => view::Output::default(),
        };
        items.push(view::execution(execution, &view.summary.namespace, &output));
    }
    items
}

/// The version that is asked for, or all of them, oldest first.
async fn wanted_versions(app: &App, job: job::JobId, query: &JobQuery) -> Result<Vec<JobView>, ApiError> {
    if query.all_job_versions {
        return read::versions(app, job).await;
    }
    Ok(vec![read::view(app, job, version(query)).await?])
}

/// `GET /orchestrator/jobs/:id/executions`.
pub async fn executions(
    State(app): State<App>,
    Extension(Resolved { job, .. }): Extension<Resolved>,
    Query(query): Query<JobQuery>,
) -> Answer {
    let views = wanted_versions(&app, job, &query).await?;
    let page = Page::read(query.limit, query.next_token.as_deref(), page::MOST)?;
    let mut chosen: Vec<(&JobView, &ExecutionView)> = views
        .iter()
        .flat_map(|view| view.executions.iter().map(move |execution| (view, execution)))
        .collect();
    match query.order_by.as_deref() {
        None => {}
        Some("created_at" | "create_time") => chosen.sort_by_key(|(_, execution)| execution.created),
        Some("modified_at" | "modify_time") => chosen.sort_by_key(|(_, execution)| execution.modified),
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "order_by {other:?} is neither created_at nor modified_at"
            )));
        }
    }
    if query.reverse {
        chosen.reverse();
    }
    let (chosen, next) = page.cut(chosen);
    Ok(Json(page::list(with_output(&app, &chosen, query.outputs).await, &next)))
}

/// `GET /orchestrator/jobs/:id/history`. As long as the job has not ended there is a next token, even when
/// there is nothing new: Bacalhau's clients follow a job by it.
pub async fn history(
    State(app): State<App>,
    Extension(Resolved { job, .. }): Extension<Resolved>,
    Query(query): Query<JobQuery>,
) -> Answer {
    let views = wanted_versions(&app, job, &query).await?;
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
    let execution = query.execution_id.as_deref();
    let since = query.since.unwrap_or(0).saturating_mul(NANOS);
    let lines: Vec<_> = views
        .iter()
        .flat_map(|view| view.history.iter().map(move |event| (view, event)))
        .filter(|(_, event)| event.time >= since && level.is_none_or(|level| event.level == level))
        .filter(|(_, event)| {
            execution.is_none_or(|prefix| {
                event.execution.is_some_and(|key| key.id().to_string().starts_with(prefix))
            })
        })
        .collect();
    let total = lines.len();
    let (lines, mut next) = page.cut(lines);
    if next.is_empty() && views.iter().any(|view| !view.summary.state.is_terminal()) {
        next = page::token(page.limit, total.max(page.offset));
    }
    let lines = lines.into_iter().map(|(view, event)| view::history(event, &view.summary)).collect();
    Ok(Json(page::list(lines, &next)))
}

/// `GET /orchestrator/jobs/:id/versions`, oldest first.
pub async fn versions(
    State(app): State<App>,
    Extension(Resolved { job, .. }): Extension<Resolved>,
) -> Answer {
    let mut items = Vec::new();
    for view in read::versions(&app, job).await? {
        items.push(view::job(&read::spec(&view)?, &view.summary, view.revision, app.me));
    }
    Ok(Json(page::list(items, "")))
}

/// `GET /orchestrator/jobs/:id/results`: one per committed partition, in their order.
pub async fn results(
    State(app): State<App>,
    Extension(Resolved { job, .. }): Extension<Resolved>,
    Query(query): Query<JobQuery>,
) -> Answer {
    let view = read::view(&app, job, version(&query)).await?;
    let mut chosen: Vec<&ExecutionView> =
        view.executions.iter().filter(|execution| is_result(execution)).collect();
    // A partition that failed for good has its last output as its result: that is what its user needs.
    chosen.sort_by_key(|execution| {
        let completed = execution.state == ExecutionState::Completed;
        (execution.key.partition, !completed, std::cmp::Reverse(execution.key.attempt))
    });
    chosen.dedup_by_key(|execution| execution.key.partition);
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
    Ok(Json(page::list(items, "")))
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
