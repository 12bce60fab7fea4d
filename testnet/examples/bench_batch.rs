//! One job of 10,000 partitions with output: 1 owner and 2 workers.
//!
//! `cargo run --release -p testnet --example bench_batch -- target/release/cardume [PARTITIONS]`

#[path = "bench/common.rs"]
mod common;

use std::time::Instant;

use anyhow::{Context, ensure};
use common::{Net, Told, disk_bytes, hello, idle_share, job, row, say_idle, table};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let told = Told::read()?;
    let count = told.number.unwrap_or(10_000);
    let idle = idle_share()?;
    let net = Net::up(&told, 3, 1).await?;
    let client = net.client(0)?;
    // One small job first: what it makes (compiled code, connections) is not the batch's.
    let warm = job(&client, hello()?, 4).await?;
    client.wait_end(&client.submit(&warm).await?).await?;

    let job = job(&client, hello()?, count).await?;
    let disk_before = disks(&net)?;
    let before = net.usage()?;
    let begun = Instant::now();
    let id = client.submit(&job).await?;
    let end = client.wait_end(&id).await?;
    let took = begun.elapsed();
    let after = net.usage()?;
    let disk_after = disks(&net)?;

    ensure!(end["Job"]["State"]["StateType"] == "Completed", "{}", end["Job"]["State"]);
    let executions = client.executions(&id).await?;
    let mut done = vec![false; usize::try_from(count)?];
    for execution in
        executions.iter().filter(|execution| execution["ComputeState"]["StateName"] == "Completed")
    {
        let partition = usize::try_from(execution["PartitionIndex"].as_u64().context("no partition")?)?;
        ensure!(execution["RunOutput"]["Stdout"] == "hello\n", "{execution}");
        let seen = done.get_mut(partition).context("a partition too many")?;
        ensure!(!std::mem::replace(seen, true), "partition {partition} is completed twice");
    }
    ensure!(done.iter().all(|done| *done), "a partition is missing");
    net.down().await?;

    say_idle(idle);
    let per = |bytes: u64| format!("{:.0} B", bytes as f64 / count as f64);
    let mut rows = vec![row(["batch", "figure"])];
    rows.push(vec!["executions".into(), format!("{count}, each once ({} awards)", executions.len())]);
    rows.push(vec!["wall".into(), format!("{:.2} s", took.as_secs_f64())]);
    rows.push(vec!["executions/s".into(), format!("{:.0}", count as f64 / took.as_secs_f64())]);
    let cpu = (after.cpu - before.cpu).as_micros() as f64 / count as f64;
    rows.push(vec!["CPU per execution, all nodes".into(), format!("{cpu:.0} µs")]);
    rows.push(vec!["disk per execution, owner".into(), per(disk_after.0.saturating_sub(disk_before.0))]);
    rows.push(vec!["disk per execution, workers".into(), per(disk_after.1.saturating_sub(disk_before.1))]);
    rows.push(vec!["memory of all nodes after".into(), format!("{} MiB", after.resident_bytes >> 20)]);
    table(&rows);
    Ok(())
}

/// Bytes on disk of the owner, and of the workers together.
fn disks(net: &Net) -> anyhow::Result<(u64, u64)> {
    let bytes = |index: usize| disk_bytes(&net.node(index)?.data_dir);
    Ok((bytes(0)?, bytes(1)? + bytes(2)?))
}
