//! The part that lives on each connection.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{FutureExt, future::BoxFuture};
use libp2p::{
    InboundUpgrade, StreamProtocol,
    core::upgrade::{ReadyUpgrade, UpgradeInfo},
    swarm::{
        ConnectionHandler, ConnectionHandlerEvent, ConnectionId, StreamUpgradeError, SubstreamProtocol,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::PollSemaphore;

use super::{Activity, Registry, Stream};
use crate::error::OpenError;

/// Streams waiting for a place on one connection; more are told that it is busy.
const MAX_WAITING: usize = 4096;

/// A stream to be opened.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(super) protocol: StreamProtocol,
    /// Whether it may be opened when no place is left: control must not wait for bulk.
    pub(super) exempt: bool,
    pub(super) answer: oneshot::Sender<Result<Stream, OpenError>>,
}

/// A stream being opened, and its place.
pub(crate) struct Opened {
    opening: Opening,
    place: Option<OwnedSemaphorePermit>,
}

pub(crate) struct Handler {
    connection: ConnectionId,
    registry: Registry,
    exempt: Arc<[StreamProtocol]>,
    inbound: Arc<Semaphore>,
    outbound: PollSemaphore,
    activity: Arc<Activity>,
    waiting: VecDeque<Opening>,
    accepted: VecDeque<(StreamProtocol, Stream)>,
}

impl Handler {
    pub(super) fn new(
        connection: ConnectionId,
        registry: Registry,
        exempt: Arc<[StreamProtocol]>,
        streams: usize,
        activity: Arc<Activity>,
    ) -> Self {
        Self {
            connection,
            registry,
            exempt,
            inbound: Arc::new(Semaphore::new(streams)),
            outbound: PollSemaphore::new(Arc::new(Semaphore::new(streams))),
            activity,
            waiting: VecDeque::new(),
            accepted: VecDeque::new(),
        }
    }

    /// Takes the next stream that can be opened now.
    fn poll_opening(&mut self, cx: &mut Context<'_>) -> Poll<Opened> {
        self.waiting.retain(|opening| !opening.answer.is_closed());
        if let Some(at) = self.waiting.iter().position(|opening| opening.exempt)
            && let Some(opening) = self.waiting.remove(at)
        {
            return Poll::Ready(Opened { opening, place: None });
        }
        if self.waiting.is_empty() {
            return Poll::Pending;
        }
        let place = ready!(self.outbound.poll_acquire(cx));
        match self.waiting.pop_front() {
            Some(opening) => Poll::Ready(Opened { opening, place }),
            None => Poll::Pending,
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Opening;
    type ToBehaviour = (StreamProtocol, Stream);
    type InboundProtocol = Agreement;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Opened;

    fn listen_protocol(&self) -> SubstreamProtocol<Agreement> {
        let agreement = Agreement {
            protocols: self.registry.protocols(),
            exempt: Arc::clone(&self.exempt),
            places: Arc::clone(&self.inbound),
        };
        SubstreamProtocol::new(agreement, ())
    }

    fn on_behaviour_event(&mut self, opening: Opening) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(opening);
        } else {
            // Who asked may have given up.
            let _ = opening.answer.send(Err(OpenError::Busy));
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, Opened, (StreamProtocol, Stream)>> {
        if let Some(accepted) = self.accepted.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(accepted));
        }
        let opened = ready!(self.poll_opening(cx));
        let upgrade = ReadyUpgrade::new(opened.opening.protocol.clone());
        Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
            protocol: SubstreamProtocol::new(upgrade, opened),
        })
    }

    /// Streams that were agreed on just before the connection closed still hold what the peer wrote.
    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Option<(StreamProtocol, Stream)>> {
        Poll::Ready(self.accepted.pop_front())
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Agreement, ReadyUpgrade<StreamProtocol>, (), Opened>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (protocol, stream, place),
                ..
            }) => {
                let stream = Stream::new(stream, self.connection, Arc::clone(&self.activity), place);
                self.accepted.push_back((protocol, stream));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: Opened { opening, place },
            }) => {
                let stream = Stream::new(stream, self.connection, Arc::clone(&self.activity), place);
                // Who asked may have given up: the stream is reset then.
                let _ = opening.answer.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let error = match error {
                    StreamUpgradeError::Timeout => OpenError::Timeout,
                    StreamUpgradeError::NegotiationFailed => {
                        OpenError::Unsupported(info.opening.protocol.to_string())
                    }
                    StreamUpgradeError::Io(_) => OpenError::Disconnected,
                    StreamUpgradeError::Apply(never) => match never {},
                };
                let _ = info.opening.answer.send(Err(error));
            }
            _ => {}
        }
    }
}

/// Agrees to an inbound stream once there is a place for it.
///
/// Meanwhile the stream counts as being negotiated; with enough of those libp2p takes no more streams
/// from the connection, and the peer's muxer holds back the rest.
pub(crate) struct Agreement {
    protocols: Arc<[StreamProtocol]>,
    exempt: Arc<[StreamProtocol]>,
    places: Arc<Semaphore>,
}

impl UpgradeInfo for Agreement {
    type Info = StreamProtocol;
    type InfoIter = Offer;

    fn protocol_info(&self) -> Offer {
        Offer { protocols: Arc::clone(&self.protocols), next: 0 }
    }
}

impl InboundUpgrade<libp2p::Stream> for Agreement {
    type Output = (StreamProtocol, libp2p::Stream, Option<OwnedSemaphorePermit>);
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: libp2p::Stream, protocol: StreamProtocol) -> Self::Future {
        if self.exempt.contains(&protocol) {
            return futures::future::ready(Ok((protocol, stream, None))).boxed();
        }
        async move {
            // Never closed, so there is a place sooner or later, or libp2p's time-out.
            let place = self.places.acquire_owned().await.ok();
            Ok((protocol, stream, place))
        }
        .boxed()
    }
}

/// The accepted protocols, without a copy of the list: libp2p asks at every turn of a connection.
pub(crate) struct Offer {
    protocols: Arc<[StreamProtocol]>,
    next: usize,
}

impl Iterator for Offer {
    type Item = StreamProtocol;

    fn next(&mut self) -> Option<StreamProtocol> {
        let protocol = self.protocols.get(self.next)?;
        self.next += 1;
        Some(protocol.clone())
    }
}
