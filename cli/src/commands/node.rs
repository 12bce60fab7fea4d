//! `node list` and `node describe`.

use serde_json::Value;

use crate::args::{Global, Node, Output};
use crate::content::encode;
use crate::failure::{Outcome, exit};
use crate::output::{Format, Report, Table, print, print_document, yaml};
use crate::target::{Fallback, Session};
use crate::units::{show_bytes, show_rfc3339};
use crate::values::{list, short_peer, text};

/// Runs a verb about peers.
pub async fn run(global: &Global, verb: &Node) -> Outcome {
    match verb {
        Node::List(output) => list_nodes(global, output).await,
        Node::Describe { id, output } => describe(global, id, output).await,
    }
}

async fn list_nodes(global: &Global, output: &Output) -> Outcome {
    let session = Session::open(global, Fallback::None).await?;
    let answer = session.client.get("/orchestrator/nodes").await?;
    let nodes = list(&answer, &["Nodes"]).to_vec();
    let format = output.format.unwrap_or_default();
    let table = || table(&nodes, format == Format::Csv);
    Report { value: Value::Array(nodes.clone()), table }.print(format)?;
    Ok(exit::DONE)
}

async fn describe(global: &Global, id: &str, output: &Output) -> Outcome {
    let session = Session::open(global, Fallback::None).await?;
    let answer = session.client.get(&format!("/orchestrator/nodes/{}", encode(id))).await?;
    let node = &answer["Node"];
    match output.format.unwrap_or_default() {
        // As in Bacalhau: the whole of it is best read as YAML.
        Format::Table => print(&crate::output::printable(&yaml::to_yaml(node)))?,
        Format::Csv => print(&table(std::slice::from_ref(node), true).to_csv())?,
        format => print_document(node, format)?,
    }
    Ok(exit::DONE)
}

fn table(nodes: &[Value], whole_ids: bool) -> Table {
    let mut table = Table::new([
        "ID",
        "NAME",
        "TYPE",
        "STATUS",
        "ENGINES",
        "CPU",
        "MEMORY",
        "DISK",
        "GPU",
        "RUNNING",
        "LAST SEEN (UTC)",
    ]);
    for node in nodes {
        let id = text(node, &["Info", "NodeID"]);
        let compute = &node["Info"]["ComputeNodeInfo"];
        let engines: Vec<&str> =
            list(compute, &["ExecutionEngines"]).iter().filter_map(Value::as_str).collect();
        table.row([
            if whole_ids { id.to_owned() } else { short_peer(id) },
            name(node).to_owned(),
            text(node, &["Info", "NodeType"]).to_owned(),
            text(node, &["ConnectionState", "Status"]).to_owned(),
            engines.join(" "),
            amounts(compute, "CPU", |value| format!("{value:.1}")),
            amounts(compute, "Memory", |value| show_bytes(value as u64)),
            amounts(compute, "Disk", |value| show_bytes(value as u64)),
            amounts(compute, "GPU", |value| format!("{value:.0}")),
            compute["RunningExecutions"].as_u64().unwrap_or_default().to_string(),
            show_rfc3339(text(node, &["ConnectionState", "LastHeartbeat"])),
        ]);
    }
    table
}

/// A name that somebody gave it; nothing where that is only its id again.
fn name(node: &Value) -> &str {
    let name = text(node, &["Info", "Labels", "name"]);
    if name == text(node, &["Info", "NodeID"]) { "" } else { name }
}

/// Free of total; nothing where a node has none.
fn amounts(compute: &Value, key: &str, show: impl Fn(f64) -> String) -> String {
    let amount = |part: &str| compute[part][key].as_f64();
    match (amount("AvailableCapacity"), amount("MaxCapacity")) {
        (free, Some(total)) if total > 0.0 => format!("{}/{}", show(free.unwrap_or(0.0)), show(total)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_one_row_with_free_and_total_resources() {
        let node = json!({
            "Info": {"NodeID": "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA", "NodeType": "Compute", "Labels": {"name": "n1"},
                "ComputeNodeInfo": {"ExecutionEngines": ["wasm"], "MaxCapacity": {"CPU": 2.0, "Memory": 1073741824}, "AvailableCapacity": {"CPU": 1.5, "Memory": 536870912}, "RunningExecutions": 1}},
            "ConnectionState": {"Status": "CONNECTED", "LastHeartbeat": "2026-11-22T08:04:13.308Z"},
        });
        let text = table(&[node], false).to_text();
        let row: Vec<&str> =
            text.lines().nth(1).unwrap().split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(
            row,
            [
                "…eQAJU5SA",
                "n1",
                "Compute",
                "CONNECTED",
                "wasm",
                "1.5/2.0",
                "512.0 MiB/1.0 GiB",
                "1",
                "2026-11-22 08:04:13"
            ]
        );
        table(&[json!(null)], true);
    }
}
