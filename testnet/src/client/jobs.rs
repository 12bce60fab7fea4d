//! What tests and benchmarks do with jobs.

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{Client, Event};

impl Client {
    /// Submits a job and gives its id.
    pub async fn submit(&self, job: &Value) -> anyhow::Result<String> {
        let answer = self.put("/orchestrator/jobs", &json!({ "Job": job })).await?.ok()?;
        Ok(answer["JobID"].as_str().context("an answer without a job id")?.to_owned())
    }

    /// A job with its executions and history.
    pub async fn describe(&self, id: &str) -> anyhow::Result<Value> {
        self.get(&format!("/orchestrator/jobs/{id}?include=executions,history")).await?.ok()
    }

    /// All executions of a job, in pages.
    pub async fn executions(&self, id: &str) -> anyhow::Result<Vec<Value>> {
        let (mut items, mut token) = (Vec::new(), String::new());
        loop {
            let path = format!("/orchestrator/jobs/{id}/executions?limit=1000&next_token={token}");
            let page = self.get(&path).await?.ok()?;
            items.extend(page["Items"].as_array().context("a page without items")?.iter().cloned());
            match page["NextToken"].as_str() {
                None | Some("") => return Ok(items),
                Some(next) => next.clone_into(&mut token),
            }
        }
    }

    /// Follows a job until `found` says that an event is the one that was waited for.
    ///
    /// An error when the job ends before.
    pub async fn wait_for(&self, id: &str, mut found: impl FnMut(&Event) -> bool) -> anyhow::Result<Event> {
        let mut events = self.events(&format!("/orchestrator/jobs/{id}/watch")).await?;
        let mut last = Value::Null;
        while let Some(event) = events.next().await? {
            if found(&event) {
                return Ok(event);
            }
            last = event.data;
        }
        bail!("the events of {id} ended without the one that was waited for; the last is {last}")
    }

    /// Follows a job to its end: the job with its executions.
    pub async fn wait_end(&self, id: &str) -> anyhow::Result<Value> {
        Ok(self.wait_for(id, |event| event.name == "end").await?.data)
    }
}
