//! Named timers in order of their time: setting one again moves it.

use std::collections::{BTreeMap, BTreeSet};

use job::Time;

/// Timers by key, on the boot clock.
#[derive(Debug, Clone)]
pub(crate) struct Timers<K> {
    times: BTreeMap<K, Time>,
    order: BTreeSet<(u64, K)>,
}

impl<K: Ord + Copy> Default for Timers<K> {
    fn default() -> Self {
        Timers { times: BTreeMap::new(), order: BTreeSet::new() }
    }
}

impl<K: Ord + Copy> Timers<K> {
    /// Sets a timer, wherever it was.
    pub(crate) fn set(&mut self, key: K, at: Time) {
        self.clear(key);
        self.times.insert(key, at);
        self.order.insert((at.boot, key));
    }

    /// Sets a timer unless it is set for that time or an earlier one.
    pub(crate) fn set_earlier(&mut self, key: K, at: Time) {
        if self.get(key).is_none_or(|set| at < set) {
            self.set(key, at);
        }
    }

    /// Removes a timer.
    pub(crate) fn clear(&mut self, key: K) {
        if let Some(at) = self.times.remove(&key) {
            self.order.remove(&(at.boot, key));
        }
    }

    /// When a timer is due.
    pub(crate) fn get(&self, key: K) -> Option<Time> {
        self.times.get(&key).copied()
    }

    /// Takes the earliest timer that is due.
    pub(crate) fn pop(&mut self, now: Time) -> Option<K> {
        let &(at, key) = self.order.first()?;
        if at > now.boot {
            return None;
        }
        self.clear(key);
        Some(key)
    }

    /// When the earliest timer is due.
    pub(crate) fn next(&self) -> Option<Time> {
        let (_, key) = self.order.first()?;
        self.get(*key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn timers_come_in_order_and_move_when_set_again() {
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        timers.set('a', at(3));
        timers.set('b', at(2));
        timers.set('a', at(1));
        timers.set_earlier('b', at(5));
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.pop(at(0)), None);
        assert_eq!((timers.pop(at(9)), timers.pop(at(9)), timers.pop(at(9))), (Some('a'), Some('b'), None));
    }
}
