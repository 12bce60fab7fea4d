//! Bad input of every kind: a clear error, and nothing has changed.

use std::fs;

use serde_json::json;
use testnet::client::Client;

use super::guests;
use super::net::{Net, within};

/// A CID of bytes that nobody has.
const NOBODYS: &str = "bafybeibzbbkz2yaod26me3umny76d53vrfzhuz4kyett2rqz74z5iumso4";

#[tokio::test]
async fn bad_specs_are_refused_with_their_reason_and_no_job_is_made() {
    let net = Net::up(1, 0).await;
    let shell = net.shell(0);
    let good = |more: &str| {
        format!(
            "Type: batch\n{more}Tasks:\n  - Engine: {{Type: wasm, Params: {{EntryModule: 'ipfs://{NOBODYS}'}}}}\n"
        )
    };
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let bomb = {
        let levels =
            (1..30).map(|level| format!("a{level}: &a{level} [*a{0}, *a{0}, *a{0}, *a{0}]\n", level - 1));
        format!("a0: &a0 [x, x, x, x]\n{}", levels.collect::<String>())
    };
    let cases: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
        ("empty", vec![], vec!["empty"]),
        ("blank", b"\n\n# nothing\n".to_vec(), vec!["empty"]),
        ("binary", vec![0, 159, 146, 150, 255, 0, 1, 2], vec![]),
        ("too large", good(&format!("Name: {}\n", "x".repeat(3 << 20))).into_bytes(), vec![]),
        ("too deep", deep.into_bytes(), vec![]),
        ("an alias bomb", bomb.into_bytes(), vec![]),
        ("not YAML", b"Type: batch\n  Tasks: [\n".to_vec(), vec!["line"]),
        ("an unknown field", good("Colour: blue\n").into_bytes(), vec!["Colour"]),
        (
            "an unknown field at depth",
            good("").replace("EntryModule", "EntryModul").into_bytes(),
            vec!["EntryModul", "Tasks[0].Engine.Params"],
        ),
        ("a wrong count", good("Count: -1\n").into_bytes(), vec!["Count", "-1"]),
        (
            "several errors",
            good("Count: many\nPriority: [1]\nNmae: x\n").into_bytes(),
            vec!["Count", "Priority", "Nmae", "Name"],
        ),
        ("no CID", good("").replace(NOBODYS, "bafynonsense").into_bytes(), vec!["bafynonsense"]),
        ("no tasks", b"Type: batch\n".to_vec(), vec!["Tasks"]),
        ("an unknown type", good("").replace("batch", "bath").into_bytes(), vec!["bath", "batch"]),
    ];
    for (what, spec, words) in cases {
        let path = net.path("job.yaml");
        fs::write(&path, &spec).unwrap();
        let error = shell.refused(&["job", "run", "job.yaml"], b"").await;
        for word in words {
            assert!(error.contains(word), "{what}: no {word:?} in {error}");
        }
        let by_stdin = shell.refused(&["job", "run", "-"], &spec).await;
        assert!(!by_stdin.contains("panicked"), "{what}: {by_stdin}");
    }
    fs::write(net.path("text.wasm"), "this is no module").unwrap();
    let error = shell.refused(&["wasm", "run", "text.wasm"], b"").await;
    assert!(error.contains("text.wasm"), "{error}");
    let error = shell.refused(&["wasm", "run", "nowhere.wasm"], b"").await;
    assert!(error.contains("nowhere.wasm"), "{error}");
    let error = shell.refused(&["job", "run", "nowhere.yaml"], b"").await;
    assert!(error.contains("nowhere.yaml"), "{error}");

    let jobs = shell.json(&["job", "list", "--output", "json"]).await;
    assert_eq!(jobs, json!([]), "a refused job was made");
    assert_eq!(shell.run(&["wasm", "run", "--cpu", "-3", "text.wasm"]).await.code, 1);
}

#[tokio::test]
async fn jobs_that_cannot_work_fail_and_say_what_is_wrong() {
    let net = Net::with(2, 1, json!({"input-timeout": 2, "queue-timeout": 2}), |_| {}).await;
    let shell = net.shell(0);
    let text = net.add(0, "this is no module").await;
    let foreign = net.add(0, guests::wants_foreign_things()).await;
    let startless = net.add(0, guests::has_no_start()).await;
    let hello = net.add(0, guests::says("hello\n", "", 0)).await;
    let cases = [
        ("nobody has it", NOBODYS, vec![], vec![NOBODYS]),
        ("no module", text.as_str(), vec![], vec!["WebAssembly"]),
        ("a foreign import", &foreign, vec![], vec!["abyss", "gaze"]),
        ("nothing to start", &startless, vec![], vec!["_start"]),
        ("constraints that nobody meets", &hello, vec!["--constraints", "moon=full"], vec!["moon"]),
    ];
    for (what, module, flags, words) in cases {
        let module = format!("ipfs://{module}");
        let said = shell.run(&[&["wasm", "run", &module, "--format", "json"], &flags[..]].concat()).await;
        assert_eq!(said.code, 2, "{what}: {said:?}");
        let id = shell.json(&["job", "list", "--limit", "1", "--output", "json"]).await;
        let id = id[0]["ID"].as_str().unwrap().to_owned();
        let described = shell.json(&["job", "describe", &id, "--output", "json"]).await;
        assert_eq!(super::jobs::state(&described), "Failed", "{what}: {described}");
        for word in words {
            assert!(
                super::jobs::message(&described).contains(word),
                "{what}: no {word:?} in {:?}",
                super::jobs::message(&described)
            );
        }
    }
}

#[tokio::test]
async fn the_api_answers_only_callers_that_mean_this_machine() {
    let net = Net::up(1, 0).await;
    let client = net.client(0);
    let status = async |client: &Client| within("alive", client.get("/agent/alive")).await.status;
    assert_eq!(status(&client).await, 200);
    for host in ["example.org", "127.0.0.1.example.org", "192.0.2.1", ""] {
        assert_eq!(status(&client.clone().with_host(host)).await, 403, "{host}");
    }
    let missing = within("a route", client.get("/orchestrator/nonsense")).await;
    assert_eq!(missing.status, 404);
    let bad = within("a body", client.put_bytes("/orchestrator/jobs", "application/json", "{".into())).await;
    assert_eq!(bad.status, 400, "{}", bad.text());
    let huge = within(
        "a body",
        client.put_bytes("/orchestrator/jobs", "application/json", vec![b' '; 4 << 20].into()),
    )
    .await;
    assert!((400..500).contains(&huge.status), "{}", huge.status);
}
