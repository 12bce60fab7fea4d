//! What the benchmarks share: a test network that ends with them, figures, and one small table.

#![allow(dead_code, reason = "each benchmark uses a part")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use testnet::client::Client;
use testnet::process::{self, NodeInfo, State, UpOptions, Usage};

/// What a benchmark is told: `[PROGRAM] [NUMBER]`; the program also by `CARDUME`.
pub struct Told {
    pub program: PathBuf,
    pub number: Option<u64>,
}

impl Told {
    pub fn read() -> anyhow::Result<Self> {
        let mut arguments: Vec<String> = std::env::args().skip(1).collect();
        let number = arguments.last().and_then(|last| last.parse().ok());
        if number.is_some() {
            arguments.pop();
        }
        let program = arguments.pop().or_else(|| std::env::var("CARDUME").ok());
        let program = program.context("name the cardume binary as the first argument or in CARDUME")?;
        let program = Path::new(&program).canonicalize().with_context(|| format!("no program {program}"))?;
        Ok(Told { program, number })
    }
}

/// A test network that ends with the benchmark.
pub struct Net {
    pub state: State,
    pub root: tempfile::TempDir,
    pub program: PathBuf,
}

impl Net {
    pub async fn up(told: &Told, nodes: usize, submit_only: usize) -> anyhow::Result<Self> {
        let root = tempfile::tempdir()?;
        let options =
            UpOptions { nodes, submit_only, ..UpOptions::new(root.path().join("net"), &told.program) };
        let state = process::up(options).await?;
        Ok(Net { state, root, program: told.program.clone() })
    }

    pub fn client(&self, index: usize) -> anyhow::Result<Client> {
        Client::new(&self.node(index)?.api)
    }

    pub fn node(&self, index: usize) -> anyhow::Result<&NodeInfo> {
        self.state.nodes.get(index).context("no such node")
    }

    /// The command line at a node.
    pub fn command(&self, index: usize) -> anyhow::Result<tokio::process::Command> {
        let mut command = tokio::process::Command::new(&self.program);
        command
            .env("CARDUME_API", &self.node(index)?.api)
            .env("CARDUME_DIR", self.root.path().join("unused"));
        command.current_dir(self.root.path()).kill_on_drop(true).stdin(std::process::Stdio::null());
        Ok(command)
    }

    /// Runs a command that must do its work; gives its stdout.
    pub async fn run(&self, index: usize, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let output = self.command(index)?.args(arguments).output().await?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?} failed: {}", stderr.trim());
        Ok(output.stdout)
    }

    /// What all processes of all nodes have used.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let mut sum = Usage::default();
        for node in &self.state.nodes {
            let usage = node.usage()?;
            sum.cpu += usage.cpu;
            sum.resident_bytes += usage.resident_bytes;
        }
        Ok(sum)
    }

    pub async fn down(self) -> anyhow::Result<()> {
        process::down(&self.state.dir, true).await?;
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Err(error) = process::kill_all(&self.state.dir) {
            eprintln!("cannot end {}: {error:#}", self.state.dir.display());
        }
    }
}

/// Measured spans, in order.
#[derive(Debug, Default, Clone)]
pub struct Spans(Vec<Duration>);

impl Spans {
    pub fn add(&mut self, span: Duration) {
        let at = self.0.partition_point(|other| *other <= span);
        self.0.insert(at, span);
    }

    /// The smallest span that this share of all does not exceed.
    pub fn quantile(&self, share: f64) -> Duration {
        let nth = (self.0.len() as f64 * share).ceil() as usize;
        self.0.get(nth.saturating_sub(1)).or(self.0.last()).copied().unwrap_or_default()
    }

    pub fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    pub fn columns(&self) -> [String; 3] {
        [self.quantile(0.0), self.median(), self.quantile(0.99)].map(millis)
    }
}

pub fn millis(span: Duration) -> String {
    format!("{:.2} ms", span.as_secs_f64() * 1e3)
}

/// Prints rows in columns.
pub fn table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

pub fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// The share of the machine that is idle just now. Below a half, wall times say little.
pub fn idle_share() -> anyhow::Result<f64> {
    let read = || -> anyhow::Result<(f64, f64)> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().context("no line in /proc/stat")?;
        let fields: Vec<f64> =
            line.split_ascii_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
        let idle = fields.get(3).context("no idle time in /proc/stat")? + fields.get(4).unwrap_or(&0.0);
        Ok((idle, fields.iter().sum()))
    };
    let (idle, all) = read()?;
    std::thread::sleep(Duration::from_secs(1));
    let (idle_later, all_later) = read()?;
    Ok((idle_later - idle) / (all_later - all).max(1.0))
}

/// Says how idle the machine was, and what that means for the figures.
pub fn say_idle(share: f64) {
    let verdict = if share < 0.5 { "; too busy for a verdict on wall times" } else { "" };
    println!("machine {:.0} % idle before the run{verdict}", share * 100.0);
}

/// Runs and waits for `/bin/true`: what starting any program costs here.
pub fn fork_and_exec() -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let status = std::process::Command::new("/bin/true").status()?;
    ensure!(status.success(), "/bin/true failed");
    Ok(begun.elapsed())
}

/// Bytes that a folder's files take on the disk.
pub fn disk_bytes(dir: &Path) -> anyhow::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        sum += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(sum)
}

/// A program that prints `hello` and ends.
pub fn hello() -> anyhow::Result<Vec<u8>> {
    Ok(wat::parse_str(
        r#"(module
          (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (data (i32.const 16) "hello\n")
          (func (export "_start")
            (i32.store (i32.const 0) (i32.const 16))
            (i32.store (i32.const 4) (i32.const 6))
            (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#,
    )?)
}

/// Adds a module at a node and gives a batch job of it.
pub async fn job(client: &Client, module: Vec<u8>, count: u64) -> anyhow::Result<serde_json::Value> {
    let added = client.put_bytes("/content", "application/octet-stream", module.into()).await?.ok()?;
    let cid = added["Cid"].as_str().context("no CID")?;
    Ok(serde_json::json!({
        "Type": "batch",
        "Count": count,
        "Tasks": [{
            "Name": "main",
            "Engine": {"Type": "wasm", "Params": {"EntryModule": format!("ipfs://{cid}")}},
            "Resources": {"CPU": "10m", "Memory": "4Mb"},
        }],
    }))
}

/// Pseudo-random bytes, so that nothing on the way can compress or share them.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
