//! Which job a submission is: a new one, the next version of one that has its name, or one that is here already
//! because its client asks again with the same token.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, MutexGuard, PoisonError};

use job::{JobId, JobSpec};
use storage::records::{Batch, RecordsError, Table};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tracing::debug;

use super::Token;
use crate::api::error::ApiError;
use crate::index::Line;
use crate::read;
use crate::state::App;

/// Tokens of later versions, by job and version. That of a first version is what its job's id is made of.
const TOKENS: Table = Table::new("tokens");
/// Versions of a job whose tokens are remembered: a client repeats its newest request, not one of long ago.
const REMEMBERED: u32 = 64;
/// Names that can be claimed at the same time without ever waiting for each other by accident.
const STRIPES: usize = 256;

/// What a submission comes to.
#[derive(Debug)]
pub enum Naming {
    /// A job version that is to be made.
    New {
        /// The job.
        id: JobId,
        /// Its version.
        version: u32,
        /// What its id is derived from.
        nonce: Vec<u8>,
    },
    /// It was made before, for the same token.
    Known {
        /// The job.
        id: JobId,
        /// Its version.
        version: u32,
    },
}

/// Names and tokens that submissions are busy with, so that two with the same one are dealt with one after the other.
pub struct Claims {
    stripes: Vec<Arc<Mutex<()>>>,
    making: Arc<Making>,
}

/// Job versions that submissions are about to make, and how many submissions each.
#[derive(Debug, Default)]
struct Making(std::sync::Mutex<BTreeMap<(JobId, u32), usize>>);

impl Making {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(JobId, u32), usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Claims {
    fn default() -> Self {
        Claims { stripes: (0..STRIPES).map(|_| Arc::default()).collect(), making: Arc::default() }
    }
}

/// A name and a token that are claimed until this is dropped.
#[derive(Debug)]
pub struct Claim {
    _held: Vec<OwnedMutexGuard<()>>,
    making: Arc<Making>,
    made: Option<(JobId, u32)>,
}

impl Claim {
    /// Says which job version is about to be made: until this is dropped, content may be kept for it although nobody
    /// knows it yet.
    pub fn makes(&mut self, id: JobId, version: u32) {
        debug_assert!(self.made.is_none(), "a submission makes one version");
        *self.making.lock().entry((id, version)).or_default() += 1;
        self.made = Some((id, version));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(made) = self.made else { return };
        let mut making = self.making.lock();
        if let Some(count) = making.get_mut(&made) {
            *count -= 1;
            if *count == 0 {
                making.remove(&made);
            }
        }
    }
}

impl Claims {
    /// Claims the name and the token of a submission; one without either waits for nobody.
    pub async fn claim(&self, spec: &JobSpec, token: Option<&Token>) -> Claim {
        let name = (!spec.name.is_empty()).then(|| self.stripe(&(&spec.namespace, &spec.name)));
        let token = token.map(|token| self.stripe(token));
        let mut stripes: Vec<usize> = name.into_iter().chain(token).collect();
        // In one order, so that no two wait for each other.
        stripes.sort_unstable();
        stripes.dedup();
        let mut held = Vec::with_capacity(stripes.len());
        for stripe in stripes {
            held.push(Arc::clone(&self.stripes[stripe]).lock_owned().await);
        }
        Claim { _held: held, making: Arc::clone(&self.making), made: None }
    }

    /// Whether a submission is about to make this job version.
    pub fn is_making(&self, id: JobId, version: u32) -> bool {
        self.making.lock().contains_key(&(id, version))
    }

    fn stripe(&self, claimed: &impl Hash) -> usize {
        let mut hasher = DefaultHasher::new();
        claimed.hash(&mut hasher);
        usize::try_from(hasher.finish() % STRIPES as u64).unwrap_or(0)
    }
}

/// Decides what a submission is, whose name and token are claimed.
pub async fn decide(
    app: &App,
    spec: &JobSpec,
    token: Option<&Token>,
    force: bool,
) -> Result<Naming, ApiError> {
    let known = if spec.name.is_empty() { None } else { app.index.by_name(&spec.namespace, &spec.name) };
    if let Some(token) = token {
        let first = JobId::derive(&app.config.swarm, app.me, token);
        if app.index.get(first).is_some() {
            return repeated(app, first, 1, spec).await;
        }
        if let Some(line) = &known
            && let Some(version) = version_of(app, line.summary.id, token).await?
        {
            return repeated(app, line.summary.id, version, spec).await;
        }
    }
    match known {
        Some(line) => next_version(app, &line, spec, token, force).await,
        None => {
            let nonce = token.map_or_else(random, |token| Ok(token.to_vec()))?;
            Ok(Naming::New { id: JobId::derive(&app.config.swarm, app.me, &nonce), version: 1, nonce })
        }
    }
}

/// The same token again: the same job, if it is the same job.
async fn repeated(app: &App, id: JobId, version: u32, spec: &JobSpec) -> Result<Naming, ApiError> {
    let head = read::head(app, id, Some(version)).await?;
    if head.spec_cid == spec.spec_cid() {
        return Ok(Naming::Known { id, version });
    }
    Err(ApiError::conflict(format!(
        "the idempotency token belongs to another job, version {version} of {id}"
    ))
    .hint("send a new token with every new job"))
}

/// A job of this name exists: the spec is its next version, unless nothing changed.
async fn next_version(
    app: &App,
    line: &Line,
    spec: &JobSpec,
    token: Option<&Token>,
    force: bool,
) -> Result<Naming, ApiError> {
    let (id, name) = (line.summary.id, &line.summary.name);
    let head = read::head(app, id, None).await?;
    if !force && head.spec_cid == spec.spec_cid() && !line.summary.state.is_terminal() {
        let message = format!("no changes detected for new job spec. Job Name: '{name}', Job Id: '{id}'");
        return Err(ApiError::conflict(message).hint("Use the --force flag to override this warning"));
    }
    let version = line.summary.version + 1;
    if let Some(token) = token {
        let remembered = remember(app, id, version, token).await;
        remembered.map_err(|error| ApiError::internal("keeping the idempotency token", &error))?;
    }
    Ok(Naming::New { id, version, nonce: head.nonce.to_vec() })
}

fn random() -> Result<Vec<u8>, ApiError> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce)
        .map_err(|error| ApiError::unavailable(format!("no randomness from the system: {error}")))?;
    Ok(nonce.to_vec())
}

/// Notes durably for which token a version is about to be made. If it is not made after all, the next one with
/// its number takes its place here too.
async fn remember(app: &App, id: JobId, version: u32, token: &Token) -> Result<(), RecordsError> {
    let mut batch = Batch::new();
    batch.put(TOKENS, key(id, version), token.to_vec());
    if let Some(old) = version.checked_sub(REMEMBERED) {
        batch.delete(TOKENS, key(id, old));
    }
    app.records.commit(batch).await
}

/// The version of a job that was made for a token.
async fn version_of(app: &App, id: JobId, token: &Token) -> Result<Option<u32>, ApiError> {
    let newest = app.index.get(id).map_or(0, |line| line.summary.version);
    let (records, token) = (app.records.clone(), *token);
    let found = tokio::task::spawn_blocking(move || {
        let page = records.scan_prefix(TOKENS, &id.0, None, REMEMBERED as usize + 1)?;
        let row = page.rows.into_iter().find(|(_, value)| value[..] == token);
        Ok::<_, RecordsError>(row.and_then(|(key, _)| version_in(&key)))
    });
    let found = found.await.map_err(|error| ApiError::internal("reading idempotency tokens", &error))?;
    let found = found.map_err(|error| ApiError::internal("reading idempotency tokens", &error))?;
    // One above was noted and never made.
    Ok(found.filter(|version| *version <= newest))
}

/// A version was not made after all: its token is free again. One that stays all the same names no version, and goes
/// when another takes its number.
pub async fn not_made(app: &App, id: JobId, version: u32) {
    let mut batch = Batch::new();
    forget(&mut batch, id, version);
    if let Err(error) = app.records.commit(batch).await {
        debug!(job = %id, version, %error, "the token of a refused version stays");
    }
}

/// Puts the end of a version's token into a batch.
pub fn forget(batch: &mut Batch, id: JobId, version: u32) {
    batch.delete(TOKENS, key(id, version));
}

fn key(id: JobId, version: u32) -> Vec<u8> {
    [&id.0[..], &version.to_be_bytes()].concat()
}

fn version_in(key: &[u8]) -> Option<u32> {
    key.last_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use job::JobSpec;
    use job::spec::{DockerEngine, Engine, JobType, Task};

    use super::*;

    fn named(name: &str) -> JobSpec {
        let task = Task::new(Engine::Docker(DockerEngine::default()));
        JobSpec { name: name.to_owned(), ..JobSpec::new(JobType::Batch, task) }
    }

    #[tokio::test]
    async fn submissions_of_one_name_or_one_token_follow_each_other() {
        let claims = Claims::default();
        let first = claims.claim(&named("words"), Some(&[1; 32])).await;
        assert!(claims.claim(&named("words"), Some(&[2; 32])).now_or_never().is_none());
        assert!(claims.claim(&named(""), Some(&[1; 32])).now_or_never().is_none());
        assert!(claims.claim(&named(""), None).now_or_never().is_some());
        drop(first);
        assert!(claims.claim(&named("words"), Some(&[1; 32])).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_version_is_being_made_as_long_as_any_claim_of_it_is_held() {
        let (claims, id) = (Claims::default(), JobId([7; 16]));
        let mut both = [claims.claim(&named(""), None).await, claims.claim(&named(""), None).await];
        both.iter_mut().for_each(|claim| claim.makes(id, 2));
        let [one, other] = both;
        drop(one);
        assert!(claims.is_making(id, 2) && !claims.is_making(id, 1));
        drop(other);
        assert!(!claims.is_making(id, 2));
    }

    #[test]
    fn versions_come_back_from_their_keys() {
        assert_eq!(version_in(&key(JobId([7; 16]), 258)), Some(258));
        assert_eq!(version_in(&[]), None);
    }
}
