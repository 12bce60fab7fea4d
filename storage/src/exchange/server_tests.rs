use super::*;
use crate::block;

fn peer(n: u8) -> Peer {
    Peer::new(&[n])
}

fn cid(n: u32) -> Cid {
    block::cid_of(block::RAW, &n.to_be_bytes())
}

fn handle(server: &mut Server, input: Input) -> Vec<Effect> {
    let mut out = Vec::new();
    server.handle(input, &mut out);
    out
}

fn wanted(n: u8, entries: Vec<Entry>) -> Input {
    Input::Wanted { peer: peer(n), full: false, entries }
}

fn checked(n: u8, cids: impl IntoIterator<Item = u32>, size: Option<u64>) -> Input {
    Input::Checked { peer: peer(n), sizes: cids.into_iter().map(|n| (cid(n), size)).collect() }
}

fn want_blocks(cids: std::ops::Range<u32>) -> Vec<Entry> {
    cids.map(|n| Entry::want_block(cid(n), 1)).collect()
}

fn served(effects: &[Effect]) -> Vec<(Peer, usize)> {
    let serves = effects.iter().filter_map(|effect| match effect {
        Effect::Serve { peer, cids, .. } => Some((peer.clone(), cids.len())),
        _ => None,
    });
    serves.collect()
}

#[test]
fn a_block_that_is_here_is_served_and_its_want_forgotten() {
    let mut server = Server::new();
    let check = handle(&mut server, wanted(1, want_blocks(0..1)));
    assert_eq!(check, [Effect::Check { peer: peer(1), cids: vec![cid(0)] }]);
    let serve = handle(&mut server, checked(1, [0], Some(10)));
    assert_eq!(serve, [Effect::Serve { peer: peer(1), cids: vec![cid(0)], bytes: 10 }]);
    assert_eq!(server.wants(), 0);
}

#[test]
fn a_block_that_is_not_here_is_denied_at_once_and_sent_when_it_comes() {
    let mut server = Server::new();
    handle(&mut server, wanted(1, want_blocks(0..1)));
    let denied = handle(&mut server, checked(1, [0], None));
    assert_eq!(
        denied,
        [Effect::Answer { peer: peer(1), presences: vec![Presence { cid: cid(0), have: false }] }]
    );
    let check = handle(&mut server, Input::Stored);
    assert_eq!(check, [Effect::Check { peer: peer(1), cids: vec![cid(0)] }]);
    assert!(handle(&mut server, checked(1, [0], None)).is_empty(), "one no is enough");
    assert_eq!(served(&handle(&mut server, checked(1, [0], Some(1)))), [(peer(1), 1)]);
}

#[test]
fn a_question_is_answered_with_the_block_when_that_is_as_short() {
    let mut server = Server::new();
    let ask = |n| vec![Entry::want_have(cid(n), 1)];
    handle(&mut server, wanted(1, ask(0)));
    assert_eq!(served(&handle(&mut server, checked(1, [0], Some(1024)))), [(peer(1), 1)]);
    handle(&mut server, wanted(1, ask(1)));
    let answer = handle(&mut server, checked(1, [1], Some(1025)));
    assert_eq!(
        answer,
        [Effect::Answer { peer: peer(1), presences: vec![Presence { cid: cid(1), have: true }] }]
    );
}

#[test]
fn a_cancelled_want_is_not_served() {
    let mut server = Server::new();
    handle(&mut server, wanted(1, want_blocks(0..1)));
    handle(&mut server, wanted(1, vec![Entry::cancel(cid(0))]));
    assert!(handle(&mut server, checked(1, [0], Some(1))).is_empty());
}

#[test]
fn messages_are_cut_and_bytes_in_flight_are_capped_until_they_are_sent() {
    let mut server = Server::new();
    let block = 1 << 20;
    handle(&mut server, wanted(1, want_blocks(0..100)));
    let effects = handle(&mut server, checked(1, 0..100, Some(block)));
    assert_eq!(served(&effects), vec![(peer(1), 1); 16]);
    assert_eq!(served(&handle(&mut server, Input::Sent { peer: peer(1), bytes: block })), [(peer(1), 1)]);
}

#[test]
fn small_blocks_share_a_message() {
    let mut server = Server::new();
    handle(&mut server, wanted(1, want_blocks(0..100)));
    assert_eq!(served(&handle(&mut server, checked(1, 0..100, Some(1000)))), [(peer(1), 100)]);
}

#[test]
fn peers_take_turns() {
    let mut server = Server::new();
    let block = 1 << 20;
    for n in 1..=8 {
        handle(&mut server, wanted(n, want_blocks(0..100)));
        handle(&mut server, checked(n, 0..100, Some(block)));
    }
    let mut turns = BTreeMap::new();
    for step in 0..80 {
        let done = peer(step % 4 + 1); // the first four filled what all peers together may have
        for (peer, _) in served(&handle(&mut server, Input::Sent { peer: done, bytes: block })) {
            *turns.entry(peer).or_insert(0) += 1;
        }
    }
    assert!((5..=8).all(|n| turns.get(&peer(n)).is_some_and(|turns| *turns >= 8)), "{turns:?}");
}

#[test]
fn higher_priority_is_served_first() {
    let mut server = Server::new();
    let entries = (0..3).map(|n| Entry::want_block(cid(n), n as i32)).collect();
    handle(&mut server, wanted(1, entries));
    let effects = handle(&mut server, checked(1, 0..3, Some(100)));
    assert!(matches!(&effects[..], [Effect::Serve { cids, .. }] if *cids == [cid(2), cid(1), cid(0)]));
}

#[test]
fn a_flood_of_wants_is_bounded() {
    let mut server = Server::new();
    for n in 0..20 {
        handle(&mut server, wanted(1, want_blocks(n * 1000..n * 1000 + 1000)));
        handle(&mut server, checked(1, n * 1000..n * 1000 + 1000, None));
    }
    assert!(server.wants() <= MAX_WAITING);
    // Its answers are unread: nothing more is looked up for it.
    assert!(handle(&mut server, wanted(1, want_blocks(0..1))).is_empty());
    handle(&mut server, wanted(2, want_blocks(0..1)));
    assert_eq!(served(&handle(&mut server, checked(2, [0], Some(1)))), [(peer(2), 1)]);
}

#[test]
fn wants_that_come_and_go_faster_than_they_are_looked_up_are_dropped() {
    let mut server = Server::new();
    let mut checks = 0;
    for _ in 0..100 {
        let entries =
            want_blocks(0..1000).into_iter().chain((0..1000).map(|n| Entry::cancel(cid(n)))).collect();
        for effect in handle(&mut server, wanted(1, entries)) {
            checks += if let Effect::Check { cids, .. } = effect { cids.len() } else { 0 };
        }
    }
    assert!(checks <= MAX_CHECKING, "{checks}");
}

#[test]
fn content_that_comes_while_a_want_is_looked_up_is_not_missed() {
    let mut server = Server::new();
    handle(&mut server, wanted(1, want_blocks(0..1)));
    assert!(handle(&mut server, Input::Stored).is_empty());
    let effects = handle(&mut server, checked(1, [0], None));
    assert!(matches!(&effects[..], [Effect::Answer { .. }, Effect::Check { .. }]));
}

#[test]
fn a_peer_that_goes_frees_what_was_on_its_way() {
    let mut server = Server::new();
    for n in 1..=5 {
        handle(&mut server, wanted(n, want_blocks(0..100)));
        handle(&mut server, checked(n, 0..100, Some(1 << 20)));
    }
    let effects = handle(&mut server, Input::Gone(peer(1)));
    assert_eq!(served(&effects).len(), 16);
}
