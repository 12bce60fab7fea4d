use bytes::Bytes;
use futures::AsyncWriteExt;
use p2p::{Config, Event, MAX_FRAME_BYTES, PeerId, SendError};

use super::support::{Node, config, pair, start, within};

fn frame(event: Event) -> Option<(PeerId, Bytes)> {
    match event {
        Event::Frame { peer, bytes } => Some((peer, bytes)),
        _ => None,
    }
}

/// Sends all, and waits for the queue whenever it is full.
async fn send_all(node: &Node, to: PeerId, frames: impl Iterator<Item = Bytes>) {
    for frame in frames {
        while let Err(error) = node.host.send(to, frame.clone()) {
            assert_eq!(error, SendError::Full);
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_frames_each_way_arrive_in_order() {
    let (mut one, mut two) = pair().await;
    let (first, second) = (one.peer(), two.peer());
    let numbers = || (0..2000u32).map(|number| Bytes::copy_from_slice(&number.to_be_bytes()));
    send_all(&one, second, numbers()).await;
    send_all(&two, first, numbers()).await;
    for (node, from) in [(&mut one, second), (&mut two, first)] {
        for expected in numbers() {
            assert_eq!(node.wait(frame).await, (from, expected));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_all_sizes_keep_their_order_and_one_flush_covers_many() {
    let (one, mut two) = pair().await;
    let sizes = [0, 1, 100, 16_383, 16_384, 100_000, MAX_FRAME_BYTES, 7, 0, 300_000];
    let frames = || sizes.iter().enumerate().map(|(at, size)| Bytes::from(vec![at as u8; *size]));
    send_all(&one, two.peer(), frames()).await;
    send_all(&one, two.peer(), (0..3000).map(|_| Bytes::from_static(b"small"))).await;
    for expected in frames() {
        assert_eq!(two.wait(frame).await.1, expected);
    }
    for _ in 0..3000 {
        two.wait(frame).await;
    }
    // Counted once its writers have ended: frames may arrive before they are counted.
    within(one.host.stop()).await.unwrap();
    let metrics = one.host.metrics();
    assert_eq!(metrics.frames_sent.get(), 3010);
    assert!(metrics.frame_flushes.get() < 3010);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_to_an_unconnected_peer_dials_it_first() {
    let one = start(config(1)).await;
    let mut two = start(config(2)).await;
    one.host.add_address(two.peer(), two.address());
    one.host.send(two.peer(), Bytes::from_static(b"hello")).unwrap();
    assert_eq!(two.wait(frame).await, (one.peer(), Bytes::from_static(b"hello")));
}

#[tokio::test]
async fn frames_that_cannot_be_delivered_are_reported() {
    let mut one = start(config(1)).await;
    let nobody = PeerId::random();
    one.host.send(nobody, Bytes::from_static(b"a")).unwrap();
    one.host.send(nobody, Bytes::from_static(b"b")).unwrap();
    let mut lost = 0;
    while lost < 2 {
        lost += one
            .wait(|event| match event {
                Event::Undelivered { peer, frames } if peer == nobody => Some(frames),
                _ => None,
            })
            .await;
    }
    let large = Bytes::from(vec![0; MAX_FRAME_BYTES + 1]);
    assert!(matches!(one.host.send(nobody, large), Err(SendError::TooLarge { .. })));
    assert_eq!(one.host.send(one.peer(), Bytes::new()), Err(SendError::Own));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_announces_an_oversized_frame_is_cut() {
    let mut one = start(config(1)).await;
    // It wants no peers, so that it does not come back while it is still being cut.
    let mut second = config(2);
    second.limits.wanted_peers = 0;
    let two = start(Config { bootstrap: one.host.announce_addrs(), ..second }).await;
    one.connected_to(two.peer()).await;
    let mut stream = two.host.open_stream(one.peer(), "ctl/1").await.unwrap();
    stream.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    one.disconnected_from(two.peer()).await;
    assert_eq!(one.host.metrics().peers_cut.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_queued_before_a_stop_are_flushed_and_none_are_taken_after() {
    let (one, mut two) = pair().await;
    for _ in 0..500 {
        one.host.send(two.peer(), Bytes::from_static(b"last words")).unwrap();
    }
    within(one.host.stop()).await.unwrap();
    for _ in 0..500 {
        two.wait(frame).await;
    }
    assert_eq!(one.host.send(two.peer(), Bytes::new()), Err(SendError::Stopped));
}
