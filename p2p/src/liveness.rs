//! Whether a watched peer is alive: a byte string sent every second, and the same one back.
//!
//! libp2p's ping measures round trips of all connections, slowly; this one is fast, and only for peers that carry live work.

use std::{io, sync::Arc, time::Duration};

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::{PeerId, swarm::ConnectionId};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::debug;

use crate::{Event, Metrics, OpenError, Stream, event::Sink, opener::Opener, streams::Activity};

/// How often a watched peer is asked.
const EVERY: Duration = Duration::from_secs(1);
/// Without a byte from the peer for this long, it is silent.
const SILENCE: Duration = Duration::from_secs(3);
/// A timer that fires later than this says that we were asleep, not the peer.
const OVERSLEPT: Duration = Duration::from_millis(500);
/// How long a superseded connection may take to answer. It costs little to close one that was only slow: there
/// is a newer one.
const PROBE: Duration = Duration::from_secs(5);
/// Bytes of one ping.
const PING: usize = 8;

/// The task that watches one connected peer. Ended when dropped.
#[derive(Debug)]
pub(crate) struct Watcher(JoinHandle<()>);

impl Watcher {
    pub(crate) fn start(
        peer: PeerId,
        opener: Opener,
        activity: Arc<Activity>,
        events: Sink,
        metrics: Arc<Metrics>,
    ) -> Self {
        activity.touch();
        Self(tokio::spawn(async move { watch(peer, &opener, &activity, &events, &metrics).await }))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn watch(peer: PeerId, opener: &Opener, activity: &Activity, events: &Sink, metrics: &Metrics) {
    let answered = Notify::new();
    let mut pings = std::pin::pin!(ping_forever(peer, opener, &answered));
    let mut silent = false;
    loop {
        let quiet_at = activity.last() + SILENCE;
        tokio::select! {
            biased;
            () = answered.notified() => if std::mem::take(&mut silent) {
                events.put_task(Event::Heard { peer });
            },
            () = &mut pings => return,
            () = sleep_until(quiet_at), if !silent => {
                let now = Instant::now();
                if now > quiet_at + OVERSLEPT {
                    activity.touch();
                } else if activity.last() + SILENCE <= now {
                    silent = true;
                    metrics.silences.add(1);
                    events.put_task(Event::Silent { peer });
                }
            }
        }
    }
}

/// Pings over one stream after another, until the host stops.
async fn ping_forever(peer: PeerId, opener: &Opener, answered: &Notify) {
    loop {
        let error = match opener.echo(peer).await {
            Ok(stream) => ping(stream, answered).await.err().map(|error| error.to_string()),
            Err(OpenError::Stopped) => return,
            Err(error) => Some(error.to_string()),
        };
        debug!(%peer, ?error, "pings broke off");
        sleep(EVERY).await;
    }
}

async fn ping(mut stream: Stream, answered: &Notify) -> io::Result<()> {
    let mut count: u64 = 0;
    loop {
        count += 1;
        stream.write_all(&count.to_be_bytes()).await?;
        stream.flush().await?;
        let mut echo = [0; PING];
        stream.read_exact(&mut echo).await?;
        answered.notify_one();
        sleep(EVERY).await;
    }
}

/// Whether a connection still leads to its peer. A refusal is an answer too.
pub(crate) async fn probe(peer: PeerId, connection: ConnectionId, opener: &Opener) -> bool {
    let asked = async {
        match opener.echo_on(peer, connection).await {
            Ok(mut stream) => {
                let mut echo = [0; PING];
                let asked = stream.write_all(&[0; PING]).await.is_ok() && stream.flush().await.is_ok();
                // A stream that ends was ended by somebody.
                let _ = asked && stream.read_exact(&mut echo).await.is_ok();
                true
            }
            Err(error) => !matches!(error, OpenError::Timeout),
        }
    };
    timeout(PROBE, asked).await.unwrap_or(false)
}

/// Sends back what comes, until the peer ends the stream.
pub(crate) async fn echo(mut stream: Stream) {
    let mut ping = [0; PING];
    while stream.read_exact(&mut ping).await.is_ok()
        && stream.write_all(&ping).await.is_ok()
        && stream.flush().await.is_ok()
    {}
}
