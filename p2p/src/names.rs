//! Names on the wire: everything of one swarm lives below `/cardume/<swarm>/`.

use std::sync::Arc;

use libp2p::{StreamProtocol, gossipsub::TopicHash};

use crate::error::NameError;

/// Short enough for a DNS label and for every protocol name made from it.
const MAX_SWARM_NAME: usize = 63;
/// Protocol names are compared on every new stream: they stay short.
const MAX_SHORT_NAME: usize = 64;
/// A name built from swarm and short name fits; multistream-select allows up to 140 bytes.
const MAX_EXACT_NAME: usize = 139;

/// Makes protocol and topic names of one swarm.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    prefix: Arc<str>,
}

impl Names {
    pub(crate) fn new(swarm: &str) -> Result<Self, NameError> {
        let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if swarm.is_empty() || swarm.len() > MAX_SWARM_NAME || !swarm.bytes().all(good) {
            return Err(error("swarm", swarm, "1 to 63 of a-z, 0-9 and -"));
        }
        Ok(Self { prefix: format!("/cardume/{swarm}/").into() })
    }

    /// The protocol of a short name, or the name itself when it starts with a slash.
    pub(crate) fn protocol(&self, name: &str) -> Result<StreamProtocol, NameError> {
        let full = match name.strip_prefix('/') {
            Some(_) => check_exact(name)?.to_owned(),
            None => format!("{}{}", self.prefix, check_short("protocol", name)?),
        };
        StreamProtocol::try_from_owned(full)
            .map_err(|_| error("protocol", name, "a name with a leading slash"))
    }

    /// The topic of a short name.
    pub(crate) fn topic(&self, name: &str) -> Result<String, NameError> {
        Ok(format!("{}{}", self.prefix, check_short("topic", name)?))
    }

    /// The short name of one of this swarm's topics.
    pub(crate) fn short_topic(&self, topic: &TopicHash) -> Option<Arc<str>> {
        topic.as_str().strip_prefix(&*self.prefix).map(Arc::from)
    }

    /// What identify calls the protocol family; peers of other swarms say something else.
    pub(crate) fn family(&self) -> String {
        format!("{}id/1", self.prefix)
    }
}

/// Refuses what is not a short name: 1 to 64 of `a-z 0-9 . _ - /`, no slash at either end.
pub(crate) fn check_short<'a>(kind: &'static str, name: &'a str) -> Result<&'a str, NameError> {
    let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-' | b'/');
    let sized = !name.is_empty() && name.len() <= MAX_SHORT_NAME;
    if !sized || !name.bytes().all(good) || name.starts_with('/') || name.ends_with('/') {
        return Err(error(kind, name, "1 to 64 of a-z, 0-9, '.', '_', '-' and inner '/'"));
    }
    Ok(name)
}

fn check_exact(name: &str) -> Result<&str, NameError> {
    if name.len() < 2 || name.len() > MAX_EXACT_NAME || !name.bytes().all(|c| c.is_ascii_graphic()) {
        return Err(error("protocol", name, "2 to 139 visible ASCII characters"));
    }
    Ok(name)
}

fn error(kind: &'static str, name: &str, allowed: &'static str) -> NameError {
    NameError { kind, name: name.chars().take(80).collect(), allowed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_put_below_the_swarm_and_an_exact_name_is_kept() {
        let names = Names::new("main").unwrap();
        assert_eq!(names.protocol("blocks/1").unwrap(), "/cardume/main/blocks/1");
        assert_eq!(names.protocol("/ipfs/bitswap/1.2.0").unwrap(), "/ipfs/bitswap/1.2.0");
        let topic = names.topic("jobs/1/wasm").unwrap();
        assert_eq!(names.short_topic(&TopicHash::from_raw(topic)).as_deref(), Some("jobs/1/wasm"));
        assert_eq!(names.short_topic(&TopicHash::from_raw("/cardume/other/x")), None);
    }

    #[test]
    fn names_that_could_be_mistaken_are_refused() {
        let long = "a".repeat(64);
        for swarm in ["", "Main", "a/b", "a b", "ä", long.as_str()] {
            assert!(Names::new(swarm).is_err(), "{swarm:?}");
        }
        let names = Names::new("main").unwrap();
        for name in ["", "a b", "UP", "end/", "tab\t", "/", "/sp ace"] {
            assert!(names.protocol(name).is_err(), "{name:?}");
        }
    }
}
