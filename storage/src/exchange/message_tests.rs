use multihash::Multihash;
use proptest::prelude::*;

use super::*;

fn joined(message: &Message) -> Bytes {
    Bytes::from(message.encode().concat())
}

/// What follows the length in front.
fn body(message: &Message) -> Bytes {
    let mut bytes = joined(message);
    let length = wire::take_varint(&mut bytes).unwrap();
    assert_eq!(length as usize, bytes.len());
    bytes
}

fn cids() -> impl Strategy<Value = Cid> {
    (
        any::<[u8; 32]>(),
        prop_oneof![Just(0x55u64), Just(0x70), Just(0x71), any::<u32>().prop_map(u64::from)],
        any::<bool>(),
    )
        .prop_map(|(digest, codec, v0)| {
            let hash = Multihash::wrap(0x12, &digest).unwrap();
            if v0 { Cid::new_v0(hash).unwrap() } else { Cid::new_v1(codec, hash) }
        })
}

fn entries() -> impl Strategy<Value = Entry> {
    (cids(), any::<i32>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(cid, priority, cancel, have, send_dont_have)| {
            let kind = if have { WantKind::Have } else { WantKind::Block };
            Entry { cid, priority, cancel, kind, send_dont_have }
        },
    )
}

fn blocks() -> impl Strategy<Value = Block> {
    let data = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        (0usize..40_000).prop_map(|length| vec![7; length])
    ];
    (any::<[u64; 4]>(), data).prop_map(|([version, codec, hash, digest_bytes], data)| Block {
        prefix: Prefix { version, codec, hash, digest_bytes },
        data: data.into(),
    })
}

fn messages() -> impl Strategy<Value = Message> {
    let presences = (cids(), any::<bool>()).prop_map(|(cid, have)| Presence { cid, have });
    (
        any::<bool>(),
        proptest::collection::vec(entries(), 0..20),
        proptest::collection::vec(blocks(), 0..6),
        proptest::collection::vec(presences, 0..20),
        0..i32::MAX,
    )
        .prop_map(|(full, entries, blocks, presences, pending_bytes)| Message {
            full,
            entries,
            blocks,
            presences,
            pending_bytes,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_message_reads_back_as_it_was_written(message in messages()) {
        prop_assert_eq!(message.encoded_len(), body(&message).len());
        prop_assert_eq!(Message::decode(body(&message)), Ok(message));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = Message::decode(bytes.into());
    }

    #[test]
    fn a_damaged_message_never_panics(message in messages(), at: prop::sample::Index, flip: u8) {
        let mut bytes = body(&message).to_vec();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let _ = Message::decode(bytes.into());
        }
    }
}

#[test]
fn the_bytes_are_those_of_the_protobuf_schema() {
    let cid: Cid = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku".parse().unwrap();
    let message = Message { entries: vec![Entry::want_block(cid, 1)], ..Message::default() };
    let mut expected = vec![46, 0x0a, 44, 0x0a, 42, 0x0a, 36];
    expected.extend(cid.to_bytes());
    expected.extend([0x10, 1, 0x28, 1]);
    assert_eq!(joined(&message), expected);
}

#[test]
fn a_large_block_is_sent_from_where_it_lies() {
    let data = Bytes::from(vec![1; 1 << 20]);
    let block = Block { prefix: Prefix::V0, data: data.clone() };
    let segments = Message { blocks: vec![block], ..Message::default() }.encode();
    assert!(segments.iter().any(|segment| segment.as_ptr() == data.as_ptr()));
}

#[test]
fn a_received_block_is_not_copied() {
    let block = Block { prefix: Prefix::V0, data: vec![1; 100_000].into() };
    let bytes = body(&Message { blocks: vec![block], ..Message::default() });
    let span = bytes.as_ptr_range();
    let message = Message::decode(bytes.clone()).unwrap();
    assert!(span.contains(&message.blocks[0].data.as_ptr()));
}

#[test]
fn lists_beyond_their_cap_are_refused() {
    let block = Block { prefix: Prefix::V0, data: Bytes::new() };
    let message = Message { blocks: vec![block; MAX_BLOCKS + 1], ..Message::default() };
    assert_eq!(
        Message::decode(body(&message)),
        Err(MessageError::TooMany { what: "blocks", limit: MAX_BLOCKS })
    );
    let entry = Entry::cancel(Cid::default());
    let message = Message { entries: vec![entry; MAX_ENTRIES + 1], ..Message::default() };
    assert!(matches!(Message::decode(body(&message)), Err(MessageError::TooMany { .. })));
}

#[test]
fn a_block_over_two_mebibytes_is_refused() {
    let block = Block { prefix: Prefix::V0, data: vec![0; MAX_BLOCK_BYTES + 1].into() };
    let message = Message { blocks: vec![block], ..Message::default() };
    assert_eq!(Message::decode(body(&message)), Err(MessageError::BlockTooLong(MAX_BLOCK_BYTES + 1)));
}

#[test]
fn a_length_beyond_the_message_is_refused_without_allocating() {
    let bytes = Bytes::from_static(&[0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
    assert!(matches!(Message::decode(bytes), Err(MessageError::Malformed(_))));
}
