//! Makes guests yield: counts wasmtime's epoch up while any of them runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Thread};

use wasmtime::Engine;

use super::config::EPOCH;

/// A thread that ticks while guests run and sleeps while none does.
#[derive(Debug)]
pub(super) struct Ticker {
    running: Arc<AtomicUsize>,
    thread: Thread,
}

impl Ticker {
    /// Starts the thread; it lasts as long as the process.
    pub fn start(engine: Engine) -> std::io::Result<Self> {
        let running = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&running);
        let handle = thread::Builder::new().name("ticker".into()).spawn(move || {
            loop {
                if count.load(Ordering::Acquire) == 0 {
                    // `enter` unparks after counting, so a wake-up cannot be missed.
                    thread::park();
                } else {
                    thread::sleep(EPOCH);
                    engine.increment_epoch();
                }
            }
        })?;
        Ok(Ticker { running, thread: handle.thread().clone() })
    }

    /// A guest runs until what this returns is dropped.
    pub fn enter(&self) -> Ticking {
        if self.running.fetch_add(1, Ordering::AcqRel) == 0 {
            self.thread.unpark();
        }
        Ticking(Arc::clone(&self.running))
    }
}

/// One guest that runs.
#[derive(Debug)]
pub(super) struct Ticking(Arc<AtomicUsize>);

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
