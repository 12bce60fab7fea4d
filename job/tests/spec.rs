//! Specs as users write them: the valid ones mean what they say, and each bad one is refused with every reason.

use job::constraint::Operator;
use job::resources::Resources;
use job::spec::*;
use job::text;
use serde_json::{Value, json};

macro_rules! fixtures {
    ($($name:literal),+ $(,)?) => { [$(($name, include_str!(concat!("fixtures/", $name)))),+] };
}

const VALID: [(&str, &str); 6] = fixtures![
    "valid/smallest.yaml",
    "valid/full.yaml",
    "valid/lower-case-docker.yaml",
    "valid/anchors.yaml",
    "valid/legacy-wasm.json",
    "valid/ops.yaml",
];

const BAD: [(&str, &str); 21] = fixtures![
    "bad/unknown-fields.yaml",
    "bad/several.yaml",
    "bad/unknown-engine.yaml",
    "bad/engine-params.yaml",
    "bad/docker-params.yaml",
    "bad/sources.yaml",
    "bad/results.yaml",
    "bad/server-fields.yaml",
    "bad/wrong-types.yaml",
    "bad/zero-count.yaml",
    "bad/huge-count.yaml",
    "bad/same-field-twice.yaml",
    "bad/duplicate-key.yaml",
    "bad/syntax.yaml",
    "bad/two-documents.yaml",
    "bad/alias-bomb.yaml",
    "bad/scalar.yaml",
    "bad/empty.yaml",
    "bad/tag.yaml",
    "bad/json-comma.json",
    "bad/taken-names.yaml",
];

fn read(name: &str) -> JobSpec {
    let (_, text) = VALID.iter().find(|(known, _)| known.contains(name)).expect("a fixture");
    JobSpec::from_text(text.as_bytes()).unwrap_or_else(|errors| panic!("{name}:\n{errors}"))
}

#[test]
fn every_bad_file_is_refused_with_all_that_is_wrong_and_where() {
    for (name, text) in BAD {
        let errors = JobSpec::from_text(text.as_bytes()).map(|_| ()).expect_err(name);
        let report = errors.to_string();
        for line in text.lines() {
            if let Some(expected) = line.strip_prefix("# expect: ") {
                assert!(report.contains(expected), "{name}: expected {expected}\nin\n{report}");
            }
            if let Some(count) = line.strip_prefix("# expect-count: ") {
                assert_eq!(errors.iter().count().to_string(), count, "{name}:\n{report}");
            }
        }
        assert!(!report.is_empty() && report.lines().all(|line| line.len() < 600), "{name}:\n{report}");
    }
}

#[test]
fn the_example_jobs_are_filled_read_and_can_run() {
    let cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku".to_owned();
    let values = ["module", "python", "script", "corpus"].map(|name| (name.to_owned(), cid.clone())).into();
    for text in
        [include_str!("../../examples/hello/job.yaml"), include_str!("../../examples/wordcount/job.yaml")]
    {
        let filled = job::template::fill(text, &values).unwrap();
        let spec = JobSpec::from_text(filled.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
        assert!(spec.supported().is_ok());
        let report = JobSpec::from_text(text.as_bytes()).unwrap_err().to_string();
        assert!(report.contains("is not a CID"), "{report}");
    }
}

#[test]
fn json_errors_have_line_and_column() {
    let (_, text) = BAD[19];
    let report = JobSpec::from_text(text.as_bytes()).unwrap_err().to_string();
    assert_eq!(report, "cannot be read: expected a key in double quotes, found '}' (line 4, column 1)");
}

#[test]
fn valid_files_survive_every_form() {
    for (name, _) in VALID {
        let spec = read(name);
        let bytes = spec.to_canonical();
        assert_eq!(JobSpec::from_canonical(&bytes).unwrap(), spec, "{name}");
        let (again, warnings) = JobSpec::from_api_value(&spec.to_api_json()).unwrap();
        assert_eq!((&again, warnings), (&spec, vec![]), "{name}");
        assert_eq!(again.spec_cid(), spec.spec_cid());
        let text = serde_json::to_vec_pretty(&spec.to_api_json()).unwrap();
        assert_eq!(JobSpec::from_text(&text).unwrap(), spec, "{name}");
    }
}

#[test]
fn what_is_not_said_has_its_default() {
    let spec = read("smallest");
    assert_eq!((spec.name.as_str(), spec.namespace.as_str(), spec.count), ("", "default", 1));
    assert_eq!(spec.task.name, "main");
    assert_eq!(spec.task.resources, Resources { cpu_milli: 500, memory: 512_000_000, disk: 0, gpu: 0 });
    assert_eq!(spec.task.publisher, Publisher::None);
    assert_eq!(spec.task.retry, RetryPolicy { policy: Retry::Default, max_attempts: 3 });
    let (index, module) = spec.task.module_input().unwrap();
    assert_eq!((index, module.target.as_str()), (0, ENTRY_MODULE_TARGET));
    assert!(matches!(&spec.task.engine, Engine::Wasm(wasm) if wasm.entrypoint == "_start"));
    assert!(spec.supported().is_ok());
}

#[test]
fn everything_that_is_said_is_kept() {
    let spec = read("full");
    assert_eq!((spec.name.as_str(), spec.namespace.as_str()), ("word-count", "lab"));
    assert_eq!((spec.priority, spec.count), (10, 100));
    assert_eq!(spec.constraints[1].operator, Operator::In);
    assert!(spec.constraints[2].is_soft());
    let task = &spec.task;
    assert_eq!(task.resources, Resources { cpu_milli: 250, memory: 64 << 20, disk: 1_000_000_000, gpu: 0 });
    assert_eq!(task.timeouts, Timeouts { execution: 60, queue: 30, total: 120 });
    assert_eq!(task.retry, RetryPolicy { policy: Retry::Never, max_attempts: 1 });
    assert_eq!(task.keep_on, KeepOn::Worker);
    assert!(matches!(&task.inputs[2].source, Source::Ipfs(content) if content.path == "sub"));
    assert!(task.is_module("/code/count.wasm") && !task.is_module("/in"));
    assert_eq!(
        (task.inputs[3].target.as_str(), task.results[0].path.as_str()),
        ("/notes/extra.txt", "/outputs")
    );
    assert!(spec.supported().is_ok());
}

#[test]
fn old_forms_become_the_new_ones() {
    let spec = read("legacy-wasm");
    let Engine::Wasm(wasm) = &spec.task.engine else { panic!() };
    assert_eq!((wasm.module.as_str(), wasm.entrypoint.as_str()), (ENTRY_MODULE_TARGET, "main"));
    assert_eq!(wasm.imports, ["/wasm/imports/module_0.wasm"]);
    let report = spec.supported().unwrap_err().to_string();
    assert!(report.starts_with("Tasks[0].Engine.Params.ImportModules: this version cannot run"), "{report}");
    assert_eq!(wasm.parameters, ["😀", "a/b"]);
    assert_eq!(spec.task.inputs.len(), 2);
    assert_eq!(read("anchors").task.network.kind, NetworkType::Host);
    assert_eq!(read("ops").task.publisher, Publisher::Ipfs);
    assert_eq!(read("ops").count, 0);
    assert_eq!(read("lower-case").task.network.domains, ["example.org", ".example.com"]);
}

#[test]
fn what_cannot_run_yet_is_named_in_full() {
    let report = read("anchors").supported().unwrap_err().to_string();
    for part in [
        "Type: this version cannot run service jobs yet; supported: batch",
        "Tasks[0].Engine.Type: this version cannot run the docker engine yet; supported: wasm",
        "Tasks[0].InputSources[0].Source.Type: this version cannot run s3 sources yet; supported: ipfs, inline",
        "Tasks[0].Publisher.Type: this version cannot run the s3 publisher yet",
        "Tasks[0].Network.Type: this version cannot run Host networks yet",
    ] {
        assert!(report.contains(part), "{part}\nin\n{report}");
    }
}

#[test]
fn errors_found_later_are_placed_too() {
    let document = text::parse(
        b"Type: batch\nTasks:\n  - Engine: {Type: docker, Params: {Image: x}}\n    Env: {A: 'env:HOME'}",
    )
    .unwrap();
    let (spec, _) = JobSpec::from_document(&document, Mode::File).unwrap();
    let report = spec.supported().unwrap_err().located_in(&document).to_string();
    assert!(
        report.contains(
            "Tasks[0].Engine.Type: this version cannot run the docker engine yet (line 3, column 14)"
        )
    );
    assert!(
        report.contains(
            "Tasks[0].Env.A: this version cannot run with variables of its worker's own yet (line 4"
        )
    );
}

#[test]
fn specs_put_together_by_code_are_checked_like_any_other() {
    let mut spec = JobSpec::new(JobType::Batch, Task::new(Engine::Wasm(WasmEngine::default())));
    assert!(spec.validate().unwrap_err().to_string().contains("target path cannot be empty"));
    spec.task.engine = Engine::Docker(DockerEngine { image: "x".to_owned(), ..DockerEngine::default() });
    assert!(spec.validate().is_ok());
}

#[test]
fn inline_inputs_become_content() {
    let spec = read("full");
    let inline = spec.inline_inputs();
    assert_eq!(inline, [InlineInput { index: 3, bytes: b"hello".to_vec(), is_gzip_tar: false }]);
    let cid = job::content::parse_cid("bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku").unwrap();
    let named = spec.with_input_cid(3, cid).with_input_cid(99, cid);
    assert_eq!(named.task.inputs[3].source, Source::Ipfs(ContentPath::root(cid)));
    assert!(named.inline_inputs().is_empty() && named.validate().is_ok());
}

#[test]
fn api_bodies_may_hold_what_a_server_answered() {
    let mut value = read("full").to_api_json();
    value["ID"] = json!("j-1");
    value["State"] = json!({"StateType": "Completed", "Message": ""});
    value["Version"] = json!(1);
    value["Revision"] = json!(0);
    value["Meta"]["bacalhau.org/requester.id"] = json!("node-0");
    value["Meta"]["cardume.org/owner.id"] = json!("12D3");
    let (spec, warnings) = JobSpec::from_api_value(&value).unwrap();
    assert_eq!(spec, read("full"));
    assert_eq!(warnings.len(), 5, "{warnings:?}");
    assert!(warnings.contains(&"job State is ignored when submitting a job".to_owned()));
    value["Nmae"] = json!("x");
    assert!(JobSpec::from_api_value(&value).unwrap_err().to_string().contains("did you mean 'Name'?"));
}

#[test]
fn api_form_has_bacalhaus_names() {
    let value = read("full").to_api_json();
    let task = &value["Tasks"][0];
    assert_eq!(task["Resources"], json!({"CPU": "250m", "Memory": "64mib", "Disk": "1gb"}));
    assert_eq!(task["Timeouts"], json!({"ExecutionTimeout": 60, "QueueTimeout": 30, "TotalTimeout": 120}));
    assert_eq!(task["Engine"]["Params"]["EntryModule"], "/code/count.wasm");
    assert_eq!(task["InputSources"][0]["Source"]["Type"], "ipfs");
    assert_eq!(task["Network"], json!({"Type": "None"}));
    assert_eq!(task["Publisher"], json!({"Type": "ipfs"}));
    assert_eq!(value["Constraints"][0], json!({"Key": "os_type", "Operator": "=", "Values": ["linux"]}));
    let smallest = read("smallest").to_api_json();
    assert_eq!(smallest["Tasks"][0]["Publisher"], json!({"Type": ""}));
    assert_eq!(smallest["Tasks"][0]["Timeouts"], json!({}));
    assert_eq!(smallest["Count"], 1);
}

#[test]
fn recorded_body_of_bacalhaus_api_is_read() {
    let body = json!({"Type": "batch", "Namespace": "default", "Count": 2, "Tasks": [{"Name": "main",
        "Engine": {"Type": "wasm", "Params": {"EntryModule": "main.wasm", "EntryPoint": "_start"}},
        "InputSources": [{"Target": "main.wasm", "Source": {"Type": "inline",
            "Params": {"URL": "data:application/wasm;base64,AGFzbQEAAAA="}}}],
        "Resources": {"CPU": "10m", "Memory": "16Mb"}, "Publisher": {"Type": "local"},
        "ResultPaths": [{"Name": "outputs", "Path": "/outputs"}]}], "Name": "hello", "Labels": {"team": "x"}});
    let (spec, warnings) = JobSpec::from_api_value(&body).unwrap();
    assert!(warnings.is_empty());
    assert!(spec.supported().is_ok());
    let value = spec.to_api_json();
    assert_eq!(value["Tasks"][0]["Resources"], json!({"CPU": "10m", "Memory": "16mb"}));
}

/// A WASM job with more of its task.
fn wasm_job(more: Value) -> Value {
    let mut job = json!({"Type": "batch", "Tasks": [{"Engine": {"Type": "wasm", "Params": {
        "EntryModule": "ipfs://bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"}}}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        job["Tasks"][0][key] = value.clone();
    }
    job
}

fn file(target: &str) -> Value {
    json!({"Target": target, "Source": {"Type": "inline", "Params": {"URL": "data:,x"}}})
}

#[test]
fn what_no_worker_could_run_is_refused_before_it_is_a_job() {
    let module = "ipfs://bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    let params = |more: Value| {
        let mut params = json!({"EntryModule": module});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"Engine": {"Type": "wasm", "Params": params}})
    };
    let files: Vec<Value> = (0..33).map(|index| file(&format!("/in{index}/x"))).collect();
    let cases = [
        (
            json!({"InputSources": [file("data")]}),
            "Tasks[0].InputSources[0].Target: the target \"data\" must be",
        ),
        (json!({"InputSources": files}), "33 inputs and results beside the module"),
        (json!({"InputSources": [file("/a/x"), file("//a/x/")]}), "already exists"),
        (
            json!({"InputSources": [file("/a")], "ResultPaths": [{"Name": "a", "Path": "/a/"}]}),
            "Tasks[0].ResultPaths[0].Path: result path \"/a\" is the target of an input",
        ),
        (
            json!({"InputSources": [file("/out/x")], "ResultPaths": [{"Name": "a", "Path": "/out"}]}),
            "the file \"/out/x\" lies in \"/out\", which is a result path",
        ),
        (
            json!({"InputSources": [file("/in/x"), {"Target": "/in", "Source": {"Type": "ipfs", "Params":
                {"CID": "bafybeid4ruukgpp3jtis3iocnpw6nuu4xhxabieofai3esdd2jqvamzvsy"}}}]}),
            "which is the target of another input",
        ),
        (json!({"InputSources": [file(&format!("/{}", "x".repeat(256)))]}), "a part of 256 bytes"),
        (json!({"InputSources": [file(&"/abc".repeat(300))]}), "a path of 1200 bytes"),
        (params(json!({"Entrypoint": "f".repeat(1025)})), "the entrypoint has 1025 bytes"),
        (params(json!({"Parameters": ["x".repeat(130_000)]})), "bytes of arguments and environment"),
        (json!({"Env": {"A": "x".repeat(130_000)}}), "bytes of arguments and environment"),
    ];
    for (more, expected) in cases {
        let report = JobSpec::from_api_value(&wasm_job(more)).unwrap_err().to_string();
        assert!(report.contains(expected), "expected {expected}\nin\n{report}");
    }
    let most = json!({"InputSources": files[..32], "Env": {"A": "x".repeat(100_000)}});
    assert!(JobSpec::from_api_value(&wasm_job(most)).is_ok());
}

#[test]
fn numbers_are_read_as_any_language_writes_them_or_refused_with_their_reason() {
    let counted = |count: &str| {
        let text = serde_json::to_string(&wasm_job(json!({}))).expect("JSON");
        JobSpec::from_text(text.replacen('{', &format!("{{\"Count\":{count},"), 1).as_bytes())
    };
    for (text, count) in [("3", 3), ("3.0", 3), ("1e3", 1000)] {
        assert_eq!(counted(text).map(|spec| spec.count), Ok(count), "{text}");
    }
    for (text, reason) in [
        ("1.5", "Count: invalid type: 'float' expected: 'int'"),
        ("1e30", "Count: job count 4294967295 is out of range"),
        ("1000000000000000000000000000000", "is out of range"),
        ("-1e30", "Count: job count must be >= 0"),
        ("1e400", "cannot be read: a number that is too large"),
        ("-0", "job count 0 is out of range"),
    ] {
        let report = counted(text).map(|_| ()).unwrap_err().to_string();
        assert!(report.contains(reason), "{text}: {report}");
    }
    let least = JobSpec::from_api_value(&wasm_job(json!({"Resources": {"CPU": "0.0001"}})));
    assert!(least.unwrap_err().to_string().contains("\"0.0001\" is less than the smallest amount"));
}

#[test]
fn names_that_turn_the_text_around_them_are_refused() {
    let mut job = wasm_job(json!({}));
    job["Name"] = json!("txt\u{202e}gpj");
    assert!(JobSpec::from_api_value(&job).unwrap_err().to_string().contains("control character"));
    job["Name"] = json!("corrente \u{1f30a} é");
    assert!(JobSpec::from_api_value(&job).is_ok());
}

#[test]
fn constraints_that_no_announcement_holds_are_refused() {
    let constrained = |values: usize| {
        let mut job = wasm_job(json!({}));
        let values: Vec<String> = (0..values).map(|index| format!("{index:060}")).collect();
        job["Constraints"] = json!([{"Key": "zone", "Operator": "in", "Values": values}]);
        JobSpec::from_api_value(&job)
    };
    assert!(constrained(39).is_ok());
    let report = constrained(40).unwrap_err().to_string();
    assert!(report.starts_with("Constraints: too large to be announced: 2580 bytes"), "{report}");
}

#[test]
fn too_large_once_normalised_is_refused() {
    let task = |parameter: String| {
        json!({"Type": "batch", "Tasks": [{"Engine": {"Type": "docker",
            "Params": {"Image": "x", "Parameters": [parameter]}}}]})
    };
    assert!(JobSpec::from_api_value(&task("x".repeat(MAX_CANONICAL_BYTES - 1000))).is_ok());
    let report = JobSpec::from_api_value(&task("x".repeat(MAX_CANONICAL_BYTES))).unwrap_err().to_string();
    assert!(report.starts_with("too large: "), "{report}");
}

#[test]
fn inline_data_does_not_count_once_it_is_content() {
    let data = job::inline::encode(&vec![7; 500_000]);
    let body = json!({"Type": "batch", "Tasks": [{"Engine": {"Type": "wasm", "Params": {"EntryModule": "m"}},
        "InputSources": [{"Target": "m", "Source": {"Type": "inline", "Params": {"URL": data}}}]}]});
    let (spec, _) = JobSpec::from_api_value(&body).unwrap();
    assert_eq!(spec.inline_inputs()[0].bytes.len(), 500_000);
    assert!(spec.to_canonical().len() > MAX_CANONICAL_BYTES);
}

#[test]
fn a_report_of_a_thousand_errors_stays_short() {
    let lines: String = (0..1000).map(|index| format!("Unknown{index}: {}\n", "x".repeat(50))).collect();
    let errors = JobSpec::from_text(lines.as_bytes()).unwrap_err();
    assert_eq!(errors.iter().count(), MAX_ERRORS);
    assert_eq!(errors.unlisted(), 1002 - MAX_ERRORS);
    assert!(errors.to_string().ends_with(" more"));
}

#[test]
fn positions_are_found_whatever_the_case() {
    let document = text::parse(b"tasks:\n  - name: a\n    env: {\"a.b\": c}\n").unwrap();
    let at = |path: &str| document.position(path).unwrap().to_string();
    assert_eq!(at("Tasks[0].Name"), "line 2, column 5");
    assert_eq!(at("Tasks[0].Env[\"a.b\"]"), "line 3, column 11");
    assert_eq!(at("Tasks[0].Missing.Thing"), "line 2, column 5");
    assert_eq!(at(""), "line 1, column 1");
    assert_eq!(document.value["tasks"][0]["env"]["a.b"], Value::from("c"));
}
