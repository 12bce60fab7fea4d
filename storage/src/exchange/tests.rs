//! Whole exchanges over pipes: what a node sees of them.

mod pipes;
mod stores;

use std::sync::Arc;
use std::time::Duration;

use cid::Cid;

use self::pipes::{Memory, Swarm};
use super::*;
use crate::block::Block;

/// A DAG in the form that [`Memory`] understands: leaves of `size` bytes below a balanced tree.
fn dag(leaves: u32, size: usize) -> (Cid, Vec<Block>) {
    let leaf = |n: u32| {
        let mut data = n.to_be_bytes().to_vec();
        data.resize(size.max(4), n as u8);
        Block::raw(data)
    };
    let mut blocks: Vec<Block> = (0..leaves).map(leaf).collect();
    let mut level: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
    loop {
        level = level.chunks(16).map(|chunk| chunk.iter().flat_map(Cid::to_bytes).collect::<Vec<u8>>()).fold(
            Vec::new(),
            |mut level, node| {
                let node = Block::new(pipes::NODE, node);
                level.push(node.cid);
                blocks.push(node);
                level
            },
        );
        if let [root] = level[..] {
            return (root, blocks);
        }
    }
}

fn kinds(error: &ExchangeError) -> &'static str {
    match error {
        ExchangeError::NoPeer { .. } => "no peer",
        ExchangeError::Deadline { .. } => "deadline",
        ExchangeError::Content { .. } => "content",
        _ => "other",
    }
}

#[tokio::test]
async fn a_dag_comes_over_from_a_hint() {
    let swarm = Swarm::new();
    let (root, blocks) = dag(300, 1000);
    let _server = swarm.start(1, Memory::with(&blocks));
    let client = swarm.start(2, Memory::default());
    let fetched = client.exchange.fetch(FetchRequest::new(root).hints([swarm.peer(1)])).await.unwrap();
    assert_eq!(fetched.root, root);
    assert_eq!(fetched.progress.blocks, blocks.len() as u64);
    assert!(blocks.iter().all(|block| client.memory.has(&block.cid)));
}

#[tokio::test]
async fn a_single_block_comes_over_and_a_second_fetch_of_it_needs_nobody() {
    let swarm = Swarm::new();
    let (root, blocks) = dag(1, 1024);
    let server = swarm.start(1, Memory::with(&blocks));
    let client = swarm.start(2, Memory::default());
    let request = FetchRequest::new(root).hints([swarm.peer(1)]);
    client.exchange.fetch(request.clone()).await.unwrap();
    drop(server);
    swarm.cut(1);
    assert_eq!(client.exchange.fetch(request).await.unwrap().progress.fetched_bytes, 0);
}

/// A node may be written while the sink, which knows nothing of it yet, says that there is no more to ask for.
#[tokio::test(start_paused = true)]
async fn what_a_node_leads_to_is_asked_for_however_long_the_sink_thinks() {
    let swarm = Swarm::new();
    for round in 0..32_u8 {
        let (beside, below) = (Block::raw(vec![round, 1]), Block::raw(vec![round, 2]));
        let inner = Block::new(pipes::NODE, below.cid.to_bytes());
        let root = Block::new(pipes::NODE, [beside.cid.to_bytes(), inner.cid.to_bytes()].concat());
        let _server = swarm.start(1, Memory::with(&[beside, below, inner, root.clone()]));
        let client = swarm.start(2, Memory::default().thinking());
        let fetched =
            client.exchange.fetch(FetchRequest::new(root.cid).hints([swarm.peer(1)])).await.unwrap();
        assert_eq!(fetched.progress.blocks, 4);
    }
}

#[tokio::test]
async fn content_is_found_at_connected_peers_without_any_hint() {
    let swarm = Swarm::new();
    let (root, blocks) = dag(20, 2000);
    let _empty = swarm.start(1, Memory::default());
    let _server = swarm.start(2, Memory::with(&blocks));
    let client = swarm.start(3, Memory::default());
    client.exchange.peer_connected(swarm.peer(1));
    client.exchange.peer_connected(swarm.peer(2));
    client.exchange.fetch(FetchRequest::new(root)).await.unwrap();
}

#[tokio::test]
async fn content_is_found_at_a_provider_that_routing_names() {
    let swarm = Swarm::new();
    let (root, blocks) = dag(20, 2000);
    let _server = swarm.start(1, Memory::with(&blocks));
    swarm.provide(root, 1);
    let client = swarm.start(2, Memory::default());
    client.exchange.fetch(FetchRequest::new(root)).await.unwrap();
}

#[tokio::test]
async fn large_content_comes_from_several_peers_within_bounded_memory() {
    let swarm = Swarm::new();
    let (root, blocks) = dag(64, 1 << 20);
    let servers: Vec<_> = (1..=3).map(|n| swarm.start(n, Memory::with(&blocks))).collect();
    let client = swarm.start(9, Memory::default());
    let hints = (1..=3).map(|n| swarm.peer(n));
    let fetched = client.exchange.fetch(FetchRequest::new(root).hints(hints)).await.unwrap();
    assert_eq!(fetched.progress.blocks, blocks.len() as u64);
    assert!(servers.iter().all(|server| server.exchange.counters().server.blocks > 0));
    assert!(client.memory.most_at_once() <= 32 << 20);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_block_is_dropped_and_another_peer_asked() {
    let swarm = Swarm::new();
    let (root, blocks) = dag(40, 10_000);
    let _liar = swarm.start(1, Memory::with(&blocks).damaging());
    let _honest = swarm.start(2, Memory::with(&blocks));
    let client = swarm.start(3, Memory::default());
    client.exchange.peer_connected(swarm.peer(2));
    client.exchange.fetch(FetchRequest::new(root).hints([swarm.peer(1)])).await.unwrap();
    assert!(swarm.penalties(1) > 0);
    assert_eq!(swarm.penalties(2), 0);
    assert!(client.exchange.counters().client.unasked > 0);
}

#[tokio::test]
async fn when_a_peer_is_lost_midway_another_finishes() {
    let swarm = Swarm::new();
    let (root, blocks) = dag(200, 100_000);
    let first = swarm.start(1, Memory::with(&blocks));
    let _second = swarm.start(2, Memory::with(&blocks));
    let client = swarm.start(3, Memory::default());
    let (progress, mut seen) = watch::channel(Progress::default());
    let request = FetchRequest::new(root).hints([swarm.peer(1), swarm.peer(2)]).progress(progress);
    let exchange = client.exchange.clone();
    let fetching = tokio::spawn(async move { exchange.fetch(request).await });
    seen.wait_for(|progress| progress.blocks > 20).await.unwrap();
    swarm.cut(1);
    client.exchange.peer_disconnected(swarm.peer(1));
    drop(first);
    fetching.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn when_nobody_has_it_the_error_names_the_block_in_bounded_time() {
    let swarm = Swarm::new();
    let (root, mut blocks) = dag(40, 1000);
    let missing = blocks.remove(7).cid;
    let _server = swarm.start(1, Memory::with(&blocks));
    let client = swarm.start(2, Memory::default());
    let started = tokio::time::Instant::now();
    let request = FetchRequest::new(root).hints([swarm.peer(1), swarm.peer(50)]);
    let error = client.exchange.fetch(request).await.unwrap_err();
    assert!(matches!(error, ExchangeError::NoPeer { cid, .. } if cid == missing), "{error}");
    assert!(error.to_string().contains(&missing.to_string()));
    let waited = started.elapsed();
    assert!(waited >= GIVE_UP_AFTER && waited < GIVE_UP_AFTER * 2, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_fetch_that_goes_nowhere() {
    let swarm = Swarm::new();
    let client = swarm.start(2, Memory::default());
    let (root, _) = dag(4, 10);
    let request = FetchRequest::new(root).deadline(Duration::from_secs(3));
    assert_eq!(kinds(&client.exchange.fetch(request).await.unwrap_err()), "deadline");
}

#[tokio::test(start_paused = true)]
async fn what_is_here_already_is_not_fetched_again() {
    let swarm = Swarm::new();
    let (root, blocks) = dag(100, 10_000);
    let server = swarm.start(1, Memory::with(&blocks));
    let (here, _) = blocks.split_at(60);
    let client = swarm.start(2, Memory::with(here));
    client.exchange.fetch(FetchRequest::new(root).hints([swarm.peer(1)])).await.unwrap();
    assert_eq!(server.exchange.counters().server.blocks, blocks.len() as u64 - 60);
}

#[tokio::test]
async fn fetches_of_the_same_root_share_their_blocks() {
    let swarm = Swarm::new();
    let (root, blocks) = dag(100, 50_000);
    let server = swarm.start(1, Memory::with(&blocks));
    let client = swarm.start(2, Memory::default());
    let fetches = (0..5).map(|_| client.exchange.fetch(FetchRequest::new(root).hints([swarm.peer(1)])));
    let fetched = futures::future::join_all(fetches).await;
    assert!(fetched.iter().all(Result::is_ok));
    assert_eq!(server.exchange.counters().server.blocks, blocks.len() as u64);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_fetch_is_cancelled_and_the_one_beside_it_goes_on() {
    let swarm = Swarm::new();
    let (root, blocks) = dag(10, 1000);
    let client = swarm.start(2, Memory::default());
    let mut first = Box::pin(client.exchange.fetch(FetchRequest::new(root)));
    let mut second = Box::pin(client.exchange.fetch(FetchRequest::new(root)));
    assert!(futures::poll!(first.as_mut()).is_pending());
    assert!(futures::poll!(second.as_mut()).is_pending());
    drop(first);
    let _server = swarm.start(1, Memory::with(&blocks));
    client.exchange.add_hints(&root, vec![swarm.peer(1)]);
    second.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_asked_too_early_is_served_when_the_content_comes() {
    let swarm = Swarm::new();
    let (root, blocks) = dag(10, 1000);
    let server = swarm.start(1, Memory::default());
    let client = swarm.start(2, Memory::default());
    let request = FetchRequest::new(root).hints([swarm.peer(1)]);
    let exchange = client.exchange.clone();
    let fetching = tokio::spawn(async move { exchange.fetch(request).await });
    while server.exchange.counters().server.missing == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await; // virtual time
    }
    blocks.iter().for_each(|block| server.memory.put(block));
    server.exchange.content_added();
    fetching.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reader_reads_through_and_ahead() {
    let swarm = Swarm::new();
    let (_, blocks) = dag(40, 10_000);
    let server = swarm.start(1, Memory::with(&blocks));
    let client = swarm.start(2, Memory::with(&blocks[..1]));
    let reader = client.exchange.reader([swarm.peer(1)]);
    let cids: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
    for (at, block) in blocks.iter().enumerate() {
        reader.soon(&cids[at..]);
        assert_eq!(reader.block(&block.cid).await.unwrap(), block.data);
    }
    assert_eq!(server.exchange.counters().server.blocks, blocks.len() as u64 - 1);
    let missing = Block::raw("nowhere").cid;
    assert!(matches!(reader.block(&missing).await, Err(BlockError::NotFound(cid)) if cid == missing));
    assert!(
        matches!(client.exchange.get_block(&cids[7], [swarm.peer(1)]).await, Ok(data) if data == blocks[7].data)
    );
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_nonsense_is_scored_and_hurts_nobody() {
    let swarm = Swarm::new();
    let (root, blocks) = dag(10, 1000);
    let _server = swarm.start(1, Memory::with(&blocks));
    let client = swarm.start(2, Memory::default());
    for nonsense in [&[0xffu8; 32][..], &[4, 9, 9, 9, 9], &[0x80, 0x80, 0x80, 0x7f], &[2, 0x0a, 0x20]] {
        client.exchange.inbound(swarm.peer(66), Box::pin(pipes::Canned::new(nonsense)));
    }
    client.exchange.fetch(FetchRequest::new(root).hints([swarm.peer(1)])).await.unwrap();
    while swarm.penalties(66) < 4 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn blocks_may_come_each_on_a_stream_of_its_own() {
    let swarm = Swarm::new();
    let client = swarm.start(2, Memory::default());
    let (root, blocks) = dag(100, 20_000);
    let fetching = client.exchange.fetch(FetchRequest::new(root).hints([swarm.peer(1)]));
    // A peer that answers like Kubo: reads wants, opens a stream for each block.
    swarm.answer_like_kubo(1, &blocks);
    fetching.await.unwrap();
}

#[tokio::test]
async fn nothing_is_left_behind_when_the_last_handle_is_dropped() {
    let swarm = Swarm::new();
    let (root, blocks) = dag(100, 20_000);
    let server = swarm.start(1, Memory::with(&blocks));
    let client = swarm.start(2, Memory::default());
    client.exchange.fetch(FetchRequest::new(root).hints([swarm.peer(1)])).await.unwrap();
    let memory = Arc::downgrade(&client.memory);
    drop((server, client, swarm));
    while memory.strong_count() > 0 {
        tokio::task::yield_now().await;
    }
}
