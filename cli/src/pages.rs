//! Lists of the API, page after page.

use serde_json::Value;

use crate::client::Client;
use crate::content::encode;
use crate::failure::Failure;
use crate::values::{list, number, text};

/// Items that are asked for at once when all are wanted: as many as a node gives with their output.
const PAGE: usize = 1000;

/// Most items of one list: they are printed as one document, which is held in memory.
const MAX_ITEMS: usize = 1_000_000;

/// Items of a list, page after page, and whether there are more than `limit`. The path has a query, or ends with `?`.
pub async fn pages(client: &Client, path: &str, limit: Option<u32>) -> Result<(Vec<Value>, bool), Failure> {
    let most = limit.map_or(MAX_ITEMS, |limit| limit as usize);
    let mut items = Vec::new();
    let mut token = String::new();
    loop {
        let wanted = (most - items.len()).min(PAGE);
        let separator = if path.ends_with('?') { "" } else { "&" };
        let mut page = format!("{path}{separator}limit={wanted}");
        if !token.is_empty() {
            page.push_str(&format!("&next_token={}", encode(&token)));
        }
        let answer = client.get(&page).await?;
        let found = list(&answer, &["Items"]);
        let count = found.len();
        items.extend(found.iter().take(wanted).cloned());
        token = text(&answer, &["NextToken"]).to_owned();
        // The history of a job that has not ended always gives a token: a page that is not full is the last.
        let is_last = token.is_empty() || count < wanted;
        if is_last || items.len() >= most {
            return Ok((items, !is_last));
        }
    }
}

/// Completes a job's executions and history where one answer could not hold them all; `outputs`: with what the
/// executions printed.
pub async fn complete(client: &Client, answer: &mut Value, outputs: bool) -> Result<(), Failure> {
    let route = format!("/orchestrator/jobs/{}", encode(text(answer, &["Job", "ID"])));
    let version = number(answer, &["Job", "Version"]);
    let more = if outputs { "" } else { "&outputs=false" };
    for (part, path) in [
        ("Executions", format!("{route}/executions?job_version={version}{more}")),
        ("History", format!("{route}/history?job_version={version}")),
    ] {
        if is_cut(&answer[part]) {
            let (items, _) = pages(client, &path, None).await?;
            answer[part] = serde_json::json!({ "Items": items, "NextToken": "" });
        }
    }
    Ok(())
}

/// Whether there is more than what is listed, or more than a node gives with its output.
fn is_cut(part: &Value) -> bool {
    !text(part, &["NextToken"]).is_empty() || list(part, &["Items"]).len() > PAGE
}
