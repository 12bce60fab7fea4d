//! Gossip topics and the parameters under which peers are scored on them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A class of jobs, and the topic on which they are announced. A node subscribes to what it can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// WebAssembly without GPUs.
    #[serde(rename = "w")]
    Wasm,
    /// Containers without GPUs.
    #[serde(rename = "d")]
    Docker,
    /// Anything that needs a GPU.
    #[serde(rename = "g")]
    Gpu,
    /// Ops, daemon and service jobs.
    #[serde(rename = "f")]
    Fleet,
}

impl Class {
    /// Every class.
    pub const ALL: [Class; 4] = [Class::Wasm, Class::Docker, Class::Gpu, Class::Fleet];

    /// The topic's name in a swarm.
    ///
    /// ```
    /// assert_eq!(gossip::topic::Class::Wasm.topic("public"), "/cardume/public/jobs/1/wasm");
    /// ```
    pub fn topic(self, swarm: &str) -> String {
        match self {
            Class::Wasm => format!("/cardume/{swarm}/jobs/1/wasm"),
            Class::Docker => format!("/cardume/{swarm}/jobs/1/docker"),
            Class::Gpu => format!("/cardume/{swarm}/jobs/1/gpu"),
            Class::Fleet => format!("/cardume/{swarm}/fleet/1"),
        }
    }

    /// The class whose topic in this swarm has this name.
    pub fn of_topic(topic: &str, swarm: &str) -> Option<Class> {
        Class::ALL.into_iter().find(|class| class.topic(swarm) == topic)
    }
}

/// The protocol id of direct messages in a swarm. The major version is part of the name.
pub fn direct_protocol(swarm: &str) -> String {
    format!("/cardume/{swarm}/direct/1")
}

/// How the mesh of a topic is kept and how its peers are scored. The defaults of gossipsub's library
/// defend nothing (a spammer even gains); these graylist one after three bad messages.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    /// Mesh peers wanted, least, most, and least of those dialled by us.
    pub mesh: (usize, usize, usize, usize),
    /// Peers told lazily.
    pub lazy: usize,
    /// Between mesh upkeep.
    pub heartbeat: Duration,
    /// Largest message on the wire: an announcement message and gossipsub's frame.
    pub max_transmit_bytes: usize,
    /// How long ids of messages are remembered: longer than any announcement lives.
    pub duplicate_cache: Duration,
    /// First message deliveries: weight, decay, cap.
    pub first_deliveries: (f64, f64, f64),
    /// Time in mesh: weight, quantum, cap.
    pub time_in_mesh: (f64, Duration, f64),
    /// Invalid messages: weight, decay. Deliveries missed are not scored: job topics are quiet.
    pub invalid_messages: (f64, f64),
    /// Most that one topic can add.
    pub topic_score_cap: f64,
    /// Peers on one address that are free, and the weight above. Loopback and private networks are exempt.
    pub colocation: (f64, f64),
    /// Scores below which a peer gets no gossip, no publications, nothing at all.
    pub thresholds: (f64, f64, f64),
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            mesh: (8, 6, 12, 3),
            lazy: 8,
            heartbeat: Duration::from_secs(1),
            max_transmit_bytes: 16 << 10,
            duplicate_cache: Duration::from_secs(600),
            first_deliveries: (0.5, 0.99, 20.0),
            time_in_mesh: (0.03, Duration::from_secs(1), 300.0),
            invalid_messages: (-20.0, 0.9988),
            topic_score_cap: 40.0,
            colocation: (10.0, -5.0),
            thresholds: (-40.0, -80.0, -160.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_name_their_swarm_and_read_back() {
        for class in Class::ALL {
            assert_eq!(Class::of_topic(&class.topic("s"), "s"), Some(class));
            assert_eq!(Class::of_topic(&class.topic("s"), "other"), None);
        }
    }
}
