//! Lets go of content that is kept for nobody any more.
//!
//! Pins say whom they are for. Whether that is still known is asked of the machines, never remembered: so a pin goes
//! however it was left behind, by a job that was forgotten, a result that came too late, or a crash between two steps.
//! Nothing is written per result for it, and a commit waits for nothing.

use std::collections::HashSet;
use std::time::Duration;

use job::ExecutionId;
use tracing::{debug, info, warn};

use crate::content::{FetchFault, Keeper, Pin};
use crate::state::App;

/// Pins looked at together: the owner machine is asked about so many at once, which takes it about a millisecond.
const PAGE: usize = 4096;
/// Pins of executions that the worker machine is asked about together: it lists all it has.
const RESULTS: usize = 64 * 1024;
/// Between two walks over all pins, of which a million take a core about two seconds. An owner that forgets all the
/// time spends less than a hundredth of a core on it.
const PAUSE: Duration = Duration::from_secs(300);

/// Why a walk ended early. What it left goes with the next one.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Content(#[from] FetchFault),
    #[error(transparent)]
    Stopping(#[from] crate::shell::Gone),
}

/// Looks over all pins at the start, and whenever jobs were forgotten, until the node stops.
pub async fn run(app: App) {
    let until_stopped = app.cancel.clone();
    tokio::select! {
        () = until_stopped.cancelled() => {}
        () = sweep_again(&app) => {}
    }
}

async fn sweep_again(app: &App) {
    // Results that a worker has let go of are released at once; only a crash leaves some behind.
    let mut with_results = true;
    loop {
        match sweep(app, with_results).await {
            Ok(0) => {}
            Ok(released) => info!(released, "content that is kept for nobody was released"),
            Err(error) => {
                warn!(%error, "content that is kept for nobody could not be released yet");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        }
        // Whatever was forgotten while it went on is for the next one.
        if !with_results {
            tokio::time::sleep(PAUSE).await;
        }
        with_results = false;
        app.index.forgotten().await;
    }
}

/// Walks over all pins and takes those back that are for nobody; answers with how many.
async fn sweep(app: &App, with_results: bool) -> Result<usize, SweepError> {
    // Results of a job that is forgotten soon after its end may still be on their way.
    app.content.until_stored().await;
    let (mut after, mut results, mut released) = (None, Vec::new(), 0);
    loop {
        let page = app.content.pins(after, PAGE).await?;
        after = page.last().cloned();
        let (mut jobs, is_last) = (Vec::new(), page.is_empty());
        for pin in page {
            match Keeper::of(&pin) {
                Some(Keeper::Job(job, version)) => jobs.push((pin, job, version)),
                Some(Keeper::Execution(execution)) if with_results => results.push((pin, execution)),
                _ => {}
            }
        }
        released += release(app, unknown_jobs(app, jobs).await?).await?;
        if results.len() >= RESULTS || is_last {
            released += release(app, unknown_results(app, std::mem::take(&mut results)).await?).await?;
        }
        if is_last {
            return Ok(released);
        }
    }
}

async fn release(app: &App, pins: Vec<Pin>) -> Result<usize, SweepError> {
    let count = pins.len();
    if count > 0 {
        debug!(count, "kept for nobody");
        app.content.release(pins).await?;
    }
    Ok(count)
}

/// Those of job versions that the owner machine does not know.
///
/// A submission keeps content before the machine hears of its job. It says so first, and the machine is asked after: so
/// one of the two knows of every version that is not gone.
async fn unknown_jobs(app: &App, mut pins: Vec<(Pin, job::JobId, u32)>) -> Result<Vec<Pin>, SweepError> {
    pins.retain(|(_, job, version)| !app.index.claims.is_making(*job, *version));
    if pins.is_empty() {
        return Ok(Vec::new());
    }
    let unknown = app.owner.ask(move |owner| {
        pins.retain(|(_, job, version)| !owner.knows(*job, *version));
        pins
    });
    Ok(unknown.await?.into_iter().map(|(pin, ..)| pin).collect())
}

/// Those of executions that the worker machine does not have. It has each from before its result is kept.
async fn unknown_results(app: &App, mut pins: Vec<(Pin, ExecutionId)>) -> Result<Vec<Pin>, SweepError> {
    if pins.is_empty() {
        return Ok(Vec::new());
    }
    let held = app.worker.ask(|worker| worker.holds().collect::<Vec<_>>()).await?;
    let held: HashSet<ExecutionId> = held.iter().map(job::ExecutionKey::id).collect();
    pins.retain(|(_, execution)| !held.contains(execution));
    Ok(pins.into_iter().map(|(pin, _)| pin).collect())
}

#[cfg(test)]
mod tests {
    use job::{ExecutionKey, JobId};
    use serde_json::json;
    use storage::Block;

    use storage::records::Table;

    use super::*;
    use crate::submit::{self, Request};
    use crate::{Config, Node, read};

    /// A node that only owns, and keeps what ended for a second.
    async fn node(dir: &std::path::Path) -> Node {
        let mut config = Config::new(dir);
        config.listen = vec!["/ip4/127.0.0.1/tcp/0".into()];
        (config.api, config.worker) = (None, false);
        config.settings.retention.time = Duration::from_secs(1);
        Node::start(config).await.unwrap()
    }

    async fn keepers(app: &App) -> Vec<Keeper> {
        let pins = app.content.pins(None, PAGE).await.unwrap();
        let mut keepers: Vec<Keeper> = pins.iter().map(|pin| Keeper::of(pin).unwrap()).collect();
        keepers.sort();
        keepers
    }

    /// A job that nobody runs, with an input of its own.
    async fn submitted(app: &App) -> JobId {
        let job = json!({
            "Type": "batch", "Count": 1, "Tasks": [{
                "Name": "main",
                "Engine": {"Type": "wasm", "Params": {"EntryModule": "ipfs://bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"}},
                "InputSources": [{"Target": "/in", "Source": {"Type": "inline", "Params": {"URL": "data:text/plain;base64,aGVsbG8="}}}],
            }],
        });
        submit::submit(app, Request { job: Some(job), ..Request::default() }).await.unwrap().job
    }

    #[tokio::test]
    async fn content_stays_with_those_who_are_known_and_goes_with_the_job() {
        let dir = tempfile::tempdir().unwrap();
        let node = node(dir.path()).await;
        let app = node.app();
        let id = submitted(app).await;
        let other = JobId::derive("lab", app.me, b"forgotten");
        let (unknown, made) = (Keeper::Job(other, 1), Keeper::Job(id, 2));
        let execution = ExecutionKey { job: id, version: 1, partition: 0, attempt: 1 }.id();
        let block = Block::raw("kept");
        for keeper in [Keeper::User, unknown, made, Keeper::Execution(execution)] {
            app.content.put_pinned(block.cid, block.data.clone(), keeper).await.unwrap();
        }
        let spec = submit::check(&Request { spec: Some(SPEC.into()), ..Request::default() }).unwrap().spec;
        let mut claim = app.index.claims.claim(&spec, None).await;
        claim.makes(id, 2);
        sweep(app, true).await.unwrap();
        assert_eq!(keepers(app).await, [Keeper::User, Keeper::Job(id, 1), made]);
        drop(claim);
        sweep(app, true).await.unwrap();
        assert_eq!(keepers(app).await, [Keeper::User, Keeper::Job(id, 1)]);

        submit::stop(app, id, "enough".into()).await.unwrap();
        while keepers(app).await != [Keeper::User] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(app.index.get(id), None);
        let mut left = Vec::new();
        read::all(&app.records, Table::OWNER, &id.0, &mut |record| left.push(record)).unwrap();
        assert_eq!(left, []);
        for version in [None, Some(1)] {
            assert_eq!(read::head(app, id, version).await.unwrap_err().code, "NotFound");
            let read = read::with(app, id, version, |job| job.summary()).await;
            assert_eq!(read.unwrap_err().code, "NotFound");
        }
        node.stop().await;
    }

    const SPEC: &str = "Type: batch\nTasks: [{Name: main, Engine: {Type: wasm, Params: {EntryModule: ipfs://bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku}}}]\n";
}
