//! Following a job without asking again and again: server-sent events until it has ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::Stream;
use gossip::owner::{ExecutionView, HistoryEvent, JobReader, JobSummary};
use job::state::ExecutionState;
use job::{ExecutionKey, JobId, PeerId};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::error::ApiError;
use super::jobs::{Include, Whole};
use super::page::Page;
use super::route::Resolved;
use crate::state::App;
use crate::{read, view};

/// History lines read at once: bounds what a watcher of a large job holds.
const LINES: usize = 512;
/// Executions in the last event.
const LAST_EXECUTIONS: usize = 100;
/// With more partitions than this, what single ones are doing is left to the lists.
const FEW_PARTITIONS: u32 = 8;
/// Attempts of those that are looked at.
const ATTEMPTS: usize = 64;
/// Bidders that are named: enough to see that there are some.
const BIDDERS: usize = 32;
/// Between comments on a silent stream, so that proxies and clients see that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// `GET /orchestrator/jobs/:id/watch`.
pub async fn watch(
    State(app): State<App>,
    Extension(Resolved { job, .. }): Extension<Resolved>,
) -> Result<impl IntoResponse, ApiError> {
    // Subscribed before the first look: nothing falls in between.
    let changes = app.desk.watch(job);
    read::head(&app, job, None).await?;
    let follower = Follower {
        app,
        job,
        changes,
        seq: 0,
        state: Value::Null,
        bidders: BTreeSet::new(),
        doing: BTreeMap::new(),
        ready: VecDeque::new(),
        ended: false,
    };
    Ok(Sse::new(follower.stream()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// What is new about a job.
struct News {
    summary: JobSummary,
    /// Some lines of its history.
    lines: Vec<HistoryEvent>,
    /// The last one that was looked at.
    seen: u64,
    /// Who bids.
    bidders: Vec<(PeerId, u32)>,
    /// What its executions are doing, where these are few.
    executions: Vec<ExecutionView>,
    /// All of it, once it has ended.
    end: Option<Whole>,
}

impl News {
    /// What came after a line. Of many partitions it is told what goes wrong with them; the rest is in the counts.
    fn read(job: &JobReader<'_>, after: u64) -> Self {
        let summary = job.summary();
        let is_few = summary.count <= FEW_PARTITIONS;
        let (mut lines, mut seen) = (Vec::new(), after);
        for line in job.history(after) {
            if lines.len() >= LINES {
                break;
            }
            seen = line.seq();
            if is_few || !line.is_routine() {
                lines.push(line.event());
            }
        }
        let mut news = News { summary, lines, seen, bidders: Vec::new(), executions: Vec::new(), end: None };
        if news.summary.state.is_terminal() {
            let include = Include { executions: true, history: false };
            news.end = Some(Whole::read(job, include, Page { offset: 0, limit: LAST_EXECUTIONS }));
        } else {
            news.bidders = job.bidders();
            let most = if is_few { ATTEMPTS } else { 0 };
            news.executions = job.executions(0..most).collect();
        }
        news
    }
}

struct Follower {
    app: App,
    job: JobId,
    changes: watch::Receiver<u64>,
    seq: u64,
    state: Value,
    /// Who was told to have bid.
    bidders: BTreeSet<PeerId>,
    /// What was told of executions that have not ended.
    doing: BTreeMap<ExecutionKey, (ExecutionState, String)>,
    ready: VecDeque<Event>,
    ended: bool,
}

impl Follower {
    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        futures::stream::unfold(self, |mut follower| async move {
            loop {
                if let Some(event) = follower.ready.pop_front() {
                    return Some((Ok(event), follower));
                }
                if follower.ended || !follower.advance().await {
                    return None;
                }
            }
        })
    }

    /// Gets what is new, waiting until something is; false when the node stops.
    async fn advance(&mut self) -> bool {
        self.changes.mark_unchanged();
        let (job, seq) = (self.job, self.seq);
        let news = match read::with(&self.app, job, None, move |job| News::read(&job, seq)).await {
            Ok(news) => news,
            Err(error) => {
                self.say("error", json!({"Message": error.message}));
                self.ended = true;
                return true;
            }
        };
        let News { summary, lines, seen, bidders, executions, end } = news;
        let full = lines.len() >= LINES;
        self.seq = seen;
        for (peer, slots) in bidders {
            self.bid(peer, slots);
        }
        for execution in executions {
            self.doing(&execution);
        }
        for line in lines {
            self.say("history", view::history(line, &summary));
        }
        if full {
            return true;
        }
        self.state(&summary);
        if let Some(whole) = end {
            self.ended = true;
            match whole.to_json(&self.app).await {
                Ok(answer) => self.say("end", answer),
                Err(error) => self.say("error", json!({"Message": error.message})),
            }
            return true;
        }
        if !self.ready.is_empty() {
            return true;
        }
        tokio::select! {
            changed = self.changes.changed() => changed.is_ok(),
            () = self.app.cancel.cancelled() => false,
        }
    }

    fn bid(&mut self, peer: PeerId, slots: u32) {
        if self.bidders.len() < BIDDERS && self.bidders.insert(peer) {
            self.say("bid", json!({"NodeID": peer.to_string(), "Slots": slots}));
        }
    }

    /// What an execution is doing between the lines of the history.
    fn doing(&mut self, execution: &ExecutionView) {
        if execution.state.is_terminal() {
            self.doing.remove(&execution.key);
            return;
        }
        let now = (execution.state, execution.message.clone());
        if execution.message.is_empty() || self.doing.get(&execution.key) == Some(&now) {
            return;
        }
        self.doing.insert(execution.key, now);
        let told = json!({
            "ExecutionID": execution.id.to_string(),
            "PartitionIndex": execution.key.partition,
            "NodeID": execution.worker.to_string(),
            "State": execution.state.as_str(),
            "Message": execution.message,
        });
        self.say("execution", told);
    }

    fn state(&mut self, summary: &JobSummary) {
        let state = json!({"State": view::state(summary), "Partitions": view::partitions(summary)});
        if self.state != state {
            self.state = state.clone();
            self.say("state", state);
        }
    }

    fn say(&mut self, name: &str, data: Value) {
        self.ready.push_back(Event::default().event(name).data(data.to_string()));
    }
}
