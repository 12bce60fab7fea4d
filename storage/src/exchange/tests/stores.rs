//! Exchanges between real stores: what arrives is what was added, whatever its shape.

use std::path::Path;
use std::sync::mpsc;

use super::pipes::Swarm;
use crate::export::{ExportOptions, export};
use crate::store::{AddOptions, Settings, Store};
use crate::unixfs::Profile;

use super::*;

struct Home {
    dir: tempfile::TempDir,
    store: Store,
}

impl Home {
    fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("content"), Settings::default()).unwrap();
        Home { dir, store }
    }

    /// Adds what `write` puts at a path.
    async fn add(&self, profile: Profile, write: impl FnOnce(&Path)) -> Cid {
        let path = self.dir.path().join("input");
        write(&path);
        let options = AddOptions { profile, ..AddOptions::default() };
        self.store.add_path(&path, options).await.unwrap().cid
    }

    /// The CID of what is here under a CID, found by writing it out and adding it anew.
    async fn readd(&self, cid: Cid, profile: Profile) -> Cid {
        let path = self.dir.path().join("output");
        export(&self.store, cid, &path, ExportOptions::default()).await.unwrap();
        let options = AddOptions { profile, only_hash: true, ..AddOptions::default() };
        self.store.add_path(&path, options).await.unwrap().cid
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ length as u64;
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

/// Adds at one store, fetches to another, and looks whether the same came out.
async fn goes_over(profile: Profile, write: impl FnOnce(&Path)) {
    let swarm = Swarm::new();
    let (from, to) = (Home::new(), Home::new());
    let root = from.add(profile, write).await;
    let _server = swarm.start_with(1, Arc::new(from.store.clone()));
    let client = swarm.start_with(2, Arc::new(to.store.clone()));
    client.fetch(FetchRequest::new(root).hints([swarm.peer(1)])).await.unwrap();
    assert_eq!(to.readd(root, profile).await, root);
}

#[tokio::test]
async fn files_of_any_size_go_over() {
    for length in [0, 1, 65_536, 65_537, 1 << 20, (1 << 20) + 1, 5_000_000] {
        goes_over(Profile::V1_2025, |path| std::fs::write(path, noise(length)).unwrap()).await;
    }
}

#[tokio::test]
async fn a_file_of_64_mebibytes_goes_over() {
    goes_over(Profile::V1_2025, |path| std::fs::write(path, noise(64 << 20)).unwrap()).await;
}

#[tokio::test]
async fn a_file_in_the_old_form_goes_over() {
    goes_over(Profile::V0_2015, |path| std::fs::write(path, noise(3_000_000)).unwrap()).await;
}

#[tokio::test]
async fn a_file_that_repeats_itself_goes_over() {
    goes_over(Profile::V1_2025, |path| std::fs::write(path, vec![0; 20 << 20]).unwrap()).await;
}

#[tokio::test]
async fn a_deep_tree_of_small_chunks_goes_over() {
    let profile = Profile { chunk_bytes: 4096, width: 2, ..Profile::V1_2025 };
    goes_over(profile, |path| std::fs::write(path, noise(2_000_000)).unwrap()).await;
}

#[tokio::test]
async fn a_directory_goes_over() {
    goes_over(Profile::V1_2025, |path| {
        std::fs::create_dir_all(path.join("sub/empty")).unwrap();
        std::fs::write(path.join("large"), noise(300_000)).unwrap();
        std::fs::write(path.join("same"), noise(300_000)).unwrap();
        std::fs::write(path.join("sub/small"), "small").unwrap();
        std::os::unix::fs::symlink("small", path.join("sub/link")).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_sharded_directory_goes_over() {
    goes_over(Profile::V1_2025, |path| {
        std::fs::create_dir(path).unwrap();
        // 300 kB of names: more than fits in a plain directory.
        (0..1500).for_each(|n| std::fs::write(path.join(format!("{n:0200}")), n.to_string()).unwrap());
    })
    .await;
}

#[tokio::test]
async fn only_what_a_path_leads_to_is_kept() {
    let swarm = Swarm::new();
    let (from, to) = (Home::new(), Home::new());
    let write = |path: &Path| {
        std::fs::create_dir_all(path.join("sub")).unwrap();
        std::fs::write(path.join("other"), noise(500_000)).unwrap();
        std::fs::write(path.join("sub/wanted"), noise(200_000)).unwrap();
    };
    let root = from.add(Profile::V1_2025, write).await;
    let _server = swarm.start_with(1, Arc::new(from.store.clone()));
    let client = swarm.start_with(2, Arc::new(to.store.clone()));
    let request = FetchRequest::new(root).hints([swarm.peer(1)]);
    let fetched = client.fetch(request.clone().path("sub/wanted")).await.unwrap();
    assert_eq!(fetched.progress.bytes, 200_000);
    assert!(to.store.has(&fetched.root).unwrap() && !to.store.has(&root).unwrap());
    let error = client.fetch(request.path("sub/nothing")).await.unwrap_err();
    assert!(matches!(error, ExchangeError::Path { .. }), "{error}");
}

#[tokio::test]
async fn fetches_of_the_same_keep_limits_of_their_own() {
    let swarm = Swarm::new();
    let (from, to) = (Home::new(), Home::new());
    let root = from.add(Profile::V1_2025, |path| std::fs::write(path, noise(3_000_000)).unwrap()).await;
    let _server = swarm.start_with(1, Arc::new(from.store.clone()));
    let client = swarm.start_with(2, Arc::new(to.store.clone()));
    let request = FetchRequest::new(root).hints([swarm.peer(1)]);
    let small = || client.fetch(request.clone().limits(FetchLimits::bytes(1_000_000)));
    let (refused, fetched, joined) = tokio::join!(small(), client.fetch(request.clone()), small());
    assert_eq!(fetched.unwrap().root, root);
    for refused in [refused, joined, small().await] {
        let Err(ExchangeError::Content { source, .. }) = refused else { panic!("{refused:?}") };
        assert!(source.to_string().contains("where 1000000 are allowed"), "{source}");
    }
}

#[test]
fn after_a_restart_stored_leaves_are_not_fetched_again() {
    const MEBIBYTES: u64 = 100;
    /// What may be fetched twice: less than is flushed at once, and what was on its way.
    const AGAIN: u64 = 64 + 32;
    let (swarm, from, to) = (Swarm::new(), Home::new(), tempfile::tempdir().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let write = |path: &Path| std::fs::write(path, noise((MEBIBYTES as usize) << 20)).unwrap();
    let root = runtime.block_on(from.add(Profile::V1_2025, write));
    let _in = runtime.enter();
    let server = swarm.start_with(1, Arc::new(from.store.clone()));
    let mut fetched = Vec::new();
    for stop_at in [80 << 20, u64::MAX] {
        // A process of its own, as far as the client can tell.
        let (swarm, path) = (swarm.clone(), to.path().to_owned());
        let process = tokio::runtime::Runtime::new().unwrap();
        let (said, heard) = mpsc::channel();
        process.block_on(async move {
            let store = Store::open(&path, Settings::default()).unwrap();
            let client = swarm.start_with(2, Arc::new(store));
            let (progress, mut seen) = watch::channel(Progress::default());
            let request = FetchRequest::new(root).hints([swarm.peer(1)]).progress(progress);
            let stop = async { seen.wait_for(|progress| progress.fetched_bytes >= stop_at).await.map(|seen| *seen) };
            tokio::select! {
                outcome = client.fetch(request) => said.send(outcome.unwrap().progress.fetched_bytes).unwrap(),
                Ok(progress) = stop => said.send(progress.fetched_bytes).unwrap(),
            }
        });
        drop(process); // waits for writes under way
        fetched.push(heard.recv().unwrap());
    }
    assert!(fetched[1] >> 20 <= MEBIBYTES - (fetched[0] >> 20) + AGAIN - 32, "{fetched:?}");
    assert!(server.counters().server.bytes >> 20 <= MEBIBYTES + AGAIN);
}
