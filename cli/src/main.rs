//! The `cardume` binary.

fn main() {}
