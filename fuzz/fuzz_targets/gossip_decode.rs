#![no_main]
//! Everything a peer can send to the machines: read or refused, and what is read is written back the same.

use gossip::crypto::Ed25519;
use gossip::message::{Announcements, Direct, MAX_MESSAGE_BYTES};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let crypto = Ed25519::new([1; 32], "fuzz");
    let _ = Announcements::open(bytes, "fuzz", &crypto);
    if let Ok(message) = Direct::decode(bytes) {
        let again = message.encode();
        assert!(again.len() <= MAX_MESSAGE_BYTES);
        assert_eq!(Direct::decode(&again).as_ref(), Ok(&message));
        if let Direct::Receipts(receipts) = &message {
            for group in &receipts.groups {
                let _ = (group.read(), group.is_by(job::PeerId([1; 32]), &crypto));
            }
        }
        if let Direct::Award(award) = &message {
            let _ = award.order.read::<gossip::message::AwardOrder>();
        }
        if let Direct::Stop(stop) = &message {
            let _ = stop.order.read::<gossip::message::StopOrder>();
        }
    }
});
