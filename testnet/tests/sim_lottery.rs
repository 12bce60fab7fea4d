//! The admission lottery in swarms of a thousand to a hundred thousand idle peers.

use std::sync::Arc;

use gossip::bug::Bug;
use testnet::sim::lottery::{Case, Report, measure};
use testnet::sim::{Options, Tweak};

/// Bids per job: at least what the job needs, and no more than this at any size and for any of these counts, when the
/// owner knows the swarm's size to a quarter.
const MOST_BIDS: f64 = 200.0;

fn case(peers: u64, count: u32) -> Case {
    Case { peers, believed: peers, count, jobs: if peers > 10_000 { 3 } else { 5 }, greedy: 0 }
}

fn run(case: Case) -> Report {
    measure(case, &Options::default(), case.peers + u64::from(case.count))
}

#[test]
fn bids_per_job_do_not_grow_with_the_swarm() {
    for count in [1, 3, 50] {
        let reports = [1_000, 10_000, 100_000].map(|peers| run(case(peers, count)));
        for report in &reports {
            assert_eq!(report.unfilled, 0, "{report:?}");
            assert!(report.mean_bids() >= f64::from(count) && report.mean_bids() < MOST_BIDS, "{report:?}");
        }
        let means = reports.map(|report| report.mean_bids());
        let (least, most) =
            (means.iter().fold(f64::MAX, |a, &b| a.min(b)), means.iter().fold(0f64, |a, &b| a.max(b)));
        assert!(most < 2.0 * least, "bids per job of {count} partitions by size: {means:?}");
    }
}

#[test]
fn a_size_that_is_wrong_by_four_costs_four_times_the_bids_or_a_round() {
    for count in [1, 3, 50] {
        let right = run(case(1_000, count)).mean_bids();
        for believed in [250, 4_000] {
            let report = run(Case { believed, ..case(1_000, count) });
            assert_eq!(report.unfilled, 0, "{report:?}");
            assert!(report.mean_bids() <= 5.0 * right, "{believed}: {} to {right}", report.mean_bids());
        }
    }
}

#[test]
fn peers_that_bid_without_being_admitted_win_nothing() {
    let greedy = Case { greedy: 300, ..case(1_000, 3) };
    let report = measure(greedy, &Options::default(), 1);
    assert_eq!((report.outsiders, report.unfilled), (0, 0), "{report:?}");
    // With the check left out they do, and the simulator sees it.
    let tweak: Tweak = Arc::new(|owner, _| owner.bug = Some(Bug::ForeignBids));
    let report = measure(greedy, &Options { tweak: Some(tweak), ..Options::default() }, 1);
    assert!(report.outsiders > 0, "{report:?}");
}
