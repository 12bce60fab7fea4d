//! Refuses inbound connections while the process is too large. What is connected stays.

use std::{
    convert::Infallible,
    fs,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dummy,
    },
};

/// A burst of connections asks the system once.
const STALE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
#[error("the process holds {resident} bytes, more than {max}: no new connections")]
struct TooLarge {
    resident: u64,
    max: u64,
}

pub(crate) struct Behaviour {
    /// 0: no limit.
    max: u64,
    asked: Option<Instant>,
    resident: u64,
}

impl Behaviour {
    pub(super) fn new(max: u64) -> Self {
        Self { max, asked: None, resident: 0 }
    }

    fn check(&mut self) -> Result<(), ConnectionDenied> {
        if self.max == 0 {
            return Ok(());
        }
        if self.asked.is_none_or(|asked| asked.elapsed() > STALE) {
            self.asked = Some(Instant::now());
            // Systems that do not say have no limit.
            self.resident = resident_bytes().unwrap_or(0);
        }
        if self.resident > self.max {
            return Err(ConnectionDenied::new(TooLarge { resident: self.resident, max: self.max }));
        }
        Ok(())
    }
}

/// Memory that the process has filled itself; files that it has mapped do not count.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.check()
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_connections_are_refused_only_above_the_limit() {
        assert!(Behaviour::new(0).check().is_ok());
        assert!(Behaviour::new(u64::MAX).check().is_ok());
        if resident_bytes().is_some() {
            assert!(Behaviour::new(1).check().is_err());
        }
    }
}
