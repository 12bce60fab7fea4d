//! Runs simulator seeds by hand.
//!
//! ```text
//! cargo run -p testnet --example sim -- --seeds 0..100000
//! cargo run -p testnet --example sim -- --seeds 4711 --verbose      every step of one seed
//! cargo run -p testnet --example sim -- --seeds 0..1000 --bug NAME  with a planted bug
//! cargo run -p testnet --example sim -- --lottery                   bids and messages per job by swarm size
//! ```

use std::ops::Range;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use gossip::bug::Bug;
use testnet::sim::{Options, Tweak, sweep};

/// Failing seeds that are printed in full before the run ends.
const MOST_FAILURES: usize = 5;

struct Arguments {
    seeds: Range<u64>,
    threads: usize,
    options: Options,
    lottery: bool,
    most_failures: usize,
}

fn main() -> Result<ExitCode> {
    let arguments = read_arguments()?;
    if arguments.lottery {
        testnet::sim::lottery::print_all();
        return Ok(ExitCode::SUCCESS);
    }
    let started = Instant::now();
    let result = sweep(arguments.seeds, &arguments.options, arguments.threads, arguments.most_failures);
    for outcome in &result.failures {
        println!("{outcome}");
    }
    let elapsed = started.elapsed().as_secs_f64();
    println!(
        "{} seeds, {} failed; {} steps, {} virtual hours in {elapsed:.1} s ({:.0} seeds/s)",
        result.seeds,
        result.failures.len(),
        result.steps,
        result.seconds / 3600,
        result.seeds as f64 / elapsed.max(0.001),
    );
    println!("{:?}", result.seen);
    Ok(if result.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read_arguments() -> Result<Arguments> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut arguments = Arguments {
        seeds: 0..1000,
        threads,
        options: Options::default(),
        lottery: false,
        most_failures: MOST_FAILURES,
    };
    let mut given = std::env::args().skip(1);
    while let Some(word) = given.next() {
        let mut value = || given.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--seeds" => arguments.seeds = read_range(&value()?)?,
            "--jobs" => arguments.threads = value()?.parse().context("--jobs takes a number")?,
            "--failures" => {
                arguments.most_failures = value()?.parse().context("--failures takes a number")?
            }
            "--bug" => arguments.options.tweak = planted(&value()?)?.tweak,
            "--verbose" => arguments.options.verbose = true,
            "--lottery" => arguments.lottery = true,
            _ => bail!("unknown argument {word:?}"),
        }
    }
    if arguments.options.verbose {
        arguments.threads = 1; // the steps of two seeds at once could not be read
    }
    Ok(arguments)
}

/// Options with a bug of this name planted in both machines.
fn planted(name: &str) -> Result<Options> {
    let Some(bug) = Bug::ALL.into_iter().find(|bug| format!("{bug:?}").eq_ignore_ascii_case(name)) else {
        bail!("no bug {name:?}; there are {:?}", Bug::ALL);
    };
    let tweak: Tweak = Arc::new(move |owner, worker| (owner.bug, worker.bug) = (Some(bug), Some(bug)));
    Ok(Options { tweak: Some(tweak), ..Options::default() })
}

fn read_range(text: &str) -> Result<Range<u64>> {
    let number = |text: &str| text.parse::<u64>().with_context(|| format!("{text:?} is not a seed"));
    match text.split_once("..") {
        Some((first, end)) => Ok(number(first)?..number(end)?),
        None => number(text).map(|seed| seed..seed + 1),
    }
}
