//! This node about itself.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::query::Query;
use crate::net;
use crate::state::App;
use crate::view;
use crate::{nodes, peers};

/// Longest that a client may wait for the swarm to form.
const SWARM_WITHIN: u64 = 600;

/// `GET /agent/alive`.
pub async fn alive() -> Json<Value> {
    Json(json!({"Status": "OK"}))
}

/// `GET /agent/version`. Clients check the product: something else may listen on the port. They also see whether
/// this peer ends with the work of the program that it lives in (`Embedded`), so that it may be replaced.
pub async fn version(State(app): State<App>) -> Json<Value> {
    let mut version = build();
    version["Embedded"] = (app.config.embedded || app.config.until_idle).into();
    Json(version)
}

/// `GET /` and `GET /version`, as Bacalhau's older clients ask.
pub async fn to_version() -> (StatusCode, [(HeaderName, &'static str); 1]) {
    (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, "/api/v1/agent/version")])
}

/// `GET /livez`, likewise.
pub async fn to_alive() -> (StatusCode, [(HeaderName, &'static str); 1]) {
    (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, "/api/v1/agent/alive")])
}

/// What was built.
pub fn build() -> Value {
    let version = env!("CARGO_PKG_VERSION");
    let mut parts = version.split('.');
    json!({
        "Product": "cardume",
        "Major": parts.next().unwrap_or_default(),
        "Minor": parts.next().unwrap_or_default(),
        "GitVersion": format!("v{version}"),
        "GitCommit": "",
        // Go's clients read a time here. No build is dated, so that equal sources give equal builds.
        "BuildDate": "1970-01-01T00:00:00Z",
        "GOOS": std::env::consts::OS,
        "GOARCH": architecture(),
    })
}

/// The processor's name as Go has it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `GET /agent/debug`: what the network looks like from here.
pub async fn debug(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let (connected, subscribed) = now(&app).await?;
    Ok(Json(json!({
        "ID": app.me.to_string(),
        "Connected": connected,
        "Subscribed": subscribed,
        "LiveJobs": app.index.live(),
        "DiscoveredNodes": nodes::all(&app).await,
    })))
}

/// `GET /agent/node`: public to the swarm.
pub async fn node(State(app): State<App>) -> Json<Value> {
    Json(nodes::own(&app).await)
}

/// `GET /agent/config`; nothing in it is secret.
pub async fn config(State(app): State<App>) -> Json<Value> {
    let config = &app.config;
    Json(json!({"config": {
        "DataDir": config.data_dir.display().to_string(),
        "Swarm": config.swarm,
        "Bootstrap": config.bootstrap,
        "Listen": config.listen,
        "API": {"Address": config.api.map(|address| address.to_string())},
        "Worker": config.worker,
        "Labels": app.labels,
        "Trusted": config.trusted.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "QueueTimeout": config.settings.queue_timeout.as_secs(),
        "InputTimeout": config.settings.input_timeout.as_secs(),
        "Storage": config.settings.storage_bytes,
        "Capacity": app.capacity.map(|capacity| view::resources(&capacity)),
    }}))
}

/// What a client waits for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct SwarmQuery {
    peers: usize,
    subscribed: usize,
    within: u64,
}

/// `GET /agent/swarm?peers=N&subscribed=N&within=SECONDS`: answers when this node is connected to that many
/// peers, and that many of them take WASM jobs; 503 when the time is over.
pub async fn swarm(State(app): State<App>, Query(query): Query<SwarmQuery>) -> Result<Json<Value>, ApiError> {
    let waiting = async {
        let mut changes = app.peers_seen.changes();
        loop {
            changes.mark_unchanged();
            let now = now(&app).await?;
            if now.0 >= query.peers && now.1 >= query.subscribed {
                return Ok(now);
            }
            changes.changed().await.map_err(|_| crate::read::stopping())?;
        }
    };
    let within = Duration::from_secs(query.within.min(SWARM_WITHIN));
    let (connected, subscribed) = match tokio::time::timeout(within, waiting).await {
        Ok(formed) => formed?,
        Err(_) => {
            let (connected, subscribed) = now(&app).await?;
            return Err(ApiError::unavailable(format!(
                "the swarm has not formed within {} s: {connected} of {} peers connected, {subscribed} of {} take jobs",
                within.as_secs(),
                query.peers,
                query.subscribed
            )));
        }
    };
    Ok(Json(json!({"Connected": connected, "Subscribed": subscribed})))
}

async fn now(app: &App) -> Result<(usize, usize), ApiError> {
    let connected =
        app.host.connected_peers().iter().filter(|peer| peers::from_network(peer).is_some()).count();
    let topic = net::topic(gossip::topic::Class::Wasm);
    let subscribed = app
        .host
        .topic_peers(topic)
        .await
        .map_err(|error| ApiError::internal("asking the network", &error))?
        .subscribed
        .len();
    Ok((connected, subscribed))
}
