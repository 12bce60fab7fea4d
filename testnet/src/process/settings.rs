//! A node's `config.yaml`. JSON values are YAML too, so each key is a line of its own.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::record::{Node, Record};

/// Neighbours on each side that a node is told to dial: enough that the swarm stays in one piece when most of
/// them are away, few enough that starting the n-th node does not cost n connections.
pub(crate) const NEIGHBOURS: usize = 12;

/// The nodes that node `index` dials at its first start, all of which serve by then: so the mesh is one by
/// construction.
pub(crate) fn earlier(index: usize) -> std::ops::Range<usize> {
    index.saturating_sub(NEIGHBOURS)..index
}

/// The nodes that are connected to node `index` once all have started.
pub(crate) fn neighbours(index: usize, nodes: usize) -> impl Iterator<Item = usize> {
    let last = (index + NEIGHBOURS).min(nodes.saturating_sub(1));
    (index.saturating_sub(NEIGHBOURS)..=last).filter(move |other| *other != index)
}

/// Writes the configuration of node `index`, with the addresses of those in `dial` that have one.
pub(crate) fn write(
    dir: &Path,
    record: &Record,
    index: usize,
    dial: impl Iterator<Item = usize>,
    more: &Map<String, Value>,
) -> anyhow::Result<()> {
    let node = record.nodes.get(index).context("no such node")?;
    let bootstrap: Vec<String> =
        dial.filter_map(|other| record.nodes.get(other)).flat_map(reachable).collect();
    let trusted: Vec<&str> = record.nodes.iter().map(|node| node.peer.as_str()).collect();
    let mut settings = Map::new();
    settings.insert("swarm".into(), json!(record.swarm));
    settings.insert("listen".into(), json!(listen(node)));
    settings.insert("api".into(), json!(node.api.strip_prefix("http://").unwrap_or("127.0.0.1:0")));
    settings.insert("bootstrap".into(), json!(bootstrap));
    settings.insert("worker".into(), json!(node.worker));
    settings.insert("trusted".into(), json!(trusted));
    settings.extend(more.clone());
    settings.insert("labels".into(), labels(&node.name, more));
    let text: String = settings.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
    let path = node.data_dir(dir).join("config.yaml");
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The labels that the node was given, and its name in this network.
fn labels(name: &str, more: &Map<String, Value>) -> Value {
    let mut labels = more.get("labels").and_then(Value::as_object).cloned().unwrap_or_default();
    labels.entry("name").or_insert_with(|| name.into());
    Value::Object(labels)
}

/// Loopback only; the port is the kernel's choice at the first start and stays the same from then on.
fn listen(node: &Node) -> Vec<String> {
    if node.addresses.is_empty() {
        return vec!["/ip4/127.0.0.1/tcp/0".into()];
    }
    node.addresses.iter().map(|address| without_peer(address).to_owned()).collect()
}

/// A node's addresses with its identity, as others dial them.
fn reachable(node: &Node) -> Vec<String> {
    node.addresses.iter().map(|address| format!("{}/p2p/{}", without_peer(address), node.peer)).collect()
}

fn without_peer(address: &str) -> &str {
    address.split_once("/p2p/").map_or(address, |(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_of_a_large_network_has_enough_neighbours_and_dials_only_earlier_ones() {
        for nodes in 1..60 {
            for index in 0..nodes {
                let around: Vec<usize> = neighbours(index, nodes).collect();
                assert!(around.len() >= NEIGHBOURS.min(nodes - 1), "{index} of {nodes}");
                for other in around {
                    assert!(earlier(index).contains(&other) || earlier(other).contains(&index));
                }
                assert!(earlier(index).all(|other| other < index));
            }
        }
    }
}
