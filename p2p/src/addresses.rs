//! Which addresses are worth keeping, dialling and telling others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

/// Addresses kept of one peer.
pub(crate) const MAX_PER_PEER: usize = 8;
/// Addresses told to others.
pub(crate) const MAX_ANNOUNCED: usize = 3;
/// The longest address that is kept; a DNS name and a peer id fit.
const MAX_ADDRESS_BYTES: usize = 400;

/// How far an address reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// This machine.
    Loopback,
    /// The local network, or a private one.
    Local,
    /// Everywhere, as far as the address says.
    Global,
}

pub(crate) fn is_quic(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::QuicV1 | Protocol::Quic))
}

/// The address without `/p2p/…` at its end, and that peer.
pub(crate) fn split_peer(mut address: Multiaddr) -> (Multiaddr, Option<PeerId>) {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => {
            address.pop();
            (address, Some(peer))
        }
        _ => (address, None),
    }
}

pub(crate) fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

pub(crate) fn reach(address: &Multiaddr) -> Reach {
    match ip(address) {
        Some(IpAddr::V4(ip)) => reach_v4(ip),
        Some(IpAddr::V6(ip)) => reach_v6(ip),
        None => Reach::Global,
    }
}

fn reach_v4(ip: Ipv4Addr) -> Reach {
    let shared = ip.octets()[0] == 100 && (64..128).contains(&ip.octets()[1]);
    if ip.is_loopback() {
        Reach::Loopback
    } else if ip.is_private() || ip.is_link_local() || shared {
        Reach::Local
    } else {
        Reach::Global
    }
}

fn reach_v6(ip: Ipv6Addr) -> Reach {
    if let Some(ip) = ip.to_ipv4_mapped() {
        reach_v4(ip)
    } else if ip.is_loopback() {
        Reach::Loopback
    } else if ip.is_unique_local() || ip.is_unicast_link_local() {
        Reach::Local
    } else {
        Reach::Global
    }
}

/// Whether somebody could dial this: a host and a port of a transport that we have, and nothing else.
pub(crate) fn is_dialable(address: &Multiaddr) -> bool {
    if address.len() > MAX_ADDRESS_BYTES {
        return false;
    }
    let mut parts = address.iter();
    let host = match parts.next() {
        Some(Protocol::Ip4(ip)) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        Some(Protocol::Ip6(ip)) => !ip.is_unspecified() && !ip.is_multicast(),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)) => true,
        _ => false,
    };
    let port = match (parts.next(), parts.next()) {
        (Some(Protocol::Tcp(port)), None) => port != 0,
        (Some(Protocol::Udp(port)), Some(Protocol::QuicV1)) => port != 0,
        _ => false,
    };
    host && port && parts.next().is_none()
}

/// Whether an address that a peer tells of itself may be kept, by where the peer is.
///
/// Otherwise strangers could have us dial our own machine and our own network.
pub(crate) fn is_believable(told: &Multiaddr, from: &Multiaddr) -> bool {
    is_dialable(told) && reach(told) >= reach(from).min(Reach::Global) || same_ip(told, from)
}

fn same_ip(one: &Multiaddr, other: &Multiaddr) -> bool {
    is_dialable(one) && ip(one).is_some() && ip(one) == ip(other)
}

/// Best first: TCP before QUIC, since a killed process resets its TCP connections at once; then the shortest way.
pub(crate) fn sort(addresses: &mut [Multiaddr]) {
    addresses.sort_by_key(|address| (is_quic(address), reach(address)));
}

/// What to tell others: nothing of loopback when there is anything else.
pub(crate) fn announced<'a>(listening: impl Iterator<Item = &'a Multiaddr>) -> Vec<Multiaddr> {
    let mut addresses: Vec<_> = listening.filter(|a| is_dialable(a)).cloned().collect();
    if addresses.iter().any(|address| reach(address) > Reach::Loopback) {
        addresses.retain(|address| reach(address) > Reach::Loopback);
    }
    addresses.sort_by_key(|address| (std::cmp::Reverse(reach(address)), is_quic(address)));
    addresses.dedup();
    addresses.truncate(MAX_ANNOUNCED);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(addresses: &[&str]) -> Vec<Multiaddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn only_addresses_that_lead_somewhere_are_dialable() {
        for good in ["/ip4/1.2.3.4/tcp/5", "/ip6/::1/udp/5/quic-v1", "/dns4/a.example/tcp/1"] {
            assert!(is_dialable(&good.parse().unwrap()), "{good}");
        }
        for bad in [
            "/ip4/0.0.0.0/tcp/5",
            "/ip4/1.2.3.4/tcp/0",
            "/ip4/1.2.3.4",
            "/ip4/1.2.3.4/udp/5",
            "/ip4/224.0.0.1/tcp/5",
            "/ip4/1.2.3.4/tcp/5/ws",
            "/unix/tmp",
        ] {
            assert!(!is_dialable(&bad.parse().unwrap()), "{bad}");
        }
    }

    #[test]
    fn a_stranger_cannot_send_us_to_our_own_network() {
        let cases = [
            ("/ip4/10.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/9", false),
            ("/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.7/tcp/9", false),
            ("/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.7/tcp/9", true),
            ("/ip4/9.9.9.9/tcp/1", "/ip4/8.8.8.8/tcp/9", true),
            ("/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/9", true),
            ("/ip4/10.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/9", true),
        ];
        for (told, from, expected) in cases {
            let found = is_believable(&told.parse().unwrap(), &from.parse().unwrap());
            assert_eq!(found, expected, "{told} told from {from}");
        }
    }

    #[test]
    fn loopback_is_announced_only_when_there_is_nothing_else() {
        let loopback = parse(&["/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/127.0.0.1/tcp/1"]);
        let found = announced(loopback.iter());
        assert_eq!(found, parse(&["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/udp/1/quic-v1"]));
        let mut more = loopback.clone();
        more.extend(parse(&["/ip4/10.0.0.2/tcp/1", "/ip4/8.8.4.4/tcp/1"]));
        assert_eq!(announced(more.iter()), parse(&["/ip4/8.8.4.4/tcp/1", "/ip4/10.0.0.2/tcp/1"]));
    }

    #[test]
    fn tcp_is_dialled_before_quic() {
        let mut addresses = parse(&["/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/10.0.0.1/tcp/1"]);
        sort(&mut addresses);
        assert!(!is_quic(&addresses[0]));
    }
}
