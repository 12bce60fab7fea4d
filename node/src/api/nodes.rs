//! The nodes that this one knows.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use super::error::ApiError;
use crate::nodes;
use crate::state::App;

/// Characters of a node's id that are enough to name it.
const PREFIX: usize = 8;

/// `GET /orchestrator/nodes`.
pub async fn list(State(app): State<App>) -> Json<Value> {
    Json(json!({"NextToken": "", "Nodes": nodes::all(&app).await}))
}

/// `GET /orchestrator/nodes/:id`; the beginning or the end of an id is enough.
pub async fn describe(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let fits = |node: &Value| {
        let name = node["Info"]["NodeID"].as_str().unwrap_or_default();
        name == id || (id.len() >= PREFIX && (name.starts_with(&id) || name.ends_with(&id)))
    };
    let mut found = nodes::all(&app).await.into_iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(Json(json!({"Node": node}))),
        (Some(_), Some(_)) => Err(ApiError::bad_request(format!("more than one node begins with {id}"))),
        (None, _) => Err(ApiError::not_found(format!("node not found: {id}"))
            .hint("`cardume node list` shows the nodes that are known here")),
    }
}
