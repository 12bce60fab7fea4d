//! The virtual network: which nodes are connected, which directions are cut, and when a frame arrives.
//!
//! A connection carries frames of one direction in order unless the seed says that they overtake each other (every
//! message rides on a stream of its own, and streams have no order among them). A cut direction holds its frames as a
//! kernel's send queue does: they arrive when the cut heals, or die with the connection.

use std::collections::BTreeMap;

use super::clock::{MILLI, SECOND};
use super::rng::Rng;

/// How frames travel under one seed.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    /// The least and the most that a frame usually takes.
    pub delay: (u64, u64),
    /// Frames lost while their connection lives, in thousandths.
    pub loss: u64,
    /// Frames that arrive twice, in thousandths.
    pub duplicates: u64,
    /// Frames that take one of [`Weather::long_delays`] instead, in thousandths.
    pub stragglers: u64,
    /// Delays of stragglers: fractions and multiples of a lease, since shorter ones find nothing.
    pub long_delays: Vec<u64>,
    /// Frames of one connection keep their order.
    pub ordered: bool,
    /// Frames of a connection that has broken may still be read from the receiver's queue, in thousandths.
    pub leftovers: u64,
    /// Announcements that do not reach a subscriber, in thousandths.
    pub gossip_loss: u64,
}

impl Weather {
    /// A calm network: a millisecond or a few, nothing lost.
    pub fn calm() -> Self {
        Weather {
            delay: (MILLI / 2, 4 * MILLI),
            loss: 0,
            duplicates: 0,
            stragglers: 0,
            long_delays: Vec::new(),
            ordered: true,
            leftovers: 0,
            gossip_loss: 0,
        }
    }
}

/// A frame on its way.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub from: usize,
    pub to: usize,
    pub bytes: std::rc::Rc<[u8]>,
    /// The connection that carries it; when that has been replaced, the frame is a leftover.
    pub generation: u32,
}

/// One connection and the two directions under it.
#[derive(Debug, Clone, Default)]
struct Link {
    up: bool,
    /// Counts connections, so that a late frame or timer is known as one of an older connection.
    generation: u32,
    /// Cuts in force from the lower to the higher node, and back.
    cuts: [u32; 2],
    held: Vec<Frame>,
    /// When the last frame of each direction arrives, to keep their order.
    last: [u64; 2],
}

/// All links of a swarm.
#[derive(Debug)]
pub(crate) struct Net {
    links: BTreeMap<(usize, usize), Link>,
    pub weather: Weather,
}

/// What became of a frame that was sent.
#[derive(Debug)]
pub(crate) enum Sent {
    /// It arrives at these moments (more than one when it is doubled).
    Arrives(Frame, u64, Option<u64>),
    /// No connection, or it was lost on the way, or waits behind a cut.
    Gone(&'static str),
}

impl Net {
    /// A network without any connection.
    pub fn new(weather: Weather) -> Self {
        Net { links: BTreeMap::new(), weather }
    }

    /// Whether two nodes have a connection.
    pub fn up(&self, a: usize, b: usize) -> bool {
        self.links.get(&pair(a, b)).is_some_and(|link| link.up)
    }

    /// Whether frames from `a` reach `b` now, connection or not.
    pub fn open(&self, a: usize, b: usize) -> bool {
        self.links.get(&pair(a, b)).is_none_or(|link| link.cuts[direction(a, b)] == 0)
    }

    /// Whether both directions are open, as a dial needs.
    pub fn dialable(&self, a: usize, b: usize) -> bool {
        self.open(a, b) && self.open(b, a)
    }

    /// The number of the connection between two nodes, present or last.
    pub fn generation(&self, a: usize, b: usize) -> u32 {
        self.links.get(&pair(a, b)).map_or(0, |link| link.generation)
    }

    /// Opens a connection; false when there is one or the way is cut.
    pub fn connect(&mut self, a: usize, b: usize) -> bool {
        if self.up(a, b) || !self.dialable(a, b) {
            return false;
        }
        let link = self.links.entry(pair(a, b)).or_default();
        link.up = true;
        link.generation += 1;
        link.last = [0; 2];
        link.held.clear();
        true
    }

    /// Puts a new connection in the place of one that one side had lost; false when the way is cut.
    pub fn replace(&mut self, a: usize, b: usize) -> bool {
        let dialable = self.dialable(a, b);
        let Some(link) = self.links.get_mut(&pair(a, b)).filter(|link| link.up && dialable) else {
            return false;
        };
        link.generation += 1;
        link.last = [0; 2];
        link.held.clear();
        true
    }

    /// Ends a connection; false when there was none. What was held behind a cut is lost.
    pub fn disconnect(&mut self, a: usize, b: usize) -> bool {
        let Some(link) = self.links.get_mut(&pair(a, b)).filter(|link| link.up) else { return false };
        link.up = false;
        link.held.clear();
        true
    }

    /// Cuts one direction. Cuts add up: each is healed by one [`Net::heal`].
    pub fn cut(&mut self, from: usize, to: usize) {
        self.links.entry(pair(from, to)).or_default().cuts[direction(from, to)] += 1;
    }

    /// Heals one cut of a direction and gives back the frames that waited behind it, when they still have a connection.
    pub fn heal(&mut self, from: usize, to: usize) -> Vec<Frame> {
        let Some(link) = self.links.get_mut(&pair(from, to)) else { return Vec::new() };
        let cuts = &mut link.cuts[direction(from, to)];
        *cuts = cuts.saturating_sub(1);
        if *cuts > 0 {
            return Vec::new();
        }
        let (free, held) = std::mem::take(&mut link.held).into_iter().partition(|frame| frame.from == from);
        link.held = held;
        free
    }

    /// Sends a frame from one node to another at the moment `at`.
    pub fn send(&mut self, rng: &mut Rng, at: u64, from: usize, to: usize, bytes: std::rc::Rc<[u8]>) -> Sent {
        let weather = &self.weather;
        let Some(link) = self.links.get_mut(&pair(from, to)).filter(|link| link.up) else {
            return Sent::Gone("no connection");
        };
        if rng.chance(weather.loss) {
            return Sent::Gone("lost");
        }
        let frame = Frame { from, to, bytes, generation: link.generation };
        if link.cuts[direction(from, to)] > 0 {
            if link.held.len() < HELD_FRAMES {
                link.held.push(frame);
            }
            return Sent::Gone("held behind a cut");
        }
        let mut arrives = at + rng.within(weather.delay.0, weather.delay.1);
        if rng.chance(weather.stragglers) && !weather.long_delays.is_empty() {
            arrives = at + rng.pick(&weather.long_delays);
        }
        let last = &mut link.last[direction(from, to)];
        if weather.ordered {
            arrives = arrives.max(*last + 1);
            *last = arrives;
        }
        let again = rng.chance(weather.duplicates).then(|| {
            let late = if weather.long_delays.is_empty() { SECOND } else { rng.pick(&weather.long_delays) };
            arrives + rng.within(MILLI, late)
        });
        Sent::Arrives(frame, arrives, again)
    }
}

/// What a send queue holds behind a cut; a kernel's is bounded too.
const HELD_FRAMES: usize = 256;

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

fn direction(from: usize, to: usize) -> usize {
    usize::from(from > to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes() -> std::rc::Rc<[u8]> {
        std::rc::Rc::from(&b"x"[..])
    }

    #[test]
    fn frames_wait_behind_a_cut_and_die_with_the_connection() {
        let (mut net, mut rng) = (Net::new(Weather::calm()), Rng::new(1));
        assert!(net.connect(0, 1));
        net.cut(1, 0);
        assert!(matches!(net.send(&mut rng, 0, 1, 0, bytes()), Sent::Gone(_)));
        assert!(matches!(net.send(&mut rng, 0, 0, 1, bytes()), Sent::Arrives(..)));
        assert_eq!(net.heal(1, 0).len(), 1);
        net.cut(1, 0);
        assert!(matches!(net.send(&mut rng, 0, 1, 0, bytes()), Sent::Gone(_)));
        assert!(net.disconnect(0, 1));
        assert!(net.heal(1, 0).is_empty());
    }

    #[test]
    fn frames_of_one_connection_keep_their_order() {
        let (mut net, mut rng) = (Net::new(Weather::calm()), Rng::new(2));
        net.connect(2, 1);
        let mut last = 0;
        for at in 0..200 {
            let Sent::Arrives(_, arrives, _) = net.send(&mut rng, at, 2, 1, bytes()) else { panic!("lost") };
            assert!(arrives > last);
            last = arrives;
        }
    }
}
