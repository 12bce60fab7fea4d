#![allow(clippy::disallowed_methods, missing_docs)]
use gossip::crypto::Ed25519;
use gossip::message::*;
use gossip::topic::Class;
use gossip::{owner, worker};
use job::{Cid, JobId, PeerId, Resources, Time};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
struct Nothing;
impl worker::Local for Nothing {
    fn held_bytes(&self, _: &Cid) -> u64 {
        0
    }
    fn cached(&self, _: &Cid) -> bool {
        false
    }
}
enum Ev {
    O(owner::Input),
    W(usize, worker::Input),
}
fn main() {
    let n: u32 = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(10_000);
    let batch: usize = std::env::args().nth(2).and_then(|s| s.parse().ok()).unwrap_or(32);
    let mut now = Time { boot: 1_000_000_000_000, wall: 1_800_000_000_000_000_000 };
    let keys: Vec<Ed25519> = (1..=3).map(|i| Ed25519::new([i; 32], "t")).collect();
    let ids: Vec<PeerId> = keys.iter().map(|k| k.peer()).collect();
    let keys: Vec<Arc<Ed25519>> = keys.into_iter().map(Arc::new).collect();
    let mut out = Vec::new();
    let mut o = owner::Owner::restore(
        owner::Settings { own_worker: false, ..Default::default() },
        owner::Identity { me: ids[0], swarm: "t".into(), crypto: keys[0].clone(), seed: [1; 32] },
        [],
        now,
        &mut out,
    )
    .unwrap();
    let small = Resources { cpu_milli: 500, memory: 1, disk: 0, gpu: 0 };
    let mut ws: Vec<worker::Worker> = (1..3)
        .map(|i| {
            let mut out = Vec::new();
            worker::Worker::restore(
                worker::Settings { capacity: small.checked_mul(2).unwrap(), slots: 2, ..Default::default() },
                worker::Identity {
                    me: ids[i],
                    swarm: "t".into(),
                    crypto: keys[i].clone(),
                    local: Arc::new(Nothing),
                    seed: [i as u8; 32],
                },
                [],
                now,
                &mut out,
            )
            .unwrap()
        })
        .collect();
    let spec = b"spec".to_vec();
    let hash: [u8; 32] =
        sha2::Digest::finalize(sha2::Digest::chain_update(<sha2::Sha256 as sha2::Digest>::new(), &spec))
            .into();
    let cid = Cid::try_from([&[1u8, 0x55, 0x12, 32][..], &hash[..]].concat().as_slice()).unwrap();
    let id = JobId::derive("t", ids[0], b"n");
    let new = owner::NewJob {
        id,
        version: 1,
        nonce: b"n"[..].into(),
        name: "x".into(),
        namespace: "d".into(),
        spec_cid: cid,
        spec: spec.into(),
        facts: Facts::plain("wasm", small),
        count: n,
        total_timeout: None,
        queue_timeout: None,
        max_attempts: 3,
        keep: owner::Keep::Owner,
    };
    let mut q: VecDeque<Ev> = VecDeque::new();
    for i in 1..3 {
        q.push_back(Ev::O(owner::Input::Connected(ids[i])));
        q.push_back(Ev::O(owner::Input::Subscribed { peer: ids[i], class: Class::Wasm }));
        q.push_back(Ev::W(i - 1, worker::Input::Connected(ids[0])));
    }
    q.push_back(Ev::O(owner::Input::Submitted { token: 1, job: Box::new(new) }));
    let (mut ot, mut wt, mut codec) = (Duration::ZERO, [Duration::ZERO; 2], Duration::ZERO);
    let (mut records, mut rbytes, mut wrecords, mut wbytes, mut msgs, mut mbytes) =
        (0u64, 0u64, 0u64, 0u64, 0u64, 0u64);
    let mut obatches = 0;
    let mut done = false;
    let mut steps = 0u64;
    while let Some(ev) = q.pop_front() {
        steps += 1;
        now = now + Duration::from_micros(50);
        match ev {
            Ev::O(input) => {
                let mut ins = vec![input];
                while ins.len() < batch && matches!(q.front(), Some(Ev::O(_))) {
                    if let Some(Ev::O(i)) = q.pop_front() {
                        ins.push(i)
                    }
                }
                obatches += 1;
                let mut out = Vec::new();
                let t = Instant::now();
                for i in ins {
                    o.handle(now, i, &mut out);
                }
                o.settle(now, &mut out);
                ot += t.elapsed();
                for e in out {
                    match e {
                        owner::Effect::Persist(r) => {
                            records += 1;
                            rbytes += r.value.len() as u64 + 29;
                        }
                        owner::Effect::Send { to, message } => {
                            let t = Instant::now();
                            let b = message.encode();
                            let m = Direct::decode(&b).unwrap();
                            codec += t.elapsed();
                            msgs += 1;
                            mbytes += b.len() as u64;
                            let i = ids.iter().position(|x| *x == to).unwrap();
                            q.push_back(Ev::W(i - 1, worker::Input::Message { from: ids[0], message: m }));
                        }
                        owner::Effect::Announce { class, bytes } => {
                            for i in 0..2 {
                                q.push_back(Ev::W(
                                    i,
                                    worker::Input::Announced {
                                        id: 1,
                                        relay: ids[0],
                                        class,
                                        bytes: bytes.clone(),
                                    },
                                ))
                            }
                        }
                        owner::Effect::Hold(h) => q.push_back(Ev::O(owner::Input::Held {
                            job: h.job,
                            version: h.version,
                            results: h
                                .items
                                .iter()
                                .map(|i| owner::Held {
                                    partition: i.partition,
                                    attempt: i.attempt,
                                    result: Ok(()),
                                })
                                .collect(),
                        })),
                        owner::Effect::Changed { state, .. } if state.is_terminal() => {
                            done = true;
                            println!("{state}")
                        }
                        _ => {}
                    }
                }
            }
            Ev::W(w, input) => {
                let mut ins = vec![input];
                while ins.len() < batch && matches!(q.front(), Some(Ev::W(x, _)) if *x == w) {
                    if let Some(Ev::W(_, i)) = q.pop_front() {
                        ins.push(i)
                    }
                }
                let mut out = Vec::new();
                let t = Instant::now();
                for i in ins {
                    ws[w].handle(now, i, &mut out);
                }
                ws[w].settle(now, &mut out);
                wt[w] += t.elapsed();
                for e in out {
                    match e {
                        worker::Effect::Persist(r) => {
                            wrecords += 1;
                            wbytes += r.value.len() as u64 + 29;
                        }
                        worker::Effect::Send { message, .. } => {
                            let t = Instant::now();
                            let b = message.encode();
                            let m = Direct::decode(&b).unwrap();
                            codec += t.elapsed();
                            msgs += 1;
                            mbytes += b.len() as u64;
                            q.push_back(Ev::O(owner::Input::Message { from: ids[w + 1], message: m }));
                        }
                        worker::Effect::Start(s) => q.push_back(Ev::W(
                            w,
                            worker::Input::Ended {
                                execution: s.execution,
                                end: Box::new(worker::End {
                                    outcome: Outcome::Exit(0),
                                    result: Some(ResultInfo { cid, size: 10, published: String::new() }),
                                    blocks: vec![],
                                    usage: Usage::default(),
                                    started_ms: now.wall / 1_000_000,
                                    ran_ms: 0,
                                    engine: "e".into(),
                                    inputs: vec![],
                                }),
                            },
                        )),
                        _ => {}
                    }
                }
            }
        }
        if q.is_empty() && !done {
            let at = [o.next_wakeup(), ws[0].next_wakeup(), ws[1].next_wakeup()]
                .into_iter()
                .flatten()
                .min()
                .unwrap();
            now = now.max(at);
            q.push_back(Ev::O(owner::Input::Tick));
            q.push_back(Ev::W(0, worker::Input::Tick));
            q.push_back(Ev::W(1, worker::Input::Tick));
        }
    }
    let per = |d: Duration| d.as_secs_f64() * 1e6 / f64::from(n);
    println!(
        "owner {:.2} us, workers {:.2} us, codec {:.2} us per execution; {obatches} owner batches, {steps} steps",
        per(ot),
        per(wt[0] + wt[1]),
        per(codec)
    );
    println!(
        "owner records {records} ({:.0} B per execution), worker records {wrecords} ({:.0} B), messages {msgs} ({:.0} B)",
        rbytes as f64 / f64::from(n),
        wbytes as f64 / f64::from(n),
        mbytes as f64 / f64::from(n)
    );
}
