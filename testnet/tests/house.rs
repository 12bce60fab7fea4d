//! The shape of the house (DESIGN section 2): who may import whom, and who alone names which library.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::Command;

/// For each of our crates, those of ours that it may import.
const ARROWS: [(&str, &[&str]); 8] = [
    ("job", &[]),
    ("gossip", &["job"]),
    ("p2p", &[]),
    ("storage", &["job"]),
    ("engines", &["job"]),
    ("node", &["job", "gossip", "p2p", "storage", "engines"]),
    ("testnet", &["job", "gossip"]),
    ("cli", &["job", "node", "testnet"]),
];

/// Libraries that exactly one of our crates may name.
const KEEPERS: [(&str, &str); 7] = [
    ("libp2p", "p2p"),
    ("redb", "storage"),
    ("bollard", "engines"),
    ("wasmtime", "engines"),
    ("wasmtime-wasi", "engines"),
    ("clap", "cli"),
    ("clap_complete", "cli"),
];

/// Crates that do no I/O of their own: each carries a `clippy.toml` that bans clocks, threads and `HashMap`.
const PURE: [&str; 2] = ["job", "gossip"];

#[test]
fn every_crate_imports_only_what_the_design_allows() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let packages = dependencies();
    assert_eq!(packages.len(), ARROWS.len(), "a crate is not on the map: {:?}", packages.keys());
    for (package, dependencies) in &packages {
        for dependency in dependencies.iter().filter(|name| allowed.contains_key(name.as_str())) {
            assert!(
                allowed[package.as_str()].contains(&dependency.as_str()),
                "{package} may not import {dependency}"
            );
        }
    }
}

#[test]
fn each_outside_library_has_one_keeper() {
    for (package, dependencies) in dependencies() {
        for (library, keeper) in KEEPERS {
            assert!(
                package == keeper || !dependencies.iter().any(|name| name == library),
                "{package} names {library}; only {keeper} may"
            );
        }
    }
}

#[test]
fn pure_crates_know_no_runtime_and_ban_clocks() {
    let packages = dependencies();
    for pure in PURE {
        for impure in ["tokio", "futures", "rustix", "getrandom", "libc"] {
            assert!(!packages[pure].iter().any(|name| name == impure), "{pure} names {impure}");
        }
        let path = format!("{}/../{pure}/clippy.toml", env!("CARGO_MANIFEST_DIR"));
        let bans = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        for banned in ["std::time::Instant", "std::time::SystemTime", "std::thread", "HashMap"] {
            assert!(bans.contains(banned), "{path} does not ban {banned}");
        }
    }
}

/// Our crates with the names of what they depend on to be built (not for their tests).
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    list(&metadata["packages"])
        .iter()
        .map(|package| {
            let normal = list(&package["dependencies"]).into_iter().filter(|entry| entry["kind"].is_null());
            (text(&package["name"]), normal.map(|entry| text(&entry["name"])).collect())
        })
        .collect()
}
