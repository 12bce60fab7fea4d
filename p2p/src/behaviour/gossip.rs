//! Gossipsub's settings: who is listened to, what a message is called, and what bad behaviour costs.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use libp2p::gossipsub::{
    self, ConfigBuilder, IdentTopic, MaxCountSubscriptionFilter, Message, MessageAuthenticity, MessageId,
    PeerScoreParams, PeerScoreThresholds, TopicHash, TopicScoreParams, ValidationMode,
    WhitelistSubscriptionFilter,
};
use sha2::{Digest, Sha256};

use crate::{Config, HostError, names::Names};

/// The largest message: announcements have up to 4 KiB, everything else goes directly.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 << 10;
/// Longer than any message's time to live, so that it cannot come round again.
const REMEMBERED: Duration = Duration::from_secs(600);
/// The first mesh is built this soon; the default of 5 s would be most of a small swarm's start.
const FIRST_HEARTBEAT: Duration = Duration::from_millis(500);
/// Messages waiting for one peer.
const QUEUE: usize = 1000;
/// Heartbeats that a message is kept for its verdict and for peers that missed it.
const HISTORY: usize = 10;
/// Peers on one address before they count as one with many faces.
const FACES: f64 = 10.0;

/// Only this swarm's topics, by anybody.
pub(crate) type Subscriptions = MaxCountSubscriptionFilter<WhitelistSubscriptionFilter>;

pub(super) fn behaviour(config: &Config, names: &Names) -> Result<super::Gossip, HostError> {
    let bad = |reason: String| HostError::Setting { setting: "gossip", reason };
    let topics = topics(config, names)?;
    let settings = ConfigBuilder::default()
        .protocol_id_prefix(names.protocol("gossip")?.to_string())
        .validation_mode(ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(|message: &Message| MessageId::new(&id(&message.topic, &message.data)))
        .max_transmit_size(MAX_MESSAGE_BYTES)
        .duplicate_cache_time(REMEMBERED)
        .heartbeat_initial_delay(FIRST_HEARTBEAT)
        .heartbeat_interval(Duration::from_secs(1))
        .mesh_n(8)
        .mesh_n_low(6)
        .mesh_n_high(12)
        .mesh_outbound_min(2)
        .gossip_lazy(8)
        .history_length(HISTORY)
        .flood_publish(true)
        .connection_handler_queue_len(QUEUE)
        .build()
        .map_err(|error| bad(error.to_string()))?;
    let filter = MaxCountSubscriptionFilter {
        max_subscribed_topics: topics.len(),
        // A peer may take and leave each topic in one message.
        max_subscriptions_per_request: 2 * topics.len(),
        filter: WhitelistSubscriptionFilter(topics.clone()),
    };
    let mut gossip =
        gossipsub::Behaviour::new_with_subscription_filter(MessageAuthenticity::Anonymous, settings, filter)
            .map_err(|error| bad(error.to_owned()))?;
    gossip.with_peer_score(scores(topics), thresholds()).map_err(bad)?;
    Ok(gossip)
}

fn topics(config: &Config, names: &Names) -> Result<HashSet<TopicHash>, HostError> {
    let topics = config.topics.iter();
    topics.map(|name| Ok(IdentTopic::new(names.topic(name)?).hash())).collect()
}

/// The name of a message: its topic and data, nothing else, so that a copy is a copy whoever sends it.
fn id(topic: &TopicHash, data: &[u8]) -> [u8; 32] {
    let topic = topic.as_str().as_bytes();
    let mut hash = Sha256::new();
    hash.update((topic.len() as u64).to_be_bytes());
    hash.update(topic);
    hash.update(data);
    hash.finalize().into()
}

/// An invalid message a second is graylisted after three; honest peers never come near.
fn thresholds() -> PeerScoreThresholds {
    PeerScoreThresholds {
        gossip_threshold: -40.0,
        publish_threshold: -80.0,
        graylist_threshold: -160.0,
        accept_px_threshold: 100.0,
        opportunistic_graft_threshold: 5.0,
    }
}

fn scores(topics: HashSet<TopicHash>) -> PeerScoreParams {
    let topic = TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.03,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 300.0,
        first_message_deliveries_weight: 0.5,
        first_message_deliveries_decay: 0.99,
        first_message_deliveries_cap: 20.0,
        // Job topics are quiet: a peer that delivers nothing may have nothing.
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -20.0,
        invalid_message_deliveries_decay: 0.9988,
        ..TopicScoreParams::default()
    };
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    PeerScoreParams {
        topics: topics.into_iter().map(|hash| (hash, topic.clone())).collect::<HashMap<_, _>>(),
        topic_score_cap: 40.0,
        app_specific_weight: 1.0,
        ip_colocation_factor_weight: -5.0,
        ip_colocation_factor_threshold: FACES,
        // `OnePeer` shows private addresses as loopback where they are trusted.
        ip_colocation_factor_whitelist: loopback.into(),
        ..PeerScoreParams::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    #[test]
    fn the_settings_are_valid_and_the_id_depends_on_topic_and_data() {
        let mut config = Config::new(Identity::from_seed([1; 32]), "t");
        config.topics = vec!["jobs/1/wasm".into()];
        assert!(behaviour(&config, &Names::new("t").unwrap()).is_ok());
        let (a, b) = (TopicHash::from_raw("a"), TopicHash::from_raw("ab"));
        assert_ne!(id(&a, b"bc"), id(&b, b"c"));
        assert_eq!(id(&a, b"x"), id(&a, b"x"));
    }
}
