//! Gossip: between the owner of the host and gossipsub.

use std::sync::Arc;

use bytes::Bytes;
use libp2p::{
    PeerId,
    gossipsub::{self, IdentTopic, MessageAcceptance, MessageId, TopicHash},
};
use tracing::debug;

use super::Task;
use crate::{Event, GossipId, PublishError, TopicError, TopicPeers, Verdict, behaviour::MAX_MESSAGE_BYTES};

impl Task {
    pub(super) fn subscription(&mut self, name: String, on: bool) -> Result<(), TopicError> {
        let Ok(topic) = self.shared.names.topic(&name) else {
            return Err(TopicError::UnknownTopic(name));
        };
        let topic = IdentTopic::new(topic);
        let gossip = &mut self.swarm.behaviour_mut().gossip.inner;
        if !on {
            gossip.unsubscribe(&topic);
            return Ok(());
        }
        match gossip.subscribe(&topic) {
            Ok(_) => Ok(()),
            Err(error) => {
                debug!(%error, name, "not subscribed");
                Err(TopicError::UnknownTopic(name))
            }
        }
    }

    pub(super) fn publish(&mut self, name: String, data: &Bytes) -> Result<(), PublishError> {
        let Some(topic) = self.known_topic(&name) else {
            return Err(PublishError::UnknownTopic(name));
        };
        let published = self.swarm.behaviour_mut().gossip.inner.publish(topic, data.to_vec());
        let metrics = &self.shared.metrics;
        match published {
            Ok(_) => {
                metrics.gossip_published.add(1);
                Ok(())
            }
            Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => {
                metrics.gossip_no_peers.add(1);
                Err(PublishError::NoPeers)
            }
            Err(gossipsub::PublishError::MessageTooLarge) => {
                metrics.gossip_too_large.add(1);
                Err(PublishError::TooLarge(MAX_MESSAGE_BYTES))
            }
            Err(gossipsub::PublishError::AllQueuesFull(_)) => {
                metrics.gossip_full.add(1);
                Err(PublishError::Full)
            }
            Err(gossipsub::PublishError::Duplicate) => {
                metrics.gossip_duplicate.add(1);
                Err(PublishError::Duplicate)
            }
            Err(error) => Err(PublishError::Other(error.to_string())),
        }
    }

    pub(super) fn topic_peers(&self, name: String) -> Result<TopicPeers, TopicError> {
        let Some(topic) = self.known_topic(&name) else {
            return Err(TopicError::UnknownTopic(name));
        };
        let gossip = &self.swarm.behaviour().gossip.inner;
        let subscribed = gossip.all_peers().filter(|(_, topics)| topics.contains(&&topic));
        Ok(TopicPeers {
            subscribed: subscribed.map(|(peer, _)| *peer).collect(),
            mesh: gossip.mesh_peers(&topic).copied().collect(),
        })
    }

    /// The topic of a name; `None` when it is not one of this swarm's.
    fn known_topic(&self, name: &str) -> Option<TopicHash> {
        let topic = IdentTopic::new(self.shared.names.topic(name).ok()?).hash();
        self.config.topics.contains(&topic).then_some(topic)
    }

    pub(super) fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                self.on_message(propagation_source, &message_id, message);
            }
            gossipsub::Event::Subscribed { peer_id, topic } => {
                if let Some(topic) = self.shared.names.short_topic(&topic) {
                    self.emit(Event::Subscribed { peer: peer_id, topic });
                }
            }
            gossipsub::Event::Unsubscribed { peer_id, topic } => {
                if let Some(topic) = self.shared.names.short_topic(&topic) {
                    self.emit(Event::Unsubscribed { peer: peer_id, topic });
                }
            }
            gossipsub::Event::SlowPeer { failed_messages, .. } => {
                let failed = failed_messages.priority + failed_messages.non_priority;
                self.shared.metrics.gossip_slow_peer.add(failed);
            }
            gossipsub::Event::GossipsubNotSupported { peer_id } => {
                debug!(peer = %peer_id, "speaks no gossip of this swarm");
            }
        }
    }

    fn on_message(&mut self, relay: PeerId, id: &MessageId, message: gossipsub::Message) {
        let name: Option<Arc<str>> = self.shared.names.short_topic(&message.topic);
        // Ours have 32 bytes: our own function makes them.
        let (Some(topic), Ok(bytes)) = (name, <[u8; 32]>::try_from(&*id.0)) else { return };
        if !self.events.has_gossip_room() {
            self.shared.metrics.gossip_overflow.add(1);
            let gossip = &mut self.swarm.behaviour_mut().gossip.inner;
            gossip.report_message_validation_result(id, &relay, MessageAcceptance::Ignore);
            return;
        }
        self.shared.metrics.gossip_received.add(1);
        let id = GossipId(bytes);
        self.emit(Event::Gossip { id, relay, topic, data: message.data.into() });
    }

    pub(super) fn on_verdict(&mut self, id: GossipId, relay: PeerId, verdict: Verdict) {
        let metrics = &self.shared.metrics;
        let acceptance = match verdict {
            Verdict::Accept => {
                metrics.gossip_accepted.add(1);
                MessageAcceptance::Accept
            }
            Verdict::Reject => {
                metrics.gossip_rejected.add(1);
                MessageAcceptance::Reject
            }
            Verdict::Ignore => {
                metrics.gossip_ignored.add(1);
                MessageAcceptance::Ignore
            }
        };
        let (id, gossip) = (MessageId::new(&id.0), &mut self.swarm.behaviour_mut().gossip.inner);
        if !gossip.report_message_validation_result(&id, &relay, acceptance) {
            metrics.gossip_late_verdicts.add(1);
        }
        if verdict == Verdict::Reject {
            self.penalise(relay, "rejected gossip");
        }
    }
}
