//! What goes and what stays when garbage is collected.

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Home, bytes, home, home_with, options, small_chunks, write_tree};
use storage::Block;
use storage::read::ReadError;
use storage::store::{AddOptions, Pin, Settings, Store, StoreError};
use storage::unixfs::{self, Link, Node, Profile};

/// Bytes of all containers on disk.
fn on_disk(home: &Home) -> u64 {
    let files = fs::read_dir(home.dir.path().join("content/data")).expect("lists");
    files.map(|file| file.expect("lists").metadata().expect("is there").len()).sum()
}

async fn add(store: &Store, seed: u64, length: usize) -> storage::Cid {
    store.add_reader(&bytes(seed, length)[..], None, AddOptions::default()).await.expect("adds").cid
}

#[tokio::test]
async fn what_nobody_needs_goes_from_disk() {
    let home = home();
    write_tree(&home.dir.path().join("source"));
    home.store.add_path(&home.dir.path().join("source"), options(small_chunks())).await.expect("adds");
    let collected = home.store.collect_garbage().await.expect("collects");
    assert!(collected.bytes > 400_000 && collected.roots == 1, "{collected:?}");
    assert_eq!(home.store.usage().expect("counts").blocks, 0);
    // The segment that is written to may stay.
    assert!(on_disk(&home) < 20_000, "{}", on_disk(&home));
}

#[tokio::test]
async fn pinned_and_guarded_content_stays_whole() {
    let home = home();
    let source = home.dir.path().join("source");
    write_tree(&source);
    let pin = AddOptions { pin: Some("job".to_owned()), ..options(Profile::V0_2015) };
    let pinned = home.store.add_path(&source, pin).await.expect("adds").cid;
    let guarded = home.store.add_path(&source, options(small_chunks())).await.expect("adds");
    let lost = add(&home.store, 50, 200_000).await;
    home.store.collect_garbage().await.expect("collects");
    for cid in [pinned, guarded.cid] {
        let checkout = home.store.checkout(&cid).await.expect("is whole");
        common::assert_same(&source, checkout.path());
    }
    assert!(!home.store.has(&lost).expect("looks"));
    drop(guarded.guard);
    home.store.collect_garbage().await.expect("collects");
    assert!(!home.store.has(&guarded.cid).expect("looks"));
    assert_eq!(home.store.verify(false).await.expect("verifies").damaged, 0);
}

#[tokio::test]
async fn a_leaf_that_two_files_share_outlives_one_of_them() {
    let home = home();
    let (shared, first, second) = (bytes(1, 40_960), bytes(2, 122_880), bytes(3, 122_880));
    let one = [&shared[..], &first].concat();
    let two = [&shared[..], &second].concat();
    let options = options(small_chunks());
    let pin = AddOptions { pin: Some("two".to_owned()), ..options.clone() };
    home.store.add_reader(&one[..], None, options).await.expect("adds");
    let two_cid = home.store.add_reader(&two[..], None, pin).await.expect("adds").cid;
    home.store.collect_garbage().await.expect("collects");
    let checkout = home.store.checkout(&two_cid).await.expect("is whole");
    assert_eq!(fs::read(checkout.path()).expect("reads"), two);
    assert!(home.store.has(&Block::raw(shared[..4096].to_vec()).cid).expect("looks"));
    assert!(!home.store.has(&Block::raw(first[..4096].to_vec()).cid).expect("looks"));
    assert_eq!(home.store.verify(false).await.expect("verifies").damaged, 0);
}

#[tokio::test]
async fn one_pinned_leaf_does_not_keep_a_large_file() {
    let home = home();
    let content = bytes(4, 1_000_000);
    home.store.add_reader(&content[..], None, options(small_chunks())).await.expect("adds");
    let leaf = Block::raw(content[8192..12288].to_vec());
    home.store.pin(vec![Pin::new(leaf.cid, "leaf")]).await.expect("pins");
    home.store.collect_garbage().await.expect("collects");
    assert_eq!(home.store.get_block(&leaf.cid).await.expect("reads"), Some(leaf.data));
    assert!(on_disk(&home) < 20_000 && home.store.usage().expect("counts").bytes < 20_000);
}

#[tokio::test]
async fn the_least_recently_used_goes_first_when_there_is_no_room() {
    let home = home_with(Settings { limit_bytes: 1_000_000, ..Settings::default() });
    let pinned = {
        let pin = AddOptions { pin: Some("kept".to_owned()), ..AddOptions::default() };
        home.store.add_reader(&bytes(9, 200_000)[..], None, pin).await.expect("adds").cid
    };
    for seed in 10..30 {
        add(&home.store, seed, 150_000).await;
        assert!(home.store.usage().expect("counts").bytes <= 1_000_000);
        assert!(on_disk(&home) <= 1_100_000);
    }
    assert!(home.store.has(&pinned).expect("looks"));
    let too_large = home.store.add_reader(&bytes(99, 900_000)[..], None, AddOptions::default()).await;
    assert!(matches!(too_large, Err(StoreError::Full { .. } | StoreError::Together(_))), "{too_large:?}");
    assert!(too_large.is_err_and(|error| error.is_full()));
    // The failed addition gave its room back.
    add(&home.store, 31, 150_000).await;
    assert_eq!(home.store.verify(false).await.expect("verifies").damaged, 0);
}

#[tokio::test]
async fn checkouts_that_nobody_holds_go_and_held_ones_stay() {
    let home = home();
    let source = home.dir.path().join("source");
    write_tree(&source);
    let added = home.store.add_path(&source, AddOptions::default()).await.expect("adds");
    let checkout = home.store.checkout(&added.cid).await.expect("checks out");
    let path = checkout.path().to_owned();
    drop(added);
    home.store.collect_garbage().await.expect("collects");
    common::assert_same(&source, &path);
    drop(checkout);
    home.store.collect_garbage().await.expect("collects");
    assert!(!path.exists());
}

#[tokio::test]
async fn collecting_beside_writers_takes_nothing_that_they_were_promised() {
    let home = home();
    let store = home.store.blocking();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) {
                store.collect_garbage().expect("collects");
            }
        });
        let writers: Vec<_> =
            (0..3_u64).map(|writer| scope.spawn(move || write_much(store, writer))).collect();
        for writer in writers {
            writer.join().expect("finds everything");
        }
        is_over.store(true, Ordering::Release);
    });
    assert_eq!(store.verify(false).expect("verifies").damaged, 0);
}

/// Adds the same few contents again and again, as large files, small trees and bare blocks, and checks that what is held is whole.
fn write_much(store: &storage::store::Blocking, writer: u64) {
    for round in 0..40_u64 {
        let seed = (round * 7 + writer) % 5;
        let content = bytes(seed, 150_000);
        let added = store.add_reader(&mut &content[..], None, &options(small_chunks())).expect("adds");
        let checkout = store.checkout(&added.cid).expect("is whole");
        assert_eq!(fs::read(checkout.path()).expect("reads"), content);
        let (root, blocks) =
            unixfs::small_tree(&[("a", &seed.to_be_bytes()), ("b/c", b"same")]).expect("builds");
        let guard = store.guard(&root).expect("holds");
        store.put_blocks(&blocks).expect("stores");
        let pin = Pin::new(root, format!("{writer}"));
        store.pin(std::slice::from_ref(&pin)).expect("pins");
        drop(guard);
        for block in &blocks {
            assert_eq!(store.get_block(&block.cid).expect("reads").as_ref(), Some(&block.data));
        }
        store.unpin(&[pin]).expect("unpins");
    }
}

#[test]
fn an_addition_that_was_killed_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let content = dir.path().join("content");
    drop(Store::open(&content, Settings::default()).expect("opens"));
    // What a killed process leaves: a file that no row names, and a half-made checkout.
    fs::write(content.join("data/0000000000ff"), "half").expect("writes");
    fs::create_dir_all(content.join("checkouts/abc.tmp/deep")).expect("creates");
    let store = Store::open(&content, Settings::default()).expect("opens");
    assert_eq!(names(&content.join("data")) + names(&content.join("checkouts")), 0);
    assert_eq!(store.usage().expect("counts").bytes, 0);
}

fn names(dir: &Path) -> usize {
    fs::read_dir(dir).expect("lists").count()
}

/// A directory of these links, as a block.
fn directory(links: Vec<(String, storage::Cid, u64)>) -> Block {
    let link = |(name, cid, total_bytes)| Link { cid, name, total_bytes };
    let node = Node { links: links.into_iter().map(link).collect(), data: Some(vec![8, 1].into()) };
    Block::new(storage::block::DAG_PB, node.encode())
}

#[tokio::test]
async fn many_names_for_one_small_file_take_the_room_of_one() {
    let home = home_with(Settings { limit_bytes: 8 << 20, ..Settings::default() });
    let leaf = Block::raw(bytes(1, 65_536));
    let inner = directory((0..64).map(|number| (format!("{number:03}"), leaf.cid, 65_536)).collect());
    let root = directory((0..64).map(|number| (format!("{number:03}"), inner.cid, 64 * 65_536)).collect());
    home.store.put_blocks(vec![leaf.clone(), inner, root.clone()]).await.expect("stores");
    let checkout = home.store.checkout(&root.cid).await.expect("fits");
    assert!(fs::read(checkout.path().join("063/063")).expect("reads") == leaf.data);
    let meta = fs::metadata(checkout.path().join("000/000")).expect("is there");
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&meta), 64 * 64);
    let used = home.store.usage().expect("counts").bytes;
    assert!((1 << 20..4 << 20).contains(&used), "names are charged: {used}");
}

#[tokio::test]
async fn a_checkout_that_would_take_too_much_is_refused_and_leaves_nothing() {
    let home = home_with(Settings { limit_bytes: 1 << 20, ..Settings::default() });
    let leaf = Block::raw("x");
    let inner = directory((0..100).map(|number| (format!("{number:03}"), leaf.cid, 1)).collect());
    let root = directory((0..100).map(|number| (format!("{number:03}"), inner.cid, 100)).collect());
    home.store.put_blocks(vec![leaf, inner, root.clone()]).await.expect("stores");
    let before = home.store.usage().expect("counts").bytes;
    let refused = home.store.checkout(&root.cid).await.expect_err("is refused");
    assert!(refused.to_string().contains("more than 524288 bytes as files on disk"), "{refused}");
    assert_eq!(names(&home.dir.path().join("content/checkouts")), 0);
    assert_eq!(home.store.usage().expect("counts").bytes, before);
    let refused = home.store.checkout_within(&root.cid, 1000).await.expect_err("is refused");
    assert!(refused.to_string().contains("more than 1000 bytes"), "{refused}");
}

#[tokio::test]
async fn checkouts_are_charged_and_go_before_content_does() {
    let home = home_with(Settings { limit_bytes: 1_000_000, ..Settings::default() });
    let source = home.dir.path().join("source");
    fs::create_dir(&source).expect("creates");
    (0..8).for_each(|number| {
        fs::write(source.join(number.to_string()), bytes(number, 40_000)).expect("writes")
    });
    let added = home.store.add_path(&source, AddOptions::default()).await.expect("adds");
    let (cid, before) = (added.cid, home.store.usage().expect("counts").bytes);
    drop(home.store.checkout(&cid).await.expect("fits"));
    let after = home.store.usage().expect("counts").bytes;
    assert!(after >= before + 320_000, "{before} and {after}");
    drop(added);
    add(&home.store, 50, 400_000).await;
    assert!(home.store.has(&cid).expect("looks"), "content stays");
    assert_eq!(names(&home.dir.path().join("content/checkouts")), 0);
    // What is left is remembered with its charge.
    drop(home.store.checkout(&cid).await);
    let (Home { dir, store }, used) = {
        let used = home.store.usage().expect("counts").bytes;
        (home, used)
    };
    drop(store);
    let store = Store::open(&dir.path().join("content"), Settings::default()).expect("opens again");
    assert_eq!(store.usage().expect("counts").bytes, used);
}

#[tokio::test]
async fn what_no_file_system_holds_is_said_to_be_malformed() {
    let home = home();
    let leaf = Block::raw("x");
    let twice = directory(vec![("a".to_owned(), leaf.cid, 1), ("a".to_owned(), leaf.cid, 1)]);
    let up = directory(vec![("..".to_owned(), leaf.cid, 1)]);
    let link = |target: &str| {
        let data =
            unixfs::Data { data: target.to_owned().into(), ..unixfs::Data::new(unixfs::Kind::Symlink) };
        Block::new(storage::block::DAG_PB, Node { links: vec![], data: Some(data.encode().into()) }.encode())
    };
    let (empty, zero) = (link(""), link("a\0b"));
    let roots = [twice, up, empty, zero];
    home.store.put_blocks(vec![leaf]).await.expect("stores");
    home.store.put_blocks(roots.to_vec()).await.expect("stores");
    for root in roots {
        let refused = home.store.checkout(&root.cid).await.expect_err("is refused");
        assert!(matches!(refused, StoreError::Read(ReadError::Node { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_wish_that_cannot_be_granted_gives_nothing_up() {
    let home = home_with(Settings { limit_bytes: 1_000_000, ..Settings::default() });
    let pin = AddOptions { pin: Some("kept".to_owned()), ..AddOptions::default() };
    home.store.add_reader(&bytes(9, 500_000)[..], None, pin).await.expect("adds");
    let cached = add(&home.store, 10, 150_000).await;
    let source = home.dir.path().join("large");
    for size in [600_000, 2_000_000] {
        fs::write(&source, bytes(11, size)).expect("writes");
        let full = home.store.add_path(&source, AddOptions::default()).await.expect_err("does not fit");
        assert!(full.is_full(), "{full:?}");
        assert!(home.store.has(&cached).expect("looks"), "{size}");
    }
    add(&home.store, 12, 300_000).await;
}

#[tokio::test]
async fn pins_are_walked_page_by_page_while_they_are_taken_back() {
    let home = home();
    let blocks: Vec<Block> = (0..5000_u32).map(|number| Block::raw(number.to_be_bytes().to_vec())).collect();
    let pins = |name: &str, count: usize| {
        blocks.iter().take(count).map(|block| Pin::new(block.cid, name)).collect::<Vec<_>>()
    };
    let all = [pins("j-1", 5000), pins("j-11", 1), pins("", 1)].concat();
    home.store.put_pinned(blocks.clone(), all).await.expect("stores");
    let (mut after, mut walked) = (None, 0);
    loop {
        let page = home.store.pins(after, 700).await.expect("lists");
        walked += page.len();
        after = page.last().cloned();
        if after.is_none() {
            break;
        }
        home.store.unpin(page.into_iter().filter(|pin| pin.name == "j-1").collect()).await.expect("unpins");
    }
    assert_eq!(walked, 5002);
    home.store.collect_garbage().await.expect("collects");
    assert_eq!(home.store.usage().expect("counts").blocks, 1);
    let left: Vec<String> =
        home.store.pins(None, 10).await.expect("lists").into_iter().map(|pin| pin.name).collect();
    assert_eq!(left, ["", "j-11"]);
}
