//! `wasm run`.

use serde_json::{Value, json};

use crate::fake::{Answer, CID, Cardume, Fake, ID, NODE, frames, submitted, watched};

const MODULE: &[u8] = b"\0asm\x01\0\0\0";
const ADDED: &str = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";

fn node() -> Fake {
    Fake::start(|asked| match asked.line.split('?').next().unwrap() {
        "PUT /content" => Answer::Json(200, json!({"Cid": ADDED, "Size": 8, "Blocks": 1, "Name": "x"})),
        "PUT /orchestrator/jobs" => submitted(),
        line if line.ends_with("/logs") => Answer::Bytes(frames(&[(1, 0, "hello"), (2, 0, "warn\n")])),
        _ => watched("Completed", 0),
    })
}

fn job_of(fake: &Fake) -> Value {
    fake.find("PUT /orchestrator/jobs").json()["Job"].clone()
}

#[test]
fn a_local_module_is_added_run_and_its_output_streamed() {
    let fake = node();
    let cardume = Cardume::with(&fake);
    cardume.write("hello.wasm", MODULE);
    let ran = cardume.run(&["wasm", "run", "hello.wasm", "--", "a", "--b"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "hello"), "{ran:?}");
    assert!(
        ran.stderr.contains("warn\n") && ran.stderr.contains(&format!("ran on {NODE}, exit code 0")),
        "{ran:?}"
    );
    let upload = fake.find("PUT /content");
    assert_eq!((upload.line.as_str(), upload.body.as_slice()), ("PUT /content?name=hello.wasm", MODULE));
    let task = job_of(&fake)["Tasks"][0].clone();
    let params =
        json!({"EntryModule": "/wasm/entry.wasm", "Entrypoint": "_start", "Parameters": ["a", "--b"]});
    assert_eq!(task["Engine"], json!({"Type": "wasm", "Params": params}));
    assert_eq!(task["InputSources"][0]["Target"], "/wasm/entry.wasm");
    assert_eq!(task["InputSources"][0]["Source"], json!({"Type": "ipfs", "Params": {"CID": ADDED}}));
}

#[test]
fn flags_become_the_job() {
    let fake = node();
    let cardume = Cardume::with(&fake);
    cardume.write("main.wasm", MODULE);
    cardume.write("data/a.txt", "a");
    let module = format!("ipfs://{CID}");
    let input = format!("ipfs://{CID}/sub:/more");
    let ran = cardume.run(&[
        "wasm",
        "run",
        &module,
        "-i",
        "data:/data",
        "--input",
        &input,
        "-i",
        "data/a.txt",
        "-o",
        "outputs:/outputs",
        "-e",
        "KEY=a=b",
        "-p",
        "ipfs",
        "--count",
        "3",
        "--cpu",
        "2",
        "--memory",
        "1GiB",
        "--disk",
        "10mb",
        "--timeout",
        "5m",
        "--queue-timeout",
        "30",
        "--network",
        "none",
        "--constraints",
        "zone in (a,b),!old",
        "--labels",
        "team=x,stage=y",
        "--name",
        "n",
        "--namespace",
        "ns",
        "--priority",
        "-4",
        "--detach",
    ]);
    assert_eq!((ran.code, ran.stdout), (0, format!("{ID}\n")), "{}", ran.stderr);
    let job = job_of(&fake);
    assert_eq!((job["Name"].as_str(), job["Namespace"].as_str()), (Some("n"), Some("ns")));
    assert_eq!((job["Count"].as_i64(), job["Priority"].as_i64()), (Some(3), Some(-4)));
    assert_eq!(job["Labels"], json!({"team": "x", "stage": "y"}));
    assert_eq!(job["Constraints"][0], json!({"Key": "zone", "Operator": "in", "Values": ["a", "b"]}));
    let task = &job["Tasks"][0];
    assert_eq!(task["Env"], json!({"KEY": "a=b"}));
    assert_eq!(task["ResultPaths"], json!([{"Name": "outputs", "Path": "/outputs"}]));
    assert_eq!(task["Timeouts"], json!({"ExecutionTimeout": 300, "QueueTimeout": 30}));
    assert_eq!(task["Resources"]["CPU"], "2");
    let inputs: Vec<(&str, &str)> = task["InputSources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| (input["Source"]["Params"]["CID"].as_str().unwrap(), input["Target"].as_str().unwrap()))
        .collect();
    let sub = format!("{CID}/sub");
    assert_eq!(
        inputs,
        [(ADDED, "/data"), (sub.as_str(), "/more"), (ADDED, "/inputs/a.txt"), (CID, "/wasm/entry.wasm")]
    );
    let uploads: Vec<String> = fake
        .asked()
        .into_iter()
        .filter(|asked| asked.line.starts_with("PUT /content"))
        .map(|asked| asked.content_type)
        .collect();
    assert_eq!(uploads, ["application/x-tar", "application/octet-stream"]);
}

#[test]
fn the_module_may_be_the_target_of_an_input() {
    let fake = node();
    let cardume = Cardume::with(&fake);
    let input = format!("ipfs://{CID}:/app/main.wasm");
    assert_eq!(cardume.run(&["wasm", "run", "/app/main.wasm", "-i", &input, "-d"]).code, 0);
    let task = job_of(&fake)["Tasks"][0].clone();
    assert_eq!(task["Engine"]["Params"]["EntryModule"], "/app/main.wasm");
    assert_eq!(task["InputSources"].as_array().unwrap().len(), 1);
}

#[test]
fn what_cannot_run_is_refused_before_anything_is_sent() {
    let fake = node();
    let cardume = Cardume::with(&fake);
    cardume.write("text.wasm", "(module)");
    cardume.write("empty.wasm", "");
    cardume.write("good.wasm", MODULE);
    for (arguments, part) in [
        (vec!["text.wasm"], "text form"),
        (vec!["empty.wasm"], "empty"),
        (vec!["none.wasm"], "none.wasm: no such file"),
        (vec!["."], "."),
        (vec!["good.wasm", "-i", "nowhere"], "nowhere"),
        (vec!["good.wasm", "-i", "ftp://x"], "ftp"),
        (vec!["good.wasm", "-o", "x"], "NAME:PATH"),
        (vec!["good.wasm", "-e", "lower=x"], "lower"),
        (vec!["good.wasm", "--cpu", "many"], "--cpu"),
        (vec!["good.wasm", "--network", "carrier-pigeon"], "carrier-pigeon"),
        (vec!["good.wasm", "--constraints", "a ~ b"], "--constraints"),
        (vec!["good.wasm", "--labels", "x"], "KEY=VALUE"),
        (vec!["good.wasm", "--count", "3", "--target", "all"], "--target all"),
        (vec!["good.wasm", "--timeout", "soon"], "soon"),
        (vec!["ipfs://nonsense"], "nonsense"),
    ] {
        let ran = cardume.run(&[&["wasm", "run"], arguments.as_slice()].concat());
        assert_eq!(ran.code, 1, "{arguments:?}: {ran:?}");
        assert!(ran.stderr.starts_with("Error: ") && ran.stderr.contains(part), "{arguments:?}: {ran:?}");
    }
    assert!(fake.asked().is_empty(), "{:?}", fake.lines());
}

#[test]
fn with_json_nothing_but_the_document_is_on_stdout() {
    let fake = node();
    let cardume = Cardume::with(&fake);
    cardume.write("a.wasm", MODULE);
    let ran = cardume.run(&["wasm", "run", "a.wasm", "--format", "json"]);
    assert_eq!((ran.code, ran.json()["JobID"].as_str()), (0, Some(ID)), "{ran:?}");
}

#[test]
fn dry_run_only_computes_cids() {
    let fake = node();
    let cardume = Cardume::with(&fake);
    cardume.write("a.wasm", MODULE);
    let ran = cardume.run(&["wasm", "run", "a.wasm", "--dry-run", "--format", "json"]);
    assert_eq!(ran.json()["Tasks"][0]["InputSources"][0]["Source"]["Params"]["CID"], ADDED, "{ran:?}");
    assert_eq!(fake.lines(), ["PUT /content?only-hash=true&name=a.wasm"]);
}
