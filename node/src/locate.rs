//! Finding who owns a job that is not in this node's own record.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use job::{JobId, PeerId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::index::Named;
use crate::state::App;
use crate::{clock, index, peers};

/// The request's name on the wire.
pub const REQUEST: &str = "whois/1";
/// Connected peers that are asked, and for how long (DESIGN section 3, step 6).
const ASKED: usize = 32;
const ASK_WITHIN: Duration = Duration::from_millis(500);
/// How long the DHT is searched.
const SEARCH_WITHIN: Duration = Duration::from_secs(5);
/// Providers of a job that are tried.
const PROVIDERS: usize = 4;
/// Longest text that can name a job.
const TEXT_BYTES: usize = 256;

/// Who has a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    /// The job.
    pub job: JobId,
    /// Its owner.
    pub owner: PeerId,
}

#[derive(Debug, Serialize, Deserialize)]
struct Question {
    text: String,
    #[serde(default)]
    namespace: Option<String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Answer {
    #[serde(default)]
    job: Option<JobId>,
    #[serde(default)]
    owner: Option<PeerId>,
}

/// The DHT key under which a job's owner provides it.
pub fn key(job: JobId) -> [u8; 32] {
    Sha256::new().chain_update(b"cardume job owner 1").chain_update(job.0).finalize().into()
}

/// Finds the owner of the job that a text names: among the jobs whose executions or announcements this
/// node knows, by asking connected peers, and for whole ids in the DHT.
pub async fn find(app: &App, text: &str, namespace: Option<&str>) -> Option<Owned> {
    if text.len() > TEXT_BYTES {
        return None;
    }
    let id: Option<JobId> = text.parse().ok();
    if let Some(job) = id
        && let Some(owner) = known_owner(app, job).await
    {
        return Some(Owned { job, owner });
    }
    if let Some(owned) = ask_connected(app, text, namespace).await {
        return Some(owned);
    }
    search(app, id?).await
}

/// The owner of a job that this node works for or has heard announced.
async fn known_owner(app: &App, job: JobId) -> Option<PeerId> {
    app.worker.ask(move |worker| worker.owner_of(job)).await.ok().flatten()
}

async fn ask_connected(app: &App, text: &str, namespace: Option<&str>) -> Option<Owned> {
    let question = Question { text: text.to_owned(), namespace: namespace.map(str::to_owned) };
    let bytes = bytes::Bytes::from(serde_json::to_vec(&question).ok()?);
    let asked = app.host.connected_peers().into_iter().take(ASKED).map(|peer| {
        let (host, bytes) = (app.host.clone(), bytes.clone());
        async move {
            let answer = host.request(peer, REQUEST, bytes, ASK_WITHIN).await.ok()?;
            let answer: Answer = serde_json::from_slice(&answer).ok()?;
            Some(Owned { job: answer.job?, owner: answer.owner? })
        }
    });
    let mut answers: FuturesUnordered<_> = asked.collect();
    let wanted: Option<JobId> = text.parse().ok();
    while let Some(answer) = answers.next().await {
        match answer {
            Some(owned) if wanted.is_none_or(|job| job == owned.job) => return Some(owned),
            _ => {}
        }
    }
    None
}

async fn search(app: &App, job: JobId) -> Option<Owned> {
    let mut found = app.host.find_providers(&key(job), PROVIDERS, SEARCH_WITHIN).await.ok()?;
    while let Some(provider) = found.next().await {
        let Some(owner) = peers::from_network(&provider.peer) else { continue };
        for address in provider.addrs {
            app.host.add_address(provider.peer, address);
        }
        return Some(Owned { job, owner });
    }
    None
}

/// Answers another peer's question. Whole ids are in announcements, so anybody may ask for them; names
/// and beginnings of ids are for those who may see the job.
pub async fn answer(app: &App, from: PeerId, question: &[u8]) -> Vec<u8> {
    let answer = match serde_json::from_slice::<Question>(question) {
        Ok(question) if question.text.len() <= TEXT_BYTES => look_up(app, from, &question).await,
        _ => None,
    };
    let answer = answer
        .map_or_else(Answer::default, |owned| Answer { job: Some(owned.job), owner: Some(owned.owner) });
    serde_json::to_vec(&answer).unwrap_or_default()
}

async fn look_up(app: &App, from: PeerId, question: &Question) -> Option<Owned> {
    let whole: Option<JobId> = question.text.parse().ok();
    if whole.is_some() || app.trusts(from) {
        let named = app.index.find(&question.text, question.namespace.as_deref());
        if let Named::One(job) = named {
            return Some(Owned { job, owner: app.me });
        }
    }
    let job = whole?;
    Some(Owned { job, owner: known_owner(app, job).await? })
}

/// Whether a text may name a job at all, so that nobody is asked about nonsense.
pub fn may_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= TEXT_BYTES && (index::is_prefix(text) || !text.contains(['/', '\0']))
}

/// Publishes who owns a job, once it is worth it.
pub async fn provide(app: &App, job: JobId) {
    if let Err(error) = app.host.provide(&key(job)).await {
        tracing::debug!(%job, %error, at = clock::now().unix_seconds(), "job not published in the DHT");
    }
}
