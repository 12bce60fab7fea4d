use std::time::Duration;

use p2p::{DhtError, Event, PeerId};

use super::support::{HANG, Node, config, join, start, within};

const KEY: &[u8] = b"content";

/// Searches until the provider is found: records take a moment to arrive.
async fn find(node: &Node, key: &[u8]) -> p2p::Provider {
    within(async {
        loop {
            let mut search = node.host.find_providers(key, 20, Duration::from_secs(10)).await.unwrap();
            if let Some(found) = search.next().await {
                return found;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_is_found_through_a_third_peer_and_can_be_reached() {
    let third = start(config(1)).await;
    let provider = join(2, &third).await;
    let seeker = join(3, &third).await;
    provider.host.provide(KEY).await.unwrap();
    let found = find(&seeker, KEY).await;
    assert_eq!(found.peer, provider.peer());
    assert!(!found.addrs.is_empty());
    let mut incoming = provider.host.accept("x/1").unwrap();
    let _stream = within(seeker.host.open_stream(found.peer, "x/1")).await.unwrap();
    assert_eq!(within(incoming.next()).await.unwrap().0, seeker.peer());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_provided_alone_is_told_to_peers_that_come_later() {
    let provider = start(config(1)).await;
    provider.host.provide(KEY).await.unwrap();
    let third = join(2, &provider).await;
    let seeker = join(3, &third).await;
    assert_eq!(find(&seeker, KEY).await.peer, provider.peer());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_ends_at_its_deadline_and_finds_no_stranger() {
    let one = start(config(1)).await;
    let two = join(2, &one).await;
    let mut search = two.host.find_providers(b"nothing", 20, Duration::from_millis(500)).await.unwrap();
    assert_eq!(within(search.next()).await, None);
    let too_long = two.host.find_providers(&[0; 65], 20, HANG).await.unwrap_err();
    assert_eq!(too_long, DhtError::Key { size: 65, max: 64 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swarm_that_joins_by_one_peer_grows_together_and_knows_its_size() {
    let mut first = start(config(1)).await;
    assert_eq!(first.host.network_size(), 1);
    let mut others = Vec::new();
    for seed in 2..8 {
        others.push(join(seed, &first).await);
    }
    for _ in 0..6 {
        first.wait(|event| matches!(event, Event::Connected { .. }).then_some(())).await;
    }
    assert!(first.host.network_size() >= 7);
    // The last to come knew one peer, and meets the others by it.
    let all: Vec<PeerId> = others.iter().map(Node::peer).collect();
    let last = others.last_mut().unwrap();
    within(async {
        while last.host.connected_peers().len() < all.len() {
            last.events.next().await.unwrap();
        }
    })
    .await;
}
