//! The admission lottery in large swarms of idle peers: bids, messages and bytes per job, and how long a job waits for
//! its workers.
//!
//! The owner is a real owner machine, new for every job so that it knows no recent bidders and has to announce. Up to
//! [`REAL_WORKERS`] peers are real worker machines; in larger swarms peers run the real reading, checking and admission
//! of announcements, and answer with real messages. Announcements travel down a tree of seven children a peer with a
//! lognormal time per hop (median 70 ms), direct messages take a lognormal time (median 50 ms) each way.

use super::Options;

mod swarm;

/// Swarms up to this size are made of real worker machines.
pub const REAL_WORKERS: u64 = 10_000;
/// A swarm and the jobs that are sent to it.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// How many peers there are, all idle and able.
    pub peers: u64,
    /// How many the owner believes there are.
    pub believed: u64,
    /// Partitions of each job.
    pub count: u32,
    /// How many jobs are measured.
    pub jobs: u64,
    /// How many of the peers bid on everything they hear of, admitted or not.
    pub greedy: u64,
}

/// What the jobs of a case cost.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Bids that reached the owner, by job, in rising order.
    pub bids: Vec<u64>,
    /// Announcement messages published, of all jobs.
    pub announcements: u64,
    /// Direct messages of all jobs, bids among them.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When all partitions were accepted by a worker, in milliseconds, in rising order.
    pub fill_ms: Vec<u64>,
    /// Jobs that were not filled within a minute.
    pub unfilled: u64,
    /// Awards to greedy peers that the lottery had not admitted.
    pub outsiders: u64,
}

impl Report {
    /// Bids per job.
    pub fn mean_bids(&self) -> f64 {
        self.bids.iter().sum::<u64>() as f64 / self.bids.len().max(1) as f64
    }

    /// The time within which this share (in percent) of the jobs was filled.
    pub fn fill_percentile(&self, percent: usize) -> u64 {
        let at = (self.fill_ms.len() * percent).div_ceil(100).saturating_sub(1);
        self.fill_ms.get(at).copied().unwrap_or(0)
    }
}

/// Runs a case.
///
/// ```
/// use testnet::sim::{Options, lottery::{Case, measure}};
/// let report = measure(Case { peers: 200, believed: 200, count: 1, jobs: 2, greedy: 0 }, &Options::default(), 1);
/// assert_eq!(report.unfilled, 0);
/// assert!(report.mean_bids() < 100.0);
/// ```
pub fn measure(case: Case, options: &Options, seed: u64) -> Report {
    let mut report = Report::default();
    let mut swarm = swarm::Swarm::new(case, options, seed);
    for job in 0..case.jobs {
        swarm.run_job(job, &mut report);
    }
    report.bids.sort_unstable();
    report.fill_ms.sort_unstable();
    report
}

/// Prints a table for swarms of 1,000 to 100,000 peers.
pub fn print_all() {
    println!(
        "peers    believed  count  bids/job (min..max)       msgs/job  KiB/job  announced/job  fill p50  p95 ms  unfilled"
    );
    for peers in [1_000u64, 10_000, 100_000] {
        for believed in [peers, peers / 4, peers * 4] {
            for count in [1, 3, 50] {
                let jobs = if peers > REAL_WORKERS { 8 } else { 20 };
                let report = measure(
                    Case { peers, believed, count, jobs, greedy: 0 },
                    &Options::default(),
                    peers ^ u64::from(count),
                );
                let each = |total: u64| total as f64 / jobs as f64;
                println!(
                    "{peers:<8} {believed:<9} {count:<6} {:>8.1} ({}..{}){:>22.1} {:>8.1} {:>14.1} {:>9} {:>7} {:>9}",
                    report.mean_bids(),
                    report.bids.first().copied().unwrap_or(0),
                    report.bids.last().copied().unwrap_or(0),
                    each(report.messages),
                    each(report.bytes) / 1024.0,
                    each(report.announcements),
                    report.fill_percentile(50),
                    report.fill_percentile(95),
                    report.unfilled,
                );
            }
        }
    }
}
