//! The DHT: what this host provides, searches for providers, and how large the swarm seems.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::atomic::Ordering,
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    kad::{self, GetProvidersOk, InboundRequest, QueryId, QueryResult, RecordKey, store::RecordStore},
};
use sha2::{Digest, Sha256};
use tokio::{sync::mpsc, time::Instant};
use tracing::debug;

use super::Task;
use crate::{DhtError, Provider, addresses, behaviour::MAX_OWN_KEYS};

/// Providers that one search gives at most.
pub(crate) const MAX_PROVIDERS: usize = 256;
/// The longest search.
pub(crate) const MAX_SEARCH: Duration = Duration::from_secs(60);
/// Searches under way.
const MAX_SEARCHES: usize = 256;
/// Keys told to a new peer at once; the rest follows as those are done.
const PROVIDE_AT_ONCE: usize = 32;
/// Peers next to our own id, from whose distances the swarm's size is estimated.
const NEIGHBOURS: usize = 20;

#[derive(Default)]
pub(super) struct Searches {
    under_way: HashMap<QueryId, Search>,
    /// Own keys that nobody was there to be told of.
    untold: BTreeSet<Vec<u8>>,
    telling: HashSet<QueryId>,
}

struct Search {
    found: mpsc::Sender<Provider>,
    seen: HashSet<PeerId>,
    limit: usize,
    deadline: Instant,
}

impl Searches {
    pub(super) fn next_wakeup(&self) -> Option<Instant> {
        self.under_way.values().map(|search| search.deadline).min()
    }
}

impl Task {
    pub(super) fn provide(&mut self, key: Vec<u8>) -> Result<(), DhtError> {
        let alone = self.dht_is_empty();
        let dht = &mut self.swarm.behaviour_mut().dht.0;
        match dht.start_providing(RecordKey::new(&key)) {
            Ok(_) if alone => {
                self.searches.untold.insert(key);
            }
            Ok(id) => {
                self.searches.telling.insert(id);
            }
            Err(error) => {
                debug!(%error, "not provided");
                return Err(DhtError::Full(MAX_OWN_KEYS));
            }
        }
        Ok(())
    }

    pub(super) fn stop_providing(&mut self, key: &[u8]) {
        self.searches.untold.remove(key);
        self.swarm.behaviour_mut().dht.0.stop_providing(&RecordKey::new(&key));
    }

    fn dht_is_empty(&mut self) -> bool {
        self.swarm.behaviour_mut().dht.0.kbuckets().next().is_none()
    }

    /// Tells of own keys that could not be told before.
    fn tell_untold(&mut self) {
        while self.searches.telling.len() < PROVIDE_AT_ONCE
            && let Some(key) = self.searches.untold.pop_first()
        {
            if let Ok(id) = self.swarm.behaviour_mut().dht.0.start_providing(RecordKey::new(&key)) {
                self.searches.telling.insert(id);
            }
        }
    }

    pub(super) fn find_providers(
        &mut self,
        key: Vec<u8>,
        limit: usize,
        found: mpsc::Sender<Provider>,
        deadline: Instant,
    ) -> Result<(), DhtError> {
        if self.searches.under_way.len() >= MAX_SEARCHES {
            return Err(DhtError::Busy);
        }
        let id = self.swarm.behaviour_mut().dht.0.get_providers(RecordKey::new(&key));
        let search = Search { found, seen: HashSet::new(), limit, deadline };
        self.searches.under_way.insert(id, search);
        Ok(())
    }

    pub(super) fn end_searches(&mut self, now: Instant) {
        let over = self.searches.under_way.iter().filter(|(_, search)| search.deadline <= now);
        let over: Vec<_> = over.map(|(id, _)| *id).collect();
        for id in over {
            self.end_search(id);
        }
    }

    fn end_search(&mut self, id: QueryId) {
        self.searches.under_way.remove(&id);
        if let Some(mut query) = self.swarm.behaviour_mut().dht.0.query_mut(&id) {
            query.finish();
        }
    }

    pub(super) fn on_dht(&mut self, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => {
                self.on_query(id, result, step.last);
            }
            kad::Event::InboundRequest { request: InboundRequest::AddProvider { record: Some(record) } } => {
                self.keep(record)
            }
            kad::Event::RoutingUpdated { is_new_peer: true, .. } => {
                self.tell_untold();
                self.estimate_size();
            }
            _ => {}
        }
    }

    fn keep(&mut self, record: kad::ProviderRecord) {
        let kept = self.swarm.behaviour_mut().dht.0.store_mut().add_provider(record);
        let metrics = &self.shared.metrics;
        match kept {
            Ok(()) => metrics.dht_records_stored.add(1),
            Err(_) => metrics.dht_records_refused.add(1),
        }
    }

    fn on_query(&mut self, id: QueryId, result: QueryResult, last: bool) {
        match result {
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { key, providers })) => {
                for peer in providers {
                    self.on_provider(id, &key, peer);
                }
            }
            QueryResult::StartProviding(result) => {
                self.searches.telling.remove(&id);
                if let Err(error) = result {
                    debug!(%error, "some peers were not told of a key");
                }
                self.tell_untold();
            }
            _ => {}
        }
        if last {
            self.searches.under_way.remove(&id);
        }
    }

    fn on_provider(&mut self, id: QueryId, key: &RecordKey, peer: PeerId) {
        if peer == *self.swarm.local_peer_id() {
            return;
        }
        let Some(search) = self.searches.under_way.get_mut(&id) else { return };
        if !search.seen.insert(peer) {
            return;
        }
        let addrs = self.provider_addresses(key, peer);
        for address in &addrs {
            self.book.add(peer, address.clone());
        }
        let Some(search) = self.searches.under_way.get_mut(&id) else { return };
        // There is room for all that are wanted, unless nobody reads any more.
        let sent = search.found.try_send(Provider { peer, addrs });
        if sent.is_err() || search.seen.len() >= search.limit {
            self.end_search(id);
        }
    }

    fn provider_addresses(&mut self, key: &RecordKey, peer: PeerId) -> Vec<Multiaddr> {
        let dht = &mut self.swarm.behaviour_mut().dht;
        let mut all = dht.all_addresses(peer);
        let kept = dht.0.store_mut().providers(key).into_iter();
        all.extend(kept.filter(|record| record.provider == peer).flat_map(|r| r.addresses));
        all.extend(self.book.addresses(&peer));
        let mut addrs = Vec::new();
        for address in all.into_iter().map(|address| addresses::split_peer(address).0) {
            if addresses::is_dialable(&address) && !addrs.contains(&address) {
                addrs.push(address);
            }
        }
        addrs.truncate(addresses::MAX_PER_PEER);
        addresses::sort(&mut addrs);
        addrs
    }

    fn estimate_size(&mut self) {
        let own = *self.swarm.local_peer_id();
        let key = kad::KBucketKey::from(own);
        let nearest = self.swarm.behaviour_mut().dht.0.get_closest_local_peers(&key);
        let nearest = nearest.take(NEIGHBOURS).map(|near| distance(&own, near.preimage()));
        let size = estimate(nearest.collect());
        self.shared.network_size.store(size, Ordering::Relaxed);
    }
}

/// How far two peers are apart, as a part of the whole space.
fn distance(one: &PeerId, other: &PeerId) -> f64 {
    let place = |peer: &PeerId| {
        let hash = Sha256::digest(peer.to_bytes());
        hash.first_chunk::<8>().map_or(0, |first| u64::from_be_bytes(*first))
    };
    (place(one) ^ place(other)) as f64 / 2f64.powi(64)
}

/// How many peers a swarm has, this one included, from the distances to the nearest others.
///
/// With n others spread evenly, the i-th is expected at i / (n + 1): the slope of the best line through those
/// points gives n. Fewer than [`NEIGHBOURS`] are all there are.
fn estimate(mut distances: Vec<f64>) -> u64 {
    let found = distances.len() as u64;
    if distances.len() < NEIGHBOURS {
        return found + 1;
    }
    distances.sort_by(f64::total_cmp);
    let (mut squares, mut products) = (0.0, 0.0);
    for (at, distance) in distances.iter().enumerate() {
        let rank = (at + 1) as f64;
        squares += rank * rank;
        products += rank * distance;
    }
    // Equal distances of 0 would need equal hashes; the cast is capped at its largest value.
    let others = (squares / products.max(f64::MIN_POSITIVE) - 1.0) as u64;
    others.max(found).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_is_near_the_truth_for_large_swarms_and_exact_for_small_ones() {
        for size in [3, 19, 500, 5000] {
            let own = PeerId::random();
            let mut distances: Vec<_> = (1..size).map(|_| distance(&own, &PeerId::random())).collect();
            distances.sort_by(f64::total_cmp);
            distances.truncate(NEIGHBOURS);
            let (found, size) = (estimate(distances), size as u64);
            if size as usize <= NEIGHBOURS {
                assert_eq!(found, size);
            } else {
                assert!(found > size / 5 && found < size * 5, "{found} for {size}");
            }
        }
    }
}
