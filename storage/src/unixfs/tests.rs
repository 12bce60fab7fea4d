use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn quiet() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

fn cids() -> impl Strategy<Value = Cid> {
    any::<([u8; 32], bool)>().prop_map(|(digest, raw)| {
        let profile = if raw { Profile::V1_2025 } else { Profile::V0_2015 };
        profile.leaf_cid(&digest)
    })
}

fn nodes() -> impl Strategy<Value = Node> {
    let link = (cids(), "[a-zé]{0,9}", any::<u64>());
    let links = prop::collection::vec(link, 0..9);
    (links, prop::option::of(prop::collection::vec(any::<u8>(), 0..99))).prop_map(|(links, data)| Node {
        links: links.into_iter().map(|(cid, name, total_bytes)| Link { cid, name, total_bytes }).collect(),
        data: data.map(Bytes::from),
    })
}

proptest! {
    #![proptest_config(quiet())]

    #[test]
    fn nodes_survive_encoding(node in nodes()) {
        let block = Bytes::from(node.encode());
        prop_assert_eq!(block.len(), node.encoded_len());
        prop_assert_eq!(Node::decode(&block).expect("decodes"), node);
    }

    #[test]
    fn messages_survive_encoding(
        kind in 0..6_u64, data in prop::collection::vec(any::<u8>(), 0..50),
        file_bytes in any::<Option<u64>>(), block_bytes in prop::collection::vec(any::<u64>(), 0..9),
        fanout in any::<Option<u64>>(), mode in prop::option::of(0..0o7777_u32),
    ) {
        let kinds = [Kind::Raw, Kind::Directory, Kind::File, Kind::Metadata, Kind::Symlink, Kind::Shard];
        let data = Data {
            data: data.into(), file_bytes, block_bytes, fanout, mode, ..Data::new(kinds[kind as usize])
        };
        prop_assert_eq!(Data::decode(&data.encode().into()).expect("decodes"), data);
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = Bytes::from(bytes);
        let _ = Data::decode(&bytes);
        if let Ok(node) = Node::decode(&bytes) {
            let _ = node.unixfs().map(|data| hamt::Shard::of(&data));
        }
    }

    #[test]
    fn a_damaged_node_decodes_or_is_refused(node in nodes(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut block = node.encode();
        if !block.is_empty() {
            let at = at.index(block.len());
            block[at] = to;
        }
        let _ = Node::decode(&block.into()).map(|node| node.unixfs());
    }

    #[test]
    fn a_tree_of_any_shape_adds_up(leaves in 0..400_usize, width in 2..7_usize) {
        let profile = Profile { width, ..Profile::V1_2025 };
        let mut blocks = Vec::new();
        let mut tree = FileTree::new(profile);
        for number in 0..leaves {
            tree.push(Leaf::of(&profile, number.to_string().as_bytes()), &mut |block| blocks.push(block));
        }
        let root = tree.finish(&mut |block| blocks.push(block));
        let bytes: usize = (0..leaves).map(|number| number.to_string().len()).sum();
        prop_assert_eq!(root.file_bytes, bytes as u64);
        for block in &blocks {
            if block.cid.codec() == crate::block::DAG_PB {
                let node = Node::decode(&block.data).expect("decodes");
                prop_assert!(!node.links.is_empty() && node.links.len() <= width);
            }
        }
    }
}

#[test]
fn links_are_bounded() {
    let link = Link { cid: Profile::V1_2025.leaf_cid(&[0; 32]), name: String::new(), total_bytes: 0 };
    let node = Node { links: vec![link; MAX_LINKS + 1], data: None };
    assert_eq!(Node::decode(&node.encode().into()), Err(UnixfsError::TooManyLinks));
    let mut packed = vec![0x08, 2, 0x22];
    wire::put_varint(&mut packed, MAX_LINKS as u64 + 1);
    packed.extend(vec![1; MAX_LINKS + 1]);
    assert_eq!(Data::decode(&packed.into()), Err(UnixfsError::TooManyLinks));
}

#[test]
fn frames_are_what_the_codec_writes() {
    for length in [0, 1, 127, 128, 300_000] {
        let piece = vec![7; length];
        let mut data = Data::new(Kind::File);
        data.data = piece.clone().into();
        data.file_bytes = Some(length as u64);
        let node = Node { links: Vec::new(), data: Some(data.encode().into()) };
        assert_eq!(LeafFrame::of(Kind::File, length).around(&piece), node.encode());
    }
}

#[test]
fn a_full_level_is_the_root_and_one_more_leaf_makes_two_levels() {
    let profile = Profile { width: 3, ..Profile::V1_2025 };
    let depths = |leaves: usize| {
        let mut emitted = 0;
        let mut tree = FileTree::new(profile);
        for _ in 0..leaves {
            tree.push(Leaf::of(&profile, b"x"), &mut |_| emitted += 1);
        }
        tree.finish(&mut |_| emitted += 1);
        emitted
    };
    assert_eq!([1, 2, 3, 4, 9, 10].map(depths), [0, 1, 1, 3, 4, 7]);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for path in ["", "..", "a/../b", "/etc", "a//b", "a\0", "a/./b", &"x".repeat(256)] {
        assert!(small_tree(&[(path, b"")]).is_err(), "{path:?}");
    }
    let twice = small_tree(&[("a", b"1"), ("a/b", b"2")]);
    assert_eq!(twice, Err(UnixfsError::DuplicateName("a/b".to_owned())));
}

#[test]
fn shards_are_found_again_by_name() {
    let profile = Profile::V1_2025;
    let cid = profile.leaf_cid(&[0; 32]);
    let entries: Vec<_> = (0..9000)
        .map(|n| DirEntry { name: format!("{n}-{}", "x".repeat(40)), cid, total_bytes: 1 })
        .collect();
    let mut blocks = std::collections::HashMap::new();
    let root = directory(&profile, entries.clone(), &mut |block| {
        blocks.insert(block.cid, block.data);
    });
    let root = root.expect("builds").cid;
    for entry in &entries {
        let mut at = root;
        for depth in 0.. {
            let node = Node::decode(&blocks[&at]).expect("decodes");
            let shard = hamt::Shard::of(&node.unixfs().expect("decodes")).expect("is a shard");
            let prefix = shard.prefix_of(&entry.name, depth).expect("not too deep");
            let link = node.links.iter().find(|link| link.name.starts_with(&prefix)).expect("is there");
            match shard.place(&link.name).expect("has a place") {
                hamt::Place::Below => at = link.cid,
                hamt::Place::Entry(name) => {
                    assert_eq!(name, entry.name);
                    break;
                }
            }
        }
    }
}
