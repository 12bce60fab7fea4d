//! Jobs: submit, list, read, stop.

use axum::extract::{Query, State};
use axum::{Extension, Json};
use gossip::owner::{ExecutionView, JobView, Level};
use job::state::ExecutionState;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::page::{self, Page};
use super::route::Resolved;
use crate::index::Line;
use crate::state::App;
use crate::{read, submit, view};

type Answer = Result<Json<Value>, ApiError>;

/// Executions whose output is read for one answer: each costs a few reads of the disk.
const WITH_OUTPUT: usize = 1000;

/// A body that may be anything; what is no JSON gets this API's error instead of the framework's.
pub struct Body(submit::Request);

impl<S: Send + Sync> axum::extract::FromRequest<S> for Body {
    type Rejection = ApiError;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, ApiError> {
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
    reverse: bool,
    labels: Option<String>,
}

/// `GET /orchestrator/jobs`: this node's own jobs, newest first.
pub async fn list(State(app): State<App>, Query(query): Query<ListQuery>) -> Answer {
    let page = Page::read(query.limit, query.next_token.as_deref(), page::LIMIT)?;
    let wanted = query.namespace.as_deref().filter(|namespace| !matches!(*namespace, "" | "*"));
    let selector = match query.labels.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => {
            job::constraint::parse(text).map_err(|error| ApiError::bad_request(format!("labels: {error}")))?
        }
        None => Vec::new(),
    };
    let mut lines: Vec<Line> = app
        .index
        .list()
        .into_iter()
        .filter(|line| wanted.is_none_or(|namespace| line.summary.namespace == namespace))
        .filter(|line| job::constraint::matches(&selector, &line.labels))
        .collect();
    match query.order_by.as_deref() {
        None | Some("" | "created_at" | "create_time") => {}
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
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct JobQuery {
    include: Option<String>,
    job_version: Option<u32>,
    limit: Option<usize>,
    next_token: Option<String>,
    event_type: Option<String>,
    execution_id: Option<String>,
    order_by: Option<String>,
    reverse: bool,
}

/// `GET /orchestrator/jobs/:id`.
pub async fn get(
    State(app): State<App>,
    Extension(Resolved { job, .. }): Extension<Resolved>,
    Query(query): Query<JobQuery>,
) -> Answer {
    let view = read::view(&app, job, version(&query)).await?;
    let include = query.include.as_deref().unwrap_or_default();
    let page = Page::read(query.limit, None, page::MOST)?;
    Ok(Json(whole(&app, &view, include, page).await?))
}

/// A job with what was asked for beside it.
pub async fn whole(app: &App, view: &JobView, include: &str, page: Page) -> Whole {
    let mut answer = json!({"Job": view::job(&read::spec(view)?, &view.summary, view.revision, app.me)});
    for part in include.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part {
            "executions" => {
                let (chosen, next) = page.cut(view.executions.iter().collect());
                answer["Executions"] = page::list(with_output(app, view, &chosen).await, &next);
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

async fn with_output(app: &App, view: &JobView, executions: &[&ExecutionView]) -> Vec<Value> {
    let mut items = Vec::with_capacity(executions.len());
    for (index, execution) in executions.iter().enumerate() {
        let output =
            if index < WITH_OUTPUT { read::output(app, execution).await } else { view::Output::default() };
        items.push(view::execution(execution, &view.summary.namespace, &output));
    }
    items
}

/// `GET /orchestrator/jobs/:id/executions`.
pub async fn executions(
    State(app): State<App>,
    Extension(Resolved { job, .. }): Extension<Resolved>,
    Query(query): Query<JobQuery>,
) -> Answer {
    let view = read::view(&app, job, version(&query)).await?;
    let page = Page::read(query.limit, query.next_token.as_deref(), page::MOST)?;
    let mut chosen: Vec<&ExecutionView> = view.executions.iter().collect();
    match query.order_by.as_deref() {
        None | Some("") => {}
        Some("created_at" | "create_time") => chosen.sort_by_key(|execution| execution.created),
        Some("modified_at" | "modify_time") => chosen.sort_by_key(|execution| execution.modified),
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
    Ok(Json(page::list(with_output(&app, &view, &chosen).await, &next)))
}

/// `GET /orchestrator/jobs/:id/history`. As long as the job has not ended there is a next token, even when
/// there is nothing new: Bacalhau's clients follow a job by it.
pub async fn history(
    State(app): State<App>,
    Extension(Resolved { job, .. }): Extension<Resolved>,
    Query(query): Query<JobQuery>,
) -> Answer {
    let view = read::view(&app, job, version(&query)).await?;
    let page = Page::read(query.limit, query.next_token.as_deref(), page::LIMIT)?;
    let level = match query.event_type.as_deref() {
        None | Some("" | "all") => None,
        Some("job") => Some(Level::Job),
        Some("execution") => Some(Level::Execution),
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "event_type {other:?} is none of all, job, execution"
            )));
        }
    };
    let execution = query.execution_id.as_deref().filter(|text| !text.is_empty());
    let lines: Vec<_> = view
        .history
        .iter()
        .filter(|event| level.is_none_or(|level| event.level == level))
        .filter(|event| {
            execution.is_none_or(|prefix| {
                event.execution.is_some_and(|key| key.id().to_string().starts_with(prefix))
            })
        })
        .collect();
    let total = lines.len();
    let (lines, mut next) = page.cut(lines);
    if next.is_empty() && !view.summary.state.is_terminal() {
        next = page::token(page.limit, total.max(page.offset));
    }
    let lines = lines.into_iter().map(|event| view::history(event, &view.summary)).collect();
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
    body: axum::body::Bytes,
) -> Answer {
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
