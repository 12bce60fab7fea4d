//! The HTTP API: the paths and shapes of Bacalhau's, and what a swarm without a server adds.
//!
//! The same router answers on loopback TCP, on the socket in the data directory and on streams of other
//! peers. A job that another peer owns is answered by asking its owner; see [`route`].

pub mod agent;
pub mod auth;
pub mod content;
pub mod error;
pub mod guard;
pub mod jobs;
pub mod logs;
pub mod nodes;
pub mod page;
pub mod query;
pub mod route;
pub mod watch;
pub mod wire;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use serde_json::json;

use crate::state::App;
use error::ApiError;

/// Where everything lives.
pub const PREFIX: &str = "/api/v1";

/// Largest body of a request that is not content: a spec of 1 MiB as a JSON string, and its envelope.
const BODY_BYTES: usize = 4 << 20;

/// All routes.
pub fn router(app: App) -> Router {
    let job = Router::new()
        .route("/{id}", get(jobs::get).delete(jobs::stop))
        .route("/{id}/executions", get(jobs::executions))
        .route("/{id}/history", get(jobs::history))
        .route("/{id}/versions", get(jobs::versions))
        .route("/{id}/results", get(jobs::results))
        .route("/{id}/watch", get(watch::watch))
        .route("/{id}/logs", get(logs::logs))
        .layer(middleware::from_fn_with_state(app.clone(), route::to_owner));
    let jobs = Router::new()
        .route("/", get(jobs::list).put(jobs::submit).post(jobs::submit))
        .route("/validate", put(jobs::validate).post(jobs::validate))
        .merge(job);
    let local = Router::new()
        .nest("/orchestrator/jobs", jobs)
        .route("/orchestrator/jobs/", get(jobs::list))
        .route("/orchestrator/nodes", get(nodes::list))
        .route("/orchestrator/nodes/{id}", get(nodes::describe))
        .route("/agent/alive", get(agent::alive))
        .route("/agent/version", get(agent::version))
        .route("/agent/node", get(agent::node))
        .route("/agent/config", get(agent::config))
        .route("/agent/authconfig", get(auth::config))
        .route("/agent/debug", get(agent::debug))
        .route("/auth", get(auth::methods))
        .route("/auth/{method}", get(auth::method).post(auth::authenticate))
        .route("/agent/swarm", get(agent::swarm))
        .route("/worker/executions/{id}/logs", get(logs::of_execution))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .merge(content::router());
    Router::new()
        .nest(PREFIX, local)
        .route("/", get(agent::to_version))
        .route("/version", get(agent::to_version))
        .route("/livez", get(agent::to_alive))
        .fallback(no_such_path)
        .layer(middleware::from_fn(error::in_shape))
        .layer(middleware::from_fn_with_state(app.clone(), route::only_for_peers))
        .layer(middleware::from_fn(guard::refuse_foreign))
        .with_state(app)
}

async fn no_such_path() -> Response {
    ApiError::not_found("The requested resource/URL was not found.")
        .hint("The server version may be older than this CLI version and does not support the endpoint yet.")
        .details(json!({"cli_usage": "see `cardume --help` for what this version has"}))
        .into_response()
}
