//! From submit to result bytes: a hello job on a warm swarm of 3 nodes, submitted where nothing runs, beside starting
//! `/bin/true` in the same run.
//!
//! `cargo run --release -p testnet --example bench_hello -- target/release/cardume [ROUNDS]`

#[path = "bench/common.rs"]
mod common;

use std::time::Instant;

use anyhow::ensure;
use bytes::Bytes;
use common::{Net, Spans, Told, fork_and_exec, hello, idle_share, job, row, say_idle, table};
use hyper::Method;
use serde_json::json;

/// Rounds that are not measured: connections, caches and compiled code are then as they stay.
const WARM_UP: u64 = 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let told = Told::read()?;
    let rounds = told.number.unwrap_or(200);
    let idle = idle_share()?;
    let net = Net::up(&told, 3, 1).await?;
    let client = net.client(0)?;
    let submit = json!({ "Job": job(&client, hello()?, 1).await? }).to_string();
    std::fs::write(net.root.path().join("hello.wasm"), hello()?)?;

    let (mut bare, mut api, mut cli) = (Spans::default(), Spans::default(), Spans::default());
    let mut connection = client.connect().await?;
    let mut before = net.usage()?;
    for round in 0..WARM_UP + rounds {
        if round == WARM_UP {
            before = net.usage()?;
        }
        let bare_took = fork_and_exec()?;
        let begun = Instant::now();
        let body = Bytes::from(submit.clone());
        let answer =
            connection.request(Method::PUT, "/orchestrator/jobs", Some("application/json"), body).await?;
        let id = answer.ok()?["JobID"].as_str().unwrap_or_default().to_owned();
        let end = client.wait_end(&id).await?;
        let took = begun.elapsed();
        ensure!(end["Job"]["State"]["StateType"] == "Completed", "{end}");
        ensure!(end["Executions"]["Items"][0]["RunOutput"]["Stdout"] == "hello\n", "{end}");
        if round >= WARM_UP {
            bare.add(bare_took);
            api.add(took);
        }
    }
    let cpu = (net.usage()?.cpu - before.cpu) / u32::try_from(rounds.max(1))?;
    for round in 0..WARM_UP / 4 + rounds / 2 {
        let begun = Instant::now();
        let stdout = net.run(0, &["wasm", "run", "hello.wasm"]).await?;
        let took = begun.elapsed();
        ensure!(stdout == b"hello\n", "{stdout:?}");
        if round >= WARM_UP / 4 {
            cli.add(took);
        }
    }
    net.down().await?;

    say_idle(idle);
    let ratio = |spans: &Spans| format!("{:.2}", spans.median().as_secs_f64() / bare.median().as_secs_f64());
    let mut rows = vec![row(["submit to result", "min", "p50", "p99", "p50 / bare start"])];
    for (name, spans) in [("/bin/true", &bare), ("API", &api), ("command line", &cli)] {
        let [min, p50, p99] = spans.columns();
        rows.push(row([name, &min, &p50, &p99, &ratio(spans)]));
    }
    table(&rows);
    println!("CPU of all nodes per job by API: {} µs; {rounds} jobs, every result checked", cpu.as_micros());
    Ok(())
}
