//! Lists in pages, and the tokens that lead from one to the next.

use std::ops::Range;

use data_encoding::BASE64URL_NOPAD;
use gossip::owner::{ExecutionView, JobReader};
use serde_json::{Value, json};

use super::error::ApiError;

/// Items of a page when the client does not say.
pub const LIMIT: usize = 100;
/// Items of a page at the most: bounds the answer's memory.
pub const MOST: usize = 10_000;

/// One page of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Items before it.
    pub offset: usize,
    /// Items in it at the most.
    pub limit: usize,
}

impl Page {
    /// Reads `limit` and `next_token`; without a limit the page has `default` items, with 0 as many as may be.
    pub fn read(limit: Option<usize>, token: Option<&str>, default: usize) -> Result<Self, ApiError> {
        let limit = match limit {
            None => default,
            Some(0) => MOST,
            Some(limit) => limit.min(MOST),
        };
        let offset = match token.filter(|token| !token.is_empty()) {
            None => 0,
            Some(token) => offset(token).ok_or_else(|| {
                ApiError::bad_request(format!("next_token {token:?} is not one of this API's"))
            })?,
        };
        Ok(Page { offset, limit })
    }

    /// The token of the page after this one.
    pub fn next(&self) -> String {
        token(self.limit, self.offset + self.limit)
    }

    /// Executions of this page, and one more if there is one.
    pub fn of_executions(&self, job: &JobReader<'_>) -> Vec<ExecutionView> {
        job.executions(self.offset..self.offset.saturating_add(self.limit).saturating_add(1)).collect()
    }

    /// The items of this page, of which one more says that there is another page.
    pub fn close<T>(&self, mut items: Vec<T>) -> (Vec<T>, String) {
        let more = items.len() > self.limit;
        items.truncate(self.limit);
        (items, if more { self.next() } else { String::new() })
    }

    /// Where this page lies in the rest of a list, so many items of which went before.
    pub fn rest(&self, before: usize) -> Range<usize> {
        let end = self.offset.saturating_add(self.limit);
        self.offset.saturating_sub(before)..end.saturating_sub(before)
    }

    /// Whether something of a list of so many items comes after this page.
    pub fn is_followed(&self, items: usize) -> bool {
        items > self.offset.saturating_add(self.limit)
    }

    /// This page of a whole list.
    pub fn cut<T>(&self, list: Vec<T>) -> (Vec<T>, String) {
        let more = self.is_followed(list.len());
        let items = list.into_iter().skip(self.offset).take(self.limit).collect();
        (items, if more { self.next() } else { String::new() })
    }
}

/// Items and token as every list has them.
pub fn list(items: Vec<Value>, next: &str) -> Value {
    json!({"NextToken": next, "Items": items})
}

/// The constraints of a list's `labels`, which may be given more than once: all of them hold.
pub fn selector(texts: &[String]) -> Result<Vec<job::constraint::Constraint>, ApiError> {
    let mut selector = Vec::new();
    for text in texts {
        let parsed = job::constraint::parse(text);
        selector.extend(parsed.map_err(|error| ApiError::bad_request(format!("labels: {error}")))?);
    }
    Ok(selector)
}

/// Bacalhau's token: raw URL base64 of `sortBy:Y|N:limit:offset`.
pub fn token(limit: usize, offset: usize) -> String {
    BASE64URL_NOPAD.encode(format!(":N:{limit}:{offset}").as_bytes())
}

fn offset(token: &str) -> Option<usize> {
    if token.len() > 64 {
        return None;
    }
    let text = BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
    String::from_utf8(text).ok()?.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_bacalhaus_and_read_back() {
        assert_eq!(token(2, 4), "Ok46Mjo0");
        assert_eq!(Page::read(Some(2), Some("Ok46Mjo0"), 9).unwrap(), Page { offset: 4, limit: 2 });
        assert!(Page::read(None, Some("%%%"), 9).is_err());
    }

    #[test]
    fn the_last_page_has_no_token() {
        let (items, next) = Page { offset: 2, limit: 2 }.cut(vec![1, 2, 3, 4]);
        assert_eq!((items, next.as_str()), (vec![3, 4], ""));
        let (items, next) = Page { offset: 0, limit: 2 }.cut(vec![1, 2, 3]);
        assert_eq!((items, next), (vec![1, 2], token(2, 2)));
    }
}
