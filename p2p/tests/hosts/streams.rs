use futures::{AsyncReadExt, AsyncWriteExt, future::join_all};
use p2p::{AcceptError, Config, Host, Incoming, OpenError, PeerId};

use super::support::{config, join, pair, start, within};

/// Sends a number and waits for the same number plus one.
async fn ask(host: &Host, peer: PeerId, protocol: &str, number: u32) -> u32 {
    let mut stream = host.open_stream(peer, protocol).await.unwrap();
    stream.write_all(&number.to_be_bytes()).await.unwrap();
    stream.close().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    u32::from_be_bytes(answer.try_into().unwrap())
}

async fn answer_all(mut incoming: Incoming) {
    while let Some((_, mut stream)) = incoming.next().await {
        tokio::spawn(async move {
            let mut question = [0; 4];
            stream.read_exact(&mut question).await.unwrap();
            let answer = u32::from_be_bytes(question) + 1;
            stream.write_all(&answer.to_be_bytes()).await.unwrap();
            stream.close().await.unwrap();
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_at_once_are_all_taken() {
    let mut first = config(1);
    first.limits.streams = 1024;
    let one = start(first.clone()).await;
    let second = Config { bootstrap: one.host.announce_addrs(), ..config(2) };
    let mut two = start(Config { limits: first.limits, ..second }).await;
    two.connected_to(one.peer()).await;
    let mut incoming = one.host.accept("blocks/1").unwrap();
    let opened = join_all((0..1000).map(|_| two.host.open_stream(one.peer(), "blocks/1")));
    let streams: Vec<_> = within(opened).await.into_iter().map(Result::unwrap).collect();
    // All are open, nobody has read any yet.
    for _ in 0..1000 {
        within(incoming.next()).await.unwrap();
    }
    drop(streams);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_streams_than_there_are_places_wait_and_none_is_lost() {
    let (one, two) = pair().await;
    tokio::spawn(answer_all(one.host.accept("/ipfs/bitswap/1.2.0").unwrap()));
    let peer = one.peer();
    let asked = (0..1500).map(|number| ask(&two.host, peer, "/ipfs/bitswap/1.2.0", number));
    let answers = within(join_all(asked)).await;
    assert!(answers.into_iter().eq(1..1501));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_carries_much_data_both_ways() {
    let (one, two) = pair().await;
    let mut incoming = one.host.accept("bulk/1").unwrap();
    let data: Vec<u8> = (0..5_000_000u32).map(|at| (at % 251) as u8).collect();
    let sent = data.clone();
    let serving = tokio::spawn(async move {
        let (_, mut stream) = incoming.next().await.unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        stream.write_all(&got).await.unwrap();
        stream.close().await.unwrap();
    });
    let mut stream = two.host.open_stream(one.peer(), "bulk/1").await.unwrap();
    stream.write_all(&sent).await.unwrap();
    stream.close().await.unwrap();
    let mut back = Vec::new();
    within(stream.read_to_end(&mut back)).await.unwrap();
    assert!(back == data);
    within(serving).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_protocol_nobody_accepts_is_refused_until_somebody_does() {
    let (one, two) = pair().await;
    let refused = two.host.open_stream(one.peer(), "later/1").await;
    assert!(matches!(refused, Err(OpenError::Unsupported(_))), "{refused:?}");
    let accepted = one.host.accept("later/1").unwrap();
    assert!(matches!(one.host.accept("later/1"), Err(AcceptError::Taken(_))));
    assert_eq!(answer(&two.host, one.peer(), accepted).await, 8);
    let again = two.host.open_stream(one.peer(), "later/1").await;
    assert!(again.is_err(), "the receiver is gone");
}

async fn answer(host: &Host, peer: PeerId, accepted: Incoming) -> u32 {
    tokio::select! {
        answer = ask(host, peer, "later/1", 7) => answer,
        () = answer_all(accepted) => unreachable!("the host runs"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_to_nobody_and_between_swarms_fail_with_a_reason() {
    let one = start(config(1)).await;
    let nowhere = one.host.open_stream(PeerId::random(), "x/1").await;
    assert!(matches!(nowhere, Err(OpenError::Dial(_))), "{nowhere:?}");
    assert!(matches!(one.host.open_stream(one.peer(), "UP").await, Err(OpenError::Name(_))));
    let foreign = Config { swarm: "other".into(), ..config(2) };
    let two = start(Config { bootstrap: one.host.announce_addrs(), ..foreign }).await;
    let _accepted = one.host.accept("x/1").unwrap();
    let crossed = within(two.host.open_stream(one.peer(), "x/1")).await;
    assert!(matches!(crossed, Err(OpenError::Unsupported(_))), "{crossed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_work_over_quic_alone() {
    let quic = || vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()];
    let one = start(Config { listen: quic(), ..config(1) }).await;
    tokio::spawn(answer_all(one.host.accept("x/1").unwrap()));
    let two = join(2, &one).await;
    assert_eq!(within(ask(&two.host, one.peer(), "x/1", 1)).await, 2);
    let peers = two.host.peers().await.unwrap();
    assert_eq!(peers[0].transport, p2p::Transport::Quic);
}
