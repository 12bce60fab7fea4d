//! Files and folders by CID, from node to node.

use std::fs;
use std::path::Path;

use super::net::{Net, PROGRAM};
use super::shell::Shell;

/// CIDs that the newest Kubo gives, in its profile of 2025.
const EMPTY: &str = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
const MIB: &str = "bafkreih3xkzit57zjmsxg3cyxzdktfgeih6qevjmyybcguxd3bws7k34qm";
const MIB1: &str = "bafybeibzbbkz2yaod26me3umny76d53vrfzhuz4kyett2rqz74z5iumso4";
const BIG: &str = "bafybeiacq3hw25cm5xbgoa2xdnvygw44hilsc5gt6l32mjwvct2ew7qvh4";

#[tokio::test]
async fn files_and_folders_added_at_one_node_are_the_same_at_another() {
    let net = Net::up(3, 1).await;
    let (here, there) = (net.shell(0), net.shell(2));

    let mib: Vec<u8> = (0..=255u8).collect::<Vec<_>>().repeat(4096);
    let mib1 = [&mib[..], b"!"].concat();
    for (name, bytes, cid) in [("empty", &b""[..], EMPTY), ("mib", &mib, MIB), ("mib1", &mib1, MIB1)] {
        fs::write(net.path(name), bytes).unwrap();
        assert_eq!(added(&here, name).await, cid, "{name}");
        there.ok(&["data", "get", cid, "--output-dir", &format!("{name}.copy")]).await;
        assert!(fs::read(net.path(&format!("{name}.copy"))).unwrap() == bytes, "{name} differs");
    }

    let tree = net.path("tree");
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("text"), "some text\n").unwrap();
    fs::write(tree.join("sub/mib1"), &mib1).unwrap();
    std::os::unix::fs::symlink("sub/mib1", tree.join("link")).unwrap();
    let cid = added(&here, "tree").await;
    there.ok(&["data", "get", &cid, "--output-dir", "tree.copy"]).await;
    let copy = net.path("tree.copy");
    assert_eq!(fs::read(copy.join("text")).unwrap(), b"some text\n");
    assert!(fs::read(copy.join("sub/mib1")).unwrap() == mib1);
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("sub/mib1"));
    assert!(copy.join("sub/empty").is_dir());
    assert_eq!(added(&there, "tree.copy").await, cid, "the copy is another folder");

    assert_eq!(there.ok(&["data", "cat", &format!("{cid}/text")]).await, "some text\n");
    let list = there.json(&["data", "ls", &cid, "--output", "json"]).await;
    let list: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["Name"].as_str().unwrap(), entry["Type"].as_str().unwrap()))
        .collect();
    assert_eq!(list, [("link", "symlink"), ("sub", "directory"), ("text", "file")]);
    let stat = there.json(&["data", "stat", &format!("{cid}/sub/mib1"), "--output", "json"]).await;
    assert_eq!((stat["Cid"].as_str(), stat["Type"].as_str()), (Some(MIB1), Some("file")));
    assert_eq!(stat["Size"], mib1.len());
    net.down().await;
}

#[tokio::test]
async fn a_folder_of_thousands_is_the_same_at_another_node() {
    let net = Net::up(2, 1).await;
    let big = net.path("big");
    fs::create_dir(&big).unwrap();
    let name = |i: u32| format!("name-that-is-rather-long-so-that-the-directory-shards-{i:05}");
    for i in 0..6000 {
        fs::write(big.join(name(i)), i.to_string()).unwrap();
    }
    assert_eq!(added(&net.shell(0), "big").await, BIG);
    let there = net.shell(1);
    assert_eq!(there.ok(&["data", "cat", &format!("{BIG}/{}", name(4321))]).await, "4321");
    there.ok(&["data", "get", BIG, "--output-dir", "big.copy"]).await;
    for i in 0..6000 {
        assert_eq!(fs::read_to_string(net.path("big.copy").join(name(i))).unwrap(), i.to_string());
    }
    assert_eq!(fs::read_dir(net.path("big.copy")).unwrap().count(), 6000);
}

#[tokio::test]
async fn content_that_nobody_has_is_an_error_that_names_it() {
    let net = Net::with(2, 1, serde_json::json!({"input-timeout": 2}), |_| {}).await;
    let shell = net.shell(0);
    for verb in ["cat", "get", "ls", "stat"] {
        let error = shell.refused(&["data", verb, MIB1], b"").await;
        assert!(error.contains(MIB1), "{verb}: {error}");
    }
    assert!(!net.path(MIB1).exists(), "something was left");
    let error = shell.refused(&["data", "cat", "bafynonsense"], b"").await;
    assert!(error.contains("bafynonsense"), "{error}");
}

#[tokio::test]
async fn only_hashing_names_content_without_keeping_it() {
    let net = Net::with(1, 0, serde_json::json!({"input-timeout": 1}), |_| {}).await;
    let shell = net.shell(0);
    let cid = shell.ok(&["data", "add", PROGRAM, "--only-hash"]).await;
    let cid = cid.lines().last().unwrap();
    let error = shell.refused(&["data", "stat", cid], b"").await;
    assert!(error.contains(cid), "{error}");
}

/// The CID on the last line of `data add`.
async fn added(shell: &Shell, name: &str) -> String {
    let said = shell.ok(&["data", "add", name]).await;
    said.lines().last().unwrap_or_else(|| panic!("no CID for {name}")).to_owned()
}
