//! What the store's tests share.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::path::Path;

use storage::store::{AddOptions, Settings, Store};
use storage::unixfs::Profile;

/// A store in a temporary directory that goes with it.
#[derive(Debug)]
pub struct Home {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

pub fn home() -> Home {
    home_with(Settings::default())
}

pub fn home_with(settings: Settings) -> Home {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(&dir.path().join("content"), settings).expect("opens");
    Home { dir, store }
}

/// Bytes that do not repeat, the same for the same seed.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
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

/// A profile with small chunks, so that small inputs make deep trees.
pub fn small_chunks() -> Profile {
    Profile { chunk_bytes: 4096, width: 4, ..Profile::V1_2025 }
}

pub fn options(profile: Profile) -> AddOptions {
    AddOptions { profile, ..AddOptions::default() }
}

/// A tree with files large and small, a directory in a directory, an empty one and a link.
pub fn write_tree(dir: &Path) {
    fs::create_dir_all(dir.join("sub/empty")).expect("creates");
    fs::write(dir.join("large"), bytes(1, 300_000)).expect("writes");
    fs::write(dir.join("small"), "small").expect("writes");
    fs::write(dir.join("sub/nothing"), "").expect("writes");
    fs::write(dir.join("sub/large too"), bytes(2, 100_000)).expect("writes");
    std::os::unix::fs::symlink("../small", dir.join("sub/link")).expect("links");
}

/// Whether two trees hold the same names, bytes and links.
pub fn assert_same(left: &Path, right: &Path) {
    let (mut found, mut wanted) = (list(left), list(right));
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
}

fn list(dir: &Path) -> Vec<(String, String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).expect("lists") {
        let path = entry.expect("lists").path();
        let name = path.file_name().expect("has a name").to_string_lossy().into_owned();
        let meta = fs::symlink_metadata(&path).expect("is there");
        if meta.is_dir() {
            all.push((name.clone(), "directory".to_owned(), Vec::new()));
            for (below, kind, bytes) in list(&path) {
                all.push((format!("{name}/{below}"), kind, bytes));
            }
        } else if meta.is_symlink() {
            let target = fs::read_link(&path).expect("is a link").to_string_lossy().into_owned();
            all.push((name, format!("link to {target}"), Vec::new()));
        } else {
            all.push((name, "file".to_owned(), fs::read(&path).expect("reads")));
        }
    }
    all
}
