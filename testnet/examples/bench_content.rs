//! Adding 256 MiB and fetching it from node to node, beside a plain TCP stream of the same bytes in the same run.
//!
//! `cargo run --release -p testnet --example bench_content -- target/release/cardume [MIB]`

#[path = "bench/common.rs"]
mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use common::{Net, Spans, Told, idle_share, noise, row, say_idle, table};

const ROUNDS: u64 = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let told = Told::read()?;
    let mib = told.number.unwrap_or(256);
    let idle = idle_share()?;
    let net = Net::up(&told, 2, 0).await?;
    let (mut tcp, mut add, mut fetch, mut reread) =
        (Spans::default(), Spans::default(), Spans::default(), Spans::default());
    let mut cpu = Duration::ZERO;
    for round in 0..ROUNDS {
        let bytes = noise(round + 1, usize::try_from(mib << 20)?);
        std::fs::write(net.root.path().join("noise"), &bytes)?;
        tcp.add(stream(&bytes)?);

        let begun = Instant::now();
        let said = String::from_utf8(net.run(0, &["data", "add", "noise"]).await?)?;
        add.add(begun.elapsed());
        let cid = said.lines().last().context("no CID")?.to_owned();

        let before = net.usage()?;
        let begun = Instant::now();
        net.run(1, &["data", "get", &cid, "--output-dir", "copy"]).await?;
        fetch.add(begun.elapsed());
        cpu += net.usage()?.cpu - before.cpu;
        ensure!(std::fs::read(net.root.path().join("copy"))? == bytes, "the copy differs");
        std::fs::remove_file(net.root.path().join("copy"))?;

        let begun = Instant::now();
        net.run(1, &["data", "get", &cid, "--output-dir", "again"]).await?;
        reread.add(begun.elapsed());
        ensure!(std::fs::read(net.root.path().join("again"))? == bytes, "the second copy differs");
        std::fs::remove_file(net.root.path().join("again"))?;
    }
    let memory = net.usage()?.resident_bytes;
    net.down().await?;

    say_idle(idle);
    let rate = |spans: &Spans| mib as f64 * 1.048_576 / spans.median().as_secs_f64();
    let mut rows = vec![vec![format!("{mib} MiB"), "MB/s".into(), "of plain TCP".into()]];
    for (name, spans) in [
        ("plain TCP", &tcp),
        ("data add", &add),
        ("data get from another node", &fetch),
        ("data get again", &reread),
    ] {
        rows.push(row([name, &format!("{:.0}", rate(spans)), &format!("{:.2}", rate(spans) / rate(&tcp))]));
    }
    table(&rows);
    let per_byte = cpu.as_secs_f64() * 1e9 / (ROUNDS * (mib << 20)) as f64;
    println!(
        "CPU of both nodes per fetched byte: {per_byte:.2} ns; memory of both after: {} MiB; all copies equal",
        memory >> 20
    );
    Ok(())
}

/// Sends the bytes through a TCP connection on loopback, without doing anything with them.
fn stream(bytes: &[u8]) -> anyhow::Result<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let begun = Instant::now();
    let received = std::thread::scope(|scope| -> anyhow::Result<usize> {
        let reader = scope.spawn(move || -> std::io::Result<usize> {
            let (mut socket, _) = listener.accept()?;
            let (mut buffer, mut sum) = (vec![0; 256 << 10], 0);
            loop {
                match socket.read(&mut buffer)? {
                    0 => return Ok(sum),
                    read => sum += read,
                }
            }
        });
        let mut socket = TcpStream::connect(address)?;
        for part in bytes.chunks(256 << 10) {
            socket.write_all(part)?;
        }
        drop(socket);
        Ok(reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??)
    })?;
    ensure!(received == bytes.len(), "{received} bytes arrived");
    Ok(begun.elapsed())
}
