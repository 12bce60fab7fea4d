//! Real hosts on loopback, on ports that the system chose.
#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod hosts {
    mod connections;
    mod dht;
    mod frames;
    mod gossip;
    mod limits;
    mod liveness;
    mod requests;
    mod streams;
    mod support;
}
