//! Job specs, and what to read in a described job.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testnet::client::{Client, Event};

use super::net::within;

/// A batch job of a module that is known by its CID.
pub fn job(module: &str, count: u32) -> Value {
    json!({
        "Type": "batch",
        "Count": count,
        "Tasks": [{
            "Name": "main",
            "Engine": {"Type": "wasm", "Params": {"EntryModule": format!("ipfs://{module}")}},
            "Resources": {"CPU": "50m", "Memory": "16Mb"},
        }],
    })
}

/// The same with more fields of its task.
pub fn job_with(module: &str, count: u32, task: Value) -> Value {
    let mut job = job(module, count);
    for (key, value) in task.as_object().unwrap() {
        job["Tasks"][0][key] = value.clone();
    }
    job
}

pub async fn submit(client: &Client, job: &Value) -> String {
    within("submit", client.submit(job)).await
}

/// Follows a job to its end.
pub async fn ended(client: &Client, id: &str) -> Value {
    within("the job's end", client.wait_end(id)).await
}

/// Follows a job until its counts of partitions are as wanted.
pub async fn until(client: &Client, id: &str, wanted: impl Fn(&Counts) -> bool) -> Counts {
    let event =
        within("the partitions", client.wait_for(id, |event| counts(event).is_some_and(|now| wanted(&now))))
            .await;
    counts(&event).unwrap()
}

/// How many partitions are where.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    pub running: u64,
    pub completed: u64,
}

fn counts(event: &Event) -> Option<Counts> {
    let partitions = (event.name == "state").then(|| &event.data["Partitions"])?;
    Some(Counts { running: partitions["Running"].as_u64()?, completed: partitions["Completed"].as_u64()? })
}

/// The state's word.
pub fn state(described: &Value) -> &str {
    described["Job"]["State"]["StateType"].as_str().unwrap_or_else(|| panic!("no state: {described}"))
}

/// What the state says for people.
pub fn message(described: &Value) -> &str {
    described["Job"]["State"]["Message"].as_str().unwrap_or_default()
}

/// Its executions.
pub fn executions(described: &Value) -> &[Value] {
    described["Executions"]["Items"].as_array().unwrap_or_else(|| panic!("no executions: {described}"))
}

/// The word of an execution's state.
pub fn execution_state(execution: &Value) -> &str {
    execution["ComputeState"]["StateName"].as_str().unwrap()
}

/// The completed executions by partition; two for one partition fail the test.
pub fn completed(described: &Value) -> BTreeMap<u64, Value> {
    let mut completed = BTreeMap::new();
    for execution in
        executions(described).iter().filter(|execution| execution_state(execution) == "Completed")
    {
        let partition = execution["PartitionIndex"].as_u64().unwrap();
        let before = completed.insert(partition, execution.clone());
        assert!(before.is_none(), "partition {partition} is completed twice: {described}");
    }
    completed
}

/// Checks a job of the guest `works`: completed, every partition once, each by the execution that says so.
pub fn check_worked(described: &Value, count: u64) {
    assert_eq!(state(described), "Completed", "{described}");
    let completed = completed(described);
    assert_eq!(completed.keys().copied().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
    for (partition, execution) in completed {
        let stdout = execution["RunOutput"]["Stdout"].as_str().unwrap();
        let line = |name: &str| {
            let value = stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_else(|| panic!("no {name}: {stdout}")).to_owned()
        };
        assert_eq!(line("BACALHAU_PARTITION_INDEX"), partition.to_string());
        assert_eq!(line("BACALHAU_PARTITION_COUNT"), count.to_string());
        assert_eq!(line("BACALHAU_EXECUTION_ID"), execution["ID"].as_str().unwrap());
        assert_eq!(line("BACALHAU_JOB_ID"), described["Job"]["ID"].as_str().unwrap());
        assert!(stdout.ends_with("begun\ndone\n"), "{stdout}");
        assert_eq!(execution["RunOutput"]["ExitCode"], 0);
    }
}

/// Checks that what was completed before is still the same, and was never started again.
pub fn check_kept(before: &BTreeMap<u64, Value>, after: &Value) {
    let now = completed(after);
    for (partition, execution) in before {
        assert_eq!(now[partition]["ID"], execution["ID"], "partition {partition} ran again");
        let later = executions(after).iter().filter(|other| {
            other["PartitionIndex"].as_u64() == Some(*partition)
                && other["CreateTime"].as_u64() > execution["ModifyTime"].as_u64()
        });
        assert_eq!(later.count(), 0, "partition {partition} was awarded after its end: {after}");
    }
}
