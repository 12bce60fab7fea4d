//! Adding, reading, listing, exporting and checking out.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::{assert_same, bytes, home, home_with, options, small_chunks, write_tree};
use futures::TryStreamExt;
use proptest::prelude::*;
use storage::export::{ExportError, ExportOptions, export};
use storage::read::{self, EntryKind, Limits, ReadError};
use storage::store::{AddOptions, Pin, Settings, Store, StoreError};
use storage::unixfs::{self, Data, Kind, Link, Node, Profile};
use storage::{Block, BlockError, LocalBlocks};

#[tokio::test]
async fn what_is_added_comes_out_the_same() {
    let home = home();
    let source = home.dir.path().join("source");
    write_tree(&source);
    for profile in [Profile::V1_2025, Profile::V0_2015, small_chunks()] {
        let added = home.store.add_path(&source, options(profile)).await.expect("adds");
        assert_eq!((added.files, added.bytes), (5, 400_005));
        let target = home.dir.path().join("target");
        export(&home.store, added.cid, &target, ExportOptions::default()).await.expect("exports");
        assert_same(&source, &target);
        fs::remove_dir_all(&target).expect("removes");
        let checkout = home.store.checkout(&added.cid).await.expect("checks out");
        assert_same(&source, checkout.path());
    }
    assert_eq!(home.store.verify(false).await.expect("verifies").damaged, 0);
}

#[tokio::test]
async fn everything_is_there_after_opening_again() {
    let home = home();
    let source = home.dir.path().join("source");
    write_tree(&source);
    let added = home.store.add_path(&source, options(small_chunks())).await.expect("adds").cid;
    let dir = home.dir;
    drop(home.store);
    let store = Store::open(&dir.path().join("content"), Settings::default()).expect("opens again");
    export(&store, added, &dir.path().join("target"), ExportOptions::default()).await.expect("exports");
    assert_same(&source, &dir.path().join("target"));
}

#[tokio::test]
async fn bytes_are_stored_once() {
    let home = home();
    let path = home.dir.path().join("file");
    fs::write(&path, bytes(3, 3_000_000)).expect("writes");
    home.store.add_path(&path, AddOptions::default()).await.expect("adds");
    let once = home.store.usage().expect("counts").bytes;
    assert!((3_000_000..3_060_000).contains(&once), "{once}");
    home.store.add_path(&path, AddOptions::default()).await.expect("adds again");
    let mut reader = &bytes(3, 3_000_000)[..];
    home.store.blocking().add_reader(&mut reader, None, &AddOptions::default()).expect("adds again");
    assert_eq!(home.store.usage().expect("counts").bytes, once);
    let files = fs::read_dir(home.dir.path().join("content/data")).expect("lists");
    let on_disk: u64 = files.map(|file| file.expect("lists").metadata().expect("is there").len()).sum();
    assert_eq!(on_disk, once);
}

#[tokio::test]
async fn a_wrapped_file_keeps_its_name() {
    let home = home();
    let path = home.dir.path().join("name.txt");
    fs::write(&path, "x").expect("writes");
    let wrap = AddOptions { wrap: true, pin: Some("me".to_owned()), ..AddOptions::default() };
    let added = home.store.add_path(&path, wrap).await.expect("adds");
    let entries = read::ls(&home.store, added.cid).await.expect("lists");
    assert_eq!(
        (entries[0].name.as_str(), entries[0].kind, entries[0].size),
        ("name.txt", EntryKind::File, 1)
    );
    assert!(home.store.is_pinned(&added.cid).expect("looks"));
}

#[tokio::test]
async fn an_async_stream_is_added_whole_or_not_at_all() {
    let home = home();
    let content = bytes(4, 2_500_000);
    let added = home.store.add_reader(&content[..], Some("a"), AddOptions::default()).await.expect("adds");
    let pieces: Vec<_> =
        read::cat(&home.store, added.cid, .., Limits::default()).try_collect().await.expect("reads");
    assert_eq!(pieces.concat(), content);
    let before = home.store.usage().expect("counts").bytes;
    let broken = tokio_test_reader(bytes(5, 900_000));
    home.store.add_reader(broken, None, AddOptions::default()).await.expect_err("the input breaks");
    assert_eq!(home.store.usage().expect("counts").bytes, before);
}

/// Gives these bytes and then fails.
fn tokio_test_reader(content: Vec<u8>) -> impl tokio::io::AsyncRead + Send {
    let (mut writer, reader) = tokio::io::duplex(1000);
    struct Breaks(tokio::io::DuplexStream);
    impl tokio::io::AsyncRead for Breaks {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            let before = buffer.filled().len();
            let polled = std::pin::Pin::new(&mut self.0).poll_read(context, buffer);
            match polled {
                std::task::Poll::Ready(Ok(())) if buffer.filled().len() == before => {
                    std::task::Poll::Ready(Err(std::io::Error::other("the line is cut")))
                }
                other => other,
            }
        }
    }
    tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut writer, &content).await });
    Breaks(reader)
}

#[tokio::test]
async fn special_files_are_refused_and_nothing_stays() {
    let home = home();
    let dir = home.dir.path().join("source");
    write_tree(&dir);
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("sub/pipe"), 0o600.into()).expect("makes a pipe");
    let refused = home.store.add_path(&dir, AddOptions::default()).await.expect_err("is refused");
    assert!(matches!(refused, StoreError::SpecialFile(path) if path.ends_with("sub/pipe")));
    home.store.collect_garbage().await.expect("collects");
    assert_eq!(home.store.usage().expect("counts").blocks, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_range_of_any_file_is_read(
        length in 0..200_000_usize, start in 0..210_000_u64, extent in 0..210_000_u64, raw_leaves: bool,
    ) {
        let home = home();
        let content = bytes(6, length);
        let options = options(Profile { raw_leaves, ..small_chunks() });
        let added = home.store.blocking().add_reader(&mut &content[..], None, &options).expect("adds");
        let range = start..start + extent;
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("starts");
        let pieces: Vec<_> = runtime
            .block_on(read::cat(&home.store, added.cid, range, Limits::default()).try_collect())
            .expect("reads");
        let (start, end) = (length.min(start as usize), length.min((start + extent) as usize));
        prop_assert_eq!(pieces.concat(), &content[start..end]);
    }
}

#[tokio::test]
async fn paths_lead_through_plain_and_sharded_directories() {
    let home = home();
    let names: Vec<String> = (0..7000).map(|number| format!("{number}-{}", "n".repeat(40))).collect();
    let mut files: Vec<(String, Vec<u8>)> =
        names.iter().map(|name| (format!("many/{name}/x"), name.clone().into_bytes())).collect();
    files.push(("one".to_owned(), b"1".to_vec()));
    let files: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    let (root, blocks) = unixfs::small_tree(&files).expect("builds");
    home.store.put_blocks(blocks).await.expect("stores");
    for name in names.iter().step_by(997) {
        let found = read::resolve(&home.store, root, &format!("/many/{name}//x")).await.expect("resolves");
        assert_eq!(found, Block::raw(name.clone()).cid);
    }
    let many = read::resolve(&home.store, root, "many").await.expect("resolves");
    let listed: Vec<String> =
        read::ls(&home.store, many).await.expect("lists").into_iter().map(|entry| entry.name).collect();
    let mut sorted = names;
    sorted.sort();
    assert_eq!(listed, sorted);
    let missing = read::resolve(&home.store, root, "many/none").await.expect_err("is not there");
    assert!(matches!(missing, ReadError::NoEntry { name, .. } if name == "none"));
    let through = read::resolve(&home.store, root, "one/two").await.expect_err("is a file");
    assert!(matches!(through, ReadError::NotADirectory(_)));
}

#[tokio::test]
async fn a_block_under_a_wrong_name_is_refused_with_all_that_came_with_it() {
    let home = home();
    let right = Block::raw("right");
    let wrong = Block { cid: right.cid, data: "wrong".into() };
    let refused = home.store.put_blocks(vec![Block::raw("other"), wrong]).await.expect_err("is refused");
    assert!(matches!(refused, StoreError::Block(BlockError::Mismatch { .. })));
    assert_eq!(home.store.usage().expect("counts").blocks, 0);
}

#[tokio::test]
async fn leaves_in_nodes_are_made_anew_from_the_flat_file() {
    let home = home();
    let content = bytes(7, 600_000);
    let added = home.store.add_reader(&content[..], None, options(Profile::V0_2015)).await.expect("adds");
    let used = home.store.usage().expect("counts").bytes;
    assert!(used < 601_000, "{used}");
    let root = home.store.get_block(&added.cid).await.expect("reads").expect("is here");
    for link in Node::decode(&root).expect("decodes").links {
        let leaf = home.store.get_block(&link.cid).await.expect("reads").expect("is here");
        storage::block::verify(&link.cid, &leaf).expect("is right");
        assert_eq!(home.store.block_size(&link.cid).expect("looks"), Some(leaf.len() as u32));
    }
}

#[tokio::test]
async fn damage_is_found_and_forgotten() {
    let home = home();
    let added =
        home.store.add_reader(&bytes(8, 300_000)[..], None, options(small_chunks())).await.expect("adds");
    let place = home.store.block_location(&Block::raw(bytes(8, 4096)).cid).expect("looks").expect("is here");
    let mut damaged = fs::read(&place.path).expect("reads");
    damaged[place.offset as usize + 5] ^= 1;
    fs::remove_file(&place.path).expect("removes");
    fs::write(&place.path, damaged).expect("writes");
    let dir = home.dir;
    drop((home.store, added));
    let store = Store::open(&dir.path().join("content"), Settings::default()).expect("opens");
    let found = store.verify(true).await.expect("verifies");
    assert_eq!((found.damaged, found.named.len()), (1, 1));
    assert!(!store.has(&found.named[0]).expect("looks"));
    assert_eq!(store.verify(false).await.expect("verifies").damaged, 0);
}

#[tokio::test]
async fn reads_are_verified_when_asked_for() {
    let home = home_with(Settings { verify_reads: true, ..Settings::default() });
    let block = Block::raw("to be damaged");
    home.store.put_blocks(vec![block.clone()]).await.expect("stores");
    let place = home.store.block_location(&block.cid).expect("looks").expect("is here");
    let mut bytes = fs::read(&place.path).expect("reads");
    bytes[place.offset as usize] ^= 1;
    fs::write(&place.path, bytes).expect("writes");
    assert!(home.store.get_block(&block.cid).await.is_err());
}

#[tokio::test]
async fn a_checkout_of_a_file_is_the_flat_file_itself() {
    let home = home();
    let content = bytes(9, 200_000);
    let added = home.store.add_reader(&content[..], None, AddOptions::default()).await.expect("adds");
    let checkout = home.store.checkout(&added.cid).await.expect("checks out");
    assert_eq!(fs::read(checkout.path()).expect("reads"), content);
    let meta = fs::metadata(checkout.path()).expect("is there");
    assert_eq!((meta.permissions().mode() & 0o777, meta.mtime()), (0o444, 1));
    assert!(checkout.path().starts_with(home.dir.path().join("content/data")));
}

#[tokio::test]
async fn a_checkout_links_large_files_and_is_made_once() {
    let home = home();
    let source = home.dir.path().join("source");
    write_tree(&source);
    let added = home.store.add_path(&source, AddOptions::default()).await.expect("adds");
    let first = home.store.checkout(&added.cid).await.expect("checks out");
    let second = home.store.checkout(&added.cid).await.expect("checks out");
    assert_eq!(first.path(), second.path());
    assert_eq!(fs::metadata(first.path().join("large")).expect("is there").nlink(), 2);
    let mode =
        |name: &str| fs::metadata(first.path().join(name)).expect("is there").permissions().mode() & 0o777;
    assert_eq!((mode("large"), mode("small"), mode("sub")), (0o444, 0o444, 0o555));
    let missing = home.store.checkout(&Block::raw("missing").cid).await.expect_err("is not here");
    assert!(matches!(missing, StoreError::NotFound(_)));
}

#[tokio::test]
async fn exports_never_leave_their_target() {
    let home = home();
    let leaf = Block::raw("hostile");
    for name in ["..", ".", "", "a/b", "../../out", "/etc/cardume", "a\0b"] {
        let link = Link { cid: leaf.cid, name: name.to_owned(), total_bytes: 7 };
        let data = Data::new(Kind::Directory).encode();
        let node = Node { links: vec![link], data: Some(data.into()) };
        let root = Block::new(storage::block::DAG_PB, node.encode());
        home.store.put_blocks(vec![leaf.clone(), root.clone()]).await.expect("stores");
        let target = home.dir.path().join("inner/target");
        fs::create_dir_all(target.parent().expect("has one")).expect("creates");
        export(&home.store, root.cid, &target, ExportOptions::default()).await.expect_err("is refused");
        home.store.checkout(&root.cid).await.expect_err("is refused");
        let written: Vec<_> = fs::read_dir(&target).map(|dir| dir.flatten().collect()).unwrap_or_default();
        assert!(written.is_empty(), "{name:?} wrote {written:?}");
        assert!(!home.dir.path().join("out").exists());
    }
}

#[tokio::test]
async fn exports_do_not_follow_links_that_are_there() {
    let home = home();
    let outside = home.dir.path().join("outside");
    fs::create_dir(&outside).expect("creates");
    fs::write(outside.join("precious"), "precious").expect("writes");
    let (root, blocks) = unixfs::small_tree(&[("dir/precious", b"new"), ("file", b"new")]).expect("builds");
    home.store.put_blocks(blocks).await.expect("stores");
    let target = home.dir.path().join("target");
    fs::create_dir(&target).expect("creates");
    std::os::unix::fs::symlink(&outside, target.join("dir")).expect("links");
    let overwrite = ExportOptions { overwrite: true, ..ExportOptions::default() };
    export(&home.store, root, &target, overwrite).await.expect_err("does not go through the link");
    fs::remove_file(target.join("dir")).expect("removes");
    std::os::unix::fs::symlink(outside.join("precious"), target.join("file")).expect("links");
    export(&home.store, root, &target, overwrite).await.expect("replaces the link");
    assert_eq!(fs::read(outside.join("precious")).expect("reads"), b"precious");
    assert_eq!(fs::read(target.join("file")).expect("reads"), b"new");
    let again = export(&home.store, root, &target, ExportOptions::default()).await.expect_err("is there");
    assert!(matches!(again, ExportError::Exists(path) if path.ends_with("precious")));
}

#[tokio::test]
async fn a_directory_that_repeats_itself_is_stopped() {
    let home = home();
    // Twelve levels of a hundred links each to the level below: 10^24 files.
    let mut blocks = vec![Block::raw("x")];
    for _ in 0..12 {
        let below = blocks.last().expect("is not empty").cid;
        let link = |number| Link { cid: below, name: format!("{number:03}"), total_bytes: 1 };
        let data = Data::new(Kind::Directory).encode();
        let node = Node { links: (0..100).map(link).collect(), data: Some(data.into()) };
        blocks.push(Block::new(storage::block::DAG_PB, node.encode()));
    }
    let root = blocks.last().expect("is not empty").cid;
    home.store.put_blocks(blocks).await.expect("stores");
    let limits = Limits { max_entries: 1000, ..Limits::default() };
    let options = ExportOptions { limits, overwrite: false };
    let refused =
        export(&home.store, root, &home.dir.path().join("t"), options).await.expect_err("is refused");
    assert!(matches!(refused, ExportError::Read(ReadError::Limit { what: "entries", .. })), "{refused:?}");
}

#[tokio::test]
async fn a_file_that_repeats_itself_is_stopped() {
    let home = home();
    let mut blocks = vec![Block::raw("x")];
    let mut size = 1_u64;
    for _ in 0..9 {
        let below = blocks.last().expect("is not empty").cid;
        let mut data = Data::new(Kind::File);
        data.block_bytes = vec![size; 100];
        size *= 100;
        data.file_bytes = Some(size);
        let link = Link { cid: below, name: String::new(), total_bytes: 1 };
        let node = Node { links: vec![link; 100], data: Some(data.encode().into()) };
        blocks.push(Block::new(storage::block::DAG_PB, node.encode()));
    }
    let root = blocks.last().expect("is not empty").cid;
    home.store.put_blocks(blocks).await.expect("stores");
    let refused: Result<Vec<_>, _> = read::cat(&home.store, root, .., Limits::default()).try_collect().await;
    assert!(matches!(refused, Err(ReadError::Limit { what: "bytes", .. })), "{refused:?}");
    // Its end can be read without its beginning.
    let end: Vec<_> =
        read::cat(&home.store, root, size - 3.., Limits { max_bytes: u64::MAX, ..Limits::default() })
            .try_collect()
            .await
            .expect("reads");
    assert_eq!(end.concat(), b"xxx");
}

#[tokio::test]
async fn pins_belong_to_their_names() {
    let home = home();
    let block = Block::raw("pinned");
    let pins = ["job 1", "job 2"].map(|name| Pin::new(block.cid, name));
    let missing = home.store.pin(pins.to_vec()).await.expect_err("is not here");
    assert!(matches!(missing, StoreError::NotFound(_)));
    home.store.put_pinned(vec![block.clone()], pins.to_vec()).await.expect("stores");
    home.store.unpin(vec![pins[0].clone()]).await.expect("unpins");
    assert!(home.store.is_pinned(&block.cid).expect("looks"));
    assert_eq!(home.store.blocking().pins(None, 10).expect("lists"), [pins[1].clone()]);
    home.store.unpin(pins.to_vec()).await.expect("unpins");
    assert!(!home.store.is_pinned(&block.cid).expect("looks"));
}
