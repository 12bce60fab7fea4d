//! The simulator's agenda: events in the order of their moments, and of their making when moments are equal.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Events that wait for their moment.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    made: u64,
}

#[derive(Debug)]
struct Entry<E> {
    at: u64,
    made: u64,
    event: E,
}

impl<E> Queue<E> {
    pub fn new() -> Self {
        Queue { heap: BinaryHeap::new(), made: 0 }
    }

    /// Adds an event that happens at `at`.
    pub fn push(&mut self, at: u64, event: E) {
        self.made += 1;
        self.heap.push(Reverse(Entry { at, made: self.made, event }));
    }

    /// The next event and its moment.
    pub fn pop(&mut self) -> Option<(u64, E)> {
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.event))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.made).cmp(&(other.at, other.made))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<E> Eq for Entry<E> {}
