//! Finding who owns a job that is not in this node's own record.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
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
/// What jobs of other peers were called that is remembered; about 400 bytes each.
const HEARD: usize = 256;
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

/// What a text names among the jobs of other peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// This job.
    One(Owned),
    /// More than one.
    Many,
    /// None that can be found.
    None,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The text names several jobs there.
    #[serde(default)]
    many: bool,
}

/// What users called jobs of other peers lately, so that an owner that is away is named all the same.
#[derive(Default)]
pub struct Heard {
    lately: Mutex<VecDeque<(Question, Owned)>>,
}

impl Heard {
    fn note(&self, question: Question, owned: Owned) {
        let mut lately = self.lock();
        lately.retain(|(known, _)| *known != question);
        if lately.len() >= HEARD {
            lately.pop_front();
        }
        lately.push_back((question, owned));
    }

    fn get(&self, question: &Question) -> Option<Owned> {
        self.lock().iter().find(|(known, _)| known == question).map(|(_, owned)| *owned)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Question, Owned)>> {
        self.lately.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The DHT key under which a job's owner provides it.
pub fn key(job: JobId) -> [u8; 32] {
    Sha256::new().chain_update(b"cardume job owner 1").chain_update(job.0).finalize().into()
}

/// Finds the owner of the job that a text names: among the jobs whose executions or announcements this
/// node knows, by asking connected peers, and for whole ids in the DHT.
pub async fn find(app: &App, text: &str, namespace: Option<&str>) -> Found {
    if text.len() > TEXT_BYTES {
        return Found::None;
    }
    if let Ok(job) = text.parse() {
        return by_id(app, job).await.map_or(Found::None, Found::One);
    }
    let question = Question { text: text.to_owned(), namespace: namespace.map(str::to_owned) };
    let mut owners = known_by_prefix(app, text).await;
    let mut many = false;
    let mut answers = ask_connected(app, &question);
    while let Some(answer) = answers.next().await {
        many |= answer.many;
        owners.extend(answer.job.zip(answer.owner));
    }
    match one_of(&owners) {
        _ if many || owners.len() > 1 => Found::Many,
        Some(owned) => {
            app.index.heard.note(question, owned);
            Found::One(owned)
        }
        None => app.index.heard.get(&question).map_or(Found::None, Found::One),
    }
}

async fn by_id(app: &App, job: JobId) -> Option<Owned> {
    if let Some(owner) = known_owner(app, job).await {
        return Some(Owned { job, owner });
    }
    let question = Question { text: job.to_string(), namespace: None };
    let mut answers = ask_connected(app, &question);
    while let Some(answer) = answers.next().await {
        if answer.job == Some(job)
            && let Some(owner) = answer.owner
        {
            return Some(Owned { job, owner });
        }
    }
    search(app, job).await
}

/// The owner of a job that this node works for or has heard announced.
async fn known_owner(app: &App, job: JobId) -> Option<PeerId> {
    app.worker.ask(move |worker| worker.owner_of(job)).await.ok().flatten()
}

/// The same for the beginning of an id, and all that it fits.
async fn known_by_prefix(app: &App, text: &str) -> BTreeMap<JobId, PeerId> {
    if !index::is_prefix(text) {
        return BTreeMap::new();
    }
    let prefix = text.to_owned();
    let known = app.worker.ask(move |worker| {
        worker.known_jobs().filter(|(job, _)| job.to_string().starts_with(&prefix)).collect()
    });
    known.await.unwrap_or_default()
}

fn one_of(owners: &BTreeMap<JobId, PeerId>) -> Option<Owned> {
    owners.first_key_value().map(|(job, owner)| Owned { job: *job, owner: *owner })
}

/// The answers of connected peers, as they come; those that do not answer are left out.
fn ask_connected(app: &App, question: &Question) -> impl Stream<Item = Answer> + Send + Unpin + use<> {
    let bytes = bytes::Bytes::from(serde_json::to_vec(question).unwrap_or_default());
    let asked = app.host.connected_peers().into_iter().take(ASKED).map(|peer| {
        let (host, bytes) = (app.host.clone(), bytes.clone());
        async move {
            let answer = host.request(peer, REQUEST, bytes, ASK_WITHIN).await.ok()?;
            serde_json::from_slice(&answer).ok()
        }
    });
    let answers: FuturesUnordered<_> = asked.collect();
    answers.filter_map(std::future::ready)
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
    let found = match serde_json::from_slice::<Question>(question) {
        Ok(question) if question.text.len() <= TEXT_BYTES => look_up(app, from, &question).await,
        _ => Found::None,
    };
    let answer = match found {
        Found::One(owned) => Answer { job: Some(owned.job), owner: Some(owned.owner), many: false },
        Found::Many => Answer { many: true, ..Answer::default() },
        Found::None => Answer::default(),
    };
    serde_json::to_vec(&answer).unwrap_or_default()
}

async fn look_up(app: &App, from: PeerId, question: &Question) -> Found {
    let whole: Option<JobId> = question.text.parse().ok();
    if whole.is_none() && !app.trusts(from) {
        return Found::None;
    }
    match app.index.find(&question.text, question.namespace.as_deref()) {
        Named::One(job) => return Found::One(Owned { job, owner: app.me }),
        Named::Many(_) => return Found::Many,
        Named::None => {}
    }
    if let Some(job) = whole {
        return known_owner(app, job).await.map_or(Found::None, |owner| Found::One(Owned { job, owner }));
    }
    let known = known_by_prefix(app, &question.text).await;
    match one_of(&known) {
        _ if known.len() > 1 => Found::Many,
        found => found.map_or(Found::None, Found::One),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn question(text: &str) -> Question {
        Question { text: text.to_owned(), namespace: None }
    }

    fn owned(id: u8) -> Owned {
        Owned { job: JobId([id; 16]), owner: PeerId([id; 32]) }
    }

    #[test]
    fn what_jobs_were_called_is_remembered_within_bounds() {
        let heard = Heard::default();
        heard.note(question("words"), owned(1));
        heard.note(question("words"), owned(2));
        assert_eq!(heard.get(&question("words")), Some(owned(2)));
        for number in 0..HEARD {
            heard.note(question(&number.to_string()), owned(3));
        }
        assert_eq!(heard.get(&question("words")), None);
        assert_eq!(heard.get(&question("0")), Some(owned(3)));
    }

    #[test]
    fn answers_of_peers_that_know_less_are_read() {
        let answer: Answer = serde_json::from_str("{}").unwrap();
        assert!(!answer.many && answer.job.is_none());
    }
}
