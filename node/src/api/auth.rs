//! Logging in, as Bacalhau's clients do it before their first request. Who may speak to this API is decided by
//! where a request comes from (`guard`, `route`), so everybody who gets this far is let in.

use axum::Json;
use axum::extract::Path;
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::error::ApiError;

/// The only method: the client signs a phrase with a key of its own.
const METHOD: &str = "ClientKey";
/// What is signed. Nothing rests on the signature, so it need not change.
const PHRASE: &[u8] = b"cardume";
/// What clients carry from then on; it opens nothing.
const TOKEN: &str = "open";

/// `GET /agent/authconfig`.
pub async fn config() -> Json<Value> {
    Json(json!({"Version": "1.0.0", "Config": {}}))
}

/// `GET /auth`.
pub async fn methods() -> Json<Value> {
    Json(json!({"Methods": {METHOD: requirement()}}))
}

/// `GET /auth/:method`.
pub async fn method(Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    known(&name).map(|()| Json(requirement()))
}

/// `POST /auth/:method`.
pub async fn authenticate(Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    known(&name)?;
    Ok(Json(json!({"Authentication": {"success": true, "reason": "", "token": TOKEN}})))
}

fn requirement() -> Value {
    json!({"type": "challenge", "params": {"InputPhrase": BASE64.encode(PHRASE)}})
}

fn known(name: &str) -> Result<(), ApiError> {
    if name == METHOD {
        return Ok(());
    }
    Err(ApiError::not_found(format!("no authentication method is called {name:?}"))
        .hint(format!("the method is {METHOD}")))
}
