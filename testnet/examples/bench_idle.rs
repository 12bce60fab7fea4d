//! What a node costs that does nothing: memory, CPU and wake-ups, and how soon it serves.
//!
//! `cargo run --release -p testnet --example bench_idle -- target/release/cardume [SECONDS]`

#[path = "bench/common.rs"]
mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use common::{Net, Spans, Told, idle_share, row, say_idle, table};
use testnet::process::NodeInfo;

/// Starts of each kind.
const STARTS: usize = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let told = Told::read()?;
    let seconds = told.number.unwrap_or(30);
    let idle = idle_share()?;
    let (mut fresh, mut again) = (Spans::default(), Spans::default());
    for _ in 0..STARTS {
        let dir = tempfile::tempdir()?;
        fresh.add(start(&told.program, dir.path())?);
        again.add(start(&told.program, dir.path())?);
    }

    let net = Net::up(&told, 3, 0).await?;
    let before: Vec<Figures> = net.state.nodes.iter().map(Figures::read).collect::<Result<_, _>>()?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let after: Vec<Figures> = net.state.nodes.iter().map(Figures::read).collect::<Result<_, _>>()?;
    net.down().await?;

    say_idle(idle);
    let mut rows = vec![row(["start to serving", "min", "p50", "max"])];
    for (name, spans) in [("new data directory", &fresh), ("the same again", &again)] {
        let [min, p50, max] = spans.columns();
        rows.push(row([name, &min, &p50, &max]));
    }
    rows.push(row([""]));
    rows.push(row(["idle in a swarm of 3", "memory", "CPU", "switches"]));
    for (node, (before, after)) in net_names(&before, &after) {
        let cpu = (after.cpu - before.cpu).as_secs_f64() * 100.0 / seconds as f64;
        let switches = after.switches.saturating_sub(before.switches) as f64 / seconds as f64;
        rows.push(vec![
            node,
            format!("{} MiB", after.resident >> 20),
            format!("{cpu:.2} %"),
            format!("{switches:.1}/s"),
        ]);
    }
    table(&rows);
    Ok(())
}

struct Figures {
    resident: u64,
    cpu: Duration,
    switches: u64,
}

impl Figures {
    fn read(node: &NodeInfo) -> anyhow::Result<Self> {
        let usage = node.usage()?;
        let pid = node.pid.context("the node does not run")?;
        let mut switches = 0;
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = std::fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
            let counts = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
            switches += counts.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum::<u64>();
        }
        Ok(Figures { resident: usage.resident_bytes, cpu: usage.cpu, switches })
    }
}

fn net_names<'a>(
    before: &'a [Figures],
    after: &'a [Figures],
) -> impl Iterator<Item = (String, (&'a Figures, &'a Figures))> {
    before.iter().zip(after).enumerate().map(|(index, figures)| (format!("n{index}"), figures))
}

/// Starts a node by itself and measures until its line says that it serves; then ends it.
fn start(program: &Path, dir: &Path) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let mut child = Command::new(program)
        .args([
            "serve",
            "--output",
            "json",
            "--api",
            "127.0.0.1:0",
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
            "--swarm",
            "bench",
        ])
        .arg("--data-dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut line = String::new();
    let read = BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut line);
    let took = begun.elapsed();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    let status = child.wait()?;
    read?;
    ensure!(line.contains("\"ready\""), "the node does not serve: {line:?}");
    ensure!(status.success(), "the node ended with {status}");
    Ok(took)
}
