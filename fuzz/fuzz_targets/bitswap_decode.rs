//! Bitswap messages of peers: no bytes may panic, hang or take much memory, and whatever is read must come back
//! from its own encoding unchanged.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use storage::exchange::message::Message;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = Message::decode(Bytes::copy_from_slice(bytes)) else { return };
    let encoded = message.encode().concat();
    let body = encoded.len() - message.encoded_len();
    let again = Message::decode(Bytes::copy_from_slice(&encoded[body..])).expect("what was written is read");
    assert_eq!(Message { pending_bytes: message.pending_bytes.max(0), ..message }, again);
});
