//! Rules of networks, ports and addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::super::error::{Sink, shown};
use super::super::{Network, NetworkType, PortMapping};

/// Most domains, and most ports, of one task.
const MAX_ENTRIES: usize = 64;

/// Longest URL: what servers commonly take.
const MAX_URL_BYTES: usize = 8192;

/// Adds everything that is against the rules of `Network`.
pub(super) fn check(network: &Network, sink: &mut Sink) {
    const PATH: &str = "Tasks[0].Network";
    let (domains, ports) = (&network.domains, &network.ports);
    for (name, found) in [("Domains", domains.len()), ("Ports", ports.len())] {
        if found > MAX_ENTRIES {
            let message = format!("{found} entries, and at most {MAX_ENTRIES} are allowed");
            return sink.add(&format!("{PATH}.{name}"), message, None);
        }
    }
    if !domains.is_empty() && network.kind != NetworkType::Http {
        sink.add(&format!("{PATH}.Domains"), "domains can only be set for HTTP network mode", None);
    }
    for (index, domain) in domains.iter().enumerate().filter(|(_, domain)| !is_domain(domain)) {
        let hint = Some("write a host name, `.example.org` for all below it, or an IP address".to_owned());
        sink.add(&format!("{PATH}.Domains[{index}]"), format!("invalid domain {}", shown(domain)), hint);
    }
    if !ports.is_empty() && !matches!(network.kind, NetworkType::Host | NetworkType::Bridge) {
        let message = "ports can only be set for Host or Bridge network modes";
        return sink.add(&format!("{PATH}.Ports"), message, None);
    }
    let mut seen = Seen::default();
    for (index, mapping) in ports.iter().enumerate() {
        port(&format!("{PATH}.Ports[{index}]"), mapping, network.kind, &mut seen, sink);
    }
}

#[derive(Default)]
struct Seen<'a> {
    names: BTreeSet<&'a str>,
    fixed: BTreeSet<u16>,
    targets: BTreeSet<u16>,
}

fn port<'a>(path: &str, port: &'a PortMapping, kind: NetworkType, seen: &mut Seen<'a>, sink: &mut Sink) {
    let is_variable = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if port.name.is_empty() {
        sink.add(&format!("{path}.Name"), "port mapping name is required", None);
    } else if !is_variable(&port.name) {
        let message = format!("port name must be a valid environment variable name: {}", shown(&port.name));
        sink.add(&format!("{path}.Name"), message, None);
    } else if !seen.names.insert(&port.name) {
        sink.add(&format!("{path}.Name"), format!("duplicate port mapping name {}", shown(&port.name)), None);
    }
    let (fixed, target) = (port.fixed, port.target);
    if (1..1024).contains(&fixed) {
        let message = format!("static port {fixed} is in privileged port range (1-1023)");
        sink.add(&format!("{path}.Static"), message, None);
    } else if fixed > 0 && !seen.fixed.insert(fixed) {
        sink.add(&format!("{path}.Static"), format!("duplicate static port {fixed}"), None);
    }
    if target > 0 && kind == NetworkType::Host {
        sink.add(&format!("{path}.Target"), "target ports cannot be set for Host network mode", None);
    } else if target > 0 && !seen.targets.insert(target) {
        sink.add(&format!("{path}.Target"), format!("duplicate target port {target}"), None);
    }
    if !port.host_network.is_empty() && port.host_network.parse::<IpAddr>().is_err() {
        let message = format!("invalid host network IP address: {}", shown(&port.host_network));
        sink.add(&format!("{path}.HostNetwork"), message, None);
    }
}

/// A host name, with a leading dot where all names below it are meant, or an IP address.
fn is_domain(domain: &str) -> bool {
    if domain.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = domain.strip_prefix('.').unwrap_or(domain);
    let is_part = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_part)
}

/// Adds what is wrong with the URL of a download.
pub(super) fn url(path: &str, url: &str, sink: &mut Sink) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") {
        let begin: String = url.chars().take(16).collect();
        let message =
            format!("URLs must begin with 'http' or 'https'. The submitted one began with {begin:?}");
        return sink.add(path, message, None);
    }
    if url.len() > MAX_URL_BYTES || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return sink.add(path, format!("{} is not a URL", shown(url)), None);
    }
    let before_query = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, file) = before_query.split_once('/').unwrap_or((before_query, ""));
    if host.is_empty() {
        sink.add(path, format!("{} names no host", shown(url)), None);
    } else if file.is_empty() || file.ends_with('/') {
        sink.add(path, "URL must end with a file name", None);
    }
}
