//! Two hosts on loopback: what frames and streams cost.
//!
//! `cargo run --release -p p2p --example two_hosts`

use std::{
    error::Error,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt};
use p2p::{Config, Event, Events, Host, Identity, PeerId, SendError};

const ROUNDS: u32 = 20_000;
const BURST: u32 = 200_000;
const BULK: usize = 1 << 30;

type Done<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Done {
    let started = Instant::now();
    let (one, mut one_events) = Host::start(Config::loopback(Identity::from_seed([1; 32]), "demo")).await?;
    let bootstrap = one.wait_until_listening().await?;
    println!("listening after {:?}, {} KiB resident", started.elapsed(), resident_kib());
    let joining = Config { bootstrap, ..Config::loopback(Identity::from_seed([2; 32]), "demo") };
    let (two, two_events) = Host::start(joining).await?;
    while !matches!(one_events.next().await, Some(Event::Connected { .. })) {}
    println!("two hosts connected, {} KiB resident", resident_kib());

    let echo = tokio::spawn(echo_frames(two.clone(), two_events));
    round_trips(&one, &mut one_events, two.peer_id()).await?;
    burst(&one, &mut one_events, two.peer_id()).await?;
    bulk(&one, &two).await?;
    requests(&one, two.peer_id()).await?;
    one.stop().await?;
    two.stop().await?;
    echo.await??;
    println!("{} KiB resident at the end", resident_kib());
    Ok(())
}

/// Sends frames back and answers requests.
async fn echo_frames(host: Host, mut events: Events) -> Done {
    while let Some(event) = events.next().await {
        match event {
            Event::Frame { peer, bytes } => {
                while host.send(peer, bytes.clone()) == Err(SendError::Full) {
                    tokio::task::yield_now().await;
                }
            }
            Event::Request { bytes, reply, .. } => reply.send(bytes),
            _ => {}
        }
    }
    Ok(())
}

async fn next_frame(events: &mut Events) -> Done<Bytes> {
    loop {
        match events.next().await {
            Some(Event::Frame { bytes, .. }) => return Ok(bytes),
            Some(_) => {}
            None => return Err("the host has stopped".into()),
        }
    }
}

async fn round_trips(host: &Host, events: &mut Events, peer: PeerId) -> Done {
    let mut times = Vec::with_capacity(ROUNDS as usize);
    for _ in 0..ROUNDS {
        let sent = Instant::now();
        host.send(peer, Bytes::from_static(&[7; 100]))?;
        next_frame(events).await?;
        times.push(sent.elapsed());
    }
    times.sort();
    let at = |part: f64| times.get((part * f64::from(ROUNDS)) as usize).copied().unwrap_or(Duration::ZERO);
    println!("frame round trip: median {:?}, p99 {:?}, best {:?}", at(0.5), at(0.99), at(0.0));
    Ok(())
}

/// Frames there and back at the same time.
async fn burst(host: &Host, events: &mut Events, peer: PeerId) -> Done {
    let started = Instant::now();
    let sender = host.clone();
    let sending = tokio::spawn(async move {
        for _ in 0..BURST {
            while sender.send(peer, Bytes::from_static(&[7; 100])) == Err(SendError::Full) {
                tokio::task::yield_now().await;
            }
        }
    });
    for _ in 0..BURST {
        next_frame(events).await?;
    }
    sending.await?;
    let rate = f64::from(BURST) / started.elapsed().as_secs_f64();
    println!(
        "frames of 100 bytes: {rate:.0} a second there and as many back, {} flushes",
        host.metrics().frame_flushes.get()
    );
    Ok(())
}

async fn bulk(from: &Host, to: &Host) -> Done {
    let mut incoming = to.accept("bulk/1")?;
    let reading = tokio::spawn(async move {
        let Some((_, mut stream)) = incoming.next().await else { return 0 };
        let (mut chunk, mut total) = (vec![0; 256 << 10], 0);
        while let Ok(size @ 1..) = stream.read(&mut chunk).await {
            total += size;
        }
        total
    });
    let started = Instant::now();
    let mut stream = from.open_stream(to.peer_id(), "bulk/1").await?;
    let chunk = vec![7; 256 << 10];
    for _ in 0..BULK / chunk.len() {
        stream.write_all(&chunk).await?;
    }
    stream.close().await?;
    let total = reading.await?;
    println!("stream: {:.0} MB/s", total as f64 / 1e6 / started.elapsed().as_secs_f64());
    Ok(())
}

async fn requests(host: &Host, peer: PeerId) -> Done {
    let started = Instant::now();
    for _ in 0..2000 {
        host.request(peer, "echo", Bytes::from_static(b"x"), Duration::from_secs(10)).await?;
    }
    println!("request round trip: mean {:?}", started.elapsed() / 2000);
    Ok(())
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}
