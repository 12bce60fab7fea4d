use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use storage::records::MAX_VALUE_BYTES;

use super::*;

/// Counts what it was told, durably.
#[derive(Debug, Default)]
struct Count(u64);

/// A number to add; one cannot be written.
type Add = u64;
const UNWRITABLE: Add = 1000;
/// To say this much is written instead.
const ABSORBED: u64 = 77;

#[derive(Debug, PartialEq, Clone)]
enum Effect {
    Persist(u64),
    Say(u64),
}

impl Machine for Count {
    type Input = Add;
    type Effect = Effect;
    const TABLE: Table = Table::OWNER;
    const NAME: &'static str = "count";

    fn handle(&mut self, _now: Time, add: Add, out: &mut Vec<Effect>) {
        self.0 += add;
        out.extend([Effect::Persist(self.0), Effect::Say(self.0)]);
    }

    fn settle(&mut self, _now: Time, _out: &mut Vec<Effect>) {}

    fn next_wakeup(&self) -> Option<Time> {
        None
    }

    fn tick() -> Add {
        0
    }

    fn persist(effect: &Effect, batch: &mut Batch) -> bool {
        let Effect::Persist(count) = effect else { return false };
        let too_large = vec![0; MAX_VALUE_BYTES + 1];
        match count {
            UNWRITABLE.. => batch.put(Self::TABLE, b"count", too_large),
            count => batch.put(Self::TABLE, b"count", count.to_be_bytes()),
        }
        true
    }
}

#[derive(Debug, PartialEq, Clone)]
enum Seen {
    Performed(Vec<Effect>),
    Failed(Vec<Effect>),
    Revived(u64),
}

#[derive(Clone, Default)]
struct Witness(Arc<Mutex<Vec<Seen>>>);

impl Witness {
    fn note(&self, seen: Seen) {
        self.0.lock().unwrap().push(seen);
    }
}

impl Perform<Count> for Witness {
    fn absorb(&mut self, effects: &mut Vec<Effect>, batch: &mut Batch) -> Vec<Add> {
        let before = effects.len();
        effects.retain(|effect| *effect != Effect::Say(ABSORBED));
        if effects.len() == before {
            return Vec::new();
        }
        batch.put(Table::NODE, b"said", ABSORBED.to_be_bytes());
        vec![1]
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        self.note(Seen::Performed(effects));
    }

    async fn failed(&mut self, effects: Vec<Effect>) {
        self.note(Seen::Failed(effects));
    }

    fn revived(&mut self, machine: &Count) {
        self.note(Seen::Revived(machine.0));
    }
}

struct Running {
    full: Arc<AtomicBool>,
    handle: Handle<Count>,
    seen: Witness,
    restored: Arc<AtomicUsize>,
    cancel: CancellationToken,
    shell: tokio::task::JoinHandle<Result<(), RestoreError>>,
    records: Records,
    _dir: tempfile::TempDir,
}

/// A shell whose database cannot be read in the restorations with these numbers; the first has number 0.
fn running(unreadable: std::ops::Range<usize>) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    let (restored, seen) = (Arc::new(AtomicUsize::new(0)), Witness::default());
    let (counted, full) = (Arc::clone(&restored), Arc::new(AtomicBool::new(false)));
    let is_full = Arc::clone(&full);
    let restore: Restore<Count> = Arc::new(move |records, _| {
        if unreadable.contains(&counted.fetch_add(1, Ordering::Relaxed)) {
            return Err(RecordsError::Closed.into());
        }
        let stored = records.get(Table::OWNER, b"count")?;
        let count = stored.map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
        let writes = if is_full.load(Ordering::Relaxed) { UNWRITABLE } else { count };
        Ok((Count(count), vec![Effect::Persist(writes)]))
    });
    let (handle, queue) = channel();
    let cancel = CancellationToken::new();
    let shell = Shell { queue, records: records.clone(), restore, perform: seen.clone() };
    let shell = tokio::spawn(shell.run(cancel.clone()));
    Running { full, handle, seen, restored, cancel, shell, records, _dir: dir }
}

impl Running {
    async fn count(&self) -> u64 {
        self.handle.ask(|machine| machine.0).await.unwrap()
    }
}

#[tokio::test]
async fn a_machine_whose_transaction_failed_goes_on_from_what_is_durable_once_it_can_be_read() {
    let running = running(1..4);
    running.handle.input(1).await.unwrap();
    assert_eq!(running.count().await, 1);
    running.handle.input(UNWRITABLE).await.unwrap();
    // Its own transaction, after the failed one.
    while running.restored.load(Ordering::Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    running.handle.input(1).await.unwrap();
    assert_eq!(running.count().await, 2);
    running.cancel.cancel();
    running.shell.await.unwrap().unwrap();
    let failed = Seen::Failed(vec![Effect::Say(UNWRITABLE + 1)]);
    let said = |count| Seen::Performed(vec![Effect::Say(count)]);
    let nothing = Seen::Failed(vec![]);
    let expected = [said(1), failed, nothing.clone(), nothing.clone(), nothing, Seen::Revived(1), said(2)];
    assert_eq!(*running.seen.0.lock().unwrap(), expected);
}

#[tokio::test]
async fn what_is_read_of_a_machine_is_durable() {
    let running = running(0..0);
    let asked: Vec<_> = (1..4)
        .map(|add| {
            assert!(running.handle.try_input(add));
            let handle = running.handle.clone();
            let records = running.records.clone();
            tokio::spawn(async move {
                let ask =
                    handle.ask(move |machine| (machine.0, records.get(Table::OWNER, b"count").unwrap()));
                ask.await.unwrap()
            })
        })
        .collect();
    for asked in asked {
        let (count, stored) = asked.await.unwrap();
        assert_eq!(stored, Some(count.to_be_bytes().into()));
    }
    // Also where the transaction fails.
    assert!(running.handle.try_input(UNWRITABLE));
    assert_eq!(running.count().await, 6);
}

#[tokio::test]
async fn what_a_transaction_carries_out_itself_is_in_it_with_what_follows() {
    let running = running(0..0);
    running.handle.input(ABSORBED).await.unwrap();
    while running.count().await != ABSORBED + 1 {
        tokio::task::yield_now().await;
    }
    running.cancel.cancel();
    running.shell.await.unwrap().unwrap();
    let said = Seen::Performed(vec![Effect::Say(ABSORBED + 1)]);
    assert_eq!(*running.seen.0.lock().unwrap(), [said]);
    let records = &running.records;
    assert_eq!(records.get(Table::NODE, b"said").unwrap(), Some(ABSORBED.to_be_bytes().into()));
    assert_eq!(records.get(Table::OWNER, b"count").unwrap(), Some((ABSORBED + 1).to_be_bytes().into()));
}

#[tokio::test]
async fn a_machine_whose_record_cannot_be_written_still_answers_and_loses_no_input() {
    let running = running(0..0);
    running.handle.input(1).await.unwrap();
    assert_eq!(running.count().await, 1);
    running.full.store(true, Ordering::Relaxed);
    running.handle.input(UNWRITABLE).await.unwrap();
    while running.restored.load(Ordering::Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    running.handle.input(2).await.unwrap();
    running.handle.input(4).await.unwrap();
    assert_eq!(running.count().await, 1, "what is durable");
    running.full.store(false, Ordering::Relaxed);
    while running.count().await != 7 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_node_stops_also_while_its_database_cannot_be_used() {
    let running = running(1..usize::MAX);
    running.handle.input(UNWRITABLE).await.unwrap();
    while running.restored.load(Ordering::Relaxed) < 3 {
        tokio::task::yield_now().await;
    }
    running.cancel.cancel();
    running.shell.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_this_node_says_to_itself_is_not_lost_however_much_waits() {
    let (handle, mut queue) = channel::<Count>();
    let most = WAITING as u64 + 10;
    let taken = (0..most).filter(|add| handle.try_input(*add)).count();
    assert_eq!(taken, WAITING, "the common lane has an end");
    (0..most).for_each(|add| handle.own_input(add).unwrap());
    let mut all = Vec::new();
    while all.len() < WAITING + most as usize {
        queue.take(&mut all).await;
    }
}
