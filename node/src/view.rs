//! Jobs, executions and history in the JSON shapes of Bacalhau's API, with what ours adds.

use gossip::owner::{ExecutionView, HistoryEvent, JobHead, JobSummary, Level};
use job::JobSpec;
use job::state::{DesiredState, ExecutionState};
use serde_json::{Value, json};

use crate::clock::rfc3339;

/// How much of an execution's output stands in its JSON, as in Bacalhau.
pub const OUTPUT_BYTES: usize = 2048;

/// The beginning of one output stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Excerpt {
    /// At most [`OUTPUT_BYTES`] of it.
    pub text: String,
    /// Whether there is more.
    pub truncated: bool,
}

impl Excerpt {
    /// The first bytes of an output of `length` bytes; bytes that are no text are replaced.
    pub fn new(bytes: &[u8], length: u64) -> Self {
        let kept = &bytes[..bytes.len().min(OUTPUT_BYTES)];
        // A character cut in two by the limit is left out, not replaced.
        let kept = match std::str::from_utf8(kept) {
            Err(error) if error.error_len().is_none() => &kept[..error.valid_up_to()],
            _ => kept,
        };
        Excerpt { text: String::from_utf8_lossy(kept).into_owned(), truncated: length > OUTPUT_BYTES as u64 }
    }
}

/// What an execution printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Excerpt,
    /// Standard error.
    pub stderr: Excerpt,
}

impl Output {
    /// Of an execution that has printed, or may have, and whose output is not shown.
    pub fn unread() -> Self {
        let unread = Excerpt { text: String::new(), truncated: true };
        Output { stdout: unread.clone(), stderr: unread }
    }
}

/// A job as `GET /orchestrator/jobs/:id` has it.
pub fn job(spec: &JobSpec, head: &JobHead, owner: job::PeerId) -> Value {
    let summary = &head.summary;
    let mut value = spec.to_api_json();
    value["ID"] = summary.id.to_string().into();
    if spec.name.is_empty() {
        value["Name"] = summary.id.to_string().into();
    }
    value["Meta"]["cardume.org/owner.id"] = owner.to_string().into();
    value["Meta"]["bacalhau.org/orchestrator.id"] = owner.to_string().into();
    value["State"] = state(summary);
    value["Version"] = summary.version.into();
    value["Revision"] = head.revision.into();
    value["CreateTime"] = summary.created.into();
    value["ModifyTime"] = summary.modified.into();
    value
}

/// The state with its reason.
pub fn state(summary: &JobSummary) -> Value {
    json!({"StateType": summary.state.as_str(), "Message": summary.message})
}

/// How far a job is, in numbers.
pub fn partitions(summary: &JobSummary) -> Value {
    json!({
        "Total": summary.count,
        "Queued": summary.open,
        "Running": summary.running,
        "Completed": summary.committed,
        "Failed": summary.failed,
    })
}

/// Resources as Bacalhau's node info has them: cores, and bytes.
pub fn resources(resources: &job::Resources) -> Value {
    let mut value = json!({
        "CPU": resources.cpu_milli as f64 / 1000.0,
        "Memory": resources.memory,
        "Disk": resources.disk,
    });
    if resources.gpu > 0 {
        value["GPU"] = resources.gpu.into();
    }
    value
}

/// One execution.
pub fn execution(view: &ExecutionView, namespace: &str, output: &Output) -> Value {
    let published = match (&view.result, view.state) {
        (Some(result), ExecutionState::Completed | ExecutionState::Failed) => {
            json!({"Type": "ipfs", "Params": {"CID": result.cid.to_string()}})
        }
        _ => json!({"Type": ""}),
    };
    // 0 would say that it worked.
    let is_undone =
        view.fault.is_some() || (view.state.is_terminal() && view.state != ExecutionState::Completed);
    let fault = view.fault.as_ref().map(|fault| fault.message.as_str()).unwrap_or_default();
    json!({
        "ID": view.id.to_string(),
        "Namespace": namespace,
        "EvalID": "",
        "Name": "",
        "NodeID": view.worker.to_string(),
        "JobID": view.key.job.to_string(),
        "JobVersion": view.key.version,
        "PartitionIndex": view.key.partition,
        "Attempt": view.key.attempt,
        "AllocatedResources": {"Tasks": {}},
        "DesiredState": desired(view.desired),
        "ComputeState": {
            "StateType": view.state.number(),
            "StateName": view.state.as_str(),
            "Message": view.message,
        },
        "Unknown": view.unknown,
        "PublishedResult": published,
        "ResultHolders": view.holders.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "RunOutput": {
            "Stdout": output.stdout.text,
            "StdoutTruncated": output.stdout.truncated,
            "stderr": output.stderr.text,
            "StderrTruncated": output.stderr.truncated,
            "ExitCode": view.exit_code.unwrap_or(if is_undone { -1 } else { 0 }),
            "ErrorMsg": fault,
        },
        "Usage": {
            "CPUMillis": view.usage.cpu_ms,
            "PeakMemory": view.usage.memory,
            "OutputNotKept": view.usage.unkept,
        },
        "PreviousExecution": "",
        "NextExecution": "",
        "FollowupEvalID": "",
        "Revision": 1,
        "CreateTime": view.created,
        "ModifyTime": view.modified,
    })
}

fn desired(state: DesiredState) -> Value {
    json!({"StateType": state.number(), "Message": ""})
}

/// One line of history.
pub fn history(event: HistoryEvent, job: &JobSummary) -> Value {
    let level = match event.level {
        Level::Job => "JobLevel",
        Level::Execution => "ExecutionLevel",
    };
    let mut line = json!({
        "SeqNum": event.seq,
        "Type": level,
        "JobID": job.id.to_string(),
        "JobVersion": job.version,
        "Event": {
            "Message": event.message,
            "Topic": event.topic,
            "Timestamp": rfc3339(event.time),
        },
        "Time": rfc3339(event.time),
    });
    // Bacalhau's details are texts.
    let mut details = event.details;
    if let Some(execution) = event.execution {
        line["ExecutionID"] = execution.id().to_string().into();
        details.insert("PartitionIndex".to_owned(), execution.partition.to_string());
        details.insert("Attempt".to_owned(), execution.attempt.to_string());
    }
    if !details.is_empty() {
        line["Event"]["Details"] = json!(details);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(exit_code: Option<i32>) -> ExecutionView {
        let key = job::ExecutionKey { job: job::JobId([1; 16]), version: 1, partition: 0, attempt: 1 };
        ExecutionView {
            key,
            id: key.id(),
            worker: job::PeerId([2; 32]),
            desired: DesiredState::Stopped,
            state: ExecutionState::Failed,
            message: "its worker was lost".into(),
            unknown: false,
            created: 0,
            modified: 0,
            started: None,
            ended: None,
            exit_code,
            fault: None,
            result: None,
            holders: Vec::new(),
            held: false,
            usage: Default::default(),
        }
    }

    #[test]
    fn a_failure_never_has_the_exit_code_of_a_success_by_default() {
        let code =
            |exit| execution(&failed(exit), "default", &Output::default())["RunOutput"]["ExitCode"].clone();
        assert_eq!((code(None), code(Some(3))), (json!(-1), json!(3)));
        for (state, code) in [(ExecutionState::Cancelled, -1), (ExecutionState::Running, 0)] {
            let shown = execution(&ExecutionView { state, ..failed(None) }, "default", &Output::default());
            assert_eq!(shown["RunOutput"]["ExitCode"], code, "{state}");
        }
    }

    #[test]
    fn output_that_was_not_read_is_said_to_be_cut_short() {
        let shown = execution(&failed(None), "default", &Output::unread());
        assert_eq!(shown["RunOutput"]["StdoutTruncated"], true);
        assert_eq!(shown["RunOutput"]["StderrTruncated"], true);
    }

    #[test]
    fn an_excerpt_never_ends_inside_a_character() {
        let text = "é".repeat(OUTPUT_BYTES);
        let excerpt = Excerpt::new(&text.as_bytes()[..OUTPUT_BYTES + 1], text.len() as u64);
        assert!(excerpt.truncated && excerpt.text.chars().all(|c| c == 'é'));
        let odd = format!("a{text}");
        assert!(!Excerpt::new(odd.as_bytes(), odd.len() as u64).text.contains('\u{fffd}'));
        assert_eq!(Excerpt::new(b"\xff!", 2).text, "\u{fffd}!");
    }
}
