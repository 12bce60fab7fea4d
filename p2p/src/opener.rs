//! How helpers of the network task ask it for streams, without keeping it alive.

use libp2p::{PeerId, StreamProtocol, swarm::ConnectionId};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Stream,
    error::{NameError, OpenError},
    names::Names,
    shared::Command,
};

/// The protocols that the network task itself speaks.
#[derive(Debug, Clone)]
pub(crate) struct OwnProtocols {
    pub(crate) frames: StreamProtocol,
    pub(crate) echo: StreamProtocol,
    pub(crate) requests: StreamProtocol,
}

impl OwnProtocols {
    pub(crate) fn new(names: &Names) -> Result<Self, NameError> {
        Ok(Self {
            frames: names.protocol("ctl/1")?,
            echo: names.protocol("echo/1")?,
            requests: names.protocol("ask/1")?,
        })
    }
}

/// Opens streams of our own protocols.
#[derive(Debug, Clone)]
pub(crate) struct Opener {
    pub(crate) commands: mpsc::WeakSender<Command>,
    pub(crate) own: OwnProtocols,
}

impl Opener {
    pub(crate) async fn frames(&self, peer: PeerId) -> Result<Stream, OpenError> {
        self.open(peer, self.own.frames.clone(), None).await
    }

    pub(crate) async fn echo(&self, peer: PeerId) -> Result<Stream, OpenError> {
        self.open(peer, self.own.echo.clone(), None).await
    }

    /// The same over one of the peer's connections.
    pub(crate) async fn echo_on(&self, peer: PeerId, connection: ConnectionId) -> Result<Stream, OpenError> {
        self.open(peer, self.own.echo.clone(), Some(connection)).await
    }

    async fn open(
        &self,
        peer: PeerId,
        protocol: StreamProtocol,
        on: Option<ConnectionId>,
    ) -> Result<Stream, OpenError> {
        let (answer, answered) = oneshot::channel();
        let commands = self.commands.upgrade().ok_or(OpenError::Stopped)?;
        let command = Command::Open { peer, protocol, on, answer };
        commands.send(command).await.map_err(|_| OpenError::Stopped)?;
        drop(commands);
        answered.await.unwrap_or(Err(OpenError::Disconnected))
    }
}
