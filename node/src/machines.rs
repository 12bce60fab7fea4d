//! The two machines as shells see them.

use std::sync::Arc;

use gossip::crypto::Ed25519;
use gossip::owner::{self, Owner};
use gossip::record::{Kind, Record, RecordKey};
use gossip::worker::{self, Local, Worker};
use job::Time;
use storage::records::{Batch, Records, Table};

use crate::config::{Accept, Config};
use crate::read;
use crate::shell::{Machine, Restore, RestoreError};
use crate::submit::naming;

fn put(batch: &mut Batch, table: Table, record: &Record) {
    batch.put(table, record.key.to_bytes(), record.value.clone());
}

fn delete(batch: &mut Batch, table: Table, key: &RecordKey) {
    batch.delete(table, key.to_bytes());
}

/// Puts the end of all records of a job version into the batch, if that is what an effect is; the rest of it is
/// performed.
fn forget_job(effect: &owner::Effect, batch: &mut Batch) {
    if let owner::Effect::ForgetJob { job, version } = effect {
        batch.delete_prefix(Table::OWNER, read::Kept { job: *job, version: *version }.prefix());
        naming::forget(batch, *job, *version);
    }
}

/// All that is durable of a worker's effects is records.
fn nothing_more(_: &worker::Effect, _: &mut Batch) {}

macro_rules! machine {
    ($machine:ty, $module:ident, $table:expr, $name:literal, $more:expr) => {
        impl Machine for $machine {
            type Input = $module::Input;
            type Effect = $module::Effect;

            const TABLE: Table = $table;
            const NAME: &'static str = $name;

            fn handle(&mut self, now: Time, input: Self::Input, out: &mut Vec<Self::Effect>) {
                self.handle(now, input, out);
            }

            fn settle(&mut self, now: Time, out: &mut Vec<Self::Effect>) {
                self.settle(now, out);
            }

            fn next_wakeup(&self) -> Option<Time> {
                self.next_wakeup()
            }

            fn tick() -> Self::Input {
                $module::Input::Tick
            }

            fn persist(effect: &Self::Effect, batch: &mut Batch) -> bool {
                match effect {
                    $module::Effect::Persist(record) => put(batch, $table, record),
                    $module::Effect::Forget(key) => delete(batch, $table, key),
                    more => {
                        $more(more, batch);
                        return false;
                    }
                }
                true
            }
        }
    };
}

machine!(Owner, owner, Table::OWNER, "owner", forget_job);
machine!(Worker, worker, Table::WORKER, "worker", nothing_more);

/// What both machines are told about who they are.
pub struct Who {
    /// This node.
    pub me: job::PeerId,
    /// Its swarm.
    pub swarm: String,
    /// Its signatures.
    pub crypto: Arc<Ed25519>,
}

fn records(records: &Records, table: Table) -> Result<Vec<Record>, RestoreError> {
    let mut found = Vec::new();
    read::all(records, table, &[], &mut |record| found.push(record))?;
    Ok(found)
}

/// What the owner machine needs: the records of job versions that are not settled, and of the others the one that says
/// so. The rest of these is only looked up: it may be much.
fn unsettled(records: &Records) -> Result<Vec<Record>, RestoreError> {
    let mut found = Vec::new();
    for version in read::versions_kept(records) {
        let version = version?;
        match version.one(records, Kind::Settled)? {
            Some(settled) => found.push(settled),
            None => found.append(&mut version.all(records)?),
        }
    }
    Ok(found)
}

fn seed() -> Result<[u8; 32], RestoreError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| RestoreError::Randomness(error.to_string()))?;
    Ok(seed)
}

/// Brings the owner machine back.
pub fn owner(who: &Who, settings: owner::Settings) -> Restore<Owner> {
    let (me, swarm, crypto) = (who.me, who.swarm.clone(), Arc::clone(&who.crypto));
    Arc::new(move |database, now| {
        let identity = owner::Identity { me, swarm: swarm.clone(), crypto: crypto.clone(), seed: seed()? };
        let mut out = Vec::new();
        let stored = unsettled(database)?;
        let owner = Owner::restore(settings.clone(), identity, stored, now, &mut out)
            .map_err(|error| RestoreError::Damaged("owner", error.to_string()))?;
        Ok((owner, out))
    })
}

/// Brings the worker machine back.
pub fn worker(who: &Who, settings: worker::Settings, local: Arc<dyn Local>) -> Restore<Worker> {
    let (me, swarm, crypto) = (who.me, who.swarm.clone(), Arc::clone(&who.crypto));
    Arc::new(move |database, now| {
        let identity = worker::Identity {
            me,
            swarm: swarm.clone(),
            crypto: crypto.clone(),
            local: Arc::clone(&local),
            seed: seed()?,
        };
        let mut out = Vec::new();
        let stored = records(database, Table::WORKER)?;
        let worker = Worker::restore(settings.clone(), identity, stored, now, &mut out)
            .map_err(|error| RestoreError::Damaged("worker", error.to_string()))?;
        Ok((worker, out))
    })
}

/// How the owner machine behaves on this node.
pub fn owner_settings(config: &Config, addresses: Vec<String>) -> owner::Settings {
    owner::Settings {
        own_worker: config.worker,
        addresses,
        queue_timeout: config.settings.queue_timeout,
        retention: config.settings.retention.time,
        retained_jobs: config.settings.retention.jobs,
        retained_executions: config.settings.retention.executions,
        ..owner::Settings::default()
    }
}

/// How the worker machine behaves on this node; one that runs nothing has no engines.
pub fn worker_settings(
    config: &Config,
    capacity: Option<job::Resources>,
    slots: u32,
    labels: &std::collections::BTreeMap<String, String>,
) -> worker::Settings {
    use worker::Policy;
    let accept = if config.embedded { Accept::Own } else { config.settings.accept };
    let wasm = |policy: Policy| Policy { networks: Default::default(), ..policy };
    let from = |class: Accept, policy: Policy| {
        let open = match class {
            Accept::Own => true,
            Accept::Trusted => accept != Accept::Own,
            Accept::Anyone => accept == Accept::Anyone,
        };
        if open && capacity.is_some() { wasm(policy) } else { Policy::nothing() }
    };
    let runs = |names: &[&str]| {
        if capacity.is_some() {
            names.iter().map(|name| (*name).to_owned()).collect()
        } else {
            Default::default()
        }
    };
    worker::Settings {
        capacity: capacity.unwrap_or_default(),
        slots: if capacity.is_some() { slots } else { 0 },
        engines: runs(&["wasm"]),
        publishers: runs(&["ipfs", "local", "noop"]),
        sources: runs(&["inline", "ipfs"]),
        labels: labels.clone(),
        own: from(Accept::Own, Policy::everything()),
        trusted: from(Accept::Trusted, Policy::everything()),
        member: from(Accept::Anyone, Policy::strangers()),
        anyone: from(Accept::Anyone, Policy::strangers()),
        trusted_peers: config.trusted.iter().copied().collect(),
        ..worker::Settings::default()
    }
}
