//! What a query's texts mean.

use axum::extract::FromRequestParts;
use axum::http::Uri;
use axum::http::request::Parts;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};

use super::error::{ApiError, chain};

/// The spellings that Go's `strconv.ParseBool` takes, and so Bacalhau's clients send: Python's `True` among
/// them. `None` for anything else.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Reads a [`boolean`] of a query, for `#[serde(deserialize_with = "query::flag")]`.
pub fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let text = String::deserialize(deserializer)?;
    boolean(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is neither true nor false")))
}

/// A request's query, read as Go's servers read one: what is empty counts as absent, and of a name that is
/// repeated the first one counts. What cannot be read is refused in this API's shape.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        read(&parts.uri).map(Query)
    }
}

/// All values of a name that may be repeated.
pub fn all(uri: &Uri, name: &str) -> Vec<String> {
    let named = pairs(uri).unwrap_or_default().into_iter().filter(|(key, _)| key == name);
    named.map(|(_, value)| value).collect()
}

/// The first value of a name.
pub fn one(uri: &Uri, name: &str) -> Option<String> {
    all(uri, name).into_iter().next()
}

fn read<T: DeserializeOwned>(uri: &Uri) -> Result<T, ApiError> {
    let mut once: Vec<(String, String)> = Vec::new();
    for (key, value) in pairs(uri)? {
        if once.iter().all(|(known, _)| *known != key) {
            once.push((key, value));
        }
    }
    let text = |part: &str| utf8_percent_encode(part, NON_ALPHANUMERIC).to_string();
    let parts: Vec<String> =
        once.iter().map(|(key, value)| format!("{}={}", text(key), text(value))).collect();
    let uri = format!("/?{}", parts.join("&"));
    let uri: Uri = uri.parse().map_err(|error| unreadable(&error))?;
    axum::extract::Query::try_from_uri(&uri).map(|query| query.0).map_err(|error| {
        // The framework's own words only say that it was a query.
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        ApiError::bad_request(format!("the query cannot be read: {cause}"))
    })
}

/// The names that have a value, in their order.
fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, ApiError> {
    let read = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
    let pairs = read.map_err(|error| unreadable(&error))?.0;
    Ok(pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect())
}

fn unreadable(error: &dyn std::error::Error) -> ApiError {
    ApiError::bad_request(format!("the query cannot be read: {}", chain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default)]
    struct Asked {
        limit: Option<usize>,
        #[serde(deserialize_with = "flag")]
        reverse: bool,
        name: Option<String>,
    }

    fn asked(query: &str) -> Result<Asked, ApiError> {
        read(&format!("/x?{query}").parse().unwrap())
    }

    #[test]
    fn booleans_are_spelt_as_every_client_of_bacalhau_spells_them() {
        for text in ["true", "True", "TRUE", "t", "T", "1"] {
            assert!(asked(&format!("reverse={text}")).unwrap().reverse, "{text}");
        }
        for query in ["reverse=False", "reverse=0", "reverse=", "reverse", ""] {
            assert!(!asked(query).unwrap().reverse, "{query}");
        }
        let refused = asked("reverse=maybe").unwrap_err();
        assert!(refused.message.contains("reverse") && refused.message.contains("maybe"), "{refused:?}");
    }

    #[test]
    fn what_is_empty_is_absent_and_what_is_repeated_counts_once() {
        let read = asked("limit=&limit=3&limit=4&name=a%26b&other=1").unwrap();
        assert_eq!(read, Asked { limit: Some(3), reverse: false, name: Some("a&b".into()) });
        assert_eq!(all(&"/?labels=a&x=1&labels=b".parse().unwrap(), "labels"), ["a", "b"]);
    }

    #[test]
    fn a_number_that_is_none_is_refused_by_its_name() {
        let refused = asked("limit=abc").unwrap_err();
        assert_eq!(refused.message.matches("limit").count(), 1, "{refused:?}");
        assert_eq!(refused.status, axum::http::StatusCode::BAD_REQUEST);
    }
}
