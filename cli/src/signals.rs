//! Ctrl-C, and being told to end: a command that hears of it leaves things as they should be.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// The signals that end a command. From the first one made on, none of them ends the process by itself.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Listens for them.
    pub fn new() -> Result<Self, Failure> {
        let open = |kind| signal(kind).map_err(|error| Failure::local("cannot listen for signals", &error));
        Ok(Signals { interrupt: open(SignalKind::interrupt())?, terminate: open(SignalKind::terminate())? })
    }

    /// Waits for one. Dropping the future loses none.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Does something unless a signal comes first, which is this failure then.
    pub async fn or<T>(
        &mut self,
        work: impl Future<Output = Result<T, Failure>>,
        interrupted: impl FnOnce() -> Failure,
    ) -> Result<T, Failure> {
        tokio::select! {
            done = work => done,
            () = self.next() => Err(interrupted()),
        }
    }
}
