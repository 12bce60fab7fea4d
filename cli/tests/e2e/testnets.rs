//! `cardume testnet`.

use serde_json::Value;
use testnet::client::Client;

use super::net::{Place, within};
use super::shell::Shell;

#[tokio::test]
async fn a_test_network_outlives_its_starter_obeys_signals_and_leaves_nothing() {
    let _place = tokio::task::spawn_blocking(Place::take).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("net");
    let _guard = Guard(dir.clone());
    let shell = Shell::alone(&root.path().join("unused"));
    let dir = dir.to_str().unwrap();
    let testnet = async |verb: &[&str]| {
        shell.json(&[&["testnet"], verb, &["--dir", dir, "--output", "json"]].concat()).await
    };

    let state = testnet(&["up", "--nodes", "3", "--submit-only", "1"]).await;
    let nodes = state["nodes"].as_array().unwrap();
    assert_eq!(names(&state), ["n0", "n1", "n2"]);
    assert_eq!(field(&state, "worker"), [false, true, true]);
    assert_eq!(field(&state, "state"), ["running", "running", "running"]);
    for node in nodes {
        let api = node["api"].as_str().unwrap();
        let client = Client::new(api).unwrap();
        let told = within("agent/node", async { client.get("/agent/node").await?.ok() }).await;
        assert_eq!(told["NodeID"], node["peer"]);
        assert!(node["pid"].is_u64() && std::path::Path::new(node["log"].as_str().unwrap()).is_file());
        assert!(std::path::Path::new(node["data_dir"].as_str().unwrap()).is_dir());
    }

    let again = shell.refused(&["testnet", "up", "--nodes", "3", "--dir", dir], b"").await;
    assert!(again.contains("already runs"), "{again}");
    let unknown = shell.refused(&["testnet", "kill", "n9", "--dir", dir], b"").await;
    assert!(unknown.contains("n9"), "{unknown}");

    testnet(&["pause", "n2"]).await;
    testnet(&["kill", "n1"]).await;
    assert_eq!(field(&testnet(&["status"]).await, "state"), ["running", "killed", "paused"]);
    testnet(&["resume", "n2"]).await;
    testnet(&["stop", "n0"]).await;
    assert_eq!(field(&testnet(&["status"]).await, "state"), ["stopped", "killed", "running"]);
    testnet(&["restart", "n1"]).await;
    testnet(&["restart", "n0"]).await;
    let after = testnet(&["status"]).await;
    assert_eq!(field(&after, "state"), ["running", "running", "running"]);
    assert_eq!((field(&after, "api"), field(&after, "peer")), (field(&state, "api"), field(&state, "peer")));

    testnet(&["pause", "n2"]).await;
    let down = testnet(&["down", "--purge"]).await;
    assert_eq!(field(&down, "state"), ["stopped", "stopped", "stopped"]);
    for pid in field(&after, "pid") {
        // Its entry stays until the system's first process has taken note.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        assert!(status.is_empty() || status.contains("State:\tZ"), "{pid} is left: {status}");
    }
    assert!(!std::path::Path::new(dir).exists());
}

struct Guard(std::path::PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = testnet::process::kill_all(&self.0);
    }
}

fn names(state: &Value) -> Vec<String> {
    field(state, "name").iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn field(state: &Value, name: &str) -> Vec<Value> {
    state["nodes"].as_array().unwrap().iter().map(|node| node[name].clone()).collect()
}
