//! Both machines together: a small swarm in virtual time, through their public interfaces only.

mod bounds;
mod clocks;
mod faults;
mod harness;
mod life;
mod messages;
mod orders;
mod retention;
mod rogue;
mod search;
