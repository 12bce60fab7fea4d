use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use p2p::{Event, MAX_REQUEST_BYTES, PeerId, Reply, RequestError};

use super::support::{HANG, Node, config, join, pair, start, within};

fn request(event: Event) -> Option<(PeerId, String, Bytes, Reply)> {
    match event {
        Event::Request { peer, name, bytes, reply } => Some((peer, name, bytes, reply)),
        _ => None,
    }
}

/// Answers requests with their own bytes until the test ends.
fn echo(mut node: Node) {
    tokio::spawn(async move {
        loop {
            let (_, _, bytes, reply) = node.wait(request).await;
            reply.send(bytes);
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_answered_and_a_dropped_reply_refuses_it() {
    let (mut one, two) = pair().await;
    let peer = one.peer();
    let ask = |name: &'static str| two.host.request(peer, name, Bytes::from_static(b"what"), HANG);
    let serve = async {
        let (from, name, bytes, reply) = one.wait(request).await;
        assert_eq!((from, &*name, &bytes[..]), (two.peer(), "spec", &b"what"[..]));
        reply.send(Bytes::from_static(b"that"));
        drop(one.wait(request).await);
    };
    let asking = async {
        assert_eq!(&ask("spec").await.unwrap()[..], b"that");
        assert!(matches!(ask("other").await, Err(RequestError::Refused)));
    };
    within(async { tokio::join!(serve, asking) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_questions_and_answers_pass_and_larger_ones_are_refused() {
    let (one, two) = pair().await;
    let peer = one.peer();
    echo(one);
    let largest = Bytes::from(vec![7; MAX_REQUEST_BYTES]);
    let answer = two.host.request(peer, "echo", largest.clone(), HANG).await.unwrap();
    assert!(answer == largest);
    let larger = Bytes::from(vec![7; MAX_REQUEST_BYTES + 1]);
    let refused = two.host.request(peer, "echo", larger, HANG).await;
    assert!(matches!(refused, Err(RequestError::TooLarge { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_at_once_are_all_answered_within_the_limit() {
    let mut first = config(1);
    first.limits.requests_per_peer = 200;
    let one = start(first).await;
    let two = join(2, &one).await;
    let peer = one.peer();
    echo(one);
    let asked = (0..200u8).map(|n| two.host.request(peer, "echo", Bytes::from(vec![n]), HANG));
    let answers = within(join_all(asked)).await;
    assert!(answers.into_iter().map(|answer| answer.unwrap()[0]).eq(0..200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_too_many_requests_in_hand_says_so() {
    let mut first = config(1);
    first.limits.requests_per_peer = 1;
    let mut one = start(first).await;
    let two = join(2, &one).await;
    let peer = one.peer();
    let asker = two.host.clone();
    let slow = tokio::spawn(async move { asker.request(peer, "slow", Bytes::new(), HANG).await });
    let (_, _, _, held) = one.wait(request).await;
    let busy = within(two.host.request(peer, "more", Bytes::new(), HANG)).await;
    assert!(matches!(busy, Err(RequestError::Busy)), "{busy:?}");
    held.send(Bytes::from_static(b"done"));
    assert_eq!(&within(slow).await.unwrap().unwrap()[..], b"done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unanswered_request_times_out_and_its_reply_is_abandoned() {
    let (mut one, two) = pair().await;
    let short = Duration::from_millis(300);
    let late = two.host.request(one.peer(), "x", Bytes::new(), short).await;
    assert!(matches!(late, Err(RequestError::Timeout)), "{late:?}");
    let (_, _, _, reply) = one.wait(request).await;
    within(async {
        while !reply.is_abandoned() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
