//! What runs on this node now, and its output while it runs.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use engines::Running;
use job::{ExecutionId, ExecutionKey};

/// Executions that run here. Bounded by the worker machine's slots: it starts no more.
#[derive(Default)]
pub struct Live {
    running: Mutex<BTreeMap<ExecutionKey, Running>>,
}

impl Live {
    /// An execution began.
    pub fn started(&self, execution: ExecutionKey, running: Running) {
        self.lock().insert(execution, running);
    }

    /// It ended.
    pub fn ended(&self, execution: ExecutionKey) {
        self.lock().remove(&execution);
    }

    /// A running execution by its public name, with the key that names its job.
    pub fn find(&self, id: ExecutionId) -> Option<(ExecutionKey, Running)> {
        self.lock().iter().find(|(key, _)| key.id() == id).map(|(key, running)| (*key, running.clone()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ExecutionKey, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
