use p2p::{Config, Event, SendError};

use super::support::{config, join, start, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_host_refuses_newcomers_but_not_peers_it_watches() {
    let mut first = config(1);
    first.limits.inbound = 1;
    first.limits.wanted_peers = 0;
    let mut one = start(first).await;
    let two = join(2, &one).await;
    one.connected_to(two.peer()).await;
    let address = one.address();
    let mut three = start(config(3)).await;
    // A refusal comes after the handshake: the dialler may see the connection for a moment.
    if within(three.host.dial(address.clone())).await.is_ok() {
        three.disconnected_from(one.peer()).await;
    }
    assert!(one.host.metrics().connections_refused.get() >= 1);
    assert!(!one.host.connected(&three.peer()));
    one.host.watch(three.peer(), true);
    let connected = async {
        loop {
            // The watch is a note: a dial may come before it.
            let _ = three.host.dial(address.clone()).await;
            if one.host.connected(&three.peer()) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    within(connected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_reads_nothing_holds_up_its_peers_and_loses_nothing() {
    let mut one = start(config(1)).await;
    let mut two = start(Config { bootstrap: one.host.announce_addrs(), ..config(2) }).await;
    two.connected_to(one.peer()).await;
    // More than all queues on the way hold together.
    let frame = bytes::Bytes::from(vec![1; 1 << 20]);
    let (sender, to) = (two.host.clone(), one.peer());
    let sending = tokio::spawn(async move {
        for _ in 0..100 {
            while sender.send(to, frame.clone()) == Err(SendError::Full) {
                tokio::task::yield_now().await;
            }
        }
    });
    within(async {
        while two.host.metrics().frames_refused.get() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..100 {
        one.wait(|event| matches!(event, Event::Frame { .. }).then_some(())).await;
    }
    within(sending).await.unwrap();
}
