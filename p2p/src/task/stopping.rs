//! The end: say what is left to say, close everything, keep the book.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::Task;

/// How long queued frames may take to be flushed.
const FLUSH: Duration = Duration::from_millis(300);
/// How long connections may take to close.
const CLOSE: Duration = Duration::from_millis(500);

impl Task {
    pub(super) async fn shut_down(mut self) {
        self.watched.clear();
        self.lost.clear();
        self.shared.links.stop();
        self.flush(Instant::now() + FLUSH).await;
        self.close_all(Instant::now() + CLOSE).await;
        if let Some(saving) = self.saving.take() {
            // A failed save has been logged.
            let _ = saving.await;
        }
        self.save_book();
        if let Some(saving) = self.saving.take() {
            let _ = saving.await;
        }
    }

    /// Runs the swarm until connected peers have read what was queued for them.
    async fn flush(&mut self, deadline: Instant) {
        while !self.shared.links.is_finished(|peer| self.peers.contains_key(peer)) {
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return debug!("frames are left unsent"),
                () = self.shared.links.retired() => {}
                Some(command) = self.commands.recv() => self.on_command(command),
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
            }
        }
    }

    async fn close_all(&mut self, deadline: Instant) {
        let peers: Vec<_> = self.peers.keys().copied().collect();
        for peer in peers {
            self.disconnect(peer);
        }
        while !self.peers.is_empty() {
            match timeout_at(deadline, self.swarm.select_next_some()).await {
                Ok(event) => self.on_swarm_event(event),
                Err(_) => return debug!("connections are left open"),
            }
        }
    }
}
