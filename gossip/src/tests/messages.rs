//! Bytes: what is encoded comes back, what is not a message is refused, signatures hold.

use job::{ExecutionId, JobId, PeerId};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::harness::{cid, peer, small};
use crate::crypto::{Crypto, Ed25519, Signed};
use crate::lottery;
use crate::message::*;
use crate::topic::Class;

fn span() -> impl Strategy<Value = Span> {
    (0u32..50_000, 1u32..30, 1u32..9).prop_map(Span::from)
}

fn id() -> impl Strategy<Value = JobId> {
    any::<[u8; 16]>().prop_map(JobId)
}

fn stamp() -> impl Strategy<Value = Stamp> {
    (any::<u64>(), any::<u64>()).prop_map(Stamp::from)
}

fn facts() -> impl Strategy<Value = Facts> {
    (any::<[u8; 4]>(), 0u64..9, any::<bool>(), any::<i32>(), option::of(any::<u8>())).prop_map(
        |(input, run_ms, never, priority, module)| Facts {
            inputs: vec![InputHint { cid: cid(&input), size: 9 }],
            sources: vec!["ipfs".into()],
            publisher: "s3".into(),
            network: "http".into(),
            constraints: job::constraint::parse("a=b,c in (d,e)").unwrap(),
            run_ms,
            never,
            priority,
            module: module.map(|byte| cid(&[byte])),
            ..Facts::plain("wasm", small())
        },
    )
}

fn announcement() -> impl Strategy<Value = Announcement> {
    (id(), vec(any::<u8>(), 0..32), facts(), any::<u32>(), 0..=lottery::ALL, any::<u64>()).prop_map(
        |(job, nonce, facts, open, theta, seed)| Announcement {
            job,
            nonce: nonce.into(),
            version: open,
            spec: cid(b"spec"),
            facts,
            open,
            round: 1,
            theta,
            decline: theta,
            seed,
        },
    )
}

fn receipts() -> impl Strategy<Value = ReceiptGroup> {
    let one = (0u32..99, 1u32..9, any::<i32>(), ".{0,40}", any::<bool>()).prop_map(
        |(partition, attempt, code, text, fault)| Receipt {
            partition,
            attempt,
            epoch: 7,
            outcome: if fault {
                Outcome::Fault(FaultClass::Input, text.clone())
            } else {
                Outcome::Exit(code)
            },
            result: (!fault).then(|| ResultInfo { cid: cid(text.as_bytes()), size: 5, published: text }),
            usage: Usage { cpu_ms: 1, memory: 2, disk: 0, unkept: 3 },
            started_ms: 5,
            ran_ms: 6,
        },
    );
    (id(), vec(one, 0..6)).prop_map(|(job, receipts)| ReceiptGroup {
        job,
        version: 1,
        spec: cid(b"spec"),
        worker: peer(1),
        inputs: vec![cid(b"input")],
        engine: "wasmtime 48".into(),
        receipts,
    })
}

fn live() -> impl Strategy<Value = JobLive> {
    (id(), vec(span(), 0..5), vec(span(), 0..5), ".{0,30}").prop_map(|(job, live, lost, message)| JobLive {
        job,
        version: 3,
        progress: vec![Progress {
            partition: 1,
            attempt: 2,
            phase: Phase::Running,
            ran_ms: 3,
            message,
            stdout: 4,
            stderr: 0,
        }],
        unstarted: lost.clone(),
        live,
        lost,
    })
}

fn signed() -> impl Strategy<Value = Signed> {
    (vec(any::<u8>(), 0..50), any::<u8>())
        .prop_map(|(payload, byte)| Signed { payload: payload.into(), signature: [byte; 64] })
}

fn direct() -> impl Strategy<Value = Direct> {
    let spans = || vec(span(), 0..6);
    prop_oneof![
        (announcement(), vec("[a-z/0-9]{0,50}", 0..3)).prop_map(|(announcement, addresses)| {
            Direct::Ask(Box::new(Ask { announcement, addresses, ttl_ms: 5, issued: 7 }))
        }),
        (id(), stamp(), any::<u32>(), any::<bool>()).prop_map(|(job, stamp, slots, cached)| {
            Direct::Bid(Bid {
                job,
                version: 1,
                seed: 2,
                stamp,
                start_ms: 0,
                slots,
                local_bytes: 9,
                cached,
                hold_ms: 5000,
                skew_s: 0,
            })
        }),
        (id(), ".{0,400}").prop_map(|(job, text)| {
            Direct::Decline(Decline::new(job, 1, 2, DeclineCode::Constraints, &text))
        }),
        (signed(), option::of(facts()), option::of(vec(any::<u8>(), 0..60))).prop_map(
            |(order, facts, spec)| {
                Direct::Award(Box::new(Award {
                    order,
                    facts,
                    spec: spec.map(Into::into),
                    hints: vec![peer(3)],
                    issued: 8,
                }))
            }
        ),
        (id(), spans(), spans(), stamp()).prop_map(|(job, accepted, declined, stamp)| {
            Direct::Reply(Reply {
                job,
                version: 1,
                award: 4,
                accepted,
                declined,
                code: Some(DeclineCode::Busy),
                message: "no".into(),
                eta_ms: 1,
                epoch: 3,
                stamp,
            })
        }),
        (id(), spans()).prop_map(|(job, spans)| Direct::Recall(Recall { job, version: 1, spans })),
        (id(), spans(), stamp())
            .prop_map(|(job, spans, stamp)| { Direct::Recalled(Recalled { job, version: 1, spans, stamp }) }),
        (stamp(), vec(live(), 0..4)).prop_map(|(stamp, jobs)| Direct::Renew(Renew { stamp, jobs })),
        stamp().prop_map(|stamp| Direct::RenewAck(RenewAck { stamp })),
        (stamp(), vec(receipts(), 0..4)).prop_map(|(stamp, groups)| {
            let groups = SealedGroup::seal(&groups, &Ed25519::new([1; 32], "test"));
            let blocks = vec![Block { cid: cid(b"x"), bytes: b"x"[..].into() }];
            Direct::Receipts(Receipts { stamp, groups, blocks })
        }),
        (id(), spans()).prop_map(|(job, spans)| {
            Direct::Committed(Committed { jobs: vec![JobSpans { job, version: 1, spans }] })
        }),
        signed().prop_map(|order| Direct::Stop(Stop { order })),
        (id(), spans()).prop_map(|(job, spans)| Direct::Stopped(Stopped { job, version: 1, spans })),
        (id(), spans()).prop_map(|(job, spans)| {
            let jobs = vec![JobAsked { job, nonce: b"n"[..].into(), version: 1, spans }];
            Direct::Reconcile(Reconcile { id: 1, epoch: 2, jobs })
        }),
        (stamp(), vec(live(), 0..4), option::of(signed()))
            .prop_map(|(stamp, jobs, newest)| { Direct::Live(Live { answers: 1, stamp, jobs, newest }) }),
        any::<u32>().prop_map(|most| Direct::Pull(Pull { most })),
        vec(any::<u8>(), 0..60).prop_map(|bytes| {
            Direct::Remembered(Remembered { messages: vec![(Class::Gpu, bytes.into(), 7)] })
        }),
        id().prop_map(|job| Direct::Closed(Closed { job, version: 1 })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_message_comes_back_as_it_was(message in direct()) {
        prop_assert_eq!(Direct::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn bytes_after_a_message_and_cut_messages_are_refused(message in direct(), cut in 1usize..40) {
        let mut bytes = message.encode();
        let shorter = &bytes[..bytes.len() - cut.min(bytes.len())];
        prop_assert!(Direct::decode(shorter).is_err());
        bytes.push(0);
        prop_assert!(Direct::decode(&bytes).is_err());
    }

    #[test]
    fn changed_bytes_are_read_or_refused_without_harm(message in direct(), at in any::<usize>(), byte in any::<u8>()) {
        let mut bytes = message.encode();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = Direct::decode(&bytes);
    }

    #[test]
    fn any_bytes_are_read_or_refused_without_harm(bytes in vec(any::<u8>(), 0..300)) {
        let _ = Direct::decode(&bytes);
        let _ = Announcements::open(&bytes, "test", &Ed25519::new([1; 32], "test"));
    }

    #[test]
    fn each_group_of_receipts_proves_itself(groups in vec(receipts(), 1..9), at in any::<usize>()) {
        let worker = Ed25519::new([1; 32], "test");
        let sealed = SealedGroup::seal(&groups, &worker);
        for (group, sealed) in groups.iter().zip(&sealed) {
            prop_assert!(sealed.is_by(worker.peer(), &worker));
            prop_assert_eq!(&sealed.read().unwrap(), group);
        }
        let at = at % sealed.len();
        let mut wrong = sealed[at].clone();
        wrong.group = [&wrong.group[..], &[0]].concat().into();
        prop_assert!(!wrong.is_by(worker.peer(), &worker));
        prop_assert!(!sealed[at].is_by(peer(9), &worker));
    }
}

#[test]
fn a_message_may_carry_more_than_we_know() {
    // {"pul": {"n": 3, "zz": [1, {"a": null}]}}
    let mut bytes = b"\xa1\x63pul\xa2\x61n\x03\x62zz\x82\x01\xa1\x61a\xf6".to_vec();
    assert_eq!(Direct::decode(&bytes), Ok(Direct::Pull(Pull { most: 3 })));
    bytes[3] = b'x';
    assert!(Direct::decode(&bytes).is_err(), "an unknown kind of message is not");
}

#[test]
fn lists_beyond_their_bounds_are_refused() {
    let job = JobId([1; 16]);
    let many = vec![Span::one(1, 1); MAX_SPANS + 1];
    let recall = Direct::Recall(Recall { job, version: 1, spans: many });
    assert_eq!(Direct::decode(&recall.encode()), Err(DecodeError::Bounds("list of spans")));
    let wide = vec![Span::from((0, 90_000, 1)), Span::from((0, 90_000, 2))];
    let recall = Direct::Recall(Recall { job, version: 1, spans: wide });
    assert_eq!(Direct::decode(&recall.encode()), Err(DecodeError::Bounds("number of partitions")));
    let far = Direct::Stopped(Stopped { job, version: 1, spans: vec![Span::from((u32::MAX, 2, 1))] });
    assert_eq!(Direct::decode(&far.encode()), Err(DecodeError::Bounds("span")));
    let large = vec![0; MAX_MESSAGE_BYTES + 1];
    assert!(matches!(Direct::decode(&large), Err(DecodeError::TooLarge { .. })));
    let nested = vec![0x81; 100_000];
    assert!(Direct::decode(&nested).is_err());
}

#[test]
fn an_announcement_is_read_only_with_its_owners_signature_and_in_its_swarm() {
    let owner = Ed25519::new([1; 32], "test");
    let nonce = b"nonce";
    let message = |job| Announcements {
        owner: owner.peer(),
        addresses: vec!["/ip4/127.0.0.1/tcp/1".into()],
        issued: 5,
        ttl_ms: 40_000,
        jobs: vec![Announcement {
            job,
            nonce: nonce[..].into(),
            version: 1,
            spec: cid(b"spec"),
            facts: Facts::plain("wasm", small()),
            open: 1,
            round: 0,
            theta: lottery::ALL,
            decline: lottery::ALL,
            seed: 1,
        }],
    };
    let own = JobId::derive("test", owner.peer(), nonce);
    let bytes = message(own).seal(&owner).unwrap();
    assert_eq!(Announcements::open(&bytes, "test", &owner), Ok(message(own)));
    assert!(bytes.len() < 400, "{}", bytes.len());
    let elsewhere = Ed25519::new([1; 32], "other");
    assert!(Announcements::open(&bytes, "other", &elsewhere).is_err());
    let foreign = JobId::derive("test", PeerId([9; 32]), nonce);
    let bytes = message(foreign).seal(&owner).unwrap();
    assert_eq!(Announcements::open(&bytes, "test", &owner), Err(DecodeError::Bounds("job id")));
    let other = Ed25519::new([2; 32], "test");
    let bytes = message(own).seal(&other).unwrap();
    assert_eq!(Announcements::open(&bytes, "test", &owner), Err(DecodeError::Signature));
}

#[test]
fn bids_and_declines_are_small() {
    let job = JobId([255; 16]);
    let bid = Bid {
        job,
        version: u32::MAX,
        seed: u64::MAX,
        stamp: Stamp { start: u64::MAX, at_ms: u64::MAX },
        start_ms: u64::MAX,
        slots: u32::MAX,
        local_bytes: u64::MAX,
        cached: true,
        hold_ms: u64::MAX,
        skew_s: i64::MIN,
    };
    assert!(Direct::Bid(bid).encode().len() <= 512);
    let decline = Decline::new(job, u32::MAX, u64::MAX, DeclineCode::Constraints, &"ü".repeat(1000));
    let decline = Decline { skew_s: i64::MIN, ..decline };
    assert!(Direct::Decline(decline).encode().len() <= 512);
}

#[test]
fn execution_ids_are_the_same_on_both_sides() {
    let key = job::ExecutionKey { job: JobId([3; 16]), version: 1, partition: 2, attempt: 3 };
    assert_eq!(key.id(), ExecutionId(key.id().0));
}

#[test]
fn a_real_signature_of_an_award_is_checked_over_the_received_bytes() {
    let owner = Ed25519::new([1; 32], "test");
    let order = AwardOrder {
        id: 1,
        job: JobId::derive("test", owner.peer(), b"n"),
        nonce: b"n"[..].into(),
        version: 1,
        spec: cid(b"spec"),
        count: 10,
        epoch: 1,
        spans: vec![Span::from((0, 10, 1))],
        worker: peer(2),
        answers: Stamp::default(),
        lease_ms: 60_000,
        total_ms: 0,
        keep: false,
    };
    let mut signed = Signed::seal(&order, &owner);
    assert_eq!(signed.open::<AwardOrder>(owner.peer(), &owner), Ok(order));
    signed.signature[0] ^= 1;
    assert_eq!(signed.open::<AwardOrder>(owner.peer(), &owner), Err(DecodeError::Signature));
    assert!(!owner.verify(owner.peer(), crate::crypto::Domain::Stop, &signed.payload, &signed.signature));
}
