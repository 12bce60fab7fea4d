//! Values that several users share: the first one makes it, and it goes a while after the last one has gone.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::Instant;

/// Shared values by key; clones share them.
pub struct Kept<K, V> {
    inner: Arc<Inner<K, V>>,
}

struct Inner<K, V> {
    most: usize,
    idle: Duration,
    slots: Mutex<Slots<K, V>>,
}

struct Slots<K, V> {
    by_key: BTreeMap<K, Slot<V>>,
    next: u64,
}

struct Slot<V> {
    /// Tells it from a later one under the same key.
    number: u64,
    cell: Arc<OnceCell<V>>,
    users: usize,
    idle_since: Instant,
    /// A task waits for its time to go.
    is_watched: bool,
}

/// A value in use.
pub struct Held<K: Ord + Clone + Send + 'static, V: Send + Sync + 'static> {
    cell: Arc<OnceCell<V>>,
    _in_use: InUse<K, V>,
}

impl<K: Ord + Clone + Send + 'static, V: Send + Sync + 'static> Deref for Held<K, V> {
    type Target = V;

    fn deref(&self) -> &V {
        self.cell.get().expect("a value is made before it is held")
    }
}

impl<K: Ord + Clone + Send + 'static, V: Send + Sync + 'static> Kept<K, V> {
    /// Nothing yet. A value goes when it was not in use for `idle`, or when there would be more than `most` values
    /// and nobody uses it.
    pub fn new(most: usize, idle: Duration) -> Self {
        let slots = Mutex::new(Slots { by_key: BTreeMap::new(), next: 0 });
        Kept { inner: Arc::new(Inner { most, idle, slots }) }
    }

    /// The value under this key, made when it is not there. A failure is not kept.
    ///
    /// Dropping the future leaves the making to the next one that waits.
    pub async fn get<E, F>(&self, key: K, make: impl FnOnce() -> F) -> Result<Held<K, V>, E>
    where
        F: Future<Output = Result<V, E>>,
    {
        let (cell, in_use) = self.inner.enter(key);
        cell.get_or_try_init(make).await?;
        Ok(Held { cell, _in_use: in_use })
    }

    /// How many values there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.inner.lock().by_key.len()
    }
}

impl<K: Ord + Clone + Send + 'static, V: Send + Sync + 'static> Inner<K, V> {
    fn enter(self: &Arc<Self>, key: K) -> (Arc<OnceCell<V>>, InUse<K, V>) {
        let mut slots = self.lock();
        if !slots.by_key.contains_key(&key) && slots.by_key.len() >= self.most {
            let unused = slots.by_key.iter().filter(|(_, slot)| slot.users == 0);
            let oldest = unused.min_by_key(|(_, slot)| slot.idle_since).map(|(key, _)| key.clone());
            oldest.and_then(|key| slots.by_key.remove(&key));
        }
        let number = slots.next;
        slots.next += 1;
        let slot = slots.by_key.entry(key.clone()).or_insert_with(|| Slot {
            number,
            cell: Arc::default(),
            users: 0,
            idle_since: Instant::now(),
            is_watched: false,
        });
        slot.users += 1;
        let in_use = InUse { inner: Arc::clone(self), key, number: slot.number };
        (Arc::clone(&slot.cell), in_use)
    }

    /// Waits until a value was idle for long enough, or is in use again: the end of that use waits anew.
    async fn watch(self: Arc<Self>, key: K, number: u64) {
        while let Some(at) = self.goes_at(&key, number) {
            tokio::time::sleep_until(at).await;
        }
    }

    /// When a value goes. `None` when it has, or stays for now.
    fn goes_at(&self, key: &K, number: u64) -> Option<Instant> {
        let mut slots = self.lock();
        let slot = slots.by_key.get_mut(key).filter(|slot| slot.number == number)?;
        if slot.users > 0 {
            slot.is_watched = false;
            return None;
        }
        let at = slot.idle_since + self.idle;
        if at > Instant::now() {
            return Some(at);
        }
        let gone = slots.by_key.remove(key);
        drop(slots); // a value's end may take a while
        drop(gone);
        None
    }

    fn lock(&self) -> MutexGuard<'_, Slots<K, V>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct InUse<K: Ord + Clone + Send + 'static, V: Send + Sync + 'static> {
    inner: Arc<Inner<K, V>>,
    key: K,
    number: u64,
}

impl<K: Ord + Clone + Send + 'static, V: Send + Sync + 'static> Drop for InUse<K, V> {
    fn drop(&mut self) {
        let mut slots = self.inner.lock();
        let Some(slot) = slots.by_key.get_mut(&self.key).filter(|slot| slot.number == self.number) else {
            return;
        };
        slot.users -= 1;
        slot.idle_since = Instant::now();
        if slot.users > 0 || slot.is_watched {
            return;
        }
        // Without a runtime the process ends, and everything with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        slot.is_watched = true;
        runtime.spawn(Arc::clone(&self.inner).watch(self.key.clone(), self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    async fn get(kept: &Kept<u32, u32>, key: u32, value: u32) -> Held<u32, u32> {
        kept.get(key, || async move { Ok::<_, ()>(value) }).await.unwrap_or_else(|()| panic!("is made"))
    }

    #[tokio::test]
    async fn a_value_is_shared_and_stays_for_a_while_after_its_last_user() {
        let kept = Kept::new(4, LONG);
        let (first, second) = (get(&kept, 1, 10).await, get(&kept, 1, 11).await);
        assert_eq!((*first, *second), (10, 10));
        drop((first, second));
        assert_eq!(*get(&kept, 1, 12).await, 10);
        assert_eq!((*get(&kept, 2, 20).await, kept.len()), (20, 2));
    }

    #[tokio::test]
    async fn a_value_goes_when_it_was_idle_for_long_enough_and_not_while_it_is_in_use() {
        let kept = Kept::new(4, Duration::ZERO);
        let (first, second) = (get(&kept, 1, 10).await, get(&kept, 1, 11).await);
        drop(first);
        drop(get(&kept, 2, 20).await);
        while kept.len() > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*get(&kept, 1, 12).await, 10, "in use");
        drop(second);
        while kept.len() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*get(&kept, 1, 13).await, 13);
    }

    #[tokio::test]
    async fn a_failure_is_not_kept_and_what_is_in_use_makes_no_way() {
        let kept = Kept::new(2, LONG);
        assert!(kept.get(1, || async { Err::<u32, _>("no") }).await.is_err());
        let (one, two, three) = (get(&kept, 1, 1).await, get(&kept, 2, 2).await, get(&kept, 3, 3).await);
        assert_eq!((*one, *two, *three, kept.len()), (1, 2, 3, 3));
        drop(one);
        let four = get(&kept, 4, 4).await;
        assert_eq!((*four, kept.len()), (4, 3));
    }
}
