//! Provider records: our own keys, and those that others ask us to keep.
//!
//! libp2p's store counts both against one limit, so that strangers could use up our own places, and keeps what has expired.

use std::{
    borrow::Cow,
    collections::{HashMap, hash_map},
    iter,
    time::Instant,
};

use libp2p::{
    PeerId,
    kad::{
        ProviderRecord, Record, RecordKey,
        store::{Error, RecordStore, Result},
    },
};

use crate::addresses;

/// Keys that this host provides. Only roots are provided, not blocks.
pub(crate) const MAX_OWN_KEYS: usize = 8192;
/// Keys kept for others.
const MAX_KEYS: usize = 16_384;
/// Providers of one key: as many as the DHT hands out.
const MAX_PROVIDERS_PER_KEY: usize = 20;
/// Keys of one other provider: no peer fills the store alone.
const MAX_KEYS_PER_PROVIDER: usize = 2048;

pub(crate) struct Store {
    own: PeerId,
    provided: HashMap<RecordKey, ProviderRecord>,
    kept: HashMap<RecordKey, Vec<ProviderRecord>>,
    /// How many records of each provider are in `kept`.
    providers: HashMap<PeerId, usize>,
}

type Borrow<'a> = fn(&'a ProviderRecord) -> Cow<'a, ProviderRecord>;

impl Store {
    pub(crate) fn new(own: PeerId) -> Self {
        Self { own, provided: HashMap::new(), kept: HashMap::new(), providers: HashMap::new() }
    }

    fn keep(&mut self, record: ProviderRecord) -> Result<()> {
        if let Some(old) = self.kept_record(&record) {
            *old = record;
            return Ok(());
        }
        let crowded = self.kept.len() >= MAX_KEYS && !self.kept.contains_key(&record.key);
        if crowded {
            self.sweep();
        }
        let full = self.kept.len() >= MAX_KEYS && !self.kept.contains_key(&record.key);
        let count = self.providers.get(&record.provider).copied().unwrap_or(0);
        if full || count >= MAX_KEYS_PER_PROVIDER {
            return Err(Error::MaxProvidedKeys);
        }
        let records = self.kept.entry(record.key.clone()).or_default();
        if records.len() >= MAX_PROVIDERS_PER_KEY {
            let now = Instant::now();
            let Some(at) = records.iter().position(|record| record.is_expired(now)) else {
                // Who came first stays: many faces cannot push it out.
                return Err(Error::MaxProvidedKeys);
            };
            forget(&mut self.providers, &records.swap_remove(at).provider);
        }
        *self.providers.entry(record.provider).or_default() += 1;
        records.push(record);
        Ok(())
    }

    fn kept_record(&mut self, record: &ProviderRecord) -> Option<&mut ProviderRecord> {
        let records = self.kept.get_mut(&record.key)?;
        records.iter_mut().find(|kept| kept.provider == record.provider)
    }

    /// Drops what has expired.
    fn sweep(&mut self) {
        let now = Instant::now();
        let providers = &mut self.providers;
        self.kept.retain(|_, records| {
            records.retain(|record| {
                let expired = record.is_expired(now);
                if expired {
                    forget(providers, &record.provider);
                }
                !expired
            });
            !records.is_empty()
        });
    }
}

fn forget(providers: &mut HashMap<PeerId, usize>, provider: &PeerId) {
    if let Some(count) = providers.get_mut(provider) {
        *count -= 1;
        if *count == 0 {
            providers.remove(provider);
        }
    }
}

impl RecordStore for Store {
    type RecordsIter<'a> = iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = iter::Map<hash_map::Values<'a, RecordKey, ProviderRecord>, Borrow<'a>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords) // values are never kept
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        iter::empty()
    }

    fn add_provider(&mut self, mut record: ProviderRecord) -> Result<()> {
        if record.provider != self.own {
            record.addresses.truncate(addresses::MAX_PER_PEER);
            return self.keep(record);
        }
        if self.provided.len() >= MAX_OWN_KEYS && !self.provided.contains_key(&record.key) {
            return Err(Error::MaxProvidedKeys);
        }
        self.provided.insert(record.key.clone(), record);
        Ok(())
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let kept = self.kept.get(key).into_iter().flatten();
        self.provided.get(key).into_iter().chain(kept).cloned().collect()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        self.provided.values().map(Cow::Borrowed)
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        if *provider == self.own {
            self.provided.remove(key);
            return;
        }
        let Some(records) = self.kept.get_mut(key) else { return };
        let before = records.len();
        records.retain(|record| record.provider != *provider);
        if records.len() < before {
            forget(&mut self.providers, provider);
        }
        if records.is_empty() {
            self.kept.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: usize, provider: PeerId) -> ProviderRecord {
        ProviderRecord::new(RecordKey::new(&key.to_be_bytes()), provider, Vec::new())
    }

    #[test]
    fn one_stranger_cannot_fill_the_store_nor_take_our_places() {
        let (own, stranger) = (PeerId::random(), PeerId::random());
        let mut store = Store::new(own);
        let kept =
            (0..2 * MAX_KEYS_PER_PROVIDER).filter(|key| store.add_provider(record(*key, stranger)).is_ok());
        assert_eq!(kept.count(), MAX_KEYS_PER_PROVIDER);
        assert!(store.add_provider(record(9, own)).is_ok());
        assert_eq!(store.providers(&record(9, own).key).len(), 2);
        store.remove_provider(&record(9, own).key, &stranger);
        assert!(store.add_provider(record(1 << 30, stranger)).is_ok(), "a place is free again");
    }

    #[test]
    fn late_faces_do_not_push_out_who_provided_first() {
        let mut store = Store::new(PeerId::random());
        let first = PeerId::random();
        store.add_provider(record(1, first)).unwrap();
        for _ in 0..100 {
            let _ = store.add_provider(record(1, PeerId::random()));
        }
        let providers = store.providers(&record(1, first).key);
        assert_eq!(providers.len(), MAX_PROVIDERS_PER_KEY);
        assert_eq!(providers[0].provider, first);
    }

    #[test]
    fn expired_records_make_room() {
        let mut store = Store::new(PeerId::random());
        for key in 0..MAX_KEYS {
            let mut old = record(key, PeerId::random());
            old.expires = Some(Instant::now());
            store.add_provider(old).unwrap();
        }
        assert!(store.add_provider(record(MAX_KEYS, PeerId::random())).is_ok());
        assert_eq!(store.kept.len(), 1);
        assert_eq!(store.providers.len(), 1);
    }
}
