//! Which requests are answered here, which are passed on to a job's owner, and what peers may ask.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use job::{JobId, PeerId};
use serde_json::json;

use super::error::ApiError;
use super::guard::Caller;
use super::query;
use crate::index::Named;
use crate::locate::{self, Found};
use crate::remote;
use crate::state::App;

const JOBS: &str = "/api/v1/orchestrator/jobs/";
/// Largest body that is passed on: a stop with its reason.
const FORWARDED_BODY: usize = 64 << 10;

/// The job that a request names, resolved.
#[derive(Debug, Clone, Copy)]
pub struct Resolved {
    /// The job.
    pub job: JobId,
    /// Its owner.
    pub owner: PeerId,
}

/// Resolves the job in the path. One of this node's own goes on to its handler; another peer's is asked
/// for, and that peer's answer is the answer. Logs are fetched by their handler, which knows how to frame them.
pub async fn to_owner(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let caller = caller(&request);
    // `nest` has cut the prefix from the request's own URI.
    let path = original(&request).path().to_owned();
    let Some((text, rest)) = job_in(&path) else {
        return ApiError::not_found("The requested resource/URL was not found.").into_response();
    };
    // None at all, or `*`: all of them.
    let namespace = query::one(original(&request), "namespace").filter(|namespace| namespace != "*");
    match app.index.find(&text, namespace.as_deref()) {
        Named::Many(_) => several(&text).into_response(),
        Named::One(job) => {
            if let Err(refusal) = may_see(&app, caller, request.headers(), job) {
                return refusal.into_response();
            }
            request.extensions_mut().insert(Resolved { job, owner: app.me });
            next.run(request).await
        }
        Named::None if !caller.is_local() || !locate::may_name(&text) => not_found(&text).into_response(),
        Named::None => match locate::find(&app, &text, namespace.as_deref()).await {
            Found::None => not_found(&text).into_response(),
            Found::Many => several(&text).into_response(),
            Found::One(found) if found.owner == app.me => not_found(&text).into_response(),
            Found::One(found) if rest == "/logs" => {
                request.extensions_mut().insert(Resolved { job: found.job, owner: found.owner });
                next.run(request).await
            }
            Found::One(found) => pass_on(&app, found, &rest, request).await,
        },
    }
}

/// Peers other than this machine's users may ask about jobs, about this node, and, as the owner of an
/// execution, for its output. Everything else is not theirs.
pub async fn only_for_peers(request: Request, next: Next) -> Response {
    if caller(&request).is_local() {
        return next.run(request).await;
    }
    let path = request.uri().path();
    let about_a_job =
        path.starts_with(JOBS) && job_in(path).is_some_and(|(id, _)| id.parse::<JobId>().is_ok());
    let reads = request.method() == Method::GET;
    let allowed = (about_a_job && (reads || request.method() == Method::DELETE))
        || (reads && (path == "/api/v1/agent/node" || path.starts_with("/api/v1/worker/executions/")));
    if allowed {
        return next.run(request).await;
    }
    ApiError::forbidden("this is not for other peers").into_response()
}

/// Who sent a request.
pub fn caller(request: &Request) -> Caller {
    request.extensions().get::<Caller>().copied().unwrap_or(Caller::Loopback)
}

fn may_see(app: &App, caller: Caller, headers: &HeaderMap, job: JobId) -> Result<(), ApiError> {
    let Caller::Peer(peer) = caller else { return Ok(()) };
    if app.trusts(peer) {
        return Ok(());
    }
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = given.and_then(|value| value.strip_prefix("Bearer "));
    if token.is_some_and(|token| same(token.as_bytes(), app.access_token(job).as_bytes())) {
        return Ok(());
    }
    Err(ApiError::forbidden(format!("the owner of job {job} does not let this peer see it"))
        .hint("ask at the node where the job was submitted, or use the job's access token"))
}

/// Compares without telling by its time where the difference is.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

async fn pass_on(app: &App, found: locate::Owned, rest: &str, request: Request) -> Response {
    let uri = original(&request);
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let target = format!("{JOBS}{}{rest}{query}", found.job);
    let (parts, body) = request.into_parts();
    let body = match http_body_util::Limited::new(body, FORWARDED_BODY).collect().await {
        Ok(body) => Body::from(body.to_bytes()),
        Err(_) => return ApiError::bad_request("the request's body is too large").into_response(),
    };
    let token = parts.headers.get(header::AUTHORIZATION).cloned();
    match remote::ask(&app.host, found.owner, parts.method, &target, body, token).await {
        Ok(answer) => answer.map(Body::new).into_response(),
        Err(error) => owner_away(app, found, &error).await.into_response(),
    }
}

/// The owner cannot be asked: who it is, and what this node knows itself.
pub async fn owner_away(app: &App, found: locate::Owned, error: &remote::RemoteError) -> ApiError {
    let job = found.job;
    let here = app.worker.ask(move |worker| {
        let of_job = worker.executions().filter(|(key, _)| key.job == job);
        of_job.map(|(key, phase)| format!("{} {phase:?}", key.id())).collect::<Vec<_>>()
    });
    let here = here.await.unwrap_or_default();
    let seen = app.peers_seen.last(found.owner).map(crate::clock::rfc3339);
    let message = format!("the owner of job {job} is away: {}", super::error::chain(error));
    ApiError::unavailable(message)
        .hint("the job goes on where it runs; ask again when its owner is back")
        .details(json!({
            "Owner": found.owner.to_string(),
            "LastSeen": seen.unwrap_or_default(),
            "Executions": here.join(", "),
            "Partial": "true",
        }))
}

fn several(text: &str) -> ApiError {
    ApiError::bad_request(format!("multiple jobs found for id {text}"))
        .hint("Use full job ID, or name the namespace of a job that is called so")
}

fn not_found(text: &str) -> ApiError {
    crate::read::missing(text, None)
}

fn original(request: &Request) -> &Uri {
    match request.extensions().get::<axum::extract::OriginalUri>() {
        Some(original) => &original.0,
        None => request.uri(),
    }
}

/// The job's text in a path, and what follows it.
fn job_in(path: &str) -> Option<(String, String)> {
    let tail = path.strip_prefix(JOBS)?;
    let (text, rest) = tail.find('/').map_or((tail, ""), |at| tail.split_at(at));
    let text = percent_encoding::percent_decode_str(text).decode_utf8().ok()?.into_owned();
    (!text.is_empty()).then(|| (text, rest.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_is_cut_out_of_the_path() {
        let cut = |path: &str| job_in(path);
        assert_eq!(cut("/api/v1/orchestrator/jobs/a%20b"), Some(("a b".into(), String::new())));
        assert_eq!(cut("/api/v1/orchestrator/jobs/x/history"), Some(("x".into(), "/history".into())));
        assert_eq!(cut("/api/v1/orchestrator/jobs/"), None);
        assert_eq!(cut("/elsewhere/x"), None);
    }

    #[test]
    fn tokens_are_compared_whole() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd") && !same(b"abc", b"ab"));
    }
}
