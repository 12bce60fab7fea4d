//! Copies of results on their way to their owner.

use gossip::owner;
use job::{Cid, JobId};

use crate::sim::clock::{MILLI, SECOND};
use crate::sim::world::{Event, World};

/// No result is as large.
const LARGEST_RESULT: u64 = 1 << 34;

/// A result on its way to its owner.
#[derive(Debug, Clone)]
pub(in crate::sim) struct Copy {
    job: JobId,
    version: u32,
    partition: u32,
    attempt: u32,
    cid: Cid,
    from: usize,
    inline: bool,
    /// When the holder was first found away.
    away_since: Option<u64>,
}

impl World {
    /// Begins to copy results here.
    pub fn copy(&mut self, node: usize, hold: owner::Hold) {
        let Some(from) = self.index_of(hold.from) else {
            return self.check.broken(
                "results are held by peers that exist",
                format!("n{node} copies from {}", hold.from),
            );
        };
        for item in hold.items {
            let shell = &mut self.nodes[node].owner;
            shell.copied += 1;
            let copy = shell.copied;
            let inline = hold.blocks.iter().any(|block| block.cid == item.result.cid);
            // 10 MB/s; what is larger than any disk is refused as soon as its size is known.
            let size = Some(item.result.size).filter(|size| *size < LARGEST_RESULT).unwrap_or(0);
            let pace = if inline || from == node { 0 } else { 20 * MILLI + size * 100 };
            let (job, version, cid) = (hold.job, hold.version, item.result.cid);
            let (partition, attempt) = (item.partition, item.attempt);
            shell
                .copies
                .insert(copy, Copy { job, version, partition, attempt, cid, from, inline, away_since: None });
            let life = self.nodes[node].lives;
            let delay = pace + self.rng.within(MILLI, 10 * MILLI);
            self.queue.push(self.now + delay, Event::Held { node, life, copy });
        }
    }

    /// A copy is done, or its holder is away and it is tried again.
    pub fn on_copied(&mut self, node: usize, life: u32, number: u64) {
        if self.nodes[node].lives != life || self.nodes[node].down() {
            return;
        }
        if self.nodes[node].asleep() {
            return self.nodes[node].backlog.push(Event::Held { node, life, copy: number });
        }
        let Some(copy) = self.nodes[node].owner.copies.get(&number).cloned() else { return };
        let holder = &self.nodes[copy.from];
        let local = copy.inline || copy.from == node;
        let reachable =
            local || (holder.answers() && self.sees(node, copy.from) && self.net.dialable(node, copy.from));
        let there = copy.inline || holder.holds(&copy.cid);
        let result = match (reachable, there) {
            (true, true) => Ok(()),
            (true, false) => Err(format!("no peer offers {}", copy.cid)),
            (false, _) => {
                let since = copy.away_since.unwrap_or(self.now);
                // Some shells give up after ten seconds without a holder, others go on trying.
                if self.now - since < 10 * SECOND || self.seed.is_multiple_of(2) {
                    if let Some(copy) = self.nodes[node].owner.copies.get_mut(&number) {
                        copy.away_since = Some(since);
                    }
                    self.queue.push(self.now + 2 * SECOND, Event::Held { node, life, copy: number });
                    return;
                }
                Err(format!("no peer offers {}", copy.cid))
            }
        };
        self.nodes[node].owner.copies.remove(&number);
        if result.is_ok() {
            self.nodes[node].content.insert(copy.cid);
        }
        let held = owner::Held { partition: copy.partition, attempt: copy.attempt, result };
        self.tell_owner(
            node,
            owner::Input::Held { job: copy.job, version: copy.version, results: vec![held] },
        );
    }
}
