use bytes::Bytes;
use p2p::{Event, GossipId, PeerId, PublishError, TopicError, Verdict};

use super::support::{Node, TOPIC, config, join, pair, start, within};

async fn message(node: &mut Node) -> (GossipId, PeerId, Bytes) {
    node.wait(|event| match event {
        Event::Gossip { id, relay, topic, data } if &*topic == TOPIC => Some((id, relay, data)),
        _ => None,
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_goes_on_only_from_who_accepts_it() {
    // Far and near share only the middle; the far one takes no dials of strangers.
    let mut middle = start(config(1)).await;
    let mut near = join(2, &middle).await;
    let mut far = join(3, &middle).await;
    for node in [&middle, &near, &far] {
        node.host.subscribe(TOPIC).await.unwrap();
    }
    near.subscribed(middle.peer()).await;
    middle.subscribed(far.peer()).await;
    near.host.publish(TOPIC, Bytes::from_static(b"job")).await.unwrap();
    let (id, relay, data) = message(&mut middle).await;
    assert_eq!((relay, &data[..]), (near.peer(), &b"job"[..]));
    middle.host.verdict(id, relay, Verdict::Accept);
    let (same, _, data) = message(&mut far).await;
    assert_eq!((same, &data[..]), (id, &b"job"[..]));
    assert_eq!(near.host.metrics().gossip_published.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_reason_not_to_publish_has_its_own_error() {
    let (one, mut two) = pair().await;
    let publish = |data: &'static [u8]| two.host.publish(TOPIC, Bytes::from_static(data));
    assert!(matches!(publish(b"a").await, Err(PublishError::NoPeers)));
    let unknown = two.host.publish("other", Bytes::new()).await;
    assert!(matches!(unknown, Err(PublishError::UnknownTopic(_))));
    assert!(matches!(two.host.subscribe("other").await, Err(TopicError::UnknownTopic(_))));
    let large = two.host.publish(TOPIC, Bytes::from(vec![0; 17 << 10])).await;
    assert!(matches!(large, Err(PublishError::TooLarge(_))));
    one.host.subscribe(TOPIC).await.unwrap();
    two.subscribed(one.peer()).await;
    let publish = |data: &'static [u8]| two.host.publish(TOPIC, Bytes::from_static(data));
    publish(b"a").await.unwrap();
    assert!(matches!(publish(b"a").await, Err(PublishError::Duplicate)));
    let takers = two.host.topic_peers(TOPIC).await.unwrap();
    assert_eq!(takers.subscribed, [one.peer()]);
    one.host.unsubscribe(TOPIC).await.unwrap();
    two.wait(|event| matches!(event, Event::Unsubscribed { .. }).then_some(())).await;
    assert!(matches!(two.host.publish(TOPIC, Bytes::from_static(b"b")).await, Err(PublishError::NoPeers)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_of_malformed_messages_is_blocked_after_a_few() {
    let (mut one, mut two) = pair().await;
    one.host.subscribe(TOPIC).await.unwrap();
    two.subscribed(one.peer()).await;
    let bad = two.peer();
    for number in 0..3u8 {
        two.host.publish(TOPIC, Bytes::from(vec![number])).await.unwrap();
        let (id, relay, _) = message(&mut one).await;
        assert_eq!(relay, bad);
        one.host.verdict(id, relay, Verdict::Reject);
    }
    one.wait(|event| matches!(event, Event::Blocked { peer } if peer == bad).then_some(())).await;
    two.disconnected_from(one.peer()).await;
    // The one who dials may see the connection open for a moment.
    if within(two.host.dial(one.address())).await.is_ok() {
        two.disconnected_from(one.peer()).await;
    }
    assert_eq!(one.host.metrics().peers_blocked.get(), 1);
    assert_eq!(one.host.metrics().gossip_rejected.get(), 3);
    assert!(!one.host.connected(&bad));
}
