//! The nodes that this one knows.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{OriginalUri, Path, State};
use job::constraint::Constraint;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use super::page::{self, Page};
use super::query::{self, Query};
use crate::nodes;
use crate::state::App;

/// Characters of a node's id that are enough to name it.
const PREFIX: usize = 8;

/// The list's query, as Bacalhau has it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct NodesQuery {
    limit: Option<usize>,
    #[serde(rename = "order_by")]
    order_by: Option<String>,
    #[serde(deserialize_with = "query::flag")]
    reverse: bool,
    filter_approval: Option<String>,
    filter_status: Option<String>,
}

/// `GET /orchestrator/nodes`.
pub async fn list(
    State(app): State<App>,
    OriginalUri(uri): OriginalUri,
    Query(query): Query<NodesQuery>,
) -> Result<Json<Value>, ApiError> {
    let selector = page::selector(&query::all(&uri, "labels"))?;
    let order = query.order()?;
    let mut found = nodes::all(&app).await;
    found.retain(|node| query.takes(node) && has_labels(node, &selector));
    if let Some(order) = order {
        found.sort_by(order);
    }
    if query.reverse {
        found.reverse();
    }
    let (found, _) = Page::read(query.limit, None, page::MOST)?.cut(found);
    Ok(Json(json!({"NextToken": "", "Nodes": found})))
}

type Order = fn(&Value, &Value) -> Ordering;

impl NodesQuery {
    fn takes(&self, node: &Value) -> bool {
        let is = |wanted: &Option<String>, is: &Value| {
            wanted
                .as_deref()
                .is_none_or(|wanted| is.as_str().is_some_and(|is| is.eq_ignore_ascii_case(wanted)))
        };
        is(&self.filter_approval, &node["Membership"])
            && is(&self.filter_status, &node["ConnectionState"]["Status"])
    }

    fn order(&self) -> Result<Option<Order>, ApiError> {
        fn text<'a>(node: &'a Value, path: &str) -> &'a str {
            node.pointer(path).and_then(Value::as_str).unwrap_or_default()
        }
        // The most first.
        fn free(one: &Value, other: &Value, key: &str) -> Ordering {
            let amount = |node: &Value| {
                node["Info"]["ComputeNodeInfo"]["AvailableCapacity"][key].as_f64().unwrap_or_default()
            };
            amount(other).total_cmp(&amount(one))
        }
        let order: Order = match self.order_by.as_deref() {
            None => return Ok(None),
            Some("id") => |a, b| text(a, "/Info/NodeID").cmp(text(b, "/Info/NodeID")),
            Some("type") => |a, b| text(a, "/Info/NodeType").cmp(text(b, "/Info/NodeType")),
            Some("approval") => |a, b| text(a, "/Membership").cmp(text(b, "/Membership")),
            Some("status") => {
                |a, b| text(a, "/ConnectionState/Status").cmp(text(b, "/ConnectionState/Status"))
            }
            Some("available_cpu") => |a, b| free(a, b, "CPU"),
            Some("available_memory") => |a, b| free(a, b, "Memory"),
            Some("available_disk") => |a, b| free(a, b, "Disk"),
            Some("available_gpu") => |a, b| free(a, b, "GPU"),
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "order_by {other:?} is none of id, type, approval, status, available_cpu, available_memory, available_disk, available_gpu"
                )));
            }
        };
        Ok(Some(order))
    }
}

fn has_labels(node: &Value, selector: &[Constraint]) -> bool {
    let labels = node["Info"]["Labels"].as_object().into_iter().flatten();
    let labels: BTreeMap<String, String> =
        labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
    job::constraint::matches(selector, &labels)
}

/// `GET /orchestrator/nodes/:id`; the beginning or the end of an id, as lists show it, or a node's name is enough.
pub async fn describe(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let fits = |node: &Value| {
        let name = node["Info"]["NodeID"].as_str().unwrap_or_default();
        let label = node["Info"]["Labels"]["name"].as_str();
        let id = id.strip_prefix('…').unwrap_or(&id);
        name == id
            || label == Some(id)
            || (id.len() >= PREFIX && (name.starts_with(id) || name.ends_with(id)))
    };
    let mut found = nodes::all(&app).await.into_iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(Json(json!({"Node": node}))),
        (Some(_), Some(_)) => Err(ApiError::bad_request(format!("more than one node is meant by {id}"))),
        (None, _) => Err(ApiError::not_found(format!("node not found: {id}"))
            .hint("`cardume node list` shows the nodes that are known here")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_chosen_by_label_and_status_and_ordered() {
        let node = |id: &str, zone: &str, cpu: f64, status: &str| {
            json!({"Info": {"NodeID": id, "Labels": {"zone": zone},
                    "ComputeNodeInfo": {"AvailableCapacity": {"CPU": cpu}}},
                "Membership": "APPROVED", "ConnectionState": {"Status": status}})
        };
        let (one, other) = (node("b", "x", 1.0, "CONNECTED"), node("a", "y", 2.0, "DISCONNECTED"));
        assert!(has_labels(&one, &page::selector(&["zone=x".into()]).unwrap()));
        assert!(!has_labels(&one, &page::selector(&["zone".into(), "zone=y".into()]).unwrap()));
        let query = NodesQuery { filter_status: Some("connected".into()), ..NodesQuery::default() };
        assert!(query.takes(&one) && !query.takes(&other));
        let order = |word: &str| {
            let query = NodesQuery { order_by: Some(word.into()), ..NodesQuery::default() };
            query.order().map(|order| order.unwrap()(&one, &other))
        };
        assert_eq!(order("id").unwrap(), Ordering::Greater);
        assert_eq!(order("available_cpu").unwrap(), Ordering::Greater);
        assert!(order("colour").unwrap_err().message.contains("colour"));
    }
}
