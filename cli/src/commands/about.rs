//! `version`, `completion` and `id`: what needs no node.

use clap::CommandFactory;
use serde_json::{Value, json};

use crate::args::{Cli, Global, Output};
use crate::client::{Client, Endpoint};
use crate::embedded;
use crate::failure::{Outcome, exit};
use crate::output::{Format, Report, Table, print, write_bytes};
use crate::target::{data_dir, named};
use crate::values::text;

/// `version`.
pub fn version(output: &Output) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    let value = node::api::agent::build();
    match output.format.unwrap_or_default() {
        Format::Table => print(&format!("cardume {version}\n"))?,
        format => {
            let table = || Table::pairs([("Product", "cardume"), ("GitVersion", version)]);
            Report { value, table }.print(format)?;
        }
    }
    Ok(exit::DONE)
}

/// `completion SHELL`.
pub fn completion(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cardume", &mut script);
    write_bytes(&script)?;
    Ok(exit::DONE)
}

/// `id`: of the node that was named, else of the data directory, which needs none that runs.
pub async fn id(global: &Global, output: &Output) -> Outcome {
    if let Some(client) = named(global).await? {
        let node = client.get("/agent/node").await?;
        let addresses = node["Addresses"].as_array().cloned().unwrap_or_default();
        return print_id(text(&node, &["NodeID"]), addresses, None, output);
    }
    let data_dir = data_dir(global)?;
    let (peer, key) = embedded::identity(&data_dir)?;
    let addresses = addresses(&data_dir, &peer).await;
    print_id(&peer, addresses, Some(&key.display().to_string()), output)
}

/// Prints an id; `key` is its file, where that is on this machine.
fn print_id(peer: &str, addresses: Vec<Value>, key: Option<&str>, output: &Output) -> Outcome {
    match output.format.unwrap_or_default() {
        Format::Table => print(&format!("{peer}\n"))?,
        format => {
            let value = json!({ "peer": peer, "addrs": addresses, "key": key });
            let table = || {
                let mut table = Table::new(["PEER", "KEY"]);
                table.row([peer, key.unwrap_or_default()]);
                table
            };
            Report { value, table }.print(format)?;
        }
    }
    Ok(exit::DONE)
}

/// Addresses of the node that runs on a data directory; none when none runs.
async fn addresses(data_dir: &std::path::Path, peer: &str) -> Vec<Value> {
    let ask = async {
        let client = Client::connect(Endpoint::Unix(embedded::api_socket(data_dir))).await.ok()?;
        client.get("/agent/node").await.ok()
    };
    match ask.await {
        Some(node) if text(&node, &["NodeID"]) == peer => {
            node["Addresses"].as_array().cloned().unwrap_or_default()
        }
        _ => Vec::new(),
    }
}
