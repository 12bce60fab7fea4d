use p2p::{Config, DialError, Direction, HostError, OpenError, Transport};

use super::support::{config, pair, start, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_are_described_with_what_they_say_of_themselves() {
    let (one, two) = pair().await;
    let peer = within(async {
        loop {
            // Identification follows the connection.
            let peers = two.host.peers().await.unwrap();
            if peers[0].member {
                return peers[0].clone();
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(peer.peer, one.peer());
    assert_eq!((peer.direction, peer.transport), (Direction::Outbound, Transport::Tcp));
    assert!(peer.agent.starts_with("cardume/"));
    let listening = one.host.listen_addrs();
    assert!(peer.addrs.iter().all(|address| listening.contains(address)), "{peer:?}");
    assert!(two.host.connected(&one.peer()) && !two.host.connected(&two.peer()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dials_that_fail_say_why() {
    let one = start(config(1)).await;
    let two = start(config(2)).await;
    let address = two.address();
    assert_eq!(within(one.host.dial(address.clone())).await.unwrap(), two.peer());
    let stranger = p2p::PeerId::random();
    let wrong = two.host.listen_addrs().remove(0).with_p2p(stranger).unwrap();
    let error = within(one.host.dial(wrong)).await.unwrap_err();
    assert!(matches!(&error, DialError::Failed(why) if why.contains("peer")), "{error}");
    // Nobody listens on the port of tcpmux.
    let nobody = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    let error = within(one.host.dial(nobody)).await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    // Of a peer that is known to be there it says that its process is gone.
    one.host.add_address(stranger, "/ip4/127.0.0.1/tcp/1".parse().unwrap());
    let error = within(one.host.open_stream(stranger, "any/1")).await.unwrap_err();
    assert!(matches!(&error, OpenError::Dial(DialError::Refused(_))), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_finds_its_peers_again_by_its_book_alone() {
    let folder = tempfile::tempdir().unwrap();
    let book = Some(folder.path().join("peers.json"));
    let mut one = start(config(1)).await;
    let first = Config { bootstrap: one.host.announce_addrs(), ..config(2) };
    let mut two = start(Config { peer_book: book.clone(), ..first }).await;
    two.connected_to(one.peer()).await;
    within(async {
        while !two.host.peers().await.unwrap().iter().any(|peer| peer.member) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    within(two.host.stop()).await.unwrap();
    one.disconnected_from(two.peer()).await;
    let mut again = start(Config { peer_book: book, ..config(2) }).await;
    again.connected_to(one.peer()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_peer_that_starts_late_is_joined_when_it_is_there() {
    // An address of its own, so that nobody takes the port meanwhile; and TCP alone, since the system frees a UDP port
    // a little later than the host has stopped.
    let listen = vec!["/ip4/127.77.0.2/tcp/0".parse().unwrap()];
    let one = start(Config { listen, ..config(1) }).await;
    let place = one.host.listen_addrs();
    let address = one.address();
    within(one.host.stop()).await.unwrap();
    let mut two = start(Config { bootstrap: vec![address], ..config(2) }).await;
    within(async {
        while two.host.metrics().dials_failed.get() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let one = start(Config { listen: place, ..config(1) }).await;
    two.connected_to(one.peer()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_stops_when_told_and_when_its_last_handle_is_gone() {
    let (mut one, two) = pair().await;
    within(one.host.stop()).await.unwrap();
    within(one.host.stop()).await.unwrap();
    within(async { while one.events.next().await.is_some() {} }).await;
    assert!(matches!(one.host.peers().await, Err(HostError::Stopped)));
    let mut events = two.events;
    drop(two.host);
    within(async { while events.next().await.is_some() {} }).await;
}

#[tokio::test]
async fn configurations_that_cannot_work_are_refused() {
    let start = async |config: Config| p2p::Host::start(config).await.map(|_| ()).unwrap_err();
    let error = start(Config { swarm: "Bad Name".into(), ..config(1) }).await;
    assert!(error.to_string().contains("Bad Name"), "{error}");
    let error = start(Config { topics: vec!["/x".into()], ..config(1) }).await;
    assert!(matches!(error, HostError::Name(_)), "{error}");
    let taken = super::support::start(config(3)).await;
    let listen = vec![taken.host.listen_addrs().remove(0)];
    let error = start(Config { listen, ..config(1) }).await;
    assert!(matches!(error, HostError::Listen { .. }), "{error}");
    let mut none = config(1);
    none.limits.streams = 0;
    assert!(matches!(start(none).await, HostError::Setting { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_that_dial_each_other_at_once_end_connected() {
    for round in 0..10 {
        let mut one = start(config(10 + round)).await;
        let mut two = start(config(50 + round)).await;
        let (first, second) = (one.address(), two.address());
        let (a, b) = within(async { tokio::join!(one.host.dial(second), two.host.dial(first)) }).await;
        assert!(a.is_ok() && b.is_ok(), "{a:?} {b:?}");
        one.connected_to(two.peer()).await;
        two.connected_to(one.peer()).await;
        assert!(one.host.connected(&two.peer()) && two.host.connected(&one.peer()));
    }
}
