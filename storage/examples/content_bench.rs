//! Measures adding and reading beside the hash of the same bytes: `cargo run --release -p storage --example content_bench [MiB]`.
//!
//! Prints medians of several runs, each into a new store, and checks every result.

use std::error::Error;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use storage::read::{self, Limits};
use storage::records::{Batch, Records, Table};
use storage::store::{AddOptions, Pin, Settings, Store};
use storage::unixfs;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const RUNS: usize = 5;
const SMALL_FILES: usize = 10_000;
const SMALL_BYTES: usize = 4096;
const COMMITS: usize = 2000;
const TREES: usize = 2000;

fn main() -> Result<()> {
    memory()?;
    let mib: usize = std::env::args().nth(1).map_or(Ok(256), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let (large, small) = (dir.path().join("large"), dir.path().join("small"));
    fs::write(&large, noise(1, mib << 20))?;
    fs::create_dir(&small)?;
    for number in 0..SMALL_FILES {
        fs::write(small.join(format!("{number:05}")), noise(number as u64 + 2, SMALL_BYTES))?;
    }
    let bytes = (mib << 20) as f64;
    rate("sha256 of the file, one thread", bytes, || hash(&large))?;
    let store = Store::open(&dir.path().join("hash"), Settings::default())?;
    rate("add, only hash", bytes, || {
        let options = AddOptions { only_hash: true, ..AddOptions::default() };
        store.blocking().add_path(&large, &options)?;
        Ok(())
    })?;
    let mut stored = 0.0;
    let mut seconds = Vec::new();
    for run in 0..RUNS {
        let home = dir.path().join(format!("add{run}"));
        let store = Store::open(&home, Settings::default())?;
        let start = Instant::now();
        store.blocking().add_path(&large, &AddOptions::default())?;
        seconds.push(start.elapsed().as_secs_f64());
        stored = on_disk(&home)? as f64 / bytes;
        drop(store);
        fs::remove_dir_all(&home)?;
    }
    let best = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    println!(
        "{:<44}{:10.0} MB/s (best {:.0})",
        "add, durable",
        bytes / median(seconds) / 1e6,
        bytes / best / 1e6
    );
    println!("{:<44}{stored:10.4}", "bytes on disk per byte, index included");
    read_back(&dir.path().join("read"), &large, bytes)?;
    small_files(dir.path(), &small)?;
    commits(dir.path())?;
    results(dir.path())
}

/// What both databases cost a node that does nothing.
fn memory() -> Result<()> {
    let resident = || -> Result<f64> {
        let status = fs::read_to_string("/proc/self/statm")?;
        let pages: f64 = status.split(' ').nth(1).ok_or("has a second figure")?.parse()?;
        Ok(pages * 4.0 / 1024.0)
    };
    let before = resident()?;
    let dir = tempfile::tempdir()?;
    let _records = Records::open(dir.path())?;
    let _store = Store::open(&dir.path().join("content"), Settings::default())?;
    println!("{:<44}{:10.1} MiB", "memory of both databases, open and idle", resident()? - before);
    Ok(())
}

fn read_back(home: &Path, large: &Path, bytes: f64) -> Result<()> {
    let store = Store::open(home, Settings::default())?;
    let added = store.blocking().add_path(large, &AddOptions::default())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    rate("cat", bytes, || {
        let pieces = read::cat(&store, added.cid, .., Limits::default());
        let length = pieces.try_fold(0, |sum, piece| async move { Ok(sum + piece.len() as u64) });
        if runtime.block_on(length)? == added.bytes { Ok(()) } else { Err("short".into()) }
    })?;
    rate("verify", bytes, || {
        if store.blocking().verify(false)?.damaged == 0 { Ok(()) } else { Err("damaged".into()) }
    })
}

fn small_files(dir: &Path, small: &Path) -> Result<()> {
    let mut seconds = Vec::new();
    let mut stored = 0.0;
    let before = cpu_seconds();
    for run in 0..RUNS {
        let home = dir.join(format!("small{run}"));
        let store = Store::open(&home, Settings::default())?;
        let start = Instant::now();
        store.blocking().add_path(small, &AddOptions::default())?;
        seconds.push(start.elapsed().as_secs_f64());
        stored = on_disk(&home)? as f64 / (SMALL_FILES * SMALL_BYTES) as f64;
    }
    let cost = (cpu_seconds() - before) / (RUNS * SMALL_FILES) as f64 * 1e6;
    let rate = SMALL_FILES as f64 / median(seconds);
    println!("{:<44}{rate:10.0} files/s {cost:8.1} CPU-us each", "add 10,000 files of 4 KiB");
    println!("{:<44}{stored:10.4}", "bytes on disk per byte, index included");
    Ok(())
}

fn commits(dir: &Path) -> Result<()> {
    let records = Records::open(dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    let mut seconds = Vec::new();
    runtime.block_on(async {
        for number in 0..COMMITS as u64 {
            let mut batch = Batch::new();
            batch.put(Table::OWNER, number.to_be_bytes(), noise(number, 512));
            let start = Instant::now();
            records.commit(batch).await?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok::<(), Box<dyn Error>>(())
    })?;
    seconds.sort_by(f64::total_cmp);
    let at = |part: f64| seconds[(seconds.len() as f64 * part) as usize] * 1e3;
    println!(
        "{:<44}{:10.3} ms (p10 {:.3}, p99 {:.3})",
        "commit of one record, p50",
        at(0.5),
        at(0.1),
        at(0.99)
    );
    Ok(())
}

fn results(dir: &Path) -> Result<()> {
    let store = Store::open(&dir.join("results"), Settings::default())?;
    let start = Instant::now();
    let mut trees = Vec::with_capacity(TREES);
    for number in 0..TREES {
        let stdout = format!("result {number}\n");
        trees.push(unixfs::small_tree(&[
            ("stdout", stdout.as_bytes()),
            ("stderr", b""),
            ("exitCode", b"0"),
        ])?);
    }
    println!(
        "{:<44}{:10.1} us",
        "build a result in memory",
        start.elapsed().as_secs_f64() / TREES as f64 * 1e6
    );
    let start = Instant::now();
    std::thread::scope(|scope| {
        for part in trees.chunks(TREES.div_ceil(16)) {
            let store = store.blocking();
            scope.spawn(move || {
                for (root, blocks) in part {
                    store.put_pinned(blocks, &[Pin::new(*root, "job")]).expect("stores");
                }
            });
        }
    });
    let rate = TREES as f64 / start.elapsed().as_secs_f64();
    println!("{:<44}{rate:10.0} /s", "store and pin results, 16 at once");
    Ok(())
}

/// Runs `work` several times and prints the median rate, and what a gigabyte costs in time of all cores.
fn rate(what: &str, bytes: f64, mut work: impl FnMut() -> Result<()>) -> Result<()> {
    let mut seconds = Vec::new();
    let before = cpu_seconds();
    for _ in 0..RUNS {
        let start = Instant::now();
        work()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let cost = (cpu_seconds() - before) / RUNS as f64 / bytes * 1e9;
    println!("{what:<44}{:10.0} MB/s {cost:8.2} CPU-s/GB", bytes / median(seconds) / 1e6);
    Ok(())
}

fn cpu_seconds() -> f64 {
    let clock = rustix::time::ClockId::ProcessCPUTime;
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn hash(path: &Path) -> Result<()> {
    let (mut file, mut hash, mut buffer) = (File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    std::hint::black_box(hash.finalize());
    Ok(())
}

fn on_disk(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        sum += if meta.is_dir() { on_disk(&entry.path())? } else { meta.blocks() * 512 };
    }
    Ok(sum)
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
