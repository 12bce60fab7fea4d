//! Sets of partitions as ranges: ten thousand partitions are usually a handful of ranges.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Partitions `first..first + count` of one job version under one attempt number: what awards,
/// recalls and commits name. On the wire an array of three numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "(u32, u32, u32)", into = "(u32, u32, u32)")]
pub struct Span {
    /// First partition.
    pub first: u32,
    /// How many follow one another, itself included.
    pub count: u32,
    /// Their attempt, from 1.
    pub attempt: u32,
}

impl From<(u32, u32, u32)> for Span {
    fn from((first, count, attempt): (u32, u32, u32)) -> Self {
        Span { first, count, attempt }
    }
}

impl From<Span> for (u32, u32, u32) {
    fn from(span: Span) -> Self {
        (span.first, span.count, span.attempt)
    }
}

impl Span {
    /// A span of one partition.
    pub fn one(partition: u32, attempt: u32) -> Self {
        Span { first: partition, count: 1, attempt }
    }

    /// One past the last partition, which a span that passed [`Span::is_valid`] has within `u32`.
    pub fn end(&self) -> u32 {
        self.first.saturating_add(self.count)
    }

    /// Its partitions.
    pub fn partitions(&self) -> std::ops::Range<u32> {
        self.first..self.end()
    }

    /// Not empty, within a job of `count` partitions, and with a real attempt.
    pub fn is_valid(&self, count: u32) -> bool {
        self.count > 0
            && self.attempt > 0
            && self.first.checked_add(self.count).is_some_and(|end| end <= count)
    }
}

/// Joins (partition, attempt) pairs in rising order into spans.
pub fn spans(pairs: impl IntoIterator<Item = (u32, u32)>) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for (partition, attempt) in pairs {
        match spans.last_mut() {
            Some(last) if last.end() == partition && last.attempt == attempt => last.count += 1,
            _ => spans.push(Span::one(partition, attempt)),
        }
    }
    spans
}

/// A set of partitions, kept as ranges that never touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// First of each range, and one past its last.
    ranges: BTreeMap<u32, u32>,
    len: u64,
}

impl RangeSet {
    /// The set of `0..count`.
    pub fn full(count: u32) -> Self {
        let mut set = RangeSet::default();
        set.insert(0, count);
        set
    }

    /// How many partitions.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it has this partition.
    pub fn contains(&self, partition: u32) -> bool {
        self.ranges.range(..=partition).next_back().is_some_and(|(_, &end)| partition < end)
    }

    /// The first partition.
    pub fn first(&self) -> Option<u32> {
        self.ranges.keys().next().copied()
    }

    /// Its ranges in order, each as first and one past the last.
    pub fn ranges(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.ranges.iter().map(|(&first, &end)| (first, end))
    }

    /// Its partitions in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.ranges().flat_map(|(first, end)| first..end)
    }

    /// Adds `first..end`.
    pub fn insert(&mut self, first: u32, end: u32) {
        if first >= end {
            return;
        }
        let (mut low, mut high) = (first, end);
        // Every range that overlaps or touches is taken out and becomes part of the new one.
        while let Some((&start, &stop)) = self.ranges.range(..=high).next_back() {
            if stop < low {
                break;
            }
            self.ranges.remove(&start);
            self.len -= u64::from(stop - start);
            (low, high) = (low.min(start), high.max(stop));
        }
        self.ranges.insert(low, high);
        self.len += u64::from(high - low);
    }

    /// Takes `first..end` out.
    pub fn remove(&mut self, first: u32, end: u32) {
        if first >= end {
            return;
        }
        while let Some((&start, &stop)) = self.ranges.range(..end).next_back() {
            if stop <= first {
                break;
            }
            self.ranges.remove(&start);
            self.len -= u64::from(stop - start);
            if start < first {
                self.ranges.insert(start, first);
                self.len += u64::from(first - start);
            }
            if end < stop {
                self.ranges.insert(end, stop);
                self.len += u64::from(stop - end);
            }
        }
    }
}

/// A value for each of many partitions, kept as ranges of equal values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeMap<V> {
    /// First of each range, one past its last, and the value.
    ranges: BTreeMap<u32, (u32, V)>,
}

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        RangeMap { ranges: BTreeMap::new() }
    }
}

impl<V: Copy + PartialEq> RangeMap<V> {
    /// How many ranges it takes.
    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// The value of a partition.
    pub fn get(&self, partition: u32) -> Option<V> {
        let (_, &(end, value)) = self.ranges.range(..=partition).next_back()?;
        (partition < end).then_some(value)
    }

    /// Gives `first..end` a value.
    pub fn set(&mut self, first: u32, end: u32, value: V) {
        if first >= end {
            return;
        }
        while let Some((&start, &(stop, old))) = self.ranges.range(..end).next_back() {
            if stop <= first {
                break;
            }
            self.ranges.remove(&start);
            if start < first {
                self.ranges.insert(start, (first, old));
            }
            if end < stop {
                self.ranges.insert(end, (stop, old));
            }
        }
        let (mut low, mut high) = (first, end);
        if let Some((&start, &(stop, old))) = self.ranges.range(..first).next_back()
            && stop == first
            && old == value
        {
            low = start;
        }
        if let Some(&(stop, old)) = self.ranges.get(&end)
            && old == value
        {
            self.ranges.remove(&end);
            high = stop;
        }
        self.ranges.insert(low, (high, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn pairs_join_where_partition_and_attempt_follow() {
        let joined = spans([(0, 1), (1, 1), (2, 2), (5, 2), (6, 2)]);
        let expected = [(0, 2, 1), (2, 1, 2), (5, 2, 2)].map(Span::from);
        assert_eq!(joined, expected);
    }

    #[test]
    fn a_span_past_the_job_or_the_number_space_is_not_valid() {
        assert!(Span::from((0, 10, 1)).is_valid(10));
        assert!(!Span::from((1, 10, 1)).is_valid(10));
        assert!(!Span::from((0, 0, 1)).is_valid(10));
        assert!(!Span::from((0, 1, 0)).is_valid(10));
        assert!(!Span::from((u32::MAX, 2, 1)).is_valid(u32::MAX));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_range_map_is_a_map(steps in proptest::collection::vec((0u32..60, 0u32..20, 0u8..3), 0..40)) {
            let (mut map, mut plain) = (RangeMap::default(), BTreeMap::new());
            for (first, count, value) in steps {
                map.set(first, first + count, value);
                plain.extend((first..first + count).map(|partition| (partition, value)));
                for partition in 0..90 {
                    prop_assert_eq!(map.get(partition), plain.get(&partition).copied());
                }
                let ranges: Vec<_> = map.ranges.iter().collect();
                let joined = ranges.windows(2).all(|pair| {
                    pair[0].1.0 < *pair[1].0 || pair[0].1.0 == *pair[1].0 && pair[0].1.1 != pair[1].1.1
                });
                prop_assert!(joined);
            }
        }

        #[test]
        fn a_range_set_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0u32..60, 0u32..20), 0..40)) {
            let (mut set, mut plain) = (RangeSet::default(), BTreeSet::new());
            for (insert, first, count) in steps {
                let end = first + count;
                if insert {
                    set.insert(first, end);
                    plain.extend(first..end);
                } else {
                    set.remove(first, end);
                    plain.retain(|partition| !(first..end).contains(partition));
                }
                prop_assert_eq!(set.len(), plain.len() as u64);
                prop_assert!(set.iter().eq(plain.iter().copied()));
                let ranges: Vec<_> = set.ranges().collect();
                prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
                prop_assert_eq!(set.contains(first), plain.contains(&first));
            }
        }
    }
}
