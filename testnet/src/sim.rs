//! A deterministic simulator of the swarm protocol: the two machines of `gossip` under loss, repeats, reordering,
//! crashes, netsplits and clocks that are off.
//!
//! One seed gives one history. Each seed draws a swarm, its network's weather, its jobs and its faults ([`run`]); every
//! message is encoded and decoded on the way; shells behave as the node's do (drain what waits, handle it all, settle,
//! one transaction, then the effects in order) and can crash before the transaction, after it and between effects. After
//! every step the invariants of the design are checked; once the faults end, liveness is: every accepted job ends, and
//! nothing is left over.
//!
//! It owns virtual clocks, a virtual network, virtual disks and a fake engine. It never opens a socket or a file, reads a
//! clock, or sleeps.
//!
//! ```
//! use testnet::sim::{Options, run};
//! let (first, again) = (run(1, &Options::default()), run(1, &Options::default()));
//! assert_eq!(first.hash, again.hash); // one seed, one history
//! ```

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

mod check;
mod client;
mod clock;
mod crypto;
mod engine;
mod faults;
mod host;
pub mod lottery;
mod net;
mod plan;
mod queue;
mod rng;
mod rogue;
mod shell;
mod trace;
mod words;
mod world;

pub use rng::Rng;

/// How many of its last steps a failing seed prints.
const LAST_STEPS: usize = 40;
/// No seed takes more steps: one that does has a machine that never rests.
const MOST_STEPS: u64 = 400_000;

/// Changes the machines' settings before they are made: how a planted bug is switched on.
pub type Tweak = Arc<dyn Fn(&mut gossip::owner::Settings, &mut gossip::worker::Settings) + Send + Sync>;

/// How seeds are run.
#[derive(Clone, Default)]
pub struct Options {
    /// Changes to the machines' settings.
    pub tweak: Option<Tweak>,
    /// Print every step as it happens.
    pub verbose: bool,
}

/// What became of a seed.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// A hash over everything that happened.
    pub hash: u64,
    /// Steps taken.
    pub steps: u64,
    /// Virtual time that passed, in seconds.
    pub seconds: u64,
    /// What broke, if anything did.
    pub failure: Option<Failure>,
    /// What the history saw, to tell that seeds exercise what they are for.
    pub seen: Seen,
}

/// An invariant that did not hold.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Which rule.
    pub rule: &'static str,
    /// What was seen.
    pub found: String,
    /// The last steps, in words.
    pub last_steps: Vec<String>,
}

/// Counts of what happened in a history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Jobs accepted.
    pub jobs: u64,
    /// Jobs that ended Completed.
    pub completed: u64,
    /// Partitions committed.
    pub commits: u64,
    /// Executions that were really started.
    pub starts: u64,
    /// Processes killed, by plan or at a crash point.
    pub crashes: u64,
    /// Machines restored from records.
    pub restores: u64,
    /// Transactions that failed.
    pub disk_errors: u64,
    /// Messages that were sent.
    pub messages: u64,
    /// Frames lost, doubled or late.
    pub disturbed: u64,
    /// Re-awards: awards of an attempt above the first.
    pub awarded_again: u64,
    /// Messages that a rogue peer made up.
    pub lies: u64,
}

impl Seen {
    /// Adds up two histories.
    pub fn add(&mut self, other: &Seen) {
        let Seen {
            jobs,
            completed,
            commits,
            starts,
            crashes,
            restores,
            disk_errors,
            messages,
            disturbed,
            awarded_again,
            lies,
        } = other;
        self.jobs += jobs;
        self.completed += completed;
        self.commits += commits;
        self.starts += starts;
        self.crashes += crashes;
        self.restores += restores;
        self.disk_errors += disk_errors;
        self.messages += messages;
        self.disturbed += disturbed;
        self.awarded_again += awarded_again;
        self.lies += lies;
    }
}

/// Runs one seed. A failing one is run a second time to put its last steps into words.
pub fn run(seed: u64, options: &Options) -> Outcome {
    let trace = if options.verbose { trace::Trace::printing() } else { trace::Trace::quiet() };
    let mut outcome = history(seed, options, trace);
    if let Some(failure) = outcome.failure.as_mut().filter(|_| !options.verbose) {
        let again = history(seed, options, trace::Trace::last(LAST_STEPS));
        failure.last_steps = again.failure.map(|again| again.last_steps).unwrap_or_default();
    }
    outcome
}

fn history(seed: u64, options: &Options, trace: trace::Trace) -> Outcome {
    let settings = shell::MachineSettings { tweak: options.tweak.clone() };
    let mut world = world::World::new(seed, plan::Plan::draw(seed), settings, trace);
    while world.violation().is_none() && !world.finished() {
        if world.steps >= MOST_STEPS {
            world.check.broken("a seed ends", format!("still busy after {MOST_STEPS} steps"));
        } else if !world.step() {
            break;
        }
    }
    let (hash, steps, seconds, seen) =
        (world.trace.hash(), world.steps, world.now / clock::SECOND, world.check.seen);
    let violation = world.check.violation.take();
    let last_steps = world.trace.into_lines();
    let failure = violation.map(|found| Failure { rule: found.rule, found: found.found, last_steps });
    Outcome { seed, hash, steps, seconds, failure, seen }
}

/// What became of many seeds.
#[derive(Debug, Clone, Default)]
pub struct Sweep {
    /// How many were run.
    pub seeds: u64,
    /// Steps of all of them.
    pub steps: u64,
    /// Virtual seconds of all of them.
    pub seconds: u64,
    /// What they saw.
    pub seen: Seen,
    /// Those that failed, in order.
    pub failures: Vec<Outcome>,
}

/// Runs seeds on `threads` threads. It stops early after `most_failures` failures: what comes later is mostly the same
/// again.
pub fn sweep(seeds: Range<u64>, options: &Options, threads: usize, most_failures: usize) -> Sweep {
    let (next, enough) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let worker = || {
        let mut mine = Sweep::default();
        while !enough.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let outcome = run(seed, options);
            mine.seeds += 1;
            mine.steps += outcome.steps;
            mine.seconds += outcome.seconds;
            mine.seen.add(&outcome.seen);
            if outcome.failure.is_some() {
                mine.failures.push(outcome);
                if mine.failures.len() >= most_failures {
                    enough.store(true, Ordering::Relaxed);
                }
            }
        }
        mine
    };
    let mut all = Sweep::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(worker)).collect();
        for thread in threads {
            let part = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            all.seeds += part.seeds;
            all.steps += part.steps;
            all.seconds += part.seconds;
            all.seen.add(&part.seen);
            all.failures.extend(part.failures);
        }
    });
    all.failures.sort_by_key(|outcome| outcome.seed);
    all
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "seed {}: {} steps, {} s, history {:016x}",
            self.seed, self.steps, self.seconds, self.hash
        )?;
        let Some(failure) = &self.failure else { return write!(f, ", ok") };
        writeln!(f, "\n  broken: {}\n  found:  {}\n  last steps:", failure.rule, failure.found)?;
        for line in &failure.last_steps {
            writeln!(f, "    {line}")?;
        }
        Ok(())
    }
}
