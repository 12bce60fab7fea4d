//! What a worker keeps for others has an end.

use std::time::Duration;

use super::harness::{Swarm, job, peer};
use crate::message::{Direct, Reconcile};
use crate::owner::{Keep, NewJob};
use crate::record::Kind;
use crate::worker;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_worker_remembers_a_bounded_number_of_owners_on_disk_too() {
    let mut swarm = Swarm::new(1, 1);
    swarm.quiet = true;
    for number in 0..5000_u16 {
        let mut owner = peer(9);
        owner.0[..2].copy_from_slice(&number.to_be_bytes());
        let ask = Reconcile { id: 1, epoch: 5, jobs: Vec::new() };
        swarm
            .worker_effects(peer(1), worker::Input::Message { from: owner, message: Direct::Reconcile(ask) });
    }
    assert!(swarm.nodes[&peer(1)].worker_records.len() <= 4096);
}

#[test]
fn results_that_stay_at_their_worker_count_among_the_bytes_that_it_keeps() {
    let mut swarm = Swarm::new(1, 0);
    swarm.add(2, 1);
    let node = swarm.nodes.get_mut(&peer(2)).unwrap();
    node.worker_settings.retained_bytes = 300;
    swarm.kill(peer(2));
    swarm.boot(peer(2));
    for number in 1..=40 {
        let stays = NewJob { keep: Keep::Worker, ..job(peer(1), number, 1) };
        swarm.submit(peer(1), stays);
        swarm.run(SECOND);
    }
    let kept = swarm.nodes[&peer(2)].worker.as_ref().unwrap().holds().count();
    assert!((1..40).contains(&kept), "{kept} of 40 results of 8 bytes");
    let recorded = swarm.nodes[&peer(2)].worker_records.keys().filter(|key| key.kind == Kind::Kept).count();
    assert_eq!((recorded, swarm.released.len()), (kept, 40 - kept));
}
