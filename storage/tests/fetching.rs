//! Fetching into the store: order, resuming, limits, hostile DAGs.

mod common;

use std::collections::HashMap;
use std::fs;

use bytes::Bytes;
use common::{Home, bytes, home, home_with, options, small_chunks, write_tree};
use storage::block::DAG_PB;
use storage::fetch::{Accepted, FetchError, FetchLimits, Sink, Want};
use storage::store::{AddOptions, FetchSession, Settings, Store};
use storage::unixfs::{Data, Kind, Link, Node, Profile};
use storage::{Block, BlockError, Cid, LocalBlocks};

/// Fetches from one store into another until it is done or `most` blocks came; answers how many came.
async fn bring(from: &Store, session: &FetchSession, most: usize) -> usize {
    let mut came = 0;
    while !session.progress().complete && came < most {
        let wants = session.next_wants(16, 1 << 20).await.expect("walks");
        assert!(!wants.is_empty() || session.progress().complete, "nothing is asked for and nothing is done");
        for Want { cid, size_bytes } in wants {
            let data = from.get_block(&cid).await.expect("reads").expect("the other has it");
            assert!(size_bytes.is_none_or(|size| size == data.len() as u64));
            assert_eq!(session.accept(cid, data).await.expect("accepts"), Accepted::Stored);
            came += 1;
        }
    }
    came
}

async fn bring_all(from: &Store, to: &Store, root: Cid) -> usize {
    let session = to.fetch(&root, FetchLimits::default()).await.expect("begins");
    let came = bring(from, &session, usize::MAX).await;
    session.finish().await.expect("finishes");
    came
}

#[tokio::test]
async fn a_tree_comes_over_whole_and_files_lie_flat() {
    for profile in [Profile::V1_2025, Profile::V0_2015, small_chunks()] {
        let (one, two) = (home(), home());
        let source = one.dir.path().join("source");
        write_tree(&source);
        let root = one.store.add_path(&source, options(profile)).await.expect("adds").cid;
        bring_all(&one.store, &two.store, root).await;
        let used = two.store.usage().expect("counts").bytes;
        assert!(used < 420_000, "{used} bytes for 400,005");
        let checkout = two.store.checkout(&root).await.expect("is whole");
        common::assert_same(&source, checkout.path());
        let links =
            std::os::unix::fs::MetadataExt::nlink(&fs::metadata(checkout.path().join("large")).expect("is"));
        assert_eq!(links, 2, "a large file is linked, not copied");
        assert_eq!(two.store.verify(false).await.expect("verifies").damaged, 0);
        assert_eq!(bring_all(&one.store, &two.store, root).await, 0, "a second fetch brings nothing");
    }
}

#[tokio::test]
async fn wants_come_in_the_order_of_the_file() {
    let (one, two) = (home(), home());
    let content = bytes(1, 100_000);
    let root = one.store.add_reader(&content[..], None, options(small_chunks())).await.expect("adds").cid;
    let session = two.store.fetch(&root, FetchLimits::default()).await.expect("begins");
    let mut leaves = Vec::new();
    while !session.progress().complete {
        for want in session.next_wants(1, 1).await.expect("walks") {
            let data = one.store.get_block(&want.cid).await.expect("reads").expect("is here");
            if want.cid.codec() == storage::block::RAW {
                leaves.extend_from_slice(&data);
            }
            session.accept(want.cid, data).await.expect("accepts");
        }
    }
    assert!(leaves == content);
}

#[tokio::test]
async fn an_interrupted_fetch_goes_on_after_opening_again() {
    let (one, two) = (home(), home());
    // Above what is made durable at once, so that there is something to go on from.
    let content = bytes(2, 80 << 20);
    let root = one.store.add_reader(&content[..], None, AddOptions::default()).await.expect("adds").cid;
    let session = two.store.fetch(&root, FetchLimits::default()).await.expect("begins");
    bring(&one.store, &session, 70).await;
    drop(session);
    let Home { dir, store } = two;
    drop(store);
    let store = Store::open(&dir.path().join("content"), Default::default()).expect("opens again");
    let came = bring_all(&one.store, &store, root).await;
    assert!((10..30).contains(&came), "{came} of 81 blocks came again");
    let checkout = store.checkout(&root).await.expect("is whole");
    assert!(fs::read(checkout.path()).expect("reads") == content);
    assert_eq!(fs::read_dir(dir.path().join("content/data")).expect("lists").count(), 2);
}

#[tokio::test]
async fn a_fetch_that_is_given_up_early_leaves_no_file() {
    let (one, two) = (home(), home());
    let root =
        one.store.add_reader(&bytes(3, 3 << 20)[..], None, AddOptions::default()).await.expect("adds").cid;
    let session = two.store.fetch(&root, FetchLimits::default()).await.expect("begins");
    bring(&one.store, &session, 2).await;
    assert!(matches!(session.finish().await, Err(FetchError::Incomplete(_))));
    drop(session);
    assert_eq!(two.store.usage().expect("counts").bytes, 0);
}

#[tokio::test]
async fn a_wrong_block_is_refused_and_stays_wanted() {
    let (one, two) = (home(), home());
    let root = one.store.add_reader(&b"right"[..], None, AddOptions::default()).await.expect("adds").cid;
    let session = two.store.fetch(&root, FetchLimits::default()).await.expect("begins");
    assert_eq!(session.next_wants(9, 9).await.expect("walks").len(), 1);
    assert!(session.next_wants(9, 9).await.expect("walks").is_empty(), "each want is handed out once");
    let wrong = session.accept(root, Bytes::from("wrong")).await;
    assert!(matches!(wrong, Err(FetchError::Block(BlockError::Mismatch { .. }))));
    let other = Block::raw("other");
    assert_eq!(session.accept(other.cid, other.data).await.expect("answers"), Accepted::NotWanted);
    session.hand_back(&root);
    assert_eq!(session.next_wants(9, 9).await.expect("walks").len(), 1);
    assert_eq!(session.accept(root, Bytes::from("right")).await.expect("accepts"), Accepted::Stored);
    session.finish().await.expect("finishes");
    assert_eq!(two.store.block_size(&root).expect("looks"), Some(5));
}

#[tokio::test]
async fn a_file_of_one_repeated_leaf_is_fetched_with_few_wants() {
    let (one, two) = (home(), home());
    let content = vec![0; 1_000_000];
    let root = one.store.add_reader(&content[..], None, options(small_chunks())).await.expect("adds").cid;
    let came = bring_all(&one.store, &two.store, root).await;
    assert!(came < 20, "{came}");
    let checkout = two.store.checkout(&root).await.expect("is whole");
    assert!(fs::read(checkout.path()).expect("reads") == content);
}

#[tokio::test]
async fn leaves_that_are_here_in_another_file_are_not_fetched() {
    let (one, two) = (home(), home());
    let content = bytes(4, 200_000);
    let longer = [&content[..196_608], &bytes(5, 50_000)].concat();
    two.store.add_reader(&content[..], None, options(small_chunks())).await.expect("adds");
    let root = one.store.add_reader(&longer[..], None, options(small_chunks())).await.expect("adds").cid;
    let came = bring_all(&one.store, &two.store, root).await;
    assert!(came < 40, "{came} of 80 blocks");
    let checkout = two.store.checkout(&root).await.expect("is whole");
    assert!(fs::read(checkout.path()).expect("reads") == longer);
}

#[tokio::test]
async fn a_fetch_in_progress_is_not_collected() {
    let (one, two) = (home(), home());
    let source = one.dir.path().join("source");
    write_tree(&source);
    let root = one.store.add_path(&source, options(small_chunks())).await.expect("adds").cid;
    let session = two.store.fetch(&root, FetchLimits::default()).await.expect("begins");
    while !session.progress().complete {
        bring(&one.store, &session, 7).await;
        two.store.collect_garbage().await.expect("collects");
    }
    session.finish().await.expect("finishes");
    two.store.collect_garbage().await.expect("collects");
    common::assert_same(&source, two.store.checkout(&root).await.expect("is whole").path());
}

/// Offers these blocks until the fetch ends one way or the other.
async fn offer(blocks: Vec<Block>, root: Cid, limits: FetchLimits) -> Result<Home, FetchError> {
    let home = home();
    let blocks: HashMap<Cid, Bytes> = blocks.into_iter().map(|block| (block.cid, block.data)).collect();
    let session = home.store.fetch(&root, limits).await.expect("begins");
    while !session.progress().complete {
        for want in session.next_wants(16, 1 << 20).await? {
            session.accept(want.cid, blocks[&want.cid].clone()).await?;
        }
    }
    session.finish().await?;
    drop(session);
    Ok(home)
}

fn file_node(children: &[(Cid, u64)], claimed: u64) -> Block {
    let mut data = Data::new(Kind::File);
    data.block_bytes = children.iter().map(|(_, bytes)| *bytes).collect();
    data.file_bytes = Some(claimed);
    let link = |(cid, bytes): &(Cid, u64)| Link { cid: *cid, name: String::new(), total_bytes: *bytes };
    let node = Node { links: children.iter().map(link).collect(), data: Some(data.encode().into()) };
    Block::new(DAG_PB, node.encode())
}

#[tokio::test]
async fn hostile_files_are_refused() {
    let leaf = Block::raw(bytes(1, 100_000));
    let honest = |bytes| file_node(&[(leaf.cid, bytes)], bytes);
    let limits = FetchLimits { max_bytes: 1 << 20, ..FetchLimits::default() };
    let cases = [
        ("its size is not what the node above it says", honest(100_001)),
        ("its sizes do not add up", file_node(&[(leaf.cid, 100_000)], 99_999)),
        ("its sizes are too large", file_node(&[(leaf.cid, u64::MAX), (leaf.cid, 2)], 1)),
        ("a file in it has 2097152 bytes where 1048576 are allowed", honest(1 << 21)),
    ];
    for (what, root) in cases {
        let cid = root.cid;
        let refused = offer(vec![leaf.clone(), root], cid, limits).await.expect_err(what);
        assert!(refused.to_string().contains(what), "{refused}");
    }
    let directory = Block::new(DAG_PB, Node { links: Vec::new(), data: Some(vec![8, 1].into()) }.encode());
    let root = file_node(&[(directory.cid, 100_000)], 100_000);
    let cid = root.cid;
    let refused = offer(vec![directory, root], cid, limits).await.expect_err("is no part of a file");
    assert!(matches!(refused, FetchError::Malformed { .. }));
}

#[tokio::test]
async fn dags_that_repeat_themselves_end() {
    // A file of 2^40 claimed bytes made of one leaf, and a directory of 10^24 paths.
    let leaf = Block::raw(bytes(1, 65_536));
    let mut blocks = vec![leaf.clone()];
    let mut size = 65_536_u64;
    for _ in 0..4 {
        let below = blocks.last().expect("is one").cid;
        blocks.push(file_node(&vec![(below, size); 64], size * 64));
        size *= 64;
    }
    let root = blocks.last().expect("is one").cid;
    let limits = FetchLimits { max_bytes: 1 << 50, max_links: 10_000, ..FetchLimits::default() };
    let sparse_is_allowed = offer(blocks, root, limits).await;
    assert!(matches!(sparse_is_allowed, Err(FetchError::Limit { .. } | FetchError::Store(..))));

    let mut blocks = vec![Block::raw("x")];
    for _ in 0..12 {
        let below = blocks.last().expect("is one").cid;
        let link = |number| Link { cid: below, name: format!("{number:03}"), total_bytes: 1 };
        let node = Node { links: (0..100).map(link).collect(), data: Some(vec![8, 1].into()) };
        blocks.push(Block::new(DAG_PB, node.encode()));
    }
    let root = blocks.last().expect("is one").cid;
    let home = offer(blocks, root, FetchLimits::default()).await.expect("thirteen blocks are few");
    assert_eq!(home.store.usage().expect("counts").blocks, 13);
}

#[tokio::test]
async fn depth_is_bounded() {
    let mut blocks = vec![Block::raw("x")];
    for _ in 0..200 {
        let below = blocks.last().expect("is one").cid;
        let link = Link { cid: below, name: "d".to_owned(), total_bytes: 1 };
        let node = Node { links: vec![link], data: Some(vec![8, 1].into()) };
        blocks.push(Block::new(DAG_PB, node.encode()));
    }
    let root = blocks.last().expect("is one").cid;
    let refused = offer(blocks, root, FetchLimits::default()).await.expect_err("is too deep");
    assert!(refused.to_string().contains("128 levels"), "{refused}");
}

#[tokio::test]
async fn a_claim_of_a_size_takes_no_room_and_gives_nothing_up() {
    let home = home_with(Settings { limit_bytes: 1_000_000, ..Settings::default() });
    let cached =
        home.store.add_reader(&bytes(1, 200_000)[..], None, AddOptions::default()).await.expect("adds");
    let (cid, _) = (cached.cid, drop(cached));
    let leaf = Block::raw(bytes(2, 100_000));
    for claimed in [900_000, 1 << 40] {
        let root = file_node(&[(leaf.cid, claimed)], claimed);
        let session = home.store.fetch(&root.cid, FetchLimits::bytes(1 << 41)).await.expect("begins");
        session.next_wants(1, 1).await.expect("walks");
        let accepted = session.accept(root.cid, root.data).await;
        assert_eq!(accepted.is_ok(), claimed < 1_000_000, "{accepted:?}");
        assert!(home.store.has(&cid).expect("looks"), "what is cached stays");
        home.store.add_reader(&bytes(3, 80_000)[..], None, AddOptions::default()).await.expect("has room");
    }
}

#[tokio::test]
async fn a_file_that_is_fetched_counts_as_much_as_came_of_it() {
    let (one, two) = (home(), home());
    let content = bytes(7, 80 << 20);
    let root = one.store.add_reader(&content[..], None, AddOptions::default()).await.expect("adds").cid;
    let session = two.store.fetch(&root, FetchLimits::default()).await.expect("begins");
    bring(&one.store, &session, 66).await;
    let used = two.store.usage().expect("counts").bytes;
    assert!((60 << 20..74 << 20).contains(&used), "{used}");
    drop(session);
    let Home { dir, store } = two;
    let left = store.usage().expect("counts").bytes;
    drop(store);
    let store = Store::open(&dir.path().join("content"), Settings::default()).expect("opens again");
    assert_eq!(store.usage().expect("counts").bytes, left, "no drift over a restart");
    bring_all(&one.store, &store, root).await;
    let used = store.usage().expect("counts").bytes;
    assert!((80 << 20..81 << 20).contains(&used), "{used}");
    store.collect_garbage().await.expect("collects");
    assert!(store.usage().expect("counts").bytes < 1 << 20);
}

/// A file of few blocks whose leaf stands in millions of places.
fn repeated(leaf: &Block, below: usize, above: usize) -> (Vec<Block>, Cid) {
    let size = leaf.data.len() as u64;
    let node = file_node(&vec![(leaf.cid, size); below], below as u64 * size);
    let root = file_node(&vec![(node.cid, below as u64 * size); above], (above * below) as u64 * size);
    let cid = root.cid;
    (vec![leaf.clone(), node, root], cid)
}

#[tokio::test]
async fn few_blocks_do_not_ask_for_millions_of_places() {
    let (blocks, root) = repeated(&Block::raw("x"), 40_000, 400);
    let refused = offer(blocks, root, FetchLimits::default()).await.expect_err("is refused");
    assert!(refused.to_string().contains("links in files"), "{refused}");
}

#[tokio::test]
async fn a_fetch_of_repeated_leaves_is_made_durable_on_its_way() {
    let leaf = Block::raw(bytes(1, 20));
    let (blocks, root) = repeated(&leaf, 20_000, 4);
    let home = offer(blocks, root, FetchLimits::default()).await.expect("is whole");
    let checkout = home.store.checkout(&root).await.expect("is whole");
    assert!(fs::read(checkout.path()).expect("reads") == leaf.data.repeat(80_000));
}

#[tokio::test]
async fn more_than_is_allowed_is_refused_by_the_first_block() {
    let (one, two) = (home(), home());
    let source = one.dir.path().join("source");
    write_tree(&source);
    let root = one.store.add_path(&source, options(small_chunks())).await.expect("adds").cid;
    let session = two.store.fetch(&root, FetchLimits::bytes(300_000)).await.expect("begins");
    session.next_wants(1, 1).await.expect("walks");
    let block = one.store.get_block(&root).await.expect("reads").expect("is here");
    let refused = session.accept(root, block).await.expect_err("is refused").to_string();
    assert!(refused.contains("it has 40") && refused.contains("where 300000 are allowed"), "{refused}");
}

#[tokio::test]
async fn a_directory_of_large_files_is_fetched_with_few_descriptors() {
    let (one, two) = (home(), home());
    let source = one.dir.path().join("source");
    fs::create_dir(&source).expect("creates");
    for number in 0..600 {
        fs::write(source.join(number.to_string()), bytes(number, 66_000)).expect("writes");
    }
    let root = one.store.add_path(&source, AddOptions::default()).await.expect("adds").cid;
    let session = two.store.fetch(&root, FetchLimits::default()).await.expect("begins");
    let data = fs::canonicalize(two.dir.path().join("content/data")).expect("is there");
    let mut most = 0;
    while !session.progress().complete {
        bring(&one.store, &session, 100).await;
        let open = fs::read_dir("/proc/self/fd").expect("lists");
        let ours = open.filter(|entry| {
            let target = entry.as_ref().ok().and_then(|entry| fs::read_link(entry.path()).ok());
            target.is_some_and(|target| target.starts_with(&data))
        });
        most = most.max(ours.count());
    }
    assert!(most < 20, "{most} files are open at once");
    session.finish().await.expect("finishes");
    common::assert_same(&source, two.store.checkout(&root).await.expect("is whole").path());
}
