use std::sync::mpsc;

use p2p::{Config, Event, Host, Identity, Multiaddr, PeerId};

use super::support::{Node, Relay, TOPIC, Way, config, join, pair, start, within};

fn silence(event: Event) -> Option<(PeerId, bool)> {
    match event {
        Event::Silent { peer } => Some((peer, true)),
        Event::Heard { peer } => Some((peer, false)),
        _ => None,
    }
}

/// A host whose threads can be stopped, as a frozen process is.
struct Frozen {
    peer: PeerId,
    freeze: mpsc::Sender<mpsc::Receiver<()>>,
}

fn freezable(bootstrap: Vec<Multiaddr>) -> Frozen {
    let identity = Identity::from_seed([9; 32]);
    let peer = identity.peer_id();
    let (freeze, orders) = mpsc::channel::<mpsc::Receiver<()>>();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let config = Config { bootstrap, ..Config::loopback(identity, "test") };
            let (host, mut events) = Host::start(config).await.unwrap();
            let (order, mut next) = tokio::sync::mpsc::channel::<mpsc::Receiver<()>>(1);
            std::thread::spawn(move || orders.into_iter().try_for_each(|o| order.blocking_send(o)));
            loop {
                tokio::select! {
                    thaw = next.recv() => match thaw {
                        // The only thread of this host stands still until it is told to go on.
                        Some(thaw) => drop(thaw.recv()),
                        None => break,
                    },
                    _ = events.next() => {}
                }
            }
            host.stop().await.unwrap();
        });
    });
    Frozen { peer, freeze }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_peer_is_reported_silent_once_and_heard_when_it_thaws() {
    let mut one = start(config(1)).await;
    let frozen = freezable(one.host.announce_addrs());
    one.connected_to(frozen.peer).await;
    one.host.watch(frozen.peer, true);
    // Answered after the note was taken.
    assert!(one.host.peers().await.unwrap()[0].watched);
    let (thaw, frost) = mpsc::channel();
    frozen.freeze.send(frost).unwrap();
    assert_eq!(one.wait(silence).await, (frozen.peer, true));
    assert!(one.host.connected(&frozen.peer), "silence alone closes nothing");
    thaw.send(()).unwrap();
    assert_eq!(one.wait(silence).await, (frozen.peer, false));
    assert_eq!(one.host.metrics().silences.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_peer_that_stops_is_disconnected_and_then_unreachable() {
    let (mut one, two) = pair().await;
    // Where to dial it again.
    one.identified(two.peer()).await;
    one.host.watch(two.peer(), true);
    let gone = two.peer();
    within(two.host.stop()).await.unwrap();
    one.disconnected_from(gone).await;
    one.wait(|event| match event {
        Event::Unreachable { peer } if peer == gone => Some(()),
        _ => None,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_peer_whose_connection_broke_is_dialled_again_at_once() {
    // Neither wants peers: only the watch brings the other one back.
    let content = |seed| {
        let mut config = config(seed);
        config.limits.wanted_peers = 0;
        config
    };
    let (mut one, mut two) = (start(content(1)).await, start(content(2)).await);
    within(one.host.dial(two.address())).await.unwrap();
    two.connected_to(one.peer()).await;
    one.host.watch(two.peer(), true);
    // Answered after the note was taken.
    assert!(one.host.peers().await.unwrap()[0].watched);
    two.host.disconnect(one.peer());
    one.disconnected_from(two.peer()).await;
    one.connected_to(two.peer()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_peer_that_comes_back_is_found_again() {
    // An address of its own, so that nobody takes the port meanwhile; and TCP alone, since the system frees a UDP port
    // a little later than the host has stopped.
    let listen = vec!["/ip4/127.77.0.1/tcp/0".parse().unwrap()];
    let one = start(Config { listen, ..config(1) }).await;
    let mut two = join(2, &one).await;
    two.connected_to(one.peer()).await;
    two.host.watch(one.peer(), true);
    let (peer, listen) = (one.peer(), one.host.listen_addrs());
    within(one.host.stop()).await.unwrap();
    drop(one);
    two.disconnected_from(peer).await;
    // The same process again, at the same place.
    let mut back = start(Config { listen, ..config(1) }).await;
    two.connected_to(peer).await;
    back.connected_to(two.peer()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unwatched_peer_that_stops_is_only_disconnected() {
    let (mut one, two) = pair().await;
    let gone = two.peer();
    within(two.host.stop()).await.unwrap();
    let mut seen = Vec::new();
    one.wait(|event| {
        seen.push(matches!(event, Event::Unreachable { .. }));
        matches!(event, Event::Disconnected { peer } if peer == gone).then_some(())
    })
    .await;
    let mut three = join(3, &one).await;
    three.connected_to(one.peer()).await;
    one.wait(|event| {
        seen.push(matches!(event, Event::Unreachable { .. }));
        matches!(event, Event::Connected { .. }).then_some(())
    })
    .await;
    assert!(!seen.contains(&true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_peer_is_dialled_as_soon_as_its_address_is_known() {
    let mut one = start(config(1)).await;
    let two = start(config(2)).await;
    one.host.watch(two.peer(), true);
    assert!(one.host.peers().await.unwrap().is_empty());
    one.host.add_address(two.peer(), two.address());
    one.connected_to(two.peer()).await;
}

/// A node that dials nobody by itself.
async fn passive(seed: u8) -> Node {
    let mut config = config(seed);
    config.limits.wanted_peers = 0;
    start(config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_comes_back_while_its_old_connection_looks_open_gets_everything_over_the_new_one() {
    let (mut stays, mut roams) = (passive(1).await, passive(2).await);
    let relay = Relay::before(&roams, "127.0.0.1").await;
    stays.host.subscribe(TOPIC).await.unwrap();
    within(stays.host.dial(relay.address.clone())).await.unwrap();
    stays.connected_to(roams.peer()).await;
    roams.subscribed(stays.peer()).await;
    stays.host.send(roams.peer(), "before".into()).unwrap();
    assert_eq!(roams.frame(stays.peer()).await, "before");
    relay.set(Way::Dead);
    roams.disconnected_from(stays.peer()).await;
    within(roams.host.dial(stays.address())).await.unwrap();
    // The side that saw nothing of it is told that there is something to make up for.
    stays.connected_to(roams.peer()).await;
    stays.host.send(roams.peer(), "after".into()).unwrap();
    assert_eq!(roams.frame(stays.peer()).await, "after");
    within(async {
        while stays.host.metrics().connections.get() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(stays.host.metrics().connections_given_up.get(), 1);
    assert!(stays.host.connected(&roams.peer()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_comes_back_hears_again_what_is_taken_here() {
    let (stays, mut roams) = (passive(1).await, passive(2).await);
    let relay = Relay::before(&roams, "127.0.0.1").await;
    stays.host.subscribe(TOPIC).await.unwrap();
    within(stays.host.dial(relay.address.clone())).await.unwrap();
    roams.subscribed(stays.peer()).await;
    relay.set(Way::Dead);
    roams.disconnected_from(stays.peer()).await;
    within(roams.host.dial(stays.address())).await.unwrap();
    roams.subscribed(stays.peer()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_peer_is_unreachable_only_once_its_machine_refuses() {
    let (mut one, two) = (passive(1).await, passive(2).await);
    let relay = Relay::before(&two, "127.77.0.3").await;
    within(one.host.dial(relay.address.clone())).await.unwrap();
    one.identified(two.peer()).await;
    one.host.watch(two.peer(), true);
    assert!(one.host.peers().await.unwrap()[0].watched);
    let gone = two.peer();
    relay.set(Way::Cut);
    within(two.host.stop()).await.unwrap();
    one.disconnected_from(gone).await;
    within(async {
        while one.host.metrics().dials_failed.get() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    while let Some(event) = one.events.try_next() {
        assert!(!matches!(event, Event::Unreachable { .. }), "it may be our own network");
    }
    relay.close().await;
    one.wait(|event| matches!(event, Event::Unreachable { peer } if peer == gone).then_some(())).await;
}
